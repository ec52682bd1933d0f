"""IDX: the file format of MNIST, a big-endian header with type and sizes and then the numbers."""

import math
from pathlib import Path

import numpy as np

from bp.data.reading import expect_end, read_exactly, reading
from bp.errors import DataError

# The third byte of the file -> the type of its numbers, big-endian.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file, plain or gzipped, in native byte order.

    The header is two zero bytes, the type, the number of axes, and a 32-bit size an axis.
    Raises DataError naming the file where it is foreign, truncated, damaged, or longer than its header says.
    Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998), "file format".
    """
    with reading(path) as content:
        magic = bytes(content.read(4))
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
            known = " ".join(f"{code:02x}" for code in TYPES)
            raise DataError(
                f"expected an IDX file (00 00, a type of {known}, the number of axes), got first bytes "
                f"'{magic.hex(' ')}'"
            )
        rank = magic[3]
        shape = tuple(int(size) for size in np.frombuffer(read_exactly(content, 4 * rank, "sizes"), ">u4"))
        dtype = np.dtype(TYPES[magic[2]])
        data = read_exactly(content, math.prod(shape) * dtype.itemsize, f"an array of shape {shape}")
        expect_end(content, f"an array of shape {shape}")
        try:
            return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
        except ValueError as error:  # more axes than NumPy has, or sizes whose product is 0 and overflows otherwise
            raise DataError(f"expected sizes that fit an array, got {shape}") from error
