"""Arrays that the host cannot compute on, and launches whose arguments are checked."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from table import emulating

import bp
import bp.ops.activation as ops
from bp.cuda import activation as cuda_activation
from bp.cuda import files
from bp.cuda.emulator.device import device as emulator
from bp.cuda.emulator.engine import KernelFault
from bp.cuda.kernel import SOURCES, Kernel, Source, blocks
from bp.cuda.ledger import Ledger
from bp.cuda.plan import device as plan
from bp.cuda.signature import Parameter, signatures, with_includes
from bp.errors import ConfigurationError, DtypeError, ShapeError
from bp.ops.device import find_device, new_control, resolve_precision


def array(*shape, dtype=np.float32):
    return emulator.from_host(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype))


REFUSED = [
    lambda a: np.asarray(a),
    lambda a: np.sum(a),
    lambda a: np.concatenate([a, a]),
    lambda a: np.where(a, a, a),
    lambda a: np.exp(a),
    lambda a: np.ones((2, 3)) + a,
    lambda a: np.float32(2) * a,
    lambda a: a + 1,
    lambda a: a * a,
    lambda a: -a,
    lambda a: a[:, 0],
    lambda a: a[0, 0],
    lambda a: a[::2],
    lambda a: a[np.array([0])],
    lambda a: list(np.nditer(a)),
    lambda a: (a.copy(), "no such method"),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_no_host_arithmetic_hides_a_missing_kernel(index):
    a = array(2, 3)
    with pytest.raises((TypeError, AttributeError)):
        REFUSED[index](a)
    np.testing.assert_array_equal(a.get(), np.arange(6).reshape(2, 3))


def test_views_share_memory_and_keep_it_alive():
    a = array(4, 3)
    row, rows, flat = a[1], a[2:], a.reshape(-1)
    assert (row.shape, rows.shape, flat.shape, a[...].shape) == ((3,), (2, 3), (12,), (4, 3))
    rows[0][...] = array(3)
    flat[:2] = 7.0
    pointer = a.pointer
    del a
    expected = [[7, 7, 2], [3, 4, 5], [0, 1, 2], [9, 10, 11]]
    np.testing.assert_array_equal(flat.get().reshape(4, 3), expected)
    assert row.pointer == pointer + 12 and row.owner is rows.owner
    assert flat.reshape(2, -1).shape == (2, 6) and flat.reshape((3, 4)).strides == (16, 4)
    with pytest.raises(ValueError, match="cannot reshape"):
        flat.reshape(5, 2)
    with pytest.raises(IndexError):
        row[3]


def test_what_a_number_needs():
    assert float(array(1)[:1]) == 0.0 and int(array(2)[1:]) == 1 and array(3).get().dtype == np.float32
    with pytest.raises(TypeError, match="no length"):
        len(emulator.zeros((), np.float64))
    assert repr(array(2)).endswith("device='emulator')")


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool", "float16", "bfloat16"])
def test_host_and_back(dtype):
    host = np.arange(5).astype(bp.ops.array.known_dtype(dtype))
    np.testing.assert_array_equal(emulator.from_host(host).get(), host)
    assert emulator.zeros((0, 3), dtype).get().shape == (0, 3)


def test_a_copy_of_another_shape_is_refused():
    a = array(2, 3)
    with pytest.raises(ShapeError, match=r"expected an array of shape \(2, 3\) to copy, got \(3,\)"):
        emulator.copy(a, np.ones(3))
    with pytest.raises(ShapeError):
        a[...] = array(3, 2)


def test_mixed_devices_dtypes_and_arguments_are_refused_before_anything_runs():
    kernel = cuda_activation._source.kernels["relu_forward"]
    x = array(5)
    with pytest.raises(TypeError, match=r"relu_forward expected 3 arguments \(x, y, n\), got 2"):
        kernel(1, x, x)
    with pytest.raises(DtypeError, match=r"expected y on device 'emulator' like its first array, got a numpy\.nd"):
        kernel(1, x, np.zeros(5, np.float32), 5)
    with pytest.raises(DtypeError, match="expected y of float elements, got float16"):
        kernel(1, x, array(5, dtype=np.float16), 5)
    with pytest.raises(DtypeError, match="compiled for T of float, float16, bfloat16, got int64"):
        kernel(1, array(5, dtype=np.int64), array(5, dtype=np.int64), 5)
    with pytest.raises(DtypeError, match="expected an array of a CUDA device"):
        kernel(1, np.zeros(5, np.float32), x, 5)
    with pytest.raises(DtypeError, match="expected dy of dtype float32"):
        ops.relu_backward(array(5, dtype=np.float64), x)
    np.testing.assert_array_equal(x.get(), np.arange(5))


def test_a_kernel_that_is_not_there():
    kernel = Kernel(cuda_activation._source, "no_such", "0", "0", False, "0", (), "")
    with pytest.raises(ConfigurationError, match=r"activation\.cu has no kernel no_such; it has relu_forward"):
        kernel(1, array(3))


def test_an_empty_array_launches_nothing():
    with emulator.recording() as ledger:
        y = ops.relu(emulator.zeros((0, 4), np.float32))
        emulator.fill(y, 1.0)
    assert y.shape == (0, 4) and ledger.launches == [] and blocks(0) == 0


def test_the_ledger_knows_kernel_layer_and_cost():
    layer = bp.ReLU()
    layer.build((6,), device="emulator")
    with emulator.recording(timed=True) as ledger:
        layer.forward(array(4, 6), bp.Context(training=True))
    (launch,) = ledger.launches
    assert (str(launch.variant), launch.layer, launch.phase) == ("relu_forward[float]", "ReLU", "forward")
    assert (launch.flops, launch.nbytes) == (24, 2 * 24 * 4) and launch.seconds > 0


def test_ledgers_tell_the_first_difference():
    def record(*sizes):
        with emulator.recording() as ledger:
            for x in sizes:
                ops.relu(x)
        return ledger

    a, b = array(4, 6), array(5, 6)
    assert Ledger().difference(Ledger()) is None
    assert "another value of argument 'n'" in record(b[:4]).difference(record(b))
    assert "another address of argument 'x'" in record(a).difference(record(array(4, 6)))
    assert record(a).difference(record(a, a)) is not None


def test_a_recording_within_another_is_part_of_it():
    x = array(4)
    with emulator.recording() as outer:
        ops.relu(x)
        with emulator.recording() as inner:
            ops.relu(x)
            x.get()
        ops.relu(x)
    assert (len(inner.launches), len(outer.launches)) == (1, 3) and outer.transfer == inner.transfer is not None


# Copies -----------------------------------------------------------------------------------------------------


def test_a_deep_copy_has_memory_of_its_own():
    a = array(2, 3)
    for original in (a, a[1:]):
        twin = copy.deepcopy(original)
        assert twin.pointer != original.pointer and twin.shape == original.shape
        np.testing.assert_array_equal(twin.get(), original.get())
    model = bp.Linear(3, 2)
    model.build((3,), device="emulator")
    optimizer = bp.AdamW().setup(model)
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert twin.arena is twin_model.arena and twin.control.pointer != optimizer.control.pointer
    twin_model.weight.grad = np.ones((2, 3))
    before = model.weight.value.get()
    twin.step()
    np.testing.assert_array_equal(model.weight.value.get(), before)
    assert (twin_model.weight.value.get() != before).all() and not optimizer.moments["first_moment"].get().any()


def test_memory_of_a_process_is_not_pickled():
    with pytest.raises(TypeError, match=r"is not pickled: take array\.get\(\)"):
        pickle.dumps(array(3))
    model = bp.Linear(3, 2)
    assert pickle.loads(pickle.dumps(model)).build((3,)) == (2,)
    for device in ("cpu", "emulator"):
        built = bp.Linear(3, 2)
        built.build((3,), device=device)
        with pytest.raises(
            TypeError, match=r"parameter 'weight' is a view of the memory of its model.* use bp\.save_weights"
        ):
            pickle.dumps(built)


HOLDERS = {
    "name": lambda a: a,
    "all": lambda a: a[...],
    "row": lambda a: a[0],
    "rows": lambda a: a[1:],
    "reshape": lambda a: a.reshape(-1),
    "view of a view": lambda a: a.reshape(-1)[2:5][1:],
    "closure": lambda a: lambda: a[1],
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_slot_that_somebody_holds_is_never_handed_out(hold):
    with emulator.StepMemory():
        a = emulator.empty((3, 4), np.float32)
        kept = a.pointer
        holder = hold(a)
        del a
        assert emulator.from_host(np.zeros((3, 4), np.float32)).pointer != kept
        del holder
        others = [emulator.empty((3, 4), np.float32) for _ in range(2)]
        assert kept in {other.pointer for other in others}


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8", ">f2"])
def test_the_other_byte_order_becomes_that_of_the_machine(dtype):
    host = np.arange(5).astype(dtype)
    resident = emulator.from_host(host)
    assert resident.dtype.isnative
    np.testing.assert_array_equal(resident.get(), host)
    if dtype == ">f4":
        np.testing.assert_array_equal(ops.relu(resident).get(), host)
        np.testing.assert_array_equal(ops.add(resident, resident).get(), 2 * host)


@pytest.mark.parametrize("host", [np.array(["a"]), np.array([None]), np.array([1j]), np.array(["2026"], "M8[D]")])
def test_what_is_no_number_has_no_place_on_a_device(host):
    with pytest.raises(DtypeError, match="has arrays of floats, integers and bools, got dtype"):
        emulator.from_host(host)


# Launches that no GPU takes ---------------------------------------------------------------------------------


@pytest.fixture
def probe(tmp_path):
    """A kernel with two axes, a 32-bit number and dynamic shared memory: y = (10 A + B, n)."""
    (tmp_path / "probe.cu").write_text(
        '#include "types.cuh"\n#include "shared.cuh"\n'
        'extern "C" __global__ __launch_bounds__(1) void probe(float* y, int n, int64 bytes) {\n'
        "    DYNAMIC_SHARED(float, kept);\n    kept[0] = A * 10 + B;\n    y[0] = kept[0];\n    y[1] = n;\n}\n"
    )
    source = Source("probe", folder=tmp_path, A=("1", "2"), B=("1", "2"))
    return source.kernel("probe", flops="0", bytes="8", shared="bytes")


def test_axes_are_told_apart_by_name(probe):
    y = emulator.zeros((2,), np.float32)
    probe(1, y, 0, 16, A="1", B="2")
    assert y.get()[0] == 12
    probe(1, y, 0, 16, B="1", A="2")
    assert y.get()[0] == 21


def test_a_launch_that_no_gpu_takes_is_refused_before_it_runs(probe):
    y = emulator.zeros((2,), np.float32)
    for grid in (-1, 2**31, (1, 65536), (1, 1, 65536)):
        with pytest.raises(ShapeError, match=r"probe\[1, 2\] expected a grid of at most \(2147483647, 65535, 65535\)"):
            probe(grid, y, 0, 16, A="1", B="2")
    assert probe((3, 0), y, 7, 16, A="1", B="2") is None
    with pytest.raises(
        ShapeError, match=r"needs 232452 bytes of shared memory a block, compute capability 9\.0 has 232448"
    ):
        probe(1, y, 0, 227 * 1024 + 4, A="1", B="2")
    with pytest.raises(OverflowError, match="n = 2147483648 does not fit in int"):
        probe(1, y, 2**31, 16, A="1", B="2")
    assert not y.get().any()
    probe(1, y, 2**31 - 1, 227 * 1024, A="1", B="2")
    np.testing.assert_array_equal(y.get(), [12, np.float32(2**31 - 1)])


@pytest.mark.parametrize(("capability", "kilobytes"), [(75, 64), (86, 99), (80, 163), (90, 227), (120, 99)])
def test_shared_memory_is_that_of_the_architecture(probe, monkeypatch, capability, kilobytes):
    monkeypatch.setattr(plan, "capability", capability)
    y = plan.empty((2,), np.float32)
    probe(1, y, 0, kilobytes * 1024, A="1", B="2")
    with pytest.raises(ShapeError, match="bytes of shared memory a block"):
        probe(1, y, 0, kilobytes * 1024 + 1, A="1", B="2")


# Precisions and devices -------------------------------------------------------------------------------------


def test_precisions_by_device():
    assert resolve_precision("auto", find_device("cpu")) == resolve_precision("auto", emulator) == "fp32"
    for capability, best in ((75, "fp32"), (80, "bf16"), (90, "bf16")):
        plan.capability = capability
        assert resolve_precision("auto", plan) == best
    plan.capability = 75
    with pytest.raises(ConfigurationError, match=r"compute capability 8\.0, this GPU has 7\.5: take fp16 or fp32"):
        resolve_precision("bf16", plan)
    plan.capability = 90
    with pytest.raises(ConfigurationError, match="float64 is for the CPU"):
        resolve_precision("fp64", emulator)
    with pytest.raises(ConfigurationError, match="dtype float64 is not one that models compute in on"):
        bp.Linear(2, 2).build((2,), device="emulator", dtype="float64")


def test_arrays_on_two_devices_name_the_layer_and_what_to_do():
    host = np.ones((4, 3), np.float32)
    here, there = bp.Sequential(bp.Linear(3, 2)), bp.Sequential(bp.Linear(3, 2))
    here.build((3,))
    there.build((3,), device="emulator")
    with pytest.raises(DtypeError, match=r"Linear '0': linear expected x on device 'emulator' like weight.*from_host"):
        there(host)
    with pytest.raises(DtypeError, match=r"Linear '0': linear expected x on device 'cpu' like weight, got one on 'emu"):
        here(emulator.from_host(host))
    with pytest.raises(DtypeError, match=r"Linear '0': linear expected x of dtype float32 like weight, got float64"):
        there(emulator.from_host(host.astype(np.float64)))
    labels = np.zeros(4, np.int64)
    loss = bp.CrossEntropyLoss()
    with pytest.raises(DtypeError, match="CrossEntropyLoss expected targets on device 'emulator' like the predictions"):
        loss(there(emulator.from_host(host)), labels)
    with pytest.raises(DtypeError, match="CrossEntropyLoss expected targets on device 'cpu' like the predictions"):
        loss(here(host), emulator.from_host(labels))


def test_a_model_in_16_bits_has_masters_and_a_copy_of_them():
    model = bp.Linear(3, 2)
    model.build((3,), device="emulator", dtype="bfloat16")
    weight, value = model.weight, np.full((2, 3), 1 + 2**-10, np.float32)
    weight.value = value
    assert weight.value.dtype.name == "bfloat16" and weight.master.dtype == weight.grad.dtype == np.float32
    np.testing.assert_array_equal(weight.master.get(), value)
    np.testing.assert_array_equal(weight.value.get().astype(np.float32), 1.0)
    other = model.copy(device="cpu", dtype="float32")
    np.testing.assert_array_equal(other.weight.value, value)
    assert model.copy().weight.master.get()[0, 0] == value[0, 0]


def test_a_context_makes_its_control_block_where_the_array_lies():
    ctx = bp.Context(training=True, seed=(5 << 32) + 7, step=3)
    block = ctx.control_beside(array(2))
    assert type(block) is emulator.array_type and ctx.control_beside(array(2)) is block
    np.testing.assert_array_equal(block.get(), new_control(find_device("cpu"), (5 << 32) + 7, 3))


# Sources and cache ------------------------------------------------------------------------------------------


def test_signatures_are_read_from_the_source(tmp_path):
    source = tmp_path / "kernels" / "a.cu"
    source.parent.mkdir()
    source.write_text(
        '#include "b.cuh"\nconstexpr int N = 64;\n// extern "C" __global__ in a comment\n'
        'extern "C" __global__ __launch_bounds__(N, 2)\nvoid first(const T* x, /* out */\n'
        "float* __restrict__ y, int64 n) {}\n"
    )
    (source.parent / "include").mkdir()
    (source.parent / "include" / "b.cuh").write_text('#include "c.cuh"\n')
    (source.parent / "include" / "c.cuh").write_text("// nothing\n")
    first = signatures(source)["first"]
    assert (first.threads, first.min_blocks) == ("64", "2")
    assert first.parameters == (
        Parameter("x", "T", True),
        Parameter("y", "float", True),
        Parameter("n", "int64", False),
    )
    assert [name.rpartition("/")[2] for name in with_includes(source)] == ["a.cu", "b.cuh", "c.cuh"]
    bad = source.with_name("bad.cu")
    bad.write_text("__global__ void other(int n) {}\n")
    with pytest.raises(ConfigurationError, match="expected each of its 1 kernels once"):
        signatures(bad)


@pytest.mark.parametrize("parameter", ["TensorMap x", "const TensorMap x", "__grid_constant__ TensorMap x"])
def test_a_map_for_the_copy_engine_stays_where_the_launch_put_it(tmp_path, parameter):
    source = tmp_path / "copied.cu"
    source.write_text(f'extern "C" __global__ __launch_bounds__(32) void copied({parameter}) {{}}\n')
    with pytest.raises(ConfigurationError, match="expected 'const __grid_constant__ TensorMap x', got"):
        signatures(source)


def test_a_kernel_of_ones_own_runs_under_the_detector(tmp_path):
    (tmp_path / "mine.cu").write_text(
        '#include "types.cuh"\nextern "C" __global__ __launch_bounds__(32)\n'
        "void neighbours(const float* x, float* y) {\n"
        "    __shared__ float row[32];\n    row[threadIdx.x] = x[threadIdx.x];\n"
        "    y[threadIdx.x] = row[(threadIdx.x + 1) % 32];  // no __syncthreads\n}\n"
    )
    kernel = Source("mine", folder=tmp_path).kernel("neighbours", flops="0", bytes="256")
    x, y = array(32), emulator.zeros((32,), np.float32)
    with emulating(detector=True, seed=0), pytest.raises(KernelFault, match=r"neighbours.*mine\.cu:6"):
        kernel(1, x, y)
    assert "mine" not in SOURCES


def test_every_kernel_is_declared_and_every_declaration_has_its_kernel():
    from bp.cuda import catalogue

    for source in catalogue.load():
        assert list(source.kernels) and set(source.kernels) == set(signatures(source.path)), source.name
    names = {path.stem for path in files.kernel_folder().glob("*.cu")}
    assert names == {source.name for source in catalogue.load()}


def test_the_control_block_has_the_same_numbers_in_kernels():
    text = (files.kernel_folder() / "include" / "control.cuh").read_text()
    for line in text.splitlines():
        name, equals, number = line.strip().rstrip(",").partition(" = ")
        if equals:
            assert getattr(bp.ops.control, name) == int(number)


def test_a_cached_file_is_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path))

    def fails(path):
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.cached("x/a.bin", fails)
    assert list((tmp_path / "x").iterdir()) == []
    assert files.cached("x/a.bin", lambda path: path.write_text("whole") and None).read_text() == "whole"
    assert files.cached("x/a.bin", fails).read_text() == "whole"
    assert files.digest("ab", "c") != files.digest("a", "bc")


def test_a_cache_that_cannot_be_written_moves_to_the_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert files.cache_folder().parent == tmp_path and files.cache_folder().is_dir()


def test_a_folder_of_somebody_else_among_the_temporary_files_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    files.cache_folder().chmod(0o777)
    with pytest.raises(ConfigurationError, match="set BP_CACHE_DIR"):
        files.cache_folder()


def test_a_second_process_compiles_nothing(tmp_path):
    code = (
        "import numpy as np, bp, bp.ops.activation as ops\n"
        "from bp.cuda.emulator import unit\n"
        "from bp.cuda.emulator.device import device\n"
        "ran = []\nrun = unit._run\nunit._run = lambda command, what: ran.append(what) or run(command, what)\n"
        "ops.relu(device.from_host(np.ones(3, np.float32)))\n"
        "print(sum('cu' in what for what in ran))\n"
    )
    environment = {"BP_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    counts = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    ]
    assert int(counts[0]) > 0 and int(counts[1]) == 0
