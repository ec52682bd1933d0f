"""Copies between dtypes, as of master weights to 16 bits before a step and of gradients to 32 after it."""

from dataclasses import dataclass

from bp.bench import Benchmark, Sizes, grid
from bp.ops.device import device_of


@dataclass(frozen=True)
class Cast(Benchmark):
    """Between float32 and the 16 bits of the precision."""

    name = "cast"
    devices = ("cuda", "emulator")
    precisions = ("bf16", "fp16")
    sampled = ("source", "destination")
    compiles = False
    sizes = Sizes(cuda=grid(n=[1 << 28], to=["16 bits", "32 bits"]), quick=grid(n=[1 << 12], to=["16 bits", "32 bits"]))
    n: int
    to: str

    def draw(self, draw):
        narrow = self.to == "16 bits"
        return {"source": draw.normal(self.n, wide=narrow), "destination": draw.zeros(self.n, wide=not narrow)}

    def nbytes(self, itemsize):
        return (4 + itemsize) * self.n

    def bp(self, source, destination):
        device = device_of(source)
        return lambda: device.copy(destination, source) or destination

    def torch(self, source, destination):
        return lambda: destination.copy_(source)
