"""The traps of explicit backpropagation: each is right, or an error that names the layer; none is silently wrong."""

import copy

import numpy as np
import pytest

import bp
from bp.checking import check
from bp.errors import BackwardError, BuildError, ConfigurationError, DataError, ShapeError


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def built(model, input_shape, **settings):
    model.build(input_shape, **settings)
    return model


def run(model, x, ctx=None, dy=None):
    """Forward and backward; returns (y, dx)."""
    ctx = bp.Context(training=True, step=0) if ctx is None else ctx
    y = model.forward(x, ctx)
    return y, model.backward(np.ones_like(y) if dy is None else dy, ctx)


def gradients(model):
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters() if parameter.trainable}


def mlp():
    return bp.Sequential(bp.Linear(3, 4), bp.Tanh(), bp.Linear(4, 3))


# One layer in several places ------------------------------------------------------------------------------------------


def test_a_layer_used_twice_sums_both_contributions():
    shared = bp.Linear(3, 3)
    twice = built(bp.Sequential(shared, bp.Tanh(), shared), (3,))
    assert [name for name, _ in twice.named_parameters()] == ["0.weight", "0.bias"]
    apart = built(bp.Sequential(bp.Linear(3, 3), bp.Tanh(), bp.Linear(3, 3)), (3,))
    for layer in (apart[0], apart[2]):
        layer.weight.value, layer.bias.value = shared.weight.value, shared.bias.value
    x = draw(5, 3)
    y, dx = run(twice, x)
    expected_y, expected_dx = run(apart, x)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)
    np.testing.assert_allclose(shared.weight.grad, apart[0].weight.grad + apart[2].weight.grad, rtol=1e-6)
    np.testing.assert_allclose(shared.bias.grad, apart[0].bias.grad + apart[2].bias.grad, rtol=1e-6)
    check(twice, x)


def test_a_layer_used_at_two_sizes_is_an_error():
    shared = bp.Linear(None, 4)
    with pytest.raises(ShapeError, match=r"Linear '0': .*shape \(4, 3\) cannot also have shape \(4, 4\)"):
        bp.Sequential(shared, shared).build((3,))


def test_a_recomputed_layer_used_twice():
    shared = bp.Recompute(bp.Sequential(bp.Linear(3, 3), bp.Dropout(0.5), bp.Tanh()))
    check(built(bp.Sequential(shared, shared, bp.Residual(shared)), (3,)), draw(5, 3))


# Contexts -------------------------------------------------------------------------------------------------------------


def test_two_passes_interleaved_with_two_contexts():
    model = built(bp.Sequential(mlp(), bp.Dropout(0.5)), (3,))
    x1, x2 = draw(5, 3, seed=1), draw(2, 3, seed=2)
    apart = []
    for step, x in enumerate((x1, x2)):
        for _, parameter in model.named_parameters():
            parameter.grad = np.zeros(parameter.shape)
        apart.append((*run(model, x, bp.Context(training=True, step=step)), gradients(model)))
    model.arena.consume_gradients()
    first, second = bp.Context(training=True, step=0), bp.Context(training=True, step=1)
    y1, y2 = model.forward(x1, first), model.forward(x2, second)
    dx1, dx2 = model.backward(np.ones_like(y1), first), model.backward(np.ones_like(y2), second)
    for actual, expected in zip((y1, dx1, y2, dx2), (*apart[0][:2], *apart[1][:2]), strict=True):
        np.testing.assert_array_equal(actual, expected)
    for name, gradient in gradients(model).items():
        np.testing.assert_allclose(gradient, apart[0][2][name] + apart[1][2][name], rtol=1e-5, atol=1e-6)


def test_two_passes_on_one_context_are_taken_back_in_reverse():
    model = built(mlp(), (3,))
    x1, x2 = draw(5, 3, seed=1), draw(2, 3, seed=2)
    ctx = bp.Context(training=True)
    y1, y2 = model.forward(x1, ctx), model.forward(x2, ctx)
    dx2, dx1 = model.backward(np.ones_like(y2), ctx), model.backward(np.ones_like(y1), ctx)
    np.testing.assert_array_equal(dx1, run(model, x1)[1])
    np.testing.assert_array_equal(dx2, run(model, x2)[1])


