"""Losses of the CUDA device, on the emulator: the table of all losses, and every path through their kernels."""

import numpy as np
import pytest
from emulated import DTYPES, Exact, Offset, Wide, compare, on_host, sparse, to_device, to_host
from loss_cases import CASES, term_weights
from table import KERNEL_DEVICE, assert_close, emulating

import bp
import bp.cuda.loss
import bp.ops.loss as ops
from bp.checking import tolerance
from bp.cuda.emulator import engine
from bp.errors import DtypeError, ShapeError
from bp.ops import control as block
from bp.ops.array import is_floating, known_dtype
from bp.ops.device import find_device

inf, nan = np.inf, np.nan


def control(denominator=7.0, scale=2.0):
    values = np.zeros(block.SIZE)
    values[block.LOSS_DENOMINATOR], values[block.LOSS_SCALE] = denominator, scale
    return values


CONTROL = Exact(control())


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def labels_of(shape, ignored=-100):
    """Labels for logits of that shape, some of them ignored."""
    generator = np.random.default_rng(1)
    drawn = generator.integers(0, shape[-1], shape[:-1])
    return np.where(generator.random(shape[:-1]) < 0.2, ignored, drawn)


def compare_rows(operation, predictions, *arguments, dtype):
    """As `compare`, and each element of the gradient for itself: in a long row all but the label's are tiny.

    The gradient factor is the number of classes, so that a probability of 1 / classes has the gradient 1.
    """
    classes = getattr(predictions, "array", predictions).shape[-1]
    arguments = [Exact(control(7.0, 7.0 * classes)) if a is CONTROL else a for a in arguments]
    losses, gradient = compare(operation, predictions, *arguments, dtype=dtype, length=classes)
    assert losses.dtype == "float32"
    if gradient is not None:
        assert gradient.dtype == known_dtype(dtype)
        _, expected = operation(*(on_host(a, dtype) for a in (predictions, *arguments)))
        relative = tolerance("float32", classes) + (tolerance(dtype) if dtype != "float32" else 0)
        np.testing.assert_allclose(to_host(gradient).astype("float64"), expected, rtol=relative, atol=relative)


# The table --------------------------------------------------------------------------------------------------------


def run(case, reduction, dtype, device):
    """(loss, gradient) on the host, of predictions and targets that are rounded to `dtype`, on the CPU in float64."""
    owner = find_device(device)
    rounded = [a.astype(known_dtype(dtype)) if is_floating(a.dtype) else a for a in case.batch()]
    if device == "cpu":
        rounded = [a.astype("float64") if is_floating(a.dtype) else a for a in rounded]
    x, t = map(owner.from_host, rounded)
    loss, ctx = case.loss(reduction), bp.Context(training=True)
    value = loss.forward(x, t, ctx)
    weights = None
    if reduction == "none":
        weights = owner.from_host(term_weights(value).astype(value.dtype))
    gradient = loss.backward(ctx, weights)
    assert ctx.open_layers == []
    if device != "cpu":
        assert value.dtype == "float32" and gradient.dtype == known_dtype(dtype)
    return owner.to_host(value), owner.to_host(gradient)


def allowed(case, dtype, roundings=1):
    """Sums in float32, then so many roundings to a 16-bit float."""
    wide = tolerance("float32", int(np.prod(case.shape)))
    return wide if dtype == "float32" else wide + tolerance(dtype, roundings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_loss_equals_that_of_the_cpu(case, dtype):
    for reduction in case.make.reductions:
        value, gradient = run(case, reduction, dtype, KERNEL_DEVICE)
        expected, expected_gradient = run(case, reduction, dtype, "cpu")
        assert_close(value, expected, allowed(case, "float32"), "loss")
        # Single terms are rounded once more where the gradient is scaled by their weights.
        assert_close(gradient.astype("float64"), expected_gradient, allowed(case, dtype, 2), "gradient")


@pytest.mark.parametrize("case", [c for c in CASES if np.prod(c.shape) < 10000], ids=str)
def test_losses_do_not_depend_on_the_order_of_threads(case):
    with emulating(detector=True, seed=0):
        first = run(case, "mean", "float32", KERNEL_DEVICE)
    for seed in (1, 2):
        with emulating(detector=False, seed=seed):
            for a, b in zip(run(case, "mean", "float32", KERNEL_DEVICE), first, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) > 1], ids=str)
