"""Which layer is running, and in which pass: for the ledger of launches and for the ranges of a profiler.

Nobody pays for it who does not ask: layers enter a scope only while `watch` is on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_stack: list[tuple[str, str]] = []
_watchers: list[Callable[[str], Callable[[], None]]] = []
watched = False


def current() -> tuple[str, str]:
    """(label of the layer, pass) of the innermost scope; empty strings outside."""
    return _stack[-1] if _stack else ("", "")


@contextmanager
def watch(opened: Callable[[str], Callable[[], None]] | None = None) -> Iterator[None]:
    """Within this block layers enter their scopes.

    opened: called with "LABEL PASS" at the beginning of each, gives what is called at its end.
    """
    global watched
    before, watched = watched, True
    if opened is not None:
        _watchers.append(opened)
    try:
        yield
    finally:
        watched = before
        if opened is not None:
            _watchers.remove(opened)


@contextmanager
def enter(label: str, phase: str) -> Iterator[None]:
    """What runs within this block runs for the layer of that label, in that pass ("forward", "backward", "step")."""
    _stack.append((label, phase))
    closing = [opened(f"{label} {phase}") for opened in _watchers]
    try:
        yield
    finally:
        for close in reversed(closing):
            close()
        _stack.pop()
