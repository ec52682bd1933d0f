"""The rung "cublas" on stand-ins for CuPy and cuBLAS: what is handed over, what follows, and what it cannot do."""

from dataclasses import replace

import numpy as np
import pytest
import stand_in_cublas
import stand_in_cupy
from products import integers, ternary

import bp
import bp.ops.linear as ops
from bp.cuda import choice, gpu, tuning
from bp.cuda import linear as cuda
from bp.cuda.epilogue import Epilogue
from bp.cuda.plan import device as plan
from bp.cuda.product import WAYS, Matrices, Product
from bp.cuda.tuning import Entry, Table
from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import known_dtype
from bp.ops.device import find_device

DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def device(monkeypatch):
    stand_in_cupy.install(monkeypatch)
    made = gpu.GPUDevice()
    monkeypatch.setattr(gpu, "device", lambda: made)
    return made


@pytest.fixture
def asked(device, monkeypatch, force):
    """What was asked of cuBLAS, which computes every product of the test."""
    force("linear", "cublas")
    return stand_in_cublas.install(monkeypatch)


def on(device, array, dtype):
    return device.from_host(np.asarray(array).astype(known_dtype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("beta", [0.0, -2.0])
def test_a_plain_product_is_one_call(device, asked, way, dtype, beta):
    """Into the dtype of the factors, and into float32."""
    a, b, before = ternary(5, 9), ternary(9, 6, seed=1), integers(5, 6, seed=2)
    given = [on(device, x.T if t else x, dtype) for x, t in zip((a, b), WAYS[way], strict=True)]
    transposed = dict(zip(("transpose_a", "transpose_b"), WAYS[way], strict=True))
    for narrow in (True, False):
        c = on(device, before if beta else np.full((5, 6), np.nan), dtype if narrow else "float32")
        with device.recording() as ledger:
            cuda.gemm(*given, c, **transposed, epilogue=Epilogue(alpha=0.5, beta=beta))
        np.testing.assert_array_equal(device.to_host(c), 0.5 * (a @ b) + (beta * before if beta else 0))
        assert ledger.launches == [] and c.dtype == (given[0].dtype if narrow else np.float32)
    assert asked == 2 * [("gemmEx", stand_in_cublas.COMPUTE_32F, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_epilogue_is_one_launch_more(device, asked, dtype):
    x, weight, bias, residual = ternary(5, 9), ternary(6, 9, seed=1), integers(6, seed=2), integers(5, 6, seed=3)
    given = [on(device, array, dtype) for array in (x, weight, bias)]
    z = x @ weight.T + bias
    for activation, added, expected in (("relu", None, np.maximum(z, 0)), ("identity", residual, z + residual)):
        beside = None if added is None else on(device, added, dtype)
        with device.recording() as ledger:
            y, _ = ops.linear_activation(*given, activation, False, None, beside)
        assert [launch.variant.kernel.name for launch in ledger.launches] == ["add_parts"]
        np.testing.assert_array_equal(device.to_host(y), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_batches_with_gaps_between_rows_and_matrices(device, asked, bias):
    m, n, k, batch = 3, 5, 7, 2

    def within(rows, columns, seed):
        whole = ternary(batch, rows + 1, columns + 3, seed=seed)
        matrices = Matrices(on(device, whole, "float32"), rows, columns, columns + 3, batch, (rows + 1) * (columns + 3))
        return whole, matrices, whole[:, :rows, :columns]

    (_, a, left), (_, b, right), (whole, c, _) = (within(*s) for s in ((m, k, 0), (k, n, 1), (m, n, 2)))
    added = integers(n, seed=4) if bias else np.zeros(n, np.float32)
    cuda.gemm(a, b, c, epilogue=Epilogue(bias=on(device, added, "float32") if bias else None))
    whole[:, :m, :n] = left @ right + added
    np.testing.assert_array_equal(device.to_host(c.array), whole)
    assert asked == [("gemmStridedBatchedEx", stand_in_cublas.COMPUTE_32F, batch)]


def test_a_product_without_terms_asks_for_nothing(device, asked):
    x, weight, bias = (on(device, np.ones(shape), "float32") for shape in ((4, 0), (3, 0), (3,)))
    np.testing.assert_array_equal(device.to_host(ops.linear(x, weight, bias)), np.ones((4, 3)))
    c = on(device, np.full((4, 3), 2), "float32")
    cuda.gemm(x, weight, c, transpose_b=True, epilogue=Epilogue(beta=3.0))
    np.testing.assert_array_equal(device.to_host(c), np.full((4, 3), 6))
    assert asked == []


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_parameters(device, asked, accumulate):
    """dW in float32 whatever dy has; the bias gradient takes a launch of its own."""
    dy, x, before = ternary(8, 4), ternary(8, 6, seed=1), (integers(4, 6, seed=2), integers(4, seed=3))
    dweight, dbias = (on(device, array, "float32") for array in before)
    ops.linear_backward_parameters(on(device, dy, "bfloat16"), on(device, x, "bfloat16"), dweight, dbias, accumulate)
    np.testing.assert_array_equal(device.to_host(dweight), dy.T @ x + accumulate * before[0])
    np.testing.assert_array_equal(device.to_host(dbias), dy.sum(0) + accumulate * before[1])


def test_tf32_is_asked_for_where_the_precision_says_so(device, asked):
    x = on(device, np.ones((2, 2)), "float32")
    with device.running("tf32"):
        ops.linear(x, x, None)
        ops.linear(*(on(device, np.ones((2, 2)), "float16"),) * 2, None)
    assert [compute for _, compute, _ in asked] == [stand_in_cublas.FAST_TF32, stand_in_cublas.COMPUTE_32F]


def test_a_step_with_cublas_is_not_replayed_and_says_why(device, asked):
    """CuPy refuses to record cuBLAS, so a graph would be a step without its products."""
    said = []

    class Heard(bp.callbacks.Callback):
        def on_message(self, trainer, text):
            said.append(text)

    generator = np.random.default_rng(0)
    data = generator.standard_normal((8, 4)).astype("float32"), generator.integers(0, 3, 8)
    trainer = bp.Trainer(
        bp.Sequential(bp.Linear(4, 3)),
        *(bp.CrossEntropyLoss(), bp.SGD(lr=0.1)),
        device="cuda",
        precision="fp32",
        callbacks=[Heard()],
    )
    trainer.fit(data, max_steps=8)
    assert len(asked) == 16  # forward and the weight gradient, in each step
    (text,) = said
    assert text.startswith(
        "steps run launch by launch, not as one graph: cuBLAS, which CuPy cannot record, computes a "
    )


def test_elsewhere_it_is_refused_in_one_line(force):
    force("linear", "cublas")
    x = find_device("emulator").from_host(np.ones((2, 2), np.float32))
    with pytest.raises(ConfigurationError, match=r"BP_LINEAR=cublas cannot .*: a library of device 'cuda' alone") as e:
        ops.linear(x, x, None)
    assert "\n" not in str(e.value)


def test_elsewhere_a_table_with_it_counts_for_nothing(monkeypatch, tmp_path):
    emulator = find_device("emulator")
    x = emulator.from_host(np.ones((8, 64), np.float32))
    product = Product("nt", *map(Matrices.of, (x, x, emulator.zeros((8, 8), "float32"))))
    found = Entry(choice.Choice("cublas"), 1e-6, choice.Choice("tiled"), 2e-6, (8, 8, 64))
    table = Table(emulator.capability, "a GPU", tuning.version(), {tuning.shape_class(product.problem): found})
    tuning.write(tmp_path / "table.json", table)
    monkeypatch.setenv("BP_TUNING", str(tmp_path / "table.json"))
    choice.forget()
    np.testing.assert_array_equal(emulator.to_host(ops.linear(x, x, None)), np.full((8, 8), 64))
    assert choice.choose(replace(product.problem, library=True), emulator.capability).rung == "cublas"
    monkeypatch.undo()
    choice.forget()


@pytest.mark.parametrize("far", range(3))
def test_rows_further_apart_than_cublas_can_say(force, far):
    force("linear", "cublas")
    flat = plan.zeros((2**31 + 4,), "bfloat16")
    given = [Matrices(flat, 2, 2, 2**31 if place == far else 2**31 - 1) for place in range(3)]
    with pytest.raises(
        ShapeError, match=f"at most 2147483647 elements from row to row of {'abc'[far]}, got 2147483648"
    ):
        cuda.gemm(*given)
    cuda.gemm(*(Matrices(flat, 2, 2, 2**31 - 1) for _ in range(3)))


def test_a_plan_has_what_follows_it(force):
    force("linear", "cublas")
    x, bias = plan.zeros((2, 2), "float32"), plan.zeros((2,), "float32")
    with plan.recording() as ledger:
        ops.linear(x, x, bias)
    assert [launch.variant.kernel.name for launch in ledger.launches] == ["add_parts"]
