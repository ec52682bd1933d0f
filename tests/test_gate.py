"""The compile gate: each rule is broken by a kernel that was planted for it, and a clean kernel breaks none."""

import re

import pytest
from planted import needs_nvdisasm, needs_nvrtc, use_kernels_of

from bp.cuda import disassembler, gate, nvrtc
from bp.cuda.catalogue import dynamic_shared, load, threads, variant_name
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.resources import LIMITS, Resources, limits, occupancy, parse
from bp.errors import CompilationError, ConfigurationError


def declare(name, *, axes=None, **kernel):
    """The only unit, for float where T is an axis, of tests/kernels/gate_NAME.cu, whose kernel is called NAME."""
    source = Source(f"gate_{name}", **(axes or {}))
    source.kernel(name, flops="0", bytes="0", **kernel)
    return next(source.units())


def broken(unit, architecture="sm_80"):
    """What the gate says of a unit, in one string a violation."""
    return [violation.what for violation in gate.check_unit(unit, architecture).violations]


# One planted kernel for each rule ---------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_a_clean_kernel_breaks_no_rule(planted, architecture):
    result = gate.check_unit(declare("clean", axes={"T": ("bfloat16",)}, streaming=True), architecture)
    assert result.violations == []
    taken = result.measurement.resources["clean"]
    assert 8 <= taken.registers <= 64 and (taken.stack, taken.spill_stores, taken.spill_loads) == (0, 0, 0)


@needs_nvrtc
def test_a_compile_error_has_file_and_line(planted):
    assert broken(declare("error")) == ['kernels/gate_error.cu:6: identifier "nowhere" is undefined']


@needs_nvrtc
def test_a_missing_header_is_named(planted):
    (what,) = broken(declare("header"))
    assert what.startswith('kernels/gate_header.cu:2: could not open source file "nowhere.cuh"')


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_spills(planted, architecture):
    (what,) = broken(declare("spill"), architecture)
    stack, stores, loads = map(int, re.match(r"(\d+) bytes of stack, (\d+) .* stores, (\d+) ", what).groups())
    assert stack > 0 and stores > 0 and loads > 0 and "at 64 registers" in what


@needs_nvrtc
def test_a_stack_frame_without_a_spill(planted):
    (what,) = broken(declare("stack"))
    assert what.startswith("64 bytes of stack, 0 of spill stores, 0 of spill loads a thread")


@needs_nvrtc
def test_a_waiver_permits_them(planted):
    assert broken(declare("stack", waiver="the array is indexed by data")) == []


@needs_nvrtc
def test_static_shared_memory(planted):
    (what,) = broken(declare("static_shared"))
    assert what.startswith("kernels/gate_static_shared.cu: static_shared declares 60,000 bytes of shared memory")


@needs_nvrtc
@pytest.mark.parametrize(("kb", "fits"), [(64, 7), (65, 6), (99, 6), (100, 3), (163, 3), (164, 2), (227, 2), (228, 0)])
def test_dynamic_shared_memory_has_the_limit_of_the_architecture(planted, kb, fits):
    unit = declare("dynamic_shared", shared=f"{kb} * 1024")
    found = {name: broken(unit, name) for name in nvrtc.ARCHITECTURES}
    assert sum(not what for what in found.values()) == fits
    for name, what in found.items():
        if what:
            assert what == [
                f"{kb * 1024:,} bytes of shared memory a block; {name} has {limits(name).shared_per_block:,}"
            ]


@needs_nvrtc
def test_advice_of_ptxas_that_is_no_spill(planted):
    (what,) = broken(declare("warning"), "sm_90a")
    assert "(C7508)" in what and "'setmaxnreg' ignored" in what


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_a_streaming_kernel_of_single_elements(planted, architecture):
    (what,) = broken(declare("scalar", streaming=True), architecture)
    assert what.startswith("a streaming kernel without 128-bit loads and stores; it has LDG.E")


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_a_streaming_kernel_that_writes_single_elements(planted, architecture):
    (what,) = broken(declare("wide_loads", streaming=True), architecture)
    assert what.startswith("a streaming kernel without 128-bit stores; it has LDG.E.128")


@needs_nvrtc
def test_what_is_not_streaming_may_move_single_elements(planted):
    assert broken(declare("scalar")) == []


@needs_nvrtc
def test_a_kernel_that_the_preprocessor_removed(planted):
    unit = declare("clean", axes={"T": ("float",)})
    unit.source.kernel("absent", flops="0", bytes="0")
    assert broken(unit) == ["the file compiles without this kernel, to clean"]


# The cache of facts -----------------------------------------------------------------------------------------


