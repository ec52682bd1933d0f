"""Kernels on a GPU: bytes a second, beside a copy measured in the same run and beside PyTorch.

    python -m benchmarks.kernels.run [--only norm] [--seconds 170] [--out rows.json]

Each row is checked against a float64 reference on a sample before it is timed. `--device emulator --quick` runs all of
it on small arrays without a GPU, and shows no times. Written after every row.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import bp  # before NumPy
from benchmarks.kernels.data import Data
from benchmarks.kernels.rows import Row, Sizes, all_rows
from benchmarks.kernels.timing import Stopwatch, Times, Work
from bp.ops.device import find_device

COPY_BYTES = 1 << 30  # of the array that is copied: twice as many move
FLUSH_BYTES = 1 << 30  # many times the second-level cache, and a head start of some 100 us for the host


def measure_copy(device: Any, watch: Stopwatch, nbytes: int) -> dict[str, float]:
    """Bytes a second, read and written, of cudaMemcpyAsync and of bp's copy kernel."""
    source, destination = (device.zeros((nbytes // 4,), "float32") for _ in range(2))
    contestants = {"kernel": lambda: device.copy(destination, source)}
    if device.name == "cuda":
        stream = device.cupy.cuda.get_current_stream()
        contestants["memcpy"] = lambda: destination.data.copy_from_device_async(source.data, nbytes, stream)
    return {name: 2 * nbytes / times.median for name, times in watch.times(contestants).items()}


class Bench:
    """Runs rows on a device, and keeps what they gave. seconds: after which no further row begins."""

    def __init__(self, device: Any, small: bool, seconds: float, out: Path | None) -> None:
        self.device, self.small, self.out = device, small, out
        self.begun, self.seconds = time.monotonic(), seconds
        self.data = Data(device)
        self.watch = Stopwatch(device, 1 << 12 if small else FLUSH_BYTES)
        self.copies = measure_copy(device, self.watch, 1 << 16 if small else COPY_BYTES)
        self.results: dict[str, Any] = {"copy_bytes_per_second": self.copies, "rows": [], "left_out": []}
        if device.name != "cuda":
            self.results["copy_bytes_per_second"] = "not measured: the emulator's times say nothing"

    @property
    def used(self) -> float:
        """The part of the time that is gone."""
        return (time.monotonic() - self.begun) / self.seconds

    def run(self, row: Row) -> None:
        """Check a row and time it."""
        error = row.error()
        found: dict[str, Any] = {"name": row.name, "dtype": row.dtype, "shape": row.shape, "error": error}
        self.results["rows"].append(found)
        if not error <= 1:
            found["verdict"] = "WRONG"
            print(f"{row.name:28} {row.dtype:9} WRONG: {error:.3g} times the error that is allowed", flush=True)
            return
        contestants = {"ours": row.ours}
        if row.theirs is not None:
            peers = {"eager": lambda function: function}
            if row.compiles and self.used < 0.5 and self.device.name == "cuda" and row.dtype == "bfloat16":
                peers["compile"] = functools.partial(self.data.torch.compile, dynamic=False)
            for name, wrap in peers.items():
                work = row.theirs(wrap)
                if self._works(f"{name} of {row.name}", work):
                    contestants[name] = work
        times = self.watch.times(contestants, repeats=2 if self.small else 30)
        if self.device.name == "cuda":
            found |= judged(row, times, max(self.copies.values()))
            print(line(found), flush=True)
        else:
            print(f"{row.name:28} {row.dtype:9} {'x'.join(map(str, row.shape)):14} right", flush=True)

    def _works(self, what: str, work: Work) -> bool:
        """Whether a peer runs; there may be no Triton, no compiler, or an older PyTorch without the function."""
        try:
            work()
        except (RuntimeError, OSError, AttributeError) as error:
            print(f"no peer: {what}: {str(error).splitlines()[0][:150]}", flush=True)
            return False
        return True

    def save(self) -> None:
        """What there is so far."""
        if self.out is not None:
            self.out.write_text(json.dumps(self.results, indent=1))


def judged(row: Row, times: dict[str, Times], copy: float) -> dict[str, Any]:
    """The figures of a row, for the table and for JSON."""
    ours = times["ours"].median
    percent = 100 * row.nbytes / ours / copy
    found: dict[str, Any] = {name: taken.as_dict() for name, taken in times.items()}
    found |= {"gigabytes_per_second": row.nbytes / ours / 1e9, "percent_of_copy": percent, "target": row.target}
    found["ratio"] = {name: times[name].median / ours for name in times if name != "ours"}
    if row.target is not None:
        found["verdict"] = "reached" if percent >= row.target else "below"
    return found


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    shape = "x".join(map(str, found["shape"]))
    ratios = "  ".join(f"{name} / ours {ratio:.2f}" for name, ratio in found["ratio"].items())
    target = "" if found["target"] is None else f"of {found['target']:.0f}: {found['verdict']}"
    return (
        f"{found['name']:28} {found['dtype']:9} {shape:14} {1e6 * found['ours']['median']:8.1f} us "
        f"{found['gigabytes_per_second']:6.0f} GB/s {found['percent_of_copy']:6.1f} % {target:15} {ratios}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small arrays")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=600.0, help="no row begins after so many")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    device: Any = find_device(arguments.device)
    with device.running("bf16"):
        bench = Bench(device, arguments.quick, arguments.seconds, arguments.out)
        with bench.data.on_one_stream():
            for make in all_rows(bench.data, Sizes(arguments.quick)):
                if bench.used > 0.95:
                    bench.results["left_out"].append("no time was left for further rows")
                    break
                with device.StepMemory():
                    row = make()
                    if arguments.only in row.name:
                        bench.run(row)
                bench.save()
    print(f"bp {bp.__version__}; copy {bench.results['copy_bytes_per_second']}")
    sys.exit(1 if any(row.get("verdict") == "WRONG" for row in bench.results["rows"]) else 0)


if __name__ == "__main__":
    main()
