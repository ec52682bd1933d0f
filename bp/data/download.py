"""Downloads: a published file is resumed where an attempt broke off, verified, and only then gets its name."""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bp.data.source import Source
from bp.errors import DataError

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 20  # a URL, and only while each brings the file further: slow servers drop long transfers
CHUNK = 1 << 18


class _Broken(Exception):
    """An attempt ended without the whole file; the text says why."""


def download(source: Source, folder: Path) -> Path:
    """The verified file in `folder`, downloaded unless it is there.

    Bytes go to `<name>.part`, which a later attempt or run continues by an HTTP range; with the right size and sha256
    it is renamed in one step. Processes that want the same file wait for each other (not on Windows, which has no
    flock: there one of them may fail). A progress bar is drawn on stderr where that is a terminal.
    Raises DataError with the reason of each URL, or where the folder cannot be written.
    """
    target, part = folder / source.name, folder / f"{source.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{source.name}.lock"):
            if not target.exists():
                _complete(source, part)
                os.replace(part, target)
    except OSError as error:
        raise DataError(f"{folder}: cannot hold the download of {source.name} ({error})") from error
    return target


def _complete(source: Source, part: Path) -> None:
    """Bring `part` to the whole, verified file, or raise DataError with what each URL said."""
    reasons = []
    with _progress(source) as show:
        for url in source.urls:
            for _ in range(2):
                continued = part.exists()
                try:
                    for _ in range(ATTEMPTS):
                        if _extend(source, url, part, show):
                            break
                    _verify(source, part)
                    return
                except _Broken as broken:
                    reasons.append(f"{url}: {broken}")
                if part.exists() or not continued:
                    break  # otherwise the bytes of an earlier attempt may be what was wrong: once more from the start
    raise DataError(f"{source.name} could not be downloaded: {'; '.join(reasons)}")


def _extend(source: Source, url: str, part: Path, show: Callable[[int], None]) -> bool:
    """Append to `part` what the server sends; whether the file is whole. Raises _Broken where it brought nothing."""
    before = have = part.stat().st_size if part.exists() else 0
    if have >= source.size:
        return True
    headers = {"User-Agent": "bp", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise _Broken(f"HTTP status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Broken(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
    with response:
        if response.status != 206:  # the server sends it all, from the start
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Broken(f"expected the rest from byte {have}, got '{response.headers.get('Content-Range')}'")
        promised = response.headers.get("Content-Length", "")
        if promised.isdigit() and have + int(promised) != source.size:
            raise _Broken(f"expected a file of {source.size:,} bytes, the server offers {have + int(promised):,}")
        reason = ""
        with open(part, "ab" if have else "wb") as file:
            while have <= source.size:
                show(have)
                try:
                    piece = response.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    reason = str(error) or type(error).__name__
                    break
                if not piece:
                    reason = "the connection ended"
                    break
                file.write(piece)
                have += len(piece)
    if have <= before:
        raise _Broken(f"{reason} after {have:,} of {source.size:,} bytes (a later run continues there)")
    return have >= source.size


def _verify(source: Source, part: Path) -> None:
    """Raise _Broken, and remove `part`, unless it is the published file."""
    size = part.stat().st_size
    if size < source.size:
        raise _Broken(f"the connection ended after {size:,} of {source.size:,} bytes (a later run continues there)")
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    if digest.hexdigest() != source.sha256:
        part.unlink()
        raise _Broken(f"expected sha256 {source.sha256}, got {digest.hexdigest()} over {size:,} bytes")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold `lock` against other processes; the system lets go of it when a process ends, however it ends."""
    with open(lock, "wb") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes had so far."""
    if not sys.stderr.isatty():
        yield lambda have: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(source.name, total=source.size)
        yield lambda have: bar.update(task, completed=have)
