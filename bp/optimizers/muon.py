"""Muon: momentum whose matrices are made orthogonal before the step; AdamW for everything else."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, Self

import bp.ops.matrix_optimizer as matrix_ops
import bp.ops.optimizer as ops
from bp.layers.embedding import Embedding
from bp.layers.layer import Layer
from bp.layers.parameter import Parameter
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer, matrix_shape


class Muon(Optimizer):
    """w -= lr s orth(m) for weights of rank 2 or more, with orth(m) the nearest matrix of orthonormal rows or columns.

    A convolution's weight counts as the matrix (out, the rest). Biases, the scales and shifts of normalisations,
    embeddings and the parameters whose name matches a pattern of `adamw` (by custom the output layer) take a
    step of AdamW. The formulas stand in `bp.ops.matrix_optimizer.muon` and `bp.ops.optimizer.adam`.

    momentum, nesterov: of the running mean m. ns_coefficients, ns_steps, eps: of the Newton-Schulz iteration.
    adjust_lr: the factor s by shape, "original" sqrt(max(1, rows / columns)) or "match_rms_adamw"
    0.2 sqrt(max(rows, columns)), with which learning rate and decay of AdamW carry over. Weight decay is decoupled.
    adamw_lr: the learning rate of AdamW's part (None: lr); a schedule scales both. adamw_betas, adamw_eps: its rule.

    It looks at whole matrices, hence one after the other rather than the arena in one pass. PyTorch iterates in
    bfloat16; here it is the dtype of the weights.
    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); Liu et al. (2025).
    """

    slots = ("first_moment", "second_moment")
    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
        *,
        adamw: Sequence[str] = (),
        adamw_lr: float | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        weight_decay: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect_fraction("momentum", momentum)
        self.expect(len(ns_coefficients) == 3, "three ns_coefficients", ns_coefficients)
        self.expect(ns_steps >= 1, "ns_steps of at least 1", ns_steps)
        adjustments = ("original", "match_rms_adamw")
        self.expect(adjust_lr in adjustments, f"adjust_lr in {adjustments}", repr(adjust_lr))
        self.expect(adamw_lr is None or (adamw_lr >= 0 and lr > 0), "adamw_lr >= 0 and lr > 0 with it", adamw_lr)
        self.expect_eps(eps)
        self.expect_eps(adamw_eps)
        a, b, c = ns_coefficients
        self.rule = (momentum, nesterov, (a, b, c), ns_steps, eps, adjust_lr)
        self.adamw = tuple(adamw)
        self.adamw_rule = (*self.expect_betas(adamw_betas), adamw_eps)
        self.adamw_lr_factor = 1.0 if adamw_lr is None else adamw_lr / lr
        self._matrices: list[Parameter] = []
        self._others: list[slice] = []

    def setup(self, model: Layer) -> Self:
        arena = model.arena
        self.expect_matches("an adamw pattern", self.adamw, arena)
        embeddings = {
            parameter.name
            for _, layer in model.named_layers()
            if isinstance(layer, Embedding)
            for parameter in vars(layer).values()
            if isinstance(parameter, Parameter)
        }
        self._matrices, self._others = [], []
        for parameter in arena.parameters:
            by_pattern = any(fnmatchcase(parameter.name, pattern) for pattern in self.adamw)
            if len(parameter.shape or ()) > 1 and not by_pattern and parameter.name not in embeddings:
                self._matrices.append(parameter)
                continue
            first = arena.offsets[parameter.name]
            if self._others and self._others[-1].stop == first:
                first = self._others.pop().start
            self._others.append(slice(first, arena.offsets[parameter.name] - (-parameter.size // ops.TILE) * ops.TILE))
        return super().setup(model)

    def _settings_of(self, parameter: Parameter) -> tuple[float, float, float, float]:
        lr_factor, decay, l2, l1 = super()._settings_of(parameter)
        factor = 1.0 if parameter in self._matrices else self.adamw_lr_factor
        return lr_factor * factor, decay, l2, l1

    def named_state(self) -> Iterator[tuple[str, Array]]:
        """first_moment/name of all parameters and second_moment/name of those that AdamW takes."""
        matrices = {f"second_moment/{parameter.name}" for parameter in self._matrices}
        return ((name, array) for name, array in super().named_state() if name not in matrices)

    def update(self, values: Array, gradients: Array) -> None:
        first_moment, second_moment = self.moments["first_moment"], self.moments["second_moment"]
        for part in self._others:
            settings = self.settings[part.start // ops.TILE : part.stop // ops.TILE]
            first, second = first_moment[part], second_moment[part]
            copy = None if self.arena.low_precision is None else self.arena.low_precision[part]
            adamw_rule = (*self.adamw_rule, copy, self.stochastic_rounding)
            ops.adam(values[part], gradients[part], first, second, None, settings, self.control, *adamw_rule)
        for parameter in self._matrices:
            if parameter.size:
                shape = matrix_shape(parameter)
                w, g, m = (self.arena.view(a, parameter).reshape(shape) for a in (values, gradients, first_moment))
                rule = (*self.rule, *self.low_precision_of(parameter, shape))
                matrix_ops.muon(w, g, m, self.row(parameter), self.control, *rule)
