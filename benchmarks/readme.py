"""Writes the generated sections of the README anew, from what lies in benchmarks/results.

    python benchmarks/readme.py

A section is the text between `<!-- name:begin ... -->` and `<!-- name:end -->`; SECTIONS has a function for each, which
returns its text. The files come from `bp bench`, as each function says.
"""

import math
import re
import statistics
import textwrap
from pathlib import Path

from bp.bench import units
from bp.bench.accuracy import TARGETS, read_outcomes
from bp.bench.reading import read_json

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"


def steps():
    """`bp bench steps --device cpu --json benchmarks/results/steps-cpu.json`, for a GPU steps-cuda.json."""
    tables = [steps_of(results) for results in measured("steps")]
    return "\n\n".join(tables) or "Not measured yet."


def steps_of(results):
    heads = ["training step", "bp", "PyTorch, eager", "PyTorch, compiled", "fastest of PyTorch / bp", "peak memory"]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for step in results.rows:
        if step.ours is None or step.ours.times is None:
            continue
        eager = fastest(step, "torch", "torch-nchw")
        compiled = fastest(step, "torch-compile", "torch-graph")
        ours, theirs = step.ours.facts.get("peak_bytes"), facts_of(step, "torch", "peak_bytes")
        cells = [f"{step.sizes['network']}, batch {step.sizes['batch']}, {step.precision}"]
        cells += [units.seconds(step.ours.times.median), eager, compiled]
        cells.append("" if step.ratio is None else f"{step.ratio:.2f}")
        cells.append(" / ".join("" if held is None else units.nbytes(held) for held in (ours, theirs)))
        lines.append(row(cells))
    note = (
        "Medians of turns: forward, cross-entropy, backward, AdamW, from the same parameters, each result compared "
        "with float64 first. PyTorch uses fused AdamW and the faster of its memory layouts, on a GPU a graph of the "
        f"whole step; peak memory is that of bp and of PyTorch, eager. {made_by(results)}."
    )
    return "\n".join([*lines, "", textwrap.fill(note, 120)])


def kernels():
    """`bp bench --device cpu --json benchmarks/results/kernels-cpu.json`, for a GPU kernels-cuda.json."""
    tables = [kernels_of(results) for results in measured("kernels")]
    return "\n\n".join(tables) or "Not measured yet."


def kernels_of(results):
    heads = ["family", "rows", "fastest peer / bp", "from", "to", "of the limit", "furthest behind"]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for family in dict.fromkeys(one.family for one in results.rows):
        rows = [one for one in results.rows if one.family == family and one.ratio is not None]
        if rows:
            mean = math.exp(statistics.fmean(math.log(one.ratio) for one in rows))
            worst = min(rows, key=lambda one: one.ratio)
            cells = [family, str(len(rows)), f"{mean:.2f}", f"{worst.ratio:.2f}", f"{max(r.ratio for r in rows):.2f}"]
            percents = [one.percent for one in rows if one.percent is not None]
            cells.append(units.percent(statistics.median(percents)) if percents else "")
            lines.append(row([*cells, f"{worst.benchmark} {worst.shape}, by {worst.best_peer}"]))
    note = (
        "The geometric mean over a family's rows of the time of the fastest peer (NumPy, PyTorch eager or compiled) "
        "over that of bp: above 1 bp is faster. Limit: the median share of what copies and products of this machine "
        f"reach. {made_by(results)}."
    )
    return "\n".join([*lines, "", textwrap.fill(note, 120)])


def measured(name):
    """The results of that name, for each device that has some."""
    files = [RESULTS / f"{name}-{device}.json" for device in ("cuda", "cpu")]
    return [read_json(path) for path in files if path.exists()]


def fastest(step, *contestants):
    """The time of the fastest of these, for a table; empty where none took part."""
    times = [entry.times.median for entry in step.entries if entry.contestant in contestants and entry.times]
    return units.seconds(min(times)) if times else ""


def facts_of(step, contestant, name):
    entry = step.entry(contestant)
    return None if entry is None else entry.facts.get(name)


def made_by(results):
    """On what machine, with what, and when."""
    about = results.about
    machine = about.machine.get("GPU") or f"{about.machine['CPU']}, {about.machine['cores']} cores"
    return f"{machine}, PyTorch {about.versions.get('torch', 'missing')}, {about.date[:10]}"


def training():
    """`bp bench accuracy --device cpu --json benchmarks/results/training-cpu.json`, for a GPU training-cuda.json."""
    files = [RESULTS / "training-cpu.json", RESULTS / "training-cuda.json"]
    tables = [trainings(read_outcomes(path), "cuda" in path.name) for path in files if path.exists()]
    return "\n\n".join(tables) or "Not measured yet."


def trainings(outcomes, gpu):
    """A table of the trainings on one device. outcomes: by recipe, as `bp.bench.accuracy.Outcome` has them."""
    heads = ["command", "parameters", "epochs", "seconds", "samples/s", "reached", "target"]
    heads.append("time to target, cold / warm" if gpu else "time to target")
    lines = [row(heads), "|---" * len(heads) + "|"]
    for recipe in TARGETS:
        if recipe in outcomes:
            lines.append(row(training_cells(outcomes[recipe], gpu)))
        else:
            lines.append(row([f"`bp train {recipe}`", *[""] * 4, "not measured yet", "", ""]))
    made_on = "; ".join(dict.fromkeys(made(outcome["about"]) for outcome in outcomes.values()))
    note = (
        "Reached: accuracy on the test samples, where not said otherwise, in the end; seconds: of the whole training "
        "with its evaluations. The target is one of held-out samples, and the time to it runs from the start of the "
        f"process to the end of the first epoch that reached it. {made_on}."
    )
    return "\n".join([*lines, "", textwrap.fill(note, 120)])


def training_cells(outcome, gpu):
    unit = "" if outcome["figure"] == "accuracy" else f"{outcome['figure']} "
    cells = [f"`{outcome['command']}`", f"{outcome['parameters']:,}", f"{outcome['epochs']:g}"]
    cells += [f"{outcome['seconds']:.1f}", f"{outcome['samples_per_second']:,.0f}"]
    cells += [f"{unit}{outcome['tested']:.4f}", f"{unit}{outcome['target']:g}"]
    times = [outcome["cold_seconds"], outcome["warm_seconds"]] if gpu else [outcome["cold_seconds"]]
    return [*cells, " / ".join("not reached" if seconds is None else f"{seconds:.1f} s" for seconds in times)]


def made(about):
    """On what machine, and when."""
    machine = about["machine"].get("GPU") or f"{about['machine']['CPU']}, {about['machine']['cores']} cores"
    return f"{machine}, Python {about['versions']['python']}, {about['date'][:10]}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


SECTIONS = {"training": training, "steps": steps, "kernels": kernels}


def replaced(content, name, text, by="readme.py"):
    """The page with this text in the section of that name, by a script; ValueError where it has no such section."""
    pattern = re.compile(rf"(<!-- {name}:begin)[^>]*(-->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
    made = f" (generated by: python benchmarks/{by}) "
    new, count = pattern.subn(lambda match: match[1] + made + match[2] + text + match[3], content)
    if count != 1:
        raise ValueError(f"expected one section '{name}', found {count}")
    return new


def main():
    content = README.read_text()
    for name, section in SECTIONS.items():
        content = replaced(content, name, section())
    README.write_text(content)


if __name__ == "__main__":
    main()
