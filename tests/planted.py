"""What the tests of the compile gate share: planted kernels, and whether NVIDIA's tools are there."""

from pathlib import Path

import pytest

from bp.cuda import disassembler, nvrtc
from bp.cuda.kernel import SOURCES

FOLDER = Path(__file__).parent / "kernels"

needs_nvrtc = pytest.mark.skipif(nvrtc.find() is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
needs_nvdisasm = pytest.mark.skipif(disassembler.find() is None, reason=f"needs nvdisasm: {disassembler.INSTALL}")


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """An empty cache, no declared kernels, and tests/kernels as the folder of kernels.

    Gives the list of what was compiled, which grows.
    """
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path / "cache"))
    use_kernels_of(FOLDER, monkeypatch)
    compiled = []
    compile_one = nvrtc.compile

    def counting(source, name, options, headers):
        compiled.append(name)
        return compile_one(source, name, options, headers)

    monkeypatch.setattr(nvrtc, "compile", counting)
    declared = dict(SOURCES)
    SOURCES.clear()
    yield compiled
    SOURCES.clear()
    SOURCES.update(declared)


def use_kernels_of(folder, monkeypatch):
    """Let sources lie in `folder`; their headers are bp's still."""
    for module in ("kernel", "gate", "catalogue"):
        monkeypatch.setattr(f"bp.cuda.{module}.kernel_folder", lambda: folder)
