"""Configuration of a run: typed sections, filled from a recipe (YAML) first and from the command line after it."""

import argparse
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

import bp.losses
import bp.optimizers
import bp.schedules
from bp import recipes
from bp.data import DATASETS
from bp.errors import ConfigurationError
from bp.models import MODELS
from bp.ops.device import Device, find_device, resolve_precision
from bp.registry import Registry

if TYPE_CHECKING:  # jsonargparse makes these types when it is imported, out of a type checker's sight
    NonNegativeInt = int
    PositiveInt = int
else:
    from jsonargparse.typing import NonNegativeInt, PositiveInt


@dataclass
class DataConfig:
    """The data set, by name.

    root: folder with one sub-folder a data set; null: $BP_DATA_DIR, else a cache. batch_size: samples a batch.
    augment: change training samples at random as the data set recommends (crops, flips).
    """

    name: str
    root: str | None = None
    batch_size: PositiveInt = 32
    augment: bool = True


@dataclass
class TrainerConfig:
    """How, and how long, to train: the settings of `bp.Trainer` and of its `fit`, under their names."""

    max_epochs: PositiveInt | None = 10
    max_steps: PositiveInt | None = None
    accumulate_grad_batches: PositiveInt = 1
    max_grad_norm: float | None = None
    ema_decay: float | None = None
    precision: str = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    fuse: bool = True
    seed: NonNegativeInt = 0
    log_every_n_steps: PositiveInt = 50
    eval_every_n_steps: PositiveInt | None = None
    save_every_n_steps: PositiveInt | None = None
    save_total_limit: PositiveInt | None = 2


@dataclass
class Choice:
    """One of the things that bp registers, by name, with all of its settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """A resolved run. name: what summaries call it; output_dir null: runs/<name>; resume: null, "auto" or a path."""

    name: str
    device: str
    output_dir: str | None
    resume: str | None
    data: DataConfig
    model: Choice
    loss: Choice
    optimizer: Choice
    schedule: Choice
    trainer: TrainerConfig

    def make(self, section: str, *arguments: Any, **named: Any) -> Any:
        """The model, loss, optimizer or schedule that `section` chose; `arguments` and `named` come from the data."""
        choice: Choice = getattr(self, section)
        return registry(section).get(choice.name)(*arguments, **named, **choice.settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, in sections as a recipe has them."""
        plain = asdict(self)
        for section in CHOICES:
            plain[section] = {"name": plain[section]["name"], **plain[section]["settings"]}
        return plain

    def to_yaml(self) -> str:
        """YAML with every setting written out, which resolves to this configuration again."""
        plain = json.loads(json.dumps(self.to_dict()))  # tuples as lists, and jsonargparse's integers as Python's
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)

    def help(self, usage: str, description: str) -> str:
        """The help of a command that takes this configuration: every setting with its type and its value here."""
        parser = make_parser({section: getattr(self, section).name for section in NAMED})
        parser.usage, parser.description = usage, description
        parser.set_defaults(_flat(self.to_dict(), self.name))
        # Lists go by one option; the second that jsonargparse offers, to append to them, is not taken here.
        return re.sub(r", --\S+\+ \S+", "", parser.format_help())


# Sections that choose by name, and the name that they take where none is given (None: one must be).
CHOICES: dict[str, str | None] = {"model": None, "loss": "auto", "optimizer": "adamw", "schedule": "constant"}
NAMED = ("data", *CHOICES)
SECTIONS = (*NAMED, "trainer")
# Parameters that are no settings: what comes from the data, and what YAML cannot hold.
NOT_SETTINGS: set[str | int] = {"input_shape", "classes", "groups"}


