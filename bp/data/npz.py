"""NPY and NPZ: NumPy's files of one array and of several, read without ever unpickling."""

import ast
import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Literal

import numpy as np

from bp.data.dataset import Batch
from bp.data.reading import expect_end, read_exactly, reading
from bp.errors import DataError

LONGEST_HEADER = 10_000  # bytes; NumPy's own limit
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")  # after the sign of the byte order


def read_npy(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """The array in an NPY file, or with `mapped` a read-only memory map of it.

    Raises DataError naming the file where it is foreign, truncated, longer than its header says, or holds objects.
    """
    with reading(path) as content:
        if not mapped:
            return _array(content)
        shape, fortran_order, dtype = _header(content)
        expected, size = content.tell() + math.prod(shape) * dtype.itemsize, Path(path).stat().st_size
        if size != expected:
            raise DataError(f"expected {expected:,} bytes for an array of shape {shape} and {dtype}, got {size:,}")
        if math.prod(shape) == 0:
            raise DataError(f"expected an array with elements to map, got shape {shape}")
        order: Literal["C", "F"] = "F" if fortran_order else "C"
        return np.memmap(path, dtype, "r", content.tell(), shape, order)


def read_npz(path: str | Path, x: str = "x", y: str = "y") -> Batch:
    """The arrays named `x` and `y` of an NPZ file.

    Raises DataError naming the file where it is foreign, damaged or truncated, lacks a name or holds objects.
    """
    with reading(path) as content:
        try:
            with zipfile.ZipFile(content) as archive:
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                for name in (x, y):
                    if name not in names:
                        raise DataError(f"expected an array '{name}', got {', '.join(sorted(names)) or 'no arrays'}")
                return _member(archive, names[x]), _member(archive, names[y])
        except DataError:
            raise
        except (zipfile.BadZipFile, RuntimeError, struct.error, ValueError) as error:
            raise DataError(f"expected an NPZ file, got a foreign or damaged one ({error})") from error


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as content:
        try:
            return _array(content)
        except DataError as error:
            raise DataError(f"array '{name.removesuffix('.npy')}': {error}") from error


def _array(content: IO[bytes]) -> np.ndarray:
    shape, fortran_order, dtype = _header(content)
    what = f"an array of shape {shape} and {dtype}"
    data = read_exactly(content, math.prod(shape) * dtype.itemsize, what)
    expect_end(content, what)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _header(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype: after magic, version and length stands the literal of a dictionary.

    Read here and not by NumPy, whose reader repairs headers of Python 2 and fails in many ways on damaged ones.
    Source: NumPy enhancement proposal 1, A simple file format for NumPy arrays (2007).
    """
    magic = bytes(content.read(8))
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\0", b"\x02\0"):
        raise DataError(f"expected an array in NPY format 1 or 2, got first bytes '{magic.hex(' ')}'")
    length = int.from_bytes(read_exactly(content, 2 if magic[6] == 1 else 4, "the header's length"), "little")
    if length > LONGEST_HEADER:
        raise DataError(f"expected a header of at most {LONGEST_HEADER:,} bytes, got {length:,}")
    text = read_exactly(content, length, "the header").decode("latin-1")
    try:
        header = ast.literal_eval(text.strip())
        shape, fortran_order, kind = tuple(header["shape"]), bool(header["fortran_order"]), header["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"expected a header with shape, fortran_order and descr, got {text.strip()!r}") from error
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise DataError(f"expected sizes of at least 0, got shape {shape}")
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) >= 2**60:
        raise DataError(f"expected sizes that fit an array, got shape {shape}")
    if not isinstance(kind, str) or kind[:1] not in tuple("<>|=") or kind[1:] not in NUMBERS:
        raise DataError(f"expected an array of numbers, got dtype {kind!r}")
    return shape, fortran_order, np.dtype(kind)
