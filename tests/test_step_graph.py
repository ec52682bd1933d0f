"""A whole step replayed as one: bitwise the eager result, and a plain reason where it cannot be."""

import re
import threading

import numpy as np
import pytest
from table import KERNEL_DEVICE

import bp
import bp.ops.activation
import bp.ops.memory
from bp.callbacks import Callback
from bp.ops.device import device_of

X = np.random.default_rng(0).standard_normal((72, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)


class Messages(Callback):
    """Keeps what a run says."""

    def __init__(self):
        self.texts = []

    def on_message(self, trainer, text):
        self.texts.append(text)


def train(layer=None, steps=8, optimizer=None, batch_size=32, **settings):
    model = bp.Sequential(layer or bp.Linear(6, 16), bp.BatchNorm1d(), bp.Dropout(0.3), bp.ReLU(), bp.Linear(None, 2))
    messages = Messages()
    trainer = bp.Trainer(
        model,
        bp.CrossEntropyLoss(label_smoothing=0.1),
        optimizer or bp.AdamW(lr=0.02),
        schedule=bp.WarmupCosine(warmup_steps=3),
        device=KERNEL_DEVICE,
        progress=False,
        log_every_n_steps=3,
        callbacks=[messages],
        **settings,
    )
    trainer.fit(bp.Loader(bp.ArrayDataset(X, Y), batch_size, shuffle=True), max_steps=steps)
    state = bp.checkpoint.model_arrays(model) | trainer.optimizer.state_dict()
    return trainer, state, messages.texts


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def named(settings):
    """As the id of a test: the same in every process."""
    shown = {k: type(v).__name__ if isinstance(v, bp.optimizers.Optimizer) else v for k, v in settings.items()}
    return str(shown)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "tf32"},
        {"max_grad_norm": 0.5, "ema_decay": 0.9, "clip_value": 0.2},
        {"accumulate_grad_batches": 2},
        {"optimizer": bp.SGD(lr=0.1, momentum=0.9, nesterov=True)},
        {"optimizer": bp.Muon(lr=0.01)},
        {"batch_size": 30},  # the last batch of an epoch, of 12, is a second graph
    ],
    ids=named,
)
def test_replayed_steps_give_bitwise_the_weights_of_eager_ones(settings):
    graph, replayed, said = train(cuda_graph="auto", steps=20, **settings)
    _, eager, _ = train(cuda_graph="off", steps=20, **settings)
    assert graph._graph.reason is None and graph._graph.replaying and said == []
    assert_equal(replayed, eager)
    assert len(graph._graph._by_shape) == 2  # whole batches, and the rest of 72


def test_a_step_in_steady_state_allocates_nothing():
    trainer, _, _ = train(cuda_graph="off", steps=6)
    allocated, device, kind = [], trainer.device, type(trainer.device)

    class Counting(kind):
        def allocate(self, shape, dtype):
            allocated.append((shape, dtype))
            return kind.allocate(self, shape, dtype)

    try:
        device.__class__ = Counting
        with trainer._memory:
            for _ in range(3):
                trainer._compute([(device.zeros((32, 6), trainer.dtype), device.zeros((32,), np.int64))])
    finally:
        device.__class__ = kind
    batches = [entry for entry in allocated if entry[0] in ((32, 6), (32,))]
    assert len(allocated) == len(batches), allocated


class Restless(bp.Layer):
    """A layer whose launches differ from step to step."""

    def __init__(self, how):
        self.how = how
        self.calls = 0
        self.linear = bp.Linear(None, 16)

    def declare(self, shape):
        return self.linear.declare(shape)

    def forward(self, x, ctx):
        self.calls += 1
        if self.how == "value":
            x = bp.ops.activation.leaky_relu(x, 0.01 * self.calls)
        elif self.how == "kernel" and self.calls % 2:
            x = bp.ops.activation.relu(x)
        elif self.how == "host" or (self.how == "now and then" and self.calls % 2):
            device_of(x).to_host(x)
        elif self.how == "upload":
            x = device_of(x).from_host(np.zeros(x.shape, x.dtype))
        return self.linear.forward(x, ctx)

    def backward(self, dy, ctx):
        return self.linear.backward(dy, ctx)


