"""Tensor maps: what the copy engine of sm_90 has to know of an array and of the boxes it copies (TMA).

A kernel takes one by value (kernels/include/tensor_map.cuh). On a GPU the driver encodes it; on the emulator it is a
structure of our own (csrc/emulator/tensor_copies.cpp), encoded after the same checks; on a plan it is zeros.
"""

import ctypes
import functools
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from bp.cuda.device import device_of
from bp.cuda.driver import LIBRARY
from bp.errors import ConfigurationError, DtypeError, ShapeError
from bp.ops.array import Array

BYTES = 128
_ALIGNMENT = 64  # of a map, where the driver writes it and where a kernel has it

# dtype -> the driver's number for it, and bytes of an element. 8-bit floats are read as bytes.
_DTYPES = {"uint8": (0, 1), "float16": (6, 2), "float32": (7, 4), "bfloat16": (9, 2)}
# Of float32 arrays that the copy engine rounds to tf32 as it loads them (CU_TENSOR_MAP_DATA_TYPE_TFLOAT32).
_TF32 = 11
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes -> the driver's number
_NO_INTERLEAVE, _L2_PROMOTION_256, _ZEROS_OUTSIDE = 0, 3, 0

_MAX_RANK = 5
_MAX_SIZE, _MAX_STRIDE = 1 << 32, 1 << 40
_MAX_BOX, _MAX_ELEMENT_STRIDE = 256, 8
_MAX_PIXELS, _CORNERS, _FARTHEST_TAP = 1024, range(-128, 128), 255

# The emulator's: mark, address, strides, sizes less one, box, element strides, corners, and five numbers.
_EMULATED = struct.Struct("<QQ4Q5I5H5B4b5B")
_MARK = 0x70616D7220736E74


def tiled(
    array: Array,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    *,
    swizzle: int = 128,
    element_strides: Sequence[int] | None = None,
    tf32: bool = False,
) -> bytes:
    """The map of an array of 2 to 5 dimensions, and of boxes that `load_box` and `store_box` copy.

    The innermost dimension comes first everywhere, as in a kernel's coordinates; it has no gaps. array: where the
    memory begins, and the dtype (float32, float16, bfloat16 or uint8). shape: in elements. strides: in bytes, of the
    dimensions from the second on. box: elements in each dimension, at most 256. swizzle: in bytes, 128, 64, 32 or 0
    (none), and a row of the box has as many. element_strides: of the dimensions of a box, at most 8 (1: all of
    its elements are copied); the first is 1. tf32: of a float32 array, whether `load_box` rounds elements to 10 bits of
    mantissa, as wgmma in tf32 takes them, which would cut them off instead; such a map is for loads. A row-major matrix
    of (m, k) in bfloat16, in boxes of 128 rows by 64:

        tiled(x, (k, m), (2 * k,), (64, 128))

    Raises ShapeError or DtypeError on what the driver would refuse, or where the shape goes beyond the array.
    """
    rank = len(shape)
    steps = tuple(element_strides or (1,) * rank)
    if not 2 <= rank <= _MAX_RANK or (len(strides), len(box), len(steps)) != (rank - 1, rank, rank):
        raise ShapeError(
            f"a tensor map expected 2 to {_MAX_RANK} sizes, as many of a box and of element strides, and one stride "
            f"less, got {tuple(shape)}, {tuple(box)}, {steps} and {tuple(strides)}"
        )
    if not all(1 <= size <= _MAX_BOX for size in box):
        raise ShapeError(f"a tensor map expected a box of 1 to {_MAX_BOX} elements a dimension, got {tuple(box)}")
    if steps[0] != 1 or not all(1 <= step <= _MAX_ELEMENT_STRIDE for step in steps):
        raise ShapeError(f"a tensor map expected element strides of 1, then 1 to {_MAX_ELEMENT_STRIDE}, got {steps}")
    return _map(array, tuple(shape), tuple(strides), tuple(box), steps, (), swizzle, tf32)


