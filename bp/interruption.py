"""Ctrl-C between training steps: the step in progress ends whole, so that what is saved is a state of the run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class InterruptedBetweenSteps(KeyboardInterrupt):
    """The user interrupted, and the step in progress was finished first."""


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Within this block Ctrl-C sets the event; a second one interrupts at once, in the middle of a step."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread receives signals
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before: Any = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
