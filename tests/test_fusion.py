"""Promises of the fused network: faster, and the same to the last bit."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq_env.networks import load_network
from haq_env.networks.trace import trace
from haq_env.quantization import network as network_module
from haq_env.quantization.fusion import AbsorbedReLU, InPlaceBatchNorm2d
from haq_env.quantization.network import QuantizedNetwork


def images(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def kinds(network: QuantizedNetwork) -> tuple[int, int]:
    modules = list(network.module.modules())
    return (
        sum(isinstance(module, AbsorbedReLU) for module in modules),
        sum(isinstance(module, InPlaceBatchNorm2d) for module in modules),
    )


def both(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> tuple[QuantizedNetwork, QuantizedNetwork]:
    """The network as it is, and as it would be without fusion."""
    layers = trace(module, (3, 16, 16), name="under test")
    fused = QuantizedNetwork(module, layers, calibration_images=images())
    with monkeypatch.context() as patched:
        patched.setattr(network_module, "fuse", lambda module: None)
        plain = QuantizedNetwork(module, layers, calibration_images=images())
    assert kinds(plain) == (0, 0)
    return fused, plain


def bits(network: QuantizedNetwork, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(2, 9, (len(network.layers), 2), generator=rng)


NAMES = ("mobilenet_v1", "mobilenet_v2", "resnet20", "resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_network_answers_and_learns_bit_for_bit_like_the_plain_one(name, monkeypatch):
    module = load_network(name, classes=5, image_size=16, width=0.25)
    module(images())  # statistics that are not all zero and one
    fused, plain = both(module.eval(), monkeypatch)
    relus, norms = kinds(fused)
    assert repr(fused.module) == repr(plain.module)  # which is in the keys of evaluation caches
    assert relus or name == "resnet18"  # whose ReLUs are each called in two places
    assert norms
    for seed in range(3):
        answers = []
        for network in (fused, plain):
            network.restore()
            network.set_policy(bits(network, seed).numpy())
            network.recalibrate_batchnorm(images(1))
            network.eval()
            with torch.no_grad():
                answer = [network(images(2))]
            network.train()
            torch.manual_seed(seed)  # of dropout
            loss = F.cross_entropy(network(images(3)), torch.arange(6) % 5)
            loss.backward()
            answer += [loss.detach(), *(p.grad for p in network.parameters())]
            answer += [buffer.clone() for buffer in network.module.buffers()]
            network.zero_grad()
            answers.append(answer)
        assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_in_float_mode_every_relu_works_again(name, monkeypatch):
    module = load_network(name, classes=5, image_size=16, width=0.25).eval()
    fused, _ = both(module, monkeypatch)
    fused.float_mode()
    with torch.no_grad():
        expected = module.to(memory_format=torch.channels_last)(
            images(2).contiguous(memory_format=torch.channels_last)
        )
        assert torch.equal(fused(images(2)), expected)


class Branching(nn.Module):
    """One ReLU is needed in float as well, one is used twice, one stands before a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.also_added, self.twice, self.pooled, self.fine = (nn.ReLU() for _ in range(4))
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.also_added(self.first(images))
        hidden = hidden + self.second(hidden)
        kept = self.third(self.fine(hidden))
        hidden = self.norm(kept) + kept  # so batch norm must not write over it
        hidden = self.twice(hidden) + self.twice(-hidden)
        return self.head(self.pooled(hidden).mean((2, 3)))


def test_what_others_need_too_is_left_as_it_is(monkeypatch):
    torch.manual_seed(0)
    module = Branching().eval()
    fused, plain = both(module, monkeypatch)
    assert [type(getattr(fused.module, name)) for name in ("also_added", "twice", "pooled")] == (
        [nn.ReLU] * 3
    )
    assert type(fused.module.fine) is AbsorbedReLU
    assert type(fused.module.norm) is nn.BatchNorm2d
    with torch.no_grad():
        for network in (fused, plain):
            network.set_policy(bits(network, 0).numpy())
        assert torch.equal(fused(images(2)), plain(images(2)))


class Rectifying(nn.Module):
    """An in-place ReLU whose input is read again, and is not negative then."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.first(images))
        other = self.second(self.relu(hidden))
        return self.head((other + hidden).mean((2, 3)))


def test_a_relu_whose_input_others_read_after_it_is_left_as_it_is(monkeypatch):
    torch.manual_seed(0)
    fused, plain = both(Rectifying().eval(), monkeypatch)
    assert type(fused.module.relu) is nn.ReLU
    with torch.no_grad():
        for network in (fused, plain):
            network.set_policy(bits(network, 0).numpy())
        assert torch.equal(fused(images(2)), plain(images(2)))


class Choosing(Branching):
    """A network that torch.fx cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.clamp(-1) if float(images.sum()) > 1e9 else images)


def test_a_network_that_cannot_be_followed_stays_as_it_is():
    layers = trace(Branching().eval(), (3, 16, 16), name="under test")
    network = QuantizedNetwork(Choosing().eval(), layers, calibration_images=images())
    assert kinds(network) == (0, 0)


def test_copies_of_a_network_follow_their_own_policy():
    module = load_network("mobilenet_v1", classes=5, image_size=16, width=0.25).eval()
    layers = trace(module, (3, 16, 16), name="under test")
    network = QuantizedNetwork(module, layers, calibration_images=images())
    network.set_policy(bits(network, 0).numpy())
    copy = network.clone()
    copy.float_mode()
    with torch.no_grad():
        before = network(images(2))
        assert torch.equal(copy(images(2)), module.to(memory_format=torch.channels_last)(images(2)))
        assert torch.equal(network(images(2)), before)
