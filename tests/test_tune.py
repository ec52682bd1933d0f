"""bp tune: products of steps and layers, wrong rungs, what is kept; on the emulator, by a clock that is told times."""

import json
import re

import numpy as np
import pytest

import bp.cuda.linear as cuda_linear
from bp.bench import products, trial
from bp.bench.libraries.ours import OursOnDevice
from bp.bench.products import ConvLayer, LayerProduct, LinearLayer, products_of
from bp.bench.units import TIMES
from bp.cli import BAD_INPUT, INTERRUPTED, main, tune
from bp.cuda import choice, product, tuning
from bp.cuda.choice import Choice, Rung
from bp.cuda.device import device_of
from bp.errors import ShapeError
from bp.ops.device import find_device

LAYER = LinearLayer(6, 5, 7)
MILLISECOND = 1e-3


class Told(OursOnDevice):
    """The emulator with times that it is told, by choice: a function of the turn. What is not told takes 1 ms."""

    def __init__(self, times=None):
        super().__init__("emulator")
        self.times = times or {}
        self.ran = []
        self.graphs = 0

    def seconds(self, run, runs, cold):
        assert cold or self.graphs
        asked = str(choice._forcing.get("linear") or choice._forcing["conv"])
        run()
        self.ran.append(asked)
        told = self.times.get(asked, MILLISECOND)
        return told(len(self.ran)) if callable(told) else told

    def graph(self, works):
        self.graphs += 1
        return lambda: [work() for work in works[:1]]


WHOLE = dict(choice.RUNGS)


@pytest.fixture(autouse=True)
def ladder(monkeypatch):
    """The rungs that these tests count on, however many more there are."""
    for family, names in (("linear", ("cublas", "naive", "tiled")), ("conv", ("direct", "tiled"))):
        rungs = tuple(rung for rung in choice.RUNGS[family] if rung.name in names)
        monkeypatch.setitem(choice.RUNGS, family, rungs)
    choice.forget()
    yield
    monkeypatch.undo()
    choice.forget()


