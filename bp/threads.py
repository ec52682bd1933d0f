"""Thread pools that share the cores: NumPy's BLAS brings one, the OpenMP loops of the native kernels another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# What each library waits for work before its threads sleep; they read it once, when they are loaded. OpenBLAS: 2^16
# clock ticks, some 25 us (its default, 2^26, is 25 ms). libgomp: a few microseconds (its default is milliseconds).
SHORT_WAITS = {"OPENBLAS_THREAD_TIMEOUT": "16", "GOMP_SPINCOUNT": "1000"}
# A setting of the user's stands.
USERS = {"OPENBLAS_THREAD_TIMEOUT": (), "GOMP_SPINCOUNT": ("OMP_WAIT_POLICY",)}


@contextmanager
def short_waits() -> Iterator[None]:
    """Libraries loaded within this block let their idle threads sleep soon instead of spinning on a core.

    A worker that spins after a matrix product holds the core that the next convolution needs, and the other way round.
    On 2 cores a step of a convolutional network took 34 ms with both defaults and 20 ms with short waits, one of a
    784-512-512-10 network 6 to 8 ms and 3 ms. Without effect on a library that is loaded already: import bp before
    numpy. The environment is as before afterwards, so processes started later are not touched.
    """
    chosen = {
        name: value
        for name, value in SHORT_WAITS.items()
        if not any(variable in os.environ for variable in (name, *USERS[name]))
    }
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


with short_waits():
    import numpy  # noqa: F401  # loads its BLAS
