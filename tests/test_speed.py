"""The benchmark of speed compares like with like, and runs."""

from __future__ import annotations

import subprocess
import sys
import timeit
from math import isqrt
from pathlib import Path

import numpy as np
import plain_haq
import pytest
import torch
from speed_roofline import Roof

from haq_env.data import load_dataset
from haq_env.evaluation import Recipe
from haq_env.evaluation.bench import Subject
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.networks import load_network
from haq_env.networks.bundled import find_trained
from haq_env.networks.checkpoint import load_checkpoint
from haq_env.networks.trace import trace
from haq_env.quantization.batchnorm import recalibrate_batchnorm
from haq_env.quantization.calibration import clip_table
from haq_env.quantization.network import QuantizedNetwork

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def subject():
    module = load_network("mobilenet_v1", classes=10, image_size=32, width=0.25).eval()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    recalibrate_batchnorm(module, images)
    return module, trace(module, (3, 32, 32), name="mobilenet_v1"), images


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_plain_threshold_is_the_one_of_our_haq_rule(bits):
    values = np.random.default_rng(bits).normal(size=20_000).astype(np.float32)
    ours = clip_table(values, signed=True, rule="haq-kl").clip[bits - 1]
    assert plain_haq.threshold(values, bits) == pytest.approx(ours, rel=1e-5)


def test_plain_network_computes_what_ours_does_under_haqs_rule(subject):
    module, layers, images = subject
    bits = np.random.default_rng(0).integers(2, 9, (len(layers), 2))
    bits[[0, -1]] = 8
    # numpy's rule gives a tensor of n^2 weights n + 1 bins, ours n: then clips differ by a bin
    square = np.array([isqrt(layer.weights) ** 2 == layer.weights for layer in layers])
    bits[square, 0] = np.maximum(bits[square, 0], 5)
    network, parts = plain_haq.plain_network(module, layers)
    ours = QuantizedNetwork(module, layers, clip="haq-kl", calibration_images=images)
    ours.set_policy(bits)
    with torch.no_grad():
        for part, (w_bits, a_bits) in zip(parts, bits.tolist(), strict=True):
            part.w_bits, part.a_bits, part.calibrating = w_bits, a_bits, True
        network(images)
        for part in parts:
            part.calibrating = False
        expected, found = ours(images), network(images)
    # almost all; a sum that is rounded otherwise may fall on the other side of a step
    assert torch.isclose(found, expected, atol=0.02 * float(expected.std())).float().mean() > 0.9
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))


def test_plain_evaluator_measures_eight_bits_like_the_float_network(subject):
    found = find_trained("mobilenet_v1", "digits")
    module = load_network("mobilenet_v1", **dict(found.build))
    load_checkpoint(found.checkpoint, module)
    data = load_dataset("digits", **dict(found.dataset_options))
    bits = np.full((len(found.layers), 2), 8)
    recipe = Recipe(steps=2)
    plain = plain_haq.PlainEvaluator(module.eval(), found.layers, data, recipe)
    ours = TrainedEvaluator(Subject(module, data, found.layers), recipe)
    assert plain.evaluate(bits).accuracy == pytest.approx(ours.float_accuracy, abs=2)
    # a second evaluation starts from the same weights
    assert plain.evaluate(bits).accuracy == pytest.approx(ours.float_accuracy, abs=2)


@pytest.mark.slow
def test_one_section_runs_quickly_and_prints_its_lines(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--quick", "--only", "inference"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode in (0, 1), done.stderr
    for figure in ("plain / float", "ours / float", "integer / float"):
        assert figure in done.stdout


@pytest.mark.slow
def test_every_section_runs_quickly(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode in (0, 1), done.stderr
    sections = (
        "evaluation inference step episode search prefix calibration kmeans overhead growth cuda"
    )
    for name in sections.split():
        assert f" {name} " in done.stdout, name


def test_the_roofline_is_the_sum_of_each_layers_longer_side(subject):
    _, layers, _ = subject
    fast = Roof(flops=1e30, bandwidth=8.0)
    numbers = sum(3 * (one.input_features + one.out_channels * one.pixels) for one in layers)
    weights = sum(one.weights for one in layers)
    assert fast.seconds(layers, 3) == pytest.approx(4 * (numbers + weights) / 8)
    assert Roof(2.0, 1e30).seconds(layers, 3) == pytest.approx(3 * layers.macs)
    both = Roof(1e6, 1e6).seconds(layers, 3)
    assert both > Roof(1e6, 1e30).seconds(layers, 3)
    assert both > Roof(1e30, 1e6).seconds(layers, 3)


def test_no_network_is_faster_than_the_roofline_of_this_machine(subject):
    module, layers, _ = subject
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        roof = Roof.of(torch.device("cpu"), rows=1024, numbers=1 << 24)
        images = torch.randn(64, 3, 32, 32)
        with torch.no_grad():
            took = min(timeit.repeat(lambda: module(images), number=1, repeat=3))
    finally:
        torch.set_num_threads(threads)
    assert 0 < roof.seconds(layers, len(images)) < took
