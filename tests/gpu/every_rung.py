"""Products of one rung of a ladder, on each of its tiles: exact ones around the edges of tiles, and errors by cuBLAS's.

    python tests/gpu/every_rung.py --device cuda --list
    python tests/gpu/every_rung.py --device cuda --family linear --rung wgmma --seconds 40

What is exact is compared to the bit: whole numbers so small that every sum is exact in float32, and in 16 bits after
one rounding; gaps between rows hold NaN, and those of the result must stay. Of N(0, 1) with results in float32, the
relative Frobenius error against float64 is at most the larger of 1.5 times that of the library and `floor`. Prints a
line of JSON; the exit code is 1 where something is wrong.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import bp  # before NumPy
from bp.bench.check import allowed
from bp.bench.products import ConvLayer
from bp.cuda import choice, conv
from bp.cuda.choice import RUNGS, Choice, Problem, Rung
from bp.cuda.epilogue import Epilogue
from bp.cuda.linear import gemm
from bp.cuda.product import WAYS, Matrices, Product
from bp.errors import ConfigurationError
from bp.ops import linear
from bp.ops.array import known_dtype
from bp.ops.device import PRECISIONS, find_device

SIZES = (1, 7, 16, 31, 33, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257)  # a tile's edge, one below, one above
DEPTHS = (1, 8, 31, 32, 33, 64, 65, 100, 127, 129, 256, 520, 1000)  # of a slice and of the whole pipeline
ALIGNMENTS = (16, 4, 2)
EPILOGUES = ("plain", "wide", "bias", "relu", "residual", "added", "slope of relu", "gelu_tanh", "sums")
ERRORS = [(256, 384, 1024), (512, 256, 4096), (128, 128, 8192), (16, 1024, 4096)]
MOST_PROBLEMS = 20  # that are told one by one

# Height and width, channels, outputs, kernel, stride, padding, dilation, groups; the images are four.
IMAGES = [
    *((9, 16, 24, 3, 1, 1, 1, 1), (14, 32, 64, 3, 2, 1, 1, 1), (8, 64, 64, 1, 1, 0, 1, 1), (7, 128, 72, 1, 2, 0, 1, 1)),
    *((11, 8, 16, 3, 1, 2, 2, 1), (10, 32, 48, 3, 1, 1, 1, 2), (9, 5, 7, 3, 1, 1, 1, 1), (13, 3, 16, 7, 2, 3, 1, 1)),
    *(
        (12, 24, 24, 3, 1, 1, 1, 24),
        (9, 16, 16, 5, 2, 2, 1, 16),
        (6, 256, 128, 3, 1, 1, 1, 1),
        (5, 2, 2, 2, 1, 0, 1, 1),
    ),
]


def floor(length: int, precision: str) -> float:
    """The relative error that sums of so many exact terms in float32 explain: a random walk of as many roundings.

    Each is of half a unit in the last place of the whole sum at most (Higham and Mary, 2019), or of one where tensor
    cores add up, which cut off what does not fit.
    """
    return float((2.0**-24 if precision == "fp32" else 2.0**-23) * np.sqrt(length))


def floor_of_fp8() -> float:
    """The same where factors are rounded to 3 bits of mantissa, and gradients to 2.

    Of both roundings, uniform within half a unit in the last place, the root mean square over all mantissas; a tenth
    more for the smallest numbers, which have fewer bits.
    """
    uniform = np.sqrt(1 / 3 * 3 / 8 / np.log(2))
    return float(1.1 * uniform * np.hypot(2.0**-4, 2.0**-3))


def tiles_of(device: Any, problem: Problem, name: str, found: "Found") -> list[Choice]:
    """The choices of a rung for a problem; where there are none, why is counted."""
    rung = choice.find(problem.family, name)
    refusal = rung.refusal(problem, device.capability)
    if refusal:
        found.left_out[refusal] = found.left_out.get(refusal, 0) + 1
        return []
    return [Choice(name, tile) for tile in rung.variants(problem)]


@dataclass
class Found:
    """What came out. tiles: of the rung, how often each ran; errors: of N(0, 1), for each tile, way and precision the
    one that is nearest to what is allowed, or furthest beyond."""

    cases: int = 0
    tiles: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    wrong: int = 0

    def wrong_is(self, what: str) -> None:
        """Something that is wrong, told in a line unless there are too many."""
        self.wrong += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(what)


# Operands ---------------------------------------------------------------------------------------------------


def whole(generator: np.random.Generator, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Of -most..most, in float32."""
    return generator.integers(-most, most + 1, shape).astype(np.float32)


