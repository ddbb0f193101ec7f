"""The vision networks whose sizes are published, built from plain torch layers."""

from __future__ import annotations

from torch import nn

VGG16 = (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool")


def lenet5() -> nn.Module:
    """LeNet-5 with its third convolution connected to all maps."""
    convolutions = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*convolutions, nn.Conv2d(16, 120, 5), nn.Flatten(), nn.Linear(120, 84), nn.Linear(84, 10))


def alexnet() -> nn.Module:
    """AlexNet as its paper has it: the second, fourth and fifth convolutions in two groups."""
    layers = [
        nn.Conv2d(3, 96, 11, stride=4),
        nn.Conv2d(96, 256, 5, groups=2),
        nn.Conv2d(256, 384, 3),
        nn.Conv2d(384, 384, 3, groups=2),
        nn.Conv2d(384, 256, 3, groups=2),
    ]
    return nn.Sequential(*layers, nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000))


def vgg16() -> nn.Module:
    layers, channels = [], 3
    for width in VGG16:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.Linear(512 * 49, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000))


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    def __init__(self, channels: int, width: int, project: bool):
        super().__init__()
        sizes = [(channels, width, 1), (width, width, 3), (width, 4 * width, 1)]
        sizes += [(channels, 4 * width, 1)] if project else []
        self.convolutions = nn.Sequential(*(nn.Conv2d(i, o, k, bias=False) for i, o, k in sizes))
        self.norms = nn.Sequential(*(nn.BatchNorm2d(o) for _, o, _ in sizes))


def resnet50() -> nn.Module:
    blocks, channels = [], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(depth):
            blocks.append(Bottleneck(channels, width, project=index == 0))
            channels = 4 * width
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64))
    return nn.ModuleDict({"stem": stem, "blocks": nn.ModuleList(blocks), "fc": nn.Linear(2048, 1000)})
