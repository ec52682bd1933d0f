"""Losses: the table of their cases, and everything that is special about a batch, a label or a logit."""

import functools

import numpy as np
import pytest
from any_threads import expect_same_on_any_threads
from loss_cases import CASES, term_weights, value_and_gradient
from table import KERNEL_DEVICE, assert_close

import bp
import bp.ops.loss as ops
from bp.checking import tolerance
from bp.cpu import native
from bp.ops import control as block


def with_reductions(function):
    pairs = [(case, reduction) for case in CASES for reduction in case.make.reductions]
    return pytest.mark.parametrize(("case", "reduction"), pairs, ids=str)(function)


def relative(case, dtype="float64"):
    return tolerance(dtype, int(np.prod(case.shape)))


@with_reductions
def test_forward_is_the_formula(case, reduction):
    x, t = case.batch()
    terms, denominator = case.reference(x, t)
    divisor = {"mean": denominator, "batchmean": len(x), "sum": 1}.get(reduction)
    expected = terms if divisor is None else terms.sum() / divisor
    assert_close(case.run(reduction)[0], expected, relative(case))


# PyTorch announces that the mean of kl_div will become another one day; bp's stays the mean over elements.
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")
@with_reductions
def test_forward_and_gradient_are_those_of_pytorch(case, reduction):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    x, t = case.batch()
    tx = torch.tensor(x, requires_grad=True)
    tt = torch.tensor(t if t.dtype.kind == "f" else t.astype(np.int64))
    expected = case.torch(torch.nn.functional, tx, tt, reduction)
    value, gradient = case.run(reduction)
    assert_close(value, expected.detach().numpy(), relative(case), "loss")
    expected.backward(torch.tensor(term_weights(value)) if reduction == "none" else None)
    assert_close(gradient, tx.grad.numpy(), relative(case), "gradient")


@with_reductions
def test_gradient_is_the_central_difference(case, reduction):
    x, t = case.batch()
    loss = case.loss(reduction)
    h = np.finfo(np.float64).eps ** (1 / 3)
    direction = np.random.default_rng(5).standard_normal(x.shape)

    def value(x):
        losses = loss.forward(x, t, bp.Context())
        return float((losses * term_weights(losses)).sum() if reduction == "none" else losses)

    terms = case.run(reduction)[1] * direction
    # As `bp.checking.compare`: truncation and rounding balance at this h; the gradient itself is a difference of ones.
    rounding = tolerance("float64") * np.abs(direction).sum()
    allowed = 100 * h**2 * (abs(value(x)) + np.abs(terms).sum()) + rounding
    assert abs(terms.sum() - (value(x + h * direction) - value(x - h * direction)) / (2 * h)) <= allowed


