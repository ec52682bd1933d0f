"""What watches a GPU while it works, on a stand-in for NVML that is compiled here, and one for nvidia-smi."""

import os
import shutil
import subprocess
import time

import pytest

from bp.bench import watch
from bp.bench.results import Entry, Limits, Row, Times
from bp.bench.run import Plan, Run, judged
from bp.bench.watch import Sample, Watch, open_gauge
from bp.cuda.driver import GPU, Driver

# Signatures as in nvml.h; what is asked for comes from the environment, so that a test can change it.
NVML = r"""
#include <cstdlib>
#include <cstring>
static unsigned long long number(const char* name) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 0) : 0;
}
typedef struct device* nvmlDevice_t;
extern "C" {
int nvmlInit_v2() { return (int)number("NVML_INIT"); }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, nvmlDevice_t* device) {
    *device = (nvmlDevice_t)(size_t)0x700000000000ull;  // more than 32 bits, as addresses are
    return std::strcmp(bus, std::getenv("NVML_BUS")) ? 6 : 0;
}
static bool known(nvmlDevice_t device) { return (size_t)device >> 32 == 0x7000; }
int nvmlDeviceGetClockInfo(nvmlDevice_t device, int type, unsigned int* clock) {
    if (!known(device)) return 2;
    *clock = (unsigned int)number(type == 1 ? "NVML_SM" : type == 2 ? "NVML_MEMORY" : "");
    return 0;
}
int nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int* power) {
    *power = (unsigned int)number("NVML_MILLIWATTS");
    return !known(device) ? 2 : *power ? 0 : 3;  // not supported
}
int nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int* celsius) {
    *celsius = (unsigned int)number("NVML_CELSIUS");
    return known(device) && sensor == 0 ? 0 : 2;
}
int REASONS(nvmlDevice_t device, unsigned long long* reasons) {
    *reasons = number("NVML_REASONS");
    return known(device) ? 0 : 2;
}
}
"""
BUS = "0000:3B:00.0"
USUAL = {"NVML_BUS": BUS, "NVML_SM": "1980", "NVML_MEMORY": "3201", "NVML_MILLIWATTS": "312500", "NVML_CELSIUS": "41"}


@pytest.fixture(
    scope="module", params=["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
)
def library(request, tmp_path_factory):
    """A driver's library, with the name that a reason has in newer or in older ones."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the stand-in for NVML takes a C++ compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source, path = folder / "nvml.cpp", folder / "libnvml.so"
    source.write_text(NVML)
    subprocess.run([compiler, "-shared", "-fPIC", f"-DREASONS={request.param}", "-o", path, source], check=True)
    return str(path)


def lists(monkeypatch, *buses):
    """Let the driver list GPUs at these places, in its order."""
    gpus = tuple(GPU("NVIDIA H200", (9, 0), 141 * 2**30, bus) for bus in buses)
    monkeypatch.setattr(watch, "find_driver", lambda: Driver((12, 8), gpus))


@pytest.fixture
def nvml(library, monkeypatch):
    """set(name=value) changes what the stand-in says, by the names of `USUAL`."""
    monkeypatch.setattr(watch, "LIBRARY", library)
    lists(monkeypatch, BUS)
    for name, value in USUAL.items():
        monkeypatch.setenv(name, value)
    return monkeypatch.setenv


def test_a_gpu_says_what_it_does(nvml):
    gauge = open_gauge("cuda")
    assert gauge() == Sample(1980, 3201, 312.5, 41, ())
    nvml("NVML_REASONS", "0x25")  # idle, power cap, thermal slowdown
    nvml("NVML_MILLIWATTS", "0")
    assert gauge() == Sample(1980, 3201, None, 41, ("power cap", "thermal slowdown"))


def test_the_gpu_that_is_watched_is_the_one_that_runs(nvml, monkeypatch):
    """The first that CUDA counts, which is the fastest, lies behind another on the bus."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lists(monkeypatch, "0000:5E:00.0", BUS)
    assert open_gauge("cuda") is None
    nvml("NVML_BUS", "0000:5E:00.0")
    assert open_gauge("cuda")().clock == 1980


def test_where_the_driver_lists_no_gpu_nothing_is_watched(nvml, monkeypatch):
    lists(monkeypatch)
    assert open_gauge("cuda") is None


@pytest.mark.parametrize("settings", [{"NVML_INIT": "9"}, {"NVML_BUS": "0000:5E:00.0"}])
def test_a_driver_that_does_not_answer_is_done_without(nvml, monkeypatch, settings):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, value in settings.items():
        nvml(name, value)
    assert open_gauge("cuda") is None


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_what_is_no_gpu_is_not_watched(nvml, device):
    assert open_gauge(device) is None
    with Watch(None) as watched:
        pass
    assert (watched.samples, watched.clocks, watched.throttled, watched.refusal) == ([], {}, {}, "")


@pytest.mark.parametrize("newer", [True, False])
def test_nvidia_smi_answers_where_the_library_cannot_be_loaded(monkeypatch, tmp_path, newer):
    known = "clocks_event_reasons.active" if newer else "clocks_throttle_reasons.active"
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *power.draw,temperature.gpu,{known}\\ *\\ --id={BUS}) '
        'echo "1755, 3201, [N/A], 55, 0x0000000000000048";; *) echo "not a valid field"; exit 2;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(watch, "LIBRARY", str(tmp_path / "none.so"))
    lists(monkeypatch, BUS)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    reasons = ("hardware slowdown", "hardware thermal slowdown")
    assert open_gauge("cuda")() == Sample(1755, 3201, None, 55, reasons)