REASONS = [
    ("value", r"kernel leaky_relu_forward\[b?float\d*\]: another value of argument 'negative_slope' than before"),
    ("kernel", r"kernel .+ where .+ ran before|launches where there were"),
    ("host", r"the device is read by the host in the forward of Restless '0' within the step"),
    ("now and then", r"the device is read by the host in the forward of Restless '0' within the step"),
    ("upload", r"the host writes to the device in the forward of Restless"),
]


@pytest.mark.parametrize(("how", "reason"), REASONS)
def test_a_step_that_cannot_be_replayed_runs_launch_by_launch_and_says_why(how, reason):
    trainer, _, said = train(Restless(how), steps=10, batch_size=36)
    assert not trainer._graph.replaying
    assert len(said) == 1 and said[0].startswith("steps run launch by launch")
    assert re.search(reason, said[0]), said[0]
    with pytest.raises(bp.errors.ConfigurationError, match="cuda_graph='on'"):
        train(Restless(how), steps=10, batch_size=36, cuda_graph="on")


def test_the_cpu_has_no_graph():
    with pytest.raises(bp.errors.ConfigurationError, match="needs a GPU"):
        bp.Trainer(bp.Linear(2, 2), bp.MSELoss(), bp.SGD(), device="cpu", cuda_graph="on")
    with pytest.raises(bp.errors.ConfigurationError, match="'auto', 'on' or 'off', got 'always'"):
        bp.Trainer(bp.Linear(2, 2), bp.MSELoss(), bp.SGD(), cuda_graph="always")


class Keeps(bp.Layer):
    """Keeps what it computed, as a layer does whose backward needs it, or a person who looks at it."""

    def __init__(self, how):
        self.how = how

    def forward(self, x, ctx):
        y = bp.ops.activation.relu(x)
        ctx.save(self, y if self.how == "saved" else None)
        if self.how == "kept":
            self.kept = y.reshape(-1)
        return y

    def backward(self, dy, ctx):
        ctx.take(self)
        return dy


@pytest.mark.parametrize("device", ["cpu", KERNEL_DEVICE])
@pytest.mark.parametrize("how", ["saved", "kept", "neither"])
def test_the_gradient_takes_the_place_of_the_logits_only_where_nobody_holds_them(monkeypatch, device, how):
    places = []
    stated = bp.ops.loss.softmax_cross_entropy

    def watched(logits, labels, weight, control, ignore_index, smoothing, gradient, out=None):
        if gradient:
            places.append(out is logits)
        return stated(logits, labels, weight, control, ignore_index, smoothing, gradient, out)

    def run():
        model = bp.Sequential(bp.Linear(6, 2), Keeps(how))
        trainer = bp.Trainer(
            model, bp.CrossEntropyLoss(), bp.SGD(lr=0.1), device=device, cuda_graph="off", progress=False
        )
        trainer.fit((X, Y), max_steps=3)
        return bp.checkpoint.model_arrays(model)

    monkeypatch.setattr(bp.ops.loss, "softmax_cross_entropy", watched)
    in_place = run()
    assert places == [how == "neither"] * 3
    monkeypatch.setattr(bp.CrossEntropyLoss, "terms_in_place", lambda *arguments: None)
    assert_equal(in_place, run())


# What changes between steps ---------------------------------------------------------------------------------


def small(cuda_graph, layer=None, loss=None, optimizer=None, **settings):
    """A Trainer whose steps are all of one shape, and the loader for it."""
    model = bp.Sequential(bp.Linear(6, 16), layer or bp.ReLU(), bp.Linear(None, 2))
    messages = Messages()
    trainer = bp.Trainer(
        model,
        loss or bp.CrossEntropyLoss(),
        optimizer or bp.AdamW(lr=0.05),
        device=KERNEL_DEVICE,
        progress=False,
        cuda_graph=cuda_graph,
        callbacks=[messages, *settings.pop("callbacks", ())],
        **settings,
    )
    return trainer, bp.Loader(bp.ArrayDataset(X, Y), 36), messages