@pytest.mark.parametrize("kernels", ["native", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_float64(case, kernels, monkeypatch):
    if kernels == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    elif native.kernels is None:
        pytest.skip("the native extension is not built")
    for reduction in ("sum", "none"):
        for ours, reference in zip(case.run(reduction, "float32"), case.run(reduction), strict=True):
            assert_close(ours, reference, relative(case, "float32"))


@pytest.mark.parametrize(
    ("case", "reduction"),
    [(c, r) for c in CASES if c.reference(*c.batch())[0].ndim for r in c.make.reductions if r != "none"],
    ids=str,
)
def test_micro_batches_that_share_a_denominator_give_the_whole_batch(case, reduction):
    whole, gradient = case.run(reduction)
    cut = min(2, case.shape[0] - 1)
    total = case.loss(reduction).count(case.batch()[1])
    parts = [case.run(reduction, part=part, denominator=total) for part in (slice(0, cut), slice(cut, None))]
    assert_close(sum(value for value, _ in parts), whole, relative(case), "loss")
    assert_close(np.concatenate([g for _, g in parts]), gradient, relative(case), "gradient")
    counts = [case.loss(reduction).count(case.batch()[1][part]) for part in (slice(0, cut), slice(cut, None))]
    assert sum(counts) == pytest.approx(total, rel=tolerance("float64"))


# Special batches -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["float64", "float32-numpy", "float32-native", "float32-emulator"])
def dtype(request, monkeypatch):
    """Every path a loss can take; `value_and_gradient` takes it."""
    if request.param == "float32-emulator":
        on_emulator = functools.partial(value_and_gradient, device=KERNEL_DEVICE)
        monkeypatch.setitem(globals(), "value_and_gradient", on_emulator)
    if request.param == "float32-numpy":
        monkeypatch.setattr(native, "kernels", None)
    if request.param == "float32-native" and native.kernels is None:
        pytest.skip("the native extension is not built")
    return np.dtype(request.param.partition("-")[0])


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) > 1], ids=str)
def test_empty_batch(case, dtype):
    for reduction in case.make.reductions:
        x, t = (a[:0] for a in case.batch(dtype))
        value, gradient = value_and_gradient(case.loss(reduction), x, t)
        assert value.shape == (t.shape if reduction == "none" and t.ndim < x.ndim else value.shape)
        assert value.sum() == 0 and gradient.shape == x.shape and gradient.dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("make", [bp.CrossEntropyLoss, bp.NLLLoss])
@pytest.mark.parametrize("settings", [{}, {"weight": [1, 2, 0.5]}])
def test_a_batch_of_ignored_labels_has_no_loss_and_no_gradient(make, settings, reduction, dtype):
    # PyTorch divides 0 by 0. What stands in an ignored row, even NaN, does not matter.
    x = np.array([[1, 2, 3], [np.nan, np.inf, 0], [-np.inf] * 3], dtype)
    value, gradient = value_and_gradient(make(**settings, reduction=reduction), x, np.full(3, -100))
    assert not value.any() and not gradient.any()


def test_an_ignored_row_of_nan_leaves_the_others_alone(dtype):
    x = np.array([[1, 2, 3], [np.nan] * 3], dtype)
    for smoothing in (0.0, 0.1):
        loss = bp.CrossEntropyLoss(label_smoothing=smoothing)
        value, gradient = value_and_gradient(loss, x, np.array([0, -100]))
        alone, alone_gradient = value_and_gradient(loss, x[:1], np.array([0]))
        assert value == alone
        np.testing.assert_array_equal(gradient, [alone_gradient[0], np.zeros(3)])


def test_only_labels_of_weight_zero(dtype):
    loss = bp.CrossEntropyLoss(weight=[0, 1, 1])
    value, gradient = value_and_gradient(loss, np.array([[-np.inf, 0, 1.0]], dtype), np.array([0]))
    assert value == 0 and not gradient.any()


def test_one_class_costs_nothing(dtype):
    value, gradient = value_and_gradient(bp.CrossEntropyLoss(), np.array([[3.0], [-1e4]], dtype), np.array([0, 0]))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_extreme_logits_of_cross_entropy(size, dtype):
    x = np.array([[size, -size, 0], [size, -size, 0]], dtype)
    soft = np.eye(3, dtype=dtype)
    with np.errstate(over="ignore"):
        apart = np.float64(x[0, 0]) - np.float64(x[0, 1])
        expected = np.array([0, apart], np.float64).astype(dtype)
    for t in (np.array([0, 1]), soft[[0, 1]]):
        value, gradient = value_and_gradient(bp.CrossEntropyLoss(reduction="none"), x, t)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(gradient, [[0, 0, 0], [1, -1, 0]])


