"""The kernels of wgmma with faults planted in them, each of which a launch turns on by its last argument."""

import re

from bp.cuda import wgmma_tiles
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source

_HEADERS = ("wgmma_tile.cuh", "wgmma_block.cuh", "wgmma_linear.cuh")
_PLANT = """#pragma once
static int bp_planted;
__attribute__((no_sanitize("thread"))) static void bp_plant(int fault) { bp_planted = fault; }
"""


def with_faults(folder, name, faults, kernels, dtype):
    """The kernels of the file `name`, by name, in tiles of 64 x 128 in two stages. A launch takes one argument more: 0,
    or the number of a fault, counted from one.

    folder: where the changed text may lie. faults: (file, right, wrong) of each: what stands in that file once, and
    what in its place, in which WRONG says whether this fault is turned on.
    """
    source = f"{name}.cu"
    texts = {source: (kernel_folder() / source).read_text()}
    texts |= {header: (kernel_folder() / "include" / header).read_text() for header in _HEADERS}
    for number, (file, right, wrong) in enumerate(faults, 1):
        assert texts[file].count(right) == 1, right
        texts[file] = texts[file].replace(right, wrong.replace("WRONG", f"(bp_planted == {number})"))
    texts[_HEADERS[0]] = texts[_HEADERS[0]].replace("#pragma once\n", _PLANT, 1)
    head, *bodies = re.split(r'(?=extern "C")', texts[source])
    texts[source] = head + "".join(
        re.sub(r"(int parts(?:,\s+bool boxes)?)\)", r"\1, int fault)", body, count=1).replace(
            "DYNAMIC_SHARED_TILES", "bp_plant(fault);\n    DYNAMIC_SHARED_TILES", 1
        )
        for body in bodies
    )
    for file, text in texts.items():
        (folder / file).write_text(text)
    tile = {"": {"ROWS": 64, "COLUMNS": 128, "STAGES": 2}}
    planted = Source(name, folder=folder, only=90, T=(dtype,), variants=tile)
    return {kernel: planted.kernel(kernel, flops="0", bytes="0", shared=wgmma_tiles.SHARED) for kernel in kernels}
