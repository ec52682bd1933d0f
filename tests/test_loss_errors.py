"""Losses: the order of calls, and what is refused with which message."""

import numpy as np
import pytest
from loss_cases import value_and_gradient

import bp
import bp.ops.loss as ops
from bp.cpu import native
from bp.errors import BackwardError, BPError, ConfigurationError, DataError, DtypeError, ShapeError
from bp.ops import control as block


def test_backward_without_forward_or_in_another_order_names_the_loss():
    loss, ctx = bp.MSELoss(), bp.Context(training=True)
    with pytest.raises(BackwardError, match="MSELoss: backward without a matching forward"):
        loss.backward(ctx)
    loss.forward(np.ones(3), np.ones(3), ctx)
    with pytest.raises(BackwardError, match=r"L1Loss: backward in the wrong order.*MSELoss"):
        bp.L1Loss().backward(ctx)


def test_gradient_of_single_terms():
    x, t = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([0, 1])
    loss, ctx = bp.CrossEntropyLoss(reduction="none"), bp.Context(training=True)
    loss.forward(x, t, ctx)
    gradient = loss.backward(ctx, np.array([0.0, 2.0]))
    expected = value_and_gradient(bp.CrossEntropyLoss(reduction="sum"), x, t)[1] * np.array([[0.0], [2.0]])
    np.testing.assert_array_equal(gradient, expected)
    loss.forward(x, t, ctx)
    with pytest.raises(ShapeError, match=r"expected dlosses of shape \(2,\), got \(2, 1\)"):
        loss.backward(ctx, np.ones((2, 1)))
    mean = bp.CrossEntropyLoss()
    mean.forward(x, t, ctx := bp.Context(training=True))
    with pytest.raises(ConfigurationError, match="dlosses with reduction none, not mean"):
        mean.backward(ctx, np.ones(2))


def test_calling_a_loss_checks_and_computes():
    assert bp.MSELoss()(np.array([1.0, 3.0]), np.array([0.0, 0.0])) == 5
    with pytest.raises(DataError, match="got 7 at index"):
        bp.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 7]))


@pytest.mark.parametrize("kernels", ["native", "numpy"])
@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_outside_the_classes_is_refused_without_a_check_too(label, kernels, monkeypatch):
    if kernels == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    x, t = np.zeros((2, 3), "float32"), np.array([-100, label])
    for loss in (bp.CrossEntropyLoss(), bp.NLLLoss()):
        with pytest.raises(DataError, match=rf"in 0..2 \(or -100 to ignore\), got {label} at index \(1,\)"):
            loss.forward(x, t, bp.Context(training=True))
    with pytest.raises(DataError, match=rf"in 0..2, got {label} at index \(1,\)"):
        bp.MultiMarginLoss().forward(x, np.array([0, label]), bp.Context(training=True))


def test_native_kernel_checks_sizes():
    kernel = getattr(native.kernels, "softmax_cross_entropy", None)
    if kernel is None:
        pytest.skip("the native extension is not built")
    x, t, losses = np.zeros((2, 3), "float32"), np.array([0, 1]), np.zeros(2, "float32")
    with pytest.raises(ValueError, match="sizes do not fit"):
        kernel(x, t, None, -100, 0.0, 1.0, losses[:1], None)
    with pytest.raises(ValueError, match="sizes do not fit"):
        kernel(x, t, losses, -100, 0.0, 1.0, losses, None)
    with pytest.raises(TypeError):
        kernel(x.astype("float64"), t, None, -100, 0.0, 1.0, losses, None)


