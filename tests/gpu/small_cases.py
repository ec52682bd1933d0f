"""Small training steps through every family of layers, losses and optimizers: what compute-sanitizer watches.

    compute-sanitizer --tool racecheck python tests/gpu/small_cases.py --device cuda

Sizes are odd and span several warps, some several blocks. Prints which kernels ran, of all there are.
"""

import argparse
from typing import Any

import numpy as np

import bp  # before NumPy
import bp.ops.activation as activation
import bp.ops.loss as loss_ops
import bp.ops.norm as norm
import bp.ops.reduce as reduce
import bp.ops.shape as shape
from bp.cuda.catalogue import load
from bp.ops import control as block
from bp.ops.array import known_dtype
from bp.ops.device import PRECISIONS, find_device, resolve_precision

CLASSES = 7


def networks() -> list[tuple[bp.Layer, tuple[int, ...], int]]:
    """(model, shape of a batch, number of words where the inputs are indices, else 0)."""
    activations = [bp.ReLU(), bp.LeakyReLU(), bp.ELU(), bp.GELU(), bp.GELU("tanh"), bp.SiLU(), bp.Sigmoid(), bp.Tanh()]
    activations += [bp.Softplus(), bp.Mish(), bp.Hardswish(), bp.Softmax(), bp.LogSoftmax()]
    dense = [bp.Linear(None, 33), bp.BatchNorm1d(), bp.Dropout(0.3), *activations, bp.LayerNorm(), bp.RMSNorm()]
    wide = bp.Sequential(bp.Linear(None, 1501), bp.LayerNorm(), bp.Residual(bp.RMSNorm()), bp.Linear(None, CLASSES))
    image = [bp.Conv2d(None, 9, 3, padding=1), bp.BatchNorm2d(), bp.ReLU(), bp.MaxPool2d(2), bp.GroupNorm(3)]
    image += [bp.ConvTranspose2d(None, 6, 3, stride=2), bp.AvgPool2d(3, 2), bp.Conv2d(None, 8, 3, groups=2)]
    image += [bp.GlobalAvgPool2d(), bp.Linear(None, CLASSES)]
    words = [bp.Embedding(50, 24), bp.LayerNorm(), bp.Flatten(), bp.Recompute(bp.Linear(None, 20)), bp.SiLU()]
    joined = bp.Concat(bp.Linear(None, 5), bp.Linear(None, 8))
    return [
        (bp.Sequential(*dense, joined, bp.Linear(None, CLASSES)), (37, 19), 0),
        (wide, (5, 40), 0),
        (bp.Sequential(*image), (3, 13, 13, 5), 0),
        (bp.Sequential(*words, bp.Linear(None, CLASSES)), (9, 6), 50),
        (bp.Sequential(bp.Embedding(700, 8), bp.Flatten(), bp.Linear(None, 1200)), (200, 9), 700),
    ]


def losses() -> list[tuple[bp.Loss, bool]]:
    """(loss, whether its targets are labels)."""
    by_label = [bp.CrossEntropyLoss(), bp.CrossEntropyLoss(label_smoothing=0.1), bp.MultiMarginLoss(), bp.NLLLoss()]
    by_value = [bp.MSELoss(), bp.L1Loss(), bp.HuberLoss(), bp.BCEWithLogitsLoss(), bp.HingeLoss(), bp.KLDivLoss()]
    return [(loss, True) for loss in by_label] + [(loss, False) for loss in by_value]


def optimizers() -> list[bp.Optimizer]:
    return [
        bp.AdamW(),
        bp.SGD(0.01, momentum=0.9),
        bp.RMSprop(),
        bp.Adagrad(),
        bp.Adadelta(),
        bp.NAdam(),
        bp.Lion(),
        bp.Adafactor(),
        bp.Muon(),
    ]


