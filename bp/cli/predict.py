"""bp predict: apply a trained model to an array of samples."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bp.cli.arguments import Parser
from bp.cli.restored import WHICH, restore
from bp.cli.session import EVALUATION_BATCH
from bp.data import ArrayDataset, Loader, Splits, read_npy
from bp.errors import ShapeError


def main(argv: Sequence[str]) -> None:
    """Run `bp predict` with these arguments."""
    parser = Parser(
        "predict",
        "Apply a run's model to samples as its data set holds them, such as uint8 images; they are normalised as in "
        "training. Classification gives probabilities by class, regression values in the target's unit.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="output directory of `bp train`")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE.npy", help="array (N, *shape of a sample)")
    parser.add_argument("--output", type=Path, metavar="FILE.npy", help="write predictions here instead of printing")
    parser.add_argument("--checkpoint", choices=WHICH, default="last", help="which weights (default: last)")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="where the data sets are, if not where they were"
    )
    arguments = parser.parse_args(argv)
    samples = read_npy(arguments.input)
    session, _ = restore(arguments.folder, arguments.checkpoint, arguments.root)
    expected = session.splits.test.batch(np.zeros(1, np.int64))[0].shape[1:]
    if samples.shape[1:] != expected:
        raise ShapeError(f"{arguments.input}: expected samples of shape (N, {_sizes(expected)}), got {samples.shape}")
    dataset = ArrayDataset(samples, np.zeros(len(samples), np.int64))
    loader = Loader(dataset, EVALUATION_BATCH, transform=session.splits.eval_transform)
    predictions = finished(session.trainer.predict(loader), session.splits)
    if arguments.output is not None:
        write_npy(arguments.output, predictions)
        print(f"{arguments.output}: {predictions.dtype} of shape {predictions.shape}")
    else:
        for index, row in enumerate(predictions):
            print(f"sample {index} | {_shown(row, session.splits)}")


def finished(outputs: np.ndarray, splits: Splits) -> np.ndarray:
    """Raw outputs as a user wants them: probabilities (N, classes), or values in the unit of the study (N, values)."""
    if splits.task == "classification":
        powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    mean, deviation = splits.target_scale or (0.0, 1.0)
    return outputs * deviation + mean


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write a .npy file in one step."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(partial, path)


def _shown(row: np.ndarray, splits: Splits) -> str:
    if splits.task == "classification":
        best = int(row.argmax())
        return f"{splits.classes[best]} | {row[best]:.4f}"
    return " | ".join(f"{value:.4g}" for value in row)


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
