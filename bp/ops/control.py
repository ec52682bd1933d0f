"""The control block: the few numbers that change from step to step, kept in device memory.

One float64 array per training run. A kernel reads its learning rate, clip factor, step and random seed
from here rather than from by-value arguments, so that the argument list of a launch depends on shape
and configuration alone and a whole step can be replayed as one graph. float64 holds every entry
exactly: learning rates, counts below 2**53, and the seed as two halves of 32 bits.

The first HOST_ENTRIES are written by the host, in one copy before a step; the others by operations, on the device.
"""

LEARNING_RATE = 0  # set from the schedule, once a step
LOSS_DENOMINATOR = 1  # what a mean loss divides by: the terms of the whole batch; 0 where all are ignored
FORWARD_COUNTER = 2  # number of the forward pass: part of the Philox counter
SEED_LOW = 3  # random seed, low and high 32 bits: the Philox key
SEED_HIGH = 4
HOST_ENTRIES = 5

ATTEMPTED_STEP = 5  # steps begun; schedules and random numbers depend on it
APPLIED_STEP = 6  # steps that changed the weights; Adam's bias correction counts these
GRADIENT_NORM = 7  # global norm before clipping, written by optimizer.clip_by_global_norm
GRADIENT_SCALE = 8  # multiplies every gradient: the clip factor over the loss scale, 1 where there is neither
MOMENTUM_PRODUCT = 9  # product of NAdam's momentum schedule up to the applied step
LOSS_SCALE = 10  # multiplies the gradient of the loss, so that small ones survive in float16; 1 elsewhere
SKIP_STEP = 11  # 1 where a gradient of this step was not finite under a loss scale: then nothing is updated
GOOD_STEPS = 12  # steps since the loss scale last changed

SIZE = 16

# What a new block holds where not zero.
INITIAL = {GRADIENT_SCALE: 1.0, LOSS_SCALE: 1.0}
