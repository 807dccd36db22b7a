"""Networks are built, traced and stored as promised."""

import contextlib
import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from haq_env.errors import InputError
from haq_env.hardware.bismo import edge
from haq_env.layers import Layer, LayerTable, kind_of
from haq_env.networks import NETWORKS, load_layers, load_network
from haq_env.networks.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from haq_env.networks.layers_json import layers_from_json, layers_to_json
from haq_env.networks.scaling import scaled
from haq_env.networks.trace import quantizable, trace
from haq_env.policy import uniform
from haq_env.report.record import cost_record
from haq_env.report.tables import cost_table

PUBLISHED = {  # layers, weights, all parameters, millions of MACs at 224 pixels
    "mobilenet_v1": (28, 4_209_088, 4_231_976, 568.7),
    "mobilenet_v2": (53, 3_469_760, 3_504_872, 300.8),
    "resnet18": (21, 11_678_912, 11_689_512, 1814.1),
    "resnet50": (54, 25_502_912, 25_557_032, 4089.2),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small convolutions gain nothing from threads, which then fight for a busy machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tables():
    return {name: load_layers(name) for name in PUBLISHED}


# --- Built-in networks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_networks_have_the_published_sizes(tables, name):
    layers, weights, parameters, macs = PUBLISHED[name]
    table = tables[name]
    assert len(table) == layers
    assert table.weights == weights
    assert table.weights + table.float_parameters == parameters
    assert table.macs / 1e6 == pytest.approx(macs, abs=0.05)
    assert table.network == name
    assert table.input_shape == (3, 224, 224)


def test_resnet20_has_the_size_of_the_paper():
    table = load_layers("resnet20", classes=10, image_size=32)
    assert (len(table), table.weights) == (20, 268_336)  # "0.27 M" (He et al., table 6)
    assert table.weights + table.float_parameters == 269_722
    assert table.macs == 40_551_040
    assert [layer.name for layer in table if layer.signed_input] == ["conv1"]


def test_resnet20_shortcut_adds_zero_channels_on_both_sides():
    block = load_network("resnet20", image_size=32).eval().get_submodule("blocks.3")
    nn.init.zeros_(block.get_submodule("bn2").weight)
    features = torch.rand(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = block(features)
    assert torch.equal(out[:, 8:24], features[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        *[("mobilenet_v1", 8, 2), ("mobilenet_v1", 16, 2), ("mobilenet_v1", 28, 2)],
        *[("mobilenet_v1", 32, 2), ("mobilenet_v1", 64, 4), ("mobilenet_v1", 224, 7)],
        *[("mobilenet_v2", 32, 4), ("mobilenet_v2", 8, 2), ("resnet18", 32, 4)],
        *[("resnet50", 32, 4), ("resnet18", 64, 2), ("resnet20", 32, 8)],
    ],
)
def test_small_images_keep_a_map_of_some_pixels(name, size, last):
    table = load_layers(name, image_size=size, classes=10)
    assert table[-2].out_size == (last, last)
    assert table[-1].kind == "linear"


@pytest.mark.parametrize(
    ("size", "stem", "strides"),
    [
        (8, 1, "1112111111121"),
        (16, 1, "1212111111121"),
        (32, 1, "1212121111121"),
        (224, 2, "1212121111121"),
    ],
)
def test_mobilenet_v1_strides_are_the_documented_ones(size, stem, strides):
    table = load_layers("mobilenet_v1", image_size=size, width=0.25)
    assert table[0].stride == (stem, stem)
    found = [layer.stride[0] for layer in table if layer.kind == "depthwise"]
    assert "".join(map(str, found)) == strides


def test_a_quarter_wide_mobilenet_v1_has_8_to_256_channels():
    table = load_layers("mobilenet_v1", width=0.25, image_size=32)
    assert table[0].out_channels == 8
    assert table[-2].out_channels == 256


@given(channels=st.integers(1, 2048), width=st.floats(0.01, 8))
def test_scaled_channels_are_multiples_of_8_and_lose_at_most_a_tenth(channels, width):
    result = scaled(channels, width)
    assert result % 8 == 0
    assert result >= 8
    assert result >= 0.9 * channels * width


@pytest.mark.parametrize("name", NETWORKS)
def test_every_built_in_network_learns_at_every_setting(name):
    network = load_network(name, classes=7, image_size=16, width=0.5, in_channels=1)
    logits = network(torch.zeros(2, 1, 16, 16))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_resnets_have_torchvisions_parameters():
    for name in ("resnet18", "resnet50"):
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name)
        ours = load_network(name)
        shapes = {key: value.shape for key, value in ours.state_dict().items()}
        assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


def test_resnet18_computes_what_torchvisions_does():
    theirs = torchvision.models.resnet18().eval()
    ours = load_network("resnet18").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


# --- Loading ---------------------------------------------------------------------------------


def test_listing_networks_does_not_import_torch():
    code = "import sys, haq_env.networks as n; print(list(n.NETWORKS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['mobilenet_v1'")
    assert done.stdout.endswith("False\n")


