"""Losses on the CUDA device: loss and gradient come of one launch."""

from typing import Any

from bp.cuda.device import empty, empty_like
from bp.cuda.kernel import FLOATS, Kernel, Source, blocks
from bp.cuda.reduce import LANES_END, ONE_BLOCK, row_groups, sums_of_parts
from bp.ops.array import Array

_ROW_BYTES = "(1 + gradient) * rows * classes * T + 12 * rows"
_ELEMENT_BYTES = "((2 + gradient) * T + 4) * n"

_cross_entropy = Source("loss_cross_entropy", T=FLOATS, SMOOTHING=("0", "1"))
_by_lanes, _by_block, _by_large_block = (
    _cross_entropy.kernel(
        f"softmax_cross_entropy_by_{group}",
        flops="8 * rows * classes",
        bytes=_ROW_BYTES,
        streaming=True,
        shared="kept_in_shared * 512 * 16" if group == "large_block" else "0",
    )
    for group in ("lanes", "block", "large_block")
)
_distribution = Source("loss_distribution", T=FLOATS)
_soft_by_lanes, _soft_by_block = (
    _distribution.kernel(
        f"soft_cross_entropy_by_{group}",
        flops="12 * rows * classes",
        bytes="(2 + gradient) * rows * classes * T + 4 * rows",
    )
    for group in ("lanes", "block")
)
_by_class = Source("loss_by_class", T=FLOATS)
_likelihood = _by_class.kernel(
    "negative_log_likelihood", flops="2 * rows", bytes="gradient * rows * classes * T + 16 * rows"
)
_multi_margin = _by_class.kernel("multi_margin", flops="6 * rows * classes", bytes=_ROW_BYTES)

_elementwise = Source("loss_elementwise", T=FLOATS)


def _element(name: str, flops: int) -> Kernel:
    return _elementwise.kernel(name, flops=f"{flops} * n", bytes=_ELEMENT_BYTES, streaming=True)


_squared_error = _element("squared_error", 4)
_absolute_error = _element("absolute_error", 4)
_huber = _element("huber", 6)
_binary_cross_entropy = _element("binary_cross_entropy", 12)
_kl_divergence = _element("kl_divergence", 6)
_hinge = _element("hinge", 6)
_scale_terms = _elementwise.kernel("scale_terms", flops="n", bytes="2 * n * T", streaming=True)

_mean = Source("loss_mean")
_mean_of_terms = _mean.kernel("mean_of_terms", flops="n", bytes="4 * n")
_mean_of_parts = _mean.kernel("mean_of_parts", flops="n", bytes="8 * n")

# Of kernels/loss_cross_entropy.cu: threads of its blocks, and of the large ones the vectors of 16 bytes that a thread
# keeps in registers and, at most, in shared memory, by the bytes of an element: together 50,304 columns.
_THREADS, _LARGE_THREADS = 128, 512
_BLOCK_VECTORS = 8
_KEPT = {2: 8, 4: 18}
_KEPT_IN_SHARED = {2: 5, 4: 7}


def mean_of_terms(losses: Array, control: Array) -> Array:
    mean = empty(losses, ())
    if losses.size <= ONE_BLOCK:
        _mean_of_terms(1, losses, control, mean, losses.size)
    else:
        parts = sums_of_parts(losses)
        _mean_of_parts(1, parts, control, mean, parts.size)
    return mean


