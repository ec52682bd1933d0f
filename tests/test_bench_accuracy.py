"""Time to accuracy: what the records of a training say, whole trainings, and what is told of them."""

import importlib.util
import json
from pathlib import Path

import pytest

from bp.bench import accuracy
from bp.bench.accuracy import TARGETS, Outcome, Reached, Target, first_to_reach, keep, measure, read_outcomes
from bp.bench.results import About
from bp.cli import main
from bp.cli.accuracy import in_words
from bp.errors import ConfigurationError
from bp.recipes import names

SHORT = ("--trainer.max_epochs", "2")


def evaluation(epoch: float, value: float | None, figure: str = "valid_accuracy") -> dict[str, object]:
    return {"step": int(10 * epoch), "epoch": epoch, "time": 1000.0 + epoch, figure: value}


RECORDS = [
    {"step": 5, "epoch": 0.5, "loss": 1.0, "time": 1000.5},
    evaluation(1.0, 0.5),
    evaluation(2.0, 0.9),
    evaluation(3.0, 0.8),
    evaluation(4.0, 0.95),
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.5, Reached(2.0, 1, 0.95)),
        (0.9, Reached(3.0, 2, 0.95)),
        (0.91, Reached(5.0, 4, 0.95)),
        (0.96, Reached(None, None, 0.95)),
    ],
)
def test_the_first_epoch_that_reaches_the_target_counts(target, expected):
    assert first_to_reach(RECORDS, "accuracy", target, begun=999.0) == expected


def test_a_figure_that_is_no_number_reaches_nothing():
    records = [evaluation(1.0, None), evaluation(2.0, 0.7)]
    assert first_to_reach(records, "accuracy", 0.6, begun=1000.0) == Reached(2.0, 2, 0.7)


@pytest.mark.parametrize("records", [[], RECORDS[:1], [evaluation(1.0, None)], [evaluation(1.0, 0.9, "valid_r2")]])
def test_records_without_the_figure(records):
    with pytest.raises(ConfigurationError, match="valid_accuracy"):
        first_to_reach(records, "accuracy", 0.5, begun=0.0)


def test_a_training_that_reaches_its_target():
    began = []
    outcome = measure("digits", Target("accuracy", 0.5, SHORT), device="cpu", on_run=began.append)
    assert began == ["digits on cpu"]
    assert outcome.epochs_to_target in (1, 2) and outcome.epochs == 2.0
    assert 0.0 < outcome.cold_seconds == outcome.warm_seconds
    assert outcome.best >= 0.5 and 0.5 < outcome.tested <= 1.0
    assert (outcome.parameters, outcome.precision, outcome.about.device) == (17226, "fp32", "cpu")
    assert outcome.command == "bp train digits --trainer.max_epochs 2"
    assert "97%" not in in_words(outcome) and "50% reached in epoch" in in_words(outcome)