def resolve(recipe: str, argv: Sequence[str] = (), *, device: Device | None = None) -> Config:
    """The configuration of a built-in recipe, a YAML file or the folder of a run, changed by `--section.key value ...`.

    Dashes in keys count as underscores. A name that the command line changes (--optimizer.name) starts its section
    afresh: what the file has there belongs to another choice. device: to check the precision against, in place of the
    one that the configuration names. Raises ConfigurationError for an unknown key, with the
    nearest one, for a value of the wrong type, and for a name that bp does not register.
    """
    origin, name, text = read_recipe(recipe)
    given = {"name": name} | _flat(_read_yaml(text, origin), origin)
    words = [re.sub(r"^--[^=]+", lambda key: "--" + key[0][2:].replace("-", "_"), word) for word in argv]
    written = {word[2:].partition("=")[0] for word in words if word.startswith("--")}

    def place(key: str) -> str:
        return f"--{key}" if key in written else f"{origin}: {key}"

    try:
        given, words = _take_names(given, words)
        names = {section: _chosen(section, given, place) for section in NAMED}
        parser = make_parser(names)
        known = list(parser.get_defaults().keys())
        for key in (*given, *sorted(written)):
            _check_key(key, known, names, place)
        file = Namespace()
        for key, value in given.items():
            # The text stands for no value just where the type has one; None itself would pass for any type.
            file[key] = "null" if value is None else value
        # The first parse has all that is required together, the second also converts what came from the file.
        values = parser.parse_object(parser.parse_args(words, namespace=file)).as_dict()
    except (ArgumentError, OverflowError) as error:
        raise ConfigurationError(_explain(error, place)) from None

    sections: dict[str, Any] = {"data": DataConfig(**values.pop("data")), "trainer": TrainerConfig(**values["trainer"])}
    for section in CHOICES:
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in values[section].items() if k != "name"}
        sections[section] = Choice(names[section], settings)
    config = Config(**(values | sections))
    _check(config, origin, place, device)
    return config


def read_recipe(recipe: str) -> tuple[str, str, str]:
    """(where it stands, its name, its YAML text) of a built-in recipe, a YAML file or the folder of a run."""
    path = Path(recipe)
    if path.is_dir() and recipe not in recipes.names():
        path = path / "config.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        return f"recipe {recipe}", recipe, recipes.read(recipe)
    try:
        return str(path), path.stem, path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: expected YAML, got a file that is not text") from error


@cache
def registry(section: str) -> Registry[Any]:
    """What a section can choose from, by name."""
    if section == "data":
        return DATASETS
    if section == "model":
        return MODELS
    if section == "loss":
        return _classes("loss", bp.losses, bp.losses.Loss, ending="Loss")
    if section == "optimizer":
        return _classes("optimizer", bp.optimizers, bp.optimizers.Optimizer)
    return _classes("schedule", bp.schedules, bp.schedules.Schedule)


def make_parser(names: Mapping[str, str]) -> ArgumentParser:
    """The parser of all settings where the sections choose these names."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--name", type=str, help="what summaries call the run")
    parser.add_argument("--device", type=str, default="auto", help="where to train")
    parser.add_argument("--output_dir", type=str | None, help="where to write; must not hold a run, unless resumed")
    parser.add_argument("--resume", type=str | None, help="go on from the last checkpoint: auto, or a folder")
    parser.add_class_arguments(DataConfig, "data", as_group=False)
    for section in CHOICES:
        known = ", ".join(registry(section))
        parser.add_argument(f"--{section}.name", type=str, default=names[section], help=f"one of {known}")
        if names[section] in registry(section):
            entry = registry(section).get(names[section])
            add = parser.add_class_arguments if isinstance(entry, type) else parser.add_function_arguments
            add(entry, section, as_group=False, skip=NOT_SETTINGS)
    parser.add_class_arguments(TrainerConfig, "trainer", as_group=False)
    return parser


def _classes(kind: str, module: ModuleType, base: type, ending: str = "") -> Registry[Any]:
    """The public classes of a module that derive from `base`, named as in WarmupCosine -> warmup-cosine."""
    found: Registry[Any] = Registry(kind)
    for name, cls in vars(module).items():
        # Warmup is put in front of another schedule, which YAML cannot hold.
        if isinstance(cls, type) and issubclass(cls, base) and cls not in (base, bp.schedules.Warmup):
            # Optimizers are known by one word: adamw, rmsprop.
            parts = [name] if kind == "optimizer" else re.findall(r"[A-Z0-9]+(?![a-z])|[A-Z][a-z0-9]+", name)
            found.register("-".join(part.lower() for part in parts if part != ending))(cls)
    return found


class _UniqueKeys(yaml.SafeLoader):
    """Builds nothing but text, numbers, lists and mappings, in which a key comes once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigurationError(f"{origin}: not valid YAML: {problem}{where}") from error


