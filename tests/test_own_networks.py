"""Networks, images and settings that people bring: measured right, or refused in one line."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from torchvision import models

from haq_env.cost import CostTable
from haq_env.data import Dataset, Split, load_dataset
from haq_env.data.splits import balanced_order
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation, Recipe
from haq_env.final import finish
from haq_env.make import make_env, make_task
from haq_env.networks import load_network
from haq_env.networks.attention import fastpath_off
from haq_env.networks.bundled import WEIGHTS
from haq_env.networks.checkpoint import load_checkpoint, read_metadata
from haq_env.networks.trace import trace
from haq_env.processes import abandon
from haq_env.quantization import QUANTIZERS, widths
from haq_env.quantization.linear import LinearQuantizer
from haq_env.quantization.network import QuantizedNetwork
from haq_env.quantization.scheme import widths_of
from haq_env.search import SEARCH
from haq_env.search.ilp import least_sensitive
from haq_env.search.sensitivity import measure_sensitivity
from haq_env.training.resumable import train_in_pieces
from haq_env.training.settings import Training
from haq_env.training.trainer import Trainer

SHORT = Recipe(steps=2, batch_size=16, bn_images=32)


def noise(side: int = 32, channels: int = 3, count: int = 48, **changed) -> Dataset:
    """Images of ten classes that say nothing."""
    rng = np.random.default_rng(0)
    splits = [
        Split(
            rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8),
            np.arange(count) % 10,
        )
        for _ in range(3)
    ]
    given = {"classes": 10, "mean": [0.5] * channels, "std": [0.25] * channels, **changed}
    return Dataset.of("noise", *splits, **given)


def bundled() -> nn.Module:
    path = WEIGHTS / "mobilenet_v1_digits.safetensors"
    module = load_network("mobilenet_v1", **read_metadata(path)["build"])
    load_checkpoint(path, module)
    return module.eval()


def by_class(split: Split) -> Split:
    order = np.argsort(split.labels, kind="stable")
    return Split(split.images[order], split.labels[order])


# -- images ------------------------------------------------------------------------------------


def test_training_images_that_come_sorted_by_class_are_mixed():
    data = load_dataset("digits")
    about = {"classes": 10, "mean": data.mean, "std": data.std}
    ordered = by_class(data.train)
    pairs = list(zip(ordered.images, ordered.labels, strict=True))
    taken = Dataset.of("mine", pairs, data.val, pairs, **about)
    counts = np.bincount(taken.test.first(300).labels)
    assert 25 <= counts.min() <= counts.max() <= 35  # a fair sample
    assert (taken.train.labels[:10] != ordered.labels[:10]).any()
    assert sorted(taken.train.labels) == sorted(ordered.labels)
    assert len(set(taken.train.labels[:30])) == 10
    evaluator = Recipe(steps=0, bn_images=88)  # one class of the sorted ones
    task = make_task(bundled(), taken, evaluator=evaluator, budget="w8a8")
    assert task.evaluate(task.space.highest).accuracy > 97  # 67 from images of one class


def blank(labels) -> Dataset:
    split = Split(np.zeros((len(labels), 1, 1, 1), dtype=np.uint8), labels)
    return Dataset("blank", 1000, (0.5,), (0.5,), split, split, split)


@pytest.mark.parametrize(("classes", "count"), [(2, 4000), (3, 600), (10, 510), (100, 500)])
def test_a_data_set_that_is_sorted_by_class_is_refused(classes, count):
    labels = np.sort(np.arange(count) % classes)
    with pytest.raises(InputError, match="the training images are sorted by class"):
        blank(labels)


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000])
def test_a_mixed_order_is_never_taken_for_a_sorted_one(classes):
    rng = np.random.default_rng(classes)
    labels = rng.permutation(np.arange(3000) % classes)
    for order in (np.arange(3000), balanced_order(labels, 0)):
        blank(labels[order])
    # nine in ten images of one class
    rare = np.where(rng.random(3000) < 0.9, 0, labels % max(2, classes))
    blank(rare)
    blank(np.sort(rare[:256]))  # so few that all are used


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "mean must be one number for each of 1 channels"),
        ({"std": [0.0]}, "std must be positive"),
        ({"std": [0.5, 0.5]}, "std must be one number for each of 1 channels, not 2"),
    ],
)
def test_normalisation_that_does_not_fit_the_images_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        noise(side=8, channels=1, **changed)


def test_a_number_of_classes_may_come_from_numpy():
    data = noise(classes=np.int64(10))
    assert (type(data.classes), data.classes) == (int, 10)


def test_outputs_that_no_class_has_and_accuracies_of_chance_are_warned_of():
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(4 * 28 * 28, 99),
    )
    nn.init.constant_(module[-1].bias[50:], 100.0)  # always an output that is no class
    task = make_task(module, noise(), evaluator=SHORT)
    with pytest.warns(RuntimeWarning, match="has 99 outputs, and data set 'noise' has 10 classes"):
        task.evaluator.bench  # noqa: B018
    with pytest.warns(
        RuntimeWarning, match=r"right for 0\.0 % of the val images, no more than chan"
    ):
        assert task.float_accuracy == 0


def test_integers_that_cannot_serve_are_warned_of_where_they_were_asked_for():
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )
    task = make_task(module, noise(), evaluator=SHORT, inference="int8")
    with pytest.warns(RuntimeWarning, match="int8 was asked for: float inference"):
        assert "float inference" in task.evaluate(task.uniform()).note


@pytest.mark.parametrize("recipe", [Recipe(steps=2, batch_size=1), Recipe(steps=0, bn_images=1)])
def test_batch_norm_on_a_single_value_is_an_error_that_names_the_recipe(recipe):
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 10)),
    )
    task = make_task(module, noise(), evaluator=recipe)
    with pytest.raises(InputError, match="larger batch_size and bn_images"):
        task.evaluate(task.uniform())


@pytest.mark.parametrize("bits", [5, "28", (2,), (2.7, 8.2), (2, 4, 8)])
def test_bits_that_are_no_two_integers_are_refused(bits):
    with pytest.raises(InputError, match="bits must be two integers"):
        make_task(bits=bits)


def test_splits_of_different_sizes_are_refused():
    small, large = noise(side=8), noise(side=12)
    with pytest.raises(InputError, match=r"test has images \[3, 12, 12\], and train \[3, 8, 8\]"):
        Dataset("mine", 10, small.mean, small.std, small.train, small.val, large.test)


def test_a_loader_in_place_of_its_data_set_is_one_line():
    loader = DataLoader([(np.zeros((8, 8), np.uint8), 0)] * 4)
    with pytest.raises(InputError, match="DataLoader lacks; of a DataLoader give its data set"):
        Dataset.of("mine", loader, loader, loader, classes=10, mean=[0.5], std=[0.5])


def test_costs_are_never_those_of_images_of_another_size():
    with pytest.raises(InputError, match="images of 16 x 16 pixels, and data set 'digits' has 32"):
        make_task("mobilenet_v1", load_dataset("digits", size=32))


def test_a_function_in_place_of_its_data_set_is_one_line():
    with pytest.raises(InputError, match="not a function: call it first"):
        make_task("mobilenet_v1", noise)


@pytest.mark.parametrize("network", [lambda: nn.Linear(4, 2), nn.Identity, None, 8])
def test_what_is_no_network_is_one_line(network):
    with pytest.raises(InputError, match=r"network must be a name or a trained torch\.nn\.Module"):
        make_task(network, noise())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nn.Module.half, "is float16: .* so give network.float"),
        (nn.Module.double, "is float64: .* so give network.float"),
        (torch.jit.script, "hides its layers: give the module that it was made of"),
    ],
)
def test_a_network_in_another_form_is_told_which_one_is_taken(change, message):
    network = change(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 14**2, 10)))
    with pytest.raises(InputError, match=message):
        make_task(network, "digits")


def test_the_class_of_an_evaluator_is_no_evaluator():
    class Own:
        float_accuracy = 90.0

        def evaluate(self, bits):
            return Evaluation(50.0, 0.0, cache_hit=False)

    with pytest.raises(InputError, match="evaluator must be"):
        make_task(evaluator=Own)
    assert make_task(evaluator=Own()).float_accuracy == 90.0


def test_answers_of_an_own_evaluator_that_are_none_are_one_line():
    class Own:
        float_accuracy = 90.0

        def evaluate(self, bits):
            return 50.0

        def evaluate_each(self, policies):
            yield from (self.evaluate(bits) for bits in policies)

    task = make_task(evaluator=Own())
    with pytest.raises(InputError, match=r"Own\.evaluate must return a haq_env\.Evaluation"):
        task.evaluate(task.uniform())
    with pytest.raises(InputError, match=r"Own\.evaluate_each must yield a haq_env\.Evaluation"):
        task.evaluate_batch([task.uniform()])


# -- networks ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_that_splits_its_channels_is_measured_without_finetuning():
    torch.manual_seed(0)
    net = models.shufflenet_v2_x0_5(num_classes=10).eval()
    found = []
    for reuse in (0, 64):
        task = make_task(
            net, noise(), evaluator=Recipe(steps=0, bn_images=32), budget=0.9, reuse=reuse
        )
        found.append(task.evaluate(task.uniform()).accuracy)
    assert found[0] == found[1]
    table = measure_sensitivity(task, "output_kl", images=8).table
    assert np.isfinite(table[task.space.allowed]).all()


class Auxiliary(nn.Module):
    """Answers twice in training, as GoogLeNet does."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc, self.aux = nn.Linear(4, 10), nn.Linear(4, 10)

    def forward(self, x):
        x = self.next(self.conv(x).relu()).relu().mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_auxiliary_answers_in_training_do_not_matter():
    torch.manual_seed(0)
    task = make_task(Auxiliary().eval(), noise(), evaluator=SHORT, budget=0.9)
    assert 0 <= task.evaluate(task.uniform()).accuracy <= 100


