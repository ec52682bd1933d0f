"""Normalisation on the CPU: NumPy as the readable reference, native kernels for float32.

Saved statistics are float64: rounded to float32, a mean of 1e4 would be off by up to 5e-4, and so would every xhat of a
channel whose standard deviation is 1.
"""

import math

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty

# NaN, infinity and overflow in the data show in the results that they touch, not as warnings.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@_quiet
def layer_norm(
    x: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, axes: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    leading = x.shape[: x.ndim - axes]
    rows, gamma, beta = _matrix(x, len(leading)), _flat(gamma), _flat(beta)
    kernel = native.kernel("layer_norm", x)
    if kernel is None:
        mean, variance = _statistics(rows, (1,))
        rstd = 1 / np.sqrt(variance + eps)
        y = _normalise(rows, mean, rstd, gamma, beta)
    else:
        y = empty(rows.shape, x.dtype)
        mean, rstd = (empty(rows.shape[:1], np.float64) for _ in range(2))
        kernel(rows, gamma, beta, eps, y, mean, rstd)
    return y.reshape(x.shape), mean.reshape(leading), rstd.reshape(leading)


@_quiet
def layer_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
) -> np.ndarray:
    rows, drows = _matrix(x, mean.ndim), _matrix(dy, mean.ndim)
    gamma, dgamma, dbeta = _flat(gamma), _flat(dgamma), _flat(dbeta)
    kernel = native.kernel("layer_norm_backward", x)
    if kernel is None:
        mean, rstd = mean.reshape(-1, 1), rstd.reshape(-1, 1)
        xhat = _normalise(rows, mean, rstd, None, None)
        _parameter_gradients(drows, xhat, dgamma, dbeta, accumulate, (0,))
        dx = _input_gradient(drows, xhat, rstd, gamma, (1,))
    else:
        dx = empty(rows.shape, x.dtype)
        kernel(drows, rows, gamma, mean.reshape(-1), rstd.reshape(-1), dx, dgamma, dbeta, accumulate)
    return dx.reshape(x.shape)


@_quiet
def rms_norm(x: np.ndarray, gamma: np.ndarray | None, axes: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    leading = x.shape[: x.ndim - axes]
    rows, gamma = _matrix(x, len(leading)), _flat(gamma)
    kernel = native.kernel("rms_norm", x)
    if kernel is None:
        mean_square = np.square(rows).mean(axis=1, dtype=np.float64, keepdims=True)
        rstd = 1 / np.sqrt(mean_square + eps)
        y = _normalise(rows, None, rstd, gamma, None)
    else:
        y, rstd = empty(rows.shape, x.dtype), empty(rows.shape[:1], np.float64)
        kernel(rows, gamma, eps, y, rstd)
    return y.reshape(x.shape), rstd.reshape(leading)


@_quiet
def rms_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray | None,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    accumulate: bool,
) -> np.ndarray:
    rows, drows = _matrix(x, rstd.ndim), _matrix(dy, rstd.ndim)
    gamma, dgamma = _flat(gamma), _flat(dgamma)
    kernel = native.kernel("rms_norm_backward", x)
    if kernel is None:
        rstd = rstd.reshape(-1, 1)
        xhat = _normalise(rows, None, rstd, None, None)
        _parameter_gradients(drows, xhat, dgamma, None, accumulate, (0,))
        dx = _input_gradient(drows, xhat, rstd, gamma, (1,), centred=False)
    else:
        dx = empty(rows.shape, x.dtype)
        kernel(drows, rows, gamma, rstd.reshape(-1), dx, dgamma, accumulate)
    return dx.reshape(x.shape)


