"""Processes of the libraries, as the run of the benchmarks sees them: started, asked, and given up on."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bp.bench.libraries import LIBRARIES
from bp.errors import BPError

START_SECONDS = 120.0


class Missing(BPError):
    """The library cannot take part here."""


class Failed(BPError):
    """What was asked for was not done; the process goes on."""


class Crashed(BPError):
    """The process ended."""


class Hung(Crashed):
    """The process was ended because it took too long."""


class Process:
    """A worker of a library. environment: variables beside those of this process; log: a file for what it prints."""

    def __init__(self, library: str, device: str, environment: dict[str, str], log: Path) -> None:
        self.library, self.device, self.environment = library, device, environment
        first = LIBRARIES[library].first
        code = f"""
try:
    import {first}  # before bp, which would load NumPy in its own way
except ImportError:
    pass
from bp.bench.worker import main
main({library!r}, {device!r})
"""
        self._log = log
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables,
                start_new_session=True,  # a group of its own, which ends as a whole
            )
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.versions: dict[str, str] = {}
        self.precisions: tuple[str, ...] = ()

    def _listen(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                self._answers.put(pickle.load(stream))
            except (EOFError, pickle.UnpicklingError, OSError, ValueError):
                self._answers.put(("ended", None))
                return

    def wait_until_ready(self) -> None:
        """Raises Missing where the library cannot take part."""
        kind, what = self._answer(START_SECONDS)
        if kind == "missing":
            self.close()
            raise Missing(what)
        self.versions, self.precisions = what["versions"], what["precisions"]

    def send(self, command: str, **arguments: Any) -> None:
        """Ask for something, without waiting."""
        stream = self._process.stdin
        assert stream is not None
        with suppress(BrokenPipeError, ValueError):  # it has ended, as `receive` will say
            pickle.dump((command, arguments), stream)
            stream.flush()

    def receive(self, limit: float) -> Any:
        """The answer to what was sent first; raises Failed, Hung after `limit` seconds, Crashed where it ended."""
        kind, what = self._answer(limit)
        if kind == "failed":
            raise Failed(what)
        if kind == "broken":
            self.close()
            raise Crashed(what)
        return what

    def ask(self, command: str, limit: float, **arguments: Any) -> Any:
        """`send` and `receive`."""
        self.send(command, **arguments)
        return self.receive(limit)

    def _answer(self, limit: float) -> tuple[str, Any]:
        try:
            kind, what = self._answers.get(timeout=limit)
        except queue.Empty:
            self.close()
            raise Hung(f"took longer than {limit:.0f} s") from None
        if kind == "ended":
            code = self._process.wait()
            last = self._last_words()
            self.close()
            raise Crashed(f"its process ended with {_exit_in_words(code)}{': ' if last else ''}{last}")
        return kind, what

    def _last_words(self) -> str:
        """The last line that it printed."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    def close(self) -> None:
        """End the process, and those that it started: a loader's workers would keep its output open."""
        if self._process.returncode is None:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        self._listener.join()  # it has read what there was
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # of what was not sent yet
                    stream.close()


def _exit_in_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"


Key = tuple[str, tuple[tuple[str, str], ...]]
"""A library and its environment."""


class Pool:
    """The processes of a run, started when they are first needed; a context that ends them all. folder: for what they
    print."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._processes: dict[Key, Process] = {}
        self._starting: set[Key] = set()
        self._started = 0

    def get(self, key: Key) -> Process:
        """The process of a library in an environment; raises Missing where the library cannot take part, or does not
        even start."""
        self._begin(key)
        library, environment = key
        if library in self.missing:
            raise Missing(self.missing[library])
        process = self._processes[key]
        if key in self._starting:
            self._starting.discard(key)
            try:
                process.wait_until_ready()
            except (Missing, Crashed) as error:
                del self._processes[key]
                if not environment:
                    self.missing[library] = str(error)
                raise Missing(str(error)) from None
            self.versions = process.versions | self.versions
        return process

    def start(self, keys: Iterable[Key]) -> None:
        """Start all of these at once: a library takes seconds to load, most of them waiting."""
        for key in keys:
            self._begin(key)

    def _begin(self, key: Key) -> None:
        """Start the process, if there is none; `get` waits until it is ready."""
        library, environment = key
        if key not in self._processes and library not in self.missing:
            log = self.folder / f"process-{self._started}.txt"
            self._started += 1
            # Entered before it is waited for, so that it is ended too where somebody interrupts that.
            self._processes[key] = Process(library, self.device, dict(environment), log)
            self._starting.add(key)

    def forget(self, key: Key) -> None:
        """After a crash: the next `get` starts another."""
        self._starting.discard(key)
        self._processes.pop(key).close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()
