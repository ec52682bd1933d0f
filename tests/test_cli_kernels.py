"""bp kernels: what it lists, what it prints of compilations, and its exit code."""

import re
import shutil
from types import SimpleNamespace

import pytest
from planted import FOLDER, needs_nvdisasm, needs_nvrtc, use_kernels_of

from bp.bench.products import LinearLayer
from bp.bench.results import About, Limits, Results, write_json
from bp.cli import BAD_INPUT, explain, kernels, main
from bp.cuda import choice, disassembler, measurement, nvrtc, tuning
from bp.cuda.choice import Choice
from bp.cuda.kernel import FLOATS, SOURCES, Source
from bp.cuda.plan import device as plan
from bp.cuda.tuning import Entry, Table
from bp.errors import ConfigurationError


@pytest.fixture
def plant(planted, monkeypatch, tmp_path):
    """plant(name, ...) makes tests/kernels/gate_NAME.cu, with a kernel NAME, one of the declared files."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    use_kernels_of(folder, monkeypatch)

    def one(name, *, axes=None, least=75, least_of=None, only=None, **kernel):
        shutil.copy(FOLDER / f"gate_{name}.cu", folder)
        source = Source(f"gate_{name}", least=least, least_of=least_of, only=only, **(axes or {}))
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
    plant("stack", axes={"T": FLOATS}, least_of={"float": 80, "bfloat16": 80, "float16": 89})
    plant("error", only=90)
    code, lines, _ = run(capsys, "list")
    later = "sm_75, float and bfloat16 sm_80, float16 sm_89"
    assert code == 0
    assert [re.split("  +", line) for line in lines] == [
        ["kernel", "file", "from", "FLOPs", "bytes", "variants"],
        ["clean", "gate_clean.cu", "sm_75", "n", "2 * n * T", "T = float, float16, bfloat16"],
        ["error", "gate_error.cu", "sm_90 only", "0", "0"],
        ["scalar", "gate_scalar.cu", "sm_80", "0", "0"],
        ["stack", "gate_stack.cu", later, "0", "0", "T = float, float16, bfloat16"],
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
        (["build"], "expected bp kernels list, compile or explain, got 'build'"),
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


# bp kernels explain ----------------------------------------------------------------------------------------


def explained(capsys, *argv):
    """The paragraphs that it prints, the first of which says what is explained."""
    code, lines, err = run(capsys, "explain", *argv)
    assert (code, err) == (0, "") and max(map(len, lines)) <= 100
    return "\n".join(lines).split("\n\n")


def rows_of(paragraph):
    """What stands behind each label, lines that go on joined."""
    found = {}
    for line in paragraph.splitlines()[1:]:
        label, text = line[:15].strip(), line[15:].strip()
        if label:
            found[label] = text
        else:
            last = list(found)[-1]
            found[last] += f" | {text}" if line[15] != " " else f" {text}"
    return found


def test_explain_the_three_products_of_a_linear_layer(capsys, force):
    force("linear", "tiled")
    head, *products = explained(capsys, "linear", "4096", "2048", "1024", "bf16", "--arch", "sm_90a")
    assert head.splitlines() == [
        "linear, 4096 rows, 2048 outputs, 1024 inputs, in bf16",
        "on sm_90a, H200 SXM by its data sheet: 132 multiprocessors, 989 TFLOP/s, 4.80 TB/s",
    ]
    assert [paragraph.splitlines()[0] for paragraph in products] == [
        "nt: y (4096, 2048) = x W^T, sums of 1,024 terms",
        "nn: dx (4096, 1024) = dy W, sums of 2,048 terms",
        "tn: dW (2048, 1024) = dy^T x, sums of 4,096 terms",
    ]
    rows = rows_of(products[0])
    assert (rows["rung"], rows["because"]) == ("tiled", "BP_LINEAR asks for it")
    assert rows["alignment"] == "rows at multiples of 16 bytes" and rows["depth"] == "1,024, whole"
    assert rows["kernel"] == "gemm_nt[bfloat16], 2,048 blocks of 256 threads"
    # 2 * 4096 * 2048 * 1024; (4096 * 1024 + 2048 * 1024 + 4096 * 2048) * 2 bytes
    assert rows["work"] == "17.2 GFLOP, 29.4 MB, 585 FLOP a byte"
    assert rows["at best"] == "17.4 µs for the arithmetic, 6.12 µs for the bytes, by the data sheet"
    assert "cublas" in rows["passed over"] and "bias" not in rows
    assert rows_of(products[2])["bias"] == "its gradient comes with this product"


def test_explain_a_cut_depth(capsys, force):
    force("linear", "tiled")
    _, product = explained(capsys, "linear", "9000", "10", "64", "fp32", "--way", "tn", "--arch", "sm_80")
    rows = rows_of(product)
    parts, part = choice.cut(1, 9000)
    assert parts > 1 and rows["depth"] == f"9,000, in {parts} parts of {part} that add_many_parts adds in a fixed order"
    assert rows["kernel"] == f"gemm_tn[float], {parts} blocks of 256 threads" and "for the parts" in rows["work"]


def test_explain_says_why_by_the_rules(capsys):
    _, product = explained(capsys, "linear", "100", "70", "3", "fp32", "--way", "nt", "--arch", "sm_80")
    rows = rows_of(product)
    assert rows["rung"] == "naive"
    assert rows["because"] == "the depth is 4 at most (a built-in rule; bp tune measures)"
    assert "a library: taken where BP_LINEAR=cublas or a tuned table says so" in rows["passed over"]
    assert "comes after naive in the table" in rows["passed over"]


def test_explain_what_a_tuned_table_has(capsys, tmp_path, monkeypatch):
    problem = LinearLayer(64, 32, 16).task("nn", plan, "bf16").problem
    found = Entry(Choice("naive"), 1e-6, Choice("tiled"), 2e-6, (64, 16, 32))
    table = Table(80, "a GPU", tuning.version(), {tuning.shape_class(problem): found})
    tuning.write(tmp_path / "table.json", table)
    monkeypatch.setenv("BP_TUNING", str(tmp_path / "table.json"))
    choice.forget()
    _, product = explained(capsys, "linear", "64", "32", "16", "bf16", "--way", "nn", "--arch", "sm_80")
    monkeypatch.undo()
    choice.forget()
    rows = rows_of(product)
    assert rows["rung"] == "naive"
    assert rows["because"] == f"it was measured to be the fastest for products like this (tuned table {table.hash})"
    assert "the tuned table has naive" in rows["passed over"]


@pytest.mark.parametrize(("alignment", "rows"), [("16", 16), ("4", 4), ("2", 2)])
def test_explain_other_alignments(capsys, alignment, rows):
    given = ("linear", "64", "32", "16", "fp16", "--way", "nt", "--arch", "sm_80", "--alignment", alignment)
    _, product = explained(capsys, *given)
    assert rows_of(product)["alignment"] == f"rows at multiples of {rows} bytes"


def test_explain_a_convolution(capsys, force):
    force("conv", "tiled")
    given = ("conv", "8", "28", "28", "16", "32", "3x5", "--padding", "1x2", "--stride", "2x1", "--groups", "2")
    head, *products = explained(capsys, *given, "tf32", "--arch", "sm_80")
    assert " ".join(head.splitlines()[0:2]).startswith("conv, 8 images 28x28x16, 32 outputs, kernel 3x5, stride 2x1,")
    assert [paragraph.partition(":")[0] for paragraph in products] == [
        *("forward", "backward_input", "backward_parameters"),
    ]
    assert products[0].splitlines()[0] == "forward: y (8, 14, 28, 32), sums of 120 terms"
    assert rows_of(products[0])["kernel"].startswith("conv_forward[float], ")
    assert rows_of(products[0])["alignment"] == "pixels at multiples of 16 bytes"
    assert rows_of(products[2])["bias"] == "its gradient takes a launch of its own"  # of numbers that tf32 has rounded


def test_explain_for_two_architectures_where_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(explain.gpu, "problem", lambda: "no GPU")
    paragraphs = explained(capsys, "linear", "64", "32", "16", "fp16", "--way", "nt")
    assert [line for part in paragraphs for line in part.splitlines() if line.startswith("on sm_")] == [
        "on sm_80, A100 SXM 80 GB by its data sheet: 108 multiprocessors, 312 TFLOP/s, 2.04 TB/s",
        "on sm_90a, H200 SXM by its data sheet: 132 multiprocessors, 989 TFLOP/s, 4.80 TB/s",
    ]


def test_explain_for_the_gpu_that_is_here(capsys, monkeypatch, tmp_path):
    here = SimpleNamespace(architecture="sm_90a", model="NVIDIA H100", multiprocessors=114)
    monkeypatch.setattr(explain.gpu, "problem", lambda: None)
    monkeypatch.setattr(explain.gpu, "device", lambda: here)
    given = ("linear", "64", "32", "16", "fp16", "--way", "nt")
    head = explained(capsys, *given)[0]
    figures = "114 multiprocessors; 989 TFLOP/s, 4.80 TB/s by the data sheet of the H200 SXM"
    assert " ".join(head.split()).endswith(f"on sm_90a, the NVIDIA H100 here: {figures}")
    limits = Limits([(1e6, 2e12), (1e9, 3e12)], {"fp16": 7e14}, 1e-6)
    path = results_of(tmp_path, limits, "cuda", {"GPU": "NVIDIA H100 PCIe"})
    head, product = explained(capsys, *given, "--limits", path)
    measured = "114 multiprocessors; 700 TFLOP/s, 3.00 TB/s as measured on NVIDIA H100 PCIe"
    assert " ".join(head.split()).endswith(f"on sm_90a, NVIDIA H100: {measured}")
    assert rows_of(product)["at best"].endswith("as measured on NVIDIA H100 PCIe")


def results_of(folder, limits, device, machine):
    about = About(device, machine, {}, "unknown", "2026-01-01T00:00:00+00:00", "bp bench", {})
    write_json(Results(about, limits, []), folder / "limits.json")
    return str(folder / "limits.json")


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_limits_of_a_cpu_say_nothing_of_a_gpu(capsys, tmp_path, device):
    path = results_of(tmp_path, Limits([(1e9, 1e10)], {"fp32": 1e11}), device, {"CPU": "some"})
    code, lines, err = run(capsys, "explain", "linear", "8", "8", "8", "fp32", "--limits", path)
    assert (code, lines) == (BAD_INPUT, [])
    assert err == f"bp: error: {path}: expected the limits of device 'cuda', got those of '{device}'\n"


def test_limits_that_were_not_measured(capsys, tmp_path):
    path = results_of(tmp_path, Limits(), "cuda", {"GPU": "NVIDIA H200"})
    head, product = explained(
        capsys, "linear", "8", "8", "8", "fp32", "--way", "nt", "--arch", "sm_80", "--limits", path
    )
    assert head.splitlines()[1].endswith("108 multiprocessors; no limits as measured on NVIDIA H200")
    assert rows_of(product)["at best"] == "not known: the file has no limits"


@pytest.mark.parametrize(
    ("given", "variable", "value", "text"),
    [
        (["linear", "8", "8", "8", "fp32"], "BP_LINEAR", "foo", "BP_LINEAR expected one of .*, got 'foo'"),
        (
            ["linear", "8", "8", "8", "fp32"],
            "BP_LINEAR",
            "mma:",
            "BP_LINEAR=mma cannot compute a product in fp32 .*: t",
        ),
        (["linear", "8", "8", "8", "fp32"], "BP_TUNING", "missing.json", "missing.json: no such file"),
        (
            ["linear", "8", "8", "8", "fp32", "--arch", "sm_90a,,"],
            "BP_LINEAR",
            "",
            "an architecture such as .*, got ''",
        ),
        (["linear", "8", "8", "8", "fp32", "--arch", ""], "BP_LINEAR", "", "an architecture such as .*, got ''"),
        (
            ["linear", "8", "8", "8", "bf16", "--arch", "sm_90a,sm_75"],
            "BP_LINEAR",
            "",
            "--arch sm_75: bf16 needs compute",
        ),
        (["conv", "1", "2", "2", "4", "4", "3", "bf16"], "BP_CONV", "", "at least as large as the kernel"),
    ],
)
def test_what_is_refused_prints_nothing_else(capsys, monkeypatch, given, variable, value, text):
    monkeypatch.setenv(variable, value)
    choice.forget()
    code, lines, err = run(capsys, "explain", *given)
    monkeypatch.undo()
    choice.forget()
    assert (code, lines) == (BAD_INPUT, []) and re.search(f"^bp: error: .*{text}", err) and err.count("\n") == 1


def test_a_stale_table_is_a_note_in_one_line(capsys, tmp_path, monkeypatch):
    problem = LinearLayer(64, 32, 16).task("nn", plan, "bf16").problem
    found = Entry(Choice("naive"), 1e-6, Choice("tiled"), 2e-6, (64, 16, 32))
    path = tmp_path / "table.json"
    tuning.write(path, Table(80, "a GPU", "older", {tuning.shape_class(problem): found}))
    monkeypatch.setenv("BP_TUNING", str(path))
    choice.forget()
    code, _, err = run(capsys, "explain", "linear", "64", "32", "16", "bf16", "--arch", "sm_80,sm_90a")
    monkeypatch.undo()
    choice.forget()
    text = f"{path} was measured with other kernels than these and is not used: run bp tune again"
    assert (code, err) == (0, f"bp: note: {text}\n")


@needs_nvrtc
def test_explain_knows_how_many_blocks_run_at_once_where_the_kernel_was_compiled(capsys, force, tmp_path, monkeypatch):
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path))
    force("linear", "naive")
    given = ("linear", "64", "32", "16", "fp32", "--way", "nt", "--arch", "sm_80")
    assert "or more (by its launch bounds)" in rows_of(explained(capsys, *given)[1])["waves"]
    measurement.measure(SOURCES["linear_naive"].unit({"T": "float"}), "sm_80")
    waves = rows_of(explained(capsys, *given)[1])["waves"]
    assert re.fullmatch(
        r".* of \d+ blocks: \d+ on each of 108 multiprocessors, by its registers and shared memory", waves
    )


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "the following arguments are required"),
        (["linear", "1", "2", "3"], "expected linear M N K DTYPE, or conv"),
        (["pool", "1", "2", "3", "fp32"], "expected linear M N K DTYPE, or conv"),
        (["linear", "1", "2", "x", "fp32"], "K expected a whole number of at least 1, got 'x'"),
        (["linear", "1", "2", "3", "float"], "expected a DTYPE of fp32, tf32, fp16, bf16 at the end, got 'float'"),
        (["linear", "1", "2", "3", "fp32", "--way", "tt"], "--way expected one of nt, nn, tn for linear, got 'tt'"),
        (["linear", "1", "2", "3", "fp32", "--alignment", "2"], "--alignment expected one of 16, 4, got 2"),
        (["linear", "1", "2", "3", "bf16", "--arch", "sm_75"], "bf16 needs compute capability 8.0"),
        (["linear", "1", "2", "3", "bf16", "--arch", "sm_70"], "no GPU of sm_70 is known here"),
        (["linear", "1", "2", "3", "bf16", "--groups", "2"], "--groups is of a convolution, and this is linear"),
        (["linear", "1", "2", "3", "bf16", "--limits", "missing.json"], "missing.json"),
        (["conv", "1", "8", "8", "4", "4", "3", "bf16", "--alignment", "16"], "--alignment is of a linear layer"),
        (["conv", "1", "2", "2", "4", "4", "3", "bf16"], "conv"),
        (["conv", "1", "8", "8", "4", "4", "3x", "bf16"], "KERNEL expected a whole number of at least 1, got ''"),
    ],
)
def test_what_cannot_be_explained_is_one_line(capsys, argv, text):
    code, _, err = run(capsys, "explain", *argv)
    assert code == BAD_INPUT and text in err and err.count("\n") == 1
