"""Where the files of a data set are: the folder that was named, or a cache that a download fills."""

import os
from pathlib import Path

from bp.data.source import Source
from bp.errors import DataError

ENVIRONMENT = "BP_DATA_DIR"


def data_folder(name: str, root: str | Path | None) -> Path:
    """The folder of data set `name`: a sub-folder of `root`, else of $BP_DATA_DIR, else of the user's cache."""
    if root is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bp"
        root = os.environ.get(ENVIRONMENT) or cache
    return Path(root).expanduser() / name


def find(folder: Path, name: str) -> Path | None:
    """The published file `name` in `folder`, as published or, where it ends in .gz, unzipped; None: not there."""
    for candidate in (folder / name, folder / name.removesuffix(".gz")):
        if candidate.is_file():
            return candidate
    return None


def find_or_download(name: str, folder: Path, sources: tuple[Source, ...], instead: str = "") -> list[Path]:
    """A path for each source, in their order; missing ones are downloaded into `folder`.

    instead: for the error, what else may stand in the folder in place of the files.
    Raises DataError that says which files go where.
    """
    missing = [source for source in sources if find(folder, source.name) is None]
    try:
        if missing:
            from bp.data.download import download  # its HTTP client takes as long to load as all of bp.data
        for source in missing:
            download(source, folder)
    except DataError as error:
        names = ", ".join(source.name for source in missing)
        raise DataError(
            f"data set '{name}' needs {names} in {folder.absolute()}{instead}. Put the files there as published, or "
            f"name a folder that holds '{name}/' with --data.root or the environment variable {ENVIRONMENT}. "
            f"The download failed: {error}"
        ) from error
    return [path for source in sources if (path := find(folder, source.name)) is not None]
