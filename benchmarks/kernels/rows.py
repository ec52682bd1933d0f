"""What is measured: each row an operation of bp on arrays of one size, what PyTorch has for it, and the speed to reach.

Bytes are those that have to move: each input read once, each output written once. Targets are per cent of a copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import bp.ops.activation as activation
import bp.ops.dropout as dropout_ops
import bp.ops.embedding as embedding_ops
import bp.ops.loss as loss_ops
import bp.ops.norm as norm
import bp.ops.optimizer as optimizer_ops
from benchmarks.kernels.data import Data, Pair
from bp.checking import tolerance
from bp.ops import control as block

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

SAMPLE = 2048  # elements, or
ROWS = 3  # rows, from each end, that are held to the float64 reference


@dataclass
class Row:
    """ours: one run. theirs(wrap): one run of PyTorch, its function given to `wrap` first (torch.compile, or nothing);
    None where there is no PyTorch. check: (what was computed, what should have been) on samples, of `dtype`, sums of
    `length` terms. compiles: whether torch.compile is worth a try."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: float
    target: float | None
    ours: Callable[[], Any]
    theirs: Callable[[Wrap], Callable[[], Any]] | None
    check: Callable[[], list[tuple[Any, Any]]]
    length: int = 1
    compiles: bool = True

    def error(self) -> float:
        """The largest relative error of the samples, in units of what is allowed: at most 1."""
        allowed = tolerance("float32", self.length) + (tolerance(self.dtype, 2) if self.dtype != "float32" else 0.0)
        errors = []
        for actual, expected in self.check():
            actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
            apart = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), np.sqrt(expected.size) * 1e-3)
            errors.append(apart / allowed if np.isfinite(actual).all() else np.inf)
        return float(max(errors))


class Sizes:
    """Of the arrays: for a GPU, or so small that the emulator runs them."""

    def __init__(self, small: bool) -> None:
        self.elements = {"float32": 1 << 27, "float16": 1 << 28, "bfloat16": 1 << 28}
        self.rows, self.loss_rows, self.classes = 8192, (4096, 8192), 50_304
        self.parameters, self.table, self.positions, self.width = 124_439_808, 50_257, 1 << 18, 1024
        if small:
            self.elements = dict.fromkeys(self.elements, 20_000)
            self.rows, self.loss_rows = 8, (8,)
            self.parameters, self.table, self.positions, self.width = 128 * 50, 300, 2000, 32


def all_rows(data: Data, sizes: Sizes) -> Iterator[Callable[[], Row]]:
    """Makers of rows, so that the arrays of one are gone before those of the next are drawn."""
    for dtype in ("bfloat16", "float32"):
        for name in _ACTIVATIONS:
            for backward in (False, True):
                yield lambda n=name, d=dtype, b=backward: _activation(data, sizes, n, d, b)
        for name in ("relu", "gelu_tanh", "silu"):
            for backward in (False, True):
                yield lambda n=name, d=dtype, b=backward: _bias(data, sizes, n, d, b)
    for dtype in ("bfloat16", "float32"):
        for columns in (1024, 4096):
            for centred in (True, False):
                for backward in (False, True):
                    yield lambda c=columns, m=centred, d=dtype, b=backward: _norm(data, sizes, c, m, d, b)
    for rows in sizes.loss_rows:
        yield lambda r=rows: _cross_entropy(data, sizes, r, "bfloat16")
    yield lambda: _adamw(data, sizes)
    yield lambda: _clip(data, sizes)
    yield lambda: _embedding(data, sizes)
    yield lambda: _dropout(data, sizes)


def _sample(data: Data, array: Any, rows: bool = False) -> np.ndarray:
    """Both ends of an array, in float64: so many elements, or whole rows."""
    flat = array if rows else array.reshape(-1)
    count = min(ROWS if rows else SAMPLE, len(flat))
    ends = [data.device.to_host(flat[:count]), data.device.to_host(flat[len(flat) - count :])]
    return np.concatenate(ends).astype(np.float64)


# Activations --------------------------------------------------------------------------------------------------------


# (forward, what backward takes beside dy: "x" or "y", backward, target; each given arrays)
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], str, Callable[..., Any], float]] = {
    "relu": (activation.relu, "y", activation.relu_backward, 95),
    "silu": (activation.silu, "x", activation.silu_backward, 95),
    "gelu_tanh": (
        lambda x: activation.gelu(x, "tanh"),
        "x",
        lambda dy, x: activation.gelu_backward(dy, x, "tanh"),
        95,
    ),
    "gelu": (lambda x: activation.gelu(x, "none"), "x", lambda dy, x: activation.gelu_backward(dy, x, "none"), 85),
    "mish": (activation.mish, "x", activation.mish_backward, 85),
}


