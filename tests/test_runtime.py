"""Memory of the CPU device: a slot is handed out again only when nobody can see it any more."""

import threading
import tracemalloc

import numpy as np
import pytest

import bp
from bp.cpu.runtime import StepMemory, empty
from bp.ops.memory import active_memory, only_caller_holds


def address(array):
    return array.__array_interface__["data"][0]


def test_without_a_step_memory_every_array_is_fresh():
    a = empty((3, 4), np.float32)
    kept = address(a)
    b = empty((3, 4), np.float32)
    assert a.shape == (3, 4) and a.flags.c_contiguous and address(b) != kept


def test_a_free_slot_is_used_again():
    with StepMemory():
        a = empty((3, 4), np.float32)
        kept = address(a)
        del a
        assert address(empty((3, 4), np.float32)) == kept


HOLDERS = {
    "name": lambda a: a,
    "list": lambda a: [a],
    "view": lambda a: a[1:],
    "reshape": lambda a: a.reshape(-1),
    "transpose": lambda a: a.T,
    "view of a view": lambda a: a.reshape(-1)[2:5],
    "flat iterator": lambda a: a.flat,
    "buffer": memoryview,
    "closure": lambda a: lambda: a,
    "array interface": lambda a: np.asarray(memoryview(a)),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_slot_that_somebody_holds_is_never_handed_out(hold):
    with StepMemory():
        a = empty((3, 4), np.float32)
        kept = address(a)
        holder = hold(a)
        del a
        assert address(empty((3, 4), np.float32)) != kept
        del holder
        others = [empty((3, 4), np.float32) for _ in range(2)]
        assert kept in {address(other) for other in others}


def test_a_slot_that_pytorch_holds_is_never_handed_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    with StepMemory():
        a = empty((3, 4), np.float32)
        kept = address(a)
        tensor = torch.from_numpy(a)
        del a
        assert address(empty((3, 4), np.float32)) != kept
        assert tensor.shape == (3, 4)


def test_slots_are_apart_by_shape_and_dtype():
    with StepMemory() as memory:
        arrays = [empty(shape, dtype) for shape in ((3, 4), (12,), (4, 3)) for dtype in (np.float32, np.float64)]
        assert len({address(a) for a in arrays}) == 6
        assert memory.nbytes == 3 * 12 * (4 + 8)
        assert empty((0, 4), np.float32).shape == (0, 4) and empty((), np.float32).shape == ()


def test_a_slot_is_found_by_any_name_of_its_dtype():
    with StepMemory() as memory:
        for dtype in (np.float32, np.dtype(np.float32), "float32", "f4"):
            empty((3, 4), dtype)
        assert memory.nbytes == 3 * 4 * 4


def test_results_of_a_step_outlive_it():
    memory = StepMemory()
    with memory:
        result = empty((4,), np.float32)
        result[...] = 1
    with memory:
        empty((4,), np.float32)[...] = 2
    assert (result == 1).all()


def test_who_else_holds_an_array():
    array, other = np.empty((3, 4)), np.empty(2)
    assert only_caller_holds(array) and only_caller_holds(other)
    kept = [array]
    assert not only_caller_holds(array)
    del kept[:]
    view = array[1:]
    assert not only_caller_holds(array) and not only_caller_holds(view)
    del view
    with StepMemory():
        slot, second = empty((3, 4), np.float64), empty((3, 4), np.float64)
        assert only_caller_holds(slot) and only_caller_holds(second)
        flat = slot.reshape(-1)
        assert not only_caller_holds(slot) and not only_caller_holds(flat)
    assert only_caller_holds(array)


def test_nested_memories():
    outer, inner = StepMemory(), StepMemory()
    with outer:
        with inner:
            empty((5,), np.float32)
            with inner:  # a step within a step, such as an evaluation that uses the same memory
                empty((5,), np.float32)
            assert active_memory() is inner
        assert active_memory() is outer
        empty((7,), np.float32)
    assert active_memory() is None
    assert (outer.nbytes, inner.nbytes) == (28, 20)


def test_an_error_within_a_step_ends_it():
    with pytest.raises(KeyError), StepMemory():
        raise KeyError
    assert active_memory() is None


def test_another_thread_has_no_part_in_it():
    seen = []
    with StepMemory() as memory:
        thread = threading.Thread(target=lambda: seen.append(empty((3,), np.float32)))
        thread.start()
        thread.join()
        assert memory.nbytes == 0 and len(seen) == 1


def test_slots_of_a_shape_that_is_not_used_any_more_are_given_back():
    memory = StepMemory(keep_steps=4)
    with memory:
        empty((1000,), np.float32)
    for _ in range(3):
        with memory:
            empty((10,), np.float32)
    assert memory.nbytes == 4040
    for _ in range(4):
        with memory:
            empty((10,), np.float32)
    assert memory.nbytes == 40


def test_a_training_step_in_steady_state_allocates_nothing():
    width = 512
    model = bp.Sequential(
        bp.Linear(width, width),
        bp.GELU(),
        bp.Dropout(0.1),
        bp.Residual(bp.Sequential(bp.Linear(width, width), bp.ReLU())),
        bp.Recompute(bp.Concat(bp.Sequential(), bp.SiLU())),
        bp.Linear(2 * width, 16),
        bp.Tanh(),
    )
    model.build((width,))
    x, dy = np.ones((256, width), np.float32), np.ones((256, 16), np.float32)
    memory = StepMemory()

    def step(number):
        with memory:
            ctx = bp.Context(training=True, step=number)
            model.forward(x, ctx)
            model.backward(dy, ctx)
        model.arena.consume_gradients()

    for number in range(2):
        step(number)
    held = memory.nbytes
    tracemalloc.start()
    try:
        for number in range(10):
            step(number)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory.nbytes == held
    if bp.cpu.native.kernels is not None:  # NumPy's formulas use a few temporaries inside an operation
        assert peak < x.nbytes / 4, "an activation was allocated outside of bp.cpu.runtime.empty"


def test_training_with_and_without_step_memory_is_the_same():
    def train(memory):
        model = bp.Sequential(
            bp.Linear(6, 32), bp.GELU(), bp.Dropout(0.2), bp.Residual(bp.Linear(32, 32)), bp.Linear(32, 3)
        )
        model.build((6,))
        optimizer = bp.AdamW(lr=0.01).setup(model)
        loss = bp.CrossEntropyLoss()
        generator = np.random.default_rng(0)
        for step in range(10):
            x, labels = generator.standard_normal((8, 6)).astype(np.float32), generator.integers(0, 3, 8)
            with memory():
                ctx = bp.Context(training=True, step=step)
                loss.forward(model.forward(x, ctx), labels, ctx)
                model.backward(loss.backward(ctx), ctx)
                optimizer.step()
        return model.arena.values

    from contextlib import nullcontext

    shared = StepMemory()
    np.testing.assert_array_equal(train(lambda: shared), train(nullcontext))