def test_a_training_that_never_does(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(TARGETS, "digits", Target("accuracy", 1.5, SHORT))
    path = tmp_path / "outcomes.json"
    assert main(["bench", "accuracy", "digits", "--device", "cpu", "--json", str(path)]) == 0
    kept = json.loads(path.read_text())["digits"]
    assert kept["epochs_to_target"] is kept["cold_seconds"] is kept["warm_seconds"] is None
    assert 0.3 < kept["best"] < 1.0
    assert f"digits: 150% not reached in 2 epochs, best {kept['best']:.4f}; test accuracy" in capsys.readouterr().out


def test_warm_is_with_what_the_cold_run_compiled(monkeypatch):
    caches = []

    def train(settings: list[str], cache: Path) -> None:
        caches.append((cache, cache.exists()))
        cache.mkdir(exist_ok=True)
        assert settings[settings.index("--device") + 1] == "emulator"
        folder = Path(settings[settings.index("--output_dir") + 1])
        folder.mkdir()
        started = accuracy.time.time()
        late = 20.0 if len(caches) == 1 else 3.0
        records = [evaluation(1.0, 0.2) | {"time": started + 1.0}, evaluation(2.0, 0.8) | {"time": started + late}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        summary = {"precision": "bf16", "parameters": 7, "epochs": 2.0, "seconds": 4.0, "samples_per_second": 9.0}
        (folder / "summary.json").write_text(json.dumps(summary | {"test_accuracy": 0.75}))

    monkeypatch.setattr(accuracy, "_train", train)
    outcome = measure("digits", Target("accuracy", 0.8), device="emulator")
    assert outcome.cold_seconds == pytest.approx(20.0, abs=0.5)
    assert outcome.warm_seconds == pytest.approx(3.0, abs=0.5)
    (cold, was_there), (warm, is_there) = caches
    assert cold == warm and not was_there and is_there
    words = in_words(outcome)
    assert words.startswith(
        "80% reached in epoch 2 of 2 after 20.0 s cold, 3.0 s warm; test accuracy 0.7500, 9 samples/s"
    )


def test_a_training_that_fails_says_why():
    with pytest.raises(ConfigurationError, match=r"^bp train digits failed: Dropout expected a rate"):
        measure("digits", Target("accuracy", 0.9, ("--trainer.max_steps", "1", "--model.dropout", "7")), device="cpu")


def test_targets_are_of_recipes():
    assert set(TARGETS) <= set(names())


def outcome(**changed: object) -> Outcome:
    about = About("cpu", {"CPU": "Fast", "cores": "3"}, {"python": "3.12.1"}, "abc", "2026-01-02T03:04:05", "bp bench")
    figures = {"epochs": 30.0, "seconds": 4.25, "samples_per_second": 12345.6, "figure": "accuracy", "target": 0.97}
    reached = {"tested": 0.98, "best": 0.975, "epochs_to_target": 11, "cold_seconds": 1.25, "warm_seconds": 1.0}
    settings = {"command": "bp train digits", "precision": "fp32", "parameters": 17226, "about": about}
    return Outcome(**{**settings, **figures, **reached, **changed})


def test_outcomes_are_kept_beside_each_other(tmp_path):
    path = tmp_path / "outcomes.json"
    assert read_outcomes(path) == {}
    keep(path, "digits", outcome())
    keep(path, "diabetes", outcome(figure="r2"))
    keep(path, "digits", outcome(epochs=31.0))
    kept = read_outcomes(path)
    assert {recipe: (o["figure"], o["epochs"]) for recipe, o in kept.items()} == {
        "digits": ("accuracy", 31.0),
        "diabetes": ("r2", 30.0),
    }


@pytest.mark.parametrize("text", ["", "[]", '{"digits": {"seconds": 1}}', '{"digits": 1}'])
def test_a_file_of_something_else_is_refused_before_anything_is_trained(text, tmp_path, capsys):
    path = tmp_path / "outcomes.json"
    path.write_text(text)
    assert main(["bench", "accuracy", "digits", "--json", str(path)]) == 2
    assert str(path) in capsys.readouterr().err and path.read_text() == text


def test_a_recipe_without_a_target_is_refused(capsys):
    assert main(["bench", "accuracy", "digit"]) == 2
    assert "expected a recipe with a target (digits, " in capsys.readouterr().err


def test_the_table_of_the_readme(tmp_path):
    path = Path(__file__).parent.parent / "benchmarks" / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", path)
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    file = tmp_path / "outcomes.json"
    keep(file, "digits", outcome())
    keep(file, "diabetes", outcome(figure="r2", target=0.5, cold_seconds=None, warm_seconds=None))
    lines = readme.trainings(read_outcomes(file), gpu=False).splitlines()
    assert lines[2] == "| `bp train digits` | 17,226 | 30 | 4.2 | 12,346 | 0.9800 | 0.97 | 1.2 s |"
    assert lines[3].endswith("| r2 0.9800 | r2 0.5 | not reached |")
    assert "not measured yet" in lines[4] and len(lines[4].split("|")) == len(lines[2].split("|"))
    assert lines[-1].endswith("Fast, 3 cores, Python 3.12.1, 2026-01-02.")
    assert "| 1.2 s / 1.0 s |" in readme.trainings(read_outcomes(file), gpu=True)
    content = "a\n<!-- x:begin (by hand) -->\nold\ntext\n<!-- x:end -->\nb\n"
    new = "a\n<!-- x:begin (generated by: python benchmarks/readme.py) -->\nnew\n<!-- x:end -->\nb\n"
    assert readme.replaced(content, "x", "new") == new
    with pytest.raises(ValueError, match="section 'y'"):
        readme.replaced(content, "y", "new")