def test_weights_depend_on_the_seed_alone_and_global_state_stays():
    before = torch.get_rng_state()
    one, same, other = (load_network("resnet20", seed=seed) for seed in (0, 0, 1))
    trace(one, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.get_parameter("conv1.weight"), same.get_parameter("conv1.weight"))
    assert not torch.equal(one.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_a_module_is_its_own_network():
    module = nn.Sequential(nn.Linear(3, 2))
    assert load_network(module) is module


def test_torchvision_models_take_classes_and_channels():
    network = load_network("squeezenet1_1", classes=5, in_channels=1)
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 5)


@pytest.fixture
def own_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(classes, in_channels=3, depth=1):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(144 // depth, classes))\n"
        "def number(): return 3\n"
        "def broken(): raise KeyError('a cable')\n"
        "text = 'tiny'\n"
        "made = nn.Linear(2, 2)\n"
    )
    (tmp_path / "broken_networks.py").write_text("import no_such_module_anywhere\n")
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.usefixtures("own_networks")
def test_a_factory_in_the_current_directory_is_found_and_given_what_it_names():
    network = load_network("own_networks:tiny", classes=5, in_channels=2, image_size=8)
    assert network(torch.zeros(1, 2, 8, 8)).shape == (1, 5)
    table = load_layers("own_networks:tiny", classes=5, in_channels=2, image_size=8)
    assert (table.network, table.names) == ("own_networks:tiny", ("0", "3"))
    assert isinstance(load_network("own_networks:made"), nn.Linear)


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks:tinny", "Did you mean 'tiny'"),
        ("own_networks:number", "returned 3, no nn.Module"),
        ("own_networks:broken", "KeyError: 'a cable'"),
        ("own_networks:text", "not callable"),
        ("broken_networks:net", "No module named 'no_such_module_anywhere'"),
        ("no_networks:net", "No module named 'no_networks'"),
        (":net", "package.module:attribute"),
        ("own_networks:", "package.module:attribute"),
        ("mobilenet_v", "Did you mean 'mobilenet_v"),
        ("densenet12", "Did you mean 'densenet121'"),
        ("", "or any torchvision classification model, or package.module:factory"),
        (3, "a name or a torch.nn.Module, not 3"),
        (None, "not None"),
    ],
)
def test_an_unusable_network_is_refused_with_its_reason(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load_network(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"classes": 0}, {"classes": True}, {"classes": 2.0}, {"image_size": -1}],
        *[{"image_size": "32"}, {"in_channels": 0}, {"width": 0}, {"width": float("nan")}],
        *[{"width": float("inf")}, {"width": "half"}, {"width": 9}, {"width": True}],
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    for load in (load_network, load_layers):
        with pytest.raises(InputError, match=next(iter(wrong))):
            load("resnet20", **wrong)


def test_torchvision_models_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="no width multiplier"):
        load_network("densenet121", width=0.5)
    with pytest.raises(InputError, match="vit_b_16' cannot be built with"):
        load_network("vit_b_16", image_size=100)


