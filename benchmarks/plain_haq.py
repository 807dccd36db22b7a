"""HAQ written down plainly, as what the benchmark of speed compares with. Never used by haq_env.

It does what the paper and the released code are described to do (Wang et al., CVPR 2019;
github.com/mit-han-lab/haq), in ordinary PyTorch, numpy and scikit-learn, and nothing in order to
be slow: where the original wastes time by accident (arrays grown by concatenation, files decoded
anew in every epoch) this does not. Part by part, what it is faithful to:

- quantization by torch expressions with straight-through gradients, the activation clip trainable
  as in PACT, weights quantized again in every forward (``quantize_utils.py``: QModule);
- a threshold search by comparing cumulative histograms, in each episode, on one mini-batch, for
  tensors below 5 bits; above, the maximum; activations never above 6 (the same file);
- images through PIL, per-image float transforms and a DataLoader (``data_utils.py``);
- finetuning by SGD at 1e-3, momentum 0.9, weight decay 4e-5, the optimizer new in every episode
  (``linear_quantize_env.py``); eager, contiguous tensors;
- k-means by scikit-learn, k-means++, one start, 3 iterations in a search (`k_means_cpu`);
- DDPG with 300 and 300 units, batches of 64, one update for each step (``ddpg.py``).

Re-estimation of batch norm is not in HAQ; it is here so that equal work can be compared.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from haq_env.data import Dataset, Split
from haq_env.evaluation import Evaluation, Recipe
from haq_env.layers import LayerTable

LIMIT = 6.0  # of activations
SEARCH_BELOW = 5  # bits

# -- quantization ------------------------------------------------------------------------------


class _Replace(torch.autograd.Function):
    """The second tensor's values with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, origin: Tensor, wanted: Tensor) -> Tensor:
        return wanted.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


@np.errstate(divide="ignore", invalid="ignore")
def threshold(values: NDArray[Any], bits: int) -> float:
    """Return HAQ's clip of a tensor: the cut whose coarse cumulative histogram differs least."""
    magnitudes = np.abs(values)
    largest = magnitudes.max()
    if np.isclose(largest, 0.0):
        return 0.0
    counts, edges = np.histogram(magnitudes, bins="sqrt", range=(0, largest))
    cumulative = np.cumsum(counts / counts.sum())
    points, width = 2 ** (bits - 1), edges[1] - edges[0]
    if points + 1 > len(counts):
        return float(edges[-1])
    scores = []
    for bins in range(points + 1, len(counts) + 1):
        cut = cumulative.copy()
        cut[bins - 1 :] = 1
        coarse, fine = np.linspace(0, 1, points), np.linspace(0, 1, bins)
        image = cut.copy()
        image[:bins] = np.interp(fine, coarse, np.interp(coarse, fine, cut[:bins]))
        scores.append(((cumulative - image) * np.log2(cumulative / image)).sum())
    return float((points + 1 + int(np.argmin(scores)) + 0.5) * width)


