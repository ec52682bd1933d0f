"""Compiles every variant for the GPU at hand, or for the emulator, into the disk cache, as many at once as cores."""

import argparse
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bp.cuda import nvrtc
from bp.cuda.catalogue import load
from bp.cuda.emulator import unit
from bp.ops.device import find_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="one of ten: whether they compile at all")
    arguments = parser.parse_args()
    device: Any = find_device(arguments.device)
    build: Callable[..., Any] = functools.partial(unit.compile_unit, detector=False)
    if device.name == "cuda":
        build = functools.partial(nvrtc.compile_unit, architecture=device.architecture)
    units = [(s.path, dict(u.defines)) for s in load() for u in s.units() if u.runs_on(device.capability)]
    units = units[::10] if arguments.quick else units
    begun = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: build(*one), units))
    print(f"{len(units)} units for {device.name} in {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
