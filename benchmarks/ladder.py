"""Writes the generated sections of docs/kernels.md anew, from the table of `bp.cuda.choice` and from what was measured.

python benchmarks/ladder.py
"""

from pathlib import Path

from readme import made_by, measured, replaced, row

from bp.bench import units
from bp.bench.products import ConvLayer, LinearLayer
from bp.cli.warmup import planning_for
from bp.cuda import choice
from bp.cuda.plan import device as plan

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
CAPABILITIES = (75, 80, 90)

# What each rung is, and where it lies.
RUNGS = {
    "linear": {
        "cublas": "the vendor's library, through CuPy, and one launch for an epilogue",
        "naive": "a thread for each element, from the definition",
        "tiled": "tiles of 64 x 64 in shared memory, scalar loads, any alignment",
        "simt": "large tiles on the ordinary cores, 16-byte loads, a double buffer",
        "mma": "tensor cores by mma.sync, asynchronous copies in several stages, swizzled tiles",
        "wgmma": "Hopper's tensor cores: TMA, barriers, producer and consumer warpgroups; in tf32 the way nt alone",
        "fp8": "Hopper's tensor cores on factors of 8 bits, with a scale for each matrix",
    },
    "conv": {
        "depthwise": "a filter for each channel, in registers",
        "direct": "a thread for each element, from the definition",
        "tiled": "the tiled product, its operands read from the images",
        "simt": "the product of the rung of that name, its operands read from the images",
        "mma": "the product of the rung of that name, its operands read from the images; at most 16 taps along an axis",
        "wgmma": "the product of the rung of that name, its operands read from the images",
    },
}

LAYERS = {
    "square": LinearLayer(4096, 4096, 4096),
    "GPT-2, MLP in": LinearLayer(16384, 3072, 768),
    "GPT-2, logits": LinearLayer(16384, 50304, 768),
    "skinny": LinearLayer(16, 4096, 4096),
    "MLP": LinearLayer(128, 512, 784),
    "classes": LinearLayer(128, 10, 512),
    "rows of odd length": LinearLayer(1000, 1001, 1001),
    "one input": LinearLayer(1000, 1000, 1),
    "ResNet-20": ConvLayer(128, 32, 32, 16, 16, (3, 3), padding=((1, 1), (1, 1))),
    "ResNet-50": ConvLayer(64, 14, 14, 256, 256, (3, 3), padding=((1, 1), (1, 1))),
    "ResNet-50, stride 2": ConvLayer(64, 56, 56, 256, 512, (1, 1), (2, 2)),
    "first layer": ConvLayer(128, 28, 28, 1, 32, (3, 3), padding=((1, 1), (1, 1))),
    "depthwise": ConvLayer(64, 56, 56, 128, 128, (3, 3), padding=((1, 1), (1, 1)), groups=128),
}


def ladder():
    """What each rung is, what it computes, and when a rule takes it."""
    return "\n\n".join(ladder_of(family) for family in choice.RUNGS)


def ladder_of(family):
    heads = [f"`{family}`", "what it is", "factors", "from", "rows at", "a rule takes it where"]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for rung in choice.RUNGS[family]:
        at = "any place" if rung.alignment < 4 else f"multiples of {rung.alignment} bytes"
        lines.append(
            row([f"`{rung.name}`", RUNGS[family][rung.name], factors(rung), since(rung), at, taken_where(rung, family)])
        )
    return "\n".join(lines)


def factors(rung):
    return ", ".join(choice.SHORT[dtype] for dtype in rung.dtypes)


def since(rung):
    """The least architecture of each precision."""
    if rung.only is not None:
        return f"sm_{rung.only} alone"
    later = {}
    for dtype, least in rung.least_of.items():
        if dtype in rung.dtypes:
            later.setdefault(least, []).append(choice.SHORT[dtype])
    return "; ".join(["sm_75", *(f"{', '.join(names)}: sm_{least}" for least, names in later.items())])