# --- Tracing ---------------------------------------------------------------------------------

TORCHVISION = {
    "densenet121": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 64,
    "googlenet": 64,
    "regnet_x_400mf": 64,
    "convnext_tiny": 64,
    "mnasnet0_5": 64,
    "squeezenet1_0": 64,
    "mobilenet_v3_small": 64,
    "vit_b_16": 32,
    "swin_t": 64,
    "mobilenet_v2": 224,
}


def seen_by_hooks(module, shape):
    """Names, input and output shapes of the layers' calls on a real batch of two."""
    calls = []
    for path, layer in quantizable(module).items():
        layer.register_forward_hook(
            lambda _, inputs, output, path=path: calls.append(
                (path, tuple(inputs[0].shape), tuple(output.shape))
            )
        )
    with torch.no_grad():
        module.eval()(torch.zeros(2, *shape))
    return calls


@pytest.mark.parametrize("name", TORCHVISION)
def test_traced_layers_are_the_called_ones_with_their_shapes(name):
    size = TORCHVISION[name]
    module = load_network(name, image_size=size, classes=10)
    table = trace(module, (3, size, size))
    calls = seen_by_hooks(module, (3, size, size))
    assert table.names == tuple(path for path, _, _ in calls)
    for layer, (path, seen_in, seen_out) in zip(table, calls, strict=True):
        part = module.get_submodule(path)
        assert layer.weights == part.weight.numel()
        if layer.kind == "linear":
            assert 2 * layer.in_size[0] * layer.in_channels == torch.Size(seen_in).numel()
            assert layer.in_size == layer.out_size
        else:
            assert (layer.in_channels, *layer.in_size) == seen_in[1:]
            assert (layer.out_channels, *layer.out_size) == seen_out[1:]
            assert layer.kind == kind_of(part.in_channels, part.groups)
            assert (layer.kernel, layer.stride) == (part.kernel_size, part.stride)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert table.float_parameters == parameters - table.weights


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "googlenet", "densenet121", "squeezenet1_0", "shufflenet_v2_x0_5"],
)
def test_inputs_called_unsigned_are_never_negative_on_random_images(name):
    module = load_network(name, classes=10)
    table = trace(module, (3, 64, 64))
    lowest = {}
    for path, layer in quantizable(module).items():
        layer.register_forward_hook(
            lambda _, inputs, __, path=path: lowest.update({path: float(inputs[0].min())})
        )
    with torch.no_grad():
        module.eval()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for layer in table:
        assert layer.signed_input == (lowest[layer.name] < 0), layer.name


def test_only_the_image_is_signed_where_relu_ends_every_block(tables):
    for name, first in (
        ("mobilenet_v1", "stem.conv"),
        ("resnet18", "conv1"),
        ("resnet50", "conv1"),
    ):
        assert [layer.name for layer in tables[name] if layer.signed_input] == [first]


def test_linear_bottlenecks_of_mobilenet_v2_make_signed_inputs(tables):
    expected = ["features.0.0"]
    expected += [f"features.{block}.conv.0.0" for block in range(2, 18)]
    expected += ["features.18.0"]
    assert [layer.name for layer in tables["mobilenet_v2"] if layer.signed_input] == expected


def test_layers_are_in_the_order_of_execution_not_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 2)
            self.unused = nn.Linear(5, 5)
            self.first = nn.Conv2d(3, 8, 3, padding=2, dilation=2)

        def forward(self, images):
            return self.last(F.relu(self.first(images)).mean((2, 3)))

    table = trace(Backwards(), (3, 9, 9))
    assert table.names == ("first", "last")
    assert table.network == "Backwards"
    assert table[0].out_size == (9, 9)
    assert table.float_parameters == 8 + 2 + 30
    assert table.uncounted == ("unused (Linear)",)