def test_curvature_is_measured_through_attention():
    torch.manual_seed(0)
    net = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10).eval()
    task = make_task(net, noise(), evaluator=SHORT, budget=0.9)
    for method in ("hawq_v2", "hawq"):
        table = measure_sensitivity(task, method, images=8).table
        assert np.isfinite(table[task.space.allowed]).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_does_not_care_whether_its_caller_wants_gradients(mode):
    task, other = (make_task(evaluator=SHORT) for _ in range(2))
    expected = task.evaluate(task.uniform()).accuracy
    table = measure_sensitivity(task, "fit", images=8).table
    with mode():
        assert other.evaluate(other.uniform()).accuracy == expected
        assert np.array_equal(measure_sensitivity(other, "fit", images=8).table, table)
    assert other.evaluator.final(other.uniform(), SHORT, 0)["val"] == expected


# -- quantizers --------------------------------------------------------------------------------


class Scaled(LinearQuantizer):
    """Differs from the linear quantizer at 1 and 2 weight bits only."""

    factor = 1.0

    def __init__(self, *given):
        super().__init__(*given)
        self.weight_clip[:2] = [clip * self.factor for clip in self.weight_clip[:2]]


def test_a_cache_tells_quantizers_apart_that_differ_at_one_width(tmp_path, monkeypatch):
    monkeypatch.setitem(QUANTIZERS._entries, "scaled", Scaled)
    found = []
    for factor in (1.0, 0.3):
        monkeypatch.setattr(Scaled, "factor", factor)
        settings = {"quantizer": "scaled", "evaluator": "ptq_bn", "budget": "w2a8"}
        task = make_task(cache=tmp_path / "cache.sqlite", **settings)
        found.append(task.evaluate(task.uniform()))
    assert not found[1].cache_hit
    assert found[0].accuracy > found[1].accuracy + 10


