"""summary: every use of every layer, with shapes, parameters and memory, and a model that is left as it was."""

import numpy as np
import pytest

import bp
from bp import models
from bp.diagnostics import summary
from bp.errors import BuildError, ShapeError


def rows(table):
    return [(row.path, row.kind, row.depth, row.output_shape, row.parameters) for row in table.rows]


def test_layers_in_order_with_shapes_and_parameters():
    model = bp.Sequential(bp.Conv2d(None, 4, 3), bp.ReLU(), bp.Flatten(), bp.Linear(None, 5, bias=False))
    table = summary(model, (6, 6, 2))
    assert rows(table) == [
        ("0", "Conv2d", 0, (4, 4, 4), 76),
        ("1", "ReLU", 0, (4, 4, 4), 0),
        ("2", "Flatten", 0, (64,), 0),
        ("3", "Linear", 0, (5,), 320),
    ]
    assert table.parameters == 396
    text = str(table)
    assert "0 Conv2d" in text and "(N, 4, 4, 4)" in text and "396 parameters" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_model_that_is_not_built_stays_so():
    model = bp.Sequential(bp.Linear(None, 3))
    summary(model, (7,))
    assert model.build((4,)) == (3,)
    assert rows(summary(model)) == [("0", "Linear", 0, (3,), 15)]
    assert "declare" not in vars(model) and "declare" not in vars(model.layers[0])


def test_a_built_model_keeps_its_weights():
    model = models.resnet20((8, 8, 3), classes=4)
    model.build((8, 8, 3))
    before = np.array(model.arena.values)
    table = summary(model)
    np.testing.assert_array_equal(model.arena.values, before)
    assert table.parameters == sum(p.size for _, p in model.named_parameters())
    assert [row.depth for row in table.rows if row.path.startswith("3")][:3] == [0, 1, 2]


def test_layers_used_twice_and_tied_and_frozen_parameters_count_once():
    shared = bp.Linear(4, 4)
    frozen = bp.Linear(4, 2)
    frozen.weight.trainable = False
    tied = bp.Linear(4, 4)
    tied.weight = shared.weight
    model = bp.Sequential(shared, bp.ReLU(), shared, tied, frozen)
    table = summary(model, (4,))
    assert [row.parameters for row in table.rows] == [20, 0, 0, 4, 10]
    assert (table.trainable, table.frozen) == (26, 8)
    assert "(8 of them frozen)" in str(table)


def test_memory_is_that_of_the_arena_and_the_moments():
    model = models.mlp((64,), classes=10)
    model.build((64,))
    optimizer = bp.AdamW().setup(model)
    table = summary(model, optimizer=optimizer)
    assert table.weight_bytes == model.arena.values.nbytes
    assert table.gradient_bytes == model.arena.gradients.nbytes
    assert table.moment_bytes == sum(moment.nbytes for moment in optimizer.moments.values())
    assert summary(model, optimizer=bp.SGD(lr=0.1)).moment_bytes == 0


def test_a_lone_layer_is_its_own_row():
    assert rows(summary(bp.Linear(None, 2), (3,))) == [("", "Linear", 0, (2,), 8)]


def test_errors():
    with pytest.raises(BuildError, match=r"summary\(model, input_shape\) needs the shape of a sample"):
        summary(bp.Sequential(bp.Linear(None, 2)))
    model = bp.Sequential(bp.Linear(3, 2))
    with pytest.raises(ShapeError):
        summary(model, (4,))
    assert model.build((3,)) == (2,)
