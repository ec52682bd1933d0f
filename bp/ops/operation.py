"""`@operation`: an operation is stated once and runs on the device that owns its first array.

A module of `bp/ops` states what its operations compute: signature and docstring. The body, where there
is one, checks the arguments, once for all devices, and raises before anything is computed. The
function of the same name in the module of the same name of a device's package (`bp/cpu`, `bp/cuda`)
computes it. Who adds an operation writes one function in each room and edits no list.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy

Function = TypeVar("Function", bound=Callable[..., Any])

# Array type -> the package that holds the operations on such arrays.
_packages: dict[type, str] = {numpy.ndarray: "bp.cpu"}

# Every operation that was stated, by "family.name"; the signature test walks it.
OPERATIONS: dict[str, Callable[..., Any]] = {}

# Of each operation, the functions that were found so far by array type; and who wants to know of calls.
_found: list[dict[type, Callable[..., Any]]] = []
_watchers: list[Callable[[str], Callable[[], None]]] = []


def _docstring_only() -> None:
    """The shape of a stub without checks."""


def register_device(array_type: type, package: str) -> None:
    """Let operations whose first array is an `array_type`, or of a subclass, run in `package` (such as `bp.cuda`)."""
    _packages[array_type] = package


def implementation(package: str, family: str, name: str) -> Callable[..., Any]:
    """The function that computes operation `family.name` in a device's `package`.

    Raises ImportError or AttributeError where the device lacks the family or the operation.
    """
    function: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{family}"), name)
    return function


@contextmanager
def watch_operations(opened: Callable[[str], Callable[[], None]]) -> Iterator[None]:
    """Within this block `opened` is called with "family.name" where an operation begins to compute, its arguments
    checked, and what it gives is called at the end; an operation that calls another lies around it.

    Nobody pays for it who does not ask: devices' functions are looked up anew on both sides of the block, and are
    wrapped only within it.
    """
    _watchers.append(opened)
    _look_up_anew()
    try:
        yield
    finally:
        _watchers.remove(opened)
        _look_up_anew()


def _look_up_anew() -> None:
    for by_type in _found:
        by_type.clear()


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or while somebody watches one that tells of each call."""
    if not _watchers:
        return function

    def call(*arguments: Any, **named: Any) -> Any:
        closing = [opened(name) for opened in _watchers]
        try:
            return function(*arguments, **named)
        finally:
            for close in reversed(closing):
                close()

    return call


def operation(stub: Function) -> Function:
    """Turn a documented stub into the operation: a call goes to the device of the first argument.

    The look-up is one dictionary access by array type (about 0.2 us); the device's function is found
    once, at the first call with arrays of that type. The stub itself is called first where it has checks.
    """
    family, name = stub.__module__.rpartition(".")[2], stub.__name__
    has_checks = len(stub.__code__.co_code) > len(_docstring_only.__code__.co_code)
    by_type: dict[type, Callable[..., Any]] = {}
    _found.append(by_type)

    def resolve(first: Any) -> Callable[..., Any]:
        package = next((_packages[base] for base in type(first).__mro__ if base in _packages), None)
        if package is None:
            known = ", ".join(sorted(t.__name__ for t in _packages))
            raise TypeError(
                f"{family}.{name}: the first argument is a {type(first).__name__}; expected an array of a known "
                f"device ({known})"
            )
        function = by_type[type(first)] = _watched(f"{family}.{name}", implementation(package, family, name))
        return function

    @functools.wraps(stub)
    def dispatch(first: Any, *rest: Any, **named: Any) -> Any:
        function = by_type.get(type(first))
        if function is None:
            function = resolve(first)
        if has_checks:
            stub(first, *rest, **named)
        return function(first, *rest, **named)

    OPERATIONS[f"{family}.{name}"] = dispatch
    return dispatch  # type: ignore[return-value]  # functools.wraps keeps the stub's signature for readers