@needs_nvrtc
def test_the_second_time_nothing_is_compiled_or_disassembled(planted, monkeypatch):
    unit = declare("clean", axes={"T": ("float",)}, streaming=True)
    first = gate.check_unit(unit, "sm_80")
    looked = []
    monkeypatch.setattr(disassembler, "instructions", looked.append)
    assert gate.check_unit(unit, "sm_80") == first
    assert (len(planted), looked) == (1, [])


@needs_nvrtc
def test_a_declaration_is_judged_anew_without_compiling(planted):
    assert len(broken(declare("stack"))) == 1
    assert broken(declare("stack", waiver="a reason")) == []
    assert len(planted) == 1


@needs_nvrtc
@pytest.mark.parametrize("text", ["", "{", "[]", '{"resources": {}}', '{"resources": {"stack": {"registers": 3}}}'])
def test_a_damaged_entry_is_measured_again(planted, tmp_path, text):
    first = gate.check_unit(declare("stack"), "sm_80")
    (entry,) = (tmp_path / "cache" / "gate").iterdir()
    entry.write_text(text)
    assert gate.check_unit(declare("stack"), "sm_80").violations == first.violations
    assert entry.read_text() != text


@needs_nvrtc
def test_a_compile_error_is_not_kept(planted, tmp_path):
    for _ in range(2):
        assert len(broken(declare("error"))) == 1
    assert len(planted) == 2 and not (tmp_path / "cache" / "gate").exists()


@needs_nvrtc
def test_without_nvdisasm_the_machine_code_is_not_looked_at(planted, monkeypatch):
    monkeypatch.setattr(disassembler, "find", lambda: None)
    result = gate.check_unit(declare("scalar", streaming=True), "sm_80")
    assert result.violations == [] and result.measurement.instructions is None
    with pytest.raises(CompilationError, match="pip install nvidia-cuda-nvdisasm"):
        disassembler.instructions(b"")


@needs_nvrtc
@needs_nvdisasm
def test_facts_without_machine_code_do_not_stand_in_for_those_with_it(planted, monkeypatch):
    unit = declare("scalar", streaming=True)
    with monkeypatch.context() as without:
        without.setattr(disassembler, "find", lambda: None)
        assert broken(unit) == []
    assert len(broken(unit)) == 1


@needs_nvdisasm
def test_what_nvdisasm_cannot_read():
    with pytest.raises(CompilationError, match="failed"):
        disassembler.instructions(b"not machine code")


@pytest.mark.parametrize(
    ("names", "loads", "stores"),
    [
        ([], False, False),
        (["LDG.E", "STG.E.64"], False, False),
        (["LDG.E.128.CONSTANT", "STG.E.128.STRONG.GPU"], True, True),
        (["LDG.E.128.SYS", "STG.E.U16"], True, False),
        (["LDGSTS.E.BYPASS.128", "STG.E.ENL2.256"], True, True),
        (["LDG.E.U16", "STG.E.128"], False, True),
        (["UTMALDG.2D", "UTMASTG.2D"], True, True),
        (["LDG.E.1280"], False, False),
    ],
)
def test_which_instructions_are_wide(names, loads, stores):
    assert (disassembler.loads_wide(names), disassembler.stores_wide(names)) == (loads, stores)


# What to compile --------------------------------------------------------------------------------------------


def test_all_and_a_sample(planted):
    three, one = Source("gate_clean", T=FLOATS), Source("gate_scalar", least=80)
    everything = list(gate.compilations([three, one], nvrtc.ARCHITECTURES, sample=False))
    assert len(everything) == 3 * 7 + 6
    sample = list(gate.compilations([three, one], nvrtc.ARCHITECTURES, sample=True))
    assert len(sample) == 2 * 3 + 5 + 6 and set(sample) < set(everything)
    assert {architecture for unit, architecture in sample if unit.source is three} == set(nvrtc.ARCHITECTURES)
    assert {unit for unit, architecture in sample if architecture not in ("sm_80", "sm_90a")} >= {
        three.unit({"T": name}) for name in FLOATS
    }