def as_matrices(device: Any, values: np.ndarray, alignment: int, dtype: str, gap: int = 0) -> Matrices:
    """Rows that begin at multiples of `alignment` bytes and, if that is less than 16, of no more; NaN in the gaps.

    gap: elements between two rows, at least.
    """
    rows, columns = values.shape
    itemsize = known_dtype(dtype).itemsize
    stride = columns + gap
    while stride * itemsize % alignment or (alignment < 16 and stride * itemsize % (2 * alignment) == 0):
        stride += 1
    flat = np.full((rows, stride), np.nan, np.float32)
    flat[:, :columns] = values
    return Matrices(device.from_host(flat.reshape(-1).astype(known_dtype(dtype))), rows, columns, stride)


def values_of(device: Any, matrices: Matrices) -> tuple[np.ndarray, np.ndarray]:
    """(the matrix, what lies in the gaps), both in float64."""
    flat = np.asarray(device.to_host(matrices.array), np.float64).reshape(matrices.rows, matrices.stride)
    return flat[:, : matrices.columns], flat[:, matrices.columns :]


def to_tf32(values: np.ndarray) -> np.ndarray:
    """To the nearest with 10 bits of mantissa, ties away from zero."""
    return ((values.astype(np.float32).view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def gelu(z: np.ndarray) -> np.ndarray:
    """In its form with tanh."""
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


# Linear -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A matrix product with what follows it."""

    way: str
    precision: str
    alignment: int
    m: int
    n: int
    k: int
    epilogue: str

    def __str__(self) -> str:
        return (
            f"{self.way} {self.m}x{self.n}x{self.k} {self.precision}, rows at multiples of {self.alignment} bytes, "
            f"{self.epilogue}"
        )


def linear_cases(precisions: tuple[str, ...], rung: Rung, most: int) -> Iterator[Case]:
    """Without an end, as they fall; what the rung has no dtype, way or alignment for comes rarely. most: of a size."""
    draw = random.Random(1)
    sizes, depths = ([size for size in known if size <= most] for known in (SIZES, DEPTHS))
    names = {"tf32": "tf32", **{p: PRECISIONS[p] for p in precisions if p != "tf32"}}
    mine = [p for p in precisions if names[p] in rung.dtypes]
    for number in itertools.count():
        strange = number % 29 == 28  # once in a while: that it refuses what it cannot
        precision = draw.choice(precisions if strange or not mine else mine)
        itemsize = known_dtype(PRECISIONS[precision]).itemsize
        fitting = [a for a in ALIGNMENTS if a >= itemsize and (strange or a >= min(rung.alignment, 16))]
        dtype = names[precision]
        ways = [w for w in WAYS if strange or not rung.lacks(Problem("linear", w, 1, 1, 1, 1, dtype, rung.alignment))]
        way = draw.choice(ways)
        epilogue = draw.choice([e for e in EPILOGUES if way == "tn" or e != "sums"])
        yield Case(way, precision, draw.choice(fitting), *(draw.choice(s) for s in (sizes, sizes, depths)), epilogue)


def check_linear(device: Any, case: Case, rung: str, found: Found, seed: int) -> None:
    """One case, on each tile of the rung that can compute it."""
    generator, dtype = np.random.default_rng(seed), PRECISIONS[case.precision]
    transpose_a, transpose_b = WAYS[case.way]
    # Sums of up to 1000 products of up to 2 x 2 are exact in float32; with what is added, below 2^12.
    a, b = whole(generator, (case.m, case.k), 2), whole(generator, (case.k, case.n), 2)
    extra, row = whole(generator, (case.m, case.n), 3), whole(generator, (case.n,), 3)
    left = as_matrices(device, a.T if transpose_a else a, case.alignment, dtype)
    right = as_matrices(device, b.T if transpose_b else b, case.alignment, dtype)
    with device.running(case.precision):
        kind = dtype if case.epilogue not in ("wide", "added", "sums") else "float32"
        # Some results have gaps too, of one element or up to the next 16 bytes: whole vectors are stored, or elements.
        gap = seed % 2 if case.epilogue in ("plain", "wide", "bias", "relu", "added") else 0
        step = 16 if seed % 4 == 3 else known_dtype(kind).itemsize
        start = extra if case.epilogue == "added" else np.full_like(extra, np.nan)
        problem = Product(case.way, left, right, as_matrices(device, start, 16, kind)).problem
        tiles = tiles_of(device, problem, rung, found)

        def put(values: np.ndarray) -> Any:
            return device.from_host(values.astype(known_dtype(dtype)))

        settings, expected = _epilogue(case.epilogue, a.astype(np.float64) @ b, extra, row, put)
        for tile in tiles:
            c = Matrices.of(device.from_host(start.astype(known_dtype(kind))))
            if gap:
                c = as_matrices(device, start, step, kind, gap)
            what = f"{tile}: {case}"
            found.cases += 1
            found.tiles[tile.variant] = found.tiles.get(tile.variant, 0) + 1
            with choice.only("linear", tile):
                if case.epilogue == "sums":
                    _check_sums(device, what, left, right, expected, a, found)
                    continue
                gemm(left, right, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=settings)
            actual, between = values_of(device, c)
            if not np.isnan(between).all():
                found.wrong_is(f"{what}: the gaps between the rows of C are overwritten")
            _compare(what, actual, expected, kind, case, found)
            if settings.before is not None:
                before = np.asarray(device.to_host(settings.before), np.float64)
                _compare(f"{what}: z", before, a.astype(np.float64) @ b, kind, replace(case, epilogue="plain"), found)


def _epilogue(
    name: str, product: np.ndarray, extra: np.ndarray, row: np.ndarray, put: Any
) -> tuple[Epilogue, np.ndarray]:
    """(what follows the product, the result of both)."""
    if name == "bias":
        return Epilogue(bias=put(row)), product + row
    if name == "relu":
        return Epilogue(bias=put(row), activation="relu"), np.maximum(product + row, 0)
    if name == "residual":
        return Epilogue(residual=put(extra)), product + extra
    if name == "added":
        return Epilogue(beta=1.0), product + extra
    if name == "slope of relu":
        return Epilogue(activation="relu", kept=put(extra)), product * (extra > 0)
    if name == "gelu_tanh":
        return Epilogue(activation="gelu_tanh", before=put(np.full_like(extra, np.nan))), gelu(product)
    return Epilogue(), product


def _compare(what: str, actual: np.ndarray, expected: np.ndarray, dtype: str, case: Case, found: Found) -> None:
    if case.epilogue == "gelu_tanh":
        # Of the size that the sums may have: the GELU of what is far below zero is nothing at all.
        apart = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), np.sqrt(expected.size))
        if not apart <= allowed(case.precision, case.k):
            found.wrong_is(f"{what}: {apart:.2g} off, {allowed(case.precision, case.k):.2g} are allowed")
        return
    rounded = expected.astype(np.float32).astype(known_dtype(dtype)).astype(np.float64)
    bad = np.argwhere(~(actual == rounded))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        found.wrong_is(
            f"{what}: {len(bad)} of {rounded.size} wrong, the first at {place}: {actual[place]}, not {rounded[place]}"
        )