def test_empty_batch(case):
    x, t = (a[:0].astype("float32") if a.dtype.kind == "f" else a[:0] for a in case.batch())
    for reduction in case.make.reductions:
        loss, ctx = case.loss(reduction), bp.Context(training=True)
        value = to_host(loss.forward(to_device(x), to_device(t), ctx))
        assert not value.any() and loss.backward(ctx).shape == x.shape


def test_a_loss_called_by_hand():
    x, t = normal((4, 3)).astype("float32"), np.array([0, 2, 1, 1])
    loss = bp.CrossEntropyLoss(weight=[1, 2, 0.5])
    assert float(loss(to_device(x), to_device(t))) == pytest.approx(float(loss(x, t)), rel=tolerance("float32"))
    with pytest.raises(bp.errors.DataError, match="got 7 at index"):
        loss(to_device(x), to_device(np.array([0, 7, 0, 0])))


# Softmax cross-entropy --------------------------------------------------------------------------------------------

# Parts of a warp, a warp, a small block, a large one; rows of edges only, of whole vectors only, of both.
CLASSES = [1, 2, 7, 8, 10, 16, 33, 100, 128, 1000, 1024, 1025, 2048, 4099, 8191, 8208, 9001]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_softmax_cross_entropy(classes, dtype):
    shape = (max(2, 600 // classes) + 1, classes)
    x, labels, weight = normal(shape), labels_of(shape), Wide(np.abs(normal(classes)))
    for smoothing in (0.0, 0.2):
        for class_weight in (None, weight):
            for logits in (x, Offset(x)):
                compare_rows(
                    ops.softmax_cross_entropy, logits, labels, class_weight, CONTROL, -100, smoothing, True, dtype=dtype
                )
        compare_rows(ops.softmax_cross_entropy, x, labels, weight, CONTROL, -100, smoothing, False, dtype=dtype)


# In registers and shared memory; 50,304 columns; more than both hold.
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        ("float32", 37001),
        ("float32", 50304),
        ("float32", 53003),
        ("float16", 33001),
        ("bfloat16", 50304),
        ("bfloat16", 55001),
    ],
)
def test_softmax_cross_entropy_of_long_rows(dtype, classes):
    x, labels = normal((2, classes)), np.array([classes - 1, 0])
    for smoothing in (0.0, 0.1):
        compare_rows(ops.softmax_cross_entropy, x, labels, None, CONTROL, -100, smoothing, True, dtype=dtype)


