"""The choice of a kernel: what is forced, what was tuned, the rules; shape classes, tables on disk, reasons."""

import json
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bp
from bp.callbacks import Callback
from bp.cli import BAD_INPUT, main
from bp.cuda import choice, tuning
from bp.cuda.choice import Choice, Problem, Rung
from bp.cuda.tuning import Entry, Table
from bp.errors import ConfigurationError, Notice

PROBLEM = Problem("linear", "nt", 100, 70, 300, 1, "bfloat16", 16)
TILES = ("big", "small")

# A library, a rung that waits for a GPU, one with tiles for 16 bits, one for outer products, and one for the rest.
LADDER = (
    Rung("library", lambda problem: False, library=True),
    Rung("new", lambda problem: True, only=90, dtypes=("bfloat16",), alignment=16, verified=False),
    Rung(
        "cores",
        lambda problem: problem.m > 8,
        variant=lambda problem: "small",
        tiles=lambda problem: TILES,
        dtypes=("float16", "bfloat16"),
        least_of={"float16": 80, "bfloat16": 80},
        alignment=4,
        because="more than 8 rows",
    ),
    Rung("outer", lambda problem: problem.k <= 4, because="the depth is 4 at most"),
    Rung("rest", lambda problem: True),
)


@pytest.fixture
def ladder(monkeypatch):
    """The ladder above, and nothing that the environment says."""
    monkeypatch.setitem(choice.RUNGS, "linear", LADDER)
    for name in ("BP_LINEAR", "BP_CONV"):
        monkeypatch.delenv(name, raising=False)
    choice.forget()
    yield
    monkeypatch.undo()
    choice.forget()


def entry(rung, tile="", seconds=1.0):
    return Entry(Choice(rung, tile), seconds, Choice("rest"), 2 * seconds, (100, 70, 300))


@pytest.fixture
def tuned(ladder, monkeypatch, tmp_path):
    """tuned("cores", "big") writes a table that has it for products like PROBLEM, and lets it be used."""

    def use(rung, tile="", problem=PROBLEM, **table):
        path = tmp_path / "table.json"
        given = {"capability": 90, "gpu": "a GPU", "version": tuning.version()} | table
        made = Table(**given, entries={tuning.shape_class(problem): entry(rung, tile)})
        tuning.write(path, made)
        monkeypatch.setenv("BP_TUNING", str(path))
        choice.forget()
        return path

    return use


def force(monkeypatch, asked):
    monkeypatch.setenv("BP_LINEAR", asked)
    choice.forget()


def chosen(capability=90, **other):
    return choice.choose(replace(PROBLEM, **other), capability)


def test_the_rules(ladder):
    assert chosen() == Choice("cores", "small")
    assert chosen(m=8) == Choice("rest")
    assert chosen(dtype="float32", k=4) == Choice("outer")
    assert chosen(capability=75) == Choice("rest")
    assert chosen(alignment=4) == Choice("cores", "small") and chosen(alignment=2) == Choice("rest")


def test_what_is_forced_comes_before_what_was_tuned_and_that_before_the_rules(tuned, monkeypatch):
    tuned("cores", "big")
    assert chosen() == Choice("cores", "big")
    force(monkeypatch, "rest")
    assert chosen() == Choice("rest")
    force(monkeypatch, "")
    monkeypatch.setenv("BP_TUNING", "off")
    choice.forget()
    assert chosen() == Choice("cores", "small")


@pytest.mark.parametrize("rung", ["library", "new"])
def test_a_library_and_what_no_gpu_has_verified_are_taken_by_force_or_from_a_table_alone(rung, tuned, monkeypatch):
    assert chosen() == Choice("cores", "small")
    tuned(rung)
    assert chosen() == Choice(rung)
    monkeypatch.setenv("BP_TUNING", "off")
    force(monkeypatch, rung)
    assert chosen() == Choice(rung)