def _check_sums(
    device: Any, what: str, dy: Matrices, x: Matrices, expected: np.ndarray, a: np.ndarray, found: Found
) -> None:
    """The gradients of a linear layer: dW = dy^T x, and the sums of dy's columns on the way; without gaps."""
    dense = [device.from_host(np.array(values_of(device, one)[0]).astype(one.array.dtype)) for one in (dy, x)]
    dweight = device.from_host(np.full(expected.shape, np.nan, np.float32))
    dbias = device.from_host(np.full(expected.shape[:1], np.nan, np.float32))
    try:
        linear.linear_backward_parameters(*dense, dweight, dbias, False)
    except ConfigurationError:
        return  # rows without gaps begin where this rung cannot read them
    for name, actual, right in (("dW", dweight, expected), ("db", dbias, a.sum(axis=1))):
        if not np.array_equal(np.asarray(device.to_host(actual), np.float64), right):
            found.wrong_is(f"{what}: {name} is wrong")


def linear_errors(device: Any, precisions: tuple[str, ...], rung: str, found: Found, count: int) -> None:
    """N(0, 1) with results in float32."""
    for (m, n, k), precision, way in itertools.product(ERRORS[:count], precisions, WAYS):
        generator = np.random.default_rng(m + n + k)
        a, b = (generator.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        a, b = (_rounded(values, precision) for values in (a, b))
        transpose_a, transpose_b = WAYS[way]
        dtype = PRECISIONS[precision]
        left = as_matrices(device, a.T if transpose_a else a, 16, dtype)
        right = as_matrices(device, b.T if transpose_b else b, 16, dtype)
        c = Matrices.of(device.from_host(np.full((m, n), np.nan, np.float32)))
        exact = a.astype(np.float64) @ b.astype(np.float64)

        def error(one: Choice, operands: Any = (left, right, c), exact: Any = exact, way: str = way) -> float:
            with choice.only("linear", one):
                gemm(*operands, transpose_a=WAYS[way][0], transpose_b=WAYS[way][1])
            actual = values_of(device, operands[2])[0]
            return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))

        with device.running(precision):
            theirs = error(Choice("cublas")) if device.name == "cuda" else 0.0
            least = floor_of_fp8() if choice.find("linear", rung).coarse else floor(k, precision)
            for tile in tiles_of(device, Product(way, left, right, c).problem, rung, found):
                key, what = f"{tile} {way} {precision}", f"{tile}: {way} {m}x{n}x{k} {precision}"
                _enter(found, key, what, error(tile), theirs, least)