def test_logits_of_50304_columns_are_kept_on_the_chip():
    device = find_device(KERNEL_DEVICE)
    for dtype in DTYPES:
        x = device.zeros((1, 50304), dtype)
        with device.recording() as ledger:
            ops.softmax_cross_entropy(x, to_device(np.array([3])), None, to_device(control()), -100, 0.0, True)
        (launch,) = ledger.launches
        names = [p.name for p in launch.variant.parameters]
        threads, vectors = launch.variant.threads, 50304 * x.itemsize // 16
        in_registers = {2: 8, 4: 18}[x.itemsize]  # LARGE_KEPT of the kernel
        assert (in_registers + launch.values[names.index("kept_in_shared")]) * threads >= vectors
        assert launch.variant.shared_bytes(launch.values) + 128 <= 64 * 1024  # of sm_75, the least there is


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 16, 1030, 9001])
def test_gradient_in_place_of_the_logits(classes, dtype):
    shape = (5, classes)
    labels, block_ = to_device(labels_of(shape)), to_device(control())
    for smoothing in (0.0, 0.1):
        with emulating(detector=True, seed=3):
            logits = to_device(normal(shape), dtype)
            expected = ops.softmax_cross_entropy(logits, labels, None, block_, -100, smoothing, True)
            actual = ops.softmax_cross_entropy(logits, labels, None, block_, -100, smoothing, True, logits)
        assert actual[1] is logits
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(to_host(a), to_host(b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", [ops.squared_error, ops.binary_cross_entropy])
def test_elementwise_gradient_in_place_of_the_predictions(operation, dtype):
    middle = () if operation is ops.squared_error else (None,)
    for n in (1, 17, 2052):
        x, t, block_ = to_device(normal(n), dtype), to_device(np.full(n, 0.25), dtype), to_device(control())
        expected = operation(x, t, *middle, block_, True)
        with emulating(detector=True, seed=3):
            actual = operation(x, t, *middle, block_, True, x)
        assert actual[1] is x
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(to_host(a), to_host(b))


def test_gradient_to_a_place_of_another_alignment():
    x, labels = normal((3, 100)), np.array([5, -100, 99])
    place = to_device(np.zeros(301), "float16")[1:].reshape(3, 100)
    arguments = to_device(x, "float16"), to_device(labels), None, to_device(control()), -100, 0.0, True
    expected = ops.softmax_cross_entropy(*arguments)
    ops.softmax_cross_entropy(*arguments, place)
    np.testing.assert_array_equal(to_host(place), to_host(expected[1]))


def test_a_place_that_does_not_fit():
    x, labels, block_ = normal((3, 4)), np.array([0, 1, 2]), control()
    for device in (lambda a: a, to_device):
        arguments = device(x.astype("float32")), device(labels), None, device(block_), -100, 0.0, True
        with pytest.raises(ShapeError, match=r"out of shape \(3, 4\), got \(3, 5\)"):
            ops.softmax_cross_entropy(*arguments, device(np.zeros((3, 5), "float32")))
        with pytest.raises(DtypeError, match="out of dtype float32 like logits, got float64"):
            ops.softmax_cross_entropy(*arguments, device(np.zeros((3, 4))))


@pytest.mark.parametrize("classes", [10, 1030, 8208])
def test_cross_entropy_does_not_depend_on_the_order_of_threads(classes):
    shape = (5, classes)
    arguments = to_device(normal(shape), "bfloat16"), to_device(labels_of(shape)), None, to_device(control()), -100
    for smoothing in (0.0, 0.1):
        results = []
        for seed in range(3):
            with emulating(detector=seed == 0, seed=seed):
                results.append([to_host(a) for a in ops.softmax_cross_entropy(*arguments, smoothing, True)])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 11, 24, 1030, 9000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_with_infinity_and_nan(smoothing, classes, dtype):
    x = normal((8, classes))
    x[0, 0] = nan
    x[1, -1] = inf
    x[2] = -inf
    x[3, 1:] = -inf  # one class is left
    x[4, : classes - 1] = -inf
    x[5] = nan  # ignored
    x[6, 1] = 6e4
    labels = np.array([1, 1, 0, 0, 0, -100, 0, 2])
    compare(ops.softmax_cross_entropy, x, labels, None, CONTROL, -100, smoothing, True, dtype=dtype, length=classes)
    target = np.zeros((8, classes))
    target[np.arange(8), labels.clip(0)] = 1
    target[5] = 0
    compare(ops.soft_cross_entropy, x, target, None, CONTROL, smoothing, True, dtype=dtype, length=classes)


LABEL_DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_labels_of_every_integer_type(dtype):
    x, weight = normal((6, 120)), Wide(np.abs(normal(120)))
    labels = np.array([0, 119, 5, 100, 100, 7], dtype)
    compare(ops.softmax_cross_entropy, x, labels, weight, CONTROL, 100, 0.0, True, length=120)
    compare(ops.negative_log_likelihood, x, labels, weight, CONTROL, 100, True, length=120)
    compare(ops.multi_margin, x, labels, CONTROL, 1, 1.0, True, length=120)


@pytest.mark.parametrize("classes", [3, 1100, 9000])
@pytest.mark.parametrize(
    ("label", "dtype"),
    [(-1, "int8"), (100, "int8"), (-(2**40), "int64"), (2**40, "int64"), (2**64 - 100, "uint64"), (2**63, "uint64")],
)
def test_a_label_of_no_class_is_nan_and_reads_nothing(label, dtype, classes):
    if label == 100:
        label, dtype = classes, "int64"
    x, weight = to_device(normal((3, classes)), "float32"), to_device(np.ones(classes), "float32")
    labels, block_ = to_device(np.array([0, label, 2], dtype)), to_device(control())
    results = [
        ops.softmax_cross_entropy(x, labels, w, block_, -100, s, True) for w in (None, weight) for s in (0.0, 0.1)
    ]
    results += [ops.negative_log_likelihood(x, labels, w, block_, -100, True) for w in (None, weight)]
    results.append(ops.multi_margin(x, labels, block_, 1, 1.0, True))
    for losses, gradient in results:
        np.testing.assert_array_equal(np.isnan(to_host(losses)), [False, True, False])
        np.testing.assert_array_equal(np.isnan(to_host(gradient)).any(axis=1), [False, True, False])


# The others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 10, 16, 129, 1000, 1040, 5003])
def test_losses_by_class(classes, dtype):
    shape = (max(2, 300 // classes) + 1, classes)
    x, labels, weight = normal(shape), labels_of(shape), Wide(np.abs(normal(classes)))
    target = np.abs(normal(shape, 2)) / classes
    for logits in (x, Offset(x)):
        for gradient in (True, False):
            for w in (weight, None):
                compare_rows(ops.negative_log_likelihood, logits, labels, w, CONTROL, -100, gradient, dtype=dtype)
                compare_rows(ops.soft_cross_entropy, logits, target, w, CONTROL, 0.1, gradient, dtype=dtype)
            for power in (1, 2):
                compare_rows(ops.multi_margin, logits, labels.clip(0), CONTROL, power, 0.7, gradient, dtype=dtype)


def test_margins_at_the_kink_and_beside_nan():
    x = np.array([[1.0, 0, 0.5], [nan, 0, 1], [0, nan, 1], [inf, 0, 1], [0, 0, -inf]])
    for power in (1, 2):
        compare(ops.multi_margin, x, np.array([0, 0, 0, 0, 1]), CONTROL, power, 1.0, True)


ELEMENTWISE = {
    "squared_error": (), "absolute_error": (), "huber": (0.6,), "binary_cross_entropy": (), "kl_divergence": (False,),
    "hinge": (True,),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_losses_of_every_size_and_alignment(name, dtype):
    operation, settings = getattr(ops, name), ELEMENTWISE[name]
    for n in (1, 3, 8, 17, 2049, 4100):
        x = normal(n)
        t = {"hinge": np.sign(normal(n, 1))}.get(name, np.random.default_rng(1).random(n))
        for given in ((x, t), (Offset(x), t), (x, Offset(t))):
            for gradient in (True, False):
                middle = (None, CONTROL) if name == "binary_cross_entropy" else (CONTROL, *settings)
                compare(operation, *given, *middle, gradient, dtype=dtype, output_dtypes=["float32", dtype])


def test_without_anything_to_average_over_there_is_no_gradient():
    x, t, nothing = to_device(normal((3, 10)), "float32"), to_device(np.ones((3, 10)), "float32"), to_device(control(0))
    labels = to_device(np.array([0, 9, 5]))
    results = [
        getattr(ops, name)(x, t, *((None, nothing) if name == "binary_cross_entropy" else (nothing, *settings)), True)
        for name, settings in ELEMENTWISE.items()
    ]
    results += [
        ops.softmax_cross_entropy(x, labels, None, nothing, -100, 0.1, True),
        ops.soft_cross_entropy(x, t, None, nothing, 0.1, True),
        ops.negative_log_likelihood(x, labels, None, nothing, -100, True),
        ops.multi_margin(x, labels, nothing, 1, 1.0, True),
    ]
    for losses, gradient in results:
        assert np.isfinite(to_host(losses)).all() and not to_host(gradient).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 1), (7, 3), (4, 16), (33, 10)])
def test_binary_cross_entropy_with_weights_by_column(shape, dtype):
    x, t = normal(shape), np.random.default_rng(1).random(shape)
    for weight in (np.array(2.5), np.abs(normal(shape[-1:]))):
        compare(ops.binary_cross_entropy, x, t, Wide(weight), CONTROL, True, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise_losses_of_special_values(dtype):
    special = np.array([nan, inf, -inf, 0.0, 1.0, -1.0, 0.6, -0.6, 50.0, -50.0, 3e4])
    x, t = (a.ravel() for a in np.meshgrid(special, [0.0, 1.0, 0.5]))
    for name, settings in ELEMENTWISE.items():
        target = 2 * t - 1 if name == "hinge" else t
        middle = (None, CONTROL) if name == "binary_cross_entropy" else (CONTROL, *settings)
        compare(getattr(ops, name), x, target, *middle, True, dtype=dtype)
    x, t = (a.ravel() for a in np.meshgrid(special, [-inf, 0.0, -30.0]))
    compare(ops.kl_divergence, x, t, CONTROL, True, True, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_terms(dtype):
    shapes = (((5, 7), 1), ((2, 3, 8), 2), ((2, 3, 8), 1), ((2049,), 1), ((4, 1), 1), ((3, 5), 0), ((), 0), ((0, 3), 1))
    for shape, axes in shapes:
        gradient, dlosses = np.asarray(normal(shape)), Wide(np.asarray(normal(shape[:axes], 1)))
        for given in (gradient, Offset(gradient)):
            compare(ops.scale_terms, given, dlosses, dtype=dtype)


# Mean -------------------------------------------------------------------------------------------------------------


def test_rows_beyond_what_32_bits_count(monkeypatch):
    rows, classes = (1 << 29) + 3, 8
    x, t, gradient = (sparse((rows, classes), "bfloat16") for _ in range(3))
    losses, labels = sparse((rows,), "float32"), sparse((rows,), "uint8")
    last = slice(rows - 1, rows)
    x[last], t[last], labels[last] = normal((1, classes)), np.eye(classes)[2:3], np.array([2], np.uint8)
    monkeypatch.setattr(bp.cuda.loss, "empty", lambda *_: losses)
    monkeypatch.setattr(bp.cuda.loss, "empty_like", lambda _: gradient)
    launch, control_ = engine.launch, to_device(control())

    def last_block(function, name, values, grid, *others, **settings):
        launch(function, name, values, grid, *others, first_block=grid[0] - 1, block_count=1)

    monkeypatch.setattr(engine, "launch", last_block)
    for operation, target, before, after in (
        (ops.softmax_cross_entropy, labels, (None,), (-100, 0.0, True)),
        (ops.softmax_cross_entropy, labels, (None,), (-100, 0.1, True)),
        (ops.soft_cross_entropy, t, (None,), (0.1, True)),
        (ops.negative_log_likelihood, labels, (None,), (-100, True)),
        (ops.multi_margin, labels, (), (1, 1.0, True)),
    ):
        operation(x, target, *before, control_, *after)
        wanted = to_host(target[last]).astype(int if target is labels else float)
        expected = operation(to_host(x[last]).astype(float), wanted, *before, control(), *after)
        assert_close(to_host(losses[last]), expected[0], tolerance("float32", classes))
        assert_close(to_host(gradient[last]), expected[1], tolerance("bfloat16", classes))


@pytest.mark.parametrize("n", [0, 1, 5, 1023, 32768, 32769, 100_001])
def test_mean_of_terms(n):
    for denominator in (7.0, 0.0):
        compare(ops.mean_of_terms, normal(n), Exact(control(denominator)), length=n, output_dtypes=["float32"])


def test_mean_of_terms_does_not_depend_on_the_order_of_threads():
    losses, block_ = to_device(normal(40_000), "float32"), to_device(control())
    for n in (40_000, 3000):
        results = []
        for seed in range(3):
            with emulating(detector=seed == 0, seed=seed):
                results.append(float(ops.mean_of_terms(losses[:n], block_)))
        assert len(set(results)) == 1


def test_a_mean_of_many_terms_keeps_its_digits():
    n = 1 << 20
    mean = float(ops.mean_of_terms(to_device(np.full(n, 0.1, np.float32)), to_device(control(n))))
    assert mean == float(np.float32(0.1))


def test_a_mean_shows_nan_and_infinity():
    for special in (nan, inf):
        for n in (100, 40_000):
            losses = normal(n)
            losses[-1] = special
            compare(ops.mean_of_terms, losses, CONTROL, length=n)


def test_one_launch_a_loss():
    device = find_device(KERNEL_DEVICE)
    x, t = to_device(normal((128, 10)), "float32"), to_device(np.zeros(128, np.int64))
    ctx = bp.Context(training=True)
    with device.recording() as ledger:
        bp.CrossEntropyLoss().forward(x, t, ctx)
    names = [
        launch.variant.kernel.name for launch in ledger.launches if launch.variant.kernel.source.name != "transfer"
    ]
    assert names == ["softmax_cross_entropy_by_lanes", "mean_of_terms"]