def taken_where(rung, family):
    if rung.library:
        return "nowhere: by force, or from a tuned table"
    if rung.coarse:
        return "nowhere: by force alone, since it rounds the factors further"
    if not rung.verified:
        return "nowhere until a GPU has verified it: by force, or from a tuned table"
    last = rung is choice.RUNGS[family][-1]
    return rung.because or ("no other rung does" if last else "it can")


def chosen():
    """What the rules choose for some products, by precision."""
    return "\n\n".join(
        chosen_of(family, [(name, layer) for name, layer in LAYERS.items() if layer.family == family])
        for family in choice.RUNGS
    )


def chosen_of(family, layers):
    heads = [f"`{family}`", "product", *PRECISIONS]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for name, layer in layers:
        for number, way in enumerate(layer.ways):
            cells = [cell(layer, way, precision) for precision in PRECISIONS]
            lines.append(row([name if number == 0 else "", f"{way}: {layer.words(way)}", *cells]))
    return "\n".join(lines)


def cell(layer, way, precision):
    """The choice, and where it is another on other architectures."""
    found = {}
    for capability in CAPABILITIES:
        with planning_for(capability), plan.running(precision):
            if precision in plan.precisions:
                problem = layer.task(way, plan, precision).problem
                found.setdefault(str(choice.by_rule(problem, capability)), []).append(f"sm_{capability}")
    most = max(found.values(), key=len)
    words = [f"{one} ({', '.join(where)})" if where is not most else one for one, where in found.items()]
    return "; ".join(words)


def figures():
    """`bp bench --device cuda --json benchmarks/results/kernels-cuda.json`: the rate of each rung."""
    command = "bp bench linear conv --device cuda --json FILE"
    tables = [figures_of(results) for results in on_gpus()]
    return "\n\n".join(tables) or f"Not measured yet. `{command}` measures every rung on a machine with a GPU."


def on_gpus():
    return [results for results in measured("kernels") if results.about.device == "cuda"]


def figures_of(results):
    """The rate of each rung in each row that has one of its own."""
    names = [f"bp {family}={rung.name}" for family, rungs in choice.RUNGS.items() for rung in rungs]
    heads = ["row", "bp", *(name.removeprefix("bp ") for name in names), "fastest peer"]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for one in results.rows:
        if one.family in choice.RUNGS and any(one.entry(name) for name in names):
            times = [one.entry(name) for name in ("bp", *names)]
            cells = ["" if found is None or found.times is None else rate(one, found.times.median) for found in times]
            peer = one.entry(one.best_peer)
            fastest = "" if peer is None or peer.times is None else f"{rate(one, peer.times.median)} {peer.contestant}"
            lines.append(row([f"{one.benchmark} {one.shape} {one.precision}", *cells, fastest]))
    return "\n".join([*lines, "", f"{made_by(results)}."])


def rate(one, seconds):
    return units.compute(one.flops / seconds)


def gaps():
    """Rows in which cuBLAS is faster than what bp chooses."""
    found = on_gpus()
    lines = [gap for results in found for gap in gaps_of(results)]
    return "\n".join(lines) or ("No row in which cuBLAS was faster." if found else "None measured yet.")


def gaps_of(results):
    for one in results.rows:
        library, ours = one.entry("cupy"), one.ours
        if one.family == "linear" and library is not None and library.times and ours is not None and ours.times:
            ratio = library.times.median / ours.times.median
            if ratio < 1.0:
                yield f"- {one.benchmark} {one.shape} {one.precision}: bp at {units.ratio(ratio)} of cuBLAS"


SECTIONS = {"ladder": ladder, "figures": figures, "choice": chosen, "gaps": gaps}


def written(content):
    """The page with every section anew."""
    for name, section in SECTIONS.items():
        content = replaced(content, name, section(), by="ladder.py")
    return content


def main():
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()