def _flat(content: Any, origin: str) -> dict[str, Any]:
    """{"section.key": value} of the sections of a recipe."""
    if not isinstance(content, dict):
        raise ConfigurationError(f"{origin}: expected sections such as 'data:' and 'model:', got {content!r:.60}")
    flat = {}
    for key, value in content.items():
        if key not in SECTIONS:
            flat[str(key)] = value
        elif isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            raise ConfigurationError(f"{origin}: {key}: expected keys and values, got {value!r:.60}")
    return flat


def _take_names(given: dict[str, Any], words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Move the names from the command line to what the file gave; another name drops what the file has with the old."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for section in NAMED:
        parser.add_argument(f"--{section}.name", default=argparse.SUPPRESS)
    names, words = parser.parse_known_args(words)
    for key, name in vars(names).items():
        section = key.removesuffix(".name")
        if section in CHOICES and name != given.get(key, CHOICES[section]):
            given = {k: v for k, v in given.items() if not k.startswith(f"{section}.")}
        given[key] = name
    return given, words


def _chosen(section: str, given: Mapping[str, Any], place: Callable[[str], str]) -> str:
    """The registered name that a section chooses."""
    key, default = f"{section}.name", CHOICES.get(section)
    name = given.get(key, default)
    if name is None:
        raise ConfigurationError(f"{place(key)} is missing (known: {', '.join(registry(section))})")
    if name != default:
        _at(place(key), registry(section).get, str(name))
    return str(name)


def _check_key(key: str, known: list[str], names: Mapping[str, str], place: Callable[[str], str]) -> None:
    """Raise ConfigurationError, with the nearest key, where this one is not known."""
    if key in known:
        return
    section, _, last = key.rpartition(".")
    takes = ""
    if section in CHOICES:
        known = [k for k in known if k.startswith(f"{section}.")]
        settings = [k.partition(".")[2] for k in known if k != f"{section}.name"]
        takes = f" (the {section} '{names[section]}' takes {', '.join(settings) or 'no settings'})"
    near = [k for k in known if k.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, [*known, *SECTIONS], n=1, cutoff=0.75)
    hint = f"; did you mean '{near[0]}'?" if near and near[0] != key else ""
    raise ConfigurationError(f"{place(key)}: unknown key{hint}{takes}")


def _explain(error: Exception, place: Callable[[str], str]) -> str:
    """A parser's error in one line that begins with the place of the setting."""
    text = " ".join(str(error).split())
    text = re.sub(r'^Parser key "(.+?)"', lambda found: place(found[1]), text)
    text = re.sub(r"^the following arguments are required: (.+)", lambda found: f"{place(found[1])}: required", text)
    text = re.sub(
        r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: ", r"Expected one of \1. Got value: ", text
    )
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>|(?:typing|collections\.abc)\.(?=[A-Z])", r"\1", text)
    return text.replace("NoneType", "null")


def _check(config: Config, origin: str, place: Callable[[str], str], device: Device | None) -> None:
    """What can be told before data is read."""
    if config.trainer.max_epochs is None and config.trainer.max_steps is None:
        raise ConfigurationError(f"{origin}: expected trainer.max_epochs or trainer.max_steps, both are null")
    if device is None:
        device = _at(place("device"), find_device, config.device)
    _at(place("trainer.precision"), resolve_precision, config.trainer.precision, device)


def _at(place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the call; an error is prefixed with the place of the setting that it is about."""
    try:
        return function(*arguments)
    except ConfigurationError as error:
        raise error.at(place) from None