@pytest.mark.parametrize(
    ("product", "named"),
    [
        (lambda q, k: q @ k.transpose(1, 2), "1 product of activations (matmul)"),
        (lambda q, k: torch.bmm(q, k.transpose(1, 2)), "1 product of activations (bmm)"),
        (lambda q, k: torch.einsum("nif,njf->nij", q, k), "1 product of activations (einsum)"),
        (
            lambda q, k: F.scaled_dot_product_attention(q, k, k),
            "1 product of activations (scaled_dot_product_attention)",
        ),
    ],
)
def test_products_of_activations_are_named(product, named):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.keys, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(4, 2)

        def forward(self, images):
            tokens = self.stem(images).flatten(2).transpose(1, 2)
            mixed = product(tokens, self.keys(tokens))
            return self.head(mixed.flatten(1)[:, :4])

    table = trace(Attention(), (3, 4, 4))
    assert table.names == ("stem", "keys", "head")
    assert table.uncounted == (named,)


def test_what_the_table_does_not_count_is_named_with_the_most_weights_first():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mix = nn.Conv1d(8, 8, 1)
            self.norm = nn.LayerNorm(8)
            self.scale = nn.Parameter(torch.ones(1, 8))

        def forward(self, images):
            tokens = self.norm(self.stem(images).flatten(2).transpose(1, 2))
            tokens, _ = self.attention(tokens, tokens, tokens)
            return self.mix(tokens.transpose(1, 2)).mean(2) * self.scale

    table = trace(Mixed(), (3, 4, 4))
    assert table.names == ("stem",)
    assert table.uncounted == (
        "attention (MultiheadAttention)",
        "attention.out_proj (NonDynamicallyQuantizableLinear)",
        "mix (Conv1d)",
    )
    assert layers_from_json(layers_to_json(table)) == table
    assert cost_record(table, edge().cost_table(table), uniform(1, 4, 4))["uncounted"] == list(
        table.uncounted
    )
    shown = cost_table(table, edge().cost_table(table), uniform(1, 4, 4))
    assert "counted in no cost but the size: attention (Multihead" in str(shown.caption)
    assert "and 2 others" in str(shown.caption)


class Around(nn.Module):
    """One convolution, some operation, another convolution, all of four channels."""

    def __init__(self, operation, export=False):
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1)
        self.operation = operation
        self.after = nn.Conv2d(4, 4, 1)
        self.export = export

    def forward(self, images):
        # fx cannot decide this; torch.export can.
        if self.export and images.shape[2] < 1:
            return images
        return self.after(self.operation(self.before(images)))


def wrote_through_a_view(x):
    x = x.relu()
    x.view(-1).sub_(1)
    return x


def subtracted_in_place(x):
    x = x.relu()
    x -= 1
    return x


def relu_in_place(x):
    x.relu_()
    return x


def overwritten(x):
    y = x.relu()
    y[:, 0] = x[:, 0]
    return y


def forgotten_result(x):
    F.relu(x, inplace=True)
    return x


