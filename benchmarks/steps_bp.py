"""Training steps of bp, as the Trainer does them."""

from collections.abc import Callable

import bp  # before NumPy

# isort: split
import numpy as np

from bp.cpu.runtime import StepMemory

Step = Callable[[], None]


def bp_step(model: bp.Layer, x: np.ndarray, y: np.ndarray) -> Step:
    """One step of bp, as the Trainer does it."""
    model.build(x.shape[1:])
    loss, optimizer, memory = bp.CrossEntropyLoss(), bp.AdamW(lr=1e-4).setup(model), StepMemory()

    def step() -> None:
        with memory:
            ctx = bp.Context(training=True)
            loss.forward(model.forward(x, ctx), y, ctx)
            model.backward_parameters(loss.backward(ctx), ctx)
            optimizer.step()

    return step


MODELS: dict[str, Callable[[], bp.Layer]] = {
    "mlp-small": lambda: bp.models.mlp((64,), classes=10, hidden=[64]),
    "mlp": lambda: bp.models.mlp((784,), classes=10, hidden=[512, 512]),
    "cnn": lambda: bp.models.cnn((28, 28, 1), classes=10),
    "resnet20": lambda: bp.models.resnet20((32, 32, 3), classes=10),
}


def make_steps(name: str, x: np.ndarray, y: np.ndarray) -> dict[str, Step]:
    """The step of a workload."""
    return {"bp": bp_step(MODELS[name](), x, y)}
