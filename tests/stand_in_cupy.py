"""A stand-in for CuPy where there is no GPU: what `bp/cuda/gpu.py` uses of it, as CuPy 14 behaves, on the emulator.

    BP_TEST_DEVICE=cuda python -m pytest -p stand_in_cupy tests/test_step_graph.py      (with tests/ on PYTHONPATH)

runs tests through the code of the device "cuda": launches with NumPy scalars of exact size, streams, events, captured
graphs, pinned staging. Stricter than CuPy where bp must not rely on it: assigning into an array, or reading one that
is not allocated, raises. It shows nothing about speed, drivers or asynchrony: every launch has run when it returns.
"""

import ctypes
import json
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from bp.cuda import requirements
from bp.cuda.emulator import engine
from bp.cuda.emulator.unit import compile_unit

CAPABILITY = "80"
MOST_SHARED, STATIC_SHARED = 163 * 1024, 1024  # of a block; the second is what a kernel may declare itself

log: list[tuple] | None = None  # what was asked for, in order, while it is a list


def _log(*entry):
    if log is not None:
        log.append(entry)


_KINDS = {"f": {4: ctypes.c_float, 8: ctypes.c_double}, "b": {1: ctypes.c_bool}}
_KINDS["i"] = {1: ctypes.c_int8, 2: ctypes.c_int16, 4: ctypes.c_int32, 8: ctypes.c_int64}
_KINDS["u"] = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class _Data:
    """As cupy.cuda.MemoryPointer."""

    def __init__(self, memory, offset):
        self.memory, self.offset = memory, offset

    @property
    def ptr(self):
        return 0 if self.memory is None else self.memory.pointer + self.offset


class ndarray:
    """As cupy.ndarray: C-contiguous, views of rows and reshapes."""

    class flags:
        c_contiguous = True

    def __init__(self, shape, dtype, data, base=None):
        self.shape, self.dtype, self.data, self.base = tuple(shape), np.dtype(dtype), data, base

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape, dtype=np.int64)))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.itemsize)
    strides = property(lambda self: np.empty(self.shape, self.dtype).strides)

    def _view(self, shape, elements):
        data = _Data(self.data.memory, self.data.offset + elements * self.itemsize)
        return ndarray(shape, self.dtype, data, self if self.base is None else self.base)

    def reshape(self, *shape):
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return self._view(np.empty(self.shape, np.bool_).reshape(tuple(wanted)).shape, 0)

    def __getitem__(self, index):
        if index is Ellipsis:
            return self._view(self.shape, 0)
        assert isinstance(index, (int, slice)), "bp takes whole rows"
        rows = range(len(self))[index]
        inner = int(np.prod(self.shape[1:], dtype=np.int64))
        if isinstance(rows, int):
            return self._view(self.shape[1:], rows * inner)
        assert rows.step == 1
        return self._view((len(rows), *self.shape[1:]), rows.start * inner)

    def __setitem__(self, index, value):
        raise AssertionError("CuPy would run a kernel of its own, which no ledger has: use device.copy or device.fill")

    def __len__(self):
        return self.shape[0]

    def __float__(self):
        return float(self.get())

    def get(self):
        current_stream().refuse_while_capturing("D2H")
        host = np.empty(self.shape, self.dtype)
        ctypes.memmove(host.ctypes.data, self.data.ptr, host.nbytes)
        return host

    def set(self, array, stream=None):
        (stream or current_stream()).refuse_while_capturing("H2D")
        _log("set", self, stream or current_stream())
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            raise TypeError(f"{type(array)} array cannot be set to {self.dtype} array")
        if array.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {array.shape}")
        source = np.ascontiguousarray(array)
        ctypes.memmove(self.data.ptr, source.ctypes.data, source.nbytes)


def empty(shape, dtype):
    result = ndarray(shape, dtype, _Data(None, 0))
    for hook in _here.hooks.values() if result.nbytes else ():
        hook.malloc_preprocess(device_id=0, size=result.nbytes, mem_size=result.nbytes)
    if result.nbytes:  # CuPy gives a null pointer for none
        result.data = _Data(engine.allocate(result.nbytes), 0)
    return result


class MemoryHook:
    name = "MemoryHook"

    def __enter__(self):
        if self.name in _here.hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        _here.hooks[self.name] = self
        return self

    def __exit__(self, *_):
        del _here.hooks[self.name]

    def malloc_preprocess(self, **_):
        pass


