"""The control block: the few numbers that change from step to step, kept in device memory.

One float64 array per training run. A kernel reads its learning rate, clip factor, step and random seed
from here rather than from by-value arguments, so that the argument list of a launch depends on shape
and configuration alone and a whole step can be replayed as one graph. float64 holds every entry
exactly: learning rates, counts below 2**53, and the seed as two halves of 32 bits.
"""

LEARNING_RATE = 0  # set from the schedule, once a step
GRADIENT_SCALE = 1  # multiplies every gradient: the clip factor, 1 where nothing was clipped
GRADIENT_NORM = 2  # global norm before clipping, written by optimizer.clip_by_global_norm
ATTEMPTED_STEP = 3  # steps begun; schedules and random numbers depend on it
APPLIED_STEP = 4  # steps that changed the weights; Adam's bias correction counts these
SEED_LOW = 5  # random seed, low and high 32 bits: the Philox key
SEED_HIGH = 6
FORWARD_COUNTER = 7  # number of the forward pass: part of the Philox counter
LOSS_DENOMINATOR = 8  # what a mean loss divides by: the terms of the whole batch; 0 where all are ignored
MOMENTUM_PRODUCT = 9  # product of NAdam's momentum schedule up to the applied step

SIZE = 16
