"""The optimizer kernels on the emulator: every rule against the float64 reference of the CPU, and what only they have.

That is the low-precision copy with its stochastic rounding, skipped steps, and sums that blocks share.
"""

import math

import numpy as np
import pytest
from emulated import Exact, Offset, Wide, compare, to_device, to_host
from table import KERNEL_DEVICE, assert_close, emulating
from test_optimizer_rules import GROUPS, RULES, gradient_at

import bp
import bp.ops.matrix_optimizer as matrix_ops
import bp.ops.optimizer as ops
from bp.checking import tolerance
from bp.cpu.dropout import philox4x32
from bp.errors import DtypeError, ShapeError
from bp.ops import control as block
from bp.ops.array import known_dtype
from bp.ops.device import find_device

COPIES = ("float16", "bfloat16")
SETTINGS = {"weight_decay": 0.1, "l1": 0.01, "l2": 0.1, "groups": GROUPS}


def network(dtype="float32", device=KERNEL_DEVICE, wide=0):
    """The model of test_optimizer_rules, whose rules and groups are used here, with `wide` more inputs."""
    model = bp.Sequential(bp.Linear(5 + wide, 30), bp.Linear(30, 7), bp.Linear(7, 1, bias=False))
    model.build((5 + wide,), dtype=dtype, device=device, seed=3)
    generator = np.random.default_rng(0)
    for _, parameter in model.named_parameters():
        parameter.value = generator.standard_normal(parameter.shape).astype(np.float32)
    return model


def on_host(parameter):
    """The float32 or float64 value of a parameter."""
    arena = parameter._arena
    return np.array(arena.device.to_host(arena.view(arena.values, parameter)))


def step(model, optimizer, number, gradient=None, clip=1.0):
    for name, parameter in model.named_parameters():
        value = np.zeros(parameter.shape) if gradient is None else np.full(parameter.shape, gradient)
        parameter.grad = gradient_at(value, number, name) if gradient is None else value
    if clip is not None:
        optimizer.clip_by_global_norm(clip)
    optimizer.step()


def train(model, optimizer, steps=3):
    history = []
    for number in range(steps):
        step(model, optimizer, number)
        history.append({name: on_host(parameter) for name, parameter in model.named_parameters()})
    return history


def state_of(model, optimizer):
    """Every byte that a step may change."""
    arena = model.arena
    arrays = [arena.values, *(a for _, a in optimizer.named_state()), optimizer.control]
    return [to_host(a).tobytes() for a in (*arrays, *([] if arena.low_precision is None else [arena.low_precision]))]


# Rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [0, 140], ids=["tiles", "blocks"])
@pytest.mark.parametrize("rule", RULES)
def test_rule_matches_the_reference(rule, wide):
    reference, model = network("float64", "cpu", wide), network(wide=wide)
    expected = train(reference, RULES[rule][0](**SETTINGS).setup(reference))
    with emulating(detector=True, seed=0):
        actual = train(model, RULES[rule][0](**SETTINGS).setup(model))
    # As on the CPU in float32: Muon multiplies the rounding of its input in each of its five iterations.
    relative = (3.4445**5 if "muon" in rule else 1) * tolerance("float32", (30 + wide) * 3)
    for mine, other in zip(actual, expected, strict=True):
        for name, value in other.items():
            if rule == "lion":  # a sum near zero may round to the other sign: twice the step
                assert np.mean(np.abs(mine[name] - value) > 1e-4) < 0.01
            else:
                assert_close(mine[name], value, relative, name)


@pytest.mark.parametrize("rule", RULES)
def test_rule_does_not_depend_on_the_order_of_threads(rule):
    results = []
    for seed in (0, 1, 2):
        model = network("bfloat16", wide=140)
        optimizer = RULES[rule][0](**SETTINGS).setup(model)
        optimizer.stochastic_rounding = True
        with emulating(detector=False, seed=seed):
            train(model, optimizer, 2)
        results.append(state_of(model, optimizer))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", COPIES)