@pytest.mark.parametrize("weight", [None, [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
@pytest.mark.parametrize("soft", [False, True])
def test_masked_classes_of_cross_entropy(soft, weight, dtype):
    x = np.array([[0, -np.inf, 0]], dtype)
    t = np.array([[1, 0, 0]], dtype) if soft else np.array([0])
    value, gradient = value_and_gradient(bp.CrossEntropyLoss(weight=weight), x, t)
    assert_close(value, np.log(2.0), tolerance(dtype))
    np.testing.assert_array_equal(gradient, np.array([[-0.5, 0, 0.5]], dtype))
    # Smoothing puts weight on the masked class, unless its weight is zero.
    value, gradient = value_and_gradient(bp.CrossEntropyLoss(weight=weight, label_smoothing=0.3), x, t)
    masked_counts = weight is None or weight[1] > 0
    assert np.isinf(value) if masked_counts else np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] == (pytest.approx(-0.1, rel=tolerance(dtype)) if masked_counts else 0)


def test_the_label_itself_masked(dtype):
    value, gradient = value_and_gradient(bp.CrossEntropyLoss(), np.array([[-np.inf, 0, 0]], dtype), np.array([0]))
    assert value == np.inf
    np.testing.assert_array_equal(gradient, np.array([[-1, 0.5, 0.5]], dtype))


@pytest.mark.parametrize("row", [[np.nan, 0, 1], [-np.inf] * 3, [np.inf, 0, 1]])
def test_rows_without_a_softmax_are_nan(row, dtype):
    for t in (np.array([0, 1]), np.eye(3, dtype=dtype)[:2]):
        value, gradient = value_and_gradient(bp.CrossEntropyLoss(reduction="none"), np.array([row, [0] * 3], dtype), t)
        assert np.isnan(value[0]) and np.isfinite(value[1])
        assert np.isnan(gradient[0]).any() and np.isfinite(gradient[1]).all()


@pytest.mark.parametrize(
    ("loss", "x", "t", "value", "slope"),
    [
        (bp.BCEWithLogitsLoss, 1e4, 1, 0, 0),
        (bp.BCEWithLogitsLoss, -1e4, 1, 1e4, -1),
        (bp.BCEWithLogitsLoss, -np.inf, 0, 0, 0),
        (bp.BCEWithLogitsLoss, np.inf, 1, 0, 0),
        (bp.BCEWithLogitsLoss, np.inf, 0, np.inf, 1),
        (bp.BCEWithLogitsLoss, -50, 0, np.exp(-50.0), np.exp(-50.0)),  # no cancellation: relative precision is kept
        (bp.BCEWithLogitsLoss, 50, 1, np.exp(-50.0), -np.exp(-50.0)),
        (bp.KLDivLoss, -np.inf, 0, 0, 0),
        (bp.KLDivLoss, -1e4, 0, 0, 0),
        (bp.KLDivLoss, -np.inf, 0.5, np.inf, -0.5),
        (lambda **k: bp.KLDivLoss(log_target=True, **k), -np.inf, -np.inf, 0, 0),
        (lambda **k: bp.KLDivLoss(log_target=True, **k), -1e4, 0, 1e4, -1),
        (bp.HingeLoss, -np.inf, 1, np.inf, -1),
        (bp.HingeLoss, 1, 1, 0, 0),  # the kink
        (bp.HingeLoss, 1e4, -1, 10001, 1),
        (bp.L1Loss, 2, 2, 0, 0),
        (bp.L1Loss, -np.inf, 2, np.inf, -1),
        (bp.HuberLoss, np.inf, 0, np.inf, 1),
        (bp.HuberLoss, -1, 0, 0.5, -1),  # the seam
        (bp.MSELoss, 3e38, 0, None, 6e38),
    ],
)
def test_extreme_predictions(loss, x, t, value, slope, dtype):
    x, t = np.array([x], dtype), np.array([t], dtype)
    with np.errstate(over="ignore"):
        expected = np.asarray(np.float64(x[0]) ** 2 if value is None else value).astype(dtype)
        expected_slope = np.asarray(slope, np.float64).astype(dtype)
    for reduction in ("sum", "none"):
        actual, gradient = value_and_gradient(loss(reduction=reduction), x, t)
        np.testing.assert_allclose(actual.reshape(()), expected, rtol=tolerance(dtype))
        np.testing.assert_allclose(gradient[0], expected_slope, rtol=tolerance(dtype))


def test_nan_predictions_show(dtype):
    for case in CASES:
        x, t = case.batch(dtype)
        if t.dtype.kind == "f":
            x[...] = np.nan
            assert np.isnan(value_and_gradient(case.loss("sum"), x, t)[0])


def test_inputs_need_not_be_contiguous_and_stay_as_they_are(dtype):
    x = np.random.default_rng(0).standard_normal((6, 10)).astype(dtype)
    t = np.arange(12)[::2] % 5
    kept = x.copy()
    value, gradient = value_and_gradient(bp.CrossEntropyLoss(), x[:, ::2], t)
    expected, expected_gradient = value_and_gradient(bp.CrossEntropyLoss(), x[:, ::2].copy(), t.copy())
    np.testing.assert_array_equal(x, kept)
    assert value == expected and not np.shares_memory(gradient, x)
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_native_result_does_not_depend_on_the_number_of_threads():
    script = (
        "import hashlib, numpy as np, bp\n"
        "x = np.random.default_rng(0).standard_normal((1999, 67)).astype('float32')\n"
        "ctx, loss = bp.Context(training=True), bp.CrossEntropyLoss(label_smoothing=0.1)\n"
        "value = loss.forward(x, np.arange(1999) % 67, ctx)\n"
        "print(hashlib.sha256(value.tobytes() + loss.backward(ctx).tobytes()).hexdigest())\n"
    )
    expect_same_on_any_threads(script)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_in_a_row_without_weight_leaves_no_gradient(smoothing, dtype):
    x = np.array([[np.nan, 1, 2], [np.inf, 0, 1], [-np.inf] * 3], dtype)
    weight = [0, 0, 0] if smoothing else [0, 1, 1]
    for t in (np.zeros(3, np.int64), np.array([[1, 0, 0]] * 3, dtype)):
        loss = bp.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction="sum")
        value, gradient = value_and_gradient(loss, x, t)
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros((3, 3)))