def test_backward_without_forward_or_twice():
    model = built(mlp(), (3,))
    dy = draw(5, 3)
    with pytest.raises(BackwardError, match="Linear '2': backward without a matching forward"):
        model.backward(dy, bp.Context(training=True))
    ctx = bp.Context(training=True)
    run(model, draw(5, 3), ctx)
    with pytest.raises(BackwardError, match=r"Linear '2': .*backward once for each forward"):
        model.backward(dy, ctx)


def test_backward_after_an_inference_pass():
    model = built(mlp(), (3,))
    with pytest.raises(BackwardError, match=r"Linear '2': .*made for inference.*Context\(training=True\)"):
        run(model, draw(5, 3), bp.Context())


def test_backward_in_the_wrong_order():
    model = built(mlp(), (3,))
    ctx = bp.Context(training=True)
    model.forward(draw(5, 3), ctx)
    with pytest.raises(BackwardError, match=r"Linear '0': backward in the wrong order; .* that of Linear '2'"):
        model[0].backward(draw(5, 4), ctx)
    with pytest.raises(BackwardError, match=r"Tanh '1': backward in the wrong order"):
        model[1].backward(draw(5, 4), ctx)
    assert ctx.open_layers == ["Linear '0'", "Tanh '1'", "Linear '2'"]  # nothing was taken: the right order still works
    model.backward(draw(5, 3), ctx)


class Crossed(bp.Layer):
    """A graph by hand whose backward visits its layers in the order of forward."""

    def __init__(self):
        self.first, self.second = bp.Linear(3, 3), bp.Linear(3, 3)

    def declare(self, input_shape):
        return self.second.declare(self.first.declare(input_shape))

    def forward(self, x, ctx):
        return self.first.forward(x, ctx) + self.second.forward(x, ctx)

    def backward(self, dy, ctx):
        return self.first.backward(dy, ctx) + self.second.backward(dy, ctx)


def test_a_graph_by_hand_in_the_wrong_order():
    with pytest.raises(BackwardError, match=r"Linear 'first': .* that of Linear 'second'"):
        run(built(Crossed(), (3,)), draw(5, 3))


def test_the_backward_of_another_model():
    one, other = built(mlp(), (3,)), built(mlp(), (3,))
    ctx = bp.Context(training=True)
    one.forward(draw(5, 3), ctx)
    with pytest.raises(BackwardError, match="backward in the wrong order"):
        other.backward(draw(5, 3), ctx)


def test_inference_keeps_nothing_and_changes_nothing():
    model = built(bp.Sequential(bp.Linear(3, 4), bp.BatchNorm1d(), bp.Dropout(0.5)), (3,))
    before = [np.array(value.value) for value in model._values()]
    ctx = bp.Context()
    y = model.forward(draw(5, 3), ctx)
    assert ctx.open_layers == []
    np.testing.assert_array_equal(y, model(draw(5, 3)))
    for value, kept in zip(model._values(), before, strict=True):
        np.testing.assert_array_equal(value.value, kept)


# Tied weights ---------------------------------------------------------------------------------------------------------


def test_tied_weights_are_one_parameter():
    model = bp.Sequential(bp.Embedding(7, 4), bp.Tanh(), bp.Linear(4, 7))
    model[2].weight = model[0].weight
    built(model, (5,))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.bias"]
    assert [name for name, _ in model.named_parameters(aliases=True)] == ["0.weight", "2.weight", "2.bias"]
    x = np.random.default_rng(0).integers(0, 7, (3, 5))
    check(model, x)
    tied = run(model, x) and gradients(model)
    apart = built(bp.Sequential(bp.Embedding(7, 4), bp.Tanh(), bp.Linear(4, 7)), (5,))
    for layer in (apart[0], apart[2]):
        layer.weight.value = model[0].weight.value
    run(apart, x)
    np.testing.assert_allclose(tied["0.weight"], apart[0].weight.grad + apart[2].weight.grad, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tied["2.bias"], apart[2].bias.grad)