def test_a_cache_tells_functions_apart_that_make_quantizers_of_this_package(tmp_path, monkeypatch):
    found = []
    for factor in (1.0, 0.3):

        def tuned(*given, factor=factor):
            made = LinearQuantizer(*given)
            made.weight_clip[:2] = [clip * factor for clip in made.weight_clip[:2]]
            return made

        monkeypatch.setitem(QUANTIZERS._entries, "tuned", tuned)
        settings = {"quantizer": "tuned", "evaluator": "ptq_bn", "budget": "w2a8"}
        task = make_task(cache=tmp_path / "cache.sqlite", **settings)
        found.append(task.evaluate(task.uniform()))
    assert not found[1].cache_hit
    assert found[0].accuracy > found[1].accuracy + 10


class Viewed(nn.Module):
    """Flattens by a view, as LeNet and AlexNet often do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))
        self.fc = nn.Linear(8 * 7 * 7, 10)

    def forward(self, images):
        features = self.conv(self.stem(images).relu())
        return self.fc(features.view(features.size(0), -1))


class PreActivated(nn.Module):
    """Residual sums that are written into what the first ReLU has read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        out = self.stem(images)
        inner = self.conv2(self.relu2(self.conv1(self.relu(out))))
        out += inner
        return self.head(out.relu().mean((2, 3)))