def scale_terms(gradient: Array, dlosses: Array) -> None:
    if gradient.size:
        _scale_terms(_vector_blocks(gradient), gradient, dlosses, gradient.size, gradient.size // dlosses.size)


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    control: Array,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    losses, dlogits = _outputs(logits, labels.shape, gradient, out)
    rows, classes, itemsize = losses.size, logits.shape[-1], logits.dtype.itemsize
    arguments = (
        logits, labels, _label_type(labels), class_weight, control, losses, dlogits, rows, classes, ignore_index,
        label_smoothing, gradient,
    )  # fmt: skip
    smoothing = str(int(label_smoothing > 0))
    vectors = classes * itemsize // 16
    if classes <= LANES_END:
        grid, lanes = row_groups(rows, classes, itemsize, _THREADS)
        _by_lanes(grid, *arguments, lanes, SMOOTHING=smoothing)
    elif vectors <= _BLOCK_VECTORS * _THREADS:
        _by_block(rows, *arguments, SMOOTHING=smoothing)
    else:
        rest = vectors - _KEPT[itemsize] * _LARGE_THREADS
        kept_in_shared = max(0, min(-(-rest // _LARGE_THREADS), _KEPT_IN_SHARED[itemsize]))
        _by_large_block(rows, *arguments, kept_in_shared, SMOOTHING=smoothing)
    return losses, dlogits


def soft_cross_entropy(
    logits: Array,
    targets: Array,
    class_weight: Array | None,
    control: Array,
    label_smoothing: float,
    gradient: bool,
) -> tuple[Array, Array | None]:
    losses, dlogits = _outputs(logits, logits.shape[:-1], gradient)
    rows, classes = losses.size, logits.shape[-1]
    arguments = (
        logits, targets, class_weight, control, losses, dlogits, rows, classes, label_smoothing, gradient
    )  # fmt: skip
    if classes <= LANES_END:
        grid, lanes = row_groups(rows, classes, logits.dtype.itemsize, _THREADS)
        _soft_by_lanes(grid, *arguments, lanes)
    else:
        _soft_by_block(rows, *arguments)
    return losses, dlogits


def negative_log_likelihood(
    log_probabilities: Array,
    labels: Array,
    class_weight: Array | None,
    control: Array,
    ignore_index: int,
    gradient: bool,
) -> tuple[Array, Array | None]:
    losses, dx = _outputs(log_probabilities, labels.shape, gradient)
    rows, classes = losses.size, log_probabilities.shape[-1]
    grid, lanes = row_groups(rows, classes, log_probabilities.dtype.itemsize)
    _likelihood(
        grid, log_probabilities, labels, _label_type(labels), class_weight, control, losses, dx, rows, classes,
        ignore_index, gradient, lanes,
    )  # fmt: skip
    return losses, dx


def multi_margin(
    predictions: Array, labels: Array, control: Array, power: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    losses, dx = _outputs(predictions, labels.shape, gradient)
    rows, classes = losses.size, predictions.shape[-1]
    grid, lanes = row_groups(rows, classes, predictions.dtype.itemsize)
    _multi_margin(
        grid, predictions, labels, _label_type(labels), control, losses, dx, rows, classes, power, margin, gradient,
        lanes,
    )  # fmt: skip
    return losses, dx


def squared_error(
    predictions: Array, targets: Array, control: Array, gradient: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    return _each(_squared_error, predictions, targets, control, gradient, out=out)


def absolute_error(predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
    return _each(_absolute_error, predictions, targets, control, gradient)


def huber(
    predictions: Array, targets: Array, control: Array, delta: float, gradient: bool
) -> tuple[Array, Array | None]:
    return _each(_huber, predictions, targets, control, gradient, delta)


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    pos_weight: Array | None,
    control: Array,
    gradient: bool,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    losses, dlogits = _outputs(logits, logits.shape, gradient, out)
    columns = 1 if pos_weight is None else pos_weight.size
    _binary_cross_entropy(
        _vector_blocks(logits), logits, targets, pos_weight, control, losses, dlogits, logits.size, columns, gradient
    )
    return losses, dlogits


def kl_divergence(
    log_probabilities: Array, targets: Array, control: Array, log_target: bool, gradient: bool
) -> tuple[Array, Array | None]:
    return _each(_kl_divergence, log_probabilities, targets, control, gradient, log_target)


def hinge(
    predictions: Array, targets: Array, control: Array, squared: bool, gradient: bool
) -> tuple[Array, Array | None]:
    return _each(_hinge, predictions, targets, control, gradient, squared)


def _each(
    kernel: Kernel,
    predictions: Array,
    targets: Array,
    control: Array,
    gradient: bool,
    *settings: Any,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    """An elementwise loss, whose kernel takes its settings between the number of elements and `gradient`."""
    losses, dx = _outputs(predictions, predictions.shape, gradient, out)
    kernel(
        _vector_blocks(predictions), predictions, targets, control, losses, dx, predictions.size, *settings, gradient
    )
    return losses, dx


def _outputs(
    predictions: Array, shape: tuple[int, ...], gradient: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Memory for the terms, float32, and for the gradient: `out` where it is given."""
    losses = empty(predictions, shape, "float32")
    if not gradient:
        return losses, None
    return losses, empty_like(predictions) if out is None else out


def _vector_blocks(x: Array) -> int:
    return blocks(-(-x.nbytes // 16))


def _label_type(labels: Array) -> int:
    """How kernels/include/label.cuh reads them: the bytes of a label, negative where it is unsigned."""
    size: int = labels.dtype.itemsize
    return -size if labels.dtype.kind == "u" else size
