"""The test table: one line a case, and the checks that every case of a layer goes through.

A family's test file lists its cases and runs them:

    CASES = [Case(lambda: bp.Linear(5, 3), (4, 5), reference=lambda layer, x: x @ layer.weight.value.T + ...), ...]

    @pytest.mark.parametrize("check", LAYER_CHECKS)
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_layer(case, check):
        check(case)

The float64 CPU result is the reference for every other precision, device and native kernel; it is itself checked
against an independent formula (forward), central differences (backward) and PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import bp
from bp.checking import check as check_gradients
from bp.checking import tolerance


@dataclass
class Case:
    """One layer on one input shape (with the batch).

    reference: (layer, x) -> y, an independent float64 formula of the forward. torch: (layer, torch, x) -> y, the same
    computation in PyTorch, where parameters are reached by `parameters(layer)`. length: terms of the longest sum, for
    the tolerance. integers: inputs are drawn from range(integers) instead of N(0, 1).
    """

    make: Callable[[], bp.Layer]
    shape: tuple[int, ...]
    reference: Callable[[Any, np.ndarray], np.ndarray] | None = None
    torch: Callable[[Any, Any, Any], Any] | None = None
    length: int = 1
    integers: int = 0
    training: bool = True
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name or type(self.make()).__name__}-{'x'.join(map(str, self.shape))}"

    def build(self, dtype: str) -> tuple[bp.Layer, np.ndarray]:
        """The layer with random parameters and buffers that are not at special values, and an input."""
        generator = np.random.default_rng(1)
        layer = self.make()
        layer.build(self.shape[1:], dtype="float64", seed=1)
        for _, parameter in layer.named_parameters():
            parameter.value = parameter.value + 0.1 * generator.standard_normal(parameter.shape)
        for _, buffer in layer.named_buffers():
            buffer.value = buffer.value + 0.1 * np.abs(generator.standard_normal(buffer.shape))
        if self.integers:
            return layer.copy(dtype=dtype), generator.integers(0, self.integers, self.shape)
        return layer.copy(dtype=dtype), generator.standard_normal(self.shape).astype(dtype)

    def run(self, dtype: str) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """(y, dx, gradients by name) for an output gradient that depends on the shape alone."""
        layer, x = self.build(dtype)
        ctx = bp.Context(training=self.training, saving=True, step=0)
        y = layer.forward(x, ctx)
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(dtype)
        dx = layer.backward(dy, ctx)
        assert ctx.open_layers == []
        assert y.dtype == dtype and y.flags.c_contiguous
        if not self.integers:
            assert dx.dtype == dtype and dx.shape == x.shape
        gradients = {name: np.array(p.grad) for name, p in layer.named_parameters()}
        return y, dx, gradients


def assert_close(actual: Any, expected: Any, relative: float, what: str = "result") -> None:
    """Relative Frobenius error at most `relative`, and NaN and infinity in the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    error = np.linalg.norm(actual[finite] - expected[finite])
    size = np.linalg.norm(expected[finite])
    # A sum that cancels to almost nothing keeps the absolute rounding of its terms, taken as of size 1.
    allowed = relative * max(size, np.sqrt(finite.sum()) * 1.0)
    assert error <= allowed, f"{what}: error {error:.3g} is {error / allowed if allowed else np.inf:.1f} x the allowed"


def matches_reference(case: Case) -> None:
    """The float64 forward equals an independent formula."""
    if case.reference is None:
        pytest.skip("this case has no formula of its own; PyTorch and the central differences check it")
    layer, x = case.build("float64")
    ctx = bp.Context(training=case.training, saving=True, step=0)
    assert_close(layer.forward(x, ctx), case.reference(layer, x), tolerance("float64", case.length), "forward")


def matches_central_differences(case: Case) -> None:
    """The float64 backward is the derivative of the forward, along the input and every parameter."""
    layer, x = case.build("float64")
    check_gradients(layer, x, training=case.training)


def matches_in_float32(case: Case) -> None:
    """float32 (with native kernels where they are built) equals float64 within rounding."""
    y64, dx64, gradients64 = case.run("float64")
    y32, dx32, gradients32 = case.run("float32")
    # A gradient is a sum over the batch of terms that are sums themselves.
    relative = tolerance("float32", case.length * max(1, case.shape[0]))
    assert_close(y32, y64, relative, "forward")
    if not case.integers:
        assert_close(dx32, dx64, relative, "input gradient")
    for name, gradient in gradients64.items():
        assert_close(gradients32[name], gradient, relative, f"gradient of {name}")


def matches_torch(case: Case) -> None:
    """Forward and every gradient equal PyTorch's in float64."""
    if case.torch is None:
        pytest.skip("PyTorch has no such layer")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    layer, x = case.build("float64")
    ours = {name: torch.tensor(np.array(p.value), requires_grad=True) for name, p in layer.named_parameters()}
    tx = torch.tensor(x, requires_grad=not case.integers)
    ty = case.torch(TorchView(layer, ours), torch, tx)
    y, dx, gradients = case.run("float64")
    relative = tolerance("float64", case.length * max(1, case.shape[0]))
    assert_close(y, ty.detach().numpy(), relative, "forward")
    ty.backward(torch.tensor(np.random.default_rng(2).standard_normal(y.shape)))
    if not case.integers:
        assert_close(dx, tx.grad.numpy(), relative, "input gradient")
    for name, tensor in ours.items():
        expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        assert_close(gradients[name], expected, relative, f"gradient of {name}")


class TorchView:
    """A layer as the PyTorch side of a case sees it: `p["weight"]` is the tensor, `p.layer` the bp layer."""

    def __init__(self, layer: bp.Layer, tensors: dict[str, Any]) -> None:
        self.layer = layer
        self._tensors = tensors

    def __getitem__(self, name: str) -> Any:
        return self._tensors.get(name)


LAYER_CHECKS = [matches_reference, matches_central_differences, matches_in_float32, matches_torch]
