"""The native extension as a whole: which arrays its kernels are given, and what is left of it after a fork."""

import os
import signal
import time

import numpy as np
import pytest
from any_threads import expect_same_on_any_threads

import bp.ops.norm as ops
from bp.cpu import native

pytestmark = pytest.mark.skipif(native.kernels is None, reason="the native extension is not built")


def misaligned(array):
    """The same numbers one byte off any address that their type may have."""
    moved = np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
    assert not moved.flags.aligned
    return moved


def test_kernels_are_for_aligned_float32_alone():
    x = np.zeros(4, "float32")
    assert native.kernel("layer_norm", x) is not None
    assert native.kernel("layer_norm", x.astype("float64")) is None
    assert native.kernel("layer_norm", misaligned(x)) is None
    assert native.kernel("no_such_kernel", x) is None


def test_misaligned_arrays_run_on_numpy(monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    y, _, _ = ops.layer_norm(misaligned(x), None, None, 1, 1e-5)
    monkeypatch.setattr(native, "kernels", None)
    np.testing.assert_array_equal(y, ops.layer_norm(x, None, None, 1, 1e-5)[0])


@pytest.mark.skipif(native.kernels is not None and not native.kernels.openmp, reason="built without OpenMP")
def test_results_do_not_depend_on_the_number_of_threads():
    script = """
import hashlib, numpy as np, bp
from bp.ops import loss, norm, reduce
x = np.random.default_rng(0).standard_normal((611, 703)).astype("float32")
results = [operation(x, axis) for operation in (reduce.sum, reduce.mean, reduce.max) for axis in (None, -1, 0)]
results += [reduce.sum(x.reshape(shape), axis) for shape in ((-1, 13), (13, -1)) for axis in (-1, 0)]
control = np.ones(16)
losses, gradient = loss.squared_error(x, x[::-1].copy(), control, True)
results += [losses, gradient, loss.mean_of_terms(losses, control)]
results += loss.binary_cross_entropy(x, np.abs(np.tanh(x)), None, control, True)
results += norm.layer_norm(x, None, None, 1, 1e-5)
model = bp.Sequential(bp.Linear(703, 611))
model.build((703,))
optimizer = bp.RMSprop(centered=True).setup(model)
model[0].weight.grad = x
optimizer.step()
print(hashlib.sha256(b"".join(result.tobytes() for result in [*results, model.arena.values])).hexdigest())
"""
    expect_same_on_any_threads(script)


def finishes(pid, seconds):
    """Whether the child ends by itself, without error, in that time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


# Newer versions of Python warn of a fork while any other thread runs, and those of OpenMP and BLAS always do.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_parallel_loops_run_after_a_fork():
    x = np.random.default_rng(0).standard_normal((512, 512)).astype("float32")
    y, _, _ = ops.layer_norm(x, None, None, 1, 1e-5)
    pid = os.fork()
    if pid == 0:
        same = False
        try:
            same = np.array_equal(ops.layer_norm(x, None, None, 1, 1e-5)[0], y)
        finally:
            os._exit(0 if same else 1)
    assert finishes(pid, 10)
