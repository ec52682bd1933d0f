"""The Liger kernels for training, written in Triton on PyTorch's tensors."""

import importlib.metadata

from bp.bench.libraries.with_torch import Torch
from bp.bench.libraries.with_torch import open_on as open_torch
from bp.errors import ConfigurationError


def open_on(device: str) -> Torch:
    """Liger on a GPU; raises ConfigurationError where it is missing."""
    if device != "cuda":
        raise ConfigurationError("the Liger kernels are for GPUs")
    try:
        version = importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigurationError("Liger is not installed: pip install liger-kernel") from None
    library = open_torch(device)
    library.versions["liger-kernel"] = version
    return library