def _rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """As the products of that precision see them, in float32."""
    if precision == "tf32":
        return to_tf32(values)
    return values.astype(known_dtype(PRECISIONS[precision])).astype(np.float32)


def _enter(found: Found, key: str, what: str, ours: float, theirs: float, least: float) -> None:
    most = max(1.5 * theirs, least)
    before = found.errors.get(key)
    if before is None or not ours / most <= before["error"] / before["allowed"]:
        found.errors[key] = {"case": what, "error": ours, "library": theirs, "allowed": most}
    if not ours <= most:
        found.wrong_is(f"{what}: an error of {ours:.3g}, {most:.3g} is allowed, that of the library is {theirs:.3g}")


# Convolutions -----------------------------------------------------------------------------------------------


def layer_of(image: tuple[int, ...]) -> ConvLayer:
    """A row of IMAGES."""
    side, channels, outputs, kernel, stride, padding, dilation, groups = image
    pairs = (kernel, kernel), (stride, stride), ((padding, padding), (padding, padding)), (dilation, dilation)
    return ConvLayer(4, side, side + 1, channels, outputs, *pairs, groups)


def filled(device: Any, array: Any, values: np.ndarray) -> None:
    device.copy(array, values.reshape(array.shape).astype(known_dtype(array.dtype)))


def check_conv(device: Any, image: tuple[int, ...], way: str, precision: str, rung: str, found: Found) -> None:
    """A convolution of whole numbers, then one of N(0, 1) with a result in float32, on each tile that can."""
    layer = layer_of(image)
    with device.running(precision):
        task = layer.task(way, device, precision)
        wide = replace(task, c=device.allocate(task.c.shape, "float32"))
        tiles = tiles_of(device, task.problem, rung, found)
        if not tiles:
            return
        names = ("x", "weight") if way == "forward" else ("dy", "weight") if way == "backward_input" else ("dy", "x")
        generator = np.random.default_rng(0)
        results = (task, wide) if task.c.dtype != wide.c.dtype else (wide,)
        for exact, to in [*((True, to) for to in results), (False, wide)]:
            arrays = {}
            for name, array in zip(names, (task.a, task.b), strict=True):
                drawn = (
                    whole(generator, array.shape, 1) if exact else generator.standard_normal(array.shape, np.float32)
                )
                arrays[name] = _rounded(drawn, precision)
                filled(device, array, arrays[name])
            bias = to.epilogue.bias
            if bias is not None:
                arrays["bias"] = whole(generator, bias.shape, 3)
                filled(device, bias, arrays["bias"])
            host = {name: values.astype(np.float64) for name, values in arrays.items()}
            host |= {name: np.zeros(shape) for name, shape in layer.destinations(way).items()}
            expected = layer.compute(way, host)[0]
            theirs = _by_torch(layer, way, arrays, precision, expected) if device.name == "cuda" and not exact else 0.0
            for tile in tiles:
                filled(device, to.c, np.full(to.c.shape, np.nan))
                with choice.only("conv", tile):
                    conv.convolve(to)
                actual = np.asarray(device.to_host(to.c), np.float64)
                what = f"{tile}: conv {way} {image} {precision}"
                found.cases += 1
                found.tiles[tile.variant] = found.tiles.get(tile.variant, 0) + 1
                if exact:
                    rounded = expected.astype(np.float32).astype(known_dtype(to.c.dtype)).astype(np.float64)
                    if not np.array_equal(actual, rounded):
                        found.wrong_is(f"{what}: {int((actual != rounded).sum())} of {actual.size} are wrong")
                else:
                    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
                    least = floor(_terms(layer, way), precision)
                    _enter(found, f"{tile} {way} {precision}", what, error, theirs, least)


