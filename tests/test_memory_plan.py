"""The memory plan, made before the first step, agrees with what training then holds."""

import numpy as np
import pytest
from table import KERNEL_DEVICE

import bp
from bp.planning import plan_step


def mlp():
    return bp.Sequential(
        bp.Linear(None, 48), bp.ReLU(), bp.Dropout(0.2), bp.Linear(None, 24), bp.GELU(), bp.Linear(None, 3)
    )


def cnn():
    return bp.Sequential(
        bp.Conv2d(None, 8, 3, padding=1), bp.BatchNorm2d(), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten(), bp.Linear(None, 3)
    )


def recomputing():
    return bp.Sequential(
        bp.Recompute(bp.Sequential(bp.Linear(None, 48), bp.GELU(), bp.Linear(None, 24))), bp.Linear(None, 3)
    )


MODELS = [(mlp, (20,)), (cnn, (8, 8, 2)), (recomputing, (20,))]


@pytest.mark.parametrize(("make", "shape"), MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("optimizer", "fuse"), [(bp.AdamW(), True), (bp.SGD(momentum=0.9), True), (bp.AdamW(), False)])
def test_the_plan_is_what_is_used(make, shape, precision, optimizer, fuse):
    x = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    plan = bp.memory_plan(make(), x.shape, optimizer=optimizer, precision=precision, fuse=fuse)
    model = make()
    trainer = bp.Trainer(
        model, bp.CrossEntropyLoss(), optimizer, device=KERNEL_DEVICE, precision=precision, fuse=fuse, progress=False
    )
    trainer.fit(bp.Loader(bp.ArrayDataset(x, np.zeros(16, np.int64)), 16), max_steps=4)
    (recorded,) = trainer._graph._by_shape.values()
    assert plan.step == recorded.memory.nbytes
    arena = model.arena
    assert plan.parameters == arena.values.nbytes
    assert plan.gradients == arena.gradients.nbytes
    assert plan.low_precision == (arena.low_precision.nbytes if precision == "bf16" else 0)
    assert plan.buffers == sum(buffer.value.nbytes for _, buffer in model.named_buffers())
    state = [*optimizer.moments.values(), optimizer.settings, optimizer.control]
    assert plan.moments == sum(array.nbytes for array in state)


def test_the_model_and_the_optimizer_are_left_alone():
    model, optimizer = mlp(), bp.AdamW()
    bp.memory_plan(model, (4, 20), optimizer=optimizer)
    assert not model.built and optimizer._arena is None
    model.build((20,))
    optimizer.setup(model)
    before, moments = np.array(model.arena.values), optimizer.moments
    plan = bp.memory_plan(model, (4, 20), optimizer=optimizer)
    np.testing.assert_array_equal(model.arena.values, before)
    assert optimizer.moments is moments and optimizer.is_setup_for(model)
    assert plan.parameters == before.nbytes


def test_frozen_layers_count_with_their_16_bit_copies():
    def plan(frozen, precision):
        model = mlp()
        for _, parameter in model.layers[0].named_parameters():
            parameter.trainable = not frozen
        return bp.memory_plan(model, (4, 20), precision=precision)

    for precision, narrow in (("fp32", 0.0), ("bf16", 0.5)):
        trained, partly = plan(False, precision), plan(True, precision)
        assert partly.parameters == trained.parameters and partly.low_precision == narrow * partly.parameters
        assert partly.gradients < trained.gradients and partly.moments < trained.moments


def test_a_plan_for_fp16_leaves_the_optimizer_without_loss_scale():
    model, optimizer = mlp(), bp.AdamW()
    model.build((20,))
    optimizer.setup(model)
    names = [
        str(launch.variant) for launch in plan_step(mlp(), (4, 20), optimizer=optimizer, precision="fp16").launches
    ]
    assert "adjust_loss_scale" in names and not optimizer.scales_loss and optimizer.loss_scale == 1


def test_recompute_keeps_less_and_larger_batches_take_more():
    def plan(layer, batch):
        return bp.memory_plan(bp.Sequential(layer, bp.Linear(None, 3)), (batch, 20))

    def block():
        return bp.Sequential(bp.Linear(None, 256), bp.GELU(), bp.Linear(None, 256), bp.GELU())

    assert plan(bp.Recompute(block()), 64).activations < 0.5 * plan(block(), 64).activations
    assert plan(block(), 128).activations == 2 * plan(block(), 64).activations
    assert plan(block(), 128).parameters == plan(block(), 64).parameters


def test_layers_one_by_one_launch_more():
    together, alone = (plan_step(mlp(), (16, 20), fuse=fuse).launches for fuse in (True, False))
    assert len(together) < len(alone)


def test_the_table_adds_up_and_names_the_layers():
    plan = bp.memory_plan(cnn(), (16, 8, 8, 2))
    text = str(plan)
    assert f"{plan.total:,}" in text and "Conv2d '0'" in text and "(16, 8, 8, 2) in float32" in text
    assert sum(count for _, count in plan.by_layer) == plan.activations


def test_integers_in_a_network_of_words():
    model = bp.Sequential(bp.Embedding(50, 8), bp.Flatten(), bp.Linear(None, 3))
    plan = bp.memory_plan(model, (4, 6), input_dtype="int64")
    assert plan.total > 0


def test_launches_come_with_layer_pass_flops_and_bytes():
    launches = plan_step(bp.Sequential(bp.Linear(20, 30, bias=False), bp.Tanh()), (64, 20), loss=bp.MSELoss()).launches
    products = [launch for launch in launches if launch.variant.kernel.name.startswith("gemm")]
    assert [(launch.layer, launch.phase) for launch in products] == [
        ("Linear '0'", "forward"),
        ("Linear '0'", "backward"),
    ]
    assert [launch.flops for launch in products] == [2 * 64 * 20 * 30] * 2
    (tanh,) = (launch for launch in launches if launch.variant.kernel.name == "tanh_forward")
    assert tanh.nbytes == 2 * 64 * 30 * 4
    assert {launch.phase for launch in launches if launch.layer == "AdamW"} == {"step"}
    assert all(launch.seconds is None for launch in launches)
