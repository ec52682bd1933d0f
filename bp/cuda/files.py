"""Where the kernels, their emulator and the compiled results lie on disk."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bp.errors import ConfigurationError

_PACKAGE = Path(__file__).parent.parent


def kernel_folder() -> Path:
    """The folder of `*.cu`: inside the installed package, or that of the source tree."""
    return _first_folder(_PACKAGE / "kernels", _PACKAGE.parent / "kernels")


def emulator_folder() -> Path:
    """The folder of the emulator's C++ sources: inside the installed package, or that of the source tree."""
    return _first_folder(_PACKAGE / "emulator_source", _PACKAGE.parent / "csrc" / "emulator")


def _first_folder(*folders: Path) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"bp is incomplete: expected a folder at {' or '.join(map(str, folders))}; install it again"
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept: $BP_CACHE_DIR, else bp's folder in the user's cache; made where it is missing.

    Where neither can be written (a read-only home, as in some containers), a folder of this user among the temporary
    files.
    """
    chosen = os.environ.get("BP_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bp"
    folder = Path(chosen) if chosen else home
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    user = os.getuid() if hasattr(os, "getuid") else "user"
    fallback = Path(tempfile.gettempdir()) / f"bp-cache-{user}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        found = fallback.lstat()
        if found.st_uid != user or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            # What lies there is loaded and run, and anybody can make a folder of that name.
            raise ConfigurationError(f"{fallback} is not a folder that only you can write to: set BP_CACHE_DIR to one")
    return fallback


def digest(*parts: str | bytes | Iterable[str]) -> str:
    """A key for the cache: 32 hexadecimal digits over the parts, each with its length, so that no two lists collide."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else (part if isinstance(part, str) else "\0".join(part)).encode()
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()[:32]


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The file `name` of the cache; where it is missing, `build(path)` writes it under another name first.

    It then takes its name in one step (an atomic rename), so another process sees the whole file or none, and two
    that build it at once leave one of two equal files. Whatever `build` raises is passed on, and leaves nothing behind.
    """
    path = cache_folder() / name
    return path if path.exists() else replaced(path, build)


def replaced(path: Path, build: Callable[[Path], object]) -> Path:
    """`path`, built as `cached` does, even if it is there already: readers have the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        build(Path(unfinished))
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return path
