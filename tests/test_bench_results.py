"""Results of benchmarks: written and read again, and every damage to the document refused where it lies."""

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from bp.bench.reading import from_document, json_schema, read_json
from bp.bench.results import (
    COLUMNS,
    SCHEMA,
    About,
    Entry,
    Group,
    Limits,
    Results,
    Row,
    Times,
    write_csv,
    write_json,
)
from bp.errors import ConfigurationError


def make_results() -> Results:
    """With each kind of value, and each field once not at its default."""
    full = Row(
        family="norm",
        benchmark="layer norm",
        sizes={"rows": 7, "columns": 1, "eps": 1e-5, "mode": "tight", "affine": True},
        precision="fp32",
        flops=35.0,
        nbytes=84.0,
        entries=[
            Entry("bp", True, "timed", error=0.25, times=Times(2e-6, 1e-6, 3e-6, 15), facts={"launches": 1.0}),
            Entry("bp norm=naive", True, "wrong", "its result is wrong", 3e4),
            Entry("torch", False, "timed", times=Times(4e-6, 4e-6, 4e-6, 1)),
            Entry("liger", False, "not installed", "pip install liger-kernel"),
        ],
        limit_seconds=1e-6,
        bound="memory",
        percent=50.0,
        ratio=2.0,
        best_peer="torch",
        target=80.0,
        axis="rows",
        group="of a network",
        clocks={"cpu before": 2400.0},
        throttled={"power cap": 0.5},
        refused="too hot",
    )
    empty = Row("norm", "batch norm", {}, "fp64", 0.0, 0.0, [])
    about = About("cpu", {"CPU": "a", "cores": "2"}, {"bp": "1.0"}, "abc+", "2026-01-01", "bp bench", {"seed": "0"})
    limits = Limits([(1e3, 2e10), (1e9, 1e10)], {"fp32": 1e11}, 1e-6)
    group = Group("norm", "layer norm", "of a network", "fp32", "bp", "torch", 1, 2.0, 2.0, 2.0, "7x1", 50.0)
    return Results(about, limits, [full, empty], {"cupy": "needs a GPU"}, 12.5, [group])