class Stream:
    """Launches run at once, but while it captures they are only kept."""

    def __init__(self, null=False, non_blocking=False):
        self.null, self.non_blocking, self.captured = null, non_blocking, None

    def __enter__(self):
        _here.streams.append(self)
        return self

    def __exit__(self, *_):
        assert _here.streams.pop() is self

    def refuse_while_capturing(self, what):
        if self.captured is not None:
            raise RuntimeError(f"the current stream is capturing, so {what} transfers are disallowed")

    def synchronize(self):
        self.refuse_while_capturing("synchronous")

    def wait_event(self, event):
        _log("wait", event, self)

    def begin_capture(self):
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.captured = []

    def end_capture(self):
        graph, self.captured = Graph(self.captured), None
        return graph


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        for launch in self.launches:
            launch()


class _OfThread(threading.local):
    """As in CuPy, each thread has its own current stream and memory hooks."""

    def __init__(self):
        self.streams = [_null]
        self.hooks: dict[str, MemoryHook] = {}


_null = Stream(null=True)
_here = _OfThread()


def current_stream():
    return _here.streams[-1]


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.timed, self.when = not disable_timing, None

    def record(self, stream=None):
        _log("record", self, stream or current_stream())
        self.when = time.perf_counter()

    def synchronize(self):
        _log("synchronize", self)


def get_elapsed_time(start, end):
    assert start.timed and end.timed
    return 1e3 * (end.when - start.when)


class Module:
    """The "cubin" names file and macros: `install` puts the emulator's compiler in the place of NVRTC."""

    def load(self, cubin):
        assert isinstance(cubin, bytes)
        path, defines = json.loads(cubin)
        self.unit = compile_unit(Path(path), defines, detector=False)

    def get_function(self, name):
        _functions.append(Function(self.unit, name))
        return _functions[-1]


class Function:
    def __init__(self, unit, name):
        self.unit, self.name, self.ptr = unit, name, unit.function(name)
        self.dynamic_shared = 48 * 1024

    def __call__(self, grid, block, arguments, shared_mem=0):
        assert isinstance(grid, tuple) and isinstance(block, tuple) and len(grid) == len(block) == 3
        assert shared_mem <= self.dynamic_shared, "cudaErrorInvalidValue"
        values = [self._value(argument) for argument in arguments]

        def launch():
            engine.launch(self.ptr, self.name, values, grid, block[0], shared_mem)

        captured = current_stream().captured
        _log("launch", self.name, current_stream(), tuple(arguments))
        launch() if captured is None else captured.append(launch)

    @staticmethod
    def _value(argument):
        if not isinstance(argument, np.generic):  # a Python number would go as 8 bytes
            raise TypeError(f"Unsupported type {type(argument)}")
        kind = _KINDS[argument.dtype.kind][argument.dtype.itemsize]
        # The engine reads as many bytes as the parameter has, as a GPU does.
        return kind(argument.item())


def _set_attribute(function, attribute, value):
    assert attribute == driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    found = [f for f in _functions if f.ptr == function]
    assert found and value + STATIC_SHARED <= MOST_SHARED, "CUDA_ERROR_INVALID_VALUE"
    for f in found:
        f.dynamic_shared = value


_functions: list[Function] = []
driver = types.SimpleNamespace(
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES=1,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
    funcGetAttribute=lambda attribute, function: STATIC_SHARED,
    funcSetAttribute=_set_attribute,
)


def _pinned(nbytes):
    return memoryview(bytearray(nbytes))


def install(patch: pytest.MonkeyPatch):
    """Put the stand-in where `import cupy` finds it, and let the machine look as if it had a GPU."""
    from bp.cuda import gpu

    device = types.SimpleNamespace(
        compute_capability=CAPABILITY, attributes={"MaxSharedMemoryPerBlockOptin": MOST_SHARED}
    )
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        Device=lambda: device,
        function=types.SimpleNamespace(Module=Module),
        get_current_stream=current_stream,
        Stream=Stream,
        Event=Event,
        MemoryHook=MemoryHook,
        get_elapsed_time=get_elapsed_time,
        alloc_pinned_memory=lambda nbytes: memoryview(bytearray(nbytes)),
        nvtx=types.SimpleNamespace(RangePush=lambda label: None, RangePop=lambda: None),
    )
    cupy = types.ModuleType("cupy")
    cupy.__dict__.update(ndarray=ndarray, empty=empty, cuda=cuda)
    api = types.ModuleType("cupy_backends.cuda.api")
    api.__dict__.update(driver=driver)
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api"):
        patch.setitem(sys.modules, name, api)
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setattr(requirements, "problem", lambda: None)
    patch.setattr(gpu, "compile_unit", _Cubin)


class _Cubin:
    """As the path that bp.cuda.nvrtc.compile_unit returns: its bytes name file and macros."""

    def __init__(self, path, defines, architecture):
        assert architecture == f"sm_{CAPABILITY}"
        self.content = json.dumps([str(path), defines]).encode()

    def read_bytes(self):
        return self.content


def pytest_configure():
    """As a plugin: for the whole run."""
    install(pytest.MonkeyPatch())