@pytest.mark.parametrize("rule", RULES)
def test_the_copy_is_written_in_the_same_pass(rule, dtype):
    wide, narrow = network(), network(dtype)
    optimizers = [RULES[rule][0](**SETTINGS).setup(model) for model in (wide, narrow)]
    for number in range(2):
        for model, optimizer in zip((wide, narrow), optimizers, strict=True):
            step(model, optimizer, number)
        values = to_host(narrow.arena.values)
        assert narrow[0].weight.value.dtype == dtype and values.dtype == np.float32
        np.testing.assert_array_equal(values, to_host(wide.arena.values))
        np.testing.assert_array_equal(to_host(narrow.arena.low_precision), values.astype(known_dtype(dtype)))


@pytest.mark.parametrize("rule", RULES)
def test_a_skipped_step_changes_nothing(rule):
    model = network("float16")
    optimizer = RULES[rule][0](**SETTINGS).setup(model)
    train(model, optimizer, 2)
    model.arena.device.fill(optimizer.control[block.SKIP_STEP : block.SKIP_STEP + 1], 1.0)
    ops.advance_step(optimizer.control)
    before = state_of(model, optimizer)
    for gradient in (1.0, math.inf, math.nan):
        for _, parameter in model.named_parameters():
            parameter.grad = np.full(parameter.shape, gradient, np.float32)
        optimizer.update(model.arena.values, model.arena.gradients)
        assert state_of(model, optimizer) == before
    control = to_host(optimizer.control)
    assert control[block.ATTEMPTED_STEP] == 3 and control[block.APPLIED_STEP] == 2


@pytest.mark.parametrize("gradient", [0.0, 1e38, -1e38, 1e-45, math.inf, math.nan])
@pytest.mark.parametrize("rule", RULES)
def test_extreme_gradients_are_not_hidden(rule, gradient):
    model = network()
    optimizer = RULES[rule][0]().setup(model)
    for number in range(2):
        step(model, optimizer, number, gradient, clip=None)
    arena = model.arena
    padding = np.ones(arena.size, bool)
    for parameter in arena.parameters:
        first = arena.offsets[parameter.name]
        padding[first : first + parameter.size] = False
    values = to_host(arena.values)
    assert padding.any() and not values[padding].any()
    if abs(gradient) < 1:
        assert np.isfinite(values).all()
    if math.isnan(gradient):
        assert np.isnan(values[~padding]).all()


@pytest.mark.parametrize("largest", [0.0, 1.0, np.inf])
def test_a_nan_gradient_stays_in_the_largest_second_moment(largest):
    arrays = [to_device(np.full(ops.TILE, start, np.float32)) for start in (1.0, np.nan, 0.5, 0.5, largest)]
    ops.adam(*arrays, *rows_and_control(1), 0.9, 0.999, 1e-8, None, False)
    for array in (arrays[0], *arrays[2:]):
        assert np.isnan(to_host(array)).all()


def test_an_elementwise_step_is_one_launch():
    model = network("bfloat16")
    device = model.arena.device
    for make, launches in ((bp.AdamW, 1), (bp.SGD, 1), (bp.NAdam, 2)):
        optimizer = make().setup(model)
        step(model, optimizer, 0)
        for _, parameter in model.named_parameters():
            parameter.grad = np.ones(parameter.shape)
        with device.recording() as ledger:
            optimizer.clip_by_global_norm(1.0)
        assert len(ledger.launches) == 2
        with device.recording() as ledger:
            optimizer.step()
        assert len(ledger.launches) == 1 + launches  # the first counts the step
        if make is bp.AdamW:
            assert ledger.launches[1].nbytes == 28 * model.arena.size + 16 * len(optimizer.settings)


