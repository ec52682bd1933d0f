"""The throughput of loaders: an epoch over images in memory, cropped at random, mirrored and normalised on the way.

`prefetch` is what each library has to work ahead: batches that bp's one thread fetches, processes of PyTorch's
DataLoader. Nobody trains meanwhile, so this is what a loader can give, not what a training waits for. PyTorch takes
part twice: with the same NumPy transform of whole batches (`torch`), and image by image, as its tutorials have it, in
its own functions (`torch-samples`). Its processes live on from epoch to epoch.
"""

from dataclasses import dataclass, replace

import numpy as np

from bp.bench import Benchmark, Measured, Sizes, grid
from bp.data import ArrayDataset, Loader
from bp.data.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip

CLASSES, SIDE, PADDING = 10, 32, 4
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10, by channel
AUGMENT = Compose(RandomCrop(padding=PADDING), RandomHorizontalFlip(), Normalize(MEAN, DEVIATION))


def epoch(loader):
    """Fetch every batch; how often each class came, and the bytes of all inputs."""
    counts, nbytes = np.zeros(CLASSES, np.int64), 0
    for x, y in loader:
        counts += np.bincount(y, minlength=CLASSES)
        nbytes += x.nbytes
    return counts, np.array([nbytes])


class ByBatch(ArrayDataset):
    """An item is a whole batch, by its indices."""

    def __getitem__(self, indices):
        # Processes begin as copies of one another: a generator that they brought along would give all the same numbers.
        return AUGMENT(*self.batch(np.asarray(indices)), np.random.default_rng())


class BySample(ArrayDataset):
    """An item is one image, channels first."""

    def __getitem__(self, index):
        import torch
        from torch.nn.functional import pad

        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        x = pad(self.x[index], (PADDING,) * 4)[:, top : top + SIDE, left : left + SIDE]
        x = x.flip(2) if torch.rand(()) < 0.5 else x
        return x.float().div_(255).sub_(self.mean).div_(self.deviation), self.y[index]


@dataclass(frozen=True)
class Epoch(Benchmark):
    name = "epoch of a loader"
    devices = ("cpu",)
    precisions = ("fp32",)
    compiles = False
    axis = "prefetch"
    sizes = Sizes(
        cpu=grid(images=[8192], batch=[128], prefetch=[0, 1, 2, 4]),
        quick=grid(images=[1024], batch=[128], prefetch=[0, 2]),
    )
    images: int
    batch: int
    prefetch: int

    def draw(self, draw):
        pixels = draw.integers(256, self.images, SIDE, SIDE, 3)
        pixels = replace(pixels, block=pixels.block.astype(np.uint8))
        return {"pixels": pixels, "labels": draw.integers(CLASSES, self.images)}

    def nbytes(self, itemsize):
        return self.images * SIDE * SIDE * 3 * (1 + itemsize)

    def reference(self, pixels, labels):
        return np.bincount(labels, minlength=CLASSES), np.array([4 * pixels.size])

    def bp(self, pixels, labels):
        data = ArrayDataset(pixels, labels)
        loader = Loader(data, self.batch, shuffle=True, transform=AUGMENT, prefetch=self.prefetch)
        return Measured(lambda: epoch(loader), lambda: {"samples": self.images})

    def torch(self, pixels, labels):
        from torch.utils.data import BatchSampler, RandomSampler

        data = ByBatch(pixels.numpy(), labels.numpy())
        return self.in_torch(data, sampler=BatchSampler(RandomSampler(data), self.batch, False), batch_size=None)

    def torch_samples(self, pixels, labels):
        import torch

        data = BySample(pixels.numpy(), labels.numpy())
        data.x = pixels.permute(0, 3, 1, 2).contiguous()
        data.mean, data.deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return self.in_torch(data, batch_size=self.batch, shuffle=True)

    def in_torch(self, data, **settings):
        import torch
        from torch.utils.data import DataLoader

        if self.prefetch:
            settings |= {"persistent_workers": True, "multiprocessing_context": "fork"}
        loader = DataLoader(data, num_workers=self.prefetch, **settings)
        return Measured(lambda: tuple(map(torch.from_numpy, epoch(loader))), lambda: {"samples": self.images})
