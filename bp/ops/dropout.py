"""Dropout: every element is dropped with probability `rate`, and those that are kept are scaled up in return.

Random bits come from Philox4x32-10, a function of a key and a counter and of nothing else, so a mask is never stored:
backward computes it again, and it is the same on every device and under recompute.

* key = (control[SEED_LOW], control[SEED_HIGH])
* counter = (chunk low, chunk high, control[FORWARD_COUNTER], call site), each of 32 bits
* chunk = logical index // 8, where the logical index of x.ravel()[i] is first_element + i

One Philox call gives four words w0, w1, w2, w3 of 32 bits, that is 16 bits for each of the eight elements of a chunk:
element j of the chunk (logical index % 8) takes word j // 2, its low half where j is even and its high half where j is
odd. An element is kept where its 16 bits, as a number, are at least round(65536 rate), at most 65535.

The probability of being kept is therefore q = 1 - round(65536 rate) / 65536, and kept elements are multiplied by 1 / q,
not by 1 / (1 - rate): the expectation of y is x exactly.
Sources: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout (2014); Salmon, Moraes, Dror, Shaw, Parallel
Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from dataclasses import dataclass

from bp.errors import ConfigurationError, DtypeError
from bp.ops.array import Array, is_floating
from bp.ops.operation import operation

LEVELS = 1 << 16  # of the 16 random bits of an element


def dropped_levels(rate: float) -> int:
    """How many of the 65536 values of an element's bits drop it: the rate as it is carried out.

    At least one value keeps, so that the scale 65536 / (65536 - this) exists.
    """
    return min(round(rate * LEVELS), LEVELS - 1)


def _check(name: str, array: Array, rate: float) -> None:
    if not is_floating(array.dtype):
        raise DtypeError(f"{name} expected an array of a floating dtype, got {array.dtype}")
    if not 0 <= rate < 1:
        raise ConfigurationError(f"{name} expected a rate in [0, 1), got {rate}")


@dataclass(frozen=True, eq=False)
class Mask:
    """What draws the mask of one dropout, for an operation that drops elements of its result on the way.

    The first four fields are the arguments of `dropout`, which draws the very same mask from them. in_kept: in the
    gradient of a ReLU and its dropout, whether the array that was kept is zero wherever an element was dropped: then
    its zeros are the mask, which need not be drawn again, and what is left to apply is the scale.
    Raises ConfigurationError for a rate outside [0, 1).
    """

    control: Array
    call_site: int
    first_element: int
    rate: float
    in_kept: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigurationError(f"Mask expected a rate in [0, 1), got {self.rate}")

    @property
    def scale(self) -> float:
        """1 / q: what kept elements are multiplied by."""
        return LEVELS / (LEVELS - dropped_levels(self.rate))


@operation
def dropout(x: Array, control: Array, call_site: int, first_element: int, rate: float) -> Array:
    """y = x / q where kept, else 0 (also where x is not finite).

    x: any shape; control: the block of `bp.ops.control`; call_site: the number of this use of dropout within the
    pass; first_element: logical index, in the global batch, of the first element of x. Returns y like x.
    Raises DtypeError for integers and ConfigurationError for a rate outside [0, 1).
    """
    _check("dropout", x, rate)


@operation
def dropout_backward(dy: Array, control: Array, call_site: int, first_element: int, rate: float) -> Array:
    """dx = dy / q where kept, else 0: y is x times a mask that does not depend on x, so dx is dy times the same mask.

    The arguments are those of the forward; the mask is drawn again from them.
    """
    _check("dropout_backward", dy, rate)
