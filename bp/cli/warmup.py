"""bp warmup: compile everything that a recipe needs, so that its first step compiles nothing."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bp.cli.arguments import split
from bp.cli.session import make_session
from bp.config import Config, resolve
from bp.cuda import gpu, nvrtc
from bp.cuda.emulator.device import device as emulator
from bp.cuda.emulator.unit import compile_unit as compile_for_emulator
from bp.cuda.kernel import Unit
from bp.cuda.plan import device as plan
from bp.data import Loader, Subset
from bp.errors import ConfigurationError
from bp.ops.device import resolve_precision

HELP = """usage: bp warmup [RECIPE | FILE.yaml] [--arch NAME] [--section.key value ...]

Find out which kernels the recipe's training and evaluation launch, without running them, and compile these into the
disk cache: for the GPU of this machine, for --device emulator, or, with or without a GPU, for an architecture such as
--arch sm_90a. Later processes that run the recipe compile nothing."""


def main(argv: Sequence[str]) -> None:
    """Run `bp warmup` with these arguments."""
    argv, architecture = _without_architecture(list(argv))
    recipe, settings, flags = split(argv)
    if "help" in flags:
        print(HELP)
        return
    emulated = architecture is None and resolve(recipe, settings).device == "emulator"
    if architecture is None and not emulated:
        architecture = gpu.device().architecture
    started = time.perf_counter()
    with planning_for(emulator.capability if architecture is None else nvrtc.capability(architecture)):
        config = resolve(recipe, settings, device=plan)
        if architecture is None:  # whose own idea of "auto" it is
            config.trainer.precision = resolve_precision(config.trainer.precision, emulator)
        units = needed(config)
    for unit in units:
        if architecture is None:
            compile_for_emulator(unit.source.path, dict(unit.defines), detector=False)
        else:
            nvrtc.compile_unit(unit.source.path, dict(unit.defines), architecture)
    seconds = time.perf_counter() - started
    print(f"{config.name}: {len(units)} units ready for {architecture or 'the emulator'} in {seconds:.1f} s")


@contextmanager
def planning_for(capability: int) -> Iterator[None]:
    """Within this block the planning device is one of that compute capability."""
    before, plan.capability = plan.capability, capability
    try:
        yield
    finally:
        plan.capability = before


def _without_architecture(argv: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--arch NAME`, and NAME."""
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--arch":
            rest = argv[position + 1 :]
            if not equals and not rest:
                raise ConfigurationError("--arch expected an architecture, such as sm_90a")
            value, rest = (value, rest) if equals else (rest[0], rest[1:])
            return argv[:position] + rest, value
    return argv, None


def needed(config: Config) -> list[Unit]:
    """The units that training and evaluating launch kernels of, as the planning device has them.

    The recipe is carried out on arrays without memory, for a whole and a partial batch of everything, so this takes
    seconds whatever the size of the data.
    """
    with plan.recording() as ledger:
        session = make_session(config, device=plan)
        session.trainer.callbacks.clear()
        session.trainer.fit(_shortened(session.train), _shortened(session.valid), max_epochs=1)
        session.trainer.evaluate(_shortened(session.test))
    return list(dict.fromkeys(launch.variant.unit for launch in ledger.launches))


def _shortened(loader: Loader) -> Loader:
    """One whole batch and the partial one of a loader, in order."""
    rest = loader.num_samples % loader.batch_size
    indices = np.arange(min(loader.num_samples, loader.batch_size + rest))
    return Loader(Subset(loader.dataset, indices), loader.batch_size, transform=loader.transform)
