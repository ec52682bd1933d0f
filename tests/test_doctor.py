"""bp doctor: one line a finding, a remedy for what is missing, and no crash on machines of any kind."""

import ctypes

import pytest

from bp import doctor
from bp.cli import main


def test_it_runs_here_and_says_which_device_is_used(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for what in ("Python", "NumPy", "native kernels", "threads", "NVIDIA driver", "GPU", "CuPy", "NVRTC", "matplotlib"):
        assert what in out
    assert 'device "auto"' in out and "cpu:" in out


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(doctor, "DRIVER_LIBRARY", "libno_such_driver.so")
    cuda, gpus, finding = doctor.find_driver()
    assert (cuda, gpus, finding.state) == (None, [], doctor.MISSING)
    assert "install its driver" in finding.remedy


class Driver:
    """What the driver's library answers, in place of the library."""

    def __init__(self, status=0, version=12080, names=("NVIDIA H200",)):
        self.status, self.version, self.names = status, version, names

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

    def cuDeviceGetAttribute(self, out, attribute, device):
        return put(out, {75: 9, 76: 0}[attribute])


def put(out, value):
    """Store through a pointer made by ctypes.byref."""
    out._obj.value = value
    return 0


def test_with_a_gpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    cuda, gpus, finding = doctor.find_driver()
    assert (cuda, finding.state, finding.found) == (12, doctor.OK, "for CUDA up to 12.8")
    (gpu,) = doctor.graphics(gpus, finding)
    assert gpu.found == "NVIDIA H200, compute capability 9.0, 141 GiB"
    assert "no CUDA kernels yet" in doctor.device(gpus).found


def test_a_driver_that_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(status=100))
    cuda, gpus, finding = doctor.find_driver()
    assert (cuda, gpus, finding.state) == (None, [], doctor.MISSING)
    assert "CUDA error 100" in finding.found
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(names=()))
    _, gpus, finding = doctor.find_driver()
    (gpu,) = doctor.graphics(gpus, finding)
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
