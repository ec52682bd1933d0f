"""Normalisation: rescale activations to mean 0 and variance 1 over a set of elements, and the gradients.

Over which elements differs by operation; the rest is one formula. With the K elements x_1..x_K of a set,

    mean = sum(x) / K, rstd = 1 / sqrt(sum((x - mean)^2) / K + eps), xhat = (x - mean) rstd, y = gamma xhat + beta.

Its backward, with g = dy gamma: xhat_i depends on x_j through x_j itself, through the mean (-rstd / K) and through
rstd (drstd/dx_j = -rstd^2 xhat_j / K). Summed over i,

    dx = rstd (g - mean(g) - xhat mean(g xhat)).

That is g with its components along (1, ..., 1) and along xhat projected out: adding a constant to x, or scaling x about
its mean, leaves xhat as it is, so no gradient may point there. dgamma and dbeta are the sums of dy xhat and dy over
all elements that share a gamma.

gamma and beta may be None (1 and 0). Statistics are computed about the mean, never as E[x^2] - E[x]^2; the saved mean
and rstd are of a precision that the device chooses, at least float32. In the backwards, dgamma and dbeta are
C-contiguous destinations (None: not wanted), and `accumulate` adds to what they hold instead of overwriting.
"""

import math

from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import Array, Shape
from bp.ops.checks import contiguous, has_shape, same_dtype, wide_dtype
from bp.ops.operation import operation


@operation
def layer_norm(x: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float) -> tuple[Array, Array, Array]:
    """Normalise each sample or token over the last `axes` axes of x; returns (y, mean, rstd).

    x, y: any shape with at least `axes` axes; gamma, beta: the last `axes` sizes of x; mean, rstd: the other sizes.
    Raises ShapeError where these do not fit or there is nothing to normalise over.
    Source: Ba, Kiros, Hinton, Layer Normalization (2016).
    """
    _trailing_axes("layer_norm", x, axes)
    has_shape("layer_norm", "gamma", gamma, x.shape[x.ndim - axes :])
    has_shape("layer_norm", "beta", beta, x.shape[x.ndim - axes :])
    same_dtype("layer_norm", x=x, gamma=gamma, beta=beta)


@operation
def layer_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = dy gamma, means over the normalised axes (derived above).

    dgamma = sum of dy xhat and dbeta = sum of dy, over the axes that were not normalised.
    dy, x, dx: one shape; gamma, dgamma, dbeta: its trailing sizes; mean, rstd: its leading sizes, from the forward.
    """
    _backward("layer_norm_backward", dy, x, gamma, x.shape[mean.ndim :], dgamma, dbeta)
    _statistics("layer_norm_backward", mean, rstd, x.shape[: mean.ndim])


@operation
def rms_norm(x: Array, gamma: Array | None, axes: int, eps: float) -> tuple[Array, Array]:
    """y = gamma x rstd with rstd = 1 / sqrt(mean(x^2) + eps) over the last `axes` axes of x; returns (y, rstd).

    Layer norm that takes no mean away. x, y: any shape with at least `axes` axes; gamma: its last `axes` sizes;
    rstd: the other sizes. Raises ShapeError where these do not fit or there is nothing to normalise over.
    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
    """
    _trailing_axes("rms_norm", x, axes)
    has_shape("rms_norm", "gamma", gamma, x.shape[x.ndim - axes :])
    same_dtype("rms_norm", x=x, gamma=gamma)


@operation
def rms_norm_backward(
    dy: Array, x: Array, gamma: Array | None, rstd: Array, dgamma: Array | None, accumulate: bool
) -> Array:
    """dx = rstd (g - xhat mean(g xhat)) with g = dy gamma and xhat = x rstd; dgamma = sum of dy xhat.

    There is no mean to depend on, so of the two projections only the one along xhat is left: scaling x leaves y as it
    is. dy, x, dx: one shape; gamma, dgamma: its trailing sizes; rstd: its leading sizes, from the forward.
    """
    _backward("rms_norm_backward", dy, x, gamma, x.shape[rstd.ndim :], dgamma, None)
    _statistics("rms_norm_backward", None, rstd, x.shape[: rstd.ndim])


@operation
def add_layer_norm(
    x: Array, residual: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Layer norm of total = x + residual, as a pre-norm block needs it; returns (y, total, mean, rstd).

    The total, rounded once to the dtype of x, is both what is normalised and what goes on along the residual path:
    computed together, it is not read from memory again. x, residual, y, total: one shape; the others, and the errors,
    as for `layer_norm`.
    """
    has_shape("add_layer_norm", "residual", residual, x.shape)
    _trailing_axes("add_layer_norm", x, axes)
    has_shape("add_layer_norm", "gamma", gamma, x.shape[x.ndim - axes :])
    has_shape("add_layer_norm", "beta", beta, x.shape[x.ndim - axes :])
    same_dtype("add_layer_norm", x=x, residual=residual, gamma=gamma, beta=beta)


