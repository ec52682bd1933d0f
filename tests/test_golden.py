"""The emulator against what a GPU's intrinsics returned (tests/golden, recorded by benchmarks/gpu.sh)."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import needs_nvrtc

from bp.cuda import nvrtc
from bp.ops.device import find_device

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import golden

CASES = {case.name: case for case in golden.cases()}


@pytest.mark.parametrize("name", CASES)
def test_the_emulator_returns_what_a_gpu_did(name):
    if not golden.FILE.exists():
        pytest.skip("not recorded yet: benchmarks/gpu.sh does, on a machine with a GPU")
    recorded = np.load(golden.FILE)
    if CASES[name].only is not None and name not in recorded:
        pytest.skip(f"not recorded yet: takes a GPU of compute capability {CASES[name].only}")
    assert golden.difference(CASES[name], recorded[name], CASES[name].run(find_device("emulator"))) == ""


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mma")])
def test_the_fragments_are_laid_out_as_the_case_says(name):
    """By NumPy: on integers to the last bit, so that no two elements are mistaken for each other."""
    element, kind = name.split("_")[1:]
    a, b, c = (array.astype(np.float64) for array in golden._operands(element, kind == "integers"))
    expected = (a @ b + c).astype(np.float32)
    assert golden.difference(CASES[name], expected, CASES[name].run(find_device("emulator"))) == ""


@pytest.mark.parametrize("kind", golden.WARPGROUP_PRODUCTS, ids=str)
def test_the_products_of_a_warpgroup_are_those_of_numpy(kind):
    types, _, columns, is_integers = kind
    case, emulator = golden.warpgroup_product(*kind), find_device("emulator")
    assert case.runs_on(emulator)
    a, b, c = (array.astype(np.float64) for array in golden.warpgroup_operands(types, columns, is_integers))
    expected = (a @ b.T + c).astype(np.int16 if is_integers else np.float32)
    assert golden.difference(case, expected, case.run(emulator)) == ""


def test_what_differs_is_named():
    exact, near = golden.Case("exact", lambda device: None), golden.Case("near", lambda device: None, absolute=0.5)
    x = np.array([1.0, np.nan, -0.0, np.inf], np.float32)
    assert golden.difference(exact, x, x.copy()) == golden.difference(near, x, x + np.float32(0.25)) == ""
    assert "1 of 4 differ; at (2,)" in golden.difference(exact, x, np.abs(x))
    for other in (np.array([1, 0, 0, np.inf]), np.array([1, np.nan, 0, 3]), np.array([2, np.nan, 0, np.inf])):
        assert "1 of 4 differ" in golden.difference(near, x, other.astype(np.float32))
    assert "was recorded" in golden.difference(replace(exact, name="x"), x, x[:2])


@needs_nvrtc
@pytest.mark.parametrize("source", ["emulator_features", "golden"])
def test_the_recorded_kernels_compile_for_a_gpu(source):
    """They have only ever run on the emulator. Those of sm_90 are compiled by test_emulator_hopper.py."""
    for architecture in ("sm_80", "sm_90a"):
        assert nvrtc.compile_file(golden.KERNELS / f"{source}.cu", {"T": "float16"}, architecture).cubin
