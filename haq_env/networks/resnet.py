"""ResNet-18 and -50 for images of any size, and the ResNet-20 of CIFAR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from haq_env.networks.scaling import scaled

SMALL_IMAGE = 64  # below this many pixels the stem keeps the resolution


class ResNet(nn.Module):
    """A residual network of torchvision's blocks (He et al. 2016), with a width.

    Parameter names and, at width 1 and for images of 64 pixels and more, shapes are torchvision's,
    so its checkpoints fit. Images below 64 pixels get a 3x3 stem of stride 1 without max pooling.

    Args:
        block: torchvision's `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        classes: outputs of the classifier.
        image_size: height of the images in pixels; it chooses the stem.
        width: factor on all channel counts, which stay multiples of 8.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        classes: int = 1000,
        image_size: int = 224,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        base = scaled(64, width)
        small = image_size < SMALL_IMAGE
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, base, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        channels = base
        stages = []
        for index, depth in enumerate(depths):
            planes = scaled(64 * 2**index, width)
            stages.append(_stage(block, channels, planes, depth, 1 if index == 0 else 2))
            channels = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, classes]."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters.

    Args:
        in_channels: channels of the input.
        channels: channels of the output, not fewer.
        stride: 1 or 2. With 2 the shortcut takes every second pixel.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, channels, ceil(H / stride), ceil(W / stride)]."""
        shortcut = features
        if self.stride > 1 or self.added:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
            # Half of the new channels in front and half behind, all zero: option A.
            front = self.added // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, front, self.added - front))
        hidden = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        hidden += shortcut
        return F.relu(hidden, inplace=True)


class CifarResNet(nn.Module):
    """The ResNet of 6n + 2 layers for 32x32 images (He et al. 2016, section 4.2).

    Shortcuts are of option A, which have no parameters: every layer is a 3x3 convolution but the
    classifier.

    Args:
        depth: blocks in each of the three stages (n; 3 for ResNet-20).
        classes: outputs of the classifier.
        width: factor on the channels 16, 32 and 64, which stay multiples of 8.
        in_channels: channels of the images.
    """

    def __init__(
        self, depth: int, classes: int = 10, width: float = 1.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for stage in range(3):
            for index in range(depth):
                out = scaled(16 * 2**stage, width)
                blocks.append(CifarBlock(channels, out, 2 if stage and index == 0 else 1))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, classes]."""
        features: Tensor = self.pool(self.blocks(F.relu(self.bn1(self.conv1(images)))))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def resnet18(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """ResNet-18, torchvision's, with a small stem for small images (`ResNet`)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, image_size, width, in_channels)


def resnet50(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """ResNet-50, torchvision's: the stride is on the 3x3 convolution (`ResNet`)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, image_size, width, in_channels)


def resnet20(
    *, classes: int = 1000, image_size: int = 32, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """ResNet-20 for small images, strides alike at every size (`CifarResNet`)."""
    return CifarResNet(3, classes, width, in_channels)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    stride: int,
) -> nn.Sequential:
    channels = planes * block.expansion
    shortcut = None
    if stride > 1 or in_channels != channels:
        conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))
    blocks = [block(in_channels, planes, stride, shortcut)]
    blocks += [block(channels, planes) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