def _in_torch(torch: Any, name: str, backward: bool) -> Callable[..., Any]:
    f, aten = torch.nn.functional, torch.ops.aten
    approximate = "tanh" if name == "gelu_tanh" else "none"
    if not backward:
        functions = {"relu": torch.relu, "silu": f.silu, "mish": f.mish}
        return functions.get(name) or (lambda x: f.gelu(x, approximate=approximate))
    functions = {
        "relu": lambda dy, y: aten.threshold_backward(dy, y, 0),
        "silu": aten.silu_backward,
        "mish": aten.mish_backward,
    }
    return functions.get(name) or (lambda dy, x: aten.gelu_backward(dy, x, approximate=approximate))


def _activation(data: Data, sizes: Sizes, name: str, dtype: str, backward: bool) -> Row:
    forward, _, gradient, target = _ACTIVATIONS[name]
    n = sizes.elements[dtype]
    operation = gradient if backward else forward
    inputs = [data.normal((n,), dtype) for _ in range(1 + backward)]
    ours = [pair.ours for pair in inputs]

    def check() -> list[tuple[Any, Any]]:
        return [(_sample(data, operation(*ours)), operation(*(_sample(data, array) for array in ours)))]

    label = f"{name} {'backward' if backward else 'forward'}"
    nbytes = (2 + backward) * n * ours[0].itemsize
    return Row(
        *(label, dtype, (n,), nbytes, target, lambda: operation(*ours)),
        _peer(data, lambda torch: _in_torch(torch, name, backward), inputs),
        check,
    )


def _peer(data: Data, make: Callable[[Any], Callable[..., Any]], inputs: list[Pair]) -> Any:
    """`Row.theirs` of a function of tensors."""
    if data.torch is None:
        return None
    function, tensors = make(data.torch), [pair.theirs for pair in inputs]

    def theirs(wrap: Wrap) -> Callable[[], Any]:
        wrapped = wrap(function)
        return lambda: wrapped(*tensors)

    return theirs


def _bias(data: Data, sizes: Sizes, name: str, dtype: str, backward: bool) -> Row:
    columns = 64 if sizes.rows < 100 else 4096
    rows = sizes.elements[dtype] // columns
    x, bias = data.normal((rows, columns), dtype), data.normal((columns,), dtype)
    dy = data.normal((rows, columns), dtype) if backward else x
    kept = activation.bias_activation(x.ours, bias.ours, name)[1] if backward else None
    dbias = data.zeros((columns,))

    def ours() -> Any:
        if not backward:
            return activation.bias_activation(x.ours, bias.ours, name)[0]
        return activation.bias_activation_backward(dy.ours, kept, bias.ours, dbias, name, False)

    def check() -> list[tuple[Any, Any]]:
        samples = [_sample(data, array, rows=True) for array in (x.ours, dy.ours)]
        wide_bias = data.device.to_host(bias.ours).astype(np.float64)
        y, saved = activation.bias_activation(samples[0], wide_bias, name)
        if not backward:
            return [(_sample(data, ours(), rows=True), y)]
        dx = activation.bias_activation_backward(samples[1], saved, wide_bias, None, name, False)
        computed = ours()
        found = [(_sample(data, computed, rows=True), dx)]
        if rows < 10_000:  # beyond, the host would take seconds to add them up
            found.append((data.device.to_host(dbias), data.device.to_host(computed).astype(np.float64).sum(axis=0)))
        return found

    def make(torch: Any) -> Callable[..., Any]:
        forward, gradient = _in_torch(torch, name, False), _in_torch(torch, name, True)
        if not backward:
            return lambda x, bias: forward(x + bias)

        def of_both(dy: Any, x: Any, bias: Any) -> Any:
            # ReLU's backward takes any number with the sign of z; eager PyTorch has z or y at hand, and adds nothing.
            dx = gradient(dy, x if name == "relu" else x + bias)
            return dx, dx.sum(0, dtype=torch.float32)

        return of_both

    label = f"bias + {name} {'backward' if backward else 'forward'}"
    return Row(
        *(label, dtype, (rows, columns), (2 + backward) * rows * columns * x.ours.itemsize, 95, ours),
        _peer(data, make, [dy, x, bias] if backward else [x, bias]),
        check,
        length=rows,
    )


# Norms, losses, optimizer, embedding, dropout -----------------------------------------------------------------------


