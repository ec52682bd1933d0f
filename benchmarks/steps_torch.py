"""Training steps of PyTorch: the peer of `steps_bp.py`, the same architectures and the same step."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Step = Callable[[], None]


def torch_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """The same step of PyTorch."""
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y).backward()
        optimizer.step()

    return step


def torch_mlp(sizes: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class TorchBlock(nn.Module):
    """The basic block of He et al. (2015) with a projection where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def torch_resnet20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels_in = 16
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(TorchBlock(channels_in, channels, 2 if stage and block == 0 else 1))
            channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp-small": lambda: torch_mlp([64, 64, 10]),
    "mlp": lambda: torch_mlp([784, 512, 512, 10]),
    "cnn": torch_cnn,
    "resnet20": torch_resnet20,
}


def make_steps(name: str, x: np.ndarray, y: np.ndarray) -> dict[str, Step]:
    """The step of a workload, for images once in each memory layout."""
    labels = torch.from_numpy(y)
    if x.ndim == 2:
        return {"torch": torch_step(MODELS[name](), torch.from_numpy(x), labels)}
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    nhwc = torch.channels_last
    last = torch_step(MODELS[name]().to(memory_format=nhwc), images.contiguous(memory_format=nhwc), labels)
    return {"torch, NCHW": torch_step(MODELS[name](), images.contiguous(), labels), "torch, channels_last": last}
