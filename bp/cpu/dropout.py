"""Dropout on the CPU: Philox4x32-10 in NumPy, and natively for float32."""

from collections.abc import Iterator

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.ops.control import FORWARD_COUNTER, SEED_HIGH, SEED_LOW
from bp.ops.dropout import LEVELS, dropped_levels

_WORD = 0xFFFFFFFF
_PIECE = 1 << 13  # chunks drawn at a time: their words stay in the second-level cache


def dropout(x: np.ndarray, control: np.ndarray, call_site: int, first_element: int, rate: float) -> np.ndarray:
    dropped = dropped_levels(rate)
    scale = LEVELS / (LEVELS - dropped)
    key = (int(control[SEED_LOW]), int(control[SEED_HIGH]))
    stream = (int(control[FORWARD_COUNTER]) & _WORD, call_site & _WORD)
    y = empty(x.shape, x.dtype)
    kernel = native.kernel("dropout", x)
    if kernel is not None and x.flags.c_contiguous:
        kernel(x, key, stream, first_element, dropped, scale, y)
        return y
    # Zero first and write what is kept, so that a dropped infinity is 0 and not NaN.
    y[...] = 0
    source, target = x.reshape(-1), y.reshape(-1)
    with np.errstate(over="ignore"):
        for start, bits in _random_bits(key, stream, first_element, x.size):
            piece = slice(start, start + bits.size)
            np.multiply(source[piece], scale, out=target[piece], where=bits >= dropped)
    return y


def dropout_backward(
    dy: np.ndarray, control: np.ndarray, call_site: int, first_element: int, rate: float
) -> np.ndarray:
    return dropout(dy, control, call_site, first_element, rate)


def _random_bits(
    key: tuple[int, int], stream: tuple[int, int], first_element: int, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, uint16 array) pieces that cover the 16 random bits of `count` elements from `first_element` on."""
    last_chunk = -(-(first_element + count) // 8)
    for chunk in range(first_element // 8, last_chunk, _PIECE):
        chunks = np.arange(chunk, min(chunk + _PIECE, last_chunk), dtype=np.uint64)
        words = philox4x32((chunks & _WORD, chunks >> 32, *stream), key)
        bits = np.stack(words, axis=-1).astype("<u4").reshape(-1).view("<u2")
        start = 8 * chunk - first_element
        yield max(start, 0), bits[max(-start, 0) : count - start]


def philox4x32(
    counter: tuple[np.ndarray | int, np.ndarray | int, np.ndarray | int, np.ndarray | int], key: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of Salmon et al. (2011): four words of 32 bits, in uint64 arrays of the counter's shape.

    Each of the ten rounds multiplies two of the words by constants, to 64 bits, and mixes the halves with the other two
    and the key, which then advances by the golden ratio and by sqrt(3) - 1.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ np.uint64(k0), p1 & _WORD, (p0 >> 32) ^ c3 ^ np.uint64(k1), p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3
