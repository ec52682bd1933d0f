"""Triton's kernels, launched on PyTorch's tensors."""

from bp.bench.libraries.with_torch import Torch
from bp.bench.libraries.with_torch import open_on as open_torch
from bp.errors import ConfigurationError


def open_on(device: str) -> Torch:
    """Triton on a GPU; raises ConfigurationError where it is missing."""
    if device != "cuda":
        raise ConfigurationError("Triton compiles for GPUs")
    try:
        import triton
    except ImportError:
        raise ConfigurationError("Triton is not installed: pip install triton") from None
    library = open_torch(device)
    library.versions["triton"] = triton.__version__
    return library
