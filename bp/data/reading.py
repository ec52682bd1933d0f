"""Reading data files: opens one, gzipped or not, and turns whatever is wrong with it into an error that names it."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bp.errors import BPError, DataError

CHUNK = 1 << 20


@contextmanager
def reading(path: str | Path) -> Iterator[IO[bytes]]:
    """The file's content as a binary stream; gzip is told by its first two bytes, not by the name.

    Raises DataError naming the file where it is missing, unreadable or damaged; a BPError raised inside gets the name.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=raw) as content:
                    yield content  # type: ignore[misc]  # GzipFile is a binary stream; typeshed states it apart from IO
            else:
                yield raw
    except BPError as error:
        raise error.at(str(path)) from error.__cause__
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: expected complete gzip data, got a damaged or truncated file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_exactly(content: IO[bytes], size: int, what: str) -> bytearray:
    """The next `size` bytes. Raises DataError where there are fewer.

    Read piece by piece, so that a damaged header that asks for terabytes ends at the end of the file, not of memory.
    """
    data = bytearray()
    while len(data) < size:
        piece = content.read(min(CHUNK, size - len(data)))
        if not piece:
            raise DataError(f"expected {size:,} bytes of {what}, got {len(data):,}: the file is truncated")
        data += piece
    return data


def expect_end(content: IO[bytes], what: str) -> None:
    """Raise DataError where anything follows."""
    if content.read(1):
        raise DataError(f"expected the end of the file after {what}, got more bytes")