class ForgottenResult(nn.Module):
    """Calls an in-place ReLU and goes on with the tensor that was written into."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        self.relu(x)
        return x


UNSIGNED = [
    forgotten_result,
    ForgottenResult(),
    F.relu,
    F.relu6,
    torch.sigmoid,
    torch.abs,
    nn.ReLU(inplace=True),
    nn.Hardsigmoid(),
    nn.Hardtanh(0, 1),
    relu_in_place,
    lambda x: x.softmax(dim=1),
    lambda x: x.clamp(min=0),
    lambda x: torch.clamp(x, 0, 6),
    lambda x: x.relu().mean(dim=(2, 3), keepdim=True),
    lambda x: F.relu(x) + torch.sigmoid(x),
    lambda x: F.relu(x) * 2 + 1,
    lambda x: torch.cat([x[:, :2].relu(), x[:, 2:].abs()], dim=-3),
    lambda x: F.pad(F.max_pool2d(F.relu(x), 2), (1, 1, 1, 1)),
    lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bilinear"),
    lambda x: F.adaptive_avg_pool2d(x.relu(), 1).flatten(1).view(-1, 4, 1, 1),
    lambda x: x.relu().chunk(2, dim=1)[0].repeat(1, 2, 1, 1),
    lambda x: F.dropout(F.relu(x), 0.5, False).permute(0, 1, 3, 2).contiguous(),
    lambda x: torch.maximum(x, x.relu()),
    lambda x: x.relu().where(x.abs() > 0.3, x.sigmoid()),
]
SIGNED = [
    lambda x: x,
    F.gelu,
    nn.SiLU(),
    nn.BatchNorm2d(4),
    nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
    nn.Hardtanh(),
    lambda x: F.relu(x) - 1,
    lambda x: F.relu(x) + x,
    lambda x: F.relu(x) * -1,
    lambda x: x.relu().add(-1),
    lambda x: torch.cat([x[:, :2].relu(), x[:, 2:]], dim=1),
    lambda x: x.clamp(min=-1),
    lambda x: x.relu().clamp(max=-1),
    lambda x: F.pad(F.relu(x), (1, 1, 1, 1), value=-1.0),
    lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic"),
    lambda x: torch.minimum(x, x.relu()),
    lambda x: x.where(x.abs() < 0.3, 0.0),
    wrote_through_a_view,
    subtracted_in_place,
    overwritten,
]


@pytest.mark.parametrize("export", [False, True], ids=["fx", "export"])
@pytest.mark.parametrize(
    ("operation", "signed"), [(o, False) for o in UNSIGNED] + [(o, True) for o in SIGNED]
)
def test_signs_follow_from_the_operations_in_between(operation, signed, export):
    table = trace(Around(operation, export), (3, 8, 8))
    assert table.names == ("before", "after")
    assert [layer.signed_input for layer in table] == [True, signed]


class Writing(nn.Module):
    """Its last layers write into what earlier ones have read."""

    def __init__(self, export):
        super().__init__()
        self.first, self.second, self.skip = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.export = export

    def forward(self, images):
        if self.export and images.shape[2] < 2:  # only torch.export follows that
            return images
        features = self.second(F.relu(self.first(images)))
        kept = self.skip(features)  # before they are made positive in place
        pooled = F.relu(features, inplace=True).mean((2, 3), keepdim=True)
        pooled.sub_(kept.mean())  # which says nothing of what the second layer has read
        return pooled


@pytest.mark.parametrize("export", [False, True], ids=["fx", "export"])
def test_a_layers_input_has_the_sign_that_it_has_when_it_is_read(export):
    table = trace(Writing(export), (4, 8, 8))
    signed = {layer.name: layer.signed_input for layer in table}
    assert signed == {"first": True, "second": False, "skip": True}


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padding_is_no_part_of_a_layers_input(mode, padding):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Conv2d(3, 4, 1)
            self.padded = nn.Conv2d(4, 8, 3, padding=padding, padding_mode=mode)

        def forward(self, images):
            features = F.relu(self.before(images))
            if features.shape[2] < 2:  # only torch.export follows that
                return features
            return self.padded(features)

    layer = trace(Padded(), (3, 8, 8))[1]
    assert (layer.in_size, layer.out_size, layer.signed_input) == ((8, 8), (8, 8), False)


def test_what_is_not_called_as_conv2d_or_linear_stays_float():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2)
            self.conv = nn.Conv2d(4, 4, 1)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.raw = nn.Parameter(torch.zeros(2, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            tokens = self.conv(self.up(images)).flatten(2).transpose(1, 2)
            tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return self.head(tokens) + F.linear(tokens, self.raw)

    table = trace(Mixed(), (3, 4, 4))
    assert table.names == ("conv", "head")
    assert table[1].in_size == table[1].out_size == (25, 1)


@pytest.mark.parametrize("grad", [False, True])
def test_layers_inside_torchs_transformer_are_found(grad):
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with torch.set_grad_enabled(grad):
        table = trace(nn.Sequential(encoder, nn.Linear(16, 2)), (10, 16))
    assert table.names == ("0.linear1", "0.linear2", "1")
    assert [layer.signed_input for layer in table] == [True, False, True]
    assert table[0].in_size == (10, 1)


def test_subclasses_and_optional_arguments_are_followed():
    class Standardised(nn.Conv2d):
        def forward(self, features):
            weight = self.weight - self.weight.mean()
            return F.conv2d(features, weight, self.bias, self.stride)

    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Standardised(3, 4, 3, stride=2)
            self.relu = nn.ReLU()
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, images, mask=None, *rest, scale=1.0, **more):
            out = self.head(input=self.relu(input=self.conv(images)))
            return out if mask is None else out * mask

    table = trace(Optional(), (3, 9, 9))
    assert [(layer.name, layer.signed_input) for layer in table] == [
        ("conv", True),
        ("head", False),
    ]


def test_frames_folded_into_the_batch_count_as_one_sample():
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, video):
            frames = self.conv(video.flatten(0, 1)).mean((2, 3))
            return self.head(frames)

    table = trace(Video(), (5, 3, 8, 8))
    assert table[0].out_size == (30, 6)
    assert table[0].macs == 5 * 36 * 4 * 27
    assert table[1].in_size == (5, 1)


def test_tracing_leaves_the_network_as_it_was():
    network = load_network("mobilenet_v2", image_size=32, width=0.25)
    network.get_submodule("features.3").eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    attributes = [set(vars(module)) for module in network.modules()]
    trace(network, (3, 32, 32))
    trace(Around(nn.BatchNorm2d(4), export=True), (3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [set(vars(module)) for module in network.modules()] == attributes


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, features):
        out = self.conv(features)
        return out * 2 if out.sum() > 0 else out


def blocks(*modules):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*modules))


def tied():
    module = blocks(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    module[1][1].weight = module[1][0].weight
    return module


class ReadTwice(nn.Module):
    """An autoencoder that decodes with the weight that it encodes with."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(6, 2)

    def forward(self, x):
        size = self.fc.weight.shape[1], self.fc.weight.dtype  # asking is not reading
        x = self.conv(x)[..., : size[0]].to(size[1])
        return F.linear(self.fc(x).relu(), self.fc.weight.t())


