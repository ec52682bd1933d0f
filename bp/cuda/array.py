"""DeviceArray: an array that a kernel can read and write and the host cannot.

A GPU's arrays are `cupy.ndarray`. The emulator's lie in the memory of the host, where NumPy could compute on them and
hide that a kernel is missing; so they refuse every NumPy function and all arithmetic. What is left is what a launch
needs: shape, dtype, address, views of whole rows, and copies.
"""

import math
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bp.ops.array import Shape

if TYPE_CHECKING:
    from bp.cuda.device import CudaDevice


class _Flags:
    """As of a NumPy array: these arrays are always C-contiguous."""

    c_contiguous = True


class DeviceArray:
    """A C-contiguous array on a device that is no GPU; `get()` copies it to the host, as with CuPy.

    owner: whatever holds the memory; a view holds it too. pointer: address of the first element, 0 where there is no
    memory (a plan).
    """

    device: ClassVar["CudaDevice"]
    flags = _Flags()
    __array_ufunc__ = None  # NumPy's operators on the left of one of these refuse as well

    def __init__(self, shape: Shape, dtype: np.dtype[Any], pointer: int, owner: Any) -> None:
        self.shape = shape
        self.dtype = dtype
        self.pointer = pointer
        self.owner = owner

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> Shape:
        """Bytes from an element to the next along each axis."""
        return tuple(self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(self.ndim))

    def reshape(self, *shape: Any) -> "DeviceArray":
        """A view of another shape with as many elements; one size may be -1."""
        wanted = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
        if -1 in wanted:
            rest = -math.prod(wanted)
            wanted[wanted.index(-1)] = self.size // rest if rest else 0
        if math.prod(wanted) != self.size or min(wanted, default=0) < 0:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {tuple(shape)}")
        return type(self)(tuple(wanted), self.dtype, self.pointer, self._holder)

    def __getitem__(self, index: int | slice | EllipsisType) -> "DeviceArray":
        """A view: all of it (...), or a row or rows along the first axis."""
        if index is Ellipsis:
            return type(self)(self.shape, self.dtype, self.pointer, self._holder)
        if not isinstance(index, (int, slice)) or not self.shape:
            raise TypeError(f"an array on device '{self.device.name}' gives rows, got the index {index!r}")
        rows = range(len(self))[index]  # raises IndexError, as for a sequence
        first, shape = (rows, self.shape[1:]) if isinstance(rows, int) else (rows.start, (len(rows), *self.shape[1:]))
        if isinstance(rows, range) and rows.step != 1:
            raise TypeError(f"an array on device '{self.device.name}' gives rows that follow each other, got {index}")
        offset = first * math.prod(self.shape[1:]) * self.itemsize
        return type(self)(shape, self.dtype, self.pointer + offset if self.pointer else 0, self._holder)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Copy an array of the same device or a host array in, or fill with a number."""
        target = self[index]
        if isinstance(value, (DeviceArray, np.ndarray)) and value.shape:
            self.device.copy(target, value)
        else:
            self.device.fill(target, float(value))

    @property
    def _holder(self) -> Any:
        """What a view holds, so that the memory lives, and its slot counts as taken, as long as the view does."""
        return self.owner if isinstance(self.owner, DeviceArray) else self

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceArray":
        """A copy in memory of its own; a view becomes an array that is none."""
        new = memo[id(self)] = self.device.zeros(self.shape, self.dtype)
        self.device.copy(new, self)
        return new

    def __reduce__(self) -> Any:
        raise TypeError(
            f"an array on device '{self.device.name}' is memory of this process and is not pickled: take array.get()"
        )

    def get(self) -> np.ndarray:
        """A copy on the host."""
        return self.device.to_host(self)

    def item(self) -> Any:
        """The one element as a Python number."""
        return self.get().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array of shape () has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            f"an array on device '{self.device.name}' does not become a NumPy array by itself: array.get() copies it"
        )

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} does not take arrays on device '{self.device.name}'")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype}, device='{self.device.name}')"
