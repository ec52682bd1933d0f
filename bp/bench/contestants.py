"""Who takes part in a row: bp, bp on other rungs, and the methods that a benchmark has for other libraries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bp.bench.benchmark import Benchmark
from bp.bench.libraries import COMPILED, LIBRARIES, library_of
from bp.cuda.choice import RUNGS
from bp.errors import ConfigurationError

# What `--use NAME=RUNG` sets in the environment of the process, by device; on the CPU, NumPy is the rung below the
# native kernels.
_CPU = {"cpu": ("BP_NATIVE", {"numpy": "0", "native": "1"})}
_GPU = {family: (f"BP_{family.upper()}", {rung.name: rung.name for rung in rungs}) for family, rungs in RUNGS.items()}


@dataclass(frozen=True)
class Player:
    """One contestant before it runs. environment: of its process; variant: how a function is run, such as compiled."""

    name: str
    library: str
    method: str
    variant: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=())

    @property
    def ours(self) -> bool:
        """Whether it is bp."""
        return self.library == "bp"


def parse_use(text: str, device: str) -> dict[str, str]:
    """The environment of `--use linear=naive`; several with commas between, of different families, make one contestant.

    Raises ConfigurationError on a family or a rung that the device ("cpu", "cuda", "emulator") does not have.
    """
    rungs = _CPU if device == "cpu" else _GPU
    environment: dict[str, str] = {}
    for part in text.split(","):
        family, _, rung = part.partition("=")
        variable, values = rungs.get(family, ("", {}))
        if rung not in values:
            offered = "; ".join(f"{name}={'|'.join(values)}" for name, (_, values) in rungs.items())
            raise ConfigurationError(f"--use expected NAME=RUNG (on device '{device}' {offered}), got '{part}'")
        if variable in environment:
            raise ConfigurationError(f"--use expected one rung of '{family}' for one contestant, got '{text}'")
        environment[variable] = values[rung]
    return environment


def players(
    kind: type[Benchmark], device: str, uses: Sequence[str], peers: Iterable[str] | None, compile: bool
) -> list[Player]:
    """All that a benchmark has for a device; peers: the names of those wanted (None: all). bp is first."""
    methods = [name for name in dir(kind) if _takes_part(kind, name, device)]
    found = []
    for method in sorted(methods, key=lambda name: (library_of(name) != "bp", name)):
        library = library_of(method) or ""
        # A space after bp: in "bp eager" as in "bp linear=naive" it is bp that runs, in another way.
        name = method.replace("_", " " if library == "bp" else "-")
        if name == COMPILED and not compile:
            continue
        found.append(Player(name, library, method))
        if method == "bp":
            found += [
                Player(f"bp {use}", library, method, environment=tuple(parse_use(use, device).items()))
                for use in _rungs(kind, device, uses)
            ]
        if method == "torch" and kind.compiles and compile:
            found.append(Player(COMPILED, library, method, COMPILED))
    return [player for player in found if player.ours or peers is None or player.name in peers]


def _takes_part(kind: type[Benchmark], name: str, device: str) -> bool:
    """Whether this attribute of a benchmark is a contestant on a device."""
    library, method = library_of(name), getattr(kind, name)
    if library is None or method is Benchmark.bp:
        return False
    return device in LIBRARIES[library].devices and device in getattr(method, "devices", (device,))


def _rungs(kind: type[Benchmark], device: str, uses: Sequence[str]) -> list[str]:
    """The rungs of bp that take part: those asked for that can matter, and on its own ladder all of them."""
    if device == "cpu":
        return list(dict.fromkeys([*uses, "cpu=numpy"]))
    if not kind.ladder:
        return list(dict.fromkeys(uses))
    own = {f"{kind.ladder}={rung.name}": rung for rung in RUNGS[kind.ladder]}
    # A library is a peer already, and what rounds further is no match: these take part where they are asked for.
    asked = [use for use in uses if set(use.split(",")) & set(own)]
    return list(dict.fromkeys([*asked, *(use for use, rung in own.items() if not (rung.library or rung.coarse))]))


def known_peers(kinds: Iterable[type[Benchmark]]) -> list[str]:
    """The names that `--peer` takes."""
    methods = {name for kind in kinds for name in dir(kind) if library_of(name)}
    names = {*LIBRARIES, *methods, COMPILED}
    return sorted(name.replace("_", "-") for name in names if library_of(name) != "bp")
