"""The device "cuda": arrays and launches of CuPy. This is the one file that imports it."""

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from bp.cuda import requirements
from bp.cuda.device import CudaDevice, Place, Values
from bp.cuda.kernel import Unit, Variant
from bp.cuda.ledger import Ledger
from bp.cuda.nvrtc import compile_unit
from bp.cuda.product import WAYS, Product
from bp.cuda.requirements import Problem
from bp.errors import ConfigurationError
from bp.ops import scope
from bp.ops.array import Array, Shape, known_dtype

_SHARED_WITHOUT_ASKING = 48 * 1024

# How a value of each C type is handed to CuPy: a NumPy scalar of exactly that size. A null pointer is the number 0;
# CuPy takes None for an argument without a value.
_SCALARS: dict[Any, Callable[[Any], Any]] = {
    ctypes.c_void_p: np.uint64,
    ctypes.c_float: np.float32,
    ctypes.c_double: np.float64,
    ctypes.c_int: np.int32,
    ctypes.c_uint32: np.uint32,
    ctypes.c_int64: np.int64,
    ctypes.c_uint64: np.uint64,
    ctypes.c_int8: np.int8,
    ctypes.c_uint8: np.uint8,
    ctypes.c_int16: np.int16,
    ctypes.c_uint16: np.uint16,
    ctypes.c_bool: np.bool_,
    bytes: lambda value: np.frombuffer(value, f"V{len(value)}"),  # an array of one element goes by value
}


def problem() -> Problem | None:
    """What keeps this machine from using the device; None where nothing does."""
    return requirements.problem() or _of_cupy()


def _of_cupy() -> Problem | None:
    """What only importing CuPy tells; asked last, since it takes a second."""
    try:
        import cupy

        if cupy.cuda.is_available():
            return None
        reason = "it finds no GPU that it can use"
    except (ImportError, RuntimeError, OSError) as error:  # older wheels raise where there is no driver for them
        reason = " ".join(str(error).split())[:200]
    return Problem(f"CuPy is installed and cannot be used ({reason})", "see bp doctor, or install it again")


@functools.cache
def device() -> "GPUDevice":
    """The device; raises ConfigurationError, with what to install, where it cannot be used."""
    found = problem()
    if found is not None:
        raise ConfigurationError(f"device 'cuda' cannot be used; {found}")
    return GPUDevice()


