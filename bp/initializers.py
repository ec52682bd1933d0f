"""Initializers: how the first value of a parameter is drawn, so that signals neither vanish nor explode."""

import hashlib
import math
from typing import Literal, Protocol

import numpy as np

from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import Shape

Mode = Literal["fan_in", "fan_out"]


class Initializer(Protocol):
    """Draws a float64 array of the given shape from a generator."""

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray: ...


def generator_for(seed: int, name: str) -> np.random.Generator:
    """The generator for the parameter of that name: independent of every other parameter and of their order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out): how many inputs an output sums over, and how many outputs an input feeds.

    shape: (out, in) of a Linear weight, or (out, kernel_height, kernel_width, in / groups) of a convolution. For a
    transposed convolution, (in, kernel_height, kernel_width, out / groups), the two change places, as in PyTorch.
    Raises ShapeError below rank 2.
    """
    if len(shape) < 2:
        raise ShapeError(f"an initializer that scales by fan expected a weight of rank 2 or more, got shape {shape}")
    receptive_field = math.prod(shape[1:-1])
    return shape[-1] * receptive_field, shape[0] * receptive_field


def gain(nonlinearity: str, negative_slope: float = 0.01) -> float:
    """The factor by which weights have to grow to make up for what the nonlinearity takes from a signal.

    1 for linear, identity and sigmoid, 5/3 for tanh, sqrt(2) for relu, sqrt(2 / (1 + negative_slope^2)) for
    leaky_relu, 3/4 for selu: PyTorch's table. A ReLU passes half of the second moment, hence sqrt(2).
    Raises ConfigurationError for another name.
    """
    table = {
        "linear": 1.0,
        "identity": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1.0 + negative_slope**2)),
        "selu": 0.75,
    }
    if nonlinearity not in table:
        raise ConfigurationError(f"no gain for nonlinearity '{nonlinearity}': expected one of {', '.join(table)}")
    return table[nonlinearity]


class Constant:
    """Every element `value`: 1 for the scales of normalisations."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return np.full(shape, float(self.value))


class Zeros(Constant):
    """All zero: for biases, and for the last layer of a branch that should start as the identity."""

    def __init__(self) -> None:
        super().__init__(0.0)


class Ones(Constant):
    """All one."""

    def __init__(self) -> None:
        super().__init__(1.0)


class Uniform:
    """Uniform on [low, high)."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not -math.inf < low <= high < math.inf:
            raise ConfigurationError(f"Uniform expected low <= high, both finite, got {low} and {high}")
        self.low = low
        self.high = high

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(self.low, self.high, shape)


class Normal:
    """Normal with the given mean and standard deviation."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not (math.isfinite(mean) and 0 <= std < math.inf):
            raise ConfigurationError(f"Normal expected a finite mean and std >= 0, got {mean} and {std}")
        self.mean = mean
        self.std = std

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return generator.normal(self.mean, self.std, shape)


class TruncatedNormal:
    """Normal with the given mean and std before values outside [low, high] are drawn again.

    Raises ConfigurationError where less than 1% of the distribution lies inside.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0) -> None:
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ConfigurationError(f"TruncatedNormal expected a finite mean and std > 0, got {mean} and {std}")
        inside = (math.erf((high - mean) / (std * math.sqrt(2))) - math.erf((low - mean) / (std * math.sqrt(2)))) / 2
        if not inside >= 0.01:
            raise ConfigurationError(
                f"TruncatedNormal expected bounds with at least 1% of the distribution between them, got "
                f"[{low}, {high}] for mean {mean} and std {std}"
            )
        self.mean = mean
        self.std = std
        self.low = low
        self.high = high

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        values = generator.normal(self.mean, self.std, math.prod(shape))
        while (outside := np.flatnonzero((values < self.low) | (values > self.high))).size:
            values[outside] = generator.normal(self.mean, self.std, outside.size)
        return values.reshape(shape)