def test_a_tile_can_be_forced(ladder, monkeypatch):
    force(monkeypatch, "cores:big")
    assert chosen() == Choice("cores", "big")
    force(monkeypatch, "cores:huge")
    with pytest.raises(ConfigurationError, match=r"BP_LINEAR=cores:huge expected a tile of cores \(big, small\)"):
        chosen()
    force(monkeypatch, "rest:big")
    with pytest.raises(ConfigurationError, match=r"expected a tile of rest \(which has none\)"):
        chosen()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("faster", "BP_LINEAR expected one of library, new, cores, outer, rest, got 'faster'"),
        (
            "cores",
            "^BP_LINEAR=cores cannot compute a product in fp32 on compute capability 9.0: fp16 and bf16 only$",
        ),
        ("cores:", "^BP_LINEAR=cores cannot compute a product in fp32 "),
        ("new:", "^BP_LINEAR=new cannot compute a product in fp32 on compute capability 9.0: bf16 only$"),
    ],
)
def test_what_cannot_be_forced(ladder, monkeypatch, asked, text):
    force(monkeypatch, asked)
    with pytest.raises(ConfigurationError, match=text):
        chosen(dtype="float32")


def test_a_tile_that_is_for_other_products(monkeypatch, ladder):
    monkeypatch.setitem(
        choice.RUNGS, "linear", (replace(LADDER[2], tiles=lambda problem: TILES[: problem.alignment // 8]),)
    )
    force(monkeypatch, "cores:small")
    assert chosen() == Choice("cores", "small")
    with pytest.raises(
        ConfigurationError, match=r"BP_LINEAR=cores:small expected a tile of cores for this product \(none\)"
    ):
        chosen(alignment=4)


def test_the_environment_is_read_once(ladder, monkeypatch):
    """What is chosen, why, and in words: all by what it said first, until it is read anew."""
    assert chosen() == Choice("cores", "small")
    monkeypatch.setenv("BP_LINEAR", "rest")
    assert (chosen(m=99), choice.in_use(90)) == (Choice("cores", "small"), "built-in rules")
    assert choice.decide(replace(PROBLEM, m=98), 90).by == "rule"
    choice.forget()
    assert (chosen(), choice.in_use(90)) == (Choice("rest"), "linear=rest, built-in rules")
    assert choice.decide(PROBLEM, 90).by == "forced"


@pytest.mark.parametrize("asked", ["faster", "cores:huge", ":big", " "])
def test_what_there_is_not_is_refused_before_any_product(ladder, monkeypatch, asked):
    force(monkeypatch, asked)
    with pytest.raises(ConfigurationError, match="BP_LINEAR"):
        choice.in_use(90)


def test_every_tile_of_bp_can_be_asked_for(monkeypatch):
    for family, rungs in choice.RUNGS.items():
        way = choice.WAYS[family][0]
        for rung in rungs:
            for dtype in rung.dtypes:
                problem = Problem(family, way, 512, 512, 512, 1, dtype, 16, depthwise=rung.depthwise, im2col=True)
                for tile in rung.variants(problem):
                    monkeypatch.setenv(f"BP_{family.upper()}", str(Choice(rung.name, tile)))
                    choice.forget()
                    assert choice.choose(problem, rung.only or 80) == Choice(rung.name, tile)
        monkeypatch.undo()
        choice.forget()


def test_only_one_choice_for_a_while(ladder, monkeypatch):
    with choice.only("linear", Choice("cores", "big")):
        assert chosen() == Choice("cores", "big")
        with choice.only("linear", Choice("rest")):
            assert chosen() == Choice("rest")
        assert chosen() == Choice("cores", "big")
        force(monkeypatch, "rest")
        assert chosen() == Choice("cores", "big")
        assert choice.in_use(90) == "linear=cores:big, built-in rules"
    assert chosen() == Choice("rest")


def test_every_rung_with_every_tile_that_can_compute_a_problem(ladder):
    assert list(map(str, choice.candidates(PROBLEM, 90))) == [
        *("library", "new", "cores:big", "cores:small", "outer", "rest"),
    ]
    assert [str(one) for one in choice.candidates(replace(PROBLEM, dtype="tf32"), 90)] == ["library", "outer", "rest"]


def test_a_device_without_the_library_takes_what_the_rules_have(tuned, monkeypatch):
    """A table that was made with --cublas on a GPU, on the emulator."""
    tuned("library")
    assert chosen() == Choice("library") and chosen(library=False) == Choice("cores", "small")
    decision = choice.decide(replace(PROBLEM, library=False), 90)
    assert (decision.by, dict(decision.passed)["library"]) == ("rule", "a library of device 'cuda' alone")
    force(monkeypatch, "library")
    with pytest.raises(ConfigurationError, match=r"BP_LINEAR=library cannot .*: a library of device 'cuda' alone"):
        chosen(library=False)


def test_sizes_that_cublas_cannot_say_are_left_to_other_rungs(force):
    largest = Problem("linear", "nt", 2**31 - 1, 8, 8, 1, "bfloat16", 16)
    force("linear", "cublas")
    assert choice.choose(largest, 90) == Choice("cublas")
    for other in ({"m": 2**31}, {"n": 2**31}, {"k": 2**31}, {"batch": 2**31}):
        with pytest.raises(ConfigurationError, match=r"takes sizes up to 2\^31 - 1, here 2147483648"):
            choice.choose(replace(largest, **other), 90)


# Reasons ------------------------------------------------------------------------------------------------------


def test_why_the_others_were_passed_over(ladder):
    decision = choice.decide(PROBLEM, 90)
    assert (decision.choice, decision.by) == (Choice("cores", "small"), "rule")
    assert dict(decision.passed) == {
        "library": "a library: taken where BP_LINEAR=library or a tuned table says so",
        "new": "not verified on a GPU yet: taken where BP_LINEAR=new or a tuned table says so",
        "outer": "comes after cores in the table",
        "rest": "comes after cores in the table",
    }
    reasons = dict(choice.decide(replace(PROBLEM, dtype="tf32"), 90).passed)
    assert (reasons["new"], reasons["cores"]) == ("bf16 only", "fp16 and bf16 only")
    assert reasons["outer"] == "only where the depth is 4 at most"
    reasons = dict(choice.decide(replace(PROBLEM, alignment=2), 80).passed)
    assert reasons["new"] == "exists for compute capability 9.0 alone"
    assert reasons["cores"] == "needs rows at multiples of 4 bytes, here of 2"
    assert dict(choice.decide(PROBLEM, 75).passed)["cores"] == "needs compute capability 8.0"


def test_reasons_where_somebody_asked_or_measured(tuned, monkeypatch):
    tuned("cores", "big")
    decision = choice.decide(PROBLEM, 90)
    assert (decision.by, dict(decision.passed)["rest"]) == ("tuned", "the tuned table has cores:big")
    force(monkeypatch, "rest")
    decision = choice.decide(PROBLEM, 90)
    assert (decision.by, dict(decision.passed)["outer"]) == ("forced", "BP_LINEAR forces rest")
    assert [name for name, _ in decision.passed] == ["library", "new", "cores", "outer"]


@pytest.mark.parametrize("family", ["linear", "conv"])
def test_the_ladder_of_bp(family):
    """Names are unique, the last rung takes everything, and a rule in words stands where a rung has one."""
    rungs = choice.RUNGS[family]
    assert len({rung.name for rung in rungs}) == len(rungs)
    way = {"linear": "nn", "conv": "forward"}[family]
    for dtype in choice.SHORT:
        for alignment in (16, 4, 2):
            for sizes in ((1, 1, 1), (4096, 4096, 4096), (7, 3, 1000), (1, 10**6, 5)):
                problem = Problem(family, way, *sizes, 1, dtype, alignment)
                for capability in (75, 80, 90, 120):
                    found = choice.candidates(problem, capability)
                    assert choice.by_rule(problem, capability) in found and len(set(found)) == len(found)
    taken = [rung for rung in rungs[:-1] if rung.verified and not (rung.library or rung.coarse)]
    assert all(rung.because for rung in taken)


# Classes and tables --------------------------------------------------------------------------------------------


def test_sizes_of_a_class():
    rounded = [tuning.shape_class(replace(PROBLEM, m=m)).m for m in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 96, 97, 50304)]
    assert rounded == [0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 16, 96, 128, 65536]
    assert tuning.shape_class(PROBLEM) == replace(PROBLEM, m=128, n=96, k=384)
    for m in (10**9, 2**40 + 1):
        assert m <= tuning.shape_class(replace(PROBLEM, m=m)).m < 1.51 * m


def test_one_entry_serves_its_class_and_no_other(tuned):
    tuned("cores", "big")
    assert chosen(m=128, n=65, k=257) == Choice("cores", "big")
    for other in ({"m": 129}, {"k": 256}, {"way": "nn"}, {"dtype": "float16"}, {"batch": 2}, {"alignment": 4}):
        assert chosen(**other) == Choice("cores", "small"), other


def test_an_entry_that_cannot_compute_a_product_is_left_out(tuned):
    for rung, tile in (("cores", "huge"), ("cores", ""), ("outer", "big")):
        tuned(rung, tile)
        assert chosen() == Choice("cores", "small")


def test_a_table_comes_back_as_it_was(tmp_path):
    path = tmp_path / "tuning" / "sm_90.json"
    conv = Problem("conv", "backward_parameters", 64, 576, 8192, 1, "tf32", 16, 4)
    wrong = Entry(Choice("cores", "big"), 1e-5, Choice("tiled"), None, (60, 576, 8000))
    table = Table(90, "a GPU", "v", {tuning.shape_class(PROBLEM): entry("rest"), conv: wrong})
    tuning.write(path, table)
    assert tuning.read(path) == table and list(path.parent.iterdir()) == [path]


def test_the_hash_is_of_what_is_chosen():
    one, two = tuning.shape_class(PROBLEM), replace(tuning.shape_class(PROBLEM), m=8)
    table = Table(90, "a GPU", "v", {one: entry("rest"), two: entry("cores", "big")})
    same = Table(90, "another", "w", {two: entry("cores", "big", 3.0), one: entry("rest", seconds=2.0)})
    assert table.hash == same.hash and len(table.hash) == 12
    for entries in ({one: entry("rest")}, {one: entry("rest"), two: entry("cores", "small")}):
        assert Table(90, "a GPU", "v", entries).hash != table.hash
    assert Table(80, "a GPU", "v", table.entries).hash != table.hash


def test_a_table_of_another_architecture_is_not_used(tuned):
    tuned("rest", capability=80)
    assert chosen() == Choice("cores", "small") and chosen(capability=80) == Choice("rest")


@pytest.mark.parametrize("rung", ["rest", "gone"])
def test_a_table_of_other_kernels_is_left_out_with_one_warning(tuned, rung):
    path = tuned(rung, version="older")
    with pytest.warns(Notice, match=f"{path} was measured with other kernels .*: run bp tune again") as caught:
        assert chosen() == Choice("cores", "small") and chosen(m=9) == Choice("cores", "small")
    assert len(caught) == 1


def test_the_version_is_of_kernels_and_of_what_launches_them(tmp_path, monkeypatch):
    for name, text in (("linear_new.cu", '#include "shared.cuh"\n'), ("norm.cu", ""), ("include/shared.cuh", "// 1")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(tuning, "kernel_folder", lambda: tmp_path)
    monkeypatch.setattr("bp.cuda.signature.kernel_folder", lambda: tmp_path)

    def version():
        tuning.with_includes.cache_clear()
        return tuning.version.__wrapped__()

    first = version()
    (tmp_path / "norm.cu").write_text("// of another family")
    assert version() == first
    (tmp_path / "include" / "shared.cuh").write_text("// 2")
    second = version()
    (tmp_path / "conv_new.cu").write_text("// a rung more")
    assert len({first, second, version()}) == 3
    tuning.with_includes.cache_clear()


@pytest.mark.parametrize("name", ["choice", "epilogue", "product", "tensor_map", "mma_tiles", "linear_mma", "conv"])
def test_the_version_is_of_what_cuts_and_launches(tmp_path, monkeypatch, name):
    shutil.copytree(Path(tuning.__file__).parent, tmp_path / "cuda")
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "cuda" / "tuning.py"))
    first = tuning.version.__wrapped__()
    path = tmp_path / "cuda" / f"{name}.py"
    path.write_text(path.read_text() + "# changed")
    assert tuning.version.__wrapped__() != first


def with_entry(document, **changes):
    return json.dumps(document | {"entries": [document["entries"][0] | changes]})


def without(document, key):
    return {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda document: "{", "cannot be read"),
        (lambda document: "[]", "expected a tuned table of format 1, got list"),
        (lambda document: json.dumps(document | {"format": 2}), "expected a tuned table of format 1, got 2"),
        (lambda document: json.dumps(without(document, "entries")), "damaged .*entries"),
        (lambda document: json.dumps(document | {"entries": [{}]}), "damaged"),
        (lambda document: with_entry(document, m="many"), "damaged"),
        (lambda document: with_entry(document, m=True), "m = True"),
        (lambda document: with_entry(document, dtype="int8"), "int8"),
        (lambda document: with_entry(document, family="pool"), "pool"),
        (lambda document: with_entry(document, way="sideways"), "sideways"),
        (lambda document: with_entry(document, way="forward"), "linear, forward"),
        (lambda document: with_entry(document, rung=None), "rung = None"),
        (lambda document: with_entry(document, rung="gone"), "linear has no rung gone"),
        (lambda document: with_entry(document, tile=None), "tile = None"),
        (lambda document: with_entry(document, measured=[1]), "damaged"),
        (lambda document: with_entry(document, seconds="soon"), "damaged"),
        (lambda document: with_entry(document).replace("2.0", "1e999"), "inf seconds"),
        (lambda document: json.dumps(document | {"entries": {"a": 1}}), "damaged"),
        (lambda document: json.dumps(document | {"format": True}), "expected a tuned table of format 1, got True"),
        (lambda document: json.dumps(document | {"capability": "90"}), "capability = '90'"),
        (lambda document: json.dumps(document | {"capability": 0}).replace(": 0", ": 1e999"), "capability = inf"),
        (lambda document: json.dumps(document | {"capability": 0}).replace(": 0", ": " + 5000 * "9"), "cannot be read"),
        (lambda document: "[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_table(tuned, monkeypatch, tmp_path, damage, text):
    """One that was asked for is an error; one of the cache is left out."""
    path = tuned("rest")
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ConfigurationError, match=f"{path}: .*{text}"):
        chosen()
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("BP_TUNING")
    (tmp_path / "tuning").mkdir()
    path.rename(tmp_path / "tuning" / "sm_90.json")
    choice.forget()
    with pytest.warns(Notice, match="it is not used"):
        assert chosen() == Choice("cores", "small")


def test_where_the_table_is(ladder, monkeypatch, tmp_path):
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("BP_TUNING")
    choice.forget()
    assert tuning.place(90) == tmp_path / "tuning" / "sm_90.json"
    assert chosen() == Choice("cores", "small")
    entries = {tuning.shape_class(PROBLEM): entry("rest")}
    tuning.write(tuning.place(90), Table(90, "a GPU", tuning.version(), entries))
    assert chosen() == Choice("cores", "small")  # read once
    choice.forget()
    assert chosen() == Choice("rest")
    monkeypatch.setenv("BP_TUNING", str(tmp_path / "missing.json"))
    choice.forget()
    with pytest.raises(ConfigurationError, match=r"missing\.json: no such file; bp tune makes one"):
        chosen()
    monkeypatch.setenv("BP_TUNING", "off")
    with pytest.raises(ConfigurationError, match="BP_TUNING=off says that there is no tuned table"):
        tuning.place(90)


def test_a_table_is_read_once_for_many_products(tuned, monkeypatch):
    path = tuned("rest")
    assert chosen() == Choice("rest")
    os.remove(path)
    for m in range(97, 110):
        assert chosen(m=m) == Choice("rest")


# What stands in checkpoints ------------------------------------------------------------------------------------


def test_in_words(tuned, monkeypatch):
    assert choice.in_use(90) == "built-in rules"
    tuned("rest")
    (table,) = [tuning.in_use(90)]
    assert choice.in_use(90) == f"tuned table {table.hash}" and choice.in_use(80) == "built-in rules"
    force(monkeypatch, "cores:big")
    assert choice.in_use(90) == f"linear=cores:big, tuned table {table.hash}"


class Heard(Callback):
    def __init__(self):
        self.messages = []

    def on_message(self, trainer, text):
        self.messages.append(text)


def trained(folder, device, heard, steps, resume=None):
    generator = np.random.default_rng(0)
    data = generator.standard_normal((8, 4)).astype("float32"), generator.integers(0, 3, 8)
    trainer = bp.Trainer(
        bp.Sequential(bp.Linear(4, 3)),
        *(bp.CrossEntropyLoss(), bp.SGD(lr=0.1)),
        device=device,
        precision="fp32",
        callbacks=[heard],
        output_dir=folder,
    )
    trainer.fit(data, max_steps=steps, resume=resume)
    return trainer


def test_going_on_with_other_kernels_is_said_in_one_line(tmp_path, monkeypatch):
    heard = Heard()
    trained(tmp_path / "run", "emulator", heard, 1)
    trained(tmp_path / "run", "emulator", heard, 2, resume="auto")
    assert heard.messages == []
    monkeypatch.setenv("BP_LINEAR", "naive")
    choice.forget()
    try:
        trained(tmp_path / "run", "emulator", heard, 3, resume="auto")
    finally:
        monkeypatch.undo()
        choice.forget()
    (text,) = heard.messages
    assert text.endswith(
        "kernels were chosen by built-in rules, and are now by linear=naive, built-in rules: the last bits of results "
        "may differ"
    )
    assert "\n" not in text


def test_a_cpu_has_no_choice_and_older_checkpoints_say_nothing_of_it(tmp_path):
    heard = Heard()
    trained(tmp_path / "run", "cpu", heard, 1)
    (state,) = (tmp_path / "run" / "checkpoints").glob("step-*/state.json")
    document = json.loads(state.read_text())
    assert document["kernels"] is None
    state.write_text(json.dumps(without(document, "kernels")))
    with warnings.catch_warnings(action="error"):
        trained(tmp_path / "run", "cpu", heard, 2, resume="auto")
        trained(tmp_path / "run", "emulator", heard, 3, resume="auto")
    assert heard.messages == []


@pytest.mark.parametrize(
    ("variable", "asked", "text"),
    [
        ("BP_LINEAR", "foo", "BP_LINEAR expected one of .*naive.*, got 'foo'"),
        ("BP_CONV", "mma:1x1", r"BP_CONV=mma:1x1 expected a tile of mma \(128x128, "),
        ("BP_TUNING", "missing.json", "missing.json: no such file"),
    ],
)
def test_a_training_that_asks_for_what_there_is_not_leaves_nothing(
    tmp_path, monkeypatch, capsys, variable, asked, text
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, asked)
    choice.forget()
    try:
        small = ["--model.hidden", "[4]", "--trainer.max_steps", "1"]
        assert main(["train", "digits", "--device", "emulator", *small]) == BAD_INPUT
        out, err = capsys.readouterr()
        assert re.search(f"^bp: error: {text}", err) and err.count("\n") == 1 and out == ""
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ConfigurationError, match=text):
            bp.Trainer(bp.Linear(4, 3), bp.CrossEntropyLoss(), bp.SGD(lr=0.1), device="emulator")
        assert main(["train", "digits", "--device", "cpu", *small]) == 0  # where it has no meaning
    finally:
        monkeypatch.undo()
        choice.forget()