def _norm(data: Data, sizes: Sizes, columns: int, centred: bool, dtype: str, backward: bool) -> Row:
    rows = sizes.rows
    x, dy = data.normal((rows, columns), dtype), data.normal((rows, columns), dtype)
    gamma, beta = (data.normal((columns,), dtype) for _ in range(2))
    dgamma, dbeta = data.zeros((columns,)), data.zeros((columns,))
    given = [gamma.ours, beta.ours] if centred else [gamma.ours]
    operation = norm.layer_norm if centred else norm.rms_norm
    gradient = norm.layer_norm_backward if centred else norm.rms_norm_backward
    _, *statistics = operation(x.ours, *given, 1, 1e-5)
    destinations = (dgamma, dbeta) if centred else (dgamma,)

    def ours() -> Any:
        if not backward:
            return operation(x.ours, *given, 1, 1e-5)[0]
        return gradient(dy.ours, x.ours, gamma.ours, *statistics, *destinations, False)

    def check() -> list[tuple[Any, Any]]:
        wide = [data.device.to_host(array).astype(np.float64) for array in given]
        x64, dy64 = (_sample(data, array, rows=True) for array in (x.ours, dy.ours))
        y, *sampled = operation(x64, *wide, 1, 1e-5)
        if not backward:
            return [(_sample(data, ours(), rows=True), y)]
        dx = gradient(dy64, x64, wide[0], *sampled, *(None for _ in destinations), False)
        found = [(_sample(data, ours(), rows=True), dx)]
        if centred:  # the sum over all rows
            found.append((data.device.to_host(dbeta), data.device.to_host(dy.ours).astype(np.float64).sum(axis=0)))
        return found

    def make(torch: Any) -> Callable[..., Any]:
        aten, shape = torch.ops.aten, (columns,)
        if centred and not backward:
            return lambda x, g, b: torch.nn.functional.layer_norm(x, shape, g, b)
        if not centred and not backward:
            return lambda x, g, b: torch.nn.functional.rms_norm(x, shape, g, 1e-5)
        if centred:
            _, mean, rstd = aten.native_layer_norm(x.theirs, shape, gamma.theirs, beta.theirs, 1e-5)
            return lambda dy, x, g, b: aten.native_layer_norm_backward(dy, x, shape, mean, rstd, g, b, [True] * 3)
        _, rstd = aten._fused_rms_norm(x.theirs, shape, gamma.theirs, 1e-5)
        return lambda dy, x, g, b: aten._fused_rms_norm_backward(dy, x, shape, rstd, g, [True, True])

    label = f"{'layer' if centred else 'rms'} norm {'backward' if backward else 'forward'}"
    nbytes = (2 + backward) * rows * columns * x.ours.itemsize
    return Row(
        *(label, dtype, (rows, columns), nbytes, 80 if backward else 92, ours),
        _peer(data, make, [dy, x, gamma, beta] if backward else [x, gamma, beta]),
        check,
        length=max(rows, columns),
        compiles=not backward or data.device.name == "cuda",
    )


def _control(data: Data, denominator: float = 1.0) -> Any:
    host = np.zeros(block.SIZE)
    host[[block.LOSS_DENOMINATOR, block.LEARNING_RATE, block.APPLIED_STEP]] = denominator, 1e-3, 3
    host[[block.GRADIENT_SCALE, block.LOSS_SCALE, block.SEED_LOW]] = 1, 1, 12345
    return data.device.from_host(host)


def _cross_entropy(data: Data, sizes: Sizes, rows: int, dtype: str) -> Row:
    classes = sizes.classes
    logits, labels = data.normal((rows, classes), dtype), data.integers(classes, rows)
    control = _control(data, rows)

    def ours() -> Any:
        return loss_ops.softmax_cross_entropy(logits.ours, labels.ours, None, control, -100, 0.0, True)

    def check() -> list[tuple[Any, Any]]:
        x, y = _sample(data, logits.ours, rows=True), _sample(data, labels.ours, rows=True).astype(np.int64)
        expected = loss_ops.softmax_cross_entropy(x, y, None, data.device.to_host(control), -100, 0.0, True)
        # The gradient divides by the number of rows: held to its own size.
        return [
            (rows ** (part == 1) * _sample(data, actual, rows=True), rows ** (part == 1) * np.asarray(reference))
            for part, (actual, reference) in enumerate(zip(ours(), expected, strict=True))
        ]

    def theirs(wrap: Wrap) -> Callable[[], Any]:
        x = logits.theirs.detach().requires_grad_()
        function = wrap(data.torch.nn.functional.cross_entropy)
        return lambda: data.torch.autograd.grad(function(x, labels.theirs), x)

    nbytes = 2 * rows * classes * logits.ours.itemsize
    peer = None if data.torch is None else theirs
    return Row(
        "cross-entropy with gradient", dtype, (rows, classes), nbytes, 90, ours, peer, check, length=classes
    )  # fmt: skip