def _terms(layer: ConvLayer, way: str) -> int:
    """Of a sum."""
    taps = layer.kernel[0] * layer.kernel[1]
    if way == "backward_parameters":
        return layer.images * layer.size[0] * layer.size[1]
    return taps * (layer.channels if way == "forward" else layer.outputs) // layer.groups


def _by_torch(layer: ConvLayer, way: str, arrays: dict[str, Any], precision: str, expected: np.ndarray) -> float:
    """The error of PyTorch in float32 (in tf32 where that is the precision); 0 where it is not there.

    In 16 bits its results would be rounded, which hides its sums: what it would add are the same numbers.
    """
    try:
        import torch
    except ImportError:
        return 0.0
    if not torch.cuda.is_available():
        return 0.0
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    given = {name: torch.from_numpy(values).cuda() for name, values in arrays.items()}
    placed = {name: array.movedim(-1, 1) if array.ndim == 4 else array for name, array in given.items()}
    padding = [sides[0] for sides in layer.padding]
    settings = (list(layer.stride), padding, list(layer.dilation))
    if way == "forward":
        found = torch.nn.functional.conv2d(placed["x"], placed["weight"], placed["bias"], *settings, layer.groups)
    else:
        shapes = {"x": (layer.images, layer.channels, layer.height, layer.width)}
        shapes["weight"] = (layer.outputs, layer.channels // layer.groups, *layer.kernel)
        whole_of = {n: placed[n] if n in placed else torch.empty(s, device="cuda") for n, s in shapes.items()}
        wanted = [way == "backward_input", way == "backward_parameters", False]
        found = torch.ops.aten.convolution_backward(
            *(placed["dy"], whole_of["x"], whole_of["weight"], None, *settings, False, [0, 0], layer.groups, wanted)
        )[0 if wanted[0] else 1]
    actual = found.movedim(1, -1).to("cpu", torch.float64).numpy()
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# The whole --------------------------------------------------------------------------------------------------


def run(device: Any, family: str, name: str, seconds: float, quick: bool) -> Found:
    """Cases until the time is up; the errors first, then what is exact."""
    found, rung, begun = Found(), choice.find(family, name), time.monotonic()
    if rung.only not in (None, device.capability):
        found.left_out[f"not for compute capability {device.capability / 10}"] = 1
        return found
    if rung.library and device.name != "cuda":
        found.left_out["a library, which the device 'cuda' alone has"] = 1
        return found
    if family == "conv":
        cases = list(itertools.product(IMAGES, ConvLayer.ways, device.precisions))
        random.Random(1).shuffle(cases)
        for image, way, precision in cases:
            if time.monotonic() - begun > seconds:
                break
            check_conv(device, image, way, precision, name, found)
        return found
    linear_errors(device, device.precisions, name, found, 0 if quick else len(ERRORS))
    for number, case in enumerate(linear_cases(device.precisions, rung, 65 if quick else max(SIZES + DEPTHS))):
        if time.monotonic() - begun > seconds:
            break
        check_linear(device, case, name, found, number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", action="store_true", help="print the rungs, as [family, rung, verified]")
    parser.add_argument("--family", choices=list(RUNGS), default="linear")
    parser.add_argument("--rung", default="naive")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--quick", action="store_true", help="without the errors, which take large products")
    arguments = parser.parse_args()
    if arguments.list:
        print(json.dumps([(family, rung.name, rung.verified) for family, rungs in RUNGS.items() for rung in rungs]))
        return
    device: Any = find_device(arguments.device)
    found = run(device, arguments.family, arguments.rung, arguments.seconds, arguments.quick)
    print(json.dumps({"version": bp.__version__, **vars(found)}))
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()