class Switch(Callback):
    """Asks for another rung after the fourth step, when steps are replayed."""

    def __init__(self, monkeypatch, asked):
        self.monkeypatch, self.asked = monkeypatch, asked

    def on_step_end(self, trainer, *, epoch_ended):
        if trainer.state.step == 4:
            assert trainer._graph.replaying
            self.monkeypatch.setenv("BP_LINEAR", self.asked)
            choice.forget()


@pytest.mark.parametrize("asked", ["", "naive", "foo"])
def test_a_recorded_step_does_not_go_on_under_another_choice(monkeypatch, asked):
    generator = np.random.default_rng(0)
    data = generator.standard_normal((64, 4)).astype("float32"), generator.integers(0, 3, 64)
    model = bp.Sequential(bp.Linear(4, 3))
    trainer = bp.Trainer(
        *(model, bp.CrossEntropyLoss(), bp.SGD(lr=0.1)),
        device="emulator",
        precision="fp32",
        callbacks=[Switch(monkeypatch, asked)],
        progress=False,
    )
    choice.forget()
    if asked == "foo":
        with pytest.raises(ConfigurationError, match="BP_LINEAR expected one of"):
            trainer.fit(data, max_steps=5)
    else:
        trainer.fit(data, max_steps=5)
        assert trainer._graph.replaying == (asked == "")
    monkeypatch.undo()
    choice.forget()


def test_a_training_says_by_what_its_kernels_were_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BP_LINEAR", "naive")
    choice.forget()
    small = ["--model.hidden", "[4]", "--trainer.max_steps", "1", "--output-dir", str(tmp_path / "run")]
    try:
        assert main(["train", "digits", "--device", "emulator", *small]) == 0
    finally:
        monkeypatch.undo()
        choice.forget()
    assert "; kernels by linear=naive, built-in rules\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["kernels"] == "linear=naive, built-in rules"
