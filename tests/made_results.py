"""Results that look like those of a run of the benchmarks, on a GPU or on a CPU; nobody measured them."""

import math
import random
from collections.abc import Iterator, Mapping

from bp.bench.results import About, Entry, Limits, Results, Row, Size, Status, Times

ODD = "bp </script><script>alert(1)</script> & \"quoted\" 'name'"
ABSENT: dict[str, tuple[Status, str]] = {
    "numpy": ("left out", "would take 41 s a run, and 2 s are allowed"),
    "triton": ("not installed", "No module named 'triton'"),
    ODD: ("wrong", "element 17 of <b>dx</b> is 3.5, float64 says 2.25"),
    "torch-compile": ("failed", "RuntimeError: ptxas exited with 255 & said nothing"),
}
WIDTH = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
FLOPS = {"norm": 8.0, "activation": 4.0, "steps": 1e4}  # an element


def results(gpu: bool) -> Results:
    machine = {"CPU": "AMD EPYC 9654 96-Core Processor", "cores": "2"}
    if gpu:
        machine = {"CPU": "INTEL XEON PLATINUM 8581C", "cores": "16", "GPU": "NVIDIA H200", "GPU memory": "143771 MiB"}
    about = About(
        device="cuda" if gpu else "cpu",
        machine=machine,
        versions={"bp": "0.4.0", "python": "3.12.4", "numpy": "2.3.1", "driver": "570.86.15", "torch": "2.13.0+cu126"},
        revision="9ea90ef1c2d3+",
        date="2026-11-21 14:03",
        command="bp bench norm activation linear steps --device cuda --peer torch --html report.html",
        settings={"seed": "0", "tf32": "off but where the row says so", "OMP_NUM_THREADS": "2", "odd": "<img src=x>"},
    )
    missing = {"triton": "No module named 'triton'", "liger-kernel": "not installed", "apex": "needs <cuda.h> & nvcc"}
    return Results(about, limits(gpu), list(Maker(gpu).rows()), missing, seconds=482.7 if gpu else 51.2)


def limits(gpu: bool) -> Limits:
    if gpu:
        copy = [(2.0**p, 4.1e12 * min(1.0, 2.0**p / 3e7) * (1.6 if 23 <= p <= 25 else 1.0)) for p in range(16, 31)]
        return Limits(copy, {"fp64": 60.1e12, "fp32": 51.6e12, "tf32": 412e12, "bf16": 794e12, "fp16": 801e12}, 2.31e-6)
    copy = [(65536.0, 91e9), (1048576.0, 62e9), (16777216.0, 24e9), (268435456.0, 18.4e9)]
    return Limits(copy, {"fp32": 118e9, "fp64": 57.9e9}, 4.2e-7)


def work(family: str, sizes: Mapping[str, Size], width: int) -> tuple[float, float]:
    """Floating-point operations and bytes of something like that family; width: bytes of an element."""
    numbers = [float(size) for size in sizes.values() if not isinstance(size, str)]
    if family == "linear":
        m, n, k = numbers
        return 2 * m * n * k, width * (m * n + m * k + n * k)
    elements = math.prod(numbers)
    return FLOPS[family] * elements, 2 * width * elements


