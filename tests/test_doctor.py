"""bp doctor: one line a finding, a remedy for what is missing, and no crash on machines of any kind."""

import ctypes

import pytest

from bp import doctor
from bp.cli import main
from bp.cuda import driver, requirements


def test_it_runs_here_and_says_which_device_is_used(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    expected = ["Python", "NumPy", "threads", "emulator", "GPU", "CuPy", "NVRTC", "matplotlib"]
    for what in (*expected, "native kernels", "NVIDIA driver"):
        assert what in out
    assert 'device "auto"   cpu' in out or 'device "auto"   cuda' in out


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libno_such_driver.so")
    found = driver.find_driver()
    assert (found.version, found.gpus) == (None, ())
    finding = doctor.driver(found)
    assert finding.state == doctor.MISSING and "install its driver" in finding.remedy


class Library:
    """What the driver's library answers, in place of the library."""

    def __init__(self, status=0, version=12080, names=("NVIDIA H200",), capability=(9, 0)):
        self.status, self.version, self.names, self.capability = status, version, names, capability

    def cuInit(self, flags):
        return self.status

    def cuDriverGetVersion(self, out):
        return put(out, self.version)

    def cuDeviceGetCount(self, out):
        return put(out, len(self.names))

    def cuDeviceGet(self, out, ordinal):
        return put(out, ordinal)

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.names[device.value].encode()
        return 0

    def cuDeviceTotalMem_v2(self, out, device):
        return put(out, 141 * 2**30)

    def cuDeviceGetPCIBusId(self, buffer, size, device):
        buffer.value = f"0000:{device.value + 0x18:02X}:00.0".encode()
        return 0

    def cuDeviceGetAttribute(self, out, attribute, device):
        return put(out, self.capability[attribute - 75])


def put(out, value):
    """Store through a pointer made by ctypes.byref."""
    out._obj.value = value
    return 0


def test_with_a_gpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    found = driver.find_driver()
    finding = doctor.driver(found)
    assert (found.version, finding.state, finding.found) == ((12, 8), doctor.OK, "for CUDA up to 12.8")
    assert found.gpus[0].bus == "0000:18:00.0"
    (gpu,) = doctor.graphics(found)
    assert gpu.found == "NVIDIA H200, compute capability 9.0, 141 GiB"


def test_with_a_gpu_that_the_kernels_are_not_for(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(names=("Tesla P100",), capability=(6, 0)))
    (gpu,) = doctor.graphics(driver.find_driver())
    assert gpu.state == doctor.MISSING and gpu.found.startswith("Tesla P100 has compute capability 6.0, the kernels")


def test_a_driver_that_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(status=100))
    found = driver.find_driver()
    assert (found.version, found.gpus) == (None, ())
    assert "CUDA error 100" in doctor.driver(found).found
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(names=()))
    (gpu,) = doctor.graphics(driver.find_driver())
    assert gpu.state == doctor.MISSING and "lists none" in gpu.found


@pytest.mark.parametrize(
    ("wheels", "cuda", "state", "text"),
    [
        ({}, None, "missing", "pip install cupy-cuda12x"),
        ({}, 12, "missing", "pip install cupy-cuda12x"),
        ({}, 13, "missing", "pip install cupy-cuda13x"),
        ({"cupy-cuda12x": "14.2"}, 12, "ok", "cupy-cuda12x 14.2"),
        ({"cupy-cuda12x": "14.2"}, None, "ok", "cupy-cuda12x 14.2"),
        ({"cupy-cuda13x": "14.2"}, 12, "missing", "pip uninstall -y cupy-cuda13x && pip install cupy-cuda12x"),
        (
            {"cupy-cuda12x": "14.2", "cupy-cuda13x": "14.2"},
            13,
            "missing",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install cupy-cuda13x",
        ),
    ],
)
def test_cupy_wheels(wheels, cuda, state, text):
    finding = doctor.cupy(wheels, cuda)
    assert finding.state == state
    assert text in (finding.remedy or finding.found)


def test_nvrtc_is_found_or_not_without_a_crash(monkeypatch):
    class NVRTC:
        def nvrtcVersion(self, major, minor):
            return put(major, 12) or put(minor, 9)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: NVRTC())
    assert doctor.nvrtc(12).found.startswith("12.9 (")

    def none(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    finding = doctor.nvrtc(12)
    assert (finding.state, finding.remedy) == (doctor.MISSING, "pip install nvidia-cuda-nvrtc-cu12")


def test_native_kernels_missing_or_switched_off(monkeypatch):
    monkeypatch.setattr("bp.cpu.native.kernels", None)
    monkeypatch.delenv("BP_NATIVE", raising=False)
    assert "C++ compiler" in doctor.native().remedy
    monkeypatch.setenv("BP_NATIVE", "0")
    assert doctor.native().state == doctor.NOTE and "switched off" in doctor.native().found


@pytest.mark.parametrize(
    ("library", "wheels", "text"),
    [
        (Library(status=100), {}, "finds no usable GPU (CUDA error 100): check with nvidia-smi"),
        (Library(names=()), {}, "the driver lists no GPU: check with nvidia-smi"),
        (Library(), {}, "CuPy is not installed: pip install cupy-cuda12x"),
        (Library(version=13000), {}, "CuPy is not installed: pip install cupy-cuda13x"),
        (Library(), {"cupy-cuda12x": "14", "cupy-cuda13x": "14"}, "overwrite each other's files: pip uninstall -y"),
        (
            Library(capability=(6, 1)),
            {"cupy-cuda12x": "14"},
            "capability 6.1, the kernels need 7.5: use device",
        ),
    ],
)
def test_what_keeps_a_machine_from_using_its_gpu_is_told_in_one_line(monkeypatch, library, wheels, text):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(requirements, "cupy_wheels", lambda: wheels)
    found = requirements.problem()
    assert text in str(found) and "\n" not in str(found)
