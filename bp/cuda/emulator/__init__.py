"""The emulator: `device="emulator"` runs the kernels on the CPU, one fiber per CUDA thread, and watches for races."""