def add_layer_norm(
    x: np.ndarray, residual: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, axes: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    total = _sum(x, residual)
    y, mean, rstd = layer_norm(total, gamma, beta, axes, eps)
    return y, total, mean, rstd


def add_layer_norm_backward(
    dy: np.ndarray,
    dtotal: np.ndarray | None,
    total: np.ndarray,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
) -> np.ndarray:
    dx = layer_norm_backward(dy, total, gamma, mean, rstd, dgamma, dbeta, accumulate)
    return dx if dtotal is None else np.add(dx, dtotal, out=dx)


def add_rms_norm(
    x: np.ndarray, residual: np.ndarray, gamma: np.ndarray | None, axes: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = _sum(x, residual)
    y, rstd = rms_norm(total, gamma, axes, eps)
    return y, total, rstd


def add_rms_norm_backward(
    dy: np.ndarray,
    dtotal: np.ndarray | None,
    total: np.ndarray,
    gamma: np.ndarray | None,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    accumulate: bool,
) -> np.ndarray:
    dx = rms_norm_backward(dy, total, gamma, rstd, dgamma, accumulate)
    return dx if dtotal is None else np.add(dx, dtotal, out=dx)


def _sum(x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return np.add(x, residual, out=empty(x.shape, x.dtype))


@_quiet
def group_norm(
    x: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, groups: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samples = _samples(x)
    mean, variance = _group_statistics(samples, groups)
    rstd = 1 / np.sqrt(variance + eps)
    return _normalise_groups(samples, mean, rstd, gamma, beta).reshape(x.shape), mean, rstd


@_quiet
def group_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
) -> np.ndarray:
    dx = _groups_backward(_samples(dy), _samples(x), gamma, mean, rstd, dgamma, dbeta, accumulate, False)
    return dx.reshape(x.shape)


@_quiet
def batch_norm(
    x: np.ndarray,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if training:
        mean, variance = channel_statistics(x)
        _follow(running_mean, running_var, mean, variance, math.prod(x.shape[:-1]), momentum)
    else:
        mean, variance = np.array(running_mean, np.float64), np.array(running_var, np.float64)
    y, rstd = _normalise_channels(x, mean, variance, gamma, beta, eps)
    return y, mean, rstd


@_quiet
def batch_norm_of(
    x: np.ndarray,
    mean: np.ndarray,
    rest: np.ndarray | None,
    variance: np.ndarray,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    if rest is not None:
        mean = mean.astype(np.float64) + rest
    _follow(running_mean, running_var, mean, variance, math.prod(x.shape[:-1]), momentum)
    return _normalise_channels(x, mean, variance, gamma, beta, eps)


@_quiet
def channel_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, biased variance) of each channel of (N, ..., C), in float64."""
    mean, variance = _group_statistics(_batch(x), x.shape[-1])
    return mean.reshape(-1), variance.reshape(-1)


def _follow(
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    mean: np.ndarray,
    variance: np.ndarray,
    count: int,
    momentum: float,
) -> None:
    """The running statistics move towards those of a batch of `count` values per channel."""
    if running_mean is not None and running_var is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * count / (count - 1) * variance


def _normalise_channels(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, rstd)."""
    rstd = 1 / np.sqrt(variance + eps)
    return _normalise_groups(_batch(x), mean[None], rstd[None], gamma, beta).reshape(x.shape), rstd


@_quiet
def batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
    training: bool,
) -> np.ndarray:
    dx = _groups_backward(_batch(dy), _batch(x), gamma, mean[None], rstd[None], dgamma, dbeta, accumulate, not training)
    return dx.reshape(x.shape)


# Group norm of samples (N, S, C), with statistics (N, groups). Batch norm is the case of one sample, which is the whole
# batch, and groups of one channel.


def _group_statistics(x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    shape = x.shape[0], groups
    kernel = native.kernel("group_norm_statistics", x)
    if kernel is None:
        mean, variance = _statistics(_grouped(x, groups), (1, 3))
        return mean.reshape(shape), variance.reshape(shape)
    mean, variance = empty(shape, np.float64), empty(shape, np.float64)
    kernel(x, mean, variance)
    return mean, variance


def _normalise_groups(
    x: np.ndarray, mean: np.ndarray, rstd: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None
) -> np.ndarray:
    groups = mean.shape[1]
    kernel = native.kernel("group_norm", x)
    if kernel is None:
        affine = _by_group(gamma, groups), _by_group(beta, groups)
        return _normalise(_grouped(x, groups), _spread(mean), _spread(rstd), *affine)
    y = empty(x.shape, x.dtype)
    kernel(x, gamma, beta, mean, rstd, y)
    return y


def _groups_backward(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
    constant: bool,
) -> np.ndarray:
    """`constant`: mean and rstd did not depend on x, so nothing is projected out."""
    kernel = native.kernel("group_norm_backward", x)
    if kernel is not None:
        dx = empty(x.shape, x.dtype)
        kernel(dy, x, gamma, mean, rstd, dx, dgamma, dbeta, accumulate, constant)
        return dx
    groups = mean.shape[1]
    mean, rstd = _spread(mean), _spread(rstd)
    dy, gamma = _grouped(dy, groups), _by_group(gamma, groups)
    xhat = _normalise(_grouped(x, groups), mean, rstd, None, None)
    _parameter_gradients(dy, xhat, _by_group(dgamma, groups), _by_group(dbeta, groups), accumulate, (0, 1))
    return _normalise(dy, None, rstd, gamma, None) if constant else _input_gradient(dy, xhat, rstd, gamma, (1, 3))


# The formulas that stand at the top of bp/ops/norm.py, for any axes of normalisation: statistics keep those axes, of
# size 1; gamma and beta broadcast against x.


def _statistics(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, biased variance) over `axes`, float64, the second from the deviations from the first."""
    mean = x.mean(axis=axes, dtype=np.float64, keepdims=True)
    deviation = np.subtract(x, mean, out=empty(x.shape, x.dtype))
    return mean, np.square(deviation, out=deviation).mean(axis=axes, dtype=np.float64, keepdims=True)


def _normalise(
    x: np.ndarray, mean: np.ndarray | None, rstd: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None
) -> np.ndarray:
    """gamma (x - mean) rstd + beta, where None leaves its part out."""
    y = empty(x.shape, x.dtype)
    scale = rstd.astype(x.dtype)
    if mean is None:
        np.multiply(x, scale, out=y)
    else:
        np.subtract(x, mean, out=y)  # in float64, then rounded
        y *= scale
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta
    return y


def _input_gradient(
    dy: np.ndarray,
    xhat: np.ndarray,
    rstd: np.ndarray,
    gamma: np.ndarray | None,
    axes: tuple[int, ...],
    centred: bool = True,
) -> np.ndarray:
    """rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) where the forward took no mean away; uses up xhat."""
    dx = empty(dy.shape, dy.dtype)
    g = dy if gamma is None else np.multiply(dy, gamma, out=empty(dy.shape, dy.dtype))
    xhat *= _mean(np.multiply(g, xhat, out=dx), axes)
    np.subtract(g, xhat, out=dx)
    if centred:
        dx -= _mean(g, axes)
    dx *= rstd.astype(dx.dtype)
    return dx


def _parameter_gradients(
    dy: np.ndarray,
    xhat: np.ndarray,
    dgamma: np.ndarray | None,
    dbeta: np.ndarray | None,
    accumulate: bool,
    axes: tuple[int, ...],
) -> None:
    if dgamma is not None:
        sums = np.multiply(dy, xhat, out=empty(dy.shape, dy.dtype)).sum(axis=axes, dtype=np.float64)
        dgamma[...] = dgamma + sums if accumulate else sums
    if dbeta is not None:
        sums = dy.sum(axis=axes, dtype=np.float64)
        dbeta[...] = dbeta + sums if accumulate else sums


def _mean(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """In float64, rounded to the dtype of the array."""
    return array.mean(axis=axes, dtype=np.float64, keepdims=True).astype(array.dtype)


# Shapes and kernels ---------------------------------------------------------------------------------------------------


def _matrix(x: np.ndarray, split: int) -> np.ndarray:
    """x as a C-contiguous matrix: axes before `split` make the rows, the others the columns."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def _flat(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.reshape(-1)


def _samples(x: np.ndarray) -> np.ndarray:
    """(N, ..., C) as (N, positions, C), C-contiguous."""
    return np.ascontiguousarray(x).reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def _batch(x: np.ndarray) -> np.ndarray:
    """(N, ..., C) as (1, values of a channel, C), C-contiguous."""
    return _matrix(x, x.ndim - 1)[None]


def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
    """(N, S, C) as (N, S, groups, C / groups)."""
    return x.reshape(*x.shape[:2], groups, x.shape[2] // groups)


def _spread(statistic: np.ndarray) -> np.ndarray:
    """(N, groups) so that it broadcasts against `_grouped`."""
    return statistic[:, None, :, None]


def _by_group(array: np.ndarray | None, groups: int) -> np.ndarray | None:
    """(C,) as (groups, C / groups): a view, so that it can be written through."""
    return None if array is None else array.reshape(groups, -1)