class Between(Callback):
    """Does something with the Trainer after each step."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, trainer, *, epoch_ended):
        self.action(trainer)


def read_gradients(trainer):
    for _, parameter in trainer.model.named_parameters():
        assert not parameter.grad.get().any()  # they count as used


def write_gradients(trainer):
    for _, parameter in trainer.model.named_parameters():
        parameter.grad = np.ones(parameter.shape, np.float32)


def backward_by_hand(trainer):
    x = trainer.device.from_host(X[:8].astype(trainer.dtype))
    ctx = bp.Context(training=True)
    y = trainer.model.forward(x, ctx)
    trainer.model.backward(y, ctx)


def drop_more(trainer):
    if trainer.state.step == 6:
        trainer.model.layers[1].rate = 0.9


def assign_weights(trainer):
    if trainer.state.step == 6:
        weight = trainer.model.layers[0].weight
        weight.value = np.full(weight.shape, 0.25)


def smooth(trainer):
    if trainer.state.step == 6:
        trainer.loss = bp.CrossEntropyLoss(label_smoothing=0.5)


def clip(trainer):
    if trainer.state.step == 6:
        trainer.max_grad_norm = 0.01


def remember(trainer):
    if trainer.state.step == 6:
        trainer.optimizer.betas = (0.5, 0.6)


def start_moments_anew(trainer):
    if trainer.state.step == 6:
        trainer.optimizer.setup(trainer.model)


def evaluate(trainer):
    trainer.evaluate((X, Y))
    trainer.predict(X[:5])


ACTIONS = [
    read_gradients,
    write_gradients,
    backward_by_hand,
    drop_more,
    assign_weights,
    smooth,
    clip,
    remember,
    start_moments_anew,
    evaluate,
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_what_a_callback_does_between_steps_counts_in_replayed_steps_too(action):
    states = []
    for cuda_graph in ("auto", "off"):
        trainer, loader, messages = small(cuda_graph, bp.Dropout(0.1), callbacks=[Between(action)])
        trainer.fit(loader, max_steps=12)
        states.append(bp.checkpoint.model_arrays(trainer.model) | trainer.optimizer.state_dict())
        assert messages.texts == [] and (cuda_graph == "off" or trainer._graph.replaying)
    assert_equal(*states)


def test_another_optimizer_for_a_second_fit():
    states = []
    for cuda_graph in ("auto", "off"):
        trainer, loader, _ = small(cuda_graph)
        trainer.fit(loader, max_steps=6)
        trainer.optimizer = bp.SGD(lr=0.1)
        trainer.fit(loader, max_steps=6)
        states.append(bp.checkpoint.model_arrays(trainer.model))
    assert_equal(*states)


def test_two_trainers_take_turns_on_one_model():
    states = []
    for cuda_graph in ("auto", "off"):
        first, loader, _ = small(cuda_graph)
        second, _, _ = small(cuda_graph, optimizer=bp.SGD(lr=0.1))
        second.model = first.model
        for trainer in (first, second, first, second):
            trainer.fit(loader, max_steps=5)
        states.append(bp.checkpoint.model_arrays(first.model))
    assert_equal(*states)


def test_a_setting_that_changes_in_every_step_is_named():
    def anneal(trainer):
        trainer.model.layers[1].rate *= 0.99

    trainer, loader, messages = small("auto", bp.Dropout(0.5), callbacks=[Between(anneal)])
    trainer.fit(loader, max_steps=10)
    assert not trainer._graph.replaying
    assert messages.texts == [
        "steps run launch by launch, not as one graph: Dropout '1': rate is set anew between steps"
    ]


def test_a_constant_that_the_first_step_uploads_prevents_nothing():
    trainer, loader, messages = small("auto", loss=bp.CrossEntropyLoss(weight=[1.0, 3.0]))
    trainer.fit(loader, max_steps=8)
    assert trainer._graph.replaying and messages.texts == []


class Fresh(bp.Layer):
    """Adds zeros that lie in memory of their own, which is free again after the step."""

    def forward(self, x, ctx):
        return bp.ops.activation.add(x, device_of(x).zeros(x.shape, x.dtype))

    def backward(self, dy, ctx):
        return dy


def test_memory_that_a_step_takes_and_gives_back_is_never_written_by_a_later_one():
    trainer, loader, messages = small("auto", Fresh())
    trainer.fit(loader, max_steps=4)
    others = [trainer.device.from_host(np.full((36, 16), 7, trainer.dtype)) for _ in range(4)]
    trainer.fit(loader, max_steps=8)
    for other in others:
        assert (other.get() == 7).all()
    assert "memory is taken anew, by zeros, in the forward of Fresh '1' within the step" in messages.texts[0]


def test_many_shapes_take_the_memory_of_the_largest_not_of_all():
    trainer, _, _ = small("auto")
    for count in range(1, 30):
        trainer.fit(bp.Loader(bp.ArrayDataset(X[:count], Y[:count]), count), max_steps=2)
    assert len(trainer._graph._by_shape) <= 8
    held = trainer._graph._memory.nbytes
    trainer.fit(bp.Loader(bp.ArrayDataset(X[:29], Y[:29]), 29), max_steps=130)  # 2 * keep_steps, and a few
    assert trainer._graph._memory.nbytes < held / 4


def test_steps_whose_labels_are_all_ignored():
    labels = np.where(np.arange(72) < 36, -100, Y)
    states = []
    for cuda_graph in ("auto", "off"):
        trainer, _, _ = small(cuda_graph, loss=bp.CrossEntropyLoss(ignore_index=-100, label_smoothing=0.1))
        trainer.fit(bp.Loader(bp.ArrayDataset(X, labels), 36), max_steps=12)
        states.append(bp.checkpoint.model_arrays(trainer.model) | trainer.optimizer.state_dict())
    assert_equal(*states)
    assert all(np.isfinite(array).all() for array in states[0].values())
    assert trainer.evaluate((X, np.full(72, -100)))["loss"] == 0


class Failing(bp.Layer):
    """Its backward fails in one step."""

    def __init__(self, at):
        self.at = at
        self.calls = 0

    def forward(self, x, ctx):
        ctx.save(self)
        return x

    def backward(self, dy, ctx):
        ctx.take(self)
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("failed")
        return dy


@pytest.mark.parametrize("at", [1, 2])  # the third is replayed
def test_a_step_that_fails_leaves_the_device_as_it_was(at):
    trainer, loader, messages = small("auto", Failing(at), precision="tf32")
    with pytest.raises(ValueError, match="failed"):
        trainer.fit(loader, max_steps=10)
    device = trainer.device
    assert not device.tf32 and device._here.ledger is None and not bp.ops.scope.watched
    assert bp.ops.memory.active_memory(device.name) is None and bp.ops.scope.current() == ("", "")
    trainer.fit(loader, max_steps=10)
    assert trainer._graph.replaying and messages.texts == []


def test_threads_that_train_at_a_time_do_not_see_each_other():
    def run(precision, states):
        trainer, loader, messages = small("auto", precision=precision)
        trainer.fit(loader, max_steps=12)
        assert trainer._graph.replaying and messages.texts == []
        states.append(bp.checkpoint.model_arrays(trainer.model))

    precisions = ["fp32", "tf32", "bf16"]
    alone = {precision: [] for precision in precisions}
    together = {precision: [] for precision in precisions}
    for precision in precisions:
        run(precision, alone[precision])
    threads = [threading.Thread(target=run, args=(p, together[p])) for p in precisions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for precision in precisions:
        assert_equal(*alone[precision], *together[precision])
