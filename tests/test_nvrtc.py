"""NVRTC without CuPy: machine code for GPUs that are not there, errors with file and line, and the cache of cubins."""

import ctypes
import json
import shutil
import subprocess
import sys
import threading

import pytest
from planted import FOLDER, needs_nvdisasm, needs_nvrtc

from bp.cuda import disassembler, nvrtc
from bp.cuda.files import kernel_folder
from bp.errors import CompilationError, ConfigurationError

ELF = b"\x7fELF"
KERNEL = 'extern "C" __global__ void k(float* y) { y[threadIdx.x] = VALUE; }\n'


@pytest.fixture
def no_library(monkeypatch):
    """A machine whose loader finds no shared library."""

    def fail(name, *args):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    nvrtc.library.cache_clear()
    yield
    nvrtc.library.cache_clear()


def compile_text(text, *options):
    return nvrtc.compile(text, "kernels/k.cu", ["-arch=sm_80", *options], {})


# The library ----------------------------------------------------------------------------------------------


def test_without_nvrtc_one_line_says_what_to_install(no_library):
    assert nvrtc.find() is None
    for use in (nvrtc.version, nvrtc.capabilities.__wrapped__, lambda: compile_text(KERNEL)):
        with pytest.raises(ConfigurationError) as caught:
            use()
        assert "\n" not in str(caught.value) and "pip install nvidia-cuda-nvrtc-cu12" in str(caught.value)


class Fake:
    """An NVRTC of some version."""

    def __init__(self, major):
        self.major = major

    def nvrtcVersion(self, major, minor):
        major._obj.value, minor._obj.value = self.major, 1
        return 0


def test_the_driver_bounds_the_version(monkeypatch):
    monkeypatch.setattr(nvrtc, "libraries", lambda: iter(["13", "12"]))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Fake(int(name)))
    assert nvrtc.find().version == (13, 1)
    assert nvrtc.find(13).version == (13, 1)
    assert nvrtc.find(12).version == (12, 1)
    assert nvrtc.find(11) is None


def test_libraries_of_packages_come_first_and_toolkits_follow(monkeypatch, tmp_path):
    for name in ("site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "site/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "toolkit/lib64").mkdir(parents=True)
    (tmp_path / "toolkit/lib64/libnvrtc.so.13").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path / "absent")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    found = list(nvrtc.libraries())
    assert found[0].endswith("libnvrtc.so.12") and found[1].endswith("libnvrtc.so.13")
    assert not any("builtins" in name for name in found)


@pytest.mark.parametrize(("name", "number"), [("sm_75", 75), ("sm_90a", 90), ("sm_120", 120), ("sm_100f", 100)])
def test_capability(name, number):
    assert nvrtc.capability(name) == number


@pytest.mark.parametrize("name", ["", "80", "sm_", "compute_80", "sm_80 ", "sm_9O"])
def test_what_is_no_architecture(name):
    with pytest.raises(ConfigurationError, match="expected an architecture such as"):
        nvrtc.capability(name)


# Compiling ------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_machine_code_and_a_log_with_registers():
    compiled = compile_text(KERNEL, "-DVALUE=1", "--ptxas-options=-v")
    assert compiled.cubin.startswith(ELF)
    assert "entry function 'k' for 'sm_80'" in compiled.log and "registers" in compiled.log
    # A cubin ends with its program headers: those lie inside, to the last byte.
    start, count, size = (int.from_bytes(compiled.cubin[a:b], "little") for a, b in ((32, 40), (56, 58), (54, 56)))
    assert len(compiled.cubin) == start + count * size


@needs_nvrtc
def test_an_error_names_file_and_line_and_carries_the_log():
    with pytest.raises(CompilationError) as caught:
        compile_text("\n\n" + KERNEL)
    first, _, log = str(caught.value).partition("\n")
    assert first == 'kernels/k.cu:3: identifier "VALUE" is undefined'
    assert "1 error detected" in log


@needs_nvrtc
def test_a_header_is_found_by_its_name_and_an_error_in_it_is_its_own():
    source = '#include "h.cuh"\n' + KERNEL
    assert nvrtc.compile(source, "k.cu", ["-arch=sm_75"], {"h.cuh": "#define VALUE 2.0f\n"}).cubin.startswith(ELF)
    with pytest.raises(CompilationError, match=r"^h\.cuh:2: "):
        nvrtc.compile(source, "k.cu", ["-arch=sm_75"], {"h.cuh": "#define VALUE 2.0f\nint int;\n"})


@needs_nvrtc
def test_a_bad_option_is_named():
    with pytest.raises(CompilationError, match="--no-such-option"):
        compile_text(KERNEL, "--no-such-option")


@needs_nvrtc
def test_threads_compile_beside_each_other():
    results = {}

    def work(value):
        results[value] = compile_text(KERNEL, f"-DVALUE={value}.0f").cubin

    workers = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(results.values())) == 8
    assert results[3] == compile_text(KERNEL, "-DVALUE=3.0f").cubin  # the same text gives the same machine code


# Units and their cache --------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("element", ["float", "float16", "bfloat16"])
def test_the_headers_compile_for_every_architecture_and_type(planted, architecture, element):
    cubin = nvrtc.compile_unit(FOLDER / "gate_clean.cu", {"T": element}, architecture)
    assert cubin.read_bytes().startswith(ELF)
    assert f"'clean' for '{architecture}'" in nvrtc.read_log(cubin)


