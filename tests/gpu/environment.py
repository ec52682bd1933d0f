"""One line of JSON: what the figures of a run were made on; a plain reason where the device cannot be used."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import bp
from bp.cuda import nvrtc
from bp.errors import ConfigurationError
from bp.ops.device import find_device

PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "numpy", "ml_dtypes", "torch", "triton", "pytest", "pytest-xdist")
OF_THE_GPU = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def output_of(*command: str) -> str:
    """What a command prints; empty where there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    try:
        device: Any = find_device(parser.parse_args().device)
    except ConfigurationError as error:
        sys.exit(str(error))
    about: dict[str, Any] = {"device": device.name, "capability": device.capability}
    answer = output_of("nvidia-smi", f"--query-gpu={','.join(OF_THE_GPU)}", "--format=csv,noheader", "--id=0")
    about["gpu"] = dict(zip(OF_THE_GPU, answer.split(", "), strict=True)) if answer else {}
    about["bp"] = bp.__version__
    about["revision"] = output_of("git", "rev-parse", "HEAD") or os.environ.get("BP_REVISION", "unknown")
    about["changed"] = bool(output_of("git", "status", "--porcelain"))
    about["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    about["python"] = platform.python_version()
    about["machine"] = platform.machine()
    about["packages"] = versions()
    if nvrtc.find() is not None:
        about["nvrtc"] = nvrtc.version_text()
    if device.name == "cuda":
        about["cuda_driver"] = device.cupy.cuda.runtime.driverGetVersion()
        about["cuda_runtime"] = device.cupy.cuda.runtime.runtimeGetVersion()
    print(json.dumps(about))


if __name__ == "__main__":
    main()
