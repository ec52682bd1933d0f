// Entries of the control block, a float64 array in device memory; the numbers are those of bp/ops/control.py.
#pragma once

enum Control {
    LEARNING_RATE = 0,
    LOSS_DENOMINATOR = 1,
    FORWARD_COUNTER = 2,
    SEED_LOW = 3,
    SEED_HIGH = 4,
    ATTEMPTED_STEP = 5,
    APPLIED_STEP = 6,
    GRADIENT_NORM = 7,
    GRADIENT_SCALE = 8,
    MOMENTUM_PRODUCT = 9,
    LOSS_SCALE = 10,
    SKIP_STEP = 11,
    GOOD_STEPS = 12,
};