@pytest.fixture
def whole_ladder(ladder, monkeypatch):
    for family, rungs in WHOLE.items():
        monkeypatch.setitem(choice.RUNGS, family, rungs)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The file of the table that bp tune writes, which this test has for itself."""
    path = tmp_path / "tuning" / f"sm_{find_device('emulator').capability}.json"
    monkeypatch.setenv("BP_TUNING", str(path))
    return path


@pytest.fixture
def clock(monkeypatch):
    """clock({"naive": 1e-4}) is what bp tune times by."""

    def told(times=None):
        with tuning.left_out():  # as in bp tune
            made = Told(times)
        monkeypatch.setattr(tune, "open_clock", lambda device: (made, True))
        monkeypatch.setattr(trial, "TURNS", 5)
        return made

    return told


@pytest.fixture
def planted(monkeypatch):
    """planted("broken", compute) puts a rung of that name on top of the ladder, which no rule takes."""

    def plant(name, compute, **rung):
        others = [one for one in choice.RUNGS["linear"] if one.name != "cublas"]
        with_one = (Rung(name, lambda problem: False, **rung), *others)
        monkeypatch.setitem(choice.RUNGS, "linear", with_one)
        monkeypatch.setitem(cuda_linear.RUNGS, name, compute)
        choice.forget()

    return plant


def try_one(way="nt", times=None, precision="fp32", layer=LAYER, **options):
    return trial.try_all(LayerProduct(layer, way, precision), Told(times), turns=5, **options)


def becomes(found):
    return {str(one.choice): one.status for one in found.tried}


# A trial ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "precision"), [("nt", "bf16"), ("nn", "tf32"), ("tn", "fp32")])
def test_every_rung_of_bp_is_right(way, precision, whole_ladder):
    found = try_one(way, precision=precision, layer=LinearLayer(40, 24, 16), timed=False)
    assert set(becomes(found).values()) == {"right"} and {"naive", "tiled"} <= becomes(found).keys()
    assert found.winner is None and all(one.times is None for one in found.tried)


@pytest.mark.parametrize(("way", "groups"), [("forward", 8), ("backward_input", 1), ("backward_parameters", 8)])
def test_every_rung_of_a_convolution_is_right(way, groups, whole_ladder):
    layer = ConvLayer(2, 6, 5, 8, 8, (3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), groups)
    found = try_one(way, precision="bf16", layer=layer, timed=False)
    assert set(becomes(found).values()) == {"right"} and {"direct", "tiled"} <= becomes(found).keys()


def test_a_library_takes_part_on_a_gpu_alone():
    assert "cublas" not in becomes(try_one(timed=False))


def off_by_one(product, variant):
    """Right, but for the last element."""
    cuda_linear.RUNGS["tiled"](product, "")
    device, array = device_of(product.c.array), product.c.array
    host = np.array(device.to_host(array))
    host.ravel()[-1] += 1
    device.copy(array, host)


def rounded(product, variant):
    """Right for small integers, and too coarse for other numbers."""
    cuda_linear.RUNGS["tiled"](product, "")
    device, array = device_of(product.c.array), product.c.array
    host = np.array(device.to_host(array))
    device.copy(array, np.round(host * 16) / 16)


def lazy(product, variant):
    """Writes nothing."""


def refusing(product, variant):
    raise ShapeError("expected other\nsizes")


def failing(product, variant):
    raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified\nlaunch failure")  # as CuPy's errors are


def too_large(product, variant):
    raise MemoryError


@pytest.mark.parametrize("way", ["nt", "nn", "tn"])
@pytest.mark.parametrize(
    ("compute", "status", "reason"),
    [
        (off_by_one, "wrong", "1 elements differ where sums are exact"),
        (lazy, "wrong", "elements differ where sums are exact"),
        (rounded, "wrong", "times the error that rounding allows"),
        (refusing, "failed", "expected other sizes"),
        (failing, "failed", "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
        (too_large, "failed", "MemoryError"),
    ],
)
def test_what_is_wrong_is_not_timed_and_cannot_win(planted, compute, status, reason, way):
    planted("broken", compute)
    found = try_one(way, {"broken": 1e-9})
    broken = found.of(Choice("broken"))
    assert (broken.status, broken.times) == (status, None) and reason in broken.reason
    assert found.winner is None and found.tried[-1] is broken


@pytest.mark.parametrize("when", ["by itself", "in a graph", "in a turn"])
def test_what_fails_while_it_is_timed_has_failed(planted, when):
    planted("broken", cuda_linear.RUNGS["tiled"])

    def fails(ran):
        if when == "by itself" or ran > 4:
            raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED")
        return MILLISECOND

    class Clock(Told):
        def graph(self, works):
            if "broken" in str(choice._forcing):
                raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED")
            return super().graph(works)

    clock = Clock({"naive": 1e-6, "broken": 2e-6} if when == "in a graph" else {"broken": fails})
    found = trial.try_all(LayerProduct(LAYER, "nt", "fp32"), clock, turns=5)
    broken = found.of(Choice("broken"))
    assert (broken.status, broken.reason, broken.times) == ("failed", "CUDA_ERROR_LAUNCH_FAILED", None)
    assert all(one.times is not None for one in found.tried if one is not broken)


def test_a_device_that_does_nothing_more_ends_it_in_one_line(planted, monkeypatch, here, clock, capsys):
    planted("broken", failing)

    def refuse():
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(clock(), "synchronize", refuse)
    code, out, err = run(capsys, *ONE)
    assert code == BAD_INPUT and "0 of 3 were tried" in out
    assert err == (
        "bp: error: the device does nothing more for this process: CUDA_ERROR_LAUNCH_FAILED: unspecified launch "
        "failure\n"
    )


def test_without_a_reference_a_product_is_not_tried_and_its_entry_stays(here, clock, capsys, monkeypatch):
    clock(FAST)
    run(capsys, *ONE)
    before = tuning.read(here)
    naive = cuda_linear.RUNGS["naive"]

    def refuse(product, variant):
        if product.way == "nn":
            raise ShapeError("expected a grid of at most 1 blocks")
        naive(product, variant)

    clock()
    monkeypatch.setitem(cuda_linear.RUNGS, "naive", refuse)
    code, out, _ = run(capsys, *ONE)
    assert code == 0 and "  not tried: expected a grid of at most 1 blocks\n" in out and "2 of 3 were tried" in out
    assert [(key, before.entries[key]) for key in before.entries if key.way == "nn"] == [
        *tuning.read(here).entries.items()
    ]


def test_where_the_built_in_choice_is_wrong_a_right_one_takes_its_place(monkeypatch):
    before = cuda_linear.RUNGS["tiled"]
    monkeypatch.setitem(cuda_linear.RUNGS, "tiled", lazy)
    found = try_one(times={"naive": 1.0})
    monkeypatch.setitem(cuda_linear.RUNGS, "tiled", before)
    assert becomes(found)["tiled"] == "wrong" and found.built_in == Choice("tiled")
    assert found.winner is not None and found.winner.choice != Choice("tiled")


def test_turns_are_interleaved_and_begin_with_another_each_time():
    clock = Told({"naive": 2 * MILLISECOND})
    found = trial.try_all(LayerProduct(LAYER, "nt", "fp32"), clock, turns=4, seconds=60.0)
    count = len(found.tried)
    turns = [clock.ran[at : at + count] for at in range(count, len(clock.ran), count)]  # after a first run of each
    assert len(turns) == 4 and all(set(turn) == set(turns[0]) for turn in turns)
    assert len({turn[0] for turn in turns}) == min(4, count)
    naive = found.of(Choice("naive")).times
    assert naive is not None and (naive.median, naive.runs) == (2 * MILLISECOND, 4)
    assert [one.times.median for one in found.tried] == sorted(one.times.median for one in found.tried)


def test_the_fastest_is_kept_if_noise_does_not_explain_it():
    noisy = np.random.default_rng(0).normal(1.0, 0.1, 10_000)

    def spread(median):
        return lambda turn: median * MILLISECOND * noisy[turn]

    clear = try_one(times={"tiled": spread(1.0), "naive": spread(0.4)})
    assert clear.winner is not None and clear.winner.choice == Choice("naive")
    within = try_one(times={"tiled": spread(1.0), "naive": spread(0.97)})
    assert within.winner is None
    # Whatever the turns show, two runs differ by about a per cent.
    assert try_one(times={"tiled": MILLISECOND, "naive": 0.99 * MILLISECOND}).winner is None
    assert try_one(times={"tiled": MILLISECOND, "naive": 0.9 * MILLISECOND}).winner is not None


def capability():
    return find_device("emulator").capability


def trial_problem():
    return LAYER.task("nt", find_device("emulator"), "fp32").problem


def test_a_library_wins_only_where_that_is_asked_for(planted, monkeypatch):
    planted("library", cuda_linear.RUNGS["tiled"], library=True)
    monkeypatch.setattr(product, "WITH_LIBRARIES", ("emulator",))
    times = {"library": 0.1 * MILLISECOND}
    without = try_one(times=times)
    assert without.tried[0].choice == Choice("library") and without.winner is None
    winner = try_one(times=times, libraries=True).winner
    assert winner is not None and winner.choice == Choice("library")


def test_short_products_are_timed_by_graphs_of_many_launches(planted, monkeypatch):
    planted("library", cuda_linear.RUNGS["tiled"], library=True)
    planted("slow", cuda_linear.RUNGS["tiled"])
    monkeypatch.setattr(product, "WITH_LIBRARIES", ("emulator",))
    clock = Told({"naive": 4e-6, "tiled": 64e-6, "library": 5e-6, "slow": 10 * MILLISECOND})
    found = trial.try_all(LayerProduct(LAYER, "nt", "fp32"), clock, turns=5)
    naive, library = found.of(Choice("naive")), found.of(Choice("library"))
    assert clock.graphs == 2 and naive.times is not None
    assert naive.times.median == pytest.approx(4e-6 / 64)  # of a graph of so many
    assert library.times is None and "CuPy cannot record it in a graph" in library.reason
    slow = found.of(Choice("slow")).times
    assert slow is not None and slow.median == 10 * MILLISECOND


# From a step to products ---------------------------------------------------------------------------------------


def test_the_products_of_a_recipe():
    what, found = tune.of_recipe("digits", ["--model.hidden", "[16]"], find_device("emulator"))
    assert what == "digits, a training step of 32 samples in fp32"
    assert {(str(one.layer), one.way) for one in found} == {
        ("linear, 32 rows, 16 outputs, 64 inputs", "nt"),
        ("linear, 32 rows, 16 outputs, 64 inputs", "tn"),
        ("linear, 32 rows, 10 outputs, 16 inputs", "nt"),
        ("linear, 32 rows, 10 outputs, 16 inputs", "nn"),
        ("linear, 32 rows, 10 outputs, 16 inputs", "tn"),
    }
    assert found[0].layer == LinearLayer(32, 16, 64)  # those with most to compute come first


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "layer",
    [
        LinearLayer(3, 4, 5),
        ConvLayer(2, 9, 8, 4, 6, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2),
        ConvLayer(1, 8, 8, 4, 6, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_a_layer_is_found_again_in_the_launches_of_its_products(layer, precision):
    plan = find_device_plan()
    for way in layer.ways:
        with plan.running(precision), choice.only(layer.family, Choice("tiled")), plan.recording() as ledger:
            arrays = {
                name: plan.allocate(shape, "float32" if name.startswith("dw") or name == "dbias" else of(precision))
                for name, shape in {**layer.operands(way), **layer.destinations(way)}.items()
            }
            layer.compute(way, arrays)
        (found,) = products_of(ledger.launches)
        assert (found.way, found.precision) == (way, precision)
        assert found.layer.operands(way) == layer.operands(way) and found.layer.flops == layer.flops
        with plan.running(precision):
            assert found.layer.task(way, plan, precision).problem == layer.task(way, plan, precision).problem


def find_device_plan():
    from bp.cuda.plan import device

    return device


def of(precision):
    return {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")


def test_one_product_of_each_class_the_largest():
    layers = [LinearLayer(64, 16, 100), LinearLayer(64, 16, 97), LinearLayer(64, 16, 65)]
    found = tune.by_class([LayerProduct(layer, "nt", "bf16") for layer in layers], find_device("emulator"))
    assert [one.layer for one in found.values()] == [layers[0], layers[1], layers[2]]  # rows at other alignments
    found = tune.by_class([LayerProduct(layer, "nn", "bf16") for layer in layers], find_device("emulator"))
    assert [(key.n, one.layer) for key, one in found.items()] == [(128, layers[0]), (128, layers[1]), (96, layers[2])]
    with_one = [LinearLayer(64, 16, 104), LinearLayer(64, 16, 128), LinearLayer(64, 16, 112)]
    found = tune.by_class([LayerProduct(layer, "nn", "bf16") for layer in with_one], find_device("emulator"))
    assert [one.layer for one in found.values()] == with_one[:1]


@pytest.mark.parametrize("alignment", [16, 4, 2])
def test_rows_of_an_alignment(alignment):
    problem = LinearLayer(8, 16, 32).task("nt", find_device("emulator"), "bf16", alignment).problem
    assert problem.alignment == alignment
    assert LinearLayer(8, 16, 33).task("nt", find_device("emulator"), "bf16").problem.alignment == 2


# The command ---------------------------------------------------------------------------------------------------


def run(capsys, *argv):
    code = main(["tune", *argv])
    out, err = capsys.readouterr()
    return code, out, err


ONE = ("linear", "6", "5", "7", "fp32")
FAST = {"naive": 0.2 * MILLISECOND}


def test_what_is_faster_is_kept_and_chosen_from_then_on(here, clock, capsys):
    clock(FAST)
    problem = trial_problem()
    choice.forget()
    code, out, _ = run(capsys, *ONE)
    assert code == 0 and "3 shape classes with another choice than the built-in one" in out
    table = tuning.read(here)
    assert table.hash in out and str(here) in out
    assert {entry.choice for entry in table.entries.values()} == {Choice("naive")}
    entry = table.entries[tuning.shape_class(problem)]
    assert (entry.built_in, entry.sizes) == (Choice("tiled"), (6, 5, 7)) and entry.seconds == 0.2 * MILLISECOND
    assert choice.choose(problem, capability()) == Choice("naive")
    assert choice.in_use(capability()) == f"tuned table {table.hash}"


def test_its_lines(here, clock, capsys):
    clock(FAST | {"tiled": MILLISECOND})
    _, out, _ = run(capsys, *ONE)
    first = out.split("\n\n")
    assert first[0].splitlines()[0] == "linear, 6 rows, 5 outputs, 7 inputs, in fp32"
    assert first[0].splitlines()[1].startswith("3 products of 3 shape classes, on emulator")
    lines = first[1].splitlines()
    assert lines[0] == "1/3 linear nt: y (6, 5) = x W^T, sums of 7 terms, fp32"
    rows = [re.split("  +", line.strip()) for line in lines[1:]]
    assert rows[0][0] == "rung" and rows[1][0] == "naive" and rows[1][-1] == "kept" and f"5.00{TIMES}" in rows[1]
    assert rows[2][0] == "tiled" and rows[2][-1] == "built-in" and f"1.00{TIMES}" in rows[2]
    assert "2.10 MFLOP/s" in rows[1] and "200 µs" in rows[1]
    assert max(len(line) for line in out.splitlines() if str(here) not in line) <= 100


def test_nothing_is_kept_where_the_built_in_choice_is_the_fastest(here, clock, capsys):
    clock()
    code, out, _ = run(capsys, *ONE)
    assert code == 0 and not here.exists() and "there is no table to keep" in out


def test_what_is_no_longer_faster_is_dropped_and_the_rest_stays(here, clock, capsys):
    clock(FAST)
    run(capsys, *ONE)
    run(capsys, "linear", "40", "50", "60", "fp32")
    assert len(tuning.read(here).entries) == 6
    clock()
    run(capsys, *ONE)
    left = tuning.read(here).entries
    assert len(left) == 3 and all(key.m > 20 for key in left)


def test_a_table_of_other_kernels_is_begun_anew(here, clock, capsys):
    clock(FAST)
    run(capsys, *ONE)
    document = json.loads(here.read_text())
    here.write_text(json.dumps(document | {"kernels": "older"}))
    _, out, _ = run(capsys, "linear", "40", "50", "60", "fp32")
    assert "was measured with other kernels than these" in out and len(tuning.read(here).entries) == 3


def test_a_table_of_another_gpu_is_begun_anew(here, clock, capsys):
    clock(FAST)
    run(capsys, *ONE)
    document = json.loads(here.read_text())
    here.write_text(json.dumps(document | {"gpu": "NVIDIA H100 PCIe"}))
    _, out, _ = run(capsys, "linear", "40", "50", "60", "fp32")
    assert f"{here} was measured on NVIDIA H100 PCIe, and this is emulator, compute capability" in out
    table = tuning.read(here)
    assert len(table.entries) == 3 and table.gpu == document["gpu"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
def test_a_damaged_file_of_the_cache_is_begun_anew(here, clock, capsys, monkeypatch, tmp_path, text):
    monkeypatch.delenv("BP_TUNING")
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path))
    choice.forget()
    here.parent.mkdir()
    here.write_text(text)
    clock(FAST)
    code, out, _ = run(capsys, *ONE)
    assert code == 0 and re.search(f"{here}: expected a tuned table.*: it is begun anew", out)
    assert len(tuning.read(here).entries) == 3


def test_a_file_that_was_named_and_is_no_table_is_left_alone(here, clock, capsys):
    here.parent.mkdir()
    here.write_text("notes of mine")
    clock(FAST)
    code, _, err = run(capsys, *ONE)
    assert code == BAD_INPUT and "expected a tuned table" in err and here.read_text() == "notes of mine"


def test_what_was_measured_before_an_interrupt_is_kept(here, clock, capsys, monkeypatch):
    clock(FAST)
    tried = []

    def interrupted(product, *arguments, **options):
        tried.append(product)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return trial.try_all(product, *arguments, **options)

    monkeypatch.setattr(tune, "try_all", interrupted)
    code, out, err = run(capsys, *ONE)
    assert code == INTERRUPTED and "bp: interrupted" in err
    assert "1 of 3 were tried" in out and f"1 shape class with another choice than the built-in one: {here}" in out
    assert [key.way for key in tuning.read(here).entries] == ["nt"]
    assert list(here.parent.iterdir()) == [here]


def test_no_further_product_is_begun_once_the_time_is_over(here, clock, capsys):
    clock(FAST)
    code, out, _ = run(capsys, *ONE, "--seconds", "1e-9")
    assert code == 0 and "3 of 3 were not begun: no time was left" in out


def test_a_wrong_rung_makes_the_exit_code_1(here, clock, capsys, planted):
    planted("broken", off_by_one)
    clock({"broken": 1e-9})
    with pytest.raises(SystemExit) as ended:
        main(["tune", *ONE])
    out = capsys.readouterr().out
    assert ended.value.code == 1 and "3 of the results were wrong, or failed" in out
    assert "wrong: 1 elements differ where sums are exact" in out


def test_the_emulator_checks_and_times_nothing(here, capsys):
    code, out, _ = run(capsys, *ONE, "--device", "emulator")
    assert code == 0 and not here.exists() and "3 of 3 were tried\nnothing was timed" in out
    assert re.search(r"tiled +right, built-in", out)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--device", "cpu"], "bp tune chooses among CUDA kernels: --device cuda or emulator, not cpu"),
        ([*ONE, "--seconds", "0"], "--seconds expected more than 0, got 0"),
        (
            ["linear", "6", "5", "7"],
            "expected linear M N K DTYPE, or conv N H W C OUT KERNEL DTYPE, got 'linear 6 5 7'",
        ),
        (["linear", "6", "5", "7", "fp64"], "expected a DTYPE of fp32, tf32, fp16, bf16 at the end, got 'fp64'"),
        (["linear", "6", "0", "7", "fp32"], "N expected a whole number of at least 1, got '0'"),
        ([*ONE, "--stride", "2"], "--stride is of a convolution, and this is linear"),
        (["conv", "1", "8", "8", "3", "4", "3x", "fp32"], "KERNEL expected a whole number of at least 1, got ''"),
        (
            ["conv", "1", "8", "8", "3", "4", "3", "fp32", "--groups", "2"],
            "expected groups that divide 3 channels and 4",
        ),
        (["conv", "1", "2", "2", "3", "4", "3", "fp32"], "conv"),
        (["nosuch"], "nosuch"),
        (["digits", "--stride", "2"], "--stride is of a convolution, and this is a recipe"),
        (["digits", "--model.hiden", "[3]"], "hiden"),
        (["digits", "--trainer.precision", "fp64"], "fp64"),
    ],
)
def test_bad_input_is_one_line(capsys, here, argv, text):
    device = [] if "--device" in argv else ["--device", "emulator"]
    code, _, err = run(capsys, *argv, *device)
    assert code == BAD_INPUT and text in err and err.count("\n") == 1
    assert not here.exists()


def test_without_a_gpu_it_says_so(capsys, here, monkeypatch):
    code, _, err = run(capsys, *ONE)
    assert code == BAD_INPUT and "device 'cuda' cannot be used" in err and err.count("\n") == 1


def test_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--help"])
    assert ended.value.code == 0 and "--cublas" in capsys.readouterr().out
    assert products.ON_GPU