def document() -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(make_results())))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Damage: the value, last, at the keys before it."""
    *parents, last, value = path

    def damage(inner: Any) -> None:
        for key in parents:
            inner = inner[key]
        inner[last] = value

    return damage


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last = path

    def damage(inner: Any) -> None:
        for key in parents:
            inner = inner[key]
        del inner[last]

    return damage


ENTRY = ("rows", 0, "entries", 0)

# (damage, what the error says)
STRUCTURE = [
    (put("schema", SCHEMA + 1), f"in schema {SCHEMA}, which this bp reads, got schema {SCHEMA + 1}"),
    (put("schema", str(SCHEMA)), f'in schema {SCHEMA}, which this bp reads, got schema "{SCHEMA}"'),
    (put("schema", True), f"in schema {SCHEMA}, which this bp reads, got schema true"),
    (drop("schema"), f"in schema {SCHEMA}, which this bp reads, got none"),
    (put("rows", None), "rows: expected a list, got null"),
    (put("rows", 0, []), "rows[0]: expected an object, got []"),
    (drop("rows", 0, "family"), "rows[0].family: expected a text, got no such key"),
    (put("rows", 0, "colour", 1), 'rows[0]: expected no key "colour" (known: family, benchmark, '),
    (put("about", 1), "about: expected an object, got 1"),
    (put("about", "machine", "cores", 2), 'about.machine["cores"]: expected a text, got 2'),
    (put("limits", "copy", 1, [1e9]), "limits.copy[1]: expected a list of 2, got [1000000000.0]"),
    (put("limits", "copy", 1, [1e9, 1.0, 1.0]), "limits.copy[1]: expected a list of 2, got [1000000000.0, 1.0, 1.0]"),
    (put("limits", "copy", 1, [1e9, "x"]), 'limits.copy[1][1]: expected a number, got "x"'),
    (put("limits", "launch_seconds", "x"), 'limits.launch_seconds: expected a number or null, got "x"'),
    (put(*ENTRY, "status", "fine"), 'rows[0].entries[0].status: expected one of "timed", "checked", "wrong", '),
    (put(*ENTRY, "status", None), 'rows[0].entries[0].status: expected one of "timed", "checked", "wrong", '),
    (put(*ENTRY, "ours", 1), "rows[0].entries[0].ours: expected true or false, got 1"),
    (put(*ENTRY, "times", []), "rows[0].entries[0].times: expected an object or null, got []"),
    (put(*ENTRY, "times", "median", "2e-6"), 'rows[0].entries[0].times.median: expected a number, got "2e-6"'),
    (put(*ENTRY, "times", "median", True), "rows[0].entries[0].times.median: expected a number, got true"),
    (put(*ENTRY, "times", "median", None), "rows[0].entries[0].times.median: expected a number, got null"),
    (put(*ENTRY, "times", "runs", 1.5), "rows[0].entries[0].times.runs: expected an integer, got 1.5"),
    (put(*ENTRY, "facts", "launches", None), 'rows[0].entries[0].facts["launches"]: expected a number, got null'),
    (
        put("rows", 0, "sizes", "rows", [7]),
        'rows[0].sizes["rows"]: expected an integer or a number or a text or true or false, got [7]',
    ),
    (put("missing", ["x" * 100]), f'missing: expected an object, got ["{"x" * 55}...'),
]

MEANING = [
    (
        put(*ENTRY, "times", "low", 0),
        "rows[0].entries[0].times: expected 0 < low <= median <= high, got 0.0, 2e-06, 3e-06",
    ),
    (
        put(*ENTRY, "times", "low", 2.5e-6),
        "rows[0].entries[0].times: expected 0 < low <= median <= high, got 2.5e-06, ",
    ),
    (put(*ENTRY, "times", "high", 1e-6), "rows[0].entries[0].times: expected 0 < low <= median <= high, got 1e-06, "),
    (put(*ENTRY, "times", "runs", 0), "rows[0].entries[0].times.runs: expected at least 1, got 0"),
    (put(*ENTRY, "times", None), "got null where it is 'timed'"),
    (put(*ENTRY, "status", "failed"), "got times where it is 'failed'"),
    (put(*ENTRY, "times", "median", 10**400), "rows[0].entries[0].times.median: expected a number, got 1000"),
    (put(*ENTRY, "ours", False), "rows[0].entries[0].ours: expected true of 'bp', got false"),
    (put("rows", 0, "entries", 2, "ours", True), "rows[0].entries[2].ours: expected false of 'torch', got true"),
    (put("rows", 0, "entries", 2, "contestant", "bp 2"), "rows[0].entries[2].ours: expected true of 'bp 2', got false"),
    (
        put("rows", 0, "entries", 3, "contestant", "torch"),
        "rows[0].entries[3].contestant: expected each once, got 'torch'",
    ),
    (put("rows", 1, document()["rows"][0]), "rows[1]: expected a row of its own, got 'norm layer norm 7x1x1e-05xTrue "),
    (put("rows", 1, "flops", -1), "rows[1].flops: expected at least 0, got -1.0"),
    (put("rows", 1, "nbytes", -1), "rows[1].nbytes: expected at least 0, got -1.0"),
    (put("limits", "copy", 0, 0, 0), "limits.copy[0][0]: expected more than 0, got 0.0"),
    (put("limits", "copy", 0, 1, -2e10), "limits.copy[0][1]: expected more than 0, got -20000000000.0"),
    (put("limits", "copy", 0, 0, 1e10), "limits.copy: expected copies from small to large, got 10000000000.0, "),
    (put("limits", "peak", "fp32", 0.0), 'limits.peak["fp32"]: expected more than 0, got 0.0'),
    (put("limits", "launch_seconds", 0.0), "limits.launch_seconds: expected more than 0, got 0.0"),
]


def of(damage: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    damaged = document()
    damage(damaged)
    return damaged


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "results.json"
    write_json(make_results(), path)
    read = read_json(path)
    assert read == make_results()
    assert type(read.limits.copy[0]) is tuple
    assert {name: type(size) for name, size in read.rows[0].sizes.items()} == {
        "rows": int,
        "columns": int,
        "eps": float,
        "mode": str,
        "affine": bool,
    }


def test_an_empty_run_is_read_again(tmp_path):
    empty = Results(About("cpu", {}, {}, "", "", ""), Limits(), [])
    write_json(empty, tmp_path / "results.json")
    assert read_json(tmp_path / "results.json") == empty


def test_keys_with_a_default_may_be_missing():
    shorter = document()
    for key in ("missing", "seconds", "groups"):
        del shorter[key]
    del shorter["rows"][0]["entries"][0]["reason"]
    assert from_document(shorter) == dataclasses.replace(make_results(), missing={}, seconds=0.0, groups=[])


def test_an_integer_is_a_number_too():
    read = from_document(of(put("rows", 0, "flops", 35)))
    assert read == make_results() and type(read.rows[0].flops) is float


def test_an_error_without_bound_becomes_none(tmp_path):
    row = Row("f", "b", {}, "fp32", 0.0, 0.0, [Entry("bp", True, "wrong", "not finite", math.inf)])
    write_json(dataclasses.replace(make_results(), rows=[row]), tmp_path / "results.json")
    assert read_json(tmp_path / "results.json").rows[0].entries[0].error is None


@pytest.mark.parametrize(("damage", "message"), [*STRUCTURE, *MEANING])
def test_damage_is_refused_where_it_lies(tmp_path, damage, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(of(damage)))
    with pytest.raises(ConfigurationError) as caught:
        read_json(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: Expecting value"),
        ('{"schema": 1', "not valid JSON: "),
        ('{"schema": 1, "seconds": NaN}', "not valid JSON: NaN is no number of JSON"),
        ('{"schema": 1, "seconds": -Infinity}', "not valid JSON: -Infinity is no number of JSON"),
        ('{"schema": 1, "schema": 2}', 'not valid JSON: the key "schema" comes twice'),
        ('{"schema": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "not valid JSON: "),
        ("[]", "in schema 1, which this bp reads, got none"),
        ("null", "in schema 1, which this bp reads, got none"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_a_number_beyond_all_bounds_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document()).replace("12.5", "1e999"))
    with pytest.raises(ConfigurationError, match=r"seconds: expected a number, got Infinity$"):
        read_json(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"\x80\x81")
    with pytest.raises(ConfigurationError, match="not valid JSON: 'utf-8' codec"):
        read_json(path)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="checks the JSON Schema of results; comes with bp[dev]")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_the_schema_accepts_what_was_written(validator):
    assert list(validator.iter_errors(document())) == []
    shorter = document()
    del shorter["missing"], shorter["rows"][0]["clocks"]
    assert list(validator.iter_errors(shorter)) == []


@pytest.mark.parametrize(("damage", "message"), STRUCTURE)
def test_the_schema_refuses_the_same_structure(validator, damage, message):
    assert not validator.is_valid(of(damage)), message


def test_the_schema_says_of_each_field_what_it_is():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$ref"] == "#/$defs/Results"
    classes = (Results, About, Limits, Row, Entry, Times, Group)
    assert set(schema["$defs"]) == {cls.__name__ for cls in classes}
    for cls in classes:
        assert list(schema["$defs"][cls.__name__]["properties"]) == [field.name for field in dataclasses.fields(cls)]
    assert schema["$defs"]["Entry"]["required"] == ["contestant", "ours", "status"]
    assert "schema" in schema["$defs"]["Results"]["required"]


def test_csv_has_a_line_for_each_contestant(tmp_path):
    write_csv(make_results(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == COLUMNS and len(lines) == 4
    assert [line["contestant"] for line in lines] == ["bp", "bp norm=naive", "torch", "liger"]
    assert lines[0]["median_s"] == "2e-06" and lines[0]["facts"] == "launches=1.0" and lines[0]["error"] == "0.25"
    assert lines[1]["median_s"] == "" and lines[1]["reason"] == "its result is wrong"
    assert all((line["throttled"], line["refused"]) == ("power cap=0.5", "too hot") for line in lines)
    assert all(line["machine"] == "CPU=a; cores=2" and line["shape"] == "7x1x1e-05xTrue tight" for line in lines)


def test_a_row_has_one_key_in_all_runs():
    full, empty = make_results().rows
    assert full.key == "norm layer norm 7x1x1e-05xTrue tight fp32" and empty.key == "norm batch norm fp64"
    assert full.ours is full.entries[0] and empty.ours is None and full.entry("jax") is None


def test_limits_of_work():
    limits = make_results().limits
    assert limits.bandwidth(10) == 2e10 and limits.bandwidth(1e9) == 1e10 and limits.bandwidth(1e12) == 1e10
    assert limits.bandwidth(1e6) == pytest.approx(math.sqrt(2.0) * 1e10)
    assert limits.seconds(0.0, 1e9, "fp32") == (0.1, "memory")
    assert limits.seconds(1e12, 1e9, "fp32") == (10.0, "compute")
    assert limits.seconds(1e12, 0.0, "bf16") == (None, "") and Limits().bandwidth(1.0) is None