SHARED = nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.ReLU(), (3, 8, 8), "nothing to quantize"),
        (nn.Sequential(nn.Conv1d(3, 3, 1)), (3, 8), "nothing to quantize"),
        (blocks(Branching()), (3, 8, 8), r"cannot be traced in '1\.0'.*LayerTable of your own"),
        (blocks(Branching()), (1, 8, 8), r"input of shape \[1, 8, 8\]: module '0' failed.*channel"),
        (blocks(nn.Flatten(), nn.Linear(9, 2)), (3, 8, 8), r"module '1\.1' failed.*shapes"),
        (blocks(SHARED, nn.ReLU(), SHARED), (3, 8, 8), r"'1\.0' is called 2 times.*of its own"),
        (Around(nn.Sequential(SHARED, SHARED), True), (3, 8, 8), "is called 2 times"),
        (Around(tied()[1], True), (3, 8, 8), r"share one weight"),
        (tied(), (3, 8, 8), r"'1\.0' and '1\.1' share one weight"),
        (ReadTwice(), (3, 8, 8), r"something besides layer 'fc' computes with its weight"),
        (nn.Sequential(nn.LazyLinear(3)), (8,), "lazy"),
        (blocks(), (), "input_shape"),
        (blocks(), (3, 0, 8), "input_shape"),
        (blocks(), "abc", "input_shape"),
        (blocks(), 3, "input_shape"),
        (blocks(), (3, 2, 2), "module '0' failed"),
    ],
)
def test_networks_that_cannot_be_used_are_refused_with_the_place(module, shape, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        trace(module, shape)


# --- Checkpoints and layer tables as JSON ----------------------------------------------------


@pytest.fixture
def network():
    return load_network("resnet20", classes=10, image_size=32, width=0.5)


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_brings_weights_and_metadata_back(tmp_path, network, half):
    path = tmp_path / "new" / "net.safetensors"
    table = trace(network, (3, 32, 32), name="resnet20")
    metadata = {"accuracy": 0.917, "layers": layers_to_json(table)}
    save_checkpoint(path, network, metadata, half=half)
    other = load_network("resnet20", classes=10, image_size=32, width=0.5, seed=1)
    assert load_checkpoint(path, other) == read_metadata(path) == metadata
    assert layers_from_json(read_metadata(path)["layers"]) == table
    for key, value in network.state_dict().items():
        found = other.state_dict()[key]
        narrow = half and value.dim() > 1
        assert torch.equal(found, value.half().float() if narrow else value)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_metadata_and_layers_are_read_without_torch(tmp_path, network):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, network, {"layers": layers_to_json(trace(network, (3, 32, 32)))})
    code = (
        "import sys\n"
        "from haq_env.networks.checkpoint import read_metadata\n"
        "from haq_env.networks.layers_json import layers_from_json\n"
        f"print(len(layers_from_json(read_metadata({str(path)!r})['layers'])))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["20", "False"]


def test_tied_weights_can_be_stored(tmp_path):
    module = tied()
    save_checkpoint(tmp_path / "a", module, {})
    assert load_checkpoint(tmp_path / "a", module) == {}


def test_foreign_checkpoints_are_refused_by_their_first_tensors(tmp_path, network):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, network, {})
    with pytest.raises(InputError, match=r"conv1\.weight of shape \[8, 3, 3, 3\] instead of \[16"):
        load_checkpoint(path, load_network("resnet20", classes=10))
    other = nn.Sequential(nn.Conv2d(3, 8, 3))
    before = other[0].weight.clone()
    with pytest.raises(InputError, match=r"lacks 0\.weight, 0\.bias; it has .* and \d+ more"):
        load_checkpoint(path, other)
    assert torch.equal(other[0].weight, before)