@operation
def add_layer_norm_backward(
    dy: Array,
    dtotal: Array | None,
    total: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) + dtotal with g = dy gamma: the gradient of x, and of the residual.

    The total reaches the loss L in two ways, through y and by itself, so its gradient is the sum of what
    `layer_norm_backward` gives at x = total and of dtotal = dL/dtotal (None: zero). As total = x + residual has the
    derivative 1 in both, x and residual each have that gradient; it is computed once.
    dy, dtotal, total, dx: one shape; the others as for `layer_norm_backward`.
    """
    has_shape("add_layer_norm_backward", "dtotal", dtotal, total.shape)
    _backward("add_layer_norm_backward", dy, total, gamma, total.shape[mean.ndim :], dgamma, dbeta)
    same_dtype("add_layer_norm_backward", dy=dy, dtotal=dtotal)
    _statistics("add_layer_norm_backward", mean, rstd, total.shape[: mean.ndim])


@operation
def add_rms_norm(x: Array, residual: Array, gamma: Array | None, axes: int, eps: float) -> tuple[Array, Array, Array]:
    """RMS norm of total = x + residual; returns (y, total, rstd). As `add_layer_norm`, but no mean is taken away."""
    has_shape("add_rms_norm", "residual", residual, x.shape)
    _trailing_axes("add_rms_norm", x, axes)
    has_shape("add_rms_norm", "gamma", gamma, x.shape[x.ndim - axes :])
    same_dtype("add_rms_norm", x=x, residual=residual, gamma=gamma)


@operation
def add_rms_norm_backward(
    dy: Array,
    dtotal: Array | None,
    total: Array,
    gamma: Array | None,
    rstd: Array,
    dgamma: Array | None,
    accumulate: bool,
) -> Array:
    """dx = rstd (g - xhat mean(g xhat)) + dtotal with g = dy gamma: the gradient of x, and of the residual.

    Derived as in `add_layer_norm_backward`; the arguments are those of `rms_norm_backward` at x = total, and dtotal.
    """
    has_shape("add_rms_norm_backward", "dtotal", dtotal, total.shape)
    _backward("add_rms_norm_backward", dy, total, gamma, total.shape[rstd.ndim :], dgamma, None)
    same_dtype("add_rms_norm_backward", dy=dy, dtotal=dtotal)
    _statistics("add_rms_norm_backward", None, rstd, total.shape[: rstd.ndim])


@operation
def group_norm(
    x: Array, gamma: Array | None, beta: Array | None, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    """Normalise each sample over all positions and the C / groups channels of a group; returns (y, mean, rstd).

    x, y: (N, ..., C), rank 2 or more; gamma, beta: (C,); mean, rstd: (N, groups). groups = 1 normalises whole samples,
    groups = C each channel of each sample (instance norm). Raises ShapeError where these do not fit, where groups does
    not divide C, or where there is nothing to normalise over.
    Source: Wu and He, Group Normalization (2018).
    """
    _channels_last("group_norm", x)
    has_shape("group_norm", "gamma", gamma, x.shape[-1:])
    has_shape("group_norm", "beta", beta, x.shape[-1:])
    same_dtype("group_norm", x=x, gamma=gamma, beta=beta)
    if groups < 1 or x.shape[-1] % groups:
        raise ShapeError(f"group_norm expected channels that {groups} groups divide, got shape {x.shape}")
    if math.prod(x.shape[1:]) == 0:
        raise ShapeError(f"group_norm expected at least one element in each sample, got shape {x.shape}")


@operation
def group_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = dy gamma, means over the group in a sample (derived above).

    dgamma = sum of dy xhat and dbeta = sum of dy, over all axes but the last.
    dy, x, dx: (N, ..., C); gamma, dgamma, dbeta: (C,); mean, rstd: (N, groups), from the forward.
    """
    _backward("group_norm_backward", dy, x, gamma, x.shape[-1:], dgamma, dbeta)
    _statistics("group_norm_backward", mean, rstd, x.shape[:1] + mean.shape[-1:])
    groups = mean.shape[1]
    if groups < 1 or x.shape[-1] % groups:
        raise ShapeError(f"group_norm_backward expected channels that {groups} groups divide, got shape {x.shape}")


