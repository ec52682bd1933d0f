"""Optimizer: the base of the update rules, which work on the model's flat arena."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

import numpy as np

import bp.ops.optimizer as ops
from bp.errors import BuildError, CheckpointError, ConfigurationError
from bp.layers.arena import Arena
from bp.layers.layer import Layer
from bp.layers.parameter import Parameter
from bp.ops import control as block
from bp.ops.array import Array, Shape
from bp.ops.device import new_control


@dataclass(frozen=True)
class Group:
    """Settings for the parameters whose name matches `pattern` ("features.*", "*.bias").

    lr_factor multiplies the learning rate. weight_decay is decoupled or L2, as the optimizer does it; l2 and l1 add
    l2 * w and l1 * sign(w) to the gradient (the gradients of l2/2 ||w||^2 and l1 ||w||_1). Each of the three is, where
    None, what the parameter has without the group.
    """

    pattern: str
    lr_factor: float = 1.0
    weight_decay: float | None = None
    l2: float | None = None
    l1: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr_factor", "weight_decay", "l2", "l1"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigurationError(f"Group '{self.pattern}' expected a finite {name} >= 0, got {value}")


@dataclass(frozen=True)
class LossScaling:
    """The settings of dynamic loss scaling, see `Optimizer.enable_loss_scaling`."""

    initial: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int


class Optimizer:
    """An update rule for all parameters at once.

    lr: learning rate, which a schedule may set before each step. weight_decay: applies to parameters with
    `decay` (not to biases and the scales of normalisations), decoupled from the gradient where the class says so.
    groups: `Group`s; the first whose pattern matches a name applies. l1, l2: penalties on decayed parameters.

        optimizer.setup(model)
        ...backward...
        optimizer.clip_by_global_norm(1.0)      where wanted; clip_by_value before it
        optimizer.step()

    stochastic_rounding: set to True, the 16-bit copy of the weights (models in precision bf16 or fp16) is rounded up or
    down at random so that its expectation is the float32 weight, instead of to the nearest.

    A rule of its own names its running means in `slots` and writes `update`.
    """

    slots: tuple[str, ...] = ()  # names of the running means, each an array of the arena's layout
    decoupled = False  # whether weight_decay shrinks the weights directly or is an L2 term of the gradient
    stochastic_rounding = False
    counters: ClassVar[dict[str, int]] = {"attempted_step": block.ATTEMPTED_STEP, "applied_step": block.APPLIED_STEP}

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
            self.expect(0 <= value < math.inf, f"a finite {name} >= 0", value)
        self.base_lr = lr
        self._lr = lr
        self.weight_decay = weight_decay
        self.l1 = l1
        self.l2 = l2
        self.groups = tuple(groups)
        self.moments: dict[str, Array] = {}
        self._arena: Arena | None = None
        self._scaled = False  # whether the step that follows has a gradient scale of its own
        self._scale_is_one = True
        self._loss_scaling: LossScaling | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the next step, which a schedule sets; it goes to the control block at once."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = value
        if self._arena is not None:
            entry = self.control[block.LEARNING_RATE : block.LEARNING_RATE + 1]
            self.arena.device.copy(entry, np.array([value], np.float64))

    def expect(self, holds: bool, what: str, got: Any) -> None:
        """Raise ConfigurationError naming this optimizer unless a setting is as it has to be."""
        if not holds:
            raise ConfigurationError(f"{type(self).__name__} expected {what}, got {got}")

    def expect_fraction(self, name: str, value: float) -> None:
        """A weight of a running mean lies in [0, 1)."""
        self.expect(0 <= value < 1, f"{name} in [0, 1)", value)

    def expect_betas(self, betas: Sequence[float]) -> tuple[float, float]:
        """The two weights of Adam's running means."""
        self.expect(len(betas) == 2, "two betas", betas)
        for index, beta in enumerate(betas):
            self.expect_fraction(f"betas[{index}]", beta)
        return betas[0], betas[1]

    def expect_eps(self, eps: float) -> None:
        """eps keeps 0 / 0 away from gradients that are exactly zero, so it has to exist in float32."""
        smallest = float(np.finfo(np.float32).tiny)
        self.expect(smallest <= eps < math.inf, f"a finite eps > 0 (at least {smallest:.2g})", eps)

    def expect_matches(self, what: str, patterns: Sequence[str], arena: Arena) -> None:
        """Each pattern matches the name of a trainable parameter: a mistyped one would silently do nothing."""
        names = [parameter.name for parameter in arena.parameters]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(
                    f"{type(self).__name__} has {what} '{pattern}' that matches no trainable parameter of the "
                    f"model: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
                )

    def setup(self, model: Layer) -> Self:
        """Take the arena of a built model and start its running means at zero. Returns self.

        Raises ConfigurationError where a group matches no trainable parameter.
        """
        arena = model.arena
        self.expect_matches("a group", [group.pattern for group in self.groups], arena)
        self._arena = arena
        self.moments = {slot: arena.zeros_like() for slot in self.slots}
        self.control = new_control(arena.device)
        self.lr = self._lr
        self._start_loss_scale()
        self.settings = self._settings_by_tile(arena)
        return self

    def is_setup_for(self, model: Layer) -> bool:
        """Whether this optimizer updates the parameters of `model`."""
        return self._arena is not None and self._arena is model.arena

    @property
    def arena(self) -> Arena:
        """The parameters this optimizer updates; raises BuildError before `setup`."""
        if self._arena is None:
            raise BuildError(f"{type(self).__name__}: call optimizer.setup(model) first, with a built model")
        return self._arena

    # The step ---------------------------------------------------------------------------------------------

    def clip_by_value(self, limit: float) -> None:
        """Clip each gradient to [-limit, limit] for the step that follows."""
        self.expect(limit > 0, "clip_by_value with a limit > 0", limit)
        self.arena.complete_gradients()
        ops.clip_by_value(self.arena.gradients, self.control, float(limit))

    def clip_by_global_norm(self, max_norm: float = math.inf) -> None:
        """Scale all gradients in the step that follows so that their joint norm is at most `max_norm`.

        The norm before that is control[GRADIENT_NORM]; the default measures it and clips nothing.
        """
        self.expect(max_norm > 0, "clip_by_global_norm with a max_norm > 0", max_norm)
        self.arena.complete_gradients()
        ops.clip_by_global_norm(self.arena.gradients, self.control, float(max_norm))
        self._scaled = True
        self._scale_is_one = False

    def step(self) -> None:
        """Update every parameter from its gradient; gradients and clip factor count as used afterwards."""
        arena = self.arena
        arena.complete_gradients()
        scaling = self._loss_scaling
        if scaling is not None:
            if not self._scaled:
                self.clip_by_global_norm()  # measures it, and undoes the loss scale
            rule = scaling.growth_factor, scaling.backoff_factor, scaling.growth_interval
            ops.adjust_loss_scale(self.control, *rule)
        elif not self._scaled and not self._scale_is_one:  # that of an earlier step
            arena.device.fill(self.control[block.GRADIENT_SCALE : block.GRADIENT_SCALE + 1], 1.0)
            self._scale_is_one = True
        self._scaled = False
        ops.advance_step(self.control)
        self.update(arena.values, arena.gradients)
        arena.consume_gradients()

    def update(self, values: Array, gradients: Array) -> None:
        """Apply the rule to the flat arrays, and to the arena's low-precision copy, in place.

        A rule must change nothing where control[SKIP_STEP] is 1; the operations see to that.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update")

    @property
    def low_precision(self) -> tuple[Array | None, bool]:
        """The 16-bit copy of the values, if any, and whether it is rounded stochastically: how operations take them."""
        return self.arena.low_precision, self.stochastic_rounding

    def low_precision_of(self, parameter: Parameter, shape: Shape) -> tuple[Array | None, bool]:
        """The same for one parameter, as a view of another shape."""
        flat = self.arena.low_precision
        view = None if flat is None else self.arena.view(flat, parameter).reshape(shape)
        return view, self.stochastic_rounding

    # Loss scaling -----------------------------------------------------------------------------------------

    def enable_loss_scaling(
        self,
        initial: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        """Dynamic loss scaling from now on, for gradients in float16, which has no numbers below 6e-8.

        A loss multiplies its gradient by control[LOSS_SCALE]; `step` undoes that. A step with a gradient that is not
        finite changes nothing and multiplies the scale by `backoff_factor`; `growth_interval` steps without one
        multiply it by `growth_factor`. All of it happens on the device. initial: the first scale, in [1, 2^24].

        Before `setup` or after it, and before `load_state_dict`: the scale is then part of the state.
        Source: Micikevicius et al., Mixed Precision Training (2018).
        """
        least, largest = ops.LEAST_LOSS_SCALE, ops.LARGEST_LOSS_SCALE
        self.expect(least <= initial <= largest, f"an initial loss scale in [{least:g}, {largest:g}]", initial)
        self.expect(1 < growth_factor < math.inf, "a finite growth_factor > 1", growth_factor)
        self.expect(0 < backoff_factor < 1, "backoff_factor in (0, 1)", backoff_factor)
        self.expect(growth_interval >= 1, "growth_interval of at least 1", growth_interval)
        self._loss_scaling = LossScaling(float(initial), float(growth_factor), float(backoff_factor), growth_interval)
        if self._arena is not None:
            self._start_loss_scale()

    @property
    def scales_loss(self) -> bool:
        """Whether dynamic loss scaling is enabled."""
        return self._loss_scaling is not None

    @property
    def loss_scale(self) -> float:
        """What the gradient of the next loss is multiplied by; 1 without loss scaling. Waits for the device."""
        return float(self.arena.device.to_host(self.control)[block.LOSS_SCALE])

    def _start_loss_scale(self) -> None:
        if self._loss_scaling is not None:
            entry = self.control[block.LOSS_SCALE : block.LOSS_SCALE + 1]
            self.arena.device.copy(entry, np.array([self._loss_scaling.initial]))

    def _counters(self) -> dict[str, int]:
        """The entries of the control block that belong to the state, by name."""
        scaling = {} if self._loss_scaling is None else {"loss_scale": block.LOSS_SCALE, "good_steps": block.GOOD_STEPS}
        return self.counters | scaling

    # State ------------------------------------------------------------------------------------------------

    def named_state(self) -> Iterator[tuple[str, Array]]:
        """(slot/parameter name, array) of all running means, as views that can be assigned into."""
        for slot, flat in self.moments.items():
            for parameter in self.arena.parameters:
                yield f"{slot}/{parameter.name}", self.arena.view(flat, parameter)

    def _named_arrays(self) -> Iterator[tuple[str, Array]]:
        """`named_state`, and the 16-bit copy of the weights where the weights do not tell it."""
        yield from self.named_state()
        if self.stochastic_rounding and self.arena.low_precision is not None:
            for parameter in self.arena.parameters:
                yield f"low_precision/{parameter.name}", parameter.value

    def state_dict(self) -> dict[str, np.ndarray]:
        """Host copies of the running means by slot and parameter name ("first_moment/0.weight"), and the step counts.

        With stochastic rounding also of the 16-bit weights ("low_precision/0.weight"), in float32. The counts, and the
        loss scale where there is one, have shape (1,) and dtype float64, which is exact. The learning rate is not in
        it: it comes from the constructor and the schedule.
        """
        device = self.arena.device
        wide = self.arena.values.dtype
        state = {name: np.array(device.to_host(array)).astype(wide, copy=False) for name, array in self._named_arrays()}
        control = np.array(device.to_host(self.control))
        return state | {name: np.array([control[entry]]) for name, entry in self._counters().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a `state_dict`, by name: the order and layout of the parameters may differ.

        Raises CheckpointError naming what is missing, left over or of another shape, before anything changes.
        """
        own, counters = dict(self._named_arrays()), self._counters()
        shapes = {name: tuple(array.shape) for name, array in own.items()} | dict.fromkeys(counters, (1,))
        check_names_and_shapes(type(self).__name__, state, shapes)
        device = self.arena.device
        for name, array in own.items():
            device.copy(array, np.asarray(state[name], array.dtype))
        for name, entry in counters.items():
            device.copy(self.control[entry : entry + 1], np.asarray(state[name], np.float64))

    # Settings by tile -------------------------------------------------------------------------------------

    def row(self, parameter: Parameter) -> Array:
        """The settings of one parameter: a view of shape (1, 4)."""
        tile = self.arena.offsets[parameter.name] // ops.TILE
        return self.settings[tile : tile + 1]

    def _settings_by_tile(self, arena: Arena) -> Array:
        table = np.zeros((arena.size // ops.TILE, 4), arena.values.dtype)
        for parameter in arena.parameters:
            first = arena.offsets[parameter.name] // ops.TILE
            table[first : first - (-parameter.size // ops.TILE)] = self._settings_of(parameter)
        settings = arena.device.zeros(table.shape, table.dtype)
        arena.device.copy(settings, table)
        return settings

    def _settings_of(self, parameter: Parameter) -> tuple[float, float, float, float]:
        """Learning-rate factor, decoupled decay, L2 and L1 coefficient of one parameter."""
        group = next((g for g in self.groups if fnmatchcase(parameter.name, g.pattern)), Group(parameter.name))

        def setting(of_group: float | None, of_all: float) -> float:
            return of_group if of_group is not None else of_all if parameter.decay else 0.0

        weight_decay = setting(group.weight_decay, self.weight_decay)
        l2, l1 = setting(group.l2, self.l2), setting(group.l1, self.l1)
        if not self.decoupled:
            weight_decay, l2 = 0.0, l2 + weight_decay
        return group.lr_factor, weight_decay, l2, l1


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """(out, the rest) of a weight of rank 2 or more; (1, size) of a vector or number."""
    rows = parameter.shape[0] if parameter.shape and len(parameter.shape) > 1 else 1
    return rows, parameter.size // max(rows, 1)


def check_names_and_shapes(
    owner: str, state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError unless `state` has exactly the expected names, with floating arrays of those shapes."""

    def some(names: list[str]) -> str:
        return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")

    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    problems = [f"{len(missing)} missing ({some(missing)})"] if missing else []
    problems += [f"{len(unknown)} not of this model ({some(unknown)})"] if unknown else []
    for name, shape in expected.items():
        if name in state and (state[name].shape != shape or state[name].dtype.kind != "f"):
            problems.append(
                f"{name}: expected floating numbers of shape {shape}, got {state[name].dtype} {state[name].shape}"
            )
    if problems:
        raise CheckpointError(f"the state does not fit {owner}: {'; '.join(problems[:5])}")