def test_files_and_declarations_agree(planted, monkeypatch, tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    text = 'extern "C" __global__ __launch_bounds__(32) void {}(const T* x, int64 n) {{}}\n'
    (folder / "norm.cu").write_text(text.format("one") + text.format("two"))
    (folder / "lost.cu").write_text(text.format("three"))
    use_kernels_of(folder, monkeypatch)
    source = Source("norm", T=FLOATS)
    source.kernel("one", flops="n * m", bytes="max(n, 1) * (1 + given(x, y)) * T", shared="x")
    source.kernel("four", flops="0", bytes="0")
    found = [*gate.judge_files([source]), *gate.judge_declarations([source, Source("pool")])]
    assert [(violation.where, violation.what) for violation in found] == [
        ("lost.cu", "no Source in bp/cuda declares this file, so nothing can launch its kernels"),
        ("norm.cu", "kernel two is not declared in bp/cuda, so nothing can launch it"),
        ("norm.cu", "one: no such parameter in its formula of flops: m"),
        ("norm.cu", "one: no such parameter in its formula of bytes: y"),
        ("norm.cu", "one: no such parameter in its formula of shared: x"),
        ("norm.cu", "kernel four is declared in bp/cuda, but not in the file"),
        ("pool.cu", "declared in bp/cuda, but there is no such file"),
    ]


def test_the_kernels_of_bp_and_their_declarations_agree():
    assert [*gate.judge_files(load()), *gate.judge_declarations(load())] == []


def test_threads_and_shared_memory_of_a_declaration(planted):
    source = Source("gate_clean", T=("float16",), THREADS=("128",))
    fixed = source.kernel("clean", flops="0", bytes="0", shared="32 * T * max(THREADS, 64)")
    unit = next(source.units())
    assert dynamic_shared(fixed, unit) == 32 * 2 * 128
    assert variant_name(fixed, unit) == "clean[float16, 128]"
    assert dynamic_shared(source.kernel("clean", flops="0", bytes="0", shared="4 * n"), unit) is None
    assert threads(fixed, unit) == 256  # of the constexpr in the file


# Registers, shared memory, occupancy --------------------------------------------------------------------------

LOG = """ptxas info    : 8 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 376 bytes cmem[0]
ptxas info    : Function properties for helper
ptxas         .     32 bytes stack frame, 2 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 356 bytes cmem[0]
"""


def test_the_log_is_read_kernel_by_kernel():
    assert parse(LOG) == {"first": Resources(40, 32, 6, 8, 1024), "second": Resources(12, 0, 0, 0, 0)}
    assert parse("") == {}


@pytest.mark.parametrize("lost", ["Used 12 registers", "0 bytes stack frame"])
def test_a_log_that_lacks_a_figure_is_no_clean_one(lost):
    with pytest.raises(ConfigurationError, match="does not say what second takes"):
        parse(LOG.replace(lost, "something else"))


# (compute capability, registers, threads, shared memory) -> blocks, as cuda_occupancy.h of CUDA 12.9 has them.
BLOCKS = """
75 33 160 8192 6
75 40 160 1024 6
75 30 256 0 4
75 255 128 8192 2
75 41 512 65536 1
75 255 384 49152 0
75 16 32 0 16
80 30 1024 65536 2
80 30 64 20000 7
80 16 768 20000 2
80 16 96 20000 7
80 41 64 8192 18
80 255 384 65536 0
80 16 32 0 32
80 40 96 0 16
80 96 32 0 20
75 96 96 0 6
86 33 512 0 3
86 255 32 8192 8
86 168 96 100000 1
86 16 512 20000 3
86 32 768 8192 2
86 255 384 1024 0
86 16 32 0 16
89 64 768 49152 1
89 40 384 0 4
89 33 256 8192 6
89 168 160 65536 1
89 32 96 0 16
89 96 768 49152 0
89 16 32 0 24
90 32 1024 100000 2
90 32 160 8192 12
90 255 256 1024 1
90 255 128 20000 2
90 16 96 200000 1
90 255 1024 100000 0
90 16 32 0 32
100 65 96 200000 1
100 128 160 100000 2
100 32 1024 49152 2
100 128 160 0 3
100 33 32 200000 1
100 96 1024 65536 0
100 16 32 0 32
120 32 64 0 24
120 33 1024 49152 1
120 33 512 0 3
120 96 64 1024 10
120 128 384 49152 1
120 168 512 100000 0
120 16 32 0 24
"""


@pytest.mark.parametrize("row", BLOCKS.split("\n")[1:-1])
def test_occupancy_is_that_of_nvidia(row):
    number, registers, block, shared, blocks = map(int, row.split())
    architecture = next(name for name in nvrtc.ARCHITECTURES if nvrtc.capability(name) == number)
    taken = Resources(registers, 0, 0, 0, shared)
    assert occupancy(taken, block, architecture) == blocks * block / LIMITS[number].threads
    dynamic = Resources(registers, 0, 0, 0, 0)
    assert occupancy(dynamic, block, architecture, shared) == occupancy(taken, block, architecture)


def test_limits_of_an_unknown_architecture():
    with pytest.raises(ConfigurationError, match="sm_70 are not known"):
        limits("sm_70")