F4, I4 = np.zeros(4), np.zeros(4, np.int64)
COLUMN = (4, 1)


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "error", "message"),
    [
        (bp.MSELoss(), COLUMN, F4, ShapeError, r"MSELoss expected targets of shape \(4, 1\).*got \(4,\).*broadcast"),
        (bp.L1Loss(), (4,), np.zeros(COLUMN), ShapeError, r"targets of shape \(4,\).*got \(4, 1\)"),
        (bp.HuberLoss(), COLUMN, F4, ShapeError, r"targets of shape \(4, 1\)"),
        (bp.BCEWithLogitsLoss(), COLUMN, F4, ShapeError, r"targets of shape \(4, 1\)"),
        (bp.KLDivLoss(), COLUMN, F4, ShapeError, r"targets of shape \(4, 1\)"),
        (bp.HingeLoss(), COLUMN, F4, ShapeError, r"targets of shape \(4, 1\)"),
        (bp.CrossEntropyLoss(), (4, 3), np.zeros(COLUMN, int), ShapeError, r"labels of shape \(4,\), got \(4, 1\)"),
        (bp.CrossEntropyLoss(), (4, 3), np.zeros((4, 2)), ShapeError, r"targets of shape \(4, 3\)"),
        (bp.CrossEntropyLoss(), (4, 3), F4, ShapeError, r"integer labels of shape \(4,\) or distributions of shape"),
        (bp.CrossEntropyLoss(), (), np.array(0), ShapeError, r"predictions of shape \(..., classes\), got \(\)"),
        (bp.CrossEntropyLoss(), (4, 0), I4, ShapeError, r"got \(4, 0\)"),
        (bp.CrossEntropyLoss(weight=[1, 2]), (4, 3), I4, ShapeError, r"weight for 2 classes.*\(4, 3\)"),
        (bp.BCEWithLogitsLoss(pos_weight=[1, 2]), (4,), F4, ShapeError, "pos_weight for 2 classes"),
        (bp.MSELoss(), (4,), I4, DtypeError, "MSELoss expected floating targets, got int64"),
        (bp.CrossEntropyLoss(), (4, 3), np.zeros(4, bool), DtypeError, "integer labels, got bool"),
        (bp.NLLLoss(), (4, 3), F4, DtypeError, "NLLLoss expected integer labels, got float64"),
        (bp.MultiMarginLoss(), (4, 3), F4, DtypeError, "integer labels, got float64"),
        (bp.CrossEntropyLoss(), (2, 2, 3), np.array([[0, 1], [2, 3]]), DataError, r"0..2 .*got 3 at index \(1, 1\)"),
        (bp.CrossEntropyLoss(), (2, 3), np.array([-100, -1]), DataError, r"\(or -100 to ignore\), got -1 at"),
        (bp.CrossEntropyLoss(ignore_index=0), (2, 3), np.array([0, 3]), DataError, r"got 3 at index \(1,\)"),
        (bp.CrossEntropyLoss(), (3,), np.array(5), DataError, r"got 5 at index \(\)"),
        (bp.NLLLoss(), (2, 3), np.array([3, 0], np.uint8), DataError, r"got 3 at index \(0,\)"),
        (bp.MultiMarginLoss(), (2, 3), np.array([0, -100]), DataError, "labels in 0..2, got -100"),
        (bp.CrossEntropyLoss(), (1, 2), np.array([[1.5, -0.5]]), DataError, r"got -0.5 at index \(0, 1\)"),
        (bp.CrossEntropyLoss(), (1, 2), np.array([[1, np.nan]]), DataError, r"got nan at index \(0, 1\)"),
        (bp.MSELoss(), (2,), np.array([0, np.nan]), DataError, r"finite targets, got nan at index \(1,\)"),
        (bp.HuberLoss(), (), np.array(np.inf), DataError, r"finite targets, got inf at index \(\)"),
        (bp.BCEWithLogitsLoss(), (2,), np.array([0, 1.5]), DataError, r"0..1, got 1.5 at index \(1,\)"),
        (bp.BCEWithLogitsLoss(), (1,), np.array([np.nan]), DataError, "0..1, got nan"),
        (bp.KLDivLoss(), (1,), np.array([-0.1]), DataError, "finite probabilities as targets, got -0.1"),
        (bp.KLDivLoss(log_target=True), (1,), np.array([np.nan]), DataError, "got nan"),
        (bp.HingeLoss(), (2,), np.array([1.0, 0.0]), DataError, r"targets of -1 or \+1, got 0.0 at index \(1,\)"),
        (bp.HingeLoss(), (1,), np.array([np.nan]), DataError, "got nan"),
    ],
)
def test_targets_that_do_not_fit(loss, shape, targets, error, message):
    with pytest.raises(error, match=message):
        loss.check(shape, targets)
    # Nobody has counted them wrong before that: the count is taken first.
    assert np.isfinite(loss.count(targets))


