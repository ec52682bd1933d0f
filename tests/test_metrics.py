"""Metrics: right figures, and the same ones however the data are cut into batches."""

import numpy as np
import pytest

import bp
from bp.checking import tolerance
from bp.errors import BPError, ConfigurationError


def classification(generator, n):
    labels = generator.integers(0, 7, n)
    return generator.standard_normal((n, 7)).astype("float32"), np.where(generator.random(n) < 0.2, -100, labels)


def regression(generator, n):
    targets = generator.standard_normal((n, 2))
    return targets + 0.3 * generator.standard_normal((n, 2)), targets


def accuracy(k, x, t):
    places = [sorted(range(7), key=lambda c: (-row[c], c)).index(y) for row, y in zip(x, t, strict=True) if y != -100]
    return np.mean([place < k for place in places])


CASES = [
    (bp.Accuracy, classification, lambda x, t: accuracy(1, x, t)),
    (lambda: bp.TopKAccuracy(1), classification, lambda x, t: accuracy(1, x, t)),
    (lambda: bp.TopKAccuracy(3), classification, lambda x, t: accuracy(3, x, t)),
    (lambda: bp.TopKAccuracy(9), classification, lambda x, t: 1.0),
    (bp.MeanAbsoluteError, regression, lambda x, t: abs(x - t).mean()),
    (bp.R2Score, regression, lambda x, t: 1 - ((t - x) ** 2).sum() / ((t - t.mean()) ** 2).sum()),
]


@pytest.mark.parametrize("cuts", [[], [1], [13, 14, 14, 40]])
@pytest.mark.parametrize(("make", "data", "formula"), CASES)
def test_figure_does_not_depend_on_the_batches(make, data, formula, cuts):
    x, t = data(np.random.default_rng(0), 50)
    metric = make()
    metric.update(*data(np.random.default_rng(1), 3))
    metric.reset()
    for part_x, part_t in zip(np.split(x, cuts), np.split(t, cuts), strict=True):
        metric.update(part_x, part_t)
    assert isinstance(metric.compute(), float)
    assert metric.compute() == pytest.approx(formula(x, t), rel=tolerance("float64", 100))


@pytest.mark.parametrize("make", [make for make, _, _ in CASES])
def test_nothing_counted_is_zero(make):
    assert make().compute() == 0.0


@pytest.mark.parametrize("make", [bp.Accuracy, lambda: bp.TopKAccuracy(2)])
def test_ties_nan_and_ignored_labels(make):
    x = np.array([[1, 1, 0], [1, 1, 0], [np.nan] * 3, [0, np.nan, 0], [5, 0, 0]])
    metric = make()
    metric.update(x, np.array([0, 2, 0, 1, -100]))
    assert metric.compute() == 0.25  # the lowest class wins a tie, and NaN is never right
    metric = make()
    metric.update(np.zeros((2, 3, 4)), np.zeros((2, 3), np.uint8))
    assert metric.compute() == 1.0
    metric.update(np.zeros(4), np.array(3))
    assert metric.compute() == 6 / 7


def test_an_ignored_label_may_be_any():
    metric = bp.Accuracy(ignore_index=1)
    metric.update(np.eye(3), np.array([0, 1, 0]))
    assert metric.compute() == 0.5


def test_r2_of_large_targets_and_of_equal_ones():
    x, t = regression(np.random.default_rng(0), 40)
    near, far = bp.R2Score(), bp.R2Score()
    for rows in (slice(0, 9), slice(9, 40)):
        near.update(x[rows], t[rows])
        far.update(x[rows] + 1e6, t[rows] + 1e6)
    # Adding 1e6 rounds each target by up to 1e-10 of its deviation; sums of squares would leave nothing right.
    assert far.compute() == pytest.approx(near.compute(), abs=1e-9)
    for shift, expected in ((0.0, 1.0), (1.0, 0.0)):
        metric = bp.R2Score()
        metric.update(np.full(3, 2.0 + shift), np.full(3, 2.0))
        assert metric.compute() == expected


def test_predictions_that_are_not_finite():
    for metric in (bp.MeanAbsoluteError(), bp.R2Score()):
        metric.update(np.array([np.nan, 1, np.inf]), np.array([0.0, 1.0, 2.0]))
        assert np.isnan(metric.compute())


@pytest.mark.parametrize(
    ("metric", "x", "t", "message"),
    [
        (bp.Accuracy(), np.zeros((4, 3)), np.zeros((4, 1), int), r"accuracy expected.*got \(4, 3\) and \(4, 1\)"),
        (bp.Accuracy(), np.zeros(()), np.array(0), r"got \(\) and \(\)"),
        (bp.Accuracy(), np.zeros((4, 0)), np.zeros(4, int), r"got \(4, 0\)"),
        (bp.Accuracy(), np.zeros((4, 3)), np.zeros(4), "accuracy expected integer labels, got float64"),
        (bp.TopKAccuracy(3), np.zeros((4, 3)), np.zeros(4), "top3_accuracy expected integer labels"),
        (bp.MeanAbsoluteError(), np.zeros((4, 1)), np.zeros(4), r"of one shape, got \(4, 1\) and \(4,\)"),
        (bp.R2Score(), np.zeros(4), np.zeros((4, 1)), r"r2 expected.*got \(4,\) and \(4, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_counted(metric, x, t, message):
    with pytest.raises(BPError, match=message):
        metric.update(x, t)
    assert metric.compute() == 0.0


def test_top_zero_does_not_exist():
    with pytest.raises(ConfigurationError, match="k of at least 1, got 0"):
        bp.TopKAccuracy(0)
