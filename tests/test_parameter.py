"""Parameter, Buffer and Arena: shapes, memory, and which contribution to a gradient overwrites."""

import numpy as np
import pytest

import bp
from bp.errors import BuildError, ShapeError
from bp.initializers import Zeros
from bp.layers.arena import Arena
from bp.layers.parameter import Buffer, Parameter, gradients
from bp.ops.device import find_device
from bp.ops.optimizer import TILE


def laid_out(*shapes, dtype=np.float32, trainable=True):
    parameters = []
    for number, shape in enumerate(shapes):
        parameter = Parameter(Zeros(), trainable=trainable)
        parameter.name = f"p{number}"
        parameter.declare(shape)
        parameters.append(parameter)
    return Arena(parameters, find_device("cpu"), dtype, trainable=trainable), parameters


def test_layout_by_tiles():
    arena, parameters = laid_out((3, 5), (), (TILE,), (0, 4), (TILE + 1, 2))
    assert list(arena.offsets.values()) == [0, TILE, 2 * TILE, 3 * TILE, 3 * TILE]
    assert arena.size == 6 * TILE
    assert [p.size for p in parameters] == [15, 1, TILE, 0, 2 * TILE + 2]
    for number, parameter in enumerate(parameters):
        parameter.value = np.full(parameter.shape, number + 1)
        assert parameter.value.shape == parameter.grad.shape == parameter.shape
    filled = np.zeros(arena.size)
    for number, parameter in enumerate(parameters):
        offset = arena.offsets[parameter.name]
        filled[offset : offset + parameter.size] = number + 1
    np.testing.assert_array_equal(arena.values, filled)  # padding between the parameters is zero
    assert arena.zeros_like().shape == (arena.size,)


def test_padding_stays_zero_through_training():
    model = bp.Sequential(bp.Linear(3, 5), bp.Tanh(), bp.Linear(5, 2))
    model.build((3,))
    optimizer = bp.AdamW(lr=0.1, weight_decay=0.1).setup(model)
    for seed in range(3):
        ctx = bp.Context(training=True)
        model.forward(np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32), ctx)
        model.backward(np.ones((4, 2), np.float32), ctx)
        optimizer.step()
    padding = np.ones(model.arena.size, bool)
    for parameter in model.arena.parameters:
        start = model.arena.offsets[parameter.name]
        padding[start : start + parameter.size] = False
        assert parameter.value.any()
    for flat in (model.arena.values, model.arena.gradients, *optimizer.moments.values()):
        assert not flat[padding].any()


def test_an_arena_of_nothing():
    arena, _ = laid_out()
    assert arena.size == 0 and arena.values.shape == arena.gradients.shape == (0,)


def test_an_arena_of_frozen_parameters_has_no_gradients():
    arena, (parameter,) = laid_out((3,), trainable=False)
    assert arena.gradients is None and parameter.grad is None
    assert gradients(parameter) == (None, False)


def test_first_contribution_overwrites_and_later_ones_add():
    arena, (a, b) = laid_out((3,), (2,))
    arena.gradients[...] = np.nan
    da, db, accumulate = gradients(a, b)
    assert accumulate is False and np.shares_memory(da, arena.gradients)
    da[...], db[...] = 1, 2
    assert gradients(a, b)[2] is True
    np.testing.assert_array_equal(a.grad, [1, 1, 1])
    arena.consume_gradients()
    assert gradients(a, b)[2] is False


def test_where_one_of_two_was_written_the_other_starts_at_zero():
    arena, (a, b) = laid_out((3,), (2,))
    arena.gradients[...] = np.nan
    gradients(a)[0][...] = 5
    da, db, accumulate = gradients(a, b)
    assert accumulate is True
    np.testing.assert_array_equal(da, [5, 5, 5])
    np.testing.assert_array_equal(db, [0, 0])


def test_absent_parameters_have_no_destination():
    _, (a,) = laid_out((3,))
    assert gradients(None) == (None, False)
    nothing, da, accumulate = gradients(None, a)
    assert nothing is None and da is a._grad and accumulate is False


def test_completing_gradients_zeroes_what_nobody_wrote():
    arena, (a, b) = laid_out((3,), (2,))
    arena.gradients[...] = np.nan
    gradients(a)[0][...] = 5
    arena.complete_gradients()
    np.testing.assert_array_equal(a.grad, [5, 5, 5])
    np.testing.assert_array_equal(b.grad, [0, 0])


def test_assigning_copies_into_memory_that_stays():
    _, (a,) = laid_out((3,))
    value, gradient = a.value, a.grad
    a.value, a.grad = np.arange(3.0), np.arange(3)
    assert a.value is value and a.grad is gradient
    np.testing.assert_array_equal(value, [0, 1, 2])
    np.testing.assert_array_equal(gradient, [0, 1, 2])
    assert gradients(a)[1] is True  # an assigned gradient counts, as a contribution


def test_a_parameter_without_memory():
    parameter = Parameter(Zeros())
    assert parameter.grad is None and parameter.trainable
    with pytest.raises(BuildError, match="not built yet"):
        _ = parameter.value
    with pytest.raises(BuildError, match="not built"):
        parameter.grad = np.zeros(3)
    parameter.declare((2, 3))
    parameter.declare((2, 3))
    with pytest.raises(ShapeError, match=r"of shape \(2, 3\) cannot also have shape \(3, 2\)"):
        parameter.declare((3, 2))
    parameter.name = "weight"
    assert repr(parameter) == "Parameter('weight', shape=(2, 3), trainable=True)"


def test_buffers():
    layer = bp.BatchNorm1d()
    layer.build((4,))
    memory = layer.running_mean.value
    layer.running_mean.value = np.arange(4)
    assert layer.running_mean.value is memory
    np.testing.assert_array_equal(memory, np.arange(4, dtype=np.float32))
    with pytest.raises(ShapeError, match=r"buffer 'running_mean' expected a value of shape \(4,\), got \(3,\)"):
        layer.running_mean.value = np.zeros(3)
    with pytest.raises(BuildError, match="not built yet"):
        _ = Buffer().value


def test_a_copy_has_values_of_its_own():
    model = bp.Sequential(bp.Linear(3, 4), bp.BatchNorm1d())
    model.build((3,))
    model[1].running_mean.value = np.arange(4)
    twin = model.copy(dtype=np.float64)
    assert twin.arena.values.dtype == np.float64 and twin[1].running_mean.value.dtype == np.float64
    for (name, mine), (other, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert name == other
        np.testing.assert_array_equal(mine.value, theirs.value)
        assert not np.shares_memory(mine.value, theirs.value)
    np.testing.assert_array_equal(twin[1].running_mean.value, np.arange(4))
    assert twin.built and twin[0].label == "Linear '0'"
