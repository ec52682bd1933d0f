"""Golden vectors: what a GPU's intrinsics return, recorded once, for the emulator to be held to.

    python tests/gpu/golden.py --device cuda tests/golden/intrinsics.npz

The inputs are computed here, so the file holds outputs alone: one array a case, and `about`, which says on what they
were recorded. `tests/test_golden.py` runs the same cases on the emulator and compares: bit by bit where the
instruction is exact (any NaN equals any), within the documented error where it is an approximation or sums in an order
of its own.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hopper_cases
import ml_dtypes
import numpy as np

from bp.cuda.kernel import Kernel, Source, blocks
from bp.errors import BPError
from bp.ops import control as block
from bp.ops.device import find_device

KERNELS = Path(__file__).parent.parent / "kernels"
FILE = Path(__file__).parent.parent / "golden" / "intrinsics.npz"

_features = Source("emulator_features", folder=KERNELS)
_more = Source("golden", folder=KERNELS, T=("float", "float16"))


def _kernel(source: Source, name: str, shared: str = "0") -> Kernel:
    return source.kernel(name, flops="0", bytes="0", shared=shared)


@dataclass(frozen=True)
class Case:
    """run: the outputs on a device. They may differ between devices by absolute + relative * |value|; 0: by no bit.

    only: the compute capability of the GPUs that have the instruction, where it is not all of them.
    """

    name: str
    run: Callable[[Any], np.ndarray]
    relative: float = 0.0
    absolute: Any = 0.0
    only: int | None = None

    def runs_on(self, device: Any) -> bool:
        return self.only in (None, device.capability)


# Inputs, the same with every version of NumPy -----------------------------------------------------------------------


def words(count: int, stream: int) -> np.ndarray:
    """uint32, evenly distributed: SplitMix64 (Steele, Lea, Flood, 2014) of a count."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32)


def uniform(count: int, low: float, high: float, stream: int) -> np.ndarray:
    """float32 between two bounds."""
    return (low + (high - low) * words(count, stream) / 2.0**32).astype(np.float32)


def floats_to_round() -> np.ndarray:
    """float32 of every kind, and around each point where rounding to 10, 7 and 10 bits of mantissa changes."""
    special = [0.0, 1e-45, 1.1754944e-38, 2.0**-24, 2.0**-25, 2.0**-14, 65504, 65519.996, 65520, 3.3895314e38, np.inf]
    special = np.array([*special, np.nan], np.float32).view(np.uint32)
    around = np.array([0, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000])
    bases = (words(250, 1) & 0x7FFC0000).astype(np.uint32)
    bits = np.concatenate([special, (bases[:, None] + around.astype(np.uint32)).ravel(), words(1000, 2)])
    return np.concatenate([bits, bits ^ np.uint32(0x80000000)]).view(np.float32)


# Cases --------------------------------------------------------------------------------------------------------------


def _elementwise(source: Source, name: str, x: np.ndarray, out: Any, rows: int = 1, **axes: str) -> Callable[..., Any]:
    """Of a kernel (x, y, n), whose y has a number of rows of n."""
    kernel = source.kernels.get(name) or _kernel(source, name)

    def run(device: Any) -> np.ndarray:
        y = device.empty((rows, x.size), out)
        kernel(blocks(x.size), device.from_host(x), y, x.size, **axes)
        return device.to_host(y)

    return run


def _half_patterns(dtype: Any) -> np.ndarray:
    edges = [0, 1, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7F7F, 0x7F80, 0x7F81, 0x7FFF]
    patterns = np.array([*edges, *range(0, 1 << 15, 13)], np.uint16)
    return np.concatenate([patterns, patterns | np.uint16(0x8000)]).view(dtype)


def _shuffles(device: Any) -> np.ndarray:
    kernel = _kernel(_features, "shuffles")
    results = []
    for index, delta, lanes, width in ((5, 1, 1, 32), (31, 16, 31, 32), (3, 3, 2, 8), (17, 5, 7, 16)):
        y = device.empty((128,), np.int32)
        kernel(1, y, index, delta, lanes, width)
        results.append(device.to_host(y))
    return np.stack(results)


