"""Layer tables of the networks in the papers, written out by hand: what the tests check against."""

from __future__ import annotations

from haq_env.layers import Layer, LayerTable, kind_of


def conv(
    name: str, cin: int, cout: int, size: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Layer:
    """Build a square convolution with "same" padding on a map of size x size."""
    out = -(-size // stride)
    return Layer(
        name,
        kind_of(cin, groups),
        cin,
        cout,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        groups=groups,
        in_size=(size, size),
        out_size=(out, out),
    )


def linear(name: str, cin: int, cout: int, positions: int = 1) -> Layer:
    return Layer(name, "linear", cin, cout, in_size=(positions, 1), out_size=(positions, 1))


def mobilenet_v1() -> LayerTable:
    layers = [conv("conv1", 3, 32, 224, kernel=3, stride=2)]
    pairs = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    pairs += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
    size = 112
    for number, (cin, cout, stride) in enumerate(pairs, start=1):
        layers.append(conv(f"dw{number}", cin, cin, size, kernel=3, stride=stride, groups=cin))
        size //= stride
        layers.append(conv(f"pw{number}", cin, cout, size))
    layers.append(linear("fc", 1024, 1000))
    return LayerTable("mobilenet_v1", tuple(layers), (3, 224, 224), float_parameters=22_888)


def mobilenet_v2() -> LayerTable:
    layers = [conv("conv1", 3, 32, 224, kernel=3, stride=2)]
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    stages += [(6, 160, 3, 2), (6, 320, 1, 1)]
    cin, size, number = 32, 112, 0
    for expand, cout, repeats, first_stride in stages:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            hidden, number = cin * expand, number + 1
            if expand > 1:
                layers.append(conv(f"expand{number}", cin, hidden, size))
            dw = conv(f"dw{number}", hidden, hidden, size, kernel=3, stride=stride, groups=hidden)
            size //= stride
            layers += [dw, conv(f"project{number}", hidden, cout, size)]
            cin = cout
    layers += [conv("head", 320, 1280, 7), linear("fc", 1280, 1000)]
    return LayerTable("mobilenet_v2", tuple(layers), (3, 224, 224), float_parameters=35_112)


def resnet50() -> LayerTable:
    layers = [conv("conv1", 3, 64, 224, kernel=7, stride=2)]
    cin, size = 64, 56
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            name = f"stage{stage + 1}.{block}"
            layers += [
                conv(f"{name}.conv1", cin, width, size),
                conv(f"{name}.conv2", width, width, size, kernel=3, stride=stride),
                conv(f"{name}.conv3", width, 4 * width, size // stride),
            ]
            if block == 0:
                layers.append(conv(f"{name}.shortcut", cin, 4 * width, size, stride=stride))
            cin, size = 4 * width, size // stride
    layers.append(linear("fc", 2048, 1000))
    return LayerTable("resnet50", tuple(layers), (3, 224, 224), float_parameters=54_120)
