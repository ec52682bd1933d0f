"""StepGraph: a whole training step, forward to optimizer, launched as one.

A launch costs the host some microseconds, a small step is dozens of them. The first steps of each batch shape run
launch by launch and are recorded. Once two in a row are equal, kernel for kernel and argument for argument, the step
is captured, and from then on replayed: as a CUDA graph on a GPU, from the recorded list on the emulator. What changes
from step to step is not among the arguments: it lies in the control block, in device memory.

A replayed step runs no Python, so what somebody sets between two steps (the rate of a dropout, another loss) would go
unseen. So settings are compared before each step, object by object, and what was recorded under others is forgotten.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np

from bp.cuda.device import CudaDevice
from bp.cuda.ledger import Ledger
from bp.ops.array import Array, Shape
from bp.ops.device import StepSettings

Work = Callable[[Sequence[Array]], None]

_ATTEMPTS = 4  # recorded steps in which two in a row have to be equal
_SHAPES = 8  # of batches that get a graph each; further ones run launch by launch


class StepGraph:
    """Runs a step on batches of host arrays, replayed where that is possible.

    reason: why steps are not replayed, once that is known; None as long as they are, or may be.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.reason: str | None = None
        self._by_shape: dict[tuple[tuple[Shape, Any], ...], _Recorded] = {}
        self._memory = device.StepMemory()  # of the steps that are not recorded
        self._settings: StepSettings | None = None
        self._forgotten = 0  # times in a row, with no replayed step between

    def run(self, batch: Sequence[np.ndarray], work: Work, settings: Callable[[], StepSettings]) -> None:
        """Bring the arrays of a batch to the device and do `work` on them there.

        The launches of `work` may depend on the shapes of the arrays, on what `settings` gives, and on nothing else
        that changes. Its memory is the graph's own: no array of it may be kept.
        """
        self._forget_other(settings())
        recorded = self._recorded(batch)
        if recorded is None:
            with self._memory:
                work([self.device.from_host(array) for array in batch])
        else:
            inputs = recorded.place(batch)
            if recorded.replay is not None:
                self._forgotten = 0
                recorded.replay()
                return
            with recorded.memory:
                self.reason = recorded.attempt(inputs, work)
            if self.reason is not None:
                self._by_shape.clear()
        self._settings = settings()  # what the work itself sets shows in its launches

    @property
    def replaying(self) -> bool:
        """Whether a step of some shape is replayed."""
        return any(recorded.replay is not None for recorded in self._by_shape.values())

    def _recorded(self, batch: Sequence[np.ndarray]) -> "_Recorded | None":
        """What is known of the steps of this shape; None where they are not to be replayed."""
        key = tuple((array.shape, array.dtype) for array in batch)
        if key not in self._by_shape and self.reason is None and len(self._by_shape) < _SHAPES:
            self._by_shape[key] = _Recorded(self.device, batch)
        return self._by_shape.get(key)

    def _forget_other(self, settings: StepSettings) -> None:
        """Forget what was recorded under other settings; where they change again and again, replay nothing."""
        replaced = None if self._settings is None else _replaced(self._settings, settings)
        self._settings = settings
        if replaced is None:
            return
        self._by_shape.clear()
        self._forgotten += 1
        if self._forgotten == _ATTEMPTS and self.reason is None:
            self.reason = f"{replaced} is set anew between steps"


def _replaced(before: StepSettings, now: StepSettings) -> str | None:
    """The first setting that is another object than before, as "OWNER: NAME"; None where all are the same."""
    for owner, values in now.items():
        old = before.get(owner, {})
        if len(old) == len(values) and all(map(is_, old.values(), values.values())):
            continue
        return next((f"{owner}: {name}" for name, v in values.items() if name not in old or old[name] is not v), owner)
    return None


class _Recorded:
    """The steps of one batch shape."""

    def __init__(self, device: CudaDevice, batch: Sequence[np.ndarray]) -> None:
        self.device = device
        self.memory = device.StepMemory()
        self.replay: Callable[[], None] | None = None
        self._places = [device.stage(array.shape, array.dtype) for array in batch]
        self._last: Ledger | None = None
        self._attempts = 0

    def place(self, batch: Sequence[np.ndarray]) -> list[Array]:
        """The arrays of a batch on the device, where those of every batch lie."""
        for place, array in zip(self._places, batch, strict=True):
            place.put(array)
        return [place.static for place in self._places]

    def attempt(self, inputs: Sequence[Array], work: Work) -> str | None:
        """Do the step, recorded; where it equals the one before, capture it for the next. Returns what prevents it.

        What happens in the first step alone, such as the upload of a constant, prevents nothing.
        """
        with self.device.recording() as ledger:
            work(inputs)
        last, self._last = self._last, ledger
        self._attempts += 1
        if ledger.transfer is not None:
            difference: str | None = f"{ledger.transfer} within the step"
        else:
            difference = last.difference(ledger) if last is not None and last.transfer is None else None
            if last is not None and last.transfer is None and difference is None:
                self.replay = self.device.replay(ledger)
        return difference if self._attempts >= _ATTEMPTS else None
