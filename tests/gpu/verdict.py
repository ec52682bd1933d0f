"""What a run of benchmarks of products says: which figures that are wanted were reached, and which rung lost to whom.

python tests/gpu/verdict.py RESULTS.json        (of bp bench, or of benchmarks/gpu.sh)
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Document = dict[str, Any]


class Gate(NamedTuple):
    """A figure that is wanted: the time of the vendor's / the time of bp, of rows by benchmark, group, precision and
    words of their sizes. of: "mean", "median" or "least"; gate: to reach, stretch: beyond. beside: a contestant (None:
    the fastest peer of each row)."""

    benchmark: str
    group: str
    precision: str
    of: str
    gate: float
    stretch: float | None = None
    beside: str | None = None
    word: str = ""


COARSE = ("bp linear=fp8",)
FUSED = ("linear + activation", "linear input gradient * activation gradient")
GATES = [
    *(Gate("product", "squares", "bf16", "least", 1.00, 1.05, word=way) for way in ("nt", "nn", "tn")),
    *(
        Gate(name, "GPT-2 124M", "bf16", of, gate)
        for name in ("linear", "linear input gradient", "linear parameter gradients")
        for of, gate in (("mean", 1.00), ("least", 0.95))
    ),
    Gate("linear parameter gradients, added", "GPT-2 124M", "bf16", "mean", 0.95, 1.10),
    *(Gate(name, "with gelu_tanh", "bf16", "mean", 1.00, 1.10, "cupy-cublaslt") for name in FUSED),
    *(Gate(name, "with gelu_tanh", "bf16", "least", 0.90, None, "bp product") for name in FUSED),
    Gate("product", "squares", "fp32", "least", 0.93, 0.98, word="nt"),
    *(
        Gate("product", "squares", "tf32", "least", gate, word=way)
        for way, gate in (("nt", 0.95), ("nn", 0.75), ("tn", 0.75))
    ),
    *(Gate("skinny linear", f"skinny, {cache}", "bf16", "mean", 1.00) for cache in ("cold", "warm")),
    *(
        Gate(name, group, "bf16", "median", gate, stretch)
        for group in ("ResNet-20", "ResNet-50")
        for name, gate, stretch in (
            ("convolution", 1.00, None),
            ("convolution input gradient", 1.00, None),
            ("convolution parameter gradients", 0.85, 1.00),
        )
    ),
]


def time_of(row: Document, name: str | None) -> tuple[float, str] | None:
    """(seconds, whose) of a contestant, of the fastest peer for None; None where it was not timed."""
    timed = [
        (entry["times"]["median"], entry["contestant"])
        for entry in row["entries"]
        if entry["times"] and (not entry["ours"] if name is None else entry["contestant"] == name)
    ]
    return min(timed, default=None)


def rungs_of(row: Document) -> dict[str, float]:
    """Seconds of bp and of its rungs, the fastest first, without those that round further than anybody beside them."""
    found = {
        entry["contestant"]: entry["times"]["median"]
        for entry in row["entries"]
        if entry["ours"] and entry["times"] and (entry["contestant"] == "bp" or "=" in entry["contestant"])
    }
    for coarse in COARSE:
        found.pop(coarse, None)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def named(row: Document) -> str:
    numbers = "x".join(str(size) for size in row["sizes"].values() if not isinstance(size, str))
    words = [size for size in row["sizes"].values() if isinstance(size, str)]
    return " ".join([row["benchmark"], numbers, *words, row["precision"]])


def _stands(row: Document) -> bool:
    return not row.get("refused")


def _figure(values: list[float], of: str) -> float:
    if of == "least":
        return min(values)
    if of == "median":
        middle = sorted(values)
        return (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return float(product)


def gates(rows: list[Document]) -> Iterator[Document]:
    """Each gate that there are rows for: what bp reaches as it runs, and what it would with its fastest rung."""
    for gate in GATES:
        mine = [
            row
            for row in rows
            if (row["benchmark"], row["group"], row["precision"]) == (gate.benchmark, gate.group, gate.precision)
            and (not gate.word or gate.word in row["sizes"].values())
            and _stands(row)
        ]
        ours: list[float] = []
        best: list[float] = []
        for row in mine:
            theirs, as_it_runs, rungs = time_of(row, gate.beside), time_of(row, "bp"), rungs_of(row)
            if theirs is not None and rungs:
                best.append(theirs[0] / min(rungs.values()))
                if as_it_runs is not None:
                    ours.append(theirs[0] / as_it_runs[0])
        if best:
            what = " ".join(filter(None, [gate.group, gate.benchmark, gate.word, gate.precision]))
            yield {
                "what": f"{what}, {gate.of} over {len(best)} rows beside {gate.beside or 'the fastest peer'}",
                "gate": gate.gate,
                "stretch": gate.stretch,
                "bp": _figure(ours, gate.of) if ours else None,
                "fastest_rung": _figure(best, gate.of),
            }


def losses(rows: list[Document]) -> list[Document]:
    """Each row in which a peer has a time, those furthest behind it first: who it is, and how every rung compares."""
    lost = []
    for row in rows:
        theirs, rungs = time_of(row, None), rungs_of(row)
        if theirs is None or not rungs or not _stands(row):
            continue
        fastest = next(iter(rungs))
        lost.append(
            {
                "row": named(row),
                "ratio": theirs[0] / rungs[fastest],
                "rung": fastest,
                "peer": theirs[1],
                "peer_seconds": theirs[0],
                "flops_per_second": row["flops"] / rungs[fastest],
                "of_limit": (row.get("limit_seconds") or 0.0) / rungs[fastest],
                "rungs": {name: theirs[0] / seconds for name, seconds in rungs.items()},
                "coarse": {name: theirs[0] / found[0] for name in COARSE if (found := time_of(row, name))},
            }
        )
    return sorted(lost, key=lambda one: one["ratio"])


def lines(rows: list[Document], most: int = 1000) -> Iterator[str]:
    """The gates, and the rows that are furthest behind, for people."""
    for gate in gates(rows):
        bp, best = gate["bp"], gate["fastest_rung"]
        reached = "reached" if bp is not None and bp >= gate["gate"] else "NOT reached"
        stretch = "" if gate["stretch"] is None else f", then {gate['stretch']:.2f}"
        said = f"{'no time' if bp is None else f'{bp:.2f}'} by bp, {best:.2f} by its fastest rung"
        yield f"{said}; wanted {gate['gate']:.2f}{stretch}, {reached}: {gate['what']}"
    for one in losses(rows)[:most]:
        everyone = one["rungs"] | one["coarse"]
        rungs = ", ".join(f"{name.removeprefix('bp ')} {ratio:.2f}" for name, ratio in everyone.items())
        yield (
            f"{one['ratio']:.2f} {one['row']}: beside {one['peer']}, {1e6 * one['peer_seconds']:.1f} us; {rungs}; "
            f"{one['flops_per_second'] / 1e12:.1f} TFLOP/s, {100 * one['of_limit']:.0f}% of the limit"
        )
    for row in rows:
        if not _stands(row):
            yield f"refused {named(row)}: {row['refused']}"


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    parts = [document] if "rows" in document else [part for part in document.values() if "rows" in part]
    print("\n".join(lines([row for part in parts for row in part["rows"]])))


if __name__ == "__main__":
    main()