def _votes(device: Any) -> np.ndarray:
    x = (words(32, 3).astype(np.int64) - (1 << 31)).astype(np.int32)
    y = device.empty((192,), np.uint32)
    _kernel(_features, "votes")(1, device.from_host(x), y)
    return device.to_host(y)


def _integers(device: Any) -> np.ndarray:
    x = np.concatenate([np.array([0, 1, 0x80000000, 0xFFFFFFFF], np.uint32), words(60, 4)])
    y = device.empty((5 * x.size,), np.uint32)
    _kernel(_features, "integers")(1, device.from_host(x), y, x.size)
    return device.to_host(y)


def _loaded_matrices(device: Any) -> np.ndarray:
    """ldmatrix x1, x2 and x4, straight and transposed, of 32 rows of 8 numbered elements."""
    x, results = device.from_host(np.arange(256, dtype=np.uint16)), []
    for transposed in (0, 1):
        y = device.empty((7 * 32,), np.uint32)
        _kernel(_features, "matrices")(1, x, y, transposed)
        results.append(device.to_host(y))
    return np.stack(results)


def _copied(device: Any) -> np.ndarray:
    """cp.async through two stages, where the last row is cut short and filled with zeros."""
    x, results = device.from_host(uniform(6 * 64, -1, 1, 5)), []
    kernel = _kernel(_features, "pipeline", shared="512")
    for rows, last in ((1, 64), (2, 3), (6, 61)):
        y = device.empty((64,), np.float32)
        kernel(1, x, y, rows, last)
        results.append(device.to_host(y))
    return np.stack(results)


def _handed_over(device: Any) -> np.ndarray:
    y = device.empty((32,), np.int32)
    _kernel(_more, "handed_over")(1, device.from_host(np.arange(32, dtype=np.int32)), y, T="float")
    return device.to_host(y)


def _random(device: Any) -> np.ndarray:
    control = np.zeros(block.SIZE)
    control[[block.SEED_LOW, block.SEED_HIGH]] = 0x89ABCDEF, 0x01234567
    counters = words(4 * 500, 6).reshape(500, 4)
    y = device.empty(counters.shape, np.uint32)
    kernel = _kernel(_more, "random_words")
    kernel(2, device.from_host(control), device.from_host(counters), y, len(counters), T="float")
    return device.to_host(y)


def _rounded_at_random(device: Any) -> np.ndarray:
    x = floats_to_round()
    half, bfloat = (device.empty(x.shape, dtype) for dtype in ("float16", "bfloat16"))
    kernel = _kernel(_more, "rounded_at_random")
    kernel(blocks(x.size), device.from_host(x), device.from_host(words(x.size, 7)), half, bfloat, x.size, T="float")
    return np.stack([device.to_host(half).astype(np.float32), device.to_host(bfloat).astype(np.float32)])


_ELEMENTS = {"f16": (0, np.float16, 16), "bf16": (1, ml_dtypes.bfloat16, 16), "tf32": (2, np.float32, 8)}