class GPUDevice(CudaDevice):
    """The first GPU that CuPy sees (CUDA_VISIBLE_DEVICES chooses); launches go to CuPy's current stream.

    Memory comes from CuPy's pool, so what bp gives back serves other CuPy code as well.
    """

    name = "cuda"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.array_type = cupy.ndarray
        self.capability = int(cupy.cuda.Device().compute_capability)
        super().__init__()
        self._modules: dict[Unit, Any] = {}
        self._of_thread = threading.local()

    @property
    def model(self) -> str:
        """What the GPU is called, such as "NVIDIA H200"."""
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        return str(properties["name"].decode())

    @functools.cached_property
    def multiprocessors(self) -> int:
        """How many the GPU has."""
        return int(self.cupy.cuda.Device().attributes["MultiProcessorCount"])

    @property
    def architecture(self) -> str:
        """The name that the compiler has for this GPU; sm_90a adds what only Hopper has."""
        return f"sm_{self.capability}{'a' if self.capability == 90 else ''}"

    def allocate(self, shape: Shape, dtype: Any) -> Array:
        self._of_thread.allocating = True
        try:
            return self.cupy.empty(shape, known_dtype(dtype))
        finally:
            self._of_thread.allocating = False

    def to_host(self, array: Array) -> np.ndarray:
        self.note_transfer("the device is read by the host")
        return array.get()

    def _upload(self, destination: Array, source: np.ndarray) -> None:
        # The driver has read all of ordinary memory by the time the call returns, so `source` may change then.
        self.note_transfer("the host writes to the device")
        destination.set(source.reshape(destination.shape))  # an array of shape () has become one of shape (1,)

    def pointer(self, array: Array) -> int:
        return array.data.ptr

    def _run(self, variant: Variant, grid: tuple[int, int, int], values: Values) -> None:
        if variant.function is None:
            variant.function = self._load(variant)
        function, scalars = variant.function
        arguments = tuple(scalar(value) for scalar, value in zip(scalars, values, strict=True))
        function(grid, (variant.threads, 1, 1), arguments, variant.shared_bytes(values))

    def _load(self, variant: Variant) -> tuple[Any, list[Any]]:
        module = self._modules.get(variant.unit)
        if module is None:
            source = variant.kernel.source
            cubin = compile_unit(source.path, dict(variant.unit.defines), self.architecture)
            module = self.cupy.cuda.function.Module()
            module.load(cubin.read_bytes())
            self._modules[variant.unit] = module
        function = module.get_function(variant.kernel.name)
        if variant.kernel.shared != "0":
            from cupy_backends.cuda.api import driver

            # What is declared in the kernel and what the launch asks for share one limit.
            most = self.cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
            most -= driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.ptr)
            if most > _SHARED_WITHOUT_ASKING:
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(function.ptr, attribute, most)
        return function, [_SCALARS[kind] for kind in variant.types]

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self.cupy.cuda.get_current_stream().synchronize()

    # Graphs and profiling -----------------------------------------------------------------------------------

    @property
    def stream(self) -> Any:
        """The stream that training runs on: a graph cannot be captured from the default one.

        Each thread has its own, so that what one captures holds no launch of another.
        """
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = self.cupy.cuda.Stream(non_blocking=False)
        return self._of_thread.stream

    @contextmanager
    def running(self, precision: str) -> Iterator[None]:
        """Within this block launches go to the stream of the training, as in that precision.

        With BP_NVTX=1 each layer and pass is a range in the picture of a profiler (Nsight Systems). A step that is
        replayed as a graph shows none, so look at it with cuda_graph="off".
        """
        ranges = scope.watch(self.open_range) if os.environ.get("BP_NVTX") == "1" else nullcontext()
        with super().running(precision), self.stream, ranges:
            yield

    @contextmanager
    def recording(self, *, timed: bool = False) -> Iterator[Ledger]:
        """As for every device; and what CuPy's own functions computed is noted, since no ledger has it.

        They show by the memory that they take for their results. What writes in place, or reads an array past
        `to_host` (`float(x)`, `x.get()`), is not seen.
        """
        device = self

        class Watch(self.cupy.cuda.MemoryHook):  # type: ignore[name-defined]  # of a package without types
            def __init__(self) -> None:
                self.name = f"bp {id(self)}"  # recordings may lie within each other

            def malloc_preprocess(self, **_: Any) -> None:
                if not getattr(device._of_thread, "allocating", False):
                    device.note_transfer("CuPy made an array of its own")

        with super().recording(timed=timed) as ledger, Watch():
            yield ledger

    def replay(self, ledger: Ledger) -> Callable[[], None]:
        """The launches of the ledger as one CUDA graph.

        Captured from the recorded list rather than from the step itself: so no Python of the step runs, and nothing is
        allocated, during the capture.
        """
        once = super().replay(ledger)
        stream = self.cupy.cuda.get_current_stream()
        stream.begin_capture()
        try:
            once()
        finally:
            graph = stream.end_capture()
        return graph.launch

    def stage(self, shape: Shape, dtype: Any) -> "Staging":
        """A place on the device that batch after batch is copied to while the last is still in use."""
        return Staging(self, shape, dtype)

    def mark(self) -> Any:
        """An event in the current stream."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def since(self, mark: Any) -> Callable[[], float]:
        """The time between two events, as the GPU measured it."""
        now = self.mark()

        def seconds() -> float:
            now.synchronize()
            return float(self.cupy.cuda.get_elapsed_time(mark, now)) * 1e-3

        return seconds

    def open_range(self, label: str) -> Callable[[], None]:
        """Begin an NVTX range, which a profiler shows; returns what ends it."""
        self.cupy.cuda.nvtx.RangePush(label)
        return self.cupy.cuda.nvtx.RangePop


def library_product(product: Product) -> Callable[[], None]:
    """Work that computes C = alpha op(A) op(B) + beta C by cuBLAS, on CuPy's current stream, with sums in float32.

    product: of a depth of at least 1, with a plain epilogue; its arrays are CuPy's.
    """
    from cupy.cuda import device, runtime
    from cupy_backends.cuda.libs import cublas

    a, b, c, epilogue = product.a, product.b, product.c, product.epilogue
    types = {"float32": runtime.CUDA_R_32F, "float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF}
    factors, result = types[a.array.dtype.name], types[c.array.dtype.name]
    computed = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if product.tf32 else cublas.CUBLAS_COMPUTE_32F
    operations = [cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N for transposed in WAYS[product.way]]
    alpha, beta = np.full(1, epilogue.alpha, np.float32), np.full(1, epilogue.beta, np.float32)
    left, right, to = a.array.data.ptr, b.array.data.ptr, c.array.data.ptr
    # cuBLAS counts by columns, so what it sees are transposed matrices: C^T = op(B)^T op(A)^T.
    sizes = (*reversed(operations), product.n, product.m, product.k)
    handle = device.get_cublas_handle()

    def one() -> None:
        cublas.gemmEx(
            *(handle, *sizes, alpha.ctypes.data, right, factors, b.stride, left, factors, a.stride),
            *(beta.ctypes.data, to, result, c.stride, computed, cublas.CUBLAS_GEMM_DEFAULT),
        )

    def batch() -> None:
        cublas.gemmStridedBatchedEx(
            *(handle, *sizes, alpha.ctypes.data, right, factors, b.stride, b.batch_stride),
            *(left, factors, a.stride, a.batch_stride, beta.ctypes.data, to, result, c.stride, c.batch_stride),
            *(c.batch, computed, cublas.CUBLAS_GEMM_DEFAULT),
        )

    return one if c.batch == 1 else batch


class Staging(Place):
    """A batch's way to the device, beside the work on the last batch.

    The host copies into pinned memory; a second stream copies that into a staging buffer; the stream of the training
    copies staging to `static`, the array that the graph reads. Two events keep order: the staging buffer is not
    written before the training stream has read it, nor read before it is whole.
    """

    def __init__(self, device: GPUDevice, shape: Shape, dtype: Any) -> None:
        super().__init__(device, shape, dtype)
        cupy, known = device.cupy, self.static.dtype
        self._staging = device.allocate(shape, known)
        self._pinned_memory = cupy.cuda.alloc_pinned_memory(max(self.static.nbytes, 1))
        self._pinned = np.frombuffer(self._pinned_memory, known, self.static.size).reshape(shape)
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._whole, self._read = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)
        self._read.record()  # the memory may have been another array's, which kernels on their way still read
        # The pinned memory goes back to a pool, for the host to write at once: not before it has been read.
        weakref.finalize(self, self._whole.synchronize).atexit = False
        self._cupy = cupy

    def put(self, array: np.ndarray) -> None:
        """Bring a host array to `static`, in the order of the training's stream; returns before it has arrived."""
        if not array.size:
            return
        stream = self._cupy.cuda.get_current_stream()
        self._whole.synchronize()  # the pinned memory has been read
        np.copyto(self._pinned, array)
        self._copies.wait_event(self._read)
        self._staging.set(self._pinned, self._copies)
        self._whole.record(self._copies)
        stream.wait_event(self._whole)
        self.device.copy(self.static, self._staging)
        self._read.record(stream)