def operations(device: str, dtype: str) -> set[str]:
    """What no layer above reaches: rows too long for a warp or a block, fused bias, transposes, reductions."""
    owner, generator = find_device(device), np.random.default_rng(1)

    def normal(*shape: int, dtype: str = dtype) -> Any:
        return owner.from_host(generator.standard_normal(shape).astype(known_dtype(dtype)))

    control = owner.from_host(np.ones(block.SIZE))
    with owner.recording() as ledger:
        for columns in (2005, 9001):
            x, dy = normal(2, columns), normal(2, columns)
            activation.softmax_backward(dy, activation.softmax(x))
            reduce.argmax(x), reduce.max(x, -1), reduce.max(x, 0), reduce.sum(x, None)
            y, mean, rstd = norm.layer_norm(x, None, None, 1, 1e-5)
            norm.layer_norm_backward(dy, x, None, mean, rstd, None, None, False)
        for columns in (1024, 3072, 6144, 16_400):
            x, dy, gamma = normal(3, columns), normal(3, columns), normal(columns)
            _, mean, rstd = norm.layer_norm(x, gamma, gamma, 1, 1e-5)
            sums = [normal(columns, dtype="float32") for _ in range(2)]
            norm.layer_norm_backward(dy, x, gamma, mean, rstd, *sums, True)
        for classes in (1200, 20_000, 50_304):
            logits, labels = normal(2, classes), owner.from_host(np.array([classes - 1, 0]))
            loss_ops.softmax_cross_entropy(logits, labels, None, control, -100, 0.0, True)
            loss_ops.soft_cross_entropy(logits, normal(2, classes), None, control, 0.1, True)
        x, bias, sums = normal(301, 65), normal(65), normal(65, dtype="float32")
        for name in activation.BIAS_ACTIVATIONS:
            y, kept = activation.bias_activation(x, bias, name)
            activation.bias_activation_backward(y, kept, bias, sums, name, False)
        shape.transpose(normal(37, 5, 67), (2, 1, 0)), shape.transpose(normal(3, 40, 70), (0, 2, 1))
        loss_ops.scale_terms(normal(9, 4), normal(9, dtype="float32"))
    owner.synchronize()
    return {launch.variant.kernel.name for launch in ledger.launches}


def train(device: str, precision: str) -> set[str]:
    """Two steps of each pairing of a network, a loss and an optimizer, in turn; the names of the kernels that ran."""
    generator, owner = np.random.default_rng(0), find_device(device)
    settings = {"max_grad_norm": 1.0, "clip_value": 0.5, "ema_decay": 0.9, "cuda_graph": "off", "progress": False}
    nets, all_losses, rules = networks(), losses(), optimizers()
    seen: set[str] = set()
    for number in range(max(len(nets), len(all_losses), len(rules))):
        model, shape, words = networks()[number % len(nets)]
        loss, labels = all_losses[number % len(all_losses)]
        count = 2 * shape[0]
        drawn = (count, *shape[1:])
        x = generator.integers(0, words, drawn) if words else generator.standard_normal(drawn).astype(np.float32)
        outputs = 1200 if words == 700 else CLASSES
        y = generator.integers(0, outputs, count) if labels else np.ones((count, outputs), np.float32)  # fits all
        data = bp.Loader(bp.ArrayDataset(x, y), shape[0])
        trainer = bp.Trainer(model, loss, rules[number % len(rules)], device=device, precision=precision, **settings)
        with owner.recording() as ledger:
            trainer.fit(data, max_epochs=1)
            trainer.evaluate(data)
        seen |= {launch.variant.kernel.name for launch in ledger.launches}
    owner.synchronize()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", nargs="*", default=["fp32", "tf32", "bf16", "fp16"])
    arguments = parser.parse_args()
    owner: Any = find_device(arguments.device)
    if owner.name == "cuda":
        owner.cupy.cuda.set_allocator(None)  # each array by itself: within a pool, an access past its end hits another
    names = {name for source in load() for name in source.kernels}
    seen: set[str] = set()
    for precision in arguments.precision:
        seen |= train(arguments.device, resolve_precision(precision, owner))
        seen |= operations(arguments.device, PRECISIONS[precision])
        print(f"{precision}: {len(seen)} of {len(names)} kernels so far", flush=True)
    print("not run:", ", ".join(sorted(names - seen)) or "none")


if __name__ == "__main__":
    main()
