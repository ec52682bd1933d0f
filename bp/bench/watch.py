"""Watches a GPU while something runs on it: clocks, power, temperature, and what it holds its clocks back for."""

import ctypes
import functools
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bp.cuda.driver import find_driver

INTERVAL = 0.02  # seconds between two samples: NVML answers in far less, nvidia-smi in more
LIBRARY = "libnvidia-ml.so.1"  # which comes with the driver

# Bits of nvmlDeviceGetCurrentClocksEventReasons, by what they are called here.
REASONS = {
    "power cap": 0x4,  # SwPowerCap
    "hardware slowdown": 0x8,  # HwSlowdown: too hot, or power delivery asks for it
    "thermal slowdown": 0x20,  # SwThermalSlowdown
    "hardware thermal slowdown": 0x40,  # HwThermalSlowdown
    "power brake": 0x80,  # HwPowerBrakeSlowdown
}
# The limit of power is where every large product runs, on any card: it is part of what the chip can do, and meets all
# contestants of a row alike, since they take turns. The others come from around the card, and come and go.
ACCEPTED = ("power cap",)

_SUCCESS = 0
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_CORE = 0  # nvmlTemperatureSensors_t


@dataclass(frozen=True)
class Sample:
    """What a GPU said at one moment: MHz, watts, degrees Celsius; None where it does not tell. reasons: of REASONS."""

    clock: float | None
    memory_clock: float | None
    watts: float | None
    celsius: float | None
    reasons: tuple[str, ...]


Gauge = Callable[[], Sample | None]


def open_gauge(device: str) -> Gauge | None:
    """What samples the first GPU that CUDA programs see; None on another device, or where nothing tells."""
    gpus = find_driver().gpus if device == "cuda" else ()
    return (_open_nvml(gpus[0].bus) or _open_smi(gpus[0].bus)) if gpus else None


class Watch(AbstractContextManager["Watch"]):
    """Samples a GPU from another thread within its block: at the beginning, at the end, and between.

    samples: in the order in which they came; none without a gauge.
    """

    def __init__(self, gauge: Gauge | None) -> None:
        self.gauge = gauge
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            over = self._over.is_set()  # asked first, so that the last sample is one of the end
            sample = self.gauge() if self.gauge is not None else None
            if sample is not None:
                self.samples.append(sample)
            if over:
                return
            self._over.wait(INTERVAL)

    def __enter__(self) -> "Watch":
        if self.gauge is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self.gauge is not None:
            self._thread.join()

    @property
    def clocks(self) -> dict[str, float]:
        """The extremes, by names that `bp.bench.units.clock` reads."""
        found = {}
        for name, choose, field in (
            ("gpu lowest", min, "clock"),
            ("gpu highest", max, "clock"),
            ("gpu memory lowest", min, "memory_clock"),
            ("gpu watts highest", max, "watts"),
            ("gpu celsius highest", max, "celsius"),
        ):
            values = [value for sample in self.samples if (value := getattr(sample, field)) is not None]
            if values:
                found[name] = float(choose(values))
        return found

    @property
    def throttled(self) -> dict[str, float]:
        """The share of samples by reason, of those reasons that came."""
        counts = {reason: sum(reason in sample.reasons for sample in self.samples) for reason in REASONS}
        return {reason: count / len(self.samples) for reason, count in counts.items() if count}

    @property
    def refusal(self) -> str:
        """Why times taken meanwhile cannot be compared with others; "" where they can."""
        found = [
            f"{reason} in {share:.0%} of {len(self.samples)} samples"
            for reason, share in self.throttled.items()
            if reason not in ACCEPTED
        ]
        return f"the GPU held its clocks back: {', '.join(found)}" if found else ""


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for name, bit in REASONS.items() if bits & bit)


# NVML, which comes with the driver ----------------------------------------------------------------------------


def _open_nvml(bus: str) -> Gauge | None:
    """bus: the place of a GPU on the PCI bus. NVML's numbers are not CUDA's, nor those of CUDA_VISIBLE_DEVICES."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != _SUCCESS:
        return None
    if library.nvmlDeviceGetHandleByPciBusId_v2(bus.encode(), ctypes.byref(handle)) != _SUCCESS:
        return None
    # Drivers before 535 have it under its older name.
    reasons = next(
        (
            getattr(library, name)
            for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
            if hasattr(library, name)
        ),
        None,
    )

    def ask(function: Any, result: Any, *arguments: ctypes.c_uint) -> int | None:
        status = function(handle, *arguments, ctypes.byref(result))
        return int(result.value) if status == _SUCCESS else None

    def sample() -> Sample:
        clocks = [ask(library.nvmlDeviceGetClockInfo, ctypes.c_uint(), ctypes.c_uint(kind)) for kind in (_SM, _MEMORY)]
        milliwatts = ask(library.nvmlDeviceGetPowerUsage, ctypes.c_uint())
        celsius = ask(library.nvmlDeviceGetTemperature, ctypes.c_uint(), ctypes.c_uint(_CORE))
        bits = None if reasons is None else ask(reasons, ctypes.c_ulonglong())
        watts = None if milliwatts is None else milliwatts / 1000
        return Sample(clocks[0], clocks[1], watts, celsius, _reasons(bits or 0))

    return sample


# nvidia-smi, where NVML cannot be loaded ----------------------------------------------------------------------

_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def _open_smi(bus: str) -> Gauge | None:
    if shutil.which("nvidia-smi") is None:
        return None
    # Under its older name where the newer one is not known.
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        command = ["nvidia-smi", f"--query-gpu={','.join([*_FIELDS, reasons])}", "--format=csv,noheader,nounits"]
        command.append(f"--id={bus}")
        if _ask_smi(command) is not None:
            return functools.partial(_ask_smi, command)
    return None


def _ask_smi(command: Sequence[str]) -> Sample | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = done.stdout.strip().split(", ")
    if done.returncode != 0 or len(answers) != len(_FIELDS) + 1:
        return None
    clock, memory_clock, watts, celsius = (
        float(text) if re.fullmatch(r"[\d.]+", text) else None for text in answers[: len(_FIELDS)]
    )
    bits = answers[-1]
    return Sample(
        clock, memory_clock, watts, celsius, _reasons(int(bits, 16) if re.fullmatch(r"0x[\dA-Fa-f]+", bits) else 0)
    )
