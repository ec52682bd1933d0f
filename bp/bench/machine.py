"""What figures were made on: processor, GPU, versions, revision, clocks."""

import math
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bp.bench.results import About
from bp.cuda.driver import find_driver

_GPU = {"GPU": "name", "GPU driver": "driver_version", "GPU memory": "memory.total", "GPU power limit": "power.limit"}


def about(device: str, versions: dict[str, str], settings: dict[str, str], command: str) -> About:
    """Of this machine, now."""
    gpu = _ask_gpu(_GPU) if device == "cuda" else {}
    machine = {"CPU": cpu_name(), "cores": str(cores())} | {
        key: gpu[key] for key in ("GPU", "GPU memory") if key in gpu
    }
    found = {"python": platform.python_version(), "system": platform.system()} | versions
    found |= {key: value for key, value in gpu.items() if key not in machine}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return About(device, machine, found, revision(), date, command, settings)


def cpu_name() -> str:
    """The processor as it calls itself."""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: str) -> float:
    """Bytes that the device has: of a GPU its own, else those of this machine that its container may use; infinite
    where the system does not tell."""
    if device == "cuda":
        number = re.match(r"\d+", _ask_gpu({"GPU memory": "memory.total"}).get("GPU memory", ""))
        return float(number[0]) * 2**20 if number else math.inf
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(pages, math.inf if text == "max" else float(text))


def revision() -> str:
    """Of bp's sources: the commit, with "+" where they differ from it; $BP_REVISION where there is no history."""
    folder = Path(__file__).parent
    # Installed in a virtual environment inside a project, bp is no part of that project's history.
    ours = _output("git", "-C", str(folder), "ls-files", Path(__file__).name)
    commit = _output("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD") if ours else ""
    if not commit:
        return os.environ.get("BP_REVISION", "unknown")
    return commit + (
        "+" if _output("git", "-C", str(folder), "status", "--porcelain", "--", str(folder.parent)) else ""
    )


def clocks() -> dict[str, float]:
    """MHz of the cores of the processor; empty where the system does not tell. `bp.bench.watch` has those of a GPU."""
    if not Path("/proc/cpuinfo").exists():
        return {}
    speeds = [float(speed) for speed in re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())]
    return {"cpu": sum(speeds) / len(speeds)} if speeds else {}


def _ask_gpu(questions: dict[str, str]) -> dict[str, str]:
    """nvidia-smi's answers about the first GPU that CUDA programs see."""
    gpus = find_driver().gpus
    if not gpus:
        return {}
    asked = f"--query-gpu={','.join(questions.values())}"
    text = _output("nvidia-smi", asked, "--format=csv,noheader", f"--id={gpus[0].bus}")
    answers = text.split(", ")
    return dict(zip(questions, answers, strict=True)) if len(answers) == len(questions) else {}


def _output(*command: str) -> str:
    """What a command prints; empty where there is no such command, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