@operation
def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    """Normalise each channel over all axes but the last; returns (y, mean, rstd).

    training: with the statistics of the batch, whose variance divides by the count n of values per channel; then the
    running statistics, unless None, are updated in place, new = (1 - momentum) old + momentum batch, where the
    variance is the unbiased one (divided by n - 1). Otherwise: with the running statistics, which stay as they are.
    x, y: (N, ..., C), rank 2 or more; the others: (C,).
    Raises ShapeError where these do not fit, and in training where a channel has fewer than two values (an empty batch
    included): one value has no variance, so y would be beta and x would have no gradient. Then nothing was changed.
    Source: Ioffe and Szegedy, Batch Normalization (2015); the running variance in PyTorch's form.
    """
    _channels_last("batch_norm", x)
    _normalises("batch_norm", x, gamma, beta, running_mean, running_var)
    if not training and running_mean is None:
        raise ConfigurationError("batch_norm expected running statistics in inference, got None")
    if training:
        _has_variance("batch_norm", x)


@operation
def batch_norm_of(
    x: Array,
    mean: Array,
    rest: Array | None,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """`batch_norm` in training of an x whose statistics are known: whoever made x took them; returns (y, rstd).

    mean, rest, variance: (C,), of the values of each channel of x, the mean rounded and what that leaves out (None:
    nothing), the variance divided by their count n, as `bp.ops.conv.conv2d_statistics` gives them.
    y = gamma (x - mean - rest) rstd + beta; the running statistics, unless None, are updated as by `batch_norm`. mean
    depends on x as there, so `batch_norm_backward` with training True and the rounded mean is the backward.
    x, y: (N, ..., C); the others: (C,). Errors as for `batch_norm`.
    """
    _channels_last("batch_norm_of", x)
    has_shape("batch_norm_of", "mean", mean, x.shape[-1:])
    has_shape("batch_norm_of", "rest", rest, x.shape[-1:])
    has_shape("batch_norm_of", "variance", variance, x.shape[-1:])
    _normalises("batch_norm_of", x, gamma, beta, running_mean, running_var)
    _has_variance("batch_norm_of", x)


@operation
def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
    training: bool,
) -> Array:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = dy gamma, means over all axes but the last (derived above).

    Where the forward took the running statistics (training False), mean and rstd are constants and nothing is
    projected out: dx = rstd g. dgamma = sum of dy xhat and dbeta = sum of dy, over all axes but the last.
    dy, x, dx: (N, ..., C); the others: (C,); mean, rstd: from the forward.
    """
    _backward("batch_norm_backward", dy, x, gamma, x.shape[-1:], dgamma, dbeta)
    _statistics("batch_norm_backward", mean, rstd, x.shape[-1:])


def _normalises(
    operation: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
) -> None:
    """What both forwards of batch norm ask of the arrays beside x."""
    for name, array in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        has_shape(operation, name, array, x.shape[-1:])
    same_dtype(operation, x=x, gamma=gamma, beta=beta)
    wide_dtype(operation, x, running_mean=running_mean, running_var=running_var)
    if (running_mean is None) != (running_var is None):
        raise ConfigurationError(f"{operation} expected both of running_mean and running_var or neither, got one")


def _has_variance(operation: str, x: Array) -> None:
    if math.prod(x.shape[:-1]) < 2:
        raise ShapeError(f"{operation} expected at least 2 values per channel in training, got shape {x.shape}")


def _backward(
    name: str, dy: Array, x: Array, gamma: Array | None, affine: Shape, dgamma: Array | None, dbeta: Array | None
) -> None:
    """What all backwards ask of their arrays; `affine` is the shape of gamma and of the destinations."""
    has_shape(name, "dy", dy, x.shape)
    has_shape(name, "gamma", gamma, affine)
    has_shape(name, "dgamma", dgamma, affine)
    has_shape(name, "dbeta", dbeta, affine)
    contiguous(name, "dgamma", dgamma)
    contiguous(name, "dbeta", dbeta)
    same_dtype(name, x=x, dy=dy, gamma=gamma)
    wide_dtype(name, x, dgamma=dgamma, dbeta=dbeta)


def _statistics(name: str, mean: Array | None, rstd: Array, expected: Shape) -> None:
    has_shape(name, "mean", mean, expected)
    has_shape(name, "rstd", rstd, expected)


def _trailing_axes(name: str, x: Array, axes: int) -> None:
    if not 1 <= axes <= x.ndim:
        raise ShapeError(f"{name} expected x with at least {axes} axes to normalise over, got shape {x.shape}")
    if math.prod(x.shape[x.ndim - axes :]) == 0:
        raise ShapeError(f"{name} expected at least one element to normalise over, got shape {x.shape}")


def _channels_last(name: str, x: Array) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{name} expected x of rank 2 or more, (N, ..., C), got shape {x.shape}")
