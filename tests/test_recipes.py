"""Real runs on real data: what the built-in recipes reach, through the command that a user types."""

import json

import numpy as np
import pytest

import bp
from bp.checking import tolerance
from bp.checkpoint import find_checkpoint
from bp.cli import main
from bp.data.lookup import data_folder, find


def train(recipe, folder, *settings):
    """The summary of `bp train RECIPE ...`."""
    assert main(["train", recipe, "--output-dir", str(folder), *settings]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_digits_reaches_its_accuracy_in_seconds(tmp_path):
    summary = train("digits", tmp_path / "run")
    assert summary["test_accuracy"] >= 0.97
    assert summary["train_loss"] < 0.1


def test_diabetes_predicts_better_than_the_mean(tmp_path):
    # Targets are standardised, so a model that always answers the mean has a loss of about 1.
    summary = train("diabetes", tmp_path / "run")
    assert summary["test_loss"] < 0.7
    assert summary["test_r2"] > 0.35


def test_digits_on_the_emulator_learns_as_on_the_cpu(tmp_path):
    """The whole `bp/cuda` path on the kernels themselves: the losses of the CPU, and bitwise the same a second time."""

    def run(device, number):
        folder = tmp_path / f"{device}-{number}"
        train("digits", folder, "--device", device, "--trainer.max_steps", "50", "--trainer.log_every_n_steps", "1")
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights = bp.checkpoint.read_snapshot(find_checkpoint(folder)).model
        return [record["loss"] for record in records if "loss" in record], weights

    losses, weights = run("emulator", 1)
    expected, _ = run("cpu", 1)
    # 50 steps one on the other, and within a step sums of up to 128 terms (the widest layer).
    np.testing.assert_allclose(losses, expected, rtol=tolerance("float32", 50 * 128))
    assert len(losses) == 50 and losses[-1] < 0.7 * losses[0]
    again, same = run("emulator", 2)
    assert losses == again
    for name, array in weights.items():
        np.testing.assert_array_equal(array, same[name], err_msg=name)


def test_a_slice_of_fashion_cnn_learns(tmp_path):
    folder = data_folder("fashion-mnist", None)
    files = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
    if any(find(folder, name) is None for name in (*files, *(f.replace("train", "t10k") for f in files))):
        pytest.skip(f"Fashion-MNIST is not in {folder}: set BP_DATA_DIR (docs/data.md), or train fashion-cnn once")
    summary = train("fashion-cnn", tmp_path / "run", "--trainer.max_steps", "120")
    assert summary["steps"] == 120
    assert summary["test_accuracy"] >= 0.8
