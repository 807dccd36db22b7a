"""Quantized networks as files: what is loaded computes what was measured."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from haq_env.errors import InputError
from haq_env.evaluation import Recipe
from haq_env.layers import LayerTable
from haq_env.make import make_task
from haq_env.networks import load_network
from haq_env.networks.checkpoint import read_metadata, save_checkpoint, save_tensors
from haq_env.networks.trace import trace
from haq_env.quantization.frozen import InputQuantizer, load_quantized, save_quantized
from haq_env.quantization.network import QuantizedNetwork

SHORT = Recipe(steps=2, bn_images=64)


def build_of(task):
    return dict(task.evaluator.subject.build)


def float_net(task):
    """The task's architecture with weights of nobody's."""
    torch.manual_seed(7)
    return load_network(task.layers.network, **build_of(task))


def small(seed: int = 0) -> tuple[nn.Module, LayerTable]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    return net, trace(net, (1, 8, 8))


def quantized(net: nn.Module, layers: LayerTable, **options) -> QuantizedNetwork:
    return QuantizedNetwork(net, layers, calibration_images=torch.rand(8, 1, 8, 8), **options)


@pytest.mark.parametrize(
    ("network", "hardware", "options"),
    [
        ("mobilenet_v1", "bismo-edge", {}),
        ("mobilenet_v2", "bitfusion", {"budget": "w3a3"}),
        ("mobilenet_v1", "bismo-edge", {"quantizer": "lsq"}),
        ("mobilenet_v1", "size", {"budget": "w2a8", "quantizer": "kmeans", "bits": (1, 8)}),
    ],
)
def test_a_loaded_network_gives_the_measured_answers(network, hardware, options, tmp_path):
    task = make_task(network, hardware=hardware, **options)
    rng = np.random.default_rng(3)
    bits = task.project(rng.integers(2, 7, task.uniform().shape))
    measured = task.evaluator.final(bits, SHORT, 5)
    inside = task.evaluator.bench.network
    path = tmp_path / "network.safetensors"
    save_quantized(path, inside, {"network": network, "build": build_of(task), "seed": 5})
    images = task.evaluator.bench.images
    for loaded in (load_quantized(path), load_quantized(path, float_net(task))):
        with torch.no_grad():
            for part in ("val", "test"):
                batch, labels = images[part].batch(slice(None)), images[part].labels
                ours, theirs = inside(batch), loaded(batch)
                # the layout decides in which order a convolution adds, so a code may differ
                assert float((ours.argmax(1) == theirs.argmax(1)).float().mean()) >= 0.995
                assert float((ours - theirs).abs().median()) < 1e-4
                accuracy = 100 * float((theirs.argmax(1) == labels).float().mean())
                assert accuracy == pytest.approx(measured[part], abs=100 / len(labels) + 1e-6)
    about = read_metadata(path)
    assert about["seed"] == 5
    layers = about["quantized"]["layers"]
    assert [layers[name]["w_bits"] for name in task.layers.names] == bits[:, 0].tolist()


def test_stored_weights_have_no_more_values_than_their_bits_allow(tmp_path):
    net, layers = small()
    inside = quantized(net, layers)
    inside.set_policy([[2, 8], [3, 4]])
    save_quantized(tmp_path / "net.safetensors", inside)
    loaded = load_quantized(tmp_path / "net.safetensors", small(1)[0])
    assert loaded[0].weight.unique().numel() <= 3
    assert loaded[3].weight.unique().numel() <= 7
    assert torch.equal(loaded[0].bias, net[0].bias)


def test_a_loaded_network_can_be_copied_and_pickled(tmp_path):
    inside = quantized(*small())
    inside.set_policy([[2, 8], [3, 2]])
    save_quantized(tmp_path / "net.safetensors", inside)
    loaded = load_quantized(tmp_path / "net.safetensors", small(1)[0])
    batch = torch.rand(4, 1, 8, 8)
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(twin(batch), loaded(batch))


def test_what_is_no_quantized_network_is_refused_and_changes_nothing(tmp_path):
    net, layers = small()
    inside = quantized(net, layers)
    path = tmp_path / "net.safetensors"
    with pytest.raises(InputError, match="call set_policy first"):
        save_quantized(path, inside)
    assert not path.exists()
    inside.set_policy([[2, 8], [3, 2]])
    save_quantized(path, inside)

    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_checkpoint(tmp_path / "float.safetensors", net, {})
    with pytest.raises(InputError, match="holds no quantized network"):
        load_quantized(tmp_path / "float.safetensors", net)
    with pytest.raises(InputError, match="does not say how its network is built"):
        load_quantized(path)
    with pytest.raises(InputError, match="not function: call your factory"):
        load_quantized(path, lambda: net)
    other = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))
    with pytest.raises(InputError, match="another architecture"):
        load_quantized(path, other)
    assert not other[0]._forward_pre_hooks
    with pytest.raises(InputError, match="has no layer '3'"):
        load_quantized(path, nn.Sequential(*list(net)[:3]))
    with pytest.raises(InputError, match="does not exist"):
        load_quantized(tmp_path / "none.safetensors", net)
    for damage in ({"schema": 1}, {"schema": 1, "layers": [1]}, {"schema": 1, "layers": {"0": 8}}):
        save_tensors(tmp_path / "bad.safetensors", before, {"quantized": damage})
        with pytest.raises(InputError, match=r"its layers cannot be read|holds no quantized"):
            load_quantized(tmp_path / "bad.safetensors", net)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)

    load_quantized(path, net)
    with pytest.raises(InputError, match="quantizes its inputs already"):
        load_quantized(path, net)


def test_weights_that_two_layers_share_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.two(self.one(x.flatten(1)).relu())

    net = Tied().eval()
    layers = trace(net, (1, 2, 4))  # tied ones cannot be traced, but a table may be given
    net.two.weight = net.one.weight
    inside = QuantizedNetwork(net, layers, calibration_images=torch.rand(8, 1, 2, 4))
    inside.set_policy([[2, 8], [3, 2]])
    with pytest.raises(InputError, match="shares its weights with another layer"):
        save_quantized("never.safetensors", inside)


def test_the_hook_leaves_other_inputs_alone():
    hook = InputQuantizer(2, 1.0, signed=False)
    values = torch.tensor([0.4, 5.0])
    (first, second), named = hook(nn.Identity(), (values, "mask"), {"more": 1})
    assert first.tolist() == pytest.approx([1 / 3, 1.0])
    assert (second, named) == ("mask", {"more": 1})
    nothing, named = hook(nn.Identity(), (), {"input": values})
    assert nothing == ()
    assert torch.equal(named["input"], first)
    assert json.dumps(vars(hook))  # plain numbers
