"""Training runs: `digits` to its accuracy, with the CPU's losses, and a larger network twice with the same bits.

    python tests/gpu/training.py --device cuda

Prints one line of JSON; the exit code is 1 where a run does not hold what is expected of it.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

import bp  # before NumPy
from bp.checking import tolerance
from bp.ops.device import find_device

ACCURACY = 0.95  # of digits on its 180 validation images, after 15 epochs


def digits(device: str, precision: str, steps: int | None) -> tuple[list[float], float, bool, bp.Layer]:
    """(loss of each step, accuracy, whether steps were replayed as a graph, the model); the recipe's network."""
    splits = bp.data.load("digits")
    model = bp.Sequential(
        *(bp.Linear(64, 128), bp.ReLU(), bp.Dropout(0.2)),
        *(bp.Linear(128, 64), bp.ReLU(), bp.Dropout(0.2), bp.Linear(64, 10)),
    )
    trainer = bp.Trainer(
        model,
        bp.CrossEntropyLoss(),
        bp.AdamW(lr=2e-3),
        bp.WarmupCosine(warmup_steps=40),
        device=device,
        precision=precision,
        metrics=[bp.Accuracy()],
        log_every_n_steps=1,
        progress=False,
    )
    limit = {"max_epochs": 15} if steps is None else {"max_steps": steps}
    history = trainer.fit(bp.Loader(splits.train, 32, shuffle=True), **limit)
    replayed = trainer._graph is not None and trainer._graph.replaying
    losses = [record["loss"] for record in history.records if "loss" in record]
    return losses, trainer.evaluate(bp.Loader(splits.valid, 180))["accuracy"], replayed, model


def large(device: str, precision: str, steps: int, cuda_graph: str) -> tuple[float, dict[str, np.ndarray]]:
    """(loss at the end, weights) of an MLP 784-512-512-10 on random classes that a linear map decides."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1280, 784)).astype(np.float32)
    y = np.argmax(x @ generator.standard_normal((784, 10)), axis=1)
    hidden = [bp.Linear(784, 512), bp.ReLU(), bp.Linear(512, 512), bp.ReLU(), bp.Linear(512, 10)]
    settings = {"device": device, "precision": precision, "cuda_graph": cuda_graph, "progress": False}
    trainer = bp.Trainer(bp.Sequential(*hidden), bp.CrossEntropyLoss(), bp.AdamW(lr=1e-3), **settings)
    history = trainer.fit(bp.Loader(bp.ArrayDataset(x, y), 128, shuffle=True), max_steps=steps)
    return history.records[-1]["loss"], bp.checkpoint.model_arrays(trainer.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few steps: whether it runs at all")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    problems = []

    expected, _, _, _ = digits("cpu", "fp32", 50)
    losses, _, _, _ = digits(arguments.device, "fp32", 50)
    # 50 steps one on the other, and within a step sums of up to 128 terms (the widest layer).
    apart = float(np.max(np.abs(np.array(losses) / np.array(expected) - 1)))
    found["digits_largest_distance_to_cpu"] = apart
    if not apart <= tolerance("float32", 50 * 128):
        problems.append(f"digits in fp32 is {apart:.2g} off the losses of the CPU")

    device = find_device(arguments.device)
    for precision in ("fp32",) if arguments.quick else device.precisions:
        begun = time.perf_counter()
        losses, accuracy, replayed, _ = digits(arguments.device, precision, 20 if arguments.quick else None)
        found[f"digits_{precision}"] = {"accuracy": accuracy, "loss": losses[-1], "graph": replayed}
        found[f"digits_{precision}"]["seconds"] = round(time.perf_counter() - begun, 2)
        if not replayed or not (arguments.quick or accuracy >= ACCURACY):
            problems.append(f"digits in {precision}: {found[f'digits_{precision}']}")

    steps, precision = (4, "fp32") if arguments.quick else (300, device.precisions[0])
    loss, weights = large(arguments.device, precision, steps, "on")
    found[f"mlp_{precision}"] = {"steps": steps, "loss": loss}
    for how in ("on", "off"):
        again = large(arguments.device, precision, steps, how)[1]
        if not all(np.array_equal(array, again[name]) for name, array in weights.items()):
            problems.append(f"the weights of a second run with cuda_graph={how!r} differ")
    if not (arguments.quick or loss < 0.7):
        problems.append(f"the large network's loss stays at {loss:.3g}")

    print(json.dumps({"found": found, "problems": problems}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