class Maker:
    """Draws times around what the limits allow; always the same ones."""

    def __init__(self, gpu: bool) -> None:
        self.random, self.limits, self.gpu = random.Random(0), limits(gpu), gpu

    def times(self, median: float) -> Times:
        spread = 1.0 + self.random.uniform(0.005, 0.06)
        return Times(median, median / spread, median * spread**1.5, self.random.choice([21, 40, 100]))

    def entry(self, name: str, factor: float, median: float) -> Entry:
        """A contestant that takes some `factor` times the median of bp; none at all where that is 0."""
        ours = name.startswith("bp")
        if factor == 0.0:
            status, reason = ABSENT[name]
            return Entry(name, ours, status, reason, error=7.25 if status == "wrong" else None)
        times = self.times(median * factor * self.random.uniform(0.85, 1.2))
        return Entry(name, ours, "timed", error=self.random.uniform(0.01, 0.9), times=times)

    def row(
        self, names: tuple[str, str], sizes: dict[str, Size], precision: str, others: dict[str, float], axis: str = ""
    ) -> Row:
        """names: of family and benchmark. others: who else takes part, with factors of bp's time."""
        flops, nbytes = work(names[0], sizes, WIDTH[precision])
        limit, bound = self.limits.seconds(flops, nbytes, precision)
        assert limit is not None and self.limits.launch_seconds is not None
        median = limit / self.random.uniform(0.35, 0.95) + self.limits.launch_seconds
        facts = {"launches": float(self.random.randint(1, 4)), "peak_bytes": 2 * nbytes}
        entries = [Entry("bp", True, "timed", error=0.21, times=self.times(median), facts=facts)]
        entries += [self.entry(name, factor, median) for name, factor in others.items()]
        peers = [(e.times.median, e.contestant) for e in entries if not e.ours and e.times is not None]
        return Row(
            *(*names, sizes, precision, flops, nbytes, entries, limit, bound),
            percent=100.0 * limit / median,
            ratio=min(peers)[0] / median,
            best_peer=min(peers)[1],
            target=80.0 if names[0] == "norm" and self.gpu else None,
            axis=axis,
            clocks={"gpu before": 1980.0, "gpu watts before": 311.5, "gpu after": 1965.0} if self.gpu else {},
        )

    def rows(self) -> Iterator[Row]:
        for precision in ("fp32", "bf16") if self.gpu else ("fp32", "fp64"):
            yield from self.elementwise(precision)
        for precision in ("fp32", "tf32", "bf16", "fp16") if self.gpu else ("fp32",):
            yield from self.matrices(precision)
        for model in ("MLP 784-512-512-10", "ResNet-20"):
            for batch in (32, 64, 128, 256, 512):
                sizes: dict[str, Size] = {"model": model, "batch": batch, "pixels": 784}
                yield self.row(("steps", "training step"), sizes, "fp32", {"torch": 1.5}, "batch")
        checked = Entry("bp", True, "checked", "the emulator has no clock", error=0.5)
        long = "lookup with a rather long name that has to go somewhere"
        yield Row("embedding", long, {"rows": 7, "kind": "packed"}, "fp16", 0.0, 0.0, [checked])
        entries = [Entry("bp", True, "failed", "IndexError: 7"), Entry("torch", False, "timed", times=self.times(1e-5))]
        yield Row("embedding", "lookup backward", {"rows": 7, "sorted": True}, "fp32", 10.0, 80.0, entries)

    def elementwise(self, precision: str) -> Iterator[Row]:
        peers = {"torch": 1.3, "torch-compile": 1.05 if self.gpu else 0.0, "triton": 0.0}
        for benchmark in ("layer norm", "layer norm backward", "RMS norm"):
            for columns in (257, 1024, 4096, 16384):
                sizes: dict[str, Size] = {"rows": 8192 if self.gpu else 512, "columns": columns}
                yield self.row(("norm", benchmark), sizes, precision, {**peers, "bp norm=rows": 1.4}, "columns")
        for benchmark in ("GELU", "GELU backward", "SwiGLU"):
            for elements in (1000, 65536, 1 << 20, 1 << 24):
                others = {**peers, "numpy": 6.0 if elements < 1 << 24 else 0.0}
                yield self.row(("activation", benchmark), {"elements": elements}, precision, others, "elements")

    def matrices(self, precision: str) -> Iterator[Row]:
        others = {"bp numpy": 1.02, "bp loops": 22.0, "numpy": 1.01, "torch": 0.9, ODD: 0.0}
        if self.gpu:
            rungs = {"bp linear=naive": 30.0, "bp linear=tiled": 6.0, "bp linear=simt": 2.1, ODD: 0.0}
            others = {**rungs, "torch": 0.8, "cublas": 0.78, "cublaslt": 0.75}
        for m, n, k in ((512, 512, 512), (1024, 1024, 1024), (4096, 4096, 4096), (8192, 1024, 4096), (127, 255, 63)):
            yield self.row(("linear", "linear"), {"m": m, "n": n, "k": k}, precision, others)
