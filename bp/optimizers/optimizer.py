"""Optimizer: the base of the update rules, which work on the model's flat arena."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

import numpy as np

import bp.ops.optimizer as ops
from bp.errors import BuildError, ConfigurationError
from bp.layers.arena import Arena
from bp.layers.layer import Layer
from bp.ops import control as block
from bp.ops.array import Array


@dataclass(frozen=True)
class Group:
    """Settings for the parameters whose name matches `pattern` ("features.*", "*.bias"); None keeps the optimizer's.

    lr_factor multiplies the learning rate. weight_decay is decoupled or L2, as the optimizer does it; l2 and l1 add
    l2 * w and l1 * sign(w) to the gradient (the gradients of l2/2 ||w||^2 and l1 ||w||_1).
    """

    pattern: str
    lr_factor: float = 1.0
    weight_decay: float | None = None
    l2: float = 0.0
    l1: float = 0.0


class Optimizer:
    """An update rule for all parameters at once.

    lr: learning rate, which a schedule may set before each step. weight_decay: applies to parameters with
    `decay` (not to biases and the scales of normalisations), decoupled from the gradient where the class says so.
    groups: `Group`s; the first whose pattern matches a name applies. l1, l2: penalties on decayed parameters.

    A rule of its own names its moments in `slots` and writes `update`.
    """

    slots: tuple[str, ...] = ()  # names of the moments, each an array of the arena's layout
    decoupled = False  # whether weight_decay shrinks the weights directly or is an L2 term of the gradient

    def __init__(
        self,
        lr: float,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("l1", l1), ("l2", l2)):
            if not value >= 0:
                raise ConfigurationError(f"{type(self).__name__} expected {name} >= 0, got {value}")
        self.base_lr = lr
        self.lr = lr
        self.weight_decay = weight_decay
        self.l1 = l1
        self.l2 = l2
        self.groups = tuple(groups)
        self.moments: dict[str, Array] = {}
        self._arena: Arena | None = None

    def setup(self, model: Layer) -> Self:
        """Take the arena of a built model and allocate the moments in its layout. Returns self."""
        self._arena = arena = model.arena
        self.moments = {slot: arena.zeros_like() for slot in self.slots}
        self.control = arena.device.zeros((block.SIZE,), np.float64)
        self.control[block.GRADIENT_SCALE] = 1.0
        self.tile_groups, self.group_table = self._group_tables(arena)
        return self

    @property
    def arena(self) -> Arena:
        """The parameters this optimizer updates; raises BuildError before `setup`."""
        if self._arena is None:
            raise BuildError(f"{type(self).__name__}: call optimizer.setup(model) first, with a built model")
        return self._arena

    def step(self) -> None:
        """Update every parameter from its gradient; the gradients count as used afterwards."""
        arena = self.arena
        arena.complete_gradients()
        self.control[block.LEARNING_RATE] = self.lr
        ops.advance_step(self.control)
        self.update(arena.values, arena.gradients)
        arena.consume_gradients()

    def update(self, values: Array, gradients: Array) -> None:
        """Apply the rule to the flat arrays, in place."""
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def _group_tables(self, arena: Arena) -> tuple[Array, Array]:
        rows: list[tuple[float, float, float, float]] = []
        tiles = np.zeros(arena.size // ops.TILE, np.int32)
        for parameter in arena.parameters:
            row = self._group_row(parameter.name, parameter.decay)
            if row not in rows:
                rows.append(row)
            first = arena.offsets[parameter.name] // ops.TILE
            tiles[first : first - (-parameter.size // ops.TILE)] = rows.index(row)
        table = np.array(rows or [(1.0, 0.0, 0.0, 0.0)], np.float64)
        return arena.device.from_host(tiles), arena.device.from_host(table)

    def _group_row(self, name: str, decay: bool) -> tuple[float, float, float, float]:
        group = next((g for g in self.groups if fnmatchcase(name, g.pattern)), None)
        if group is None:
            lr_factor, weight_decay, l2, l1 = 1.0, *((self.weight_decay, self.l2, self.l1) if decay else (0.0,) * 3)
        else:
            inherited = self.weight_decay if decay else 0.0
            weight_decay = inherited if group.weight_decay is None else group.weight_decay
            lr_factor, l2, l1 = group.lr_factor, group.l2, group.l1
        return (lr_factor, weight_decay, l2, l1) if self.decoupled else (lr_factor, 0.0, l2 + weight_decay, l1)
