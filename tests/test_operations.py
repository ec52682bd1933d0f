"""Operations: each device has each one with the signature that `bp.ops` states, and a call finds the right device."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import bp.ops
from bp.ops import operation as dispatch
from bp.ops.operation import OPERATIONS, implementation, operation, register_device

for module in pkgutil.iter_modules(bp.ops.__path__):
    importlib.import_module(f"bp.ops.{module.name}")

DEVICES = sorted(set(dispatch._packages.values()))


def test_operations_were_found():
    assert {"linear.linear", "activation.gelu_backward", "dropout.dropout", "loss.mean_of_terms"} <= set(OPERATIONS)


def form(function):
    """Names, order, kinds and defaults of a function's parameters; annotations differ, as arrays do."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_device_has_every_operation_with_the_same_signature(name, device):
    family, _, function = name.partition(".")
    assert form(implementation(device, family, function)) == form(OPERATIONS[name])


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_documented(name):
    documentation = inspect.getdoc(OPERATIONS[name])
    assert documentation and documentation.split("\n")[0].endswith((".", ":", ","))


@pytest.mark.parametrize("name", sorted(name for name in OPERATIONS if "_backward" in name))
def test_every_backward_has_its_forward(name):
    assert name.split("_backward")[0] in OPERATIONS


def test_a_call_with_something_that_is_no_array():
    import bp.ops.linear as ops

    for wrong, kind in (([[1.0]], "list"), (1.0, "float"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"linear\.linear: the first argument is a {kind}; expected .*ndarray.*\)"):
            ops.linear(wrong, np.ones((1, 1)), None)


def test_a_subclass_of_an_array_runs_where_the_array_does(tmp_path):
    import bp.ops.linear as ops

    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4, 3))
    x[...] = np.arange(12).reshape(4, 3)
    weight = np.ones((2, 3), np.float32)
    y = ops.linear(x, weight, None)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, ops.linear(np.array(x), weight, None))


class OtherArray:
    """An array of a device that has no operations."""


def test_a_device_without_the_operation(monkeypatch):
    import bp.ops.linear as ops

    monkeypatch.setattr(dispatch, "_packages", dict(dispatch._packages))
    register_device(OtherArray, "bp.no_such_device")
    with pytest.raises(ImportError, match=r"bp\.no_such_device"):
        ops.linear_backward_input(OtherArray(), OtherArray())


def test_checks_run_before_anything_is_computed(monkeypatch):
    computed = []
    monkeypatch.setattr(dispatch, "implementation", lambda *where: lambda *arguments: computed.append(arguments))
    monkeypatch.setattr(dispatch, "OPERATIONS", {})

    @operation
    def double(x):
        """y = 2 x."""
        if x.ndim != 1:
            raise bp.errors.ShapeError("double expected one axis")

    with pytest.raises(bp.errors.ShapeError):
        double(np.ones((2, 2)))
    assert computed == []
    double(np.ones(2))
    assert len(computed) == 1