def _adamw(data: Data, sizes: Sizes) -> Row:
    n = sizes.parameters
    values, gradients = data.normal((n,), "float32"), data.normal((n,), "float32")
    moments = [data.zeros((n,)), data.zeros((n,))]
    settings = data.device.from_host(np.tile(np.array([1, 0.01, 0, 0], np.float32), (n // optimizer_ops.TILE, 1)))
    control = _control(data)
    ours_values = data.zeros((n,))
    data.device.copy(ours_values, values.ours)
    rule = (0.9, 0.999, 1e-8, None, False)

    def ours() -> Any:
        optimizer_ops.adam(ours_values, gradients.ours, *moments, None, settings, control, *rule)

    def check() -> list[tuple[Any, Any]]:
        count = min(n, 16 * optimizer_ops.TILE)
        parts = [data.device.to_host(a[:count]).astype(np.float64) for a in (ours_values, gradients.ours, *moments)]
        tiles = data.device.to_host(settings[: count // optimizer_ops.TILE]).astype(np.float64)
        optimizer_ops.adam(*parts, None, tiles, data.device.to_host(control), *rule)
        ours()
        after = [data.device.to_host(array[:count]) for array in (ours_values, *moments)]
        return list(zip(after, (parts[0], *parts[2:]), strict=True))

    def theirs(wrap: Wrap) -> Callable[[], Any]:
        parameter = data.torch.nn.Parameter(values.theirs.clone())
        parameter.grad = gradients.theirs
        return data.torch.optim.AdamW([parameter], fused=True).step

    peer = None if data.torch is None else theirs
    return Row("AdamW", "float32", (n,), 28 * n, 92, ours, peer, check, compiles=False)


def _clip(data: Data, sizes: Sizes) -> Row:
    n = sizes.parameters
    gradients, control = data.normal((n,), "float32"), _control(data)

    def ours() -> Any:
        optimizer_ops.clip_by_global_norm(gradients.ours, control, 1.0)

    def check() -> list[tuple[Any, Any]]:
        ours()
        host = data.device.to_host(gradients.ours)
        size = np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in np.array_split(host, 64)))
        return [(data.device.to_host(control)[[block.GRADIENT_NORM]], np.array([size]))]

    peer = _peer(data, lambda torch: torch.linalg.vector_norm, [gradients])
    return Row("global norm", "float32", (n,), 4 * n, None, ours, peer, check, length=n)


def _embedding(data: Data, sizes: Sizes) -> Row:
    shape = (sizes.positions, sizes.width)
    dy, indices = data.normal(shape, "bfloat16"), data.integers(sizes.table, sizes.positions)
    dweight = data.zeros((sizes.table, sizes.width))

    def ours() -> Any:
        embedding_ops.embedding_backward_parameters(dy.ours, indices.ours, dweight, None, False)

    def check() -> list[tuple[Any, Any]]:
        ours()
        named = data.device.to_host(indices.ours)
        found = []
        for row in (0, named[0], named[-1], sizes.table - 1):
            terms = [data.device.to_host(dy.ours[int(p) : int(p) + 1])[0] for p in np.flatnonzero(named == row)]
            expected = np.sum(terms, axis=0, dtype=np.float64) if terms else np.zeros(sizes.width)
            found.append((data.device.to_host(dweight[int(row)]), expected))
        return found

    def make(torch: Any) -> Callable[..., Any]:
        torch.use_deterministic_algorithms(True, warn_only=True)
        return lambda dy, i: torch.ops.aten.embedding_dense_backward(dy, i, sizes.table, -1, False)

    nbytes = sizes.positions * (8 + 2 * sizes.width) + sizes.table * sizes.width * 4
    peer = _peer(data, make, [dy, indices])
    return Row("embedding backward", "bfloat16", shape, nbytes, 70, ours, peer, check, 64, compiles=False)


def _dropout(data: Data, sizes: Sizes) -> Row:
    n = sizes.elements["bfloat16"]
    x, control = data.normal((n,), "bfloat16"), _control(data)

    def check() -> list[tuple[Any, Any]]:
        given = data.device.to_host(x.ours[:SAMPLE]).astype(np.float64)
        expected = dropout_ops.dropout(given, data.device.to_host(control), 0, 0, 0.1)
        return [(data.device.to_host(dropout_ops.dropout(x.ours, control, 0, 0, 0.1)[:SAMPLE]), expected)]

    peer = _peer(data, lambda torch: lambda x: torch.nn.functional.dropout(x, 0.1, True), [x])
    nbytes = 2 * n * x.ours.itemsize
    return Row(
        "dropout", "bfloat16", (n,), nbytes, None, lambda: dropout_ops.dropout(x.ours, control, 0, 0, 0.1), peer, check
    )