def test_pickles_are_refused_and_not_run(tmp_path, network):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(network.state_dict(), tmp_path / "a.pth")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.pth", "b.pkl"):
        with pytest.raises(InputError, match="is a pickle"):
            load_checkpoint(tmp_path / name, network)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_read_but_never_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    module = nn.Linear(2, 2)
    path = folder / "net.safetensors"
    save_checkpoint(path, module, {"accuracy": 1})
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    for read in (read_metadata, lambda file: load_checkpoint(file, module)):
        with contextlib.suppress(InputError):
            assert isinstance(read(path), dict)


def test_missing_files_and_unwritable_metadata_are_input_errors(tmp_path, network):
    with pytest.raises(InputError, match="does not exist"):
        read_metadata(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path, network)
    for metadata in ({"a": float("nan")}, {"a": network}):
        with pytest.raises(InputError, match="not JSON"):
            save_checkpoint(tmp_path / "net", network, metadata)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "net", network, {})


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="damaged or no safetensors"):
        read_metadata(path)


@given(
    channels=st.integers(1, 64),
    out=st.integers(1, 64),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    signed=st.booleans(),
    rest=st.integers(0, 10**9),
)
def test_layer_tables_survive_json(channels, out, kernel, signed, rest):
    layer = Layer("a.b", "conv", channels, out, kernel=kernel, signed_input=signed)
    table = LayerTable("net", (layer, replace(layer, name="c")), (channels, 5, 6), rest)
    assert layers_from_json(json.loads(json.dumps(layers_to_json(table)))) == table


def test_a_kernel_that_is_no_pair_is_refused_in_python_too():
    for field in ("kernel", "stride", "in_size", "out_size"):
        with pytest.raises(InputError, match=f"{field} must be a pair, not 3"):
            Layer("a", "conv", 3, 4, **{field: 3})