def rows_and_control(tiles, **entries):
    """Settings with a factor of 1 and nothing else, and a control block, on the emulator."""
    settings = np.zeros((tiles, 4), np.float32)
    settings[:, ops.LR_FACTOR] = 1
    control = np.zeros(block.SIZE)
    control[[block.GRADIENT_SCALE, block.LOSS_SCALE, block.APPLIED_STEP, block.LEARNING_RATE]] = 1, 1, 1, 0.1
    for name, value in entries.items():
        control[getattr(block, name)] = value
    return to_device(settings), to_device(control)


def test_arrays_that_do_not_belong_to_an_arena_are_refused():
    def lion(values, tiles=1):
        arrays = [to_device(np.zeros(ops.TILE, np.float32)) for _ in range(2)]
        ops.lion(values, *arrays, *rows_and_control(tiles), 0.9, 0.99, None, False)

    with pytest.raises(ShapeError, match="begin at a multiple of 16 bytes"):
        lion(to_device(np.zeros(ops.TILE + 1, np.float32))[1:])
    with pytest.raises(ShapeError, match="expected arrays of 256 elements, 128 for each row"):
        lion(to_device(np.zeros(ops.TILE, np.float32)), 2)
    with pytest.raises(DtypeError, match="values of float elements, got float64"):
        lion(to_device(np.zeros(ops.TILE)))


# Stochastic rounding --------------------------------------------------------------------------------------------


