"""How long it takes until something happens: fresh processes of Python, of imports, and of a first training step.

The time is that of the whole process, from its start to its end. Nothing is compared: there is no result.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from bp.bench import Benchmark, Sizes, grid

OURS = """
import bp
import numpy as np

generator = np.random.default_rng(0)
x, labels = generator.standard_normal((32, 784), np.float32), generator.integers(0, 10, 32)
model = bp.models.mlp((784,), classes=10, hidden=[512, 512])
trainer = bp.Trainer(model, bp.CrossEntropyLoss(), bp.AdamW(1e-3), device="DEVICE", precision="fp32", progress=False)
trainer.fit((x, labels), max_steps=1)
"""

THEIRS = """
import torch
from torch import nn

x, labels = torch.randn(32, 784, device="DEVICE"), torch.randint(10, (32,), device="DEVICE")
model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).to("DEVICE")
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
loss = nn.functional.cross_entropy(model(x), labels)
loss.backward()
optimizer.step()
loss.item()
"""


def process(code, **environment):
    """Runs Python with this code, and raises RuntimeError with the last line of its errors where it fails."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])


class Startup(Benchmark):
    """Work of the host, whatever the device."""

    precisions = ("fp32",)
    compiles = False

    def draw(self, draw):
        return {}

    def nbytes(self, itemsize):
        return 0.0

    def reference(self):
        return None


@dataclass(frozen=True)
class Interpreter(Startup):
    """Python alone, which is part of all the others."""

    name = "python"
    devices = ("cpu",)
    sizes = Sizes(cpu=[{}], quick=[{}])

    def bp(self):
        return lambda: process("pass")


@dataclass(frozen=True)
class Import(Startup):
    """Each contestant imports itself."""

    name = "import"
    devices = ("cpu",)
    sizes = Sizes(cpu=[{}], quick=[{}])

    def bp(self):
        return lambda: process("import bp")

    def numpy(self):
        return lambda: process("import numpy")

    def torch(self):
        return lambda: process("import torch")


@dataclass(frozen=True)
class FirstStep(Startup):
    """Import, build an MLP 784-512-512-10, and do one step on 32 samples. caches: "cold": no kernel is compiled yet."""

    name = "first step"
    devices = ("cpu", "cuda")
    here, both = grid(device=["cpu"], caches=["warm"]), ["cold", "warm"]
    sizes = Sizes(grid(device=["cuda"], caches=both), here + grid(device=["emulator"], caches=both), here)
    device: str
    caches: str

    def bp(self):
        code = OURS.replace("DEVICE", self.device)
        if self.caches == "warm":
            return lambda: process(code)

        def cold():
            with tempfile.TemporaryDirectory() as empty:
                process(code, BP_CACHE_DIR=empty)

        return cold

    def torch(self):
        """It compiles no kernels, and has no emulator."""
        if self.device == "emulator" or self.caches == "cold":
            return None
        return lambda: process(THEIRS.replace("DEVICE", self.device))