def test_a_table_by_hand_may_have_numpys_integers_and_lists():
    numbers = np.array([3, 8, 1, 5])
    layer = Layer("a", "conv", numbers[0], numbers[1], [numbers[2]] * 2, in_size=[5, numbers[3]])
    assert layer == Layer("a", "conv", 3, 8, (1, 1), in_size=(5, 5))
    table = LayerTable("net", [layer], uncounted=["b (Conv1d)"])
    assert layers_from_json(json.loads(json.dumps(layers_to_json(table)))) == table
    assert len({table, LayerTable("net", (layer,), uncounted=("b (Conv1d)",))}) == 1
    for wrong in ({"uncounted": "b"}, {"float_parameters": 1.5}, {"float_parameters": -5}):
        with pytest.raises(InputError, match="float_parameters"):
            LayerTable("net", (layer,), **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "must be a list"),
        ({"layers": [3]}, "must be a JSON object"),
        ({"layers": [{}]}, "lacks 'name'"),
        ({"layers": [{"name": "a", "colour": 1}]}, "unknown layer field 'colour'"),
        ({"input_shape": "big"}, "input_shape"),
        ({"input_shape": [3, True]}, "input_shape"),
        ({"float_parameters": -1}, "float_parameters"),
        ({"float_parameters": 1.5}, "float_parameters"),
        ({"uncounted": "a"}, "'uncounted' of the layer table must be a list of texts"),
        ({"layers": []}, "no convolution"),
    ],
)
def test_impossible_layer_tables_are_refused(change, message):
    content = layers_to_json(LayerTable("net", (Layer("a", "conv", 3, 4),)))
    with pytest.raises(InputError, match=message):
        layers_from_json({**content, **change})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", 3), ("kind", ["conv"]), ("kind", "deep"), ("in_channels", "3")],
        *[("kernel", [3]), ("kernel", 3), ("stride", [1, 0]), ("signed_input", 1), ("groups", 2)],
    ],
)
def test_impossible_layers_are_refused(field, value):
    content = layers_to_json(LayerTable("net", (Layer("a", "conv", 3, 4),)))
    content["layers"][0][field] = value
    with pytest.raises(InputError):
        layers_from_json(content)
    with pytest.raises(InputError, match="lacks 'network'"):
        layers_from_json({"layers": []})
    with pytest.raises(InputError, match="must be a JSON object"):
        layers_from_json([])


class Keeps(nn.Module):
    """Makes a grid at the first image, and has its features stored by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 10)
        self.grid, self.kept = None, {}
        self.relu.register_forward_hook(lambda module, inputs, out: self.kept.update(out=out))

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.zeros_like(x[:1, :1])
        return self.fc(self.relu(self.conv(x + self.grid)).mean((2, 3)))


def test_a_network_that_keeps_something_of_its_input_keeps_nothing_of_the_tracing():
    network = Keeps()
    assert trace(network, (3, 16, 16)).names == ("conv", "fc")
    assert network.grid is None
    assert not network.kept
    assert len(network.relu._forward_hooks) == 1
    copy.deepcopy(network)
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 10)


class Hides(nn.Module):
    """Calls its first layer in a block that tracing does not look into."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.how = how

    def forward(self, x):
        if self.how != "isinstance" and x.shape[2] != x.shape[3]:  # too much for torch.fx
            raise ValueError("square images only")
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.first(x)
        elif self.how == "autocast":
            with torch.autocast("cpu", enabled=False):
                x = self.first(x)
        elif isinstance(x, torch.Tensor):
            x = self.first(x)
        return self.fc(self.second(x).mean((2, 3)))


@pytest.mark.parametrize("how", ["no_grad", "autocast"])
def test_a_layer_that_tracing_does_not_see_is_named_and_not_left_out(how):
    with pytest.raises(InputError, match="layer 'first' is called, and tracing does not see it"):
        trace(Hides(how), (3, 16, 16))


def test_what_is_done_with_tensors_alone_is_traced_too():
    assert trace(Hides("isinstance"), (3, 16, 16)).names == ("first", "second", "fc")


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_of_an_encoder_are_seen_whether_or_not_they_are_trained(frozen):
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).requires_grad_(not frozen)
    network = nn.Sequential(nn.Linear(8, 16), encoder, nn.Flatten(), nn.Linear(64, 4))
    assert trace(network, (4, 8)).names == ("0", "1.linear1", "1.linear2", "3")
