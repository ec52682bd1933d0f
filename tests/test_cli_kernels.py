"""bp kernels: what it lists, what it prints of compilations, and its exit code."""

import re
import shutil

import pytest
from planted import FOLDER, needs_nvdisasm, needs_nvrtc, use_kernels_of

from bp.cli import BAD_INPUT, kernels, main
from bp.cuda import disassembler, nvrtc
from bp.cuda.kernel import FLOATS, SOURCES, Source
from bp.errors import ConfigurationError


@pytest.fixture
def plant(planted, monkeypatch, tmp_path):
    """plant(name, ...) makes tests/kernels/gate_NAME.cu, with a kernel NAME, one of the declared files."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    use_kernels_of(folder, monkeypatch)

    def one(name, *, axes=None, least=75, **kernel):
        shutil.copy(FOLDER / f"gate_{name}.cu", folder)
        source = Source(f"gate_{name}", least=least, **(axes or {}))
        source.kernel(name, **{"flops": "0", "bytes": "0", **kernel})

    one.compiled = planted
    return one


def run(capsys, *argv):
    """(exit code, lines of stdout, stderr) of bp kernels, as where nvdisasm is installed."""
    code = main(["kernels", *argv])
    out, err = capsys.readouterr()
    # Without nvdisasm one more line says what was not checked.
    return code, [line for line in out.splitlines() if not line.startswith("not checked: ")], err


def violations(lines):
    return [line for line in lines if line.startswith("violation: ")]


def test_list(plant, capsys):
    plant("clean", axes={"T": FLOATS}, flops="n", bytes="2 * n * T")
    plant("scalar", least=80)
    code, lines, _ = run(capsys, "list")
    assert code == 0
    assert [re.split("  +", line) for line in lines] == [
        ["kernel", "file", "from", "FLOPs", "bytes", "variants"],
        ["clean", "gate_clean.cu", "sm_75", "n", "2 * n * T", "T = float, float16, bfloat16"],
        ["scalar", "gate_scalar.cu", "sm_80", "0", "0"],
    ]


def test_every_kernel_of_bp_is_listed(capsys):
    code, lines, _ = run(capsys, "list")
    assert code == 0
    listed = {line.split()[0] for line in lines[1:]}
    assert listed == {name for source in SOURCES.values() for name in source.kernels} and "relu_forward" in listed


@needs_nvrtc
def test_compile_says_what_each_variant_takes(plant, capsys):
    plant("clean", axes={"T": FLOATS})
    plant("dynamic_shared", shared="4 * n")
    code, lines, _ = run(capsys, "compile", "--arch", "sm_75,sm_90a")
    assert code == 0
    assert re.match(r"NVRTC \d+\.\d+ \(.*\), for sm_75, sm_90a$", lines[0])
    figures = {row[0]: row[1:] for row in (re.split("  +", line) for line in lines[2:-1])}
    assert list(figures) == ["clean[float]", "clean[float16]", "clean[bfloat16]", "dynamic_shared"]
    threads, registers, shared, occupancy, slow = figures["clean[float16]"]
    assert (threads, shared, slow) == ("256", "0", "none")
    assert re.fullmatch(r"\d+-\d+", registers) and occupancy == "100%"
    assert figures["dynamic_shared"][2] == "0 + 4 * n"
    assert lines[-1] == "all rules hold in 8 compilations of 2 files"


@needs_nvrtc
def test_the_second_run_compiles_nothing_and_prints_the_same(plant, capsys):
    plant("clean", axes={"T": FLOATS})
    first = run(capsys, "compile", "--arch", "sm_80")
    assert len(plant.compiled) == 3
    assert run(capsys, "compile", "--arch", "sm_80") == first
    assert len(plant.compiled) == 3


@needs_nvrtc
def test_each_violation_is_a_line_and_the_exit_code_is_not_zero(plant, capsys):
    plant("clean", axes={"T": ("float",)})
    plant("error")
    plant("stack")
    plant("dynamic_shared", shared="80 * 1024")
    code, lines, err = run(capsys, "compile", "--arch", "sm_75,sm_80,sm_90a")
    assert code == BAD_INPUT
    dynamic, error, *stack = violations(lines)
    assert dynamic == "violation: dynamic_shared on sm_75: 81,920 bytes of shared memory a block; sm_75 has 65,536"
    assert error == (
        'violation: gate_error on sm_75, sm_80, sm_90a: kernels/gate_error.cu:6: identifier "nowhere" is undefined'
    )
    assert stack and all(line.startswith("violation: stack on sm_") for line in stack)
    assert err == f"bp: error: {2 + len(stack)} violations in 12 compilations\n"
    rows = {line.split()[0]: line for line in lines}
    assert "does not compile" in rows["error"]
    assert rows["stack"].endswith("64 bytes") and rows["clean[float]"].endswith("none")


@needs_nvrtc
def test_a_file_that_nothing_declares_is_a_violation_of_the_whole(plant, capsys, tmp_path):
    plant("stack", waiver="a reason")
    shutil.copy(FOLDER / "gate_clean.cu", tmp_path / "kernels")
    code, lines, _ = run(capsys, "compile", "--arch", "sm_80")
    (line,) = violations(lines)
    assert code == BAD_INPUT and line.startswith("violation: gate_clean.cu: no Source in bp/cuda declares this file")
    assert run(capsys, "compile", "--arch", "sm_80", "--family", "gate")[0] == 0


@needs_nvrtc
def test_without_nvdisasm_it_says_what_was_not_checked(plant, capsys, monkeypatch):
    monkeypatch.setattr(disassembler, "find", lambda: None)
    plant("scalar", streaming=True)
    assert main(["kernels", "compile", "--arch", "sm_80"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == (
        "not checked: whether streaming kernels move 128 bits at a time; that takes pip install nvidia-cuda-nvdisasm"
    )


@needs_nvrtc
@needs_nvdisasm
def test_with_nvdisasm_narrow_accesses_are_a_violation(plant, capsys):
    plant("scalar", streaming=True)
    code, lines, _ = run(capsys, "compile", "--arch", "sm_80")
    assert code == BAD_INPUT and "without 128-bit loads and stores" in violations(lines)[0]


@needs_nvrtc
def test_sample(plant, capsys):
    plant("clean", axes={"T": FLOATS})
    code, lines, _ = run(capsys, "compile", "--sample")
    assert code == 0 and lines[-1] == "all rules hold in 11 compilations of 1 files"


@needs_nvrtc
def test_family(plant, capsys):
    plant("clean", axes={"T": ("float",)})
    plant("stack")
    code, lines, _ = run(capsys, "compile", "--arch", "sm_80", "--family", "gate_clean")
    assert code == 0 and len(lines) == 4
    assert len(run(capsys, "list", "--family", "gate")[1]) == 3


def test_without_nvrtc_one_line_says_what_to_install(plant, capsys, monkeypatch):
    def missing():
        raise ConfigurationError("compiling CUDA kernels takes NVRTC, which was not found: pip install it")

    monkeypatch.setattr(nvrtc, "library", missing)
    code, lines, err = run(capsys, "compile")
    assert (code, lines) == (BAD_INPUT, []) and err.count("\n") == 1 and "pip install" in err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["build"], "expected bp kernels list or bp kernels compile, got 'build'"),
        (["compile", "--arch", "sm_70"], "the limits of sm_70 are not known"),
        (["compile", "--arch", "90"], "expected an architecture such as sm_80 or sm_90a, got '90'"),
        (["compile", "--arch", "sm_80,"], "expected an architecture such as sm_80 or sm_90a, got ''"),
        (["list", "--family", "nothing"], "no kernels of a family 'nothing' (files: activation, "),
        (["list", "--sample"], "unrecognized arguments: --sample"),
    ],
)
def test_bad_arguments(capsys, argv, text):
    code, _, err = run(capsys, *argv)
    assert code == BAD_INPUT and text in err and err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help(capsys, argv):
    code, lines, _ = run(capsys, *argv)
    assert code == 0 and "\n".join(lines) == kernels.HELP