class _Scaled:
    """Base of the initializers whose standard deviation follows from the shape, uniform or normal about 0."""

    uniform = False

    def std(self, shape: Shape) -> float:
        """The standard deviation for a weight of that shape."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it draws")

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        std = self.std(shape)
        if self.uniform:
            limit = math.sqrt(3.0) * std  # a uniform draw on [-limit, limit] has the variance limit^2 / 3
            return generator.uniform(-limit, limit, shape)
        return generator.normal(0.0, std, shape)


class XavierNormal(_Scaled):
    """Normal with std = gain sqrt(2 / (fan_in + fan_out)): a compromise of keeping signals and keeping gradients.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks (2010).
    """

    def __init__(self, gain: float = 1.0) -> None:
        if not 0 < gain < math.inf:
            raise ConfigurationError(f"{type(self).__name__} expected a finite gain > 0, got {gain}")
        self.gain = gain

    def std(self, shape: Shape) -> float:
        return self.gain * math.sqrt(2.0 / max(1, sum(fans(shape))))


class XavierUniform(XavierNormal):
    """As `XavierNormal` with a uniform draw: limit = gain sqrt(6 / (fan_in + fan_out))."""

    uniform = True


class KaimingNormal(_Scaled):
    """Normal with std = gain / sqrt(fan): keeps the second moment of signals (fan_in) or of gradients (fan_out).

    A sum of fan_in terms has fan_in times the variance of one; `gain` makes up for the nonlinearity behind it.
    Source: He, Zhang, Ren, Sun, Delving Deep into Rectifiers (2015), eq. 10 and 14.
    """

    def __init__(self, mode: Mode = "fan_in", nonlinearity: str = "relu", negative_slope: float = 0.01) -> None:
        if mode not in ("fan_in", "fan_out"):
            raise ConfigurationError(f"{type(self).__name__} expected mode 'fan_in' or 'fan_out', got {mode!r}")
        self.mode = mode
        self.gain = gain(nonlinearity, negative_slope)

    def std(self, shape: Shape) -> float:
        return self.gain / math.sqrt(max(1, fans(shape)[self.mode == "fan_out"]))


class KaimingUniform(KaimingNormal):
    """As `KaimingNormal` with a uniform draw: limit = gain sqrt(3 / fan)."""

    uniform = True


class LecunNormal(KaimingNormal):
    """Normal with std = 1 / sqrt(fan_in): for SELU, and for layers without a nonlinearity behind them.

    Source: LeCun, Bottou, Orr, Müller, Efficient BackProp (1998).
    """

    def __init__(self) -> None:
        super().__init__(nonlinearity="linear")


class LecunUniform(LecunNormal):
    """As `LecunNormal` with a uniform draw: limit = sqrt(3 / fan_in)."""

    uniform = True


class Orthogonal:
    """gain times a random matrix with orthonormal rows or columns, whichever are fewer: it keeps lengths exactly.

    A convolution's weight counts as the matrix (out, the rest). Q of the QR decomposition of a normal draw, with the
    signs of R's diagonal, is uniform over all such matrices. Source: Saxe, McClelland, Ganguli, Exact solutions to
    the nonlinear dynamics of learning in deep linear neural networks (2014); Mezzadri (2007) for the signs.
    """

    def __init__(self, gain: float = 1.0) -> None:
        if not 0 < gain < math.inf:
            raise ConfigurationError(f"Orthogonal expected a finite gain > 0, got {gain}")
        self.gain = gain

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        if len(shape) < 2:
            raise ShapeError(f"Orthogonal expected a weight of rank 2 or more, got shape {shape}")
        rows, columns = shape[0], math.prod(shape[1:])
        normal = generator.normal(size=(max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


class Dirac:
    """A weight that passes its input on: the identity matrix, or a convolution with 1 at the centre of the kernel.

    shape: (out, in), or (out, kernel_height, kernel_width, in / groups). In each of `groups` groups output channel i
    gets input channel i; where there are more outputs than inputs, the others are zero. With an odd kernel, stride 1
    and padding of half a kernel the convolution is the identity. Source: Zagoruyko and Komodakis, DiracNets (2017).
    """

    def __init__(self, groups: int = 1) -> None:
        if groups < 1:
            raise ConfigurationError(f"{type(self).__name__} expected groups of at least 1, got {groups}")
        self.groups = groups

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        if len(shape) < 2 or shape[0] % self.groups:
            raise ShapeError(
                f"{type(self).__name__} expected a weight of rank 2 or more whose {self.groups} groups divide the "
                f"outputs, got shape {shape}"
            )
        weight = np.zeros(shape)
        centre = tuple(size // 2 for size in shape[1:-1])
        for group in range(self.groups):
            first = group * (shape[0] // self.groups)
            for channel in range(min(shape[0] // self.groups, shape[-1])):
                weight[(first + channel, *centre, channel)] = 1.0
        return weight


class Identity(Dirac):
    """The identity matrix, for a Linear weight (out, in); the same as `Dirac` with one group."""

    def __init__(self) -> None:
        super().__init__()
