"""The CUDA device: every operation as launches of the kernels in `kernels/`, on a GPU or on the CPU emulator."""