def im2col(
    array: Array,
    lower_corner: tuple[int, int],
    upper_corner: tuple[int, int],
    channels: int,
    pixels: int,
    *,
    strides: tuple[int, int] = (1, 1),
    swizzle: int = 128,
) -> bytes:
    """The map of an image array (N, H, W, C), and of the columns of pixels that `load_pixels` copies.

    lower_corner, upper_corner: (w, h) of the box over which a column runs, from 0 and from the last pixel on, -128 to
    127. channels, pixels: of a column, at most 256 and 1024. strides: from a pixel to the next, (w, h), at most 8.
    swizzle: as of `tiled`. A convolution with padding p, a kernel of k and dilation d has the corners -p and
    p - (k - 1) * d, its strides, and tap r of the kernel is r * d away.

    Raises ShapeError or DtypeError on what the driver would refuse.
    """
    if len(array.shape) != 4:
        raise ShapeError(f"a tensor map of pixels expected an array (N, H, W, C), got the shape {array.shape}")
    n, height, width, depth = array.shape
    corners = (*lower_corner, *upper_corner)
    if len(corners) != 4 or not all(corner in _CORNERS for corner in corners):
        raise ShapeError(f"a tensor map of pixels expected corners (w, h) of -128 to 127, got {corners}")
    if not (1 <= channels <= _MAX_BOX and 1 <= pixels <= _MAX_PIXELS):
        raise ShapeError(
            f"a tensor map of pixels expected at most {_MAX_BOX} channels and {_MAX_PIXELS} pixels, got {channels} and "
            f"{pixels}"
        )
    if len(strides) != 2 or not all(1 <= stride <= _MAX_ELEMENT_STRIDE for stride in strides):
        raise ShapeError(f"a tensor map of pixels expected strides (w, h) of 1 to {_MAX_ELEMENT_STRIDE}, got {strides}")
    for name, size, low, high in zip("wh", (width, height), lower_corner, upper_corner, strict=True):
        if low >= size + high:
            raise ShapeError(f"a tensor map of pixels has an empty box: {name} from {low} to {size + high - 1}")
    itemsize = array.dtype.itemsize
    pitches = tuple(itemsize * elements for elements in (depth, depth * width, depth * width * height))
    return _map(
        array, (depth, width, height, n), pitches, (channels, pixels), (1, *strides, 1), corners, swizzle, False
    )


def can_load_pixels(corners: Iterable[int], farthest: int, strides: Iterable[int], bytes: int) -> bool:
    """Whether `im2col` takes maps of all these corners and strides, of images of so many bytes, and `load_pixels` a tap
    that is so far from the first."""
    return (
        all(corner in _CORNERS for corner in corners)
        and farthest <= _FARTHEST_TAP
        and all(stride <= _MAX_ELEMENT_STRIDE for stride in strides)
        and bytes < _MAX_STRIDE
    )


