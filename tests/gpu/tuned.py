"""`bp tune` for the products that the benchmarks time, layer after layer in one process, as long as there is time.

    python tests/gpu/tuned.py --device cuda --seconds 60

The last line that it prints is the file of the table. The exit code is 1 where `bp tune` finds a rung that is wrong.
"""

import argparse
import sys
import time

import bp  # before NumPy
from bp.cli.tune import main as tune
from bp.cuda import tuning
from bp.ops.device import find_device

# Sizes as in benchmarks/bench_linear.py and bench_conv.py, those that most depends on first.
LAYERS = [
    *(f"linear 16384 {n} {k} bf16" for n, k in ((3072, 768), (768, 3072), (768, 768), (2304, 768), (50304, 768))),
    *(f"linear {n} {n} {n} bf16" for n in (4096, 8192)),
    *(f"linear {m} 4096 4096 bf16" for m in (16, 32, 64, 128)),
    "conv 64 56 56 64 64 3 bf16 --padding 1",
    "conv 64 14 14 256 256 3 bf16 --padding 1",
    "conv 128 32 32 16 16 3 bf16 --padding 1",
    "linear 4096 4096 4096 tf32",
    "linear 4096 4096 4096 fp32",
    "conv 64 56 56 64 256 1 bf16",
    "conv 64 14 14 1024 256 1 bf16",
    "conv 128 8 8 64 64 3 bf16 --padding 1",
]
SMALL = ["linear 16 24 32 bf16", "conv 2 6 6 8 16 3 bf16 --padding 1"]  # of a rehearsal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="two small layers: whether it runs at all")
    arguments = parser.parse_args()
    layers = SMALL if arguments.quick else LAYERS
    begun, wrong, done = time.monotonic(), 0, 0
    for layer in layers:
        left = arguments.seconds - (time.monotonic() - begun)
        if left <= 0:
            break
        try:
            tune([*layer.split(), "--device", arguments.device, "--seconds", f"{left:.1f}"])
        except SystemExit:
            wrong += 1
        done += 1
    print(f"bp {bp.__version__}: {done} of {len(layers)} layers; {wrong} with a rung that is wrong")
    print(tuning.place(find_device(arguments.device).capability))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
