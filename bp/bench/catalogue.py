"""Finds the benchmarks: one file a family in `benchmarks/`, or a few, and any file of a user's own."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import bp
from bp.bench.benchmark import Benchmark
from bp.errors import ConfigurationError

PACKAGE = "bp.benchmarks"
PREFIX = "bench_"


def folder() -> Path:
    """Where the files lie: inside the installed package, or in the source tree."""
    package = Path(bp.__file__).parent
    for candidate in (package / "benchmarks", package.parent / "benchmarks"):
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(f"bp is incomplete: expected a folder {package / 'benchmarks'}; install it again")


def families() -> list[str]:
    """The names of all, such as "norm"; bench_norm_batch.py has more of "norm", since there is a bench_norm.py."""
    stems = _stems()
    return [stem for stem in stems if not any(stem.startswith(f"{other}_") for other in stems)]


def load(family: str) -> list[type[Benchmark]]:
    """The benchmarks of a family, in the order of its files. family: a name, or the path of a file.

    Raises ConfigurationError where there is none of that name, or a file that is no Python, imports what is not there,
    or has no benchmarks.
    """
    _find_package()
    found: list[type[Benchmark]] = []
    for module in [_own(Path(family))] if family.endswith(".py") else _ours(family):
        kinds = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Benchmark)]
        found += [kind for kind in kinds if kind.__module__ == module.__name__ and hasattr(kind, "name")]
    if not found:
        raise ConfigurationError(f"no benchmarks in {family}: expected classes of bp.bench.Benchmark with a name")
    return found


def _stems() -> list[str]:
    return sorted(path.stem.removeprefix(PREFIX) for path in folder().glob(f"{PREFIX}*.py"))


def family_name(family: str) -> str:
    """What the rows of a family are called: "mine" for a file bench_mine.py."""
    return Path(family).stem.removeprefix(PREFIX) if family.endswith(".py") else family


def _ours(family: str) -> list[ModuleType]:
    known = families()
    if family not in known:
        raise ConfigurationError(f"no benchmarks '{family}' (known: {', '.join(known)}; or the path of a file)")
    stems = [stem for stem in _stems() if stem == family or stem.startswith(f"{family}_")]
    return [importlib.import_module(f"{PACKAGE}.{PREFIX}{stem}") for stem in stems]


def _find_package() -> None:
    """Let `import bp.benchmarks` find the folder where it lies beside bp, for files of a user's that build on ours."""
    if PACKAGE not in sys.modules and not (Path(bp.__file__).parent / "benchmarks").is_dir():
        _run(PACKAGE, folder() / "__init__.py")


def _own(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"no file of benchmarks at {path}")
    name = f"bp_benchmarks_of_the_user_{path.stem}"
    try:
        return sys.modules[name] if name in sys.modules else _run(name, path)
    except (SyntaxError, ImportError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _run(name: str, path: Path) -> ModuleType:
    """Import a file under a name."""
    inner = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inner)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