class ByKeyword(nn.Module):
    """Calls a convolution by keyword, and adds what another one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.down = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        out = self.stem(images).relu()
        inner = self.conv(input=out)
        return self.head((inner + self.down(out)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Viewed, PreActivated, ByKeyword])
@pytest.mark.parametrize("inference", ["float", "int8"])
def test_networks_of_every_habit_are_finetuned_and_measured(kind, inference):
    torch.manual_seed(0)
    network = kind()
    for evaluator in (SHORT, replace(SHORT, steps=0)):
        task = make_task(network, noise(), evaluator=evaluator, inference=inference, budget="w4a4")
        answers = task.evaluate_batch([task.uniform(), task.space.highest])
        assert all(0 <= each.accuracy <= 100 for each in answers)
    # at 8 bits the fused network answers what the float one does, nearly
    quantized = task.evaluator.bench.network
    images = task.evaluator.bench.images["val"].batch(slice(0, 16))
    with torch.no_grad():
        quantized.restore()
        quantized.float_mode()
        exact = network.eval()(images)
        assert torch.allclose(quantized.eval()(images), exact, atol=1e-4)
        quantized.set_policy(task.space.highest)
        assert torch.allclose(quantized(images), exact, atol=0.05 * float(exact.abs().max()))


class WeightsOnly(LinearQuantizer):
    """Leaves activations in float."""

    activation_bits = range(0)

    def __init__(self, *given):
        super().__init__(*given)
        self.activation_bits = range(0)


class FiveToEight(LinearQuantizer):
    """Has five activation bits and more, and three to six bits for weights."""

    weight_bits, activation_bits = range(3, 7), range(5, 9)

    def __init__(self, *given):
        super().__init__(*given)
        self.activation_bits = range(5, 9)


class OneNarrow(LinearQuantizer):
    """Has two to four weight bits for the second layer, which its class does not tell."""

    def __init__(self, layer, *given):
        super().__init__(layer, *given)
        if layer.name == "blocks.0.depthwise.conv":  # of index 1
            self.weight_bits = range(2, 5)
            self.weight_mse = np.where(np.arange(1, 9) < 5, self.weight_mse, np.inf)


def test_a_quantizer_of_weights_alone_has_no_activation_bits_to_choose(monkeypatch):
    monkeypatch.setitem(QUANTIZERS._entries, "weights", WeightsOnly)
    task = make_task(quantizer="weights", evaluator="ptq_bn", budget="w3a8")
    assert (task.uniform()[:, 1] == 8).all()
    assert len(task.space.steps) == len(task.layers) - 2


def test_a_choice_that_a_quantizer_has_not_becomes_the_nearest_that_it_has(monkeypatch):
    monkeypatch.setitem(QUANTIZERS._entries, "wide", FiveToEight)
    env = make_env("HAQ-BISMO-Edge-Discrete-v0", quantizer="wide", evaluator="ptq_bn", budget=1.0)
    env.reset()
    for action, width in ((0, 3), (6, 8), (6, 6)):  # weights, activations, weights
        layer, side = env._space.steps[env._step]
        env.step(action)
        assert env._bits[layer, side] == width
        assert env.action_masks().any()


@pytest.mark.parametrize("method", ["ilp-fit", "ilp-kl", "greedy-sensitivity", "random"])
def test_no_search_leaves_the_widths_that_a_quantizer_has(method, monkeypatch, tmp_path):
    monkeypatch.setitem(QUANTIZERS._entries, "wide", FiveToEight)
    settings = {"quantizer": "wide", "evaluator": "ptq_bn", "cache": tmp_path / "cache.sqlite"}
    task = make_task(**settings, budget="w5a6")
    assert task.space.bits == (2, 8)  # the default, of which the quantizer has a part
    history = SEARCH[method](task, 4, 0)
    tried = np.array([trial.bits for trial in history])
    assert set(np.unique(tried[:, 1:-1, 0])) <= set(range(3, 7))
    assert set(np.unique(tried[:, 1:-1, 1])) <= set(range(5, 9))
    assert (tried[:, [0, -1]] == [6, 8]).all()  # the most that there is
    assert history.best.accuracy > 85


@pytest.mark.parametrize("method", ["fit", "hawq_v2", "hawq", "output_kl", "loss"])
def test_a_width_that_one_layer_lacks_is_infinitely_bad_there_and_nowhere_else(method, monkeypatch):
    monkeypatch.setitem(QUANTIZERS._entries, "narrow", OneNarrow)
    task = make_task(quantizer="narrow", evaluator="ptq_bn", budget="w3a2")
    found = measure_sensitivity(task, method, images=32)
    table = found.table
    assert np.isinf(table[1, 0, 4:]).all()
    assert np.isfinite(table[1, 0, 1:4]).all()
    assert np.isfinite(table[2:-1, :, 1:]).all()
    assert least_sensitive(task, found.pairs())[1, 0] <= 4
    wrong = task.uniform()
    wrong[1, 0] = 6
    with pytest.raises(InputError, match=r"6 weight bits are not possible, allowed: 2 to 4\.$"):
        task.evaluate(wrong)


def test_bits_that_a_quantizer_does_not_have_are_one_line(monkeypatch):
    monkeypatch.setitem(QUANTIZERS._entries, "wide", FiveToEight)
    with pytest.raises(InputError, match="the quantizer has activations of 5 to 8 bits only"):
        make_task(quantizer="wide", bits=(2, 4), budget="w4a4")
    monkeypatch.setattr(FiveToEight, "weight_bits", (3, 4, 5))
    with pytest.raises(InputError, match="weight_bits must be a range of widths within 1 to 8"):
        make_task(quantizer="wide", budget="w6a6")


def test_what_is_known_of_quantizers_without_loading_them_is_so():
    for name in QUANTIZERS:
        assert widths(name) == widths_of(QUANTIZERS[name])


def test_a_network_that_cannot_be_copied_is_one_line():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(8, 8, 3)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    with pytest.raises(InputError, match="the network cannot be copied"):
        make_task(network, noise(), evaluator=SHORT, budget="w8a8")


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 1.5, 2**70, "0"])
def test_a_seed_that_is_none_is_an_error_when_the_task_is_made(seed):
    with pytest.raises(InputError, match="seed must be an integer, 0 or more"):
        make_task(seed=seed)


def test_a_recipe_counts_in_whole_numbers():
    with pytest.raises(InputError, match=r"steps must be an integer, not 2\.5"):
        Recipe(steps=2.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate must be a number, not nan"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, not '0.1'"),
        ({"max_norm": float("inf")}, "max_norm must be a number, not inf"),
        ({"momentum": 1.0}, "momentum must be less than 1"),
    ],
)
def test_a_recipe_has_rates_that_are_numbers(wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Recipe(steps=5, **wrong)


def test_an_option_that_ones_own_data_set_does_not_have_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "my_options.py").write_text("def data(side=8): return side\nready = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, option in (("data", "size"), ("ready", "side")):
        with pytest.raises(
            InputError, match=f"unknown option of data set 'my_options:{name}': '{option}'"
        ):
            load_dataset(f"my_options:{name}", **{option: 16})
    with pytest.raises(InputError, match="is int, not a Dataset"):
        load_dataset("my_options:data", side=16)


@pytest.mark.parametrize(
    ("out", "device", "message"),
    [
        ("", "cpu", "must be called FILE.safetensors"),
        ("file.safetensors", "toaster", "torch device 'toaster' cannot be used"),
    ],
)
def test_a_training_is_refused_before_it_and_not_after_it(
    out, device, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(Trainer, "epoch", None)  # what would take the time
    with pytest.raises(InputError, match=message):
        train_in_pieces(
            "mobilenet_v1", "digits", tmp_path / out, Training(), width=0.125, device=device
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_workers_cannot_have_a_network_that_only_this_process_knows():
    script = """
        import torch
        from torch import nn
        from haq_env.data import load_dataset
        from haq_env.errors import InputError
        from haq_env.make import make_env, make_task

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.next = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
                self.fc = nn.Linear(4, 10)
            def forward(self, x):
                return self.fc(self.next(self.conv(x).relu()).relu().mean((2, 3)))

        task = make_task(Net().eval(), load_dataset("digits"), evaluator="ptq_bn", budget=0.9,
                         workers=2)
        try:
            task.evaluate_batch([task.uniform(), task.space.highest])
        except InputError as error:
            print("refused:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert "another process cannot find the network's or the data set's code" in done.stdout, done


# -- hardware ----------------------------------------------------------------------------------


def counters(layers, dtype=np.uint16):
    """Cycles as a hardware counter gives them: short integers, which more bits can lower."""
    rng = np.random.default_rng(0)
    return rng.integers(20_000, 60_000, (len(layers), 8, 8)).astype(dtype)


class Counted:
    """A machine with short integers for costs."""

    def __init__(self, change=lambda table: table):
        self.change = change

    def cost_table(self, layers):
        return self.change(CostTable(layers.names, {"latency": counters(layers)}, "counted"))


def test_short_integers_do_not_overflow_in_a_budget():
    task = make_task(hardware=Counted(), budget=0.8)
    requests = np.random.default_rng(1).integers(2, 9, (200, *task.uniform().shape))
    exact = counters(task.layers).astype(float)
    rows = np.arange(len(task.layers))
    for bits in task.project(requests):
        assert exact[rows, bits[:, 0] - 1, bits[:, 1] - 1].sum() <= task.budget.limit * (1 + 1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, names=t.names[::-1]), "order differ from the 28 layers"),
        (
            lambda t: replace(t, names=t.names[:-1], values={"latency": t.values["latency"][:-1]}),
            "the cost table has 27 layers",
        ),
        (lambda t: dict(t.values), "must return a haq_env.cost.CostTable, not dict"),
        (lambda t: replace(t, values={"latency": "fast"}), "is no array of numbers"),
    ],
)
def test_a_table_of_other_layers_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        make_task(hardware=Counted(change), budget=0.8)