@pytest.fixture(params=["float64", "float32-numpy", "float32-native"])
def cpu_dtype(request, monkeypatch):
    """Every path on the CPU."""
    if request.param == "float32-numpy":
        monkeypatch.setattr(native, "kernels", None)
    if request.param == "float32-native" and native.kernels is None:
        pytest.skip("the native extension is not built")
    return np.dtype(request.param.partition("-")[0])


def test_a_huge_unsigned_label_is_not_the_one_to_ignore(cpu_dtype):
    labels = np.array([0, 2**64 - 100], np.uint64)
    with pytest.raises(bp.errors.DataError, match=rf"got {2**64 - 100} at index \(1,\)"):
        bp.CrossEntropyLoss().forward(np.zeros((2, 3), cpu_dtype), labels, bp.Context(training=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_of_cross_entropy_in_place_of_the_logits(smoothing, cpu_dtype):
    logits, labels = np.random.default_rng(0).standard_normal((4, 3)).astype(cpu_dtype), np.array([0, 2, -100, 1])
    arguments = labels, None, np.ones(block.SIZE), -100, smoothing
    losses, gradient = ops.softmax_cross_entropy(logits, *arguments, True)
    np.testing.assert_array_equal(ops.softmax_cross_entropy(logits, *arguments, False, logits)[0], losses)
    in_place = ops.softmax_cross_entropy(logits, *arguments, True, logits)
    assert in_place[1] is logits
    np.testing.assert_array_equal(in_place[0], losses)
    np.testing.assert_array_equal(logits, gradient)


def elementwise(operation, x, t, weight, gradient=True, out=None):
    control = np.ones(block.SIZE)
    control[block.LOSS_DENOMINATOR] = x.size
    before = () if operation is ops.squared_error else (weight,)
    return operation(x, t, *before, control, gradient, out)


# Vectors and what is left of them, and pieces for several threads.
@pytest.mark.parametrize("weight", [None, 2.5, "by column"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (15,), (3, 7), (41, 25), (1 << 12, 33)], ids=str)
@pytest.mark.parametrize("operation", [ops.squared_error, ops.binary_cross_entropy])
def test_elementwise_losses_of_every_size(operation, shape, weight, cpu_dtype):
    generator = np.random.default_rng(0)
    x, t = 3 * generator.standard_normal(shape), generator.random(shape)
    if weight is not None:
        weight = np.asarray(2.5 if weight == 2.5 else generator.random(shape[-1]))
    expected = elementwise(operation, x, t, weight)
    x, t = x.astype(cpu_dtype), t.astype(cpu_dtype)
    weight = None if weight is None else weight.astype(cpu_dtype)
    losses, gradient = elementwise(operation, x, t, weight)
    assert losses.dtype == gradient.dtype == cpu_dtype
    assert_close(losses, expected[0], tolerance(cpu_dtype))
    # Gradients are small by the number of terms: compared as those of their sum.
    assert_close(gradient * x.size, expected[1] * x.size, tolerance(cpu_dtype))
    np.testing.assert_array_equal(elementwise(operation, x, t, weight, False)[0], losses)

    spread = np.stack([x, t], axis=-1)
    assert not np.shares_memory(elementwise(operation, spread[..., 0], spread[..., 1], weight)[1], spread)
    for actual, alike in zip(
        elementwise(operation, spread[..., 0], spread[..., 1], weight), (losses, gradient), strict=True
    ):
        np.testing.assert_array_equal(actual, alike)

    in_place = elementwise(operation, x, t, weight, True, x)
    assert in_place[1] is x
    np.testing.assert_array_equal(in_place[0], losses)
    np.testing.assert_array_equal(x, gradient)


@pytest.mark.parametrize("operation", [ops.squared_error, ops.binary_cross_entropy])
def test_elementwise_losses_of_special_values(operation, cpu_dtype):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4], cpu_dtype)
    x, t = (a.ravel() for a in np.meshgrid(special, np.array([0.0, 1.0, 0.5], cpu_dtype)))
    with np.errstate(all="ignore"):
        expected = elementwise(operation, x.astype("float64"), t.astype("float64"), None)
    for actual, exact in zip(elementwise(operation, x, t, None), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=tolerance(cpu_dtype))


