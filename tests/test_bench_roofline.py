"""bp bench roofline: what is timed, what it is compared with, and what is shown."""

import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import stand_in_cupy
from rich.console import Console

import bp
import bp.cpu.activation
import bp.cuda.activation
import bp.ops.activation as ops
from bp.bench import machine, watched_step
from bp.bench.results import About, Limits, Results
from bp.bench.results import write_json as write_results
from bp.bench.roofline import Line, least_seconds, roofline, write_json
from bp.bench.roofline_table import shortened, show
from bp.bench.watched_step import HeldBatches, Piece, WatchedStep, on_cpu, on_gpu, watching_calls
from bp.cli import main
from bp.cli import roofline as command
from bp.cli.session import make_session
from bp.cli.warmup import planning_for
from bp.config import resolve
from bp.cuda import catalogue, choice, gpu
from bp.cuda.choice import Choice
from bp.cuda.emulator.device import device as emulator
from bp.cuda.plan import device as plan
from bp.ops import scope
from bp.ops.operation import watch_operations

GB, GFLOP = 1e9, 1e9
LIMITS = Limits(copy=[(1e6, 100 * GB), (1e9, 10 * GB)], peak={"fp32": 1000 * GFLOP}, launch_seconds=1e-6)
SMALL = ["--model.hidden", "[16]", "--data.batch_size", "64"]
ALONE = ["--trainer.fuse", "false"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few steps, and small memory to keep a device busy with."""
    monkeypatch.setattr(watched_step, "SECONDS", 0.05)
    monkeypatch.setattr(watched_step, "SCRATCH", 1 << 12)
    monkeypatch.setattr(watched_step, "MOST_FILLS", 2)


@pytest.fixture
def cuda(monkeypatch):
    """The device "cuda" on a stand-in for CuPy."""
    stand_in_cupy.install(monkeypatch)
    for source in catalogue.load():
        for kernel in source.kernels.values():
            monkeypatch.setattr(kernel, "_plans", {})  # which name the device that such arrays had before
    device = gpu.GPUDevice()
    monkeypatch.setattr(gpu, "device", lambda: device)
    return device


def of_recipe(monkeypatch, *settings, recipe="digits", limits=LIMITS):
    """The roofline of a recipe, with limits that nobody has to measure."""
    monkeypatch.setattr(command, "_limits", lambda *_: limits)
    return command.of_recipe(resolve(recipe, [*SMALL, *settings]))


def shown(found, width=None):
    """What is printed: in a pipe, or on a terminal of that width."""
    text = StringIO()
    show(found, Console(file=text, force_terminal=width is not None, width=width, color_system=None))
    return text.getvalue()


# Limits and figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "nbytes", "seconds", "expected"),
    [
        (1e3, 1e9, 1.0, (0.1, "memory")),
        (1e12, 1e9, 2.0, (1.0, "compute")),
        (1e3, 1e3, 1.0, (1e-6, "launch")),  # 10 ns of copying: no launch is as short
        (0.0, 0.0, 1.0, (1e-6, "launch")),
        (1e3, 1e3, 5e-7, (5e-7, "launch")),  # shorter than any that was measured: it is at its limit
        (None, None, 1.0, (None, "")),
    ],
)
def test_the_least_time_is_the_longest_of_memory_compute_and_launch(flops, nbytes, seconds, expected):
    piece = Piece("Linear '0'", "forward", "linear.linear", "fp32", seconds, flops, nbytes)
    least, bound = least_seconds(piece, LIMITS)
    assert (least if least is None else pytest.approx(least), bound) == expected


def test_where_a_limit_was_not_measured_nothing_is_said():
    piece = Piece("", "", "linear.linear", "fp32", 1.0, 1e9, 1e9)
    assert least_seconds(piece, Limits(launch_seconds=1e-6)) == (None, "")
    assert least_seconds(piece, Limits()) == (None, "")
    assert least_seconds(Piece("", "", "x", "bf16", 1.0, 1e9, 0.0), LIMITS) == (None, "")  # no peak of bf16


def made(step_seconds=10.0, **settings):
    """A step of known figures: two products and a ReLU that is used twice."""
    pieces = [
        Piece("Linear '0'", "forward", "gemm", "fp32", 4.0, 1e12, 1e6),
        Piece("ReLU '1'", "forward", "relu", "fp32", 0.5, 1e3, 1e9),
        Piece("ReLU '1'", "forward", "relu", "fp32", 0.25, 1e3, 1e9),
        Piece("Linear '2'", "forward", "gemm", "fp32", 3.0, 1e12, 1e6),
        Piece("Linear '2'", "backward", "small", "fp32", 0.75, 10.0, 10.0),
        Piece("", "", "copy", "fp32", 0.5, None, None),
    ]
    step = WatchedStep(pieces, "operation by operation", step_seconds, 7, ["a remark"])
    names = {"recipe": "digits", "device": "cpu", "precision": "fp32", "samples": 64, "fetch_seconds": 0.125}
    return roofline(step, LIMITS, **(names | settings))


def test_lines_are_by_layer_and_pass_and_a_layer_used_twice_has_one():
    found = made()
    assert [(line.layer, line.phase, line.kernel, line.runs) for line in found.lines] == [
        ("Linear '0'", "forward", "gemm", 1),
        ("ReLU '1'", "forward", "relu", 2),
        ("Linear '2'", "forward", "gemm", 1),
        ("Linear '2'", "backward", "small", 1),
        ("", "", "copy", 1),
        ("", "", "outside operations", 1),
    ]
    assert [line.share for line in found.lines] == pytest.approx([40, 7.5, 30, 7.5, 5, 10])
    relu = found.lines[1]
    assert (relu.seconds, relu.nbytes, relu.flops, relu.bound) == (0.75, 2e9, 2e3, "memory")
    assert relu.limit_seconds == pytest.approx(0.2) and relu.percent == pytest.approx(100 * 0.2 / 0.75)
    assert [line.bound for line in found.lines] == ["compute", "memory", "compute", "launch", "", ""]


def test_kernels_are_summed_over_layers_and_worth_what_their_limit_would_save():
    found = made()
    assert [line.kernel for line in found.kernels] == ["gemm", "relu", "small", "copy"]
    gemm = found.kernels[0]
    assert (gemm.runs, gemm.seconds, gemm.flops, gemm.layer, gemm.phase) == (2, 7.0, 2e12, "", "")
    assert gemm.worth == pytest.approx(5.0) and gemm.percent == pytest.approx(100 * 2 / 7)
    assert [line.kernel for line in found.improve] == ["gemm", "small", "relu"]
    text = shown(found)
    assert "1. gemm: at its limit the step would take 5.00 s instead of 10.0 s: 50% less" in text
    assert "3. relu: at its limit the step would take 9.45 s instead of 10.0 s: 5.5% less" in text
    assert "10.0 s a step operation by operation (median of 7), 6 samples/s; loading its samples takes 125 ms" in text
    assert text.endswith("note: a remark\n")


def test_what_is_faster_than_its_limit_is_worth_nothing():
    assert Line("", "", "relu", 1, 0.1, limit_seconds=0.2).worth == 0.0
    step = WatchedStep([Piece("", "", "relu", "fp32", 0.05, 1.0, 1e9)], "launch by launch", 0.1)
    found = roofline(step, LIMITS, recipe="r", device="cuda", precision="fp32", samples=1, fetch_seconds=0.0)
    assert found.improve == [] and "nothing, every kernel is at its limit" in shown(found)
    assert found.lines[-1].kernel == "outside kernels" and found.lines[0].percent == pytest.approx(200)


def test_shares_add_up_also_where_the_pieces_take_longer_than_the_step():
    found = made(step_seconds=6.0)
    assert (found.seconds, found.whole_seconds, found.lines[-1].seconds) == (9.0, 6.0, 0.0)
    assert sum(line.share for line in found.lines) == pytest.approx(100)
    assert "one by one the pieces take 9.00 s, more than a step" in shown(found)


# What is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_terminal_of_any_width_holds_the_tables(monkeypatch, width):
    found = of_recipe(monkeypatch, "--device", "cpu")
    lines = shown(found, width).splitlines()
    assert max(map(len, lines)) <= width
    heads = next(line for line in lines if line.startswith("layer"))
    assert all(head in heads for head in ("layer", "pass", "operation", "time", "share", "of limit", "bound"))
    assert ("reached" in heads) == (width >= 120) and ("FLOPs" in heads) == (width >= 100)
    assert sum("Linear '" in line for line in lines) == sum("Linear '" in line.layer for line in found.lines)


def test_names_are_shortened_in_the_middle():
    assert shortened("Conv2d '3.body.0'", 17) == "Conv2d '3.body.0'"
    assert shortened("Conv2d '3.body.0'", 12) == "Conv2d…dy.0'"
    assert shortened("Conv2d", 1) == "…"


def test_a_pipe_gets_whole_names_in_columns(monkeypatch):
    text = shown(of_recipe(monkeypatch, "--device", "cpu"))
    assert "linear.linear_backward_parameters" in text and "…" not in text and "━" not in text
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("layer"))
    rows = lines[first : lines.index("", first)]
    time = rows[0].index("time")
    assert all(row[time + 3 : time + 6] == "s  " for row in rows[1:])  # each time ends where its head does
    assert len({row.find("forward") for row in rows if "forward" in row}) == 1
    assert rows[-1].split()[:2] == ["outside", "operations"]


def test_the_document_has_the_same_figures(tmp_path):
    found, path = made(), tmp_path / "step.json"
    write_json(found, About("cpu", {"CPU": "a"}, {}, "abc", "2026-01-01", "bp bench roofline"), path)
    document = json.loads(path.read_text())
    assert document["about"]["revision"] == "abc" and document["seconds"] == 10.0 and document["samples"] == 64
    assert [line["share"] for line in document["lines"]] == [line.share for line in found.lines]
    assert document["lines"][-2]["flops"] is None and document["lines"][-1]["kernel"] == "outside operations"
    assert document["kernels"][0] | {"layer": ""} == document["kernels"][0]
    assert document["improve"][0] == {"kernel": "gemm", "worth_seconds": 5.0, "step_seconds": 5.0}


# Operations -------------------------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time`: it goes on only when told."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_an_operation_within_another_counts_once(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watched_step, "time", clock)

    def takes(seconds):
        clock.now += seconds

    def relu(x):
        takes(1)
        y = ops.tanh(x)
        takes(2)
        return y

    def tanh(x):
        takes(16)
        return x

    monkeypatch.setattr(bp.cpu.activation, "relu", relu)
    monkeypatch.setattr(bp.cpu.activation, "tanh", tanh)
    with watching_calls() as calls:
        ops.relu(np.zeros(3, np.float32))
        takes(100)  # outside of operations
        with scope.enter("Tanh", "forward"):
            ops.tanh(np.zeros(3, np.float32))
    taken = [(*call.key, call.seconds) for call in calls.take()]
    assert taken == [
        ("", "", "activation.relu", 3),
        ("", "", "activation.tanh", 16),
        ("Tanh", "forward", "activation.tanh", 16),
    ]
    assert calls.take() == []


def test_a_launch_belongs_to_the_innermost_operation(monkeypatch):
    original = bp.cuda.activation.tanh
    monkeypatch.setattr(bp.cuda.activation, "tanh", lambda x: ops.relu(original(x)))
    x = plan.zeros((3,), np.float32)
    with plan.recording() as ledger, watching_calls(ledger) as calls:
        plan.fill(x, 1.0)  # of no operation
        ops.tanh(x)
        ops.relu(x)
    launches = [[launch.variant.kernel.name for launch in call.launches] for call in calls.take()]
    assert launches == [["tanh_forward"], ["relu_forward"], ["relu_forward"]] and len(ledger.launches) == 4


def test_watching_ends_with_its_block_and_after_an_error(monkeypatch):
    x, seen = np.ones(3, np.float32), []

    def opened(name):
        seen.append(name)
        return lambda: seen.append(f"end of {name}")

    def fails(x):
        raise bp.errors.ShapeError("it cannot")

    ops.relu(x)  # found before anybody watches
    with watch_operations(opened):
        ops.relu(x)
        with pytest.raises(bp.errors.ShapeError):
            ops.add(x, np.ones(4, np.float32))  # refused by the checks, before anything is computed
        monkeypatch.setattr(bp.cpu.activation, "tanh", fails)
        with pytest.raises(bp.errors.ShapeError, match="cannot"):
            ops.tanh(x)
    monkeypatch.undo()
    assert seen == ["activation.relu", "end of activation.relu", "activation.tanh", "end of activation.tanh"]
    ops.relu(x)
    ops.tanh(x)
    assert len(seen) == 4


# Steps ------------------------------------------------------------------------------------------------------


def test_a_step_on_the_cpu_is_its_operations_by_layer_and_pass(monkeypatch):
    found = of_recipe(monkeypatch, "--device", "cpu", "--model.dropout", "0", *ALONE)
    assert [(line.layer, line.phase, line.kernel) for line in found.lines] == [
        ("Linear '0'", "forward", "linear.linear"),
        ("ReLU '1'", "forward", "activation.relu"),
        ("Linear '2'", "forward", "linear.linear"),
        ("CrossEntropyLoss", "forward", "loss.softmax_cross_entropy"),
        ("CrossEntropyLoss", "forward", "loss.mean_of_terms"),
        ("", "", "reduce.accumulate"),
        ("Linear '2'", "backward", "linear.linear_backward_parameters"),
        ("Linear '2'", "backward", "linear.linear_backward_input"),
        ("ReLU '1'", "backward", "activation.relu_backward"),
        ("Linear '0'", "backward", "linear.linear_backward_parameters"),
        ("AdamW", "step", "optimizer.advance_step"),
        ("AdamW", "step", "optimizer.adam"),
        ("", "", "outside operations"),
    ]
    assert (found.samples, found.precision, found.device) == (64, "fp32", "cpu")
    assert sum(line.share for line in found.lines) == pytest.approx(100)
    assert sum(line.seconds for line in found.lines) == pytest.approx(found.seconds)
    assert found.fetch_seconds > 0
    by_name = {(line.layer, line.kernel): line for line in found.lines}
    products = 2 * 64 * 64 * 16  # batch, inputs, hidden
    assert by_name["Linear '0'", "linear.linear"].flops >= products
    assert by_name["Linear '0'", "linear.linear"].flops < 1.1 * products  # the bias, and sums of parts
    assert by_name["ReLU '1'", "activation.relu"].nbytes == 2 * 4 * 64 * 16
    assert all(line.flops is not None and line.limit_seconds for line in found.lines[:-1])
    assert not any("not known" in remark for remark in found.remarks)
    assert not bp.ops.scope.watched


def test_layers_that_run_as_one_stand_under_the_first_of_them(monkeypatch):
    found = of_recipe(monkeypatch, "--device", "cpu")
    of_layers = [(line.layer, line.phase, line.kernel) for line in found.lines if "Linear" in line.layer]
    assert of_layers == [
        ("Linear '0'", "forward", "linear.linear_activation"),
        ("Linear '3'", "forward", "linear.linear"),
        ("Linear '3'", "backward", "linear.linear_backward_parameters"),
        ("Linear '3'", "backward", "linear.linear_backward_input_activation"),
        ("Linear '0'", "backward", "linear.linear_backward_parameters"),
    ]
    assert not any("ReLU" in line.layer or "Dropout" in line.layer for line in found.lines)
    assert all(line.flops is not None and line.limit_seconds for line in found.lines[:-1])


def test_what_a_recipe_sets_is_in_the_step(monkeypatch):
    settings = ["--trainer.accumulate_grad_batches", "2", "--trainer.ema_decay", "0.9", "--trainer.max_grad_norm", "1"]
    found = of_recipe(monkeypatch, "--device", "cpu", "--data.batch_size", "32", *settings)
    lines = {(line.layer, line.kernel): line for line in found.lines}
    assert found.samples == 64 and lines["Linear '0'", "linear.linear_activation"].runs == 2
    assert lines["AdamW", "optimizer.clip_by_global_norm"].phase == "step"
    assert lines["ExponentialMovingAverage", "optimizer.moving_average"].phase == "step"
    assert lines["AdamW", "optimizer.adam"].runs == 1
    assert "Linear '0' x2 " in shown(found)


def small(device, make, **settings):
    """A Trainer of a small model, and its batches of 8 samples with 6 features."""
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    loader = bp.Loader(bp.ArrayDataset(x, np.arange(40) % 6), 8)
    trainer = bp.Trainer(
        make(), bp.CrossEntropyLoss(), bp.SGD(lr=0.1), device=device, precision="fp32", progress=False, **settings
    )
    trainer.prepare((6,))
    return trainer, HeldBatches(loader)


def watched_on_cpu(make):
    """The step of `small` there, and its roofline."""
    trainer, batches = small("cpu", make)
    step = on_cpu(trainer, small(plan, make, cuda_graph="off")[0], batches)
    names = {"recipe": "small", "device": "cpu", "precision": "fp32", "samples": 8, "fetch_seconds": 0.0}
    return step, roofline(step, LIMITS, **names)


class Own(bp.Layer):
    """The identity; `act` is called with each input."""

    def __init__(self, act):
        self.act = act

    def forward(self, x, ctx):
        ctx.save(self)
        self.act(x)
        return x

    def backward(self, dy, ctx):
        ctx.take(self)
        return dy


def test_a_layer_used_twice_is_one_line_of_two_runs():
    def make():
        shared = bp.Linear(6, 6)
        return bp.Sequential(shared, bp.Tanh(), shared)

    step, found = watched_on_cpu(make)
    (line,) = [line for line in found.lines if (line.layer, line.phase) == ("Linear '0'", "forward")]
    assert line.runs == 2 and line.flops == sum(p.flops for p in step.pieces if p.name == "linear.linear")
    assert found.remarks == []


def test_an_operation_that_the_plan_lacks_is_listed_without_work():
    _, found = watched_on_cpu(
        lambda: bp.Sequential(bp.Linear(6, 6), Own(lambda x: ops.relu(x) if isinstance(x, np.ndarray) else None))
    )
    (line,) = [line for line in found.lines if line.kernel == "activation.relu"]
    assert (line.flops, line.nbytes, line.limit_seconds, line.bound) == (None, None, None, "")
    assert found.remarks == ["1 operations are none of the planned step: what they compute and move is not known"]
    assert sum(line.share for line in found.lines) == pytest.approx(100)


def test_steps_that_call_other_operations_than_the_last_are_left_out():
    seen = []

    def act(x):
        seen.append(x)
        if len(seen) == 20:
            ops.relu(x)

    step, found = watched_on_cpu(lambda: bp.Sequential(bp.Linear(6, 6), Own(act)))
    assert "activation.relu" not in {piece.name for piece in step.pieces}
    assert re.fullmatch(r"1 of \d+ steps called other operations: they are left out", found.remarks[0])


def test_batches_are_whole_and_do_not_end():
    x = np.arange(10.0, dtype=np.float32).reshape(10, 1)
    batches = HeldBatches(bp.Loader(bp.ArrayDataset(x, x), 4), count=16)
    epoch = batches.epoch(0)
    assert [next(epoch)[0].ravel().tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    only = HeldBatches(bp.Loader(bp.ArrayDataset(x[:3], x[:3]), 4))
    assert only.samples == 3 and only.fetch_seconds >= 0


# Launches ---------------------------------------------------------------------------------------------------


def launches_of_training(device, *settings):
    """Kernel, layer and pass of each launch in the last of some steps that really run there."""
    session = make_session(resolve("digits", [*SMALL, *settings], device=device), device=device)
    step = watched_step.on_plan(session.trainer, HeldBatches(session.train))
    return [(piece.layer, piece.phase, piece.name, piece.flops, piece.nbytes) for piece in step.pieces]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_list_for_the_emulator_is_what_it_launches(monkeypatch, precision):
    found = of_recipe(monkeypatch, "--device", "emulator", "--trainer.precision", precision)
    launched = launches_of_training(emulator, "--trainer.precision", precision)
    with planning_for(emulator.capability):
        assert launches_of_training(plan, "--trainer.precision", precision) == launched
    by_line = dict.fromkeys((layer, phase, name) for layer, phase, name, *_ in launched)
    assert [(line.layer, line.phase, line.kernel) for line in found.lines] == list(by_line)
    assert sum(line.nbytes for line in found.lines) == sum(nbytes for *_, nbytes in launched)
    assert all(line.seconds is None and line.share is None and line.bound == "" for line in found.lines)
    text = shown(found)
    assert "times are not measured" in text and "FLOPs/byte" in text and "improve first" not in text
    assert "share" not in text


def test_products_have_the_peak_of_the_training_and_all_else_that_of_fp32():
    def precisions(precision):
        with planning_for(80), choice.only("linear", Choice("tiled")):
            session = make_session(
                resolve("digits", [*SMALL, "--trainer.precision", precision, *ALONE], device=plan), device=plan
            )
            step = watched_step.on_plan(session.trainer, HeldBatches(session.train))
        return {piece.name.partition("[")[0]: piece.precision for piece in step.pieces}

    for precision in ("fp32", "tf32", "bf16", "fp16"):
        found = precisions(precision)
        assert {found["gemm_nt"], found["gemm_tn"]} == {precision}
        assert {found["relu_forward"], found["adam"]} == {"fp32"}


def test_a_gpu_times_the_launches_of_the_step_that_its_graph_replays(monkeypatch, cuda):
    found = of_recipe(monkeypatch, "--device", "cuda", "--trainer.precision", "bf16")
    assert found.how == "as one CUDA graph" and found.device == "cuda" and found.precision == "bf16"
    with planning_for(80):
        planned = launches_of_training(plan, "--trainer.precision", "bf16")
    kernels = [(line.layer, line.phase, line.kernel) for line in found.lines]
    assert kernels[0] == ("", "", "copy_bytes")  # the batch comes to where the graph reads it
    assert kernels[1:-1] == list(dict.fromkeys(launch[:3] for launch in planned))
    assert kernels[-1] == ("", "", "outside kernels")
    assert sum(line.share for line in found.lines) == pytest.approx(100)
    assert all(line.seconds > 0 for line in found.lines[:-1])
    assert "as one CUDA graph" in shown(found)


def test_a_gpu_without_graphs_runs_launch_by_launch(monkeypatch, cuda):
    found = of_recipe(monkeypatch, "--device", "cuda", "--trainer.cuda_graph", "off")
    assert found.how == "launch by launch"
    kernels = {line.kernel for line in found.lines}
    assert "norm_and_scale" not in kernels and "copy_bytes" not in kernels and "adam[bfloat16]" in kernels


def test_why_a_step_cannot_be_replayed_is_said(cuda):
    step = on_gpu(*small(cuda, lambda: bp.Sequential(bp.Linear(6, 6), Own(cuda.to_host))))
    assert step.how == "launch by launch"
    assert step.remarks == [
        "steps run launch by launch, not as one graph: the device is read by the host in the forward of Own '1' within "
        "the step"
    ]


def test_launches_that_change_from_step_to_step_are_said(cuda):
    counts = iter(range(10**6))
    step = on_gpu(*small(cuda, lambda: bp.Sequential(bp.Linear(6, 6), Own(lambda x: ops.leaky_relu(x, next(counts))))))
    assert step.how == "launch by launch"
    assert any("another value of argument" in remark and "those of the last" in remark for remark in step.remarks)


def test_launches_are_queued_behind_something_else_and_timed_one_by_one(monkeypatch, cuda):
    monkeypatch.setattr(watched_step, "CHUNK", 2)
    x = cuda.from_host(np.arange(4, dtype=np.float32))
    with cuda.running("fp32"):
        with cuda.recording() as ledger:
            for _ in range(3):
                x = ops.add(x, x)
        entries = []
        monkeypatch.setattr(stand_in_cupy, "log", entries)
        times = watched_step.launch_times(cuda, ledger.launches)
    assert len(times) == 3 and all(seconds > 0 for seconds in times)
    done = " ".join(entry[1] if entry[0] == "launch" else entry[0] for entry in entries if entry[0] != "synchronize")
    chunk = "record add record"
    turn = rf"(fill ){{1,2}}{chunk} {chunk} (fill ){{1,2}}{chunk}"
    assert re.fullmatch(rf"fill record fill record( {turn})+", done)


# The command ------------------------------------------------------------------------------------------------


def test_the_command_takes_limits_of_a_result_file_and_writes_json(tmp_path, capsys):
    limits, path = tmp_path / "limits.json", tmp_path / "step.json"
    here = machine.about("cpu", {}, {}, "bp bench")
    write_results(Results(replace(here, machine={"CPU": "of another"}), LIMITS, []), limits)
    assert main(["bench", "roofline", "digits", "--device", "cpu", "--limits", str(limits)]) == 2
    assert "of the same machine and device, got CPU of another before" in capsys.readouterr().err
    write_results(Results(here, LIMITS, []), limits)
    argv = ["bench", "roofline", "digits", *SMALL, "--device", "cpu", "--json", str(path), "--limits", str(limits)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("digits on cpu: a training step of 64 samples in fp32")
    assert "limits: copies 10.0 GB/s, fp32 products 1.00 TFLOP/s, the smallest piece of work 1.00 µs" in printed
    document = json.loads(path.read_text())
    assert document["about"]["command"].startswith("bp bench roofline digits") and document["limits"]["launch_seconds"]
    assert f"1. {document['improve'][0]['kernel']}: at its limit" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits", "--device", "cpu", "--trainer.precision", "fp64"], "which have no fp64: take fp32"),
        (["digits", "--data.batchsize", "3"], "data.batchsize"),
        (["no-such-recipe"], "no-such-recipe"),
        (["digits", "--json"], "--json"),
        (["digits", "--device", "cpu", "--limits", "nowhere.json"], "nowhere.json"),
        (["digits", "--device", "emulator", "--json", "no/such/folder/x.json"], "no/such/folder"),
    ],
)
def test_what_it_refuses(capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "roofline", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "roofline", "--help"])
    assert ended.value.code == 0 and "--limits FILE" in capsys.readouterr().out