@pytest.mark.parametrize(
    "settings",
    [{}, {"budget": "w4a4"}, {"hardware": "bitfusion", "budget": "w2a8"}, {"budget": 0.37}],
)
def test_the_cost_of_a_policy_that_fits_is_never_above_the_limit(settings):
    task = make_task(**settings)
    requests = np.random.default_rng(2).integers(2, 9, (300, *task.uniform().shape))
    for bits in task.project(requests):
        assert task.cost(bits) <= task.budget.limit
        assert task.all_costs(bits)[task.budget.metric] == task.cost(bits)
    assert task.cost(task.space.highest) > task.budget.limit


# -- numbers of numpy, and processes -------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(tmp_path):
    settings = {"seed": np.int64(3), "evaluator": SHORT, "early_stopping": np.float32(0.25)}
    task = make_task(budget=np.float64(0.3), **settings)
    other = make_task(budget=0.3, **{**settings, "seed": 3})
    assert task.evaluate(task.uniform()).accuracy == other.evaluate(other.uniform()).accuracy
    task.policy(task.uniform()).save(tmp_path / "policy.json")


def begin_and_sleep(begun):
    begun.touch()
    time.sleep(60)


def test_only_the_workers_of_an_abandoned_pool_are_ended(request, tmp_path):
    def survive(*_: object) -> None:  # what a program makes of SIGTERM, and its forks inherit
        pass

    request.addfinalizer(partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    context = multiprocessing.get_context("fork")
    other = context.Process(target=time.sleep, args=(60,))
    other.start()
    try:
        signal.signal(signal.SIGTERM, survive)
        pool = ProcessPoolExecutor(1, context)
        waiting = pool.submit(begin_and_sleep, tmp_path / "begun")
        (worker,) = pool._processes.values()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        abandon(pool)
        worker.join(20)
        assert worker.exitcode is not None
        assert not waiting.done() or waiting.exception() is not None
        assert other.is_alive()
    finally:
        other.terminate()
        other.join()


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_forked_process_can_evaluate_after_its_parent_used_several_threads(evaluated):
    script = """
        import gymnasium as gym
        import numpy as np
        import torch
        torch.set_num_threads(2)
        import haq_env
        from haq_env.make import make_env, make_task

        task = make_task(evaluator="ptq_bn")
        if EVALUATED:
            task.evaluate(task.uniform())
        else:  # its own training, say
            torch.nn.Conv2d(64, 64, 3)(torch.randn(64, 64, 32, 32)).sum().backward()
        envs = gym.make_vec("HAQ-BISMO-Edge-v0", 2, "async", evaluator="ptq_bn",
                            vector_kwargs={"context": "fork"})
        envs.reset(seed=0)
        for _ in range(len(task.space.steps)):
            envs.step_async(np.zeros((2, 1), dtype=np.float32))
            *_, info = envs.step_wait(timeout=60)
        print("accuracies", info["accuracy"])
        envs.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script).replace("EVALUATED", str(evaluated))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert "accuracies [" in done.stdout, done


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", "is called 2 times in one forward"),
        ("few", "has 10 classes, but the answer is"),
        ("frozen", "has no parameter that requires a gradient"),
    ],
)
def test_a_network_that_cannot_be_used_is_not_trained_first(kind, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "epoch", None)
    (tmp_path / "nets.py").write_text(
        textwrap.dedent("""
            from torch import nn

            class Net(nn.Module):
                def __init__(self, outputs, times):
                    super().__init__()
                    self.conv, self.fc = nn.Conv2d(1, 1, 3), nn.Linear(1, outputs)
                    self.times = times

                def forward(self, x):
                    for _ in range(self.times):
                        x = self.conv(x).relu()
                    return self.fc(x.mean((2, 3)))

            def twice():
                return Net(10, 2)

            def few():
                return Net(9, 1)

            def frozen():
                return Net(10, 1).requires_grad_(False)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        train_in_pieces(f"nets:{kind}", "digits", tmp_path / "out.safetensors", Training())
    assert [each.name for each in tmp_path.iterdir() if each.stem == "out"] == []
    sys.modules.pop("nets")


# -- found by reading ---------------------------------------------------------------------------


class Encoder(nn.Module):
    """Has torch's own encoder layer, which can compute without calling the layers inside."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_bits_inside_of_an_encoder_layer_count():
    torch.manual_seed(0)
    net = Encoder().eval()
    network = QuantizedNetwork(
        net, trace(net, (3, 32, 32)), calibration_images=torch.rand(8, 3, 32, 32)
    )
    names = list(network.layers.names)
    images = torch.rand(4, 3, 32, 32)
    policy = np.full((len(names), 2), 8)
    with torch.no_grad():
        network.set_policy(policy)
        fine = network(images)
        policy[[i for i, name in enumerate(names) if "linear" in name]] = 2
        network.set_policy(policy)
        assert (network(images) - fine).abs().max() > 1e-3
    assert torch.backends.mha.get_fastpath_enabled()


def test_networks_that_run_at_the_same_time_leave_torchs_switch_as_it_was():
    first, second = fastpath_off(), fastpath_off()  # as of two threads
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()


def test_batches_do_not_care_whether_their_caller_wants_gradients():
    task, other = (make_task(evaluator="ptq_bn") for _ in range(2))
    policies = [task.uniform(), task.project(task.space.highest)]
    expected = [answer.accuracy for answer in task.evaluate_batch(policies)]
    with torch.inference_mode():
        assert [answer.accuracy for answer in other.evaluate_batch(policies)] == expected


class Odd(LinearQuantizer):
    """Treats inputs in its own way."""

    def activation(self, inputs, bits):
        return super().activation(inputs, bits).mul(0.9)


def test_a_quantizer_that_a_file_cannot_describe_costs_the_network_and_not_the_policy(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(QUANTIZERS._entries, "odd", Odd)
    task = make_task(quantizer="odd", evaluator="ptq_bn")
    path = tmp_path / "network.safetensors"
    with pytest.warns(UserWarning, match="not how Odd does"):
        found = finish(task, task.uniform(), SHORT, (0,), path)
    assert len(found.test) == 1
    assert not path.exists()


def test_images_need_not_be_square():
    images = torch.rand(48, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    pairs = [(image, index % 4) for index, image in enumerate(images)]
    about = {"classes": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
    data = Dataset.of("wide", pairs, pairs, pairs, **about)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    task = make_task(network, data, evaluator="ptq_bn", budget="w4a4")
    assert task.layers.input_shape == (3, 12, 20)
    assert 0 <= task.evaluate(task.uniform()).accuracy <= 100


def test_a_weight_that_is_computed_is_named_with_what_to_do():
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 10)),
    )
    prune.l1_unstructured(network[0], "weight", 0.5)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, 32, 32))
    task = make_task(network, noise(), evaluator="ptq_bn", budget="w4a4")
    with pytest.raises(InputError, match=r"weight of layer '0' is computed .*prune\.remove"):
        task.evaluate(task.uniform())
