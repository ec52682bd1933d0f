"""Which layer is running, and in which pass: for the ledger of launches and for the ranges of a profiler.

Nobody pays for it who does not ask: layers enter a scope only while `watch` is on.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _OfThread(threading.local):
    """The scopes that the running thread is in, outermost first."""

    def __init__(self) -> None:
        self.stack: list[tuple[str, str]] = []


_here = _OfThread()
_lock = threading.Lock()
_blocks = 0  # of `watch` that are open, in whichever thread
_watchers: list[Callable[[str], Callable[[], None]]] = []
watched = False


def current() -> tuple[str, str]:
    """(label of the layer, pass) of the innermost scope; empty strings outside."""
    return _here.stack[-1] if _here.stack else ("", "")


@contextmanager
def watch(opened: Callable[[str], Callable[[], None]] | None = None) -> Iterator[None]:
    """Within this block layers enter their scopes.

    opened: called with "LABEL PASS" at the beginning of each, gives what is called at its end.
    """
    _count(1)
    if opened is not None:
        _watchers.append(opened)
    try:
        yield
    finally:
        _count(-1)
        if opened is not None:
            _watchers.remove(opened)


def _count(change: int) -> None:
    global watched, _blocks
    with _lock:
        _blocks += change
        watched = _blocks > 0


@contextmanager
def enter(label: str, phase: str) -> Iterator[None]:
    """What runs within this block runs for the layer of that label, in that pass ("forward", "backward", "step")."""
    _here.stack.append((label, phase))
    closing = [opened(f"{label} {phase}") for opened in _watchers]
    try:
        yield
    finally:
        for close in reversed(closing):
            close()
        _here.stack.pop()