def rounded(values, dtype, seed=0, step=1):
    """The copy of values that a step with a learning rate of zero leaves alone."""
    n = values.size
    padded = np.zeros(-(-n // ops.TILE) * ops.TILE, np.float32)
    padded[:n] = values
    array, copy = to_device(padded), to_device(np.zeros(padded.size), dtype)
    entries = {"LEARNING_RATE": 0.0, "APPLIED_STEP": step, "SEED_LOW": seed & 0xFFFFFFFF, "SEED_HIGH": seed >> 32}
    settings, control = rows_and_control(padded.size // ops.TILE, **entries)
    ops.sgd(array, to_device(np.zeros(padded.size, np.float32)), None, settings, control, 0.0, 0.0, False, copy, True)
    np.testing.assert_array_equal(to_host(array), padded)
    return to_host(copy)[:n]


def reference_rounding(values, dtype, seed, step):
    """The same in float64, from the documented counter, key and rule."""
    index = np.arange(-(-values.size // 4), dtype=np.uint64)
    words = philox4x32((index, 0, step, ops.ROUNDING_SITE), (seed & 0xFFFFFFFF, seed >> 32))
    bits = (np.stack(words, -1).reshape(-1)[: values.size] >> 16).astype(np.float64)
    size = np.abs(values.astype(np.float64))
    mantissa, least = (10, -24) if dtype == "float16" else (7, -133)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gap = 2.0 ** np.maximum(np.floor(np.log2(size)) - mantissa, least)
        whole = np.floor(size / gap)
        up = bits + 65536 * (size / gap - whole) >= 65536
        result = np.copysign((whole + up) * gap, values)
        largest = 65504.0 if dtype == "float16" else 2.0**128 - 2.0**120
        return np.where(size <= largest, result, values).astype(known_dtype(dtype))


@pytest.mark.parametrize("dtype", COPIES)
def test_stochastic_rounding_follows_its_definition(dtype):
    generator = np.random.default_rng(5)
    values = (generator.standard_normal(2000) * 10.0 ** generator.uniform(-9, 5, 2000)).astype(np.float32)
    special = [0.0, 1.0, -1.0, 65503.9, 65504.0, 65519.0, -65520.0, 3.39e38, np.inf, -np.inf, 6e-8, 1e-9, 2.0**-14]
    values[: len(special)] = special
    values[100:200] = 3.392e38  # beyond the largest bfloat16, and nearer to it than to infinity
    for seed, number in ((0, 1), (0x123456789ABC, 77)):
        actual = rounded(values, dtype, seed, number)
        expected = reference_rounding(values, dtype, seed, number)
        np.testing.assert_array_equal(actual.view(np.uint16), expected.view(np.uint16))
    nan = np.full(100, 0x7FFFFFFF, np.uint32).view(np.float32)  # its bits are not to carry over into a number
    assert np.isnan(rounded(nan, dtype).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", COPIES)
@pytest.mark.parametrize("fraction", [1 / 16, 0.5, 0.9])
def test_stochastic_rounding_is_unbiased(fraction, dtype):
    gap = 2.0**-10 if dtype == "float16" else 2.0**-7
    n = 20_000
    value = np.float32(1 + fraction * gap)
    copies = rounded(np.full(n, value, np.float32), dtype).astype(np.float64)
    assert set(np.unique(copies)) == {1.0, 1 + gap}
    exact = (float(value) - 1) / gap
    share = float(np.mean(copies > 1))
    assert abs(share - exact) < 5 * math.sqrt(exact * (1 - exact) / n)  # five standard deviations


def test_random_bits_depend_on_element_step_and_seed_alone():
    values = np.full(1000, 1.003, np.float32)
    first = rounded(values, "bfloat16")
    np.testing.assert_array_equal(first, rounded(values, "bfloat16"))
    np.testing.assert_array_equal(first[:100], rounded(values[:100], "bfloat16"))
    assert (first != rounded(values, "bfloat16", step=2)).mean() > 0.2
    assert (first != rounded(values, "bfloat16", seed=1)).mean() > 0.2


# Around the step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_advance_step(skip, scale):
    control = np.arange(float(block.SIZE))
    control[[block.SKIP_STEP, block.LOSS_SCALE]] = skip, scale
    compare(ops.advance_step, Exact(control))


def control_block(scale=1.0):
    control = np.zeros(block.SIZE)
    control[block.LOSS_SCALE] = scale
    return control


@pytest.mark.parametrize("n", [0, 1, 127, 128, 1000, 40_003])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_clip_by_global_norm(scale, n):
    gradients = np.random.default_rng(n).standard_normal(n).astype(np.float32) * scale
    for max_norm in (0.5, 1e9, math.inf):
        for given in (gradients, Offset(gradients, 3)):
            with emulating(detector=True, seed=0):
                compare(ops.clip_by_global_norm, given, Exact(control_block(scale)), max_norm)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-42, 1e30, 3e38, math.inf, math.nan])
def test_global_norm_of_extreme_gradients(value):
    gradients = np.full(5000, value, np.float32)
    gradients[::2] *= -1
    control = to_device(control_block())
    ops.clip_by_global_norm(to_device(gradients), control, 1.0)
    result = to_host(control)
    norm = abs(float(gradients[0])) * math.sqrt(5000)
    assert result[block.GRADIENT_NORM] == pytest.approx(norm, rel=1e-12, nan_ok=True)
    expected = 1 / norm if 1 < norm < math.inf else 1.0
    assert result[block.GRADIENT_SCALE] == pytest.approx(expected, rel=1e-12)


def test_the_global_norm_does_not_depend_on_the_order_of_threads():
    gradients = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    norms = set()
    for seed in (0, 1, 2):
        with emulating(detector=False, seed=seed):
            control = to_device(control_block())
            ops.clip_by_global_norm(to_device(gradients), control, 1.0)
            norms.add(to_host(control).tobytes())
    assert len(norms) == 1


@pytest.mark.parametrize("n", [0, 1, 130, 5000])
@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_clip_by_value(scale, n):
    gradients = np.random.default_rng(n).standard_normal(n).astype(np.float32) * 2
    gradients[:3] = np.array([np.inf, -np.inf, np.nan])[:n]
    for given in (gradients, Offset(gradients)):
        compare(ops.clip_by_value, given, Exact(control_block(scale)), 0.1)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("n", [0, 1, 130, 5000])
def test_moving_average(n, warmup):
    generator = np.random.default_rng(n)
    averages, values = (generator.standard_normal(n).astype(np.float32) for _ in range(2))
    for updates in (0.0, 5.0):
        compare(ops.moving_average, averages, values, Exact(np.array([updates])), 0.99, warmup)
        compare(ops.moving_average, Offset(averages), values, Exact(np.array([updates])), 0.99, warmup)


def test_an_average_of_equal_values_is_that_value():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    averages = to_device(values)
    ops.moving_average(averages, to_device(values), to_device(np.zeros(1)), 0.999, False)
    np.testing.assert_array_equal(to_host(averages), values)


def test_exponential_moving_average_of_a_16_bit_model():
    model = network("bfloat16")
    optimizer, average = bp.SGD(0.5).setup(model), bp.ExponentialMovingAverage(model, 0.5)
    start = to_host(model.arena.values)
    step(model, optimizer, 0)
    average.update()
    end, copy = to_host(model.arena.values), to_host(model.arena.low_precision)
    with average.applied():
        assert_close(to_host(model.arena.values), (start + end) / 2, tolerance("float32"))
        expected = to_host(model.arena.values).astype(known_dtype("bfloat16"))
        np.testing.assert_array_equal(to_host(model.arena.low_precision), expected)
    np.testing.assert_array_equal(to_host(model.arena.low_precision), copy)


def test_elements_beyond_2_to_the_31(huge):
    """The last tiles of an arena of more than 2^31 elements, each with its own row of settings."""
    tiles, size = 2**24 + 3, 128
    values, gradients, settings = huge(tiles * size), huge(tiles * size), huge(tiles, 4)
    copy = find_device(KERNEL_DEVICE).allocate((tiles * size,), "bfloat16")
    last, gradient = (np.random.default_rng(seed).standard_normal((2, size)).astype(np.float32) for seed in (0, 1))
    factors = np.array([[1, 0, 0, 0], [2, 0, 0, 0]], np.float32)
    values[(tiles - 2) * size :], gradients[(tiles - 2) * size :] = last.reshape(-1), gradient.reshape(-1)
    settings[tiles - 2 :] = factors
    control = control_block()
    control[[block.LEARNING_RATE, block.GRADIENT_SCALE]] = 0.5, 1
    ops.sgd(values, gradients, None, settings, to_device(control), 0.0, 0.0, False, copy, False)
    expected = last - np.array([[0.5], [1.0]], np.float32) * gradient
    np.testing.assert_array_equal(to_host(values[(tiles - 2) * size :]).reshape(2, size), expected)
    rounded = expected.astype(known_dtype("bfloat16"))
    np.testing.assert_array_equal(to_host(copy[(tiles - 2) * size :]).reshape(2, size), rounded)


# Matrices -------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (1, 130), (7, 1), (130, 5), (3, 700), (150, 260)]


def matrix_arguments(shape, seed=0):
    generator = np.random.default_rng(seed)
    values, gradients = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
    control = control_block()
    control[[block.LEARNING_RATE, block.GRADIENT_SCALE, block.APPLIED_STEP]] = 0.1, 0.5, 3
    return generator, values, gradients, np.array([[0.5, 0.1, 0.2, 0.3]], np.float32), control


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adafactor(shape):
    generator, values, gradients, settings, control = matrix_arguments(shape)
    means = [generator.random(length).astype(np.float32) for length in shape]
    for rows in (None, means[0]) if shape[0] == 1 else (means[0],):
        for threshold in (1.0, 1e-2):
            rule = (-0.8, (1e-7, 1e-3), threshold, None, False)
            with emulating(detector=True, seed=0):
                compare(
                    matrix_ops.adafactor,
                    *(values, gradients, rows, means[1], settings, Exact(control), *rule),
                    length=math.prod(shape),
                )


def test_adafactor_of_a_matrix_with_long_bands(monkeypatch):
    """A large matrix has its bands made longer, so that there are not too many partial sums."""
    from bp.cuda import matrix_optimizer

    monkeypatch.setattr(matrix_optimizer, "_MOST_PARTS", 4)
    generator, values, gradients, settings, control = matrix_arguments((300, 200))
    means = [generator.random(length).astype(np.float32) for length in (300, 200)]
    rule = (-0.8, (1e-7, 1e-3), 1.0, None, False)
    arguments = (values, gradients, *means, settings, Exact(control), *rule)
    compare(matrix_ops.adafactor, *arguments, length=300)


@pytest.mark.parametrize("shape", [*SHAPES[:-1], (40, 90)], ids=str)
def test_muon(shape):
    generator, values, gradients, settings, control = matrix_arguments(shape)
    moment = generator.standard_normal(shape).astype(np.float32)
    for nesterov, adjust_lr in ((True, "original"), (False, "match_rms_adamw")):
        # A single iteration: its polynomial does not amplify rounding errors much.
        rule = (0.9, nesterov, (3.4445, -4.775, 2.0315), 1, 1e-7, adjust_lr, None, False)
        with emulating(detector=True, seed=0):
            compare(
                matrix_ops.muon,
                *(values, gradients, Wide(moment), settings, Exact(control), *rule),
                length=max(shape) * 4,
            )


@pytest.mark.parametrize("dtype", COPIES)
@pytest.mark.parametrize("rule", ["adafactor", "muon"])
def test_stochastic_rounding_of_a_matrix(rule, dtype):
    _, values, gradients, _, control = matrix_arguments((9, 150))
    settings = np.zeros((1, 4), np.float32)  # a learning rate of zero
    control[[block.SEED_LOW, block.APPLIED_STEP]] = 12345, 7
    arrays = [to_device(a) for a in (values, gradients)]
    moments = {"adafactor": [(9,), (150,)], "muon": [(9, 150)]}[rule]
    arrays += [to_device(np.zeros(shape, np.float32)) for shape in moments] + [to_device(settings), to_device(control)]
    copy = to_device(np.zeros(values.shape), dtype)
    if rule == "adafactor":
        matrix_ops.adafactor(*arrays, -0.8, (1e-7, 1e-3), 1.0, copy, True)
    else:
        matrix_ops.muon(*arrays, 0.9, True, (3.4445, -4.775, 2.0315), 1, 1e-7, "original", copy, True)
    np.testing.assert_array_equal(to_host(arrays[0]), values)
    expected = reference_rounding(values.reshape(-1), dtype, 12345, 7)
    np.testing.assert_array_equal(to_host(copy).reshape(-1), expected)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_muon_gives_a_nearly_orthogonal_step(shape):
    _, values, gradients, settings, control = matrix_arguments(shape)
    settings[:] = 1, 0, 0, 0
    control[block.LEARNING_RATE] = 1.0
    arrays = [to_device(a) for a in (values, gradients, np.zeros(shape, np.float32), settings, control)]
    matrix_ops.muon(*arrays, 0.9, True, (3.4445, -4.775, 2.0315), 5, 1e-7, "original", None, False)
    singular = np.linalg.svd((values - to_host(arrays[0])) / math.sqrt(max(1, shape[0] / shape[1])), compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3


# Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["adamw", "adafactor", "muon"])
def test_state_moves_between_devices(rule):
    """A checkpoint of one device goes on on another."""
    models = [network("float32", device) for device in ("cpu", KERNEL_DEVICE)]
    optimizers = [RULES[rule][0](**SETTINGS).setup(model) for model in models]
    train(models[0], optimizers[0], 2)
    for (_, parameter), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        other.value = parameter.value
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert find_device(KERNEL_DEVICE) is models[1].arena.device
    after = [train(model, optimizer, 1)[0] for model, optimizer in zip(models, optimizers, strict=True)]
    for name, value in after[0].items():
        assert_close(after[1][name], value, 2 * (3.4445**5 if rule == "muon" else 1) * tolerance("float32", 90), name)
