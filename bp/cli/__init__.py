"""The command line: `bp COMMAND ...`; each command is a file beside this one, imported when it is called."""

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import bp
from bp.errors import BPError, ConfigurationError, Notice

# Command -> (module, what it does, in a line).
COMMANDS = {
    "train": ("bp.cli.train", "train a recipe and test what it learned"),
    "eval": ("bp.cli.evaluate", "test a finished run again"),
    "predict": ("bp.cli.predict", "apply a trained model to an array of samples"),
    "check": ("bp.cli.check", "compare a model's backward passes with central differences"),
    "bench": ("bp.cli.bench", "measure kernels and training steps beside their peers and the machine's limits"),
    "recipes": ("bp.cli.recipes", "list the built-in recipes"),
    "kernels": ("bp.cli.kernels", "list the CUDA kernels, compile them for any GPU, explain which computes a product"),
    "tune": ("bp.cli.tune", "measure which CUDA kernels are the fastest for a recipe, and keep what is"),
    "warmup": ("bp.cli.warmup", "compile the CUDA kernels that a recipe needs"),
    "doctor": ("bp.cli.doctor", "say what this machine has, and what to install"),
}

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of this process) and return its exit code.

    Bad input and files that cannot be read or written give one line on stderr and 2, Ctrl-C gives 130.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with _notices():
            _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has left, as in `bp recipes | head -1`; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BPError, OSError) as error:
        print(f"bp: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("bp: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextmanager
def _notices() -> Iterator[None]:
    """Within this block bp's notices are lines on stderr, without the place in the code; other warnings are as ever."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, Notice):
                print(f"bp: note: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = line
        warnings.simplefilter("default", Notice)
        yield


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
    elif argv[0] in ("-V", "--version"):
        print(f"bp {bp.__version__}")
    elif argv[0] in COMMANDS:
        importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    else:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigurationError(f"no command '{argv[0]}'{hint} (known: {', '.join(COMMANDS)}; or --help, --version)")


def usage() -> str:
    """The text of `bp --help`."""
    width = max(map(len, COMMANDS))
    lines = ["usage: bp COMMAND ...", "", "Train neural networks with hand-derived backpropagation.", "", "commands:"]
    lines += [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    lines += ["", "bp COMMAND --help says more. `bp train` alone trains handwritten digits in a few seconds."]
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).split())
