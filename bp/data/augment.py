"""Augmentation and normalisation: transforms of a batch, each one NumPy pass or two over it.

A transform is called as `transform(x, y, generator)` and returns (x, y). It draws from the given generator only, never
writes into what it is given, and leaves y alone unless it says otherwise. Images are (N, H, W, C), C-contiguous, uint8
in 0..255 or float; a geometric transform keeps their dtype and fills with zeros, which is black before `Normalize` and
the mean after it. Wrong ranks raise ShapeError, wrong types DtypeError.
"""

import numpy as np

from bp.data.dataset import Batch, Transform
from bp.errors import ConfigurationError, DataError, DtypeError, ShapeError


class Compose:
    """The given transforms, one after the other."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        for transform in self.transforms:
            x, y = transform(x, y, generator)
        return x, y


class ToFloat:
    """uint8 in 0..255 to float32 in [0, 1], any shape; float32 and float64 pass as they are."""

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image_type("ToFloat", x)
        if x.dtype != np.uint8:
            return x, y
        out = x.astype(np.float32)
        out *= 1 / 255
        return out, y


class Normalize:
    """(x - mean) / std by channel, the last axis; uint8 counts as x / 255 and becomes float32, floats keep their dtype.

    mean, std: one number a channel, or one for all, in units of [0, 1]; std is positive.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if len(mean) != len(std) or not mean:
            raise ConfigurationError(f"Normalize expected as many means as deviations, got {len(mean)} and {len(std)}")
        if not all(value > 0 for value in std):
            raise ConfigurationError(f"Normalize expected positive deviations, got {std}")
        self.mean, self.std = mean, std
        self._rows: dict[tuple[int, np.dtype], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image_type("Normalize", x)
        if x.ndim < 2 or (len(self.mean) > 1 and x.shape[-1] != len(self.mean)):
            raise ShapeError(f"Normalize expected {len(self.mean)} channels along the last axis, got shape {x.shape}")
        scale, shift = self._row(x)
        out = x.reshape(len(x), scale.size).astype(shift.dtype)
        out *= scale
        out += shift
        return out.reshape(x.shape), y

    def _row(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factor and summand of every element of a sample: one long inner loop where three channels made short ones."""
        size = int(np.prod(x.shape[1:]))
        if (size, x.dtype) not in self._rows:
            channels = len(self.mean)
            mean, std = np.asarray(self.mean), np.asarray(self.std)
            unit = 255 if x.dtype == np.uint8 else 1
            dtype = np.float32 if x.dtype == np.uint8 else x.dtype
            self._rows[size, x.dtype] = (
                np.tile(1 / (unit * std), size // channels).astype(dtype),
                np.tile(-mean / std, size // channels).astype(dtype),
            )
        return self._rows[size, x.dtype]


class OneHot:
    """Integer labels (N,) to float32 targets (N, classes); inputs pass as they are."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        return x, _one_hot("OneHot", y, self.classes, np.dtype(np.float32))


class RandomHorizontalFlip:
    """Each image mirrored left to right with `probability`."""

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ConfigurationError(f"RandomHorizontalFlip expected a probability in [0, 1], got {probability}")
        self.probability = probability

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image("RandomHorizontalFlip", x)
        chosen = generator.random(len(x)) < self.probability
        out = np.array(x, order="C")
        pixels = _pixels(out)
        pixels[chosen] = pixels[chosen][:, :, ::-1]
        return out, y


class RandomCrop:
    """Windows of size (height, width) at random places of the image framed by `padding` zeros on each side.

    size: None keeps the size of the input. Returns (N, height, width, C).
    Source of the usual padding of 4 on CIFAR-10: Lee et al., Deeply-Supervised Nets (2015).
    """

    def __init__(self, size: tuple[int, int] | None = None, *, padding: int = 0) -> None:
        if padding < 0 or (size is not None and min(size) < 1):
            raise ConfigurationError(f"RandomCrop expected a positive size and padding >= 0, got {size} and {padding}")
        self.size, self.padding = size, padding

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image("RandomCrop", x)
        size = x.shape[1:3] if self.size is None else self.size
        rows, columns = (x.shape[axis + 1] + 2 * self.padding - size[axis] + 1 for axis in (0, 1))
        if rows < 1 or columns < 1:
            raise ShapeError(f"RandomCrop expected images of at least {size} with the padding, got shape {x.shape}")
        top, left = generator.integers(rows, size=len(x)), generator.integers(columns, size=len(x))
        return _windows(_framed(x, self.padding, self.padding), top, left, size), y


class RandomTranslate:
    """Each image shifted by whole pixels, uniformly up to `rows` up or down and `columns` left or right."""

    def __init__(self, rows: int, columns: int) -> None:
        if rows < 0 or columns < 0:
            raise ConfigurationError(f"RandomTranslate expected shifts of at least 0, got {rows} and {columns}")
        self.rows, self.columns = rows, columns

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image("RandomTranslate", x)
        top = generator.integers(2 * self.rows + 1, size=len(x))
        left = generator.integers(2 * self.columns + 1, size=len(x))
        return _windows(_framed(x, self.rows, self.columns), top, left, x.shape[1:3]), y


class Cutout:
    """A square of `size` pixels a side set to zero in each image, its centre anywhere, clipped at the border.

    Source: DeVries, Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (2017).
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigurationError(f"Cutout expected a size of at least 1, got {size}")
        self.size = size

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        _is_image("Cutout", x)
        count, height, width = x.shape[:3]
        top, left = generator.integers(height, size=(count,)), generator.integers(width, size=(count,))
        rows = np.arange(height) - top[:, None] + self.size // 2
        columns = np.arange(width) - left[:, None] + self.size // 2
        cut = ((rows >= 0) & (rows < self.size))[:, :, None] & ((columns >= 0) & (columns < self.size))[:, None]
        out = np.array(x, order="C")
        pixels = _pixels(out)
        pixels[cut] = np.zeros((), pixels.dtype)
        return out, y


class Mixup:
    """x = t x_i + (1 - t) x_j and y = t y_i + (1 - t) y_j.

    A batch draws one t from Beta(alpha, alpha) and one permutation j.
    x: float. y: integer labels (N,), which become soft targets (N, classes) of the dtype of x, or floats, which are
    mixed as they are. Source: Zhang, Cisse, Dauphin, Lopez-Paz, mixup: Beyond Empirical Risk Minimization (2018).
    """

    def __init__(self, alpha: float, classes: int) -> None:
        if not alpha > 0:
            raise ConfigurationError(f"Mixup expected alpha > 0, got {alpha}")
        self.alpha, self.classes = alpha, classes

    def __call__(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        if x.dtype.kind != "f":
            raise DtypeError(f"Mixup expected float inputs (put ToFloat or Normalize before it), got {x.dtype}")
        targets = y if y.dtype.kind == "f" else _one_hot("Mixup", y, self.classes, x.dtype)
        share = float(generator.beta(self.alpha, self.alpha))
        other = generator.permutation(len(x))
        return _mixed(x, other, share), _mixed(targets, other, share)


def _pixels(x: np.ndarray) -> np.ndarray:
    """A view (N, H, W) of C-contiguous images with a pixel's channels as one item.

    NumPy moves those 2 to 5 times as fast as it moves rows of three bytes.
    """
    return x.view(np.dtype((np.void, x.shape[3] * x.itemsize)))[..., 0]


def _mixed(array: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    out = array[other]
    out *= 1 - share
    out += share * array
    return out


def _framed(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The images with a frame of zeros of that many pixels."""
    count, height, width, channels = x.shape
    framed = np.zeros((count, height + 2 * rows, width + 2 * columns, channels), x.dtype)
    framed[:, rows : rows + height, columns : columns + width] = x
    return framed


def _windows(framed: np.ndarray, top: np.ndarray, left: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The window of `size` at (top, left), integers (N,), of each image.

    One gather through a view that holds every window, with the columns and channels of a row as one contiguous run.
    """
    count, height, width, channels = framed.shape
    image, row, column, item = framed.strides
    shape = (count, height - size[0] + 1, width - size[1] + 1, size[0], size[1] * channels)
    every = np.lib.stride_tricks.as_strided(framed, shape, (image, row, column, row, item), writeable=False)
    return every[np.arange(count), top, left].reshape(count, *size, channels)


def _one_hot(name: str, y: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DtypeError(f"{name} expected integer labels of shape (N,), got {y.dtype} of shape {y.shape}")
    if y.size and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise DataError(f"{name} expected labels in 0..{classes - 1}, got {y.min()}..{y.max()}")
    out = np.zeros((len(y), classes), dtype)
    out[np.arange(len(y)), y] = 1
    return out


def _is_image_type(name: str, x: np.ndarray) -> None:
    if x.dtype not in (np.uint8, np.float32, np.float64):
        raise DtypeError(f"{name} expected uint8, float32 or float64, got {x.dtype}")


def _is_image(name: str, x: np.ndarray) -> None:
    _is_image_type(name, x)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ShapeError(f"{name} expected images (N, H, W, C), got shape {x.shape}")
