"""Session: everything that a configuration stands for, put together: data, model and Trainer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bp.data
from bp.callbacks import Callback
from bp.config import Config
from bp.data import Dataset, Loader, Splits
from bp.layers import Sequential
from bp.metrics import Accuracy, R2Score
from bp.ops.array import Shape
from bp.ops.device import Device
from bp.trainer import Trainer

EVALUATION_BATCH = 256  # samples; larger batches are no faster and take more memory
PREFETCH = 2  # batches prepared ahead, where there is something to prepare

LOSSES = {"classification": "cross-entropy", "regression": "mse"}


@dataclass
class Session:
    """A configuration with its data, model and Trainer; the model is built."""

    config: Config
    splits: Splits
    train: Loader
    valid: Loader
    test: Loader
    sample_shape: Shape
    model: Sequential
    trainer: Trainer

    @property
    def parameters(self) -> int:
        """How many numbers the model has to learn."""
        return sum(parameter.size for _, parameter in self.model.named_parameters())


def make_session(
    config: Config,
    *,
    output_dir: Path | None = None,
    callbacks: Iterable[Callback] = (),
    device: Device | None = None,
) -> Session:
    """Read the data and build everything; writes nothing. Raises BPError where the parts do not fit each other.

    device: in place of the one that the configuration names.
    """
    splits = bp.data.load(config.data.name, config.data.root)
    transform = splits.train_transform if config.data.augment else splits.eval_transform
    train = Loader(
        splits.train,
        config.data.batch_size,
        shuffle=True,
        seed=config.trainer.seed,
        transform=transform,
        prefetch=0 if transform is None else PREFETCH,
    )
    valid, test = _evaluation_loader(splits.valid, splits), _evaluation_loader(splits.test, splits)
    sample_shape = tuple(valid.sample_shape)
    _, targets = splits.train.batch(np.arange(min(2, len(splits.train))))
    classes = len(splits.classes) or math.prod(targets.shape[1:])
    if config.loss.name == "auto":
        config.loss.name = LOSSES[splits.task]
    model = config.make("model", sample_shape, classes=classes)
    loss = config.make("loss")
    loss.check((len(targets), classes), targets)
    settings = config.trainer
    trainer = Trainer(
        model,
        loss,
        config.make("optimizer"),
        config.make("schedule"),
        precision=settings.precision,
        cuda_graph=settings.cuda_graph,
        fuse=settings.fuse,
        device=config.device if device is None else device,
        seed=settings.seed,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        max_grad_norm=settings.max_grad_norm,
        ema_decay=settings.ema_decay,
        metrics=[Accuracy() if splits.task == "classification" else R2Score()],
        log_every_n_steps=settings.log_every_n_steps,
        eval_every_n_steps=settings.eval_every_n_steps,
        save_every_n_steps=settings.save_every_n_steps,
        save_total_limit=settings.save_total_limit,
        output_dir=output_dir,
        callbacks=callbacks,
    )
    trainer.prepare(sample_shape)
    return Session(config, splits, train, valid, test, sample_shape, model, trainer)


def _evaluation_loader(dataset: Dataset, splits: Splits) -> Loader:
    return Loader(dataset, EVALUATION_BATCH, transform=splits.eval_transform)
