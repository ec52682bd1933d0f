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

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import bp
from bp.checking import check as check_gradients
from bp.checking import tolerance
from bp.ops.array import known_dtype
from bp.ops.device import find_device

# Where the tests run the kernels of `kernels/`: "emulator", or "cuda" on a machine with a GPU.
KERNEL_DEVICE = os.environ.get("BP_TEST_DEVICE", "emulator")

Run = tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]


@dataclass
class Case:
    """One layer on one input shape (with the batch).

    reference: (layer, x) -> y, an independent float64 formula of the forward. torch: (layer, torch, x) -> y, the same
    computation in PyTorch, where parameters are reached by `parameters(layer)`. length: terms of the longest sum, for
    the tolerance. roundings: how many roundings to 16 bits lie one behind the other on the way. integers: inputs are
    drawn from range(integers) instead of N(0, 1).
    """

    make: Callable[[], bp.Layer]
    shape: tuple[int, ...]
    reference: Callable[[Any, np.ndarray], np.ndarray] | None = None
    torch: Callable[[Any, Any, Any], Any] | None = None
    length: int = 1
    roundings: int = 4
    integers: int = 0
    training: bool = True
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name or type(self.make()).__name__}-{'x'.join(map(str, self.shape))}"

    def build(self, dtype: str, device: str = "cpu", drawn: str | None = None) -> tuple[bp.Layer, np.ndarray]:
        """The layer with random parameters and buffers that are not at special values, and an input.

        drawn: a dtype to which the input is rounded before it is given in `dtype` (None: to no other).
        """
        generator = np.random.default_rng(1)
        layer = self.make()
        layer.build(self.shape[1:], dtype="float64", seed=1)
        for _, parameter in layer.named_parameters():
            parameter.value = parameter.value + 0.1 * generator.standard_normal(parameter.shape)
        for _, buffer in layer.named_buffers():
            buffer.value = buffer.value + 0.1 * np.abs(generator.standard_normal(buffer.shape))
        built = layer.copy(device=device, dtype=dtype)
        if self.integers:
            return built, generator.integers(0, self.integers, self.shape)
        x = generator.standard_normal(self.shape).astype(known_dtype(drawn or dtype))
        return built, x.astype(known_dtype(dtype))

    def run(self, dtype: str, device: str = "cpu", drawn: str | None = None) -> Run:
        """(y, dx, gradients by name) on the host, for an output gradient that depends on the shape alone."""
        layer, x = self.build(dtype, device, drawn)
        owner = find_device(device)
        ctx = bp.Context(training=self.training, saving=True, step=0)
        y = layer.forward(owner.from_host(x), ctx)
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(known_dtype(dtype))
        dx = layer.backward(owner.from_host(dy), ctx)
        assert ctx.open_layers == []
        assert y.dtype == dtype and y.flags.c_contiguous
        if not self.integers:
            assert dx.dtype == dtype and dx.shape == x.shape
        gradients = {name: np.array(owner.to_host(p.grad)) for name, p in layer.named_parameters()}
        return owner.to_host(y), None if dx is None else owner.to_host(dx), gradients


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


def matches_on_emulator(case: Case) -> None:
    """The CUDA kernels in float32, run on the emulator, equal float64 within rounding, in any order of blocks.

    With BP_TEST_DEVICE=cuda, here and below, they run on a GPU, each case three times.
    """
    expected = case.run("float64")
    relative = tolerance("float32", case.length * max(1, case.shape[0]))
    results = []
    with emulating(detector=True, seed=0):
        results.append(case.run("float32", KERNEL_DEVICE))
    _assert_run_close(case, results[0], expected, relative)
    for seed in (1, 2):
        with emulating(detector=False, seed=seed):
            results.append(case.run("float32", KERNEL_DEVICE))
        for first, other in zip(_flat(results[0]), _flat(results[-1]), strict=True):
            np.testing.assert_array_equal(first, other, err_msg="the result depends on the order of threads")


def matches_in_16_bits(case: Case) -> None:
    """float16 and bfloat16 on the emulator equal float64 within the rounding of what is stored."""
    for dtype in ("float16", "bfloat16"):
        # Of the same rounded input: in bfloat16 two elements are often equal, and a maximum is another one of them.
        expected = case.run("float64", drawn=dtype)
        with emulating(detector=False, seed=0):
            actual = case.run(dtype, KERNEL_DEVICE)
        # Inputs, parameters, the result and what lies between are rounded; sums run in float32.
        _assert_run_close(case, actual, expected, tolerance(dtype, case.roundings))


def _assert_run_close(case: Case, actual: Run, expected: Run, relative: float) -> None:
    assert_close(actual[0], expected[0], relative, "forward")
    if not case.integers:
        assert_close(actual[1], expected[1], relative, "input gradient")
    for name, gradient in expected[2].items():
        assert_close(actual[2][name], gradient, relative, f"gradient of {name}")


def _flat(run: Run) -> list[np.ndarray]:
    y, dx, gradients = run
    return [a for a in (y, dx, *gradients.values()) if a is not None]


@contextmanager
def emulating(*, detector: bool, seed: int) -> Iterator[None]:
    """Within this block the emulator watches each access or not, and runs threads in the order of that seed."""
    if KERNEL_DEVICE != "emulator":
        yield
        return
    device = find_device("emulator")
    before = device.detector, device.seed
    device.detector, device.seed = detector, seed
    try:
        yield
    finally:
        device.detector, device.seed = before


LAYER_CHECKS = [
    matches_reference,
    matches_central_differences,
    matches_in_float32,
    matches_torch,
    matches_on_emulator,
    matches_in_16_bits,
]
