"""MobileNet-V1 and MobileNet-V2 for images of any size.

ImageNet's five halvings of the map would leave one pixel of a 32x32 image, so small images get a
stem of stride 1 and, where they are smaller still, fewer strided blocks. From 28 to 64 pixels the
layouts are those that most work on CIFAR uses, https://github.com/kuangliu/pytorch-cifar: V1
(``models/mobilenet.py``) keeps its four strided pairs and ends in 2x2 pixels at 32x32, V2
(``models/mobilenetv2.py``) loses the stride of its second stage and ends in 4x4. V2's blocks are
torchvision's: where the channels change there is no shortcut.
"""

from __future__ import annotations

from collections import OrderedDict

import torchvision
from torch import Tensor, nn

from haq_env.networks.scaling import scaled, with_input_channels

# Output channels of the 13 depthwise/pointwise pairs (Howard et al. 2017, table 1).
V1_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

# (largest image size, stride of the stem, strides of the pairs), the smallest images first.
V1_STRIDES: tuple[tuple[float, int, tuple[int, ...]], ...] = (
    (11, 1, (1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1)),
    (27, 1, (1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1)),
    (64, 1, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)),
    (float("inf"), 2, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)),
)

# Expansion, channels, repeats of the 7 stages (Sandler et al. 2018, table 2).
V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))

V2_STRIDES: tuple[tuple[float, int, tuple[int, ...]], ...] = (
    (11, 1, (1, 1, 2, 1, 1, 2, 1)),
    (64, 1, (1, 1, 2, 2, 1, 2, 1)),
    (float("inf"), 2, (1, 2, 2, 2, 1, 2, 1)),
)


class MobileNetV1(nn.Module):
    """MobileNet-V1 (Howard et al. 2017): depthwise and pointwise convolutions in pairs.

    The 28 quantizable layers are ``stem.conv``, ``blocks.I.depthwise.conv`` and
    ``blocks.I.pointwise.conv`` for I = 0 to 12, and ``classifier``.

    Args:
        classes: outputs of the classifier.
        image_size: height of the images in pixels; it chooses the strides.
        width: factor on all channel counts, which stay multiples of 8.
        in_channels: channels of the images.
    """

    def __init__(
        self, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        stem_stride, strides = _strides(V1_STRIDES, image_size)
        channels = scaled(32, width)
        self.stem = _conv_bn_relu(in_channels, channels, 3, stem_stride)
        blocks = []
        for full, stride in zip(V1_CHANNELS, strides, strict=True):
            out = scaled(full, width)
            pair: OrderedDict[str, nn.Module] = OrderedDict(
                depthwise=_conv_bn_relu(channels, channels, 3, stride, groups=channels),
                pointwise=_conv_bn_relu(channels, out, 1, 1),
            )
            blocks.append(nn.Sequential(pair))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, classes]."""
        features: Tensor = self.pool(self.blocks(self.stem(images)))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def mobilenet_v1(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """MobileNet-V1: 13 pairs of depthwise and pointwise convolutions (`MobileNetV1`)."""
    return MobileNetV1(classes, image_size, width, in_channels)


def mobilenet_v2(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """MobileNet-V2, torchvision's, with strides that fit the image size.

    Parameter names are torchvision's, so its checkpoints fit.
    """
    stem_stride, strides = _strides(V2_STRIDES, image_size)
    stages = [[*stage, stride] for stage, stride in zip(V2_STAGES, strides, strict=True)]
    network: nn.Module = torchvision.models.MobileNetV2(
        num_classes=classes, width_mult=width, inverted_residual_setting=stages
    )
    stem = network.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (stem_stride, stem_stride)
    return with_input_channels(network, in_channels)


def mobilenet_v1_050(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """MobileNet-V1 of half the width; a further width is a factor on that."""
    return mobilenet_v1(
        classes=classes, image_size=image_size, width=0.5 * width, in_channels=in_channels
    )


def mobilenet_v2_050(
    *, classes: int = 1000, image_size: int = 224, width: float = 1.0, in_channels: int = 3
) -> nn.Module:
    """MobileNet-V2 of half the width; a further width is a factor on that."""
    return mobilenet_v2(
        classes=classes, image_size=image_size, width=0.5 * width, in_channels=in_channels
    )


def _conv_bn_relu(
    in_channels: int, channels: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=relu))


def _strides(
    layouts: tuple[tuple[float, int, tuple[int, ...]], ...], image_size: int
) -> tuple[int, tuple[int, ...]]:
    return next((stem, blocks) for largest, stem, blocks in layouts if image_size <= largest)