@needs_nvrtc
def test_the_second_time_nothing_is_compiled(planted):
    path = FOLDER / "gate_clean.cu"
    first = nvrtc.compile_unit(path, {"T": "float"}, "sm_80")
    assert nvrtc.compile_unit(path, {"T": "float"}, "sm_80") == first
    assert planted == ["kernels/gate_clean.cu"]
    others = {nvrtc.compile_unit(path, {"T": "float16"}, "sm_80"), nvrtc.compile_unit(path, {"T": "float"}, "sm_90a")}
    assert len(planted) == 3 and len(others | {first}) == 3


@needs_nvrtc
def test_another_process_compiles_nothing(planted, tmp_path):
    path = FOLDER / "gate_clean.cu"
    cubin = nvrtc.compile_unit(path, {"T": "float"}, "sm_80")
    code = (
        "import sys, pathlib; from bp.cuda import nvrtc; nvrtc.compile = None;"
        "print(nvrtc.compile_unit(pathlib.Path(sys.argv[1]), {'T': 'float'}, 'sm_80'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (str(cubin), 0), done.stderr


@needs_nvrtc
@pytest.mark.parametrize("damage", ["empty", "short", "one bit", "no record", "record of another", "no json"])
def test_a_damaged_entry_is_compiled_again(planted, damage):
    path = FOLDER / "gate_clean.cu"
    cubin = nvrtc.compile_unit(path, {"T": "float"}, "sm_80")
    whole, record = cubin.read_bytes(), cubin.with_suffix(".json")
    if damage == "empty":
        cubin.write_bytes(b"")
    elif damage == "short":
        cubin.write_bytes(whole[:-1])
    elif damage == "one bit":
        cubin.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "no record":
        record.unlink()
    elif damage == "record of another":
        record.write_text(json.dumps({"sha256": "0", "log": ""}))
    else:
        record.write_text("{")
    assert nvrtc.compile_unit(path, {"T": "float"}, "sm_80").read_bytes() == whole
    assert len(planted) == 2
    assert "'clean'" in nvrtc.read_log(cubin)


@needs_nvrtc
def test_a_failed_compilation_leaves_nothing_in_the_cache(planted, tmp_path):
    with pytest.raises(CompilationError, match=r"^kernels/gate_error\.cu:6: .*\nNVRTC .* said of float16, sm_80:"):
        nvrtc.compile_unit(FOLDER / "gate_error.cu", {"T": "float16"}, "sm_80")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@needs_nvrtc
def test_the_key_covers_headers_macros_options_architecture_and_version(monkeypatch, tmp_path):
    def key(folder, element="float", architecture="sm_80"):
        return nvrtc.unit_key(tmp_path / folder / "kernels/activation.cu", {"T": element}, architecture)

    for folder in ("a", "b", "c"):
        shutil.copytree(kernel_folder(), tmp_path / folder / "kernels")
    for folder, file in (("b", "include/types.cuh"), ("c", "activation.cu")):
        with (tmp_path / folder / "kernels" / file).open("a") as text:
            text.write("// another\n")
    keys = {key("a"), key("b"), key("c"), key("a", "float16"), key("a", "float", "sm_90a")}
    monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "-G"))
    keys.add(key("a"))
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    keys.add(key("a"))
    assert len(keys) == 7
    assert key("a") == key("a")


@needs_nvrtc
def test_an_architecture_that_this_nvrtc_does_not_know(planted):
    with pytest.raises(ConfigurationError, match="cannot compile for sm_20, only for compute capabilities"):
        nvrtc.compile_unit(FOLDER / "gate_clean.cu", {"T": "float"}, "sm_20")


# The headers ------------------------------------------------------------------------------------------------

HEADERS = sorted(path.name for path in (kernel_folder() / "include").glob("*.cuh"))


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("header", HEADERS)
def test_each_header_compiles_alone(planted, tmp_path, header, architecture):
    path = tmp_path / f"{header}.cu"
    path.write_text(f'#include "{header}"\n#include "{header}"\n' + KERNEL)
    macros = {"TAPS": "3", "STEP": "1"} if header == "depthwise.cuh" else {}
    cubin = nvrtc.compile_unit(path, {"T": "float", "VALUE": "0.0f"} | macros, architecture)
    assert "warning" not in nvrtc.read_log(cubin)


@needs_nvrtc
@pytest.mark.parametrize("architecture", [name for name in nvrtc.ARCHITECTURES if nvrtc.capability(name) >= 80])
def test_every_intrinsic_compiles(planted, architecture):
    log = nvrtc.read_log(nvrtc.compile_unit(FOLDER / "gate_intrinsics.cu", {}, architecture))
    assert "warning" not in log and "C75" not in log


@needs_nvrtc
@needs_nvdisasm
def test_intrinsics_become_the_instructions_that_they_are_for(planted):
    cubin = nvrtc.compile_unit(FOLDER / "gate_intrinsics.cu", {}, "sm_80")
    tool = disassembler.find()
    code = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
    for instruction in (
        "LDGSTS.E.BYPASS.128",
        "LDGSTS.E ",
        "LDGSTS.E.64",
        "LDGDEPBAR",
        "BAR.ARV",
        "LDSM.16.M88 ",
        "LDSM.16.MT88.4",
        "HMMA.16816.F32 ",
        "HMMA.16816.F32.BF16",
        "HMMA.1688.F32.TF32",
    ):
        assert instruction in code, instruction
