#!/usr/bin/env bash
# Everything that takes an NVIDIA GPU, in one command and within 9 minutes:
#
#     bash benchmarks/gpu.sh [RESULTS.json]                       (default: gpu-results.json)
#     bash benchmarks/gpu.sh --device emulator --quick            a rehearsal without a GPU, in a few minutes
#
# It runs from a plain checkout: nothing is installed, no native extension is built. It takes Python 3.11 or later with
# NumPy, CuPy 14 for CUDA 12 or 13, NVRTC, ml_dtypes, safetensors, rich and pytest; pytest-xdist makes the tests run
# beside each other, PyTorch is what the benchmarks compare with, compute-sanitizer is used where it is on the PATH.
# What is missing can lie in any folder that PYTHONPATH names:
#
#     python3 -m pip install --target DIR pytest pytest-xdist     (with --no-index --find-links WHEELS without a network)
#     PYTHONPATH=DIR bash benchmarks/gpu.sh
#
# Where the files were copied without their history, BP_REVISION says which revision they are of.
#
# The stages, in this order, each within its own limit of time; whatever one does, the next ones run, and the results so
# far are on disk. The exit code is 0 where all hold.
#
#   environment, compile   what runs here; every kernel
#   golden                 what the intrinsics return, recorded into intrinsics.npz beside the results
#   products               each rung of linear and conv on each of its tiles: exact, and in float64 beside cuBLAS
#   tune                   bp tune for the products that are timed next; its table comes back as tuning.json
#   linear, conv           bp bench of products beside cuBLAS, cuBLASLt and cuDNN: which figures were reached, who lost
#   correctness            the table of operations and layers
#   graphs, training       against eager steps; digits to its accuracy
#   steps, kernels         bp bench of training steps, then of all other kernels
#   sanitizer              memcheck, racecheck, synccheck
#
# Nine minutes may not do for all of them: what was skipped says so, and a second run does it,
#
#     bash benchmarks/gpu.sh rest.json --only correctness graphs training steps kernels sanitizer
#
# To keep what came out: the results go to benchmarks/results/ under the name of the GPU and the date, intrinsics.npz
# to tests/golden/, where tests/test_golden.py holds the emulator to it. `python tests/gpu/verdict.py RESULTS.json` prints
# from them, without a GPU, which rung lost to whom and by how much.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$here/tests/gpu/run.py" "$@"