class _Quantized:
    """What a convolution and a linear layer of HAQ share."""

    def prepare(self, signed: bool) -> None:
        self.signed, self.w_bits, self.a_bits, self.calibrating = signed, 0, 0, False
        self.weight_range, self.search_below = 1.0, SEARCH_BELOW
        self.activation_range = nn.Parameter(torch.tensor([LIMIT]))

    def calibrate(self, inputs: Tensor, weight: Tensor) -> None:
        """Choose both clips from a mini-batch of float inputs."""
        bits = self.a_bits - self.signed
        clip = min(LIMIT, inputs.abs().max().item())
        if bits < self.search_below:
            clip = min(clip, threshold(inputs.detach().cpu().numpy(), bits))
        self.activation_range.data.fill_(clip)
        self.weight_range = weight.abs().max().item()
        if self.w_bits < self.search_below:
            self.weight_range = threshold(weight.detach().cpu().numpy(), self.w_bits)

    def quantized(self, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and weights as the layer's bits leave them."""
        if not self.w_bits:
            return inputs, weight
        if self.calibrating:
            self.calibrate(inputs, weight)
            return inputs, weight
        alpha = self.activation_range
        if self.signed:
            clipped = 0.5 * ((-inputs - alpha).abs() - (inputs - alpha).abs())
        else:
            clipped = 0.5 * (inputs.abs() - (inputs - alpha).abs() + alpha)
        step = alpha.item() / (2.0 ** (self.a_bits - self.signed) - 1)
        rounded = clipped.detach().clone().div_(step).round_().mul_(step)
        clip = self.weight_range
        step = clip / (2.0 ** (self.w_bits - 1) - 1)
        shared = weight.clamp(-clip, clip).div_(step).round_().mul_(step)
        return _Replace.apply(clipped, rounded), _Replace.apply(weight, shared)


class PlainConv2d(_Quantized, nn.Conv2d):
    """A convolution of HAQ."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        output: Tensor = self._conv_forward(*self.quantized(input, self.weight), self.bias)
        return output


class PlainLinear(_Quantized, nn.Linear):
    """A linear layer of HAQ."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(*self.quantized(input, self.weight), self.bias)


def plain_network(module: nn.Module, layers: LayerTable) -> tuple[nn.Module, list[_Quantized]]:
    """Copy a float network with its layers turned into HAQ's."""
    network = copy.deepcopy(module)
    parts = []
    for layer in layers:
        part: Any = network.get_submodule(layer.name)
        part.__class__ = PlainConv2d if isinstance(part, nn.Conv2d) else PlainLinear
        part.prepare(layer.signed_input)
        parts.append(part)
    return network, parts


def kmeans(weight: NDArray[Any], bits: int, iterations: int = 3) -> Any:
    """Cluster weights as HAQ does; the answer is scikit-learn's estimator."""
    values = weight.reshape(-1, 1)
    clusters = min(2**bits, len(values))
    return KMeans(clusters, init="k-means++", n_init=1, max_iter=iterations).fit(values)


# -- evaluation --------------------------------------------------------------------------------


class _Pictures(TorchDataset[Any]):
    def __init__(self, split: Split, data: Dataset) -> None:
        self.split = split
        steps = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.split.images[index]
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return cast(Tensor, self.transform(picture)), int(self.split.labels[index])


class PlainEvaluator:
    """HAQ's evaluation of a policy: restore, calibrate, finetune, measure.

    Args:
        module: the float network.
        layers: its layers.
        data: the images.
        recipe: steps, batch size and images for batch norm; the rest of the finetuning is HAQ's.
        calibration: images of the mini-batch that clips come from.
        batchnorm: re-estimate the statistics of batch norm, which HAQ does not.
        batch: images of a batch of measurement and re-estimation.
    """

    float_accuracy = 100.0

    def __init__(
        self,
        module: nn.Module,
        layers: LayerTable,
        data: Dataset,
        recipe: Recipe,
        *,
        calibration: int = 128,
        batchnorm: bool = True,
        batch: int = 128,
    ) -> None:
        self.network, self.parts = plain_network(module, layers)
        self.pretrained = copy.deepcopy(self.network.state_dict())
        self.recipe, self.calibration = recipe, calibration
        self.batchnorm, self.batch = batchnorm, batch
        self.train, self.val = (_Pictures(split, data) for split in (data.train, data.val))

    def evaluate(self, bits: NDArray[np.int64]) -> Evaluation:
        """Measure a policy, int64 [L, 2]."""
        self.restore(bits)
        if self.recipe.steps:
            self.finetune()
        if self.batchnorm:
            self.recalibrate()
        return Evaluation(self.accuracy())

    def restore(self, bits: NDArray[np.int64]) -> None:
        """Put the float weights back, set the bits and choose the clips anew."""
        self.network.load_state_dict(self.pretrained)
        images, _ = next(iter(DataLoader(self.train, self.calibration)))
        self.network.eval()
        for part, (w_bits, a_bits) in zip(self.parts, bits.tolist(), strict=True):
            part.w_bits, part.a_bits, part.calibrating = w_bits, a_bits, True
        with torch.no_grad():
            self.network(images)
        for part in self.parts:
            part.calibrating = False

    def finetune(self) -> None:
        """Train for the steps of the recipe."""
        sgd = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9, weight_decay=4e-5)
        self.network.train()
        done = 0
        while done < self.recipe.steps:
            for images, labels in DataLoader(self.train, self.recipe.batch_size, shuffle=True):
                loss = F.cross_entropy(self.network(images), labels)
                sgd.zero_grad()
                torch.autograd.backward(loss)
                sgd.step()
                done += 1
                if done == self.recipe.steps:
                    break

    @torch.no_grad()
    def recalibrate(self) -> None:
        """Average the statistics of batch norm over the training images of the recipe."""
        self.network.eval()
        for norm in self.network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
        count = min(self.recipe.bn_images, len(self.train))
        for images, _ in DataLoader(torch.utils.data.Subset(self.train, range(count)), self.batch):
            self.network(images)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Measure top-1 on the held-out images, in percent."""
        self.network.eval()
        correct = 0
        for images, labels in DataLoader(self.val, self.batch):
            correct += int((self.network(images).argmax(dim=1) == labels).sum())
        return 100.0 * correct / len(self.val)


# -- agent -------------------------------------------------------------------------------------


class _Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.action = nn.Linear(10, 300), nn.Linear(1, 300)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return cast(Tensor, self.rest(self.state(states) + self.action(actions)))


class PlainDDPG:
    """HAQ's agent: acts through an episode, then does one update for each of its steps.

    Args:
        env: an environment of haq_env with actions in [-1, 1].
        seed: of everything.
    """

    def __init__(self, env: Any, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.env, self.rng, self.baseline = env, np.random.default_rng(seed), 0.0
        self.random = random.Random(seed)
        sizes = [nn.Linear(10, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1)]
        self.actor, self.critic = nn.Sequential(*sizes, nn.Sigmoid()), _Critic()
        self.actor_target, self.critic_target = map(copy.deepcopy, (self.actor, self.critic))
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 1e-4)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), 1e-3)
        self.memory: deque[Any] = deque(maxlen=128 * len(env.task.layers))
        self.episodes = 0

    def episode(self) -> float:
        """Play and learn; return the final reward."""
        state, _ = self.env.reset()
        steps, over, reward = [], False, 0.0
        while not over:
            with torch.no_grad():
                mean = self.actor(torch.from_numpy(state)[None]).item()
            action = np.inf
            while not 0 <= action <= 1:
                action = self.rng.normal(mean, 0.5 * 0.99**self.episodes)
            following, reward, over, _, _ = self.env.step(np.array([2 * action - 1], np.float32))
            steps.append((state, action, following, float(not over)))
            state = following
        for before, action, after, goes_on in steps:
            self.memory.append((before, [action], [reward], after, [goes_on]))
        for _ in steps:
            self.update()
        self.episodes += 1
        return float(reward)

    def update(self) -> None:
        """Do one update on a mini-batch."""
        drawn = self.random.sample(self.memory, min(64, len(self.memory)))
        arrays = (np.array(each, dtype=np.float32) for each in zip(*drawn, strict=True))
        states, actions, rewards, following, goes_on = map(torch.from_numpy, arrays)
        self.baseline += 0.5 * (float(rewards.mean()) - self.baseline)
        with torch.no_grad():
            later = self.critic_target(following, self.actor_target(following))
        loss = F.mse_loss(self.critic(states, actions), rewards - self.baseline + goes_on * later)
        self.critic.zero_grad()
        torch.autograd.backward(loss)
        self.critic_adam.step()
        self.actor.zero_grad()
        torch.autograd.backward(-self.critic(states, self.actor(states)).mean())
        self.actor_adam.step()
        pairs = ((self.actor_target, self.actor), (self.critic_target, self.critic))
        for target, source in pairs:
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data.copy_(old.data * 0.99 + new.data * 0.01)
