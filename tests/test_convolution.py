"""Promises of training steps: faster ways of torch's convolutions, which compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from haq_env import make_task
from haq_env.policy import uniform
from haq_env.quantization.convolution import convolve


def torchs(layer, inputs, weight):
    """What torch's own convolution does."""
    return layer._conv_forward(inputs, weight, layer.bias)


@st.composite
def layers(draw):
    """A convolution, in either layout, and the size of its maps: plain, depthwise, pointwise."""
    kind = draw(st.sampled_from(["plain", "depthwise", "pointwise", "one channel"]))
    channels = 1 if kind == "one channel" else draw(st.integers(2, 9))
    kernel = (
        (1, 1) if kind == "pointwise" else draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    )
    padding = draw(
        st.one_of(
            st.tuples(*(st.integers(0, k) for k in kernel)), st.sampled_from(["valid", "same"])
        )
    )
    stride = 1 if padding == "same" else draw(st.integers(1, 3))
    groups = channels if kind == "depthwise" else 1
    layer = nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    layout = draw(st.sampled_from([torch.channels_last, torch.contiguous_format]))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    around = (0, 0) if isinstance(padding, str) else padding
    for size, k, p, d in zip((height, width), kernel, around, layer.dilation, strict=True):
        # torch itself refuses a kernel that does not fit
        if padding != "same" and size + 2 * p < d * (k - 1) + 1:
            height, width = max(height, d * (k - 1) + 1), max(width, d * (k - 1) + 1)
    shape = (draw(st.integers(1, 3)), channels, height, width)
    return layer.to(memory_format=layout), shape, layout


@settings(max_examples=300, deadline=None)
@given(drawn=layers(), seed=st.integers(0, 999))
def test_every_way_gives_the_outputs_and_the_gradients_of_torch(drawn, seed):
    layer, shape, layout = drawn
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator).to(memory_format=layout)
    weight = torch.randn(layer.weight.shape, generator=generator).to(memory_format=layout)
    found = []
    for way in (convolve, torchs):
        operands = [inputs.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = way(layer, *operands)
        scale = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        found.append([output, *torch.autograd.grad((output * scale).sum(), operands)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_single_image_without_its_batch_is_convolved_as_well():
    layer = nn.Conv2d(3, 4, 1)
    image = torch.rand(3, 5, 5)
    assert torch.equal(convolve(layer, image, layer.weight), layer(image))


def test_borders_that_are_not_zero_stay_what_they_are():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="replicate")
    images = torch.rand(2, 4, 2, 2)
    assert torch.equal(convolve(layer, images, layer.weight), layer(images))


@pytest.fixture(scope="module")
def digits():
    task = make_task("mobilenet_v1", "digits", "bismo-edge", budget="w4a4")
    return task.evaluator.bench


def test_networks_of_one_channel_train_with_channels_last(digits):
    layouts = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, output: layouts.append(
                output.is_contiguous(memory_format=torch.channels_last)
            )
        )
        for layer in digits.network.quantized_layers[:-3]  # the last maps have no layout
    ]
    digits.network.set_policy(uniform(28, 4, 4))
    digits.network.train()
    digits.network(digits.images["train"].batch(slice(0, 4)))
    for handle in handles:
        handle.remove()
    assert layouts
    assert all(layouts)


def test_what_is_measured_without_gradients_is_what_torch_computes(digits, monkeypatch):
    network = digits.network
    network.restore()
    network.set_policy(uniform(28, 3, 2))
    images = digits.images["train"].batch(slice(0, 256))

    def answers():
        network.recalibrate_batchnorm(images)  # in training mode
        network.eval()
        with torch.no_grad():
            return network(images).numpy()

    ours = answers()
    monkeypatch.setattr(
        "haq_env.quantization.layers.convolve", lambda layer, *_: pytest.fail("no training step")
    )
    np.testing.assert_array_equal(ours, answers())


def test_a_step_on_maps_smaller_than_their_kernels_takes_no_longer_than_on_padded_ones():
    import time

    layer = nn.Conv2d(256, 256, 3, padding=1, groups=256).to(memory_format=torch.channels_last)
    inputs = torch.rand(64, 256, 2, 2).to(memory_format=torch.channels_last).requires_grad_()

    def seconds(way):
        taken = []
        for _ in range(7):
            start = time.process_time()
            way(layer, inputs, layer.weight).sum().backward()
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(convolve) < 0.7 * seconds(torchs)  # 0.07 where it was measured