@pytest.mark.parametrize("operation", [ops.squared_error, ops.binary_cross_entropy])
def test_a_place_for_the_gradient_that_does_not_fit(operation):
    x = np.zeros((4, 3), "float32")
    for out in (np.zeros((3, 4), "float32"), np.zeros((4, 3)), np.zeros((3, 4), "float32").T):
        with pytest.raises(bp.errors.BPError, match=f"{operation.__name__} expected .*out"):
            elementwise(operation, x, x, None, True, out)


@pytest.mark.parametrize("case", [c for c in CASES if c.shape == (6, 7)], ids=str)
def test_terms_in_place_are_the_terms(case, cpu_dtype):
    x, t = case.batch(cpu_dtype)
    loss, control = case.loss("sum"), np.ones(block.SIZE)
    expected = loss.terms(x, t, control, True)
    done = loss.terms_in_place(x, t, control)
    if done is None:
        np.testing.assert_array_equal(x, case.batch(cpu_dtype)[0])
        return
    assert done[1] is x
    for actual, alike in zip(done, expected, strict=True):
        np.testing.assert_array_equal(actual, alike)


def test_class_weight_need_not_be_contiguous(cpu_dtype):
    x, labels = np.random.default_rng(0).standard_normal((4, 3)).astype(cpu_dtype), np.array([0, 1, 2, 1])
    weight = np.arange(6, dtype=cpu_dtype)[::2]
    control = np.ones(block.SIZE)
    results = [ops.softmax_cross_entropy(x, labels, w, control, -100, 0.1, True) for w in (weight, weight.copy())]
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)
