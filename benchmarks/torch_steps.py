"""PyTorch's twin of a network of bp, the same layers with the same parameters, and its training step."""

import functools

import torch
from torch import nn

from bp import layers


class Residual(nn.Module):
    """y = body(x) + shortcut(x)."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


def training_step(made, x, labels, lr, decay, *, channels_last=True, compiled=False, capturable=False):
    """Forward, cross-entropy, backward and AdamW on one batch of bp's layout; a step returns its loss.

    channels_last: the layout of images, and of the weights that see them. In bfloat16 the step runs under autocast.
    """
    if x.ndim == 4:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, made = x.permute(0, 3, 1, 2).contiguous(memory_format=layout), made.to(memory_format=layout)
    settings = {"weight_decay": decay, "fused": True, "capturable": capturable}
    optimizer = torch.optim.AdamW(made.parameters(), lr, **settings)
    cast = functools.partial(torch.autocast, x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)

    def loss_of():
        with cast():
            return nn.functional.cross_entropy(made(x), labels)

    forward = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def captured(step, times):
    """A step as one CUDA graph; so many are done before, on another stream, as PyTorch asks for."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return lambda: graph.replay() or loss


def twin(model, sample_shape, parameters):
    """The twin of a model of bp that is declared, where its parameters are: a flat tensor of all, in bp's order.

    Channels are last in the weights of bp, (out, kh, kw, in), and in what it flattens; in PyTorch's they come first.
    """
    made = module(model).to(parameters.device, parameters.dtype)
    channels = sample_shape[-1] if len(sample_shape) == 3 else 1
    begin = 0
    for part in made.modules():
        for target in part.parameters(recurse=False):
            values = parameters[begin : begin + target.numel()]
            begin += target.numel()
            if target.ndim == 4:
                outputs, inputs, height, width = target.shape
                values = values.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
                channels = outputs
            elif target.ndim == 2:
                values = values.view(len(target), -1, channels).transpose(1, 2).reshape(target.shape)
                channels = 1
            with torch.no_grad():
                target.copy_(values)
    if begin != parameters.numel():
        raise ValueError(f"expected {begin} parameters, got {parameters.numel()}")
    return made


def module(layer):
    """The module for a layer; raises TypeError where there is none."""
    match layer:
        case layers.Sequential():
            return nn.Sequential(*map(module, layer))
        case layers.Residual():
            return Residual(module(layer.body), nn.Identity() if layer.shortcut is None else module(layer.shortcut))
        case layers.Linear():
            outputs, inputs = layer.weight.shape
            return nn.Linear(inputs, outputs, layer.bias is not None)
        case layers.Conv2d() if all(before == after for before, after in layer.padding):
            outputs, height, width, inputs = layer.weight.shape
            padding = tuple(before for before, _ in layer.padding)
            settings = (layer.stride, padding, layer.dilation, layer.groups, layer.bias is not None)
            return nn.Conv2d(inputs * layer.groups, outputs, (height, width), *settings)
        case layers.BatchNorm2d() if layer.weight is not None:
            return nn.BatchNorm2d(layer.weight.shape[0], layer.eps, layer.momentum)
        case layers.MaxPool2d():
            return nn.MaxPool2d(*layer.window)
        case layers.ReLU():
            return nn.ReLU(inplace=True)  # as in torchvision: nobody else reads its input
        case layers.Flatten():
            return nn.Flatten()
        case layers.GlobalAvgPool2d():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    raise TypeError(f"no module of PyTorch stands for {layer.label}")