def _operands(element: str, integers: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a (16, depth), b (depth, 8) and c (16, 8) in float32, exact in the element type."""
    _, dtype, depth = _ELEMENTS[element]
    sizes = (16, depth), (depth, 8), (16, 8)
    drawn = [uniform(m * n, -2, 2, 8 + k).reshape(m, n) for k, (m, n) in enumerate(sizes)]
    if integers:
        drawn = [np.round(4 * array) for array in drawn]
    a, b = (array.astype(dtype).astype(np.float32) for array in drawn[:2])
    if element == "tf32":
        a, b = ((array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for array in (a, b))
    return a, b, drawn[2]


def _product(element: str, integers: bool) -> Case:
    """d = a b + c by mma.sync, the fragments laid out as the PTX ISA has them."""
    number, dtype, depth = _ELEMENTS[element]
    a, b, c = _operands(element, integers)
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    if depth == 16:
        columns = 2 * t[:, None] + np.arange(2)  # the two halves of a word
        fragments_a = [a.astype(dtype)[g[:, None] + 8 * (r % 2), columns + 8 * (r // 2)] for r in range(4)]
        fragments_b = [b.astype(dtype)[columns + 8 * r, g[:, None]] for r in range(2)]
    else:
        fragments_a = [a[g + 8 * (r % 2), t + 4 * (r // 2)] for r in range(4)]
        fragments_b = [b[t + 4 * r, g] for r in range(2)]
    a_words, b_words = (
        np.stack([np.ascontiguousarray(fragment).view(np.uint32).ravel() for fragment in fragments])
        for fragments in (fragments_a, fragments_b)
    )
    places = [(g + 8 * (r // 2), 2 * t + r % 2) for r in range(4)]
    d_words = np.stack([c[place] for place in places])
    size = np.abs(c) + np.abs(a) @ np.abs(b)

    def run(device: Any) -> np.ndarray:
        d = device.from_host(d_words)
        _kernel(_features, "products")(1, device.from_host(a_words), device.from_host(b_words), d, number)
        result = np.empty((16, 8), np.float32)
        for place, row in zip(places, device.to_host(d), strict=True):
            result[place] = row
        return result

    # Products are exact. Of depth + 1 terms, each may lose a unit in the last place of the largest sum, on either side.
    error = 0.0 if integers else 2 * (depth + 1) * 2.0**-23 * size
    return Case(f"mma_{element}_{'integers' if integers else 'reals'}", run, absolute=error)


# wgmma and the copy engine, on sm_90 alone.

# Types, major orders, columns, whether of integers.
WARPGROUP_PRODUCTS = [
    *((types, majors, 64, True) for types, majors in hopper_cases.PRODUCTS),
    *(("bf16", majors, columns, True) for majors in ("K K", "MN MN") for columns in (128, 256)),
    *(("tf32", "K K", columns, True) for columns in (128, 256)),
    *((types, "K K", 64, False) for types in hopper_cases.TYPES),
]


def warpgroup_operands(types: str, columns: int, integers: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a (64, depth), b (columns, depth) and c (64, columns) in float32, exact in the element types."""
    depth, _, *dtypes = hopper_cases.depth_of(types), *hopper_cases.TYPES[types]
    sizes = (64, depth), (columns, depth), (64, columns)
    a, b, c = (uniform(m * n, -2, 2, 20 + k).reshape(m, n) for k, (m, n) in enumerate(sizes))
    if integers:
        a, b, c = (np.round(4 * array) for array in (a, b, c))
    elif types == "tf32":
        a, b = ((array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for array in (a, b))
    else:
        a, b = (array.astype(dtype).astype(np.float32) for array, dtype in zip((a, b), dtypes, strict=True))
    return a, b, c


def warpgroup_product(types: str, majors: str, columns: int, integers: bool) -> Case:
    """d = a b^T + c by four instructions; integers are recorded as such, which takes less space."""
    a, b, c = warpgroup_operands(types, columns, integers)
    # The hardware adds what it has aligned to the largest of its addends and cut off there, to at least 2^-13 of it for
    # 8-bit elements, where few bits are kept, and 2^-23 for others: in each of four instructions.
    unit = 2.0**-13 if types.startswith("e") else 2.0**-23
    error = 0.0 if integers else 2 * (a.shape[1] + 4) * unit * (np.abs(c) + np.abs(a) @ np.abs(b).T)

    def run(device: Any) -> np.ndarray:
        d = hopper_cases.product(device, types, majors, a, b, c)
        return d.astype(np.int16) if integers else d

    kind = "integers" if integers else "reals"
    return Case(f"wgmma_{types}_{majors}_{columns}_{kind}".replace(" ", "_"), run, absolute=error, only=90)


def _numbers(*shape: int) -> np.ndarray:
    """1, 2, 3, ... as float16, exact up to 2048."""
    return (np.arange(np.prod(shape)) % 2048 + 1).reshape(shape).astype(np.float16)


def _boxes_loaded(device: Any) -> np.ndarray:
    """Within the array and across its edges, in 2 to 5 dimensions, with each swizzle and with element strides."""
    two, three, five = _numbers(20, 80), _numbers(9, 6, 64), _numbers(2, 3, 2, 4, 8)
    four = five.reshape(6, 2, 4, 8)
    loaded = [
        hopper_cases.loaded_box(device, x, box, at, nbytes, swizzle=swizzle, element_strides=steps)
        for x, box, at, nbytes, swizzle, steps in (
            (two, (64, 8), (0, 0), 1024, 128, None),
            (two, (64, 16), (40, 9), 2048, 128, None),
            (two, (64, 16), (-7, -3), 2048, 128, None),
            (two, (32, 16), (64, 18), 1024, 64, None),
            (two, (16, 16), (-1, 5), 512, 32, None),
            (two, (40, 4), (41, 1), 320, 0, None),
            (two, (64, 8), (80, 0), 1024, 128, None),
            (three, (64, 4, 2), (0, 3, 8), 1024, 128, None),
            (three, (64, 5, 8), (0, -1, 2), 128 * 3 * 3, 128, (1, 2, 3)),
            (four, (8, 3, 2, 2), (0, 2, 1, 5), 192, 0, None),
            (five, (8, 2, 2, 3, 2), (0, 3, -1, 1, 1), 384, 0, None),
        )
    ]
    return np.concatenate(loaded)


def _boxes_rounded_to_tf32(device: Any) -> np.ndarray:
    """What a map of tf32 makes of floats: no document says how it rounds a tie, what is subnormal, or a NaN."""
    x = floats_to_round()
    rows = -(-x.size // 32)
    x = np.resize(x, (rows, 32))
    return hopper_cases.loaded_box(device, x, (32, rows), (0, 0), x.nbytes, tf32=True).view(np.float32)


def _boxes_stored(device: Any) -> np.ndarray:
    x, bytes_of = _numbers(20, 80), words(16 * 64, 23).astype(np.uint8)
    stored = [
        hopper_cases.stored_box(device, x, box, at, np.resize(bytes_of, nbytes), swizzle=swizzle).view(np.uint16)
        for box, at, nbytes, swizzle in (
            ((64, 8), (0, 0), 1024, 128),
            ((64, 8), (40, 17), 1024, 128),
            ((32, 4), (-5, -2), 256, 64),
            ((40, 4), (41, 1), 320, 0),
        )
    ]
    return np.stack(stored)


def _pixels_loaded(device: Any) -> np.ndarray:
    """Of a convolution 3 x 3 with padding, then with strides and dilation: from the first pixel, from within, past the
    last image."""
    x = _numbers(2, 5, 6, 16)
    near, far = ((-1, -1), (-1, -1), 16, 24), ((-2, -2), (-2, -2), 16, 8)
    loaded = [
        hopper_cases.loaded_pixels(device, x, columns, at, tap, swizzle=32, strides=strides)
        for columns, at, tap, strides in (
            (near, (0, -1, -1, 0), (0, 0), (1, 1)),
            (near, (0, -1, -1, 0), (2, 1), (1, 1)),
            (near, (0, 2, 3, 0), (1, 1), (1, 1)),
            (near, (8, 4, 2, 1), (0, 2), (1, 1)),
            (far, (0, -2, -2, 0), (4, 2), (2, 3)),
            (far, (0, 0, 1, 1), (0, 4), (2, 3)),
        )
    ]
    return np.concatenate(loaded)


def floats_to_round_to_fp8() -> np.ndarray:
    """The values of both types, the middles between them and what lies beside these, and what is too large or small."""
    exponents, upper_bits, beside = np.arange(127 - 20, 127 + 18), np.arange(16), np.array([0, 1, -1])
    bits = (exponents[:, None, None] << 23) + (upper_bits[:, None] << 19) + beside
    special = np.array([0.0, 1e-45, 3e38, np.inf, np.nan], np.float32)
    positive = np.concatenate([bits.ravel().astype(np.uint32).view(np.float32), special])
    return np.concatenate([positive, -positive])


def _hopper() -> list[Case]:
    return [
        *(warpgroup_product(*kind) for kind in WARPGROUP_PRODUCTS),
        Case("boxes_loaded", _boxes_loaded, only=90),
        Case("boxes_rounded_to_tf32", _boxes_rounded_to_tf32, only=90),
        Case("boxes_stored", _boxes_stored, only=90),
        Case("pixels_loaded", _pixels_loaded, only=90),
        Case("float_to_fp8", lambda device: hopper_cases.float_to_fp8(device, floats_to_round_to_fp8()), only=90),
    ]


def cases() -> list[Case]:
    """All of them."""
    rounding, line = floats_to_round(), uniform(4000, -30, 30, 9)
    # Of the instructions: twice the documented error, since the emulator rounds as well. Of the functions on a GPU:
    # a few units in the last place of float32, or what math.cuh allows the 16-bit ones.
    narrow, tiny = 2.0**-12, 2.0**-126
    return [
        Case("half_to_float", _elementwise(_features, "half_to_float", _half_patterns(np.float16), np.float32)),
        Case(
            "bfloat_to_float",
            _elementwise(_features, "bfloat_to_float", _half_patterns(ml_dtypes.bfloat16), np.float32),
        ),
        Case("float_to_half", _elementwise(_features, "float_to_half", rounding, np.float16)),
        Case("float_to_bfloat", _widened(_elementwise(_features, "float_to_bfloat", rounding, "bfloat16"))),
        Case("float_to_tf32", _elementwise(_more, "float_to_tf32", rounding, np.uint32, T="float")),
        Case("rounded_at_random", _rounded_at_random),
        Case("random_words", _random),
        Case("instructions", _elementwise(_more, "instructions", line, np.float32, 3, T="float"), 2.0**-21, 2.0**-21),
        Case("functions_float", _elementwise(_more, "functions", line, np.float32, 6, T="float"), 2.0**-20, tiny),
        Case("functions_16_bit", _elementwise(_more, "functions", line, np.float32, 6, T="float16"), narrow, tiny),
        Case("shuffles", _shuffles),
        Case("votes", _votes),
        Case("integers", _integers),
        Case("ldmatrix", _loaded_matrices),
        Case("copies", _copied),
        Case("named_barriers", _handed_over),
        *(_product(element, integers) for element in _ELEMENTS for integers in (True, False)),
        *_hopper(),
    ]


def _widened(run: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """bfloat16 as float32, which a .npz can hold."""
    return lambda device: run(device).astype(np.float32)


def difference(case: Case, recorded: np.ndarray, computed: np.ndarray) -> str:
    """Where two results differ by more than the case allows, in words; empty where they do not."""
    if recorded.shape != computed.shape or recorded.dtype != computed.dtype:
        return f"{case.name}: {recorded.dtype} {recorded.shape} was recorded, not {computed.dtype} {computed.shape}"
    exact = case.relative == 0 and not np.any(case.absolute)
    if exact and recorded.dtype.kind == "f":
        both_nan, bits = np.isnan(recorded) & np.isnan(computed), f"u{recorded.dtype.itemsize}"
        wrong = (recorded.view(bits) != computed.view(bits)) & ~both_nan
    elif exact:
        wrong = recorded != computed
    else:
        first, second = recorded.astype(np.float64), computed.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity is as far from itself as NaN is
            near = np.abs(first - second) <= case.absolute + case.relative * np.abs(second)
        wrong = ~(near | (first == second) | (np.isnan(first) & np.isnan(second)))
    if not wrong.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{case.name}: {wrong.sum()} of {wrong.size} differ; at {place} {recorded[place]!r}, not {computed[place]!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--about", default="{}", help="JSON that says what the device is")
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    outputs = {case.name: case.run(device) for case in cases() if case.runs_on(device)}
    about = json.loads(arguments.about) | {"device": device.name}
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.file, about=np.array(json.dumps(about)), **outputs)
    print(f"{len(outputs)} cases, {arguments.file.stat().st_size:,} bytes: {arguments.file}")
    try:
        emulator = find_device("emulator")
        recorded = [case for case in cases() if case.name in outputs]
        found = [difference(case, outputs[case.name], case.run(emulator)) for case in recorded]
    except (OSError, BPError) as error:  # no compiler of C++, say
        print(f"not compared with the emulator: {error}")
        return
    print("\n".join(filter(None, found)) or "the emulator agrees")


if __name__ == "__main__":
    main()