@pytest.mark.parametrize("targets", [np.zeros(4), np.zeros(4, bool)], ids=["float", "bool"])
@pytest.mark.parametrize("make", [bp.NLLLoss, bp.CrossEntropyLoss])
def test_labels_that_cannot_be_looked_up_among_the_weights(make, targets):
    loss = make(weight=[1.0, 2.0, 3.0])
    if make is bp.NLLLoss or targets.dtype == bool:  # floats are distributions to CrossEntropyLoss
        with pytest.raises(DtypeError, match=rf"{loss.label} expected integer labels, got {targets.dtype}"):
            loss.count(targets)
    with pytest.raises(BPError):
        loss.check((4, 3), targets)


@pytest.mark.parametrize(
    ("loss", "x", "t", "message"),
    [
        (bp.MSELoss(), np.zeros(COLUMN), F4, r"squared_error expected targets of shape \(4, 1\) like predictions"),
        (
            bp.MSELoss(),
            F4.astype("float32"),
            F4,
            r"targets of dtype float32 like predictions, got float64; the Trainer",
        ),
        (bp.MSELoss(), I4, I4, "squared_error expected floating predictions, got int64"),
        (bp.CrossEntropyLoss(), np.zeros((4, 3), int), I4, "floating logits, got int64"),
        (bp.CrossEntropyLoss(), np.zeros((4, 3)), np.zeros(4, bool), "integer labels, got bool"),
        (bp.CrossEntropyLoss(), np.zeros((4, 3)), np.zeros(COLUMN, int), r"labels of shape \(4,\), got \(4, 1\)"),
        (bp.CrossEntropyLoss(weight=[1]), np.zeros((4, 3)), I4, r"class_weight of shape \(3,\), got \(1,\)"),
        (bp.CrossEntropyLoss(), np.zeros((4, 3), "float32"), np.zeros((4, 3)), "targets of dtype float32 like logits"),
        (bp.BCEWithLogitsLoss(pos_weight=[1, 2]), F4, F4, r"pos_weight of shape \(4,\), got \(2,\)"),
        (bp.NLLLoss(), np.array(0.0), np.array(0), r"log_probabilities of shape \(..., classes\), got \(\)"),
    ],
)
def test_operations_check_their_arguments(loss, x, t, message):
    ctx = bp.Context(training=True)
    with pytest.raises(BPError, match=message):
        loss.forward(x, t, ctx)
    assert ctx.open_layers == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.MSELoss("average"), "MSELoss expected reduction mean, sum or none, got 'average'"),
        (lambda: bp.MSELoss("batchmean"), "got 'batchmean'"),
        (lambda: bp.KLDivLoss(reduction="max"), "mean, batchmean, sum or none"),
        (lambda: bp.CrossEntropyLoss(label_smoothing=1.1), "label_smoothing in 0..1, got 1.1"),
        (lambda: bp.CrossEntropyLoss(weight=[1, -1]), "weight with one finite number of at least 0 by class"),
        (lambda: bp.NLLLoss(weight=2.0), "weight with one finite number"),
        (lambda: bp.NLLLoss(weight=[np.nan]), "weight with one finite number"),
        (lambda: bp.BCEWithLogitsLoss(pos_weight=[[1.0]]), "pos_weight with one finite number"),
        (lambda: bp.HuberLoss(delta=0), "delta > 0, got 0"),
        (lambda: bp.MultiMarginLoss(p=3), "p of 1 or 2, got 3"),
    ],
)
def test_settings_that_do_not_exist(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_denominator_zero_gives_zero():
    control = np.zeros(block.SIZE)
    assert ops.mean_of_terms(np.array([1.0, 2.0]), control) == 0
    assert not ops.squared_error(np.ones(2), np.zeros(2), control, True)[1].any()