def _map(
    array: Array,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    steps: tuple[int, ...],
    corners: tuple[int, ...],
    swizzle: int,
    tf32: bool,
) -> bytes:
    """Check what both kinds have in common, and encode. corners: none for boxes."""
    dtype: str = array.dtype.name
    if dtype not in _DTYPES:
        raise DtypeError(f"a tensor map expected an array of {', '.join(_DTYPES)}, got {dtype}")
    if tf32 and dtype != "float32":
        raise DtypeError(f"a tensor map in tf32 expected an array of float32, got {dtype}")
    itemsize = array.dtype.itemsize
    device = device_of(array)
    pointer = device.pointer(array)
    if not all(1 <= size <= _MAX_SIZE for size in shape):
        raise ShapeError(f"a tensor map expected sizes of 1 to 2^32, got {shape}")
    if any(stride % 16 or not 0 <= stride < _MAX_STRIDE for stride in strides):
        raise ShapeError(f"a tensor map expected strides of a multiple of 16 bytes below 2^40, got {strides}")
    if pointer % 16:
        raise ShapeError(f"a tensor map expected an array at a multiple of 16 bytes, got one at 0x{pointer:x}")
    end = (shape[0] - 1) * itemsize + sum((n - 1) * s for n, s in zip(shape[1:], strides, strict=True)) + itemsize
    if end > array.nbytes:
        raise ShapeError(f"a tensor map of {end} bytes, {shape} by {strides}, goes beyond an array of {array.nbytes}")
    if swizzle not in _SWIZZLES:
        raise ConfigurationError(f"a tensor map expected a swizzle of {', '.join(map(str, _SWIZZLES))}, got {swizzle}")
    row = box[0] * itemsize
    # The driver takes shorter rows too, which then lie a swizzle apart: nothing here needs those.
    if row % 16 or (swizzle and row != swizzle):
        expected = f"{swizzle} bytes, as the swizzle has" if swizzle else "a multiple of 16 bytes"
        raise ShapeError(f"a tensor map expected a box with rows of {expected}, got {row}")
    if device.name == "plan":
        return bytes(BYTES)
    return _encoded(device.name == "emulator", pointer, dtype, shape, strides, box, steps, corners, swizzle, tf32)


@functools.lru_cache(maxsize=4096)
def _encoded(
    emulated: bool,
    pointer: int,
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    steps: tuple[int, ...],
    corners: tuple[int, ...],
    swizzle: int,
    tf32: bool,
) -> bytes:
    number, itemsize = _DTYPES[dtype]
    if tf32:
        number = _TF32
    rank = len(shape)
    if emulated:
        fields = (
            *_filled(strides, _MAX_RANK - 1),
            *_filled([size - 1 for size in shape], _MAX_RANK),
            *_filled(box, _MAX_RANK),
            *_filled(steps, _MAX_RANK),
            *_filled(corners, 4),
        )
        packed = _EMULATED.pack(_MARK, pointer, *fields, rank, itemsize, swizzle, bool(corners), tf32)
        return packed.ljust(BYTES, b"\0")
    buffer = ctypes.create_string_buffer(BYTES + _ALIGNMENT)
    offset = -ctypes.addressof(buffer) % _ALIGNMENT
    first = (
        ctypes.c_void_p(ctypes.addressof(buffer) + offset),
        ctypes.c_int(number),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * rank)(*shape),
        (ctypes.c_uint64 * (rank - 1))(*strides),
    )
    last = (
        (ctypes.c_uint32 * rank)(*steps),
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_SWIZZLES[swizzle]),
        ctypes.c_int(_L2_PROMOTION_256),
        ctypes.c_int(_ZEROS_OUTSIDE),
    )
    what = f"{'tf32' if tf32 else dtype} {shape} by {strides}, box {box}, element strides {steps}, swizzle {swizzle}"
    if corners:
        lower, upper = (ctypes.c_int * 2)(*corners[:2]), (ctypes.c_int * 2)(*corners[2:])
        columns = lower, upper, ctypes.c_uint32(box[0]), ctypes.c_uint32(box[1])
        _call("cuTensorMapEncodeIm2col", f"{what}, corners {corners}", *first, *columns, *last)
    else:
        _call("cuTensorMapEncodeTiled", what, *first, (ctypes.c_uint32 * rank)(*box), *last)
    return buffer.raw[offset : offset + BYTES]


def _filled(values: Sequence[int], count: int) -> tuple[int, ...]:
    return (*values, *(0,) * (count - len(values)))


def _call(function: str, what: str, *arguments: Any) -> None:
    """Call the driver; ConfigurationError with its word for what is wrong."""
    library = ctypes.CDLL(LIBRARY)
    try:
        encode = getattr(library, function)
    except AttributeError:
        raise ConfigurationError(f"a tensor map takes {function}, which the driver has from CUDA 12.0 on") from None
    status = encode(*arguments)
    if status != 0:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        reason = name.value.decode() if name.value else f"error {status}"
        raise ConfigurationError(f"{function} expected a tensor map that it can encode, got {what}: {reason}")