# A watch ---------------------------------------------------------------------------------------------------


def sample(clock: float = 1980.0, *reasons: str) -> Sample:
    return Sample(clock, 3201.0, None, 41.0, reasons)


def watched(*samples: Sample | None) -> Watch:
    """After a block during which the GPU said this, one after the other."""
    left = list(samples)
    with Watch(lambda: left.pop(0) if left else None) as found:
        while left:
            time.sleep(0.001)
    return found


def test_samples_are_taken_throughout(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    found = watched(*(sample(clock) for clock in (1980, 1755, 1800)))
    assert [one.clock for one in found.samples] == [1980, 1755, 1800]
    assert found.clocks == {
        "gpu lowest": 1755,
        "gpu highest": 1980,
        "gpu memory lowest": 3201,
        "gpu celsius highest": 41,
    }
    assert found.refusal == ""


def test_even_the_shortest_block_has_a_sample_of_its_end():
    with Watch(lambda: sample()) as found:
        pass
    assert found.samples


def test_the_limit_of_power_is_noted_and_heat_refused(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    capped = watched(sample(1500, "power cap"), sample())
    assert (capped.throttled, capped.refusal) == ({"power cap": 0.5}, "")
    hot = watched(sample(900, "power cap", "thermal slowdown"), *[sample()] * 3)
    assert hot.throttled == {"power cap": 0.25, "thermal slowdown": 0.25}
    assert hot.refusal == "the GPU held its clocks back: thermal slowdown in 25% of 4 samples"


def test_a_refused_row_has_times_and_no_ratio():
    entries = [Entry("bp", True, "timed", times=Times(2e-6, 1e-6, 3e-6, 15))]
    entries.append(Entry("torch", False, "timed", times=Times(4e-6, 4e-6, 4e-6, 15)))
    row = Row("f", "b", {"n": 1}, "fp32", 0.0, 1e3, entries)
    limits = Limits([(1e3, 1e9)])
    assert (judged(row, limits).ratio, judged(row, limits).percent) == (2.0, 50.0)
    refused = judged(Row("f", "b", {"n": 1}, "fp32", 0.0, 1e3, entries, refused="hot"), limits)
    assert (refused.ratio, refused.percent, refused.best_peer) == (None, None, "")
    assert refused.ours.times is not None


def test_a_run_refuses_the_rows_that_were_timed_while_the_gpu_was_hot(monkeypatch):
    planted = os.path.join(os.path.dirname(__file__), "bench_planted.py")
    monkeypatch.setattr("bp.bench.run.open_gauge", lambda device: lambda: sample(900, "hardware thermal slowdown"))
    plan = Plan([planted], "cpu", sizes={"Known": [{"n": 1000}]}, repeats=3, seconds=1.0, seed=1, limits=Limits())
    (row,) = Run(plan).results("").rows
    assert row.throttled == {"hardware thermal slowdown": 1.0}
    assert row.refused.startswith("the GPU held its clocks back: hardware thermal slowdown in 100% of ")
    assert (row.ours.status, row.ratio, row.clocks["gpu lowest"]) == ("timed", None, 900.0)
