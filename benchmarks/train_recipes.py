"""Train the built-in recipes on real data and put what they reach into the README.

    python benchmarks/train_recipes.py [--data.root DIR] [RECIPE ...]

Each recipe runs as a user would run it, `bp train RECIPE`, in a process of its own. Results are kept in
benchmarks/results/training-cpu.json, an entry a recipe, so that recipes can be run one at a time; the README's table is
written anew from that file.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from readme import cpu_name, replace_section

RECIPES = {
    "digits": "test accuracy at least 0.97",
    "diabetes": "test loss below 0.6 of the target's variance",
    "mnist-mlp": "test accuracy at least 0.98",
    "fashion-cnn": "test accuracy at least 0.91",
    "cifar10-resnet20": "test accuracy at least 0.65",
}
RESULTS = Path(__file__).parent / "results" / "training-cpu.json"


def train(recipe: str, data_root: str | None) -> dict:
    """Run one recipe and return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["bp", "train", recipe, "--output_dir", f"{folder}/run"]
        command += ["--data.root", data_root] if data_root else []
        subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=True)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {**summary, "date": date.today().isoformat(), "machine": cpu_name(), "python": platform.python_version()}


def table(results: dict) -> str:
    """The README's table."""
    lines = ["| command | parameters | epochs | seconds | samples/s | reached |", "|---|---|---|---|---|---|"]
    for recipe in RECIPES:
        if recipe not in results:
            lines.append(f"| `bp train {recipe}` | | | | | not measured yet |")
            continue
        r = results[recipe]
        reached = f"test loss {r['test_loss']:.3f}" if r.get("test_accuracy") is None else f"{r['test_accuracy']:.4f}"
        lines.append(
            f"| `bp train {recipe}` | {r['parameters']:,} | {r['epochs']:g} | {r['seconds']:.1f} | "
            f"{r['samples_per_second']:,.0f} | {reached} |"
        )
    measured = next(iter(results.values()))
    lines.append("")
    lines.append(
        f"Test accuracy, where not said otherwise. {measured['machine']}, Python {measured['python']}, "
        f"{measured['date']}; seconds are of the whole training with its evaluations."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), choices=[*RECIPES, []])
    parser.add_argument("--data.root", dest="data_root", help="folder with mnist/, fashion-mnist/, cifar10/")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for recipe in arguments.recipes:
        results[recipe] = train(recipe, arguments.data_root)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        replace_section("training", table(results))
        print(f"{recipe}: {json.dumps(results[recipe])}")


if __name__ == "__main__":
    main()