def test_tied_weights_of_different_shapes_are_an_error():
    model = bp.Sequential(bp.Linear(3, 4), bp.Linear(4, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ShapeError, match=r"Linear '1': a parameter of shape \(4, 3\) cannot also have shape \(3, 4\)"):
        model.build((3,))


def test_a_tie_to_a_model_that_is_built_is_an_error():
    owner = built(bp.Linear(3, 3), (3,))
    model = bp.Sequential(bp.Linear(3, 3))
    model[0].weight = owner.weight
    kept = owner.weight.value
    with pytest.raises(BuildError, match=r"parameter '0\.weight' has its memory in another model, as 'weight'"):
        model.build((3,))
    assert owner.weight.value is kept


def test_a_tie_survives_a_copy():
    model = bp.Sequential(bp.Linear(3, 3), bp.Linear(3, 3))
    model[1].weight = model[0].weight
    twin = built(model, (3,)).copy(dtype="float64")
    assert twin[1].weight is twin[0].weight and twin[0].weight is not model[0].weight
    twin[0].weight.value = np.zeros((3, 3))
    assert model[0].weight.value.any()


# Copies ---------------------------------------------------------------------------------------------------------------


def trained(model, optimizer):
    run(model, draw(5, 3), bp.Context(training=True, step=0))
    optimizer.step()
    return np.array(model.arena.values)


@pytest.mark.parametrize("how", [copy.deepcopy, bp.Layer.copy])
def test_a_copy_trains_on_its_own(how):
    model = bp.Sequential(bp.Linear(3, 4), bp.BatchNorm1d(), bp.Linear(4, 3))
    model[0].bias.trainable = False
    built(model, (3,))
    before = [np.array(value.value) for value in model._values()]
    twin = how(model)
    for _, parameter in twin.named_parameters():
        arena = twin.arena if parameter.trainable else twin._frozen_arena
        assert parameter._arena is arena and np.shares_memory(parameter.value, arena.values)
    after = trained(twin, bp.Adam(0.1).setup(twin))
    for value, kept in zip(model._values(), before, strict=True):
        np.testing.assert_array_equal(value.value, kept)
    # The gradient of a bias: for a constant dy, as here, those of weights around a normalisation are zero.
    assert np.abs(twin[2].bias.value - model[2].bias.value).min() > 0.01
    np.testing.assert_array_equal(after, trained(model, bp.Adam(0.1).setup(model)))


@pytest.mark.parametrize("model_first", [True, False])
def test_an_optimizer_copied_with_its_model_trains_the_copy(model_first):
    model = built(mlp(), (3,))
    optimizer = bp.Adam(0.1).setup(model)
    before = trained(model, optimizer)
    if model_first:
        twin, peer = copy.deepcopy((model, optimizer))
    else:
        peer, twin = copy.deepcopy((optimizer, model))
    assert peer.is_setup_for(twin)
    after = trained(twin, peer)
    np.testing.assert_array_equal(model.arena.values, before)
    np.testing.assert_array_equal(after, trained(model, optimizer))


def test_a_part_of_a_built_model_can_be_copied():
    model = built(mlp(), (3,))
    x = draw(5, 3)
    for part in (model[0], model[:2]):
        twin = copy.deepcopy(part)
        y, _ = run(twin, x)
        np.testing.assert_array_equal(y, part(x))
        weight = next(parameter for _, parameter in twin.named_parameters())
        assert weight.grad.any() and not model[0].weight.grad.any()
        weight.value = np.zeros((4, 3))
        assert np.shares_memory(weight.value, weight._arena.values) and model[0].weight.value.any()


# Recompute ------------------------------------------------------------------------------------------------------------


def noisy(wrap):
    return bp.Sequential(
        bp.Dropout(0.5),
        wrap(bp.Sequential(bp.Linear(4, 4), bp.BatchNorm1d(), bp.Dropout(0.5), bp.Tanh(), bp.Dropout(0.25))),
        bp.Dropout(0.5),
        bp.Linear(4, 2),
    )


@pytest.mark.parametrize("wrap", [bp.Recompute, lambda layer: bp.Recompute(bp.Sequential(bp.Recompute(layer)))])
def test_recompute_with_dropout_and_batch_norm(wrap):
    plain, recomputed = built(noisy(lambda layer: layer), (4,)), built(noisy(wrap), (4,))
    for (_, theirs), (_, mine) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        mine.value = theirs.value
    for step in range(3):  # running statistics move with every step, and must move once
        x = draw(6, 4, seed=step)
        expected = run(plain, x, bp.Context(training=True, seed=3, step=step))
        actual = run(recomputed, x, bp.Context(training=True, seed=3, step=step))
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    for theirs, mine in zip(plain._values(), recomputed._values(), strict=True):
        np.testing.assert_array_equal(mine.value, theirs.value)
    for one, other in zip(gradients(recomputed).values(), gradients(plain).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_recompute_over_micro_batches_draws_the_masks_of_the_whole_batch():
    model = built(bp.Recompute(bp.Sequential(bp.Dropout(0.5), bp.Tanh(), bp.Dropout(0.5))), (4,))
    x = draw(6, 4)
    _, whole = run(model, x, bp.Context(training=True, step=0))
    parts = [run(model, x[i : i + 2], bp.Context(training=True, step=0, sample_offset=i))[1] for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# Values, gradients, and what is fixed at the build --------------------------------------------------------------------


def test_assigning_a_value_copies_into_the_arena():
    model = built(mlp(), (3,))
    weight = model[0].weight
    memory, new = weight.value, draw(4, 3, seed=5)
    weight.value = new
    assert weight.value is memory and np.shares_memory(memory, model.arena.values)
    np.testing.assert_array_equal(memory, new)
    new[...] = 0
    assert memory.any()
    weight.value = draw(4, 3, dtype=np.float64)
    assert weight.value.dtype == np.float32
    with pytest.raises(ShapeError, match=r"parameter '0\.weight' expected a value of shape \(4, 3\), got \(3,\)"):
        weight.value = draw(3)
    with pytest.raises(ShapeError, match=r"'0\.weight' expected a gradient of shape \(4, 3\), got \(3,\)"):
        weight.grad = draw(3)


def test_lists_are_values_too():
    model = built(bp.Sequential(bp.Linear(2, 2), bp.BatchNorm1d()), (2,))
    model[0].weight.value = [[1, 2], [3, 4]]
    model[0].weight.grad = [(1, 2), (3, 5)]
    model[1].running_mean.value = [1, 2]
    np.testing.assert_array_equal(model[0].weight.value, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(model[0].weight.grad, [[1, 2], [3, 5]])
    np.testing.assert_array_equal(model[1].running_mean.value, [1, 2])
    with pytest.raises(ShapeError, match=r"'0\.weight' expected a value of shape \(2, 2\), got \(2,\)"):
        model[0].weight.value = [1, 2]
    for wrong in ([[1, 2], [3]], [["a", "b"], ["c", "d"]], None, "weights"):
        with pytest.raises(ShapeError, match=r"'0\.weight' expected a value of shape \(2, 2\), got"):
            model[0].weight.value = wrong
    np.testing.assert_array_equal(model[0].weight.value, [[1, 2], [3, 4]])


def test_an_array_assigned_over_a_parameter_is_an_error():
    layer = bp.Linear(3, 4)
    with pytest.raises(BuildError, match=r"Linear: 'weight' is a Parameter and cannot become an array"):
        layer.weight = draw(4, 3)
    model = built(bp.Sequential(layer, bp.BatchNorm1d()), (3,))
    with pytest.raises(BuildError, match=r"Linear '0': 'weight' cannot be set .* assign to \.weight\.value"):
        layer.weight = draw(4, 3)
    with pytest.raises(BuildError, match=r"BatchNorm1d '1': 'running_mean' .* assign to \.running_mean\.value"):
        model[1].running_mean = draw(4)
    with pytest.raises(BuildError, match="Linear '0': 'bias' cannot be set"):
        layer.bias = None


class Head(bp.Layer):
    """A layer with a part, a list of parts, and a plain setting."""

    def __init__(self):
        self.part = bp.Linear(3, 3)
        self.parts = [bp.Linear(3, 3)]
        self.scale = 2.0

    def declare(self, input_shape):
        return self.parts[0].declare(self.part.declare(input_shape))


@pytest.mark.parametrize("name", ["part", "parts", "scale", "other"])
@pytest.mark.parametrize("value", [bp.Parameter(None), bp.Buffer(), bp.ReLU(), [bp.ReLU()]])
def test_parameters_and_layers_are_fixed_at_the_build(name, value):
    model = built(Head(), (3,))
    with pytest.raises(BuildError, match=f"Head: '{name}' cannot be set after the build"):
        setattr(model, name, value)


def test_parts_cannot_be_taken_out_but_settings_can_be_changed():
    model = built(Head(), (3,))
    for name in ("part", "parts"):
        with pytest.raises(BuildError, match=f"Head: '{name}' cannot be set after the build"):
            setattr(model, name, None)
    model.scale = 3.0
    assert model.scale == 3


def test_before_the_build_there_is_no_value():
    with pytest.raises(BuildError, match=r"Linear: not built yet: call model\.build"):
        bp.Linear(3, 4)(draw(2, 3))
    with pytest.raises(BuildError, match=r"Linear: not built yet; call model\.build"):
        _ = bp.Linear(3, 4).arena
    with pytest.raises(BuildError, match="Linear '0': its parameters lie in the arena of the model that it is part of"):
        _ = built(mlp(), (3,))[0].arena


def test_frozen_parameters_have_no_gradient_and_no_place_among_the_trained():
    model = mlp()
    model[0].weight.trainable = False
    built(model, (3,))
    frozen = model[0].weight
    assert frozen.grad is None and "0.weight" not in model.arena.offsets
    assert not np.shares_memory(frozen.value, model.arena.values)
    assert model.arena.size == 128 * 3
    before = frozen.value.copy()
    optimizer = bp.AdamW(lr=0.1).setup(model)
    run(model, draw(5, 3))
    optimizer.step()
    np.testing.assert_array_equal(frozen.value, before)
    assert [c.layer for c in check(model, draw(5, 3)) if c.direction == "weight"] == ["Linear '2'"]
    with pytest.raises(BuildError, match=r"'0\.weight' is built: set trainable before model\.build"):
        frozen.trainable = True
    with pytest.raises(BuildError, match=r"'0\.weight' is frozen or not built: it has no gradient"):
        frozen.grad = before


def test_a_frozen_embedding_and_a_model_without_any_trainable_parameter():
    model = bp.Sequential(bp.Embedding(5, 3), bp.Linear(3, 2))
    for _, parameter in model.named_parameters():
        parameter.trainable = False
    built(model, (4,))
    assert model.arena.size == 0
    run(model, np.zeros((2, 4), np.int64))


def test_accumulated_gradients_are_the_sum():
    model = built(mlp(), (3,))
    parts = []
    for seed in (1, 2):
        model.arena.consume_gradients()
        run(model, draw(5, 3, seed=seed))
        parts.append(gradients(model))
    model.arena.consume_gradients()
    for seed in (1, 2):
        run(model, draw(5, 3, seed=seed))
    for name, gradient in gradients(model).items():
        np.testing.assert_allclose(gradient, parts[0][name] + parts[1][name], rtol=1e-5, atol=1e-6)


def test_the_first_gradient_after_a_step_overwrites():
    model = built(mlp(), (3,))
    run(model, draw(5, 3))
    once = gradients(model)
    bp.AdamW(lr=0.0).setup(model).step()
    run(model, draw(5, 3))
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(gradient, once[name])


def test_a_gradient_that_nobody_wrote_is_zero():
    model = built(mlp(), (3,))
    model.arena.gradients[...] = np.nan
    for gradient in gradients(model).values():
        assert (gradient == 0).all()
    run(model, draw(5, 3))  # a gradient that was read counts as written: the first contribution adds to the zeros
    after_reading = gradients(model)
    model.arena.consume_gradients()
    run(model, draw(5, 3))
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(gradient, after_reading[name])


class Half(bp.Layer):
    """Two layers of which forward uses one."""

    def __init__(self):
        self.used, self.idle = bp.Linear(3, 3), bp.Linear(3, 3)

    def declare(self, input_shape):
        self.idle.declare(input_shape)
        return self.used.declare(input_shape)

    def forward(self, x, ctx):
        return self.used.forward(x, ctx)

    def backward(self, dy, ctx):
        return self.used.backward(dy, ctx)


def test_a_layer_that_a_step_leaves_out_does_not_move():
    model = built(Half(), (3,))
    model.arena.gradients[...] = np.nan
    before = model.idle.weight.value.copy()
    optimizer = bp.Adam(lr=0.1).setup(model)
    run(model, draw(5, 3))
    optimizer.step()
    np.testing.assert_array_equal(model.idle.weight.value, before)
    assert np.isfinite(model.used.weight.value).all()


# Building -------------------------------------------------------------------------------------------------------------


def test_building_twice():
    model = built(mlp(), (3,))
    values = model.arena.values.copy()
    with pytest.raises(BuildError, match="Sequential: already built"):
        model.build((3,))
    with pytest.raises(BuildError, match="Linear '0': already built"):
        model[0].build((3,))
    with pytest.raises(BuildError, match="Linear '0': already built as part of another model"):
        bp.Sequential(bp.Linear(3, 3), model[0]).build((3,))
    assert model[0].label == "Linear '0'"
    np.testing.assert_array_equal(model.arena.values, values)


def fails_in_its_initializer(shape, generator):
    raise ConfigurationError("expected a matrix")


class FailsInDeclare(bp.Layer):
    failing = True

    def declare(self, input_shape):
        if self.failing:
            raise KeyError("a mistake in a user's own code")
        return input_shape


def test_a_failed_build_leaves_the_model_buildable_at_another_size():
    model = bp.Sequential(bp.Linear(None, 4), bp.BatchNorm1d(), bp.Linear(5, 2))
    with pytest.raises(ShapeError, match=r"Linear '2': expected 5 features"):
        model.build((3,))
    model = bp.Sequential(model[0], model[1])
    assert model.build((7,)) == (4,)
    assert model[0].weight.shape == (4, 7)

    model = bp.Sequential(bp.Linear(None, 4), FailsInDeclare())
    with pytest.raises(KeyError):
        model.build((3,))
    model[1].failing = False
    assert model.build((7,)) == (4,)

    model = bp.Sequential(bp.Linear(None, 4), bp.Linear(4, 2, weight_initializer=fails_in_its_initializer))
    with pytest.raises(ConfigurationError, match="expected a matrix"):
        model.build((3,))
    assert not model.built and model[0].weight.shape is None
    with pytest.raises(BuildError):
        _ = model.arena
    model[0].weight.trainable = False
    model[1].weight.initializer = lambda shape, generator: np.zeros(shape)
    assert model.build((7,)) == (2,)
    assert "0.weight" not in model.arena.offsets
    run(model, draw(5, 7))


def test_a_parameter_that_declare_forgets():
    class Forgetful(bp.Layer):
        def __init__(self):
            self.inner = bp.Linear(3, 3)

    with pytest.raises(BuildError, match=r"parameter 'inner\.weight' was given no shape"):
        Forgetful().build((3,))


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float16", "bfloat16", "bool", np.int64, ">f4", "nonsense"])
def test_a_dtype_that_nothing_is_computed_in(dtype):
    model = mlp()
    with pytest.raises(ConfigurationError, match="on device 'cpu': expected float32 or float64"):
        model.build((3,), dtype=dtype)
    assert not model.built and model[0]._name == ""
    model.build((3,), dtype=np.float32)
    with pytest.raises(ConfigurationError, match="expected float32 or float64"):
        model.copy(dtype=dtype)


def test_arguments_by_keyword():
    model = bp.Sequential(bp.Linear(3, 4))
    assert model[0].declare(input_shape=(3,)) == (4,)
    model.build((3,))
    x, dy, ctx = draw(5, 3), draw(5, 4), bp.Context(training=True)
    np.testing.assert_array_equal(model[0].forward(x=x, ctx=ctx), model(x))
    np.testing.assert_array_equal(model[0].backward(dy=dy, ctx=ctx), dy @ model[0].weight.value)


def test_one_name_and_seed_is_one_value_wherever_the_layer_stands():
    small, large = built(bp.Sequential(bp.Linear(3, 4)), (3,)), built(mlp(), (3,))
    np.testing.assert_array_equal(small[0].weight.value, large[0].weight.value)
    assert not np.array_equal(small[0].weight.value, built(mlp(), (3,), seed=1)[0].weight.value)


# Bad input changes nothing --------------------------------------------------------------------------------------------


def test_bad_input_leaves_values_gradients_and_statistics_alone():
    model = built(bp.Sequential(bp.Embedding(5, 3), bp.BatchNorm1d(), bp.Linear(3, 2)), (4,))
    run(model, np.ones((2, 4), np.int64))
    values, kept = [np.array(v.value) for v in model._values()], gradients(model)
    with pytest.raises(DataError, match=r"Embedding '0': .*got 9 at position \(0, 3\)"):
        run(model, np.array([[0, 1, 2, 9]]))
    for value, before in zip(model._values(), values, strict=True):
        np.testing.assert_array_equal(value.value, before)
    for name, gradient in gradients(model).items():
        np.testing.assert_array_equal(gradient, kept[name])


LAYERS = [
    *(bp.ReLU, bp.LeakyReLU, bp.ELU, bp.GELU, bp.SiLU, bp.Sigmoid, bp.Tanh, bp.Softplus, bp.Mish, bp.Hardswish),
    *(bp.Softmax, bp.LogSoftmax, bp.Dropout, bp.Flatten, bp.BatchNorm1d, bp.LayerNorm, bp.RMSNorm),
    lambda: bp.Linear(4, 4),
    lambda: bp.Residual(bp.ReLU()),
    lambda: bp.Concat(bp.ReLU(), bp.Sequential()),
    lambda: bp.Recompute(bp.ReLU()),
    lambda: bp.Sequential(bp.Residual(bp.Sequential()), bp.Dropout(0.0)),
]


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_layer_writes_into_what_it_is_given(make, dtype):
    layer = built(make(), (4,), dtype=dtype)
    ctx = bp.Context(training=True)
    x = draw(6, 4, dtype=dtype)
    x.flags.writeable = False
    y = layer.forward(x, ctx)
    y.flags.writeable = False  # the next layer may have kept it
    dy = draw(*y.shape, dtype=dtype)
    dy.flags.writeable = False  # another branch may receive it too
    layer.backward(dy, ctx)


# The first layers of a network ----------------------------------------------------------------------------------------


class Scale(bp.Layer):
    """A layer that needs nothing in backward, and so saves nothing."""

    def forward(self, x, ctx):
        return 2 * x

    def backward(self, dy, ctx):
        return 2 * dy


FIRST = {
    "saves nothing": lambda: [Scale()],
    "identity": lambda: [bp.Sequential()],
    "both kinds": lambda: [bp.Tanh(), Scale(), bp.Sequential(), bp.Dropout(0.5), Scale()],
    "nested": lambda: [bp.Tanh(), bp.Sequential(Scale(), bp.Tanh(), bp.Sequential(Scale(), bp.Linear(3, 3)))],
    "used twice": lambda: [tanh := bp.Tanh(), scale := Scale(), tanh, bp.Sequential(scale, tanh, bp.Linear(3, 3))],
    "no parameters inside": lambda: [bp.Sequential(Scale(), bp.Tanh()), bp.Residual(Scale())],
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_first_layers_without_parameters(first):
    model = built(bp.Sequential(*first(), bp.Linear(3, 4), bp.Tanh()), (3,))
    found = []
    for method in ("backward", "backward_parameters"):
        model.arena.consume_gradients()
        ctx = bp.Context(training=True, step=0)
        outer = bp.Tanh()
        model.forward(outer.forward(draw(5, 3), ctx), ctx)
        getattr(model, method)(draw(5, 4), ctx)
        assert ctx.open_layers == ["Tanh"]  # what was saved before is left
        found.append(gradients(model))
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(found[1][name], gradient)
    check(model, draw(5, 3))
