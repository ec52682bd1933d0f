"""Benchmarks with faults: what test_bench_harness.py runs. Contestants are right, wrong, silent, raising, crashing."""

import ctypes
import os
import time
from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Measured, Sizes, grid
from bp.bench.libraries.library import HostLibrary

BUSY_SECONDS = 0.004


def busy(seconds):
    """Keep a core busy for that long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Doubling(Benchmark):
    """y = 2 x, the known piece of work: two arrays move."""

    sizes = Sizes(cpu=grid(n=[5]), quick=grid(n=[1000]))
    precisions = ("fp32",)
    compiles = False

    def draw(self, draw):
        return {"x": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return 2 * self.n * itemsize

    def bp(self, x):
        return lambda: 2 * x


@dataclass(frozen=True)
class Known(Doubling):
    """Of known duration, and with a figure beside it."""

    name = "known"
    n: int

    def bp(self, x):
        def work():
            busy(BUSY_SECONDS)
            return 2 * x

        return Measured(work, lambda: {"launches": 7.0})

    def numpy(self, x):
        def work():
            busy(3 * BUSY_SECONDS)
            return 2 * x

        return work


@dataclass(frozen=True)
class Faulty(Doubling):
    """A contestant for each fault, beside one that is right."""

    name = "faulty"
    n: int

    def numpy(self, x):
        return lambda: x + x

    def numpy_wrong(self, x):
        return lambda: np.where(np.arange(len(x)) == len(x) - 1, 2.1 * x, 2 * x)

    def numpy_nan(self, x):
        return lambda: np.where(np.arange(len(x)) == 0, np.nan, 2 * x)

    def numpy_short(self, x):
        return lambda: 2 * x[:-1]

    def numpy_silent(self, x):
        right = 2 * x  # left over from somewhere, and nothing is written to it
        return lambda: right

    def numpy_none(self, x):
        return lambda: None

    def numpy_raises(self, x):
        def work():
            raise RuntimeError("out of cheese\nand more")

        return work


@dataclass(frozen=True)
class Crashing(Doubling):
    """Contestants that take their process along, before or after they were checked, and one that never ends."""

    name = "crashing"
    n: int

    def numpy(self, x):
        return lambda: x + x

    def numpy_exits(self, x):
        return lambda: os._exit(3)

    def numpy_faults(self, x):
        return lambda: ctypes.string_at(0)

    def numpy_hangs(self, x):
        return lambda: time.sleep(3600)

    def numpy_later(self, x):
        calls = []

        def work():
            calls.append(1)
            if len(calls) > 2000:
                os._exit(4)
            return 2 * x

        return work


@dataclass(frozen=True)
class Broken(Doubling):
    """One leaves its device unable to do anything more in this process, as a wrong access to a GPU's memory does."""

    name = "broken"
    n: int

    def numpy(self, x):
        return lambda: x + x

    def numpy_breaks(self, x):
        def work(*_):
            HostLibrary.synchronize = work  # whoever waits for the device meets the error again
            raise RuntimeError("wrong access")

        return work


@dataclass(frozen=True)
class Unreferenced(Doubling):
    """Its reference takes the process along."""

    name = "unreferenced"
    n: int

    def reference(self, x):
        os._exit(5)


@dataclass(frozen=True)
class InPlace(Doubling):
    """Contestants that write into what they were given: one does, one only says so."""

    name = "in place"
    n: int

    def draw(self, draw):
        return {"x": draw.normal(self.n), "y": draw.zeros(self.n)}

    def bp(self, x, y):
        def work():
            np.multiply(x, 2, out=y)
            return y

        return work

    def numpy(self, x, y):
        return self.bp(x, y)

    def numpy_silent(self, x, y):
        return lambda: y


@dataclass(frozen=True)
class Large(Doubling):
    """Checked at its ends only, by rows; the sum over all rows is not in the sample."""

    name = "large"
    sampled = ("x",)
    n: int

    def draw(self, draw):
        return {"x": draw.normal(self.n, 3)}

    def bp(self, x):
        return lambda: (2 * x, x.sum(axis=0, dtype=np.float64))

    def numpy(self, x):
        return lambda: (x + x, x.sum(axis=0))

    def numpy_wrong(self, x):
        def work():
            y = 2 * x
            y[-1, -1] += 1
            return y, x.sum(axis=0)

        return work
