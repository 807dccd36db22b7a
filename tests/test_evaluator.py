"""The evaluator: one answer for one policy, no trace left behind, held-out images held out."""

import copy
import itertools
import pickle
import random
import re
import textwrap

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from haq_env.data import Dataset, Split, digits
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.evaluation import RECIPES, Recipe
from haq_env.evaluation.additive import AdditiveEvaluator
from haq_env.evaluation.answers import Answers
from haq_env.evaluation.bench import Subject
from haq_env.evaluation.checks import check_fits
from haq_env.evaluation.finetune import Images, finetune
from haq_env.evaluation.recipe import FINAL
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.layers import Layer, LayerTable
from haq_env.make import make_task
from haq_env.networks import load_network
from haq_env.networks.bundled import WEIGHTS
from haq_env.networks.checkpoint import save_checkpoint
from haq_env.networks.layers_json import layers_to_json
from haq_env.networks.trace import trace

BUNDLED = WEIGHTS / "mobilenet_v1_digits.safetensors"
BRIEF = Recipe(steps=3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums depend on the number of threads, and small networks gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task():
    """The default problem; its evaluator's bench is shared, since building it takes a second."""
    return make_task()


def weights(evaluator: TrainedEvaluator) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in evaluator.bench.network.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


# -- one answer for one policy -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"evaluator": BRIEF},
        {"evaluator": "ptq_bn"},
        {"evaluator": BRIEF, "quantizer": "kmeans", "hardware": "size", "budget": 0.5},
    ],
)
def test_neither_the_order_of_policies_nor_a_copy_changes_an_answer(settings):
    task = make_task(**settings)
    first = task.evaluator
    policies = task.space.random(np.random.default_rng(0), 4)
    answers = [first.evaluate(policy).accuracy for policy in policies]
    other = make_task(**settings).evaluator
    other.final(policies[0], BRIEF, seed=9)
    order = [2, 0, 3, 1]
    assert [other.evaluate(policies[i]).accuracy for i in order] == [answers[i] for i in order]
    assert len(set(answers)) > 1
    fresh = task.space.random(np.random.default_rng(1), 1)[0]
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert not copied.evaluate(fresh).cache_hit
        assert copied.evaluate(policies[1]).cache_hit
        assert copied.evaluate(policies[1]).accuracy == answers[1]
        assert first.evaluate(fresh).accuracy == copied.evaluate(fresh).accuracy
        first.answers = Answers(None)


def test_the_seed_decides_the_finetuning_and_nothing_without_it(task):
    policy = task.space.uniform(3, 2)
    recipe = Recipe(steps=10)
    after = {}
    for seed in (0, 1):
        task.evaluator.final(policy, recipe, seed)
        after[seed] = weights(task.evaluator)
    task.evaluator.final(policy, recipe, 0)
    assert same(weights(task.evaluator), after[0])
    assert not same(after[0], after[1])
    assert task.evaluator.final(policy, Recipe(steps=0), 0) == task.evaluator.final(
        policy, Recipe(steps=0), 1
    )


def test_a_remembered_answer_is_marked_and_counts_as_an_evaluation():
    evaluator = make_task(evaluator="ptq_bn").evaluator
    policy = np.full((28, 2), 4)
    first = evaluator.evaluate(policy)
    assert not first.cache_hit
    assert evaluator.seconds == first.seconds > 0
    again = evaluator.evaluate(policy.copy())
    assert again.cache_hit
    assert (again.accuracy, again.seconds) == (first.accuracy, 0.0)
    assert evaluator.evaluations == 2
    assert evaluator.seconds == first.seconds
    policy[3, 0] = 5
    evaluator.remember(policy, 12.5)
    assert evaluator.evaluate(policy).accuracy == 12.5
    assert evaluator.evaluations == 3


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
@pytest.mark.parametrize("moment", [1, 2, 4])
def test_an_evaluation_that_is_interrupted_leaves_the_next_one_as_it_was(
    quantizer, moment, monkeypatch
):
    hardware = {"linear": "bismo-edge", "kmeans": "size"}[quantizer]
    settings = {"quantizer": quantizer, "hardware": hardware, "budget": 0.5, "evaluator": BRIEF}
    task = make_task(**settings)
    policy, other = task.space.uniform(3, 3), task.space.uniform(2, 4)
    expected = [task.evaluate(p).accuracy for p in (policy, other)]
    calls = []
    really = torch.nn.functional.cross_entropy

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return really(*args, **kwargs)

    again = make_task(**settings)
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", interrupting)
        if moment > BRIEF.steps:  # the first evaluation is finished
            assert again.evaluate(policy).accuracy == expected[0]
        with pytest.raises(KeyboardInterrupt):
            again.evaluate(other)
    assert [again.evaluate(p).accuracy for p in (policy, other)] == expected


# -- no trace left behind ----------------------------------------------------------------------


def global_states():
    return (
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002  # the global one is what is asked about
        np.random.get_state()[2],  # noqa: NPY002
        random.getstate(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


class Dropping(nn.Module):
    """A small network with batch norm and dropout."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Linear(64, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, images):
        return self.head(self.hidden(self.body(images)).relu())


def bars(count: int, seed: int) -> Split:
    """Four classes of 8 x 8 images: a bright bar on one of the four sides, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    images = rng.integers(0, 120, (count, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        np.rot90(image[0], label)[rng.integers(0, 3)] += 90
    return Split(images.astype(np.uint8), labels)


BARS = Dataset("bars", 4, (0.25,), (0.15,), bars(256, 0), bars(120, 1), bars(120, 2))


@pytest.fixture(scope="module")
def dropping():
    """A trained network with dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = Dropping()
    finetune(module, Images(BARS.train, BARS, torch.device("cpu")), Recipe(steps=60), 0)
    return module


@pytest.mark.parametrize("network", ["mobilenet_v1", "dropping"])
def test_building_and_evaluating_touch_no_global_state(network, request, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("threads were set"))
    own = network == "dropping"
    module = request.getfixturevalue("dropping") if own else network
    before = global_states()
    task = make_task(module, BARS if own else "digits", evaluator=BRIEF, budget=0.75)
    assert global_states() == before
    assert task.float_accuracy > 50
    assert global_states() == before
    task.evaluate(task.uniform())
    task.evaluator.final(task.uniform(), Recipe(steps=2), 5)
    copy.deepcopy(task.evaluator).evaluate(task.space.lowest)
    assert global_states() == before


def test_accelerators_that_are_not_used_are_not_seeded(task, monkeypatch):
    def seeded(*_args):
        pytest.fail("an accelerator was seeded")

    for name in ("torch.cuda.manual_seed_all", "torch.cuda.manual_seed", "torch.mps.manual_seed"):
        monkeypatch.setattr(name, seeded)
    task.evaluator.final(task.uniform(), BRIEF, 0)


def test_the_callers_generators_do_not_influence_an_evaluation(dropping):
    answers, trained = [], []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            evaluator = make_task(dropping, BARS, evaluator=BRIEF, budget=0.75).evaluator
            answers.append(evaluator.evaluate(np.full((4, 2), 3)).accuracy)
            trained.append(weights(evaluator))
    assert answers[0] == answers[1]
    assert same(*trained)


def test_the_callers_module_stays_as_it_is(dropping):
    before = copy.deepcopy(dropping.state_dict())
    modes = [part.training for part in dropping.modules()]
    gradients = [parameter.grad.sum().item() for parameter in dropping.parameters()]
    assert modes[0]
    task = make_task(dropping, BARS, evaluator=BRIEF, budget=0.75)
    task.evaluate(task.uniform())
    assert same(before, dropping.state_dict())
    assert [part.training for part in dropping.modules()] == modes
    assert [parameter.grad.sum().item() for parameter in dropping.parameters()] == gradients
    assert {type(part) for part in dropping.modules()} >= {nn.Conv2d, nn.Linear}


def test_after_an_evaluation_the_float_network_is_still_the_float_network(task):
    bench = task.evaluator.bench
    before = bench.float_accuracy("val"), bench.float_accuracy("test")
    float_weights = {name: tensor.clone() for name, tensor in load_bundled().state_dict().items()}
    task.evaluator.final(task.space.uniform(2, 2), Recipe(steps=5), 0)
    assert not same(weights(task.evaluator), float_weights)
    now = bench.measure(None, None, 0, ("val", "test"))
    assert (now["val"], now["test"]) == before
    assert same(weights(task.evaluator), float_weights)


def load_bundled() -> nn.Module:
    from haq_env.networks.checkpoint import load_checkpoint, read_metadata

    module = load_network("mobilenet_v1", **read_metadata(BUNDLED)["build"])
    load_checkpoint(BUNDLED, module)
    return module


# -- what finetuning does ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_rewards_finetuning_of_an_8_bit_network_loses_nothing(task, seed):
    # Of seeds 0 to 15, four lose one image of 450 (for seed 6 an 8 that the float network gives
    # 0.77, next to a 1), and one gains one; none loses two. Seed 0 is the environments' own.
    found = task.evaluator.final(task.space.highest, RECIPES["finetune"], seed)
    assert found["val"] >= task.float_accuracy


@pytest.mark.slow
def test_the_final_finetuning_of_an_8_bit_network_loses_nothing_on_average(task):
    found = [
        task.evaluator.final(task.space.highest, FINAL, seed)["val"] for seed in range(1000, 1003)
    ]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert np.mean(found) >= task.float_accuracy - error


@pytest.mark.slow
def test_finetuning_recovers_accuracy_at_few_bits(task):
    def mean(bits, tier):
        return np.mean([task.evaluator.final(bits, RECIPES[tier], s)["val"] for s in range(3)])

    for policy in (task.space.uniform(2, 2), task.space.uniform(3, 2)):
        assert mean(policy, "finetune") > mean(policy, "ptq_bn")
    assert mean(task.space.uniform(3, 2), "finetune") > mean(task.space.uniform(2, 2), "finetune")


@pytest.mark.parametrize("tier", ["ptq_bn", "finetune"])
def test_more_bits_are_more_accurate(tier):
    task = make_task(evaluator=tier)
    found = [task.evaluate(task.space.uniform(bits, bits)).accuracy for bits in (2, 4, 8)]
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(task.float_accuracy, abs=100 / 450)


@pytest.mark.parametrize("steps", [0, 4])
def test_k_means_leaves_as_many_values_as_the_bits_allow(steps):
    task = make_task(
        hardware="size", quantizer="kmeans", bits=(1, 8), budget=0.5, evaluator=Recipe(steps=steps)
    )
    policy = task.space.random(np.random.default_rng(0), 1)[0]
    low = task.evaluate(policy).accuracy
    parts = dict(task.evaluator.bench.network.module.named_modules())
    with torch.no_grad():
        for name, (w_bits, _) in zip(task.layers.names, policy, strict=True):
            used = parts[name].slot.quantized(parts[name].weight)
            assert len(used.unique()) <= 2**w_bits
            if steps:  # every step puts the weights themselves back to their clusters
                assert len(parts[name].weight.unique()) <= 2**w_bits
    assert low < task.evaluate(task.space.highest).accuracy
    assert task.evaluate(task.space.highest).accuracy > task.float_accuracy - 1


# -- held-out images ---------------------------------------------------------------------------


def test_no_image_is_in_two_splits_of_the_digits_nor_twice_in_one():
    for size in (8, 16):
        data = digits(size)
        parts = {
            part: [image.tobytes() for image in getattr(data, part).images]
            for part in ("train", "val", "test")
        }
        assert [len(images) for images in parts.values()] == [897, 450, 450]
        for left, right in itertools.combinations(parts.values(), 2):
            assert not set(left) & set(right)
        assert sum(len(set(images)) for images in parts.values()) == 1797
        for part in parts:
            assert set(np.unique(getattr(data, part).labels)) == set(range(10))


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
def test_finetuning_reads_only_training_images(quantizer):
    data = digits(16)
    rng = np.random.default_rng(0)

    def scrambled(split):
        return Split(rng.permutation(255 - split.images), rng.permutation(split.labels))

    other = Dataset(
        "digits", 10, data.mean, data.std, data.train, scrambled(data.val), scrambled(data.test)
    )
    after, answers = [], []
    for given in (data, other):
        task = make_task(
            dataset=given, quantizer=quantizer, hardware="size", budget=0.5, evaluator=BRIEF
        )
        answers.append(task.evaluate(task.space.uniform(3, 3)).accuracy)
        after.append(weights(task.evaluator))
    assert same(*after)
    assert answers[0] != answers[1]


def test_a_search_never_reads_the_test_images(monkeypatch):
    task = make_task(evaluator=BRIEF)
    task.evaluator.bench.images["test"] = None
    task.evaluate(task.uniform())
    assert task.float_accuracy > 90
    with pytest.raises((AttributeError, TypeError)):
        task.evaluator.final(task.uniform(), BRIEF, 0)  # only the final figures do


def test_the_splits_are_the_same_every_time():
    assert all(
        (getattr(digits(), part).images == getattr(digits(), part).images).all()
        for part in ("train", "val", "test")
    )


# -- a user's own network and data -------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """Pairs of an image and a label, as a torchvision data set yields them."""

    def __init__(self, split: Split, form: str) -> None:
        self.split, self.form = split, form

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image, label = self.split.images[index], int(self.split.labels[index])
        if self.form == "pil":
            from PIL import Image

            return Image.fromarray(image[0]), label
        if self.form == "float":
            return torch.from_numpy(image.astype(np.float32) / 255), torch.tensor(label)
        return image, label


@pytest.mark.parametrize("form", ["pil", "float", "array"])
def test_data_sets_of_every_form_are_the_same_data_set(form):
    parts = [Pairs(getattr(BARS, part), form) for part in ("train", "val", "test")]
    data = Dataset.of("bars", *parts, classes=4, mean=[0.25], std=[0.15])
    for part in ("train", "val", "test"):
        assert (getattr(data, part).images == getattr(BARS, part).images).all()
        assert (getattr(data, part).labels == getattr(BARS, part).labels).all()
    assert data.input_shape == (1, 8, 8)


def test_colour_images_keep_their_channels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 3, 8, 9), dtype=np.uint8)
    last = [(image.transpose(1, 2, 0), 0) for image in pixels]
    data = Dataset.of("rgb", last, last, last, classes=1, mean=[0.5] * 3, std=[0.2] * 3)
    assert (data.train.images == pixels).all()


def test_arrays_of_every_layout_give_the_same_answer(dropping):
    images, labels = BARS.train.images, BARS.train.labels
    read_only = images.copy()
    read_only.flags.writeable = False
    wide = np.empty((*images.shape[:3], 16), np.uint8)
    wide[..., ::2] = images
    answers = set()
    for train in (
        BARS.train,
        Split(read_only, labels.astype(np.int32)),
        Split(wide[..., ::2], labels.astype(np.uint8)),
        Split(images[:, :, ::-1].copy()[:, :, ::-1], labels[::-1].copy()[::-1]),
    ):
        data = Dataset("bars", 4, BARS.mean, BARS.std, train, BARS.val, BARS.test)
        evaluator = make_task(dropping, data, evaluator=BRIEF, budget=0.75).evaluator
        answers.add(evaluator.evaluate(np.full((4, 2), 3)).accuracy)
    assert len(answers) == 1


def test_a_users_network_and_data_go_through_the_environment(dropping):
    parts = [Pairs(getattr(BARS, part), "float") for part in ("train", "val", "test")]
    data = Dataset.of("bars", *parts, classes=4, mean=[0.25], std=[0.15])
    env = gym.make(
        "HAQ-BISMO-Edge-v0", network=dropping, dataset=data, evaluator="ptq_bn", budget=0.7
    ).unwrapped
    assert env.task.layers.names == ("body.0", "body.4", "hidden", "head")
    env.reset()
    for _ in env.task.space.steps:
        _, reward, terminated, _, info = env.step(np.array([0.9], np.float32))
    assert terminated
    assert info["float_accuracy"] > 90
    assert reward == pytest.approx(0.1 * (info["accuracy"] - info["float_accuracy"]))
    assert info["accuracy"] > 80


class Winding(nn.Module):
    """A network whose control flow depends on the data, so that nothing can trace it."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, images):
        if images.sum().item() > 1e9:
            return self.inside(-images)
        return self.inside(images)


def test_a_network_that_cannot_be_traced_needs_a_layer_table_and_nothing_else(dropping):
    network = Winding(dropping)
    with pytest.raises(InputError, match="LayerTable of your own"):
        make_task(network, BARS)
    traced = trace(dropping, (1, 8, 8))
    layers = LayerTable(
        "winding",
        tuple(Layer(**{**vars(layer), "name": f"inside.{layer.name}"}) for layer in traced.layers),
        (1, 8, 8),
    )
    env = QuantizationEnv(
        network=network, dataset=BARS, layers=layers, evaluator=BRIEF, hardware="size", budget=0.5
    )
    env.reset()
    for _ in env.task.space.steps:
        *_, info = env.step(np.array([0.0], np.float32))
    plain = make_task(dropping, BARS, evaluator=BRIEF, hardware="size", budget=0.5)
    assert info["accuracy"] == plain.evaluate(np.array(info["policy"])).accuracy
    assert info["float_accuracy"] == plain.float_accuracy


def test_a_network_and_a_data_set_by_address(tmp_path, monkeypatch):
    (tmp_path / "mine_by_address.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from torch import nn
            from haq_env.data import Dataset, Split

            def net(classes, in_channels, image_size):
                assert (classes, in_channels, image_size) == (3, 2, 6)
                return nn.Sequential(
                    nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                    nn.Flatten(), nn.Linear(16, classes),
                )

            def data():
                rng = np.random.default_rng(0)
                images = rng.integers(0, 256, (40, 2, 6, 6), dtype=np.uint8)
                part = Split(images, rng.integers(0, 3, 40))
                return Dataset("mine", 3, (0.5, 0.5), (0.3, 0.3), part, part, part)

            nothing = 5
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = make_task("mine_by_address:net", "mine_by_address:data", evaluator="ptq_bn", budget=0.9)
    assert len(task.layers) == 3
    assert task.settings["dataset"] == "mine"
    result = task.evaluate(task.space.highest)
    assert result.accuracy == task.float_accuracy
    for network, dataset, message in (
        ("mine_by_address:nett", "mine_by_address:data", "Did you mean 'net'"),
        ("mine_by_address:net", "mine_by_address:dada", "Did you mean 'data'"),
        ("mine_by_address:net", "mine_by_address:nothing", "not a Dataset"),
        ("mine_by_address:nothing", "mine_by_address:data", "is not callable but 5"),
        ("mine_by_address:", "mine_by_address:data", "is not of the form package.module:factory"),
        ("mine_by_address:data", "mine_by_address:data", "no nn.Module"),
    ):
        with pytest.raises(InputError, match=re.escape(message).replace("factory", r"\w+")):
            make_task(network, dataset)


# -- bad input ---------------------------------------------------------------------------------

PIXELS = np.zeros((3, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.astype(np.float32), np.arange(3), "images must be uint8 [N, C, H, W], not float32"),
        (PIXELS[:, 0], np.arange(3), "images must be uint8 [N, C, H, W], not uint8 [3, 8, 8]"),
        (PIXELS, np.arange(4), "labels must be one number for each of the 3 images"),
        (PIXELS[:0], np.arange(0), "(at least one)"),
    ],
)
def test_arrays_that_are_no_split_are_refused(images, labels, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Split(images, labels)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_outside_the_classes_are_refused(part, label):
    parts = {name: getattr(BARS, name) for name in ("train", "val", "test")}
    labels = parts[part].labels.copy()
    labels[7] = label
    parts[part] = Split(parts[part].images, labels)
    with pytest.raises(InputError, match=f"data set 'bars': {part} has labels .*there are 4 class"):
        Dataset("bars", 4, (0.25,), (0.15,), **parts)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(np.full((1, 8, 8), 1.5), 0)], "float images must lie in 0 to 1, not normalised"),
        ([(np.full((1, 8, 8), -0.1), 0)], "float images must lie in 0 to 1, not normalised"),
        ([(np.zeros((1, 8, 8)), 0), (np.zeros((1, 9, 8)), 0)], "images must have one shape"),
        ([(np.zeros((1, 8, 8)), 3)], "train has labels 3 to 3, but there are 2 classes"),
        ([(np.full((1, 8, 8), np.nan), 0)], "image 0 has values nan to nan; float images must"),
        ([(np.zeros((1, 8, 8), np.int64), 0)], "image 0 must be uint8 or float, channels x"),
        ([(np.zeros((1, 2, 8, 8)), 0)], "channels x height x width, not float64 [1, 2, 8, 8]"),
        ([(np.zeros((1, 8, 8)), 1), (np.zeros((1, 8, 8)), 0.5)], "label 1 must be an integer, not"),
        ([np.zeros((1, 8, 8))], "item 0 must be a pair of image and label"),
        ((np.zeros((3, 1, 8, 8)), np.zeros(2, int)), "3 images, and labels [2]: there must be one"),
        ([np.zeros((3, 1, 8, 8)), np.zeros((3, 1))], "3 images, and labels [3, 1]: there must be"),
        ({"images": 0, "labels": 1}, "item 0 must be a pair of image and label: KeyError"),
        ([], "a part of it has no images"),
    ],
)
def test_samples_that_are_no_images_are_refused(samples, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Dataset.of("mine", samples, samples, samples, classes=2, mean=[0.5], std=[0.5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [33.3]}, "mean must lie in 0 to 1, not (33.3,)"),
        ({"std": [78.6]}, "std must be positive and at most 1, on the scale where white is 1"),
        ({"std": [0.0]}, "std must be positive"),
        ({"mean": [float("nan")]}, "mean must lie in 0 to 1"),
        ({"mean": 0.5}, "mean must be one number for each channel, not 0.5"),
        ({"std": [None]}, "std must be one number for each channel, not [None]"),
        ({"mean": "a"}, "mean must be one number for each channel, not 'a'"),
        ({"classes": 2.5}, "classes must be a positive integer, not 2.5"),
        ({"classes": "2"}, "classes must be a positive integer, not '2'"),
        ({"mean": [0.5, 0.5]}, "mean must be one number for each of 1 channels, not 2"),
    ],
)
def test_a_mean_or_deviation_on_another_scale_is_refused(given, message):
    pairs = [(np.zeros((1, 8, 8)), 0)]
    about = {"classes": 2, "mean": [0.5], "std": [0.5], **given}
    with pytest.raises(InputError, match=re.escape(message)):
        Dataset.of("mine", pairs, pairs, pairs, **about)


def test_two_arrays_are_images_and_their_labels():
    images = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
    for labels in (np.arange(6) % 2, torch.arange(6) % 2):
        arrays = (images, labels)
        data = Dataset.of("mine", arrays, arrays, arrays, classes=2, mean=[0.5], std=[0.5])
        assert np.array_equal(data.train.images, np.rint(images * 255))
        assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    tensor = torch.tensor(images, requires_grad=True)
    pairs = ((tensor[0], 0), (tensor[1], torch.tensor(1)))
    about = {"classes": 2, "mean": torch.tensor([0.5]), "std": np.array([0.5])}
    data = Dataset.of("mine", pairs, pairs, pairs, **about)
    assert (data.train.labels.tolist(), data.mean, data.std) == ([0, 1], (0.5,), (0.5,))


def test_a_network_that_fails_without_a_message_is_one_clear_error():
    class Mute(nn.Module):
        def forward(self, images):
            raise RuntimeError

    grey = Split(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64))
    data = Dataset("grey", 4, (0.5,), (0.5,), grey, grey, grey)
    with pytest.raises(InputError, match=r"cannot be run on images .*: RuntimeError$"):
        check_fits(Mute(), data, torch.zeros(1, 1, 8, 8))


def test_a_network_that_does_not_fit_the_data_is_one_clear_error(dropping):
    layers = trace(dropping, (1, 8, 8))
    colour = Split(np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64))
    rgb = Dataset("rgb", 4, (0.5,) * 3, (0.5,) * 3, colour, colour, colour)
    with pytest.raises(InputError, match=r"cannot be run on images \[3, 8, 8\] of data set 'rgb'"):
        _ = make_task(dropping, rgb, layers=layers).float_accuracy
    more = Dataset("more", 5, BARS.mean, BARS.std, BARS.train, BARS.val, BARS.test)
    with pytest.raises(InputError, match=r"'more' has 5 classes, but the answer is \[1, 4\]"):
        _ = make_task(dropping, more, layers=layers).float_accuracy
    flat = nn.Sequential(dropping, nn.Flatten(0))
    named = LayerTable("flat", tuple(Layer(**{**vars(x), "name": f"0.{x.name}"}) for x in layers))
    with pytest.raises(InputError, match=r"must answer \[1, classes\] logits"):
        _ = make_task(flat, BARS, layers=named).float_accuracy


def foreign(tmp_path):
    """Weights of another network, written as our own tools do."""
    module = load_network("resnet20", classes=10, image_size=16, width=0.25, in_channels=1)
    path = tmp_path / "resnet20.safetensors"
    about = {"network": "resnet20", "layer_table": layers_to_json(trace(module, (1, 16, 16)))}
    save_checkpoint(path, module, about)
    return path


def relabelled(tmp_path):
    """Weights of another network that claims to be ours."""
    from haq_env.networks.checkpoint import read_metadata

    module = load_network("resnet20", classes=10, image_size=16, width=0.25, in_channels=1)
    path = tmp_path / "relabelled.safetensors"
    save_checkpoint(path, module, read_metadata(BUNDLED))
    return path


def cut(tmp_path, share):
    path = tmp_path / "cut.safetensors"
    whole = BUNDLED.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


def pickled(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(load_network("mobilenet_v1", classes=10).state_dict(), path)
    return path


def anonymous(tmp_path):
    path = tmp_path / "anonymous.safetensors"
    save_checkpoint(path, nn.Linear(2, 2), {})
    return path


def quantized(tmp_path):
    """What a search writes."""
    path = tmp_path / "quantized.safetensors"
    save_checkpoint(path, nn.Linear(2, 2), {"network": "mobilenet_v1", "quantized": {}})
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "holds weights of 'resnet20', not of 'mobilenet_v1'"),
        (relabelled, "is of another architecture: it lacks"),
        (lambda folder: cut(folder, 0.9), "is damaged"),
        (lambda folder: cut(folder, 0.05), "is damaged"),
        (lambda folder: cut(folder, 0), "is damaged"),
        (pickled, "is a pickle, which can run code"),
        (anonymous, "does not say which network it is for"),
        (quantized, "holds a quantized network, which haq_env.load_quantized reads"),
        (lambda folder: folder / "gone.safetensors", "does not exist"),
        (lambda folder: folder, "cannot be read"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_error_that_names_the_file(make, message, tmp_path):
    path = make(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        _ = make_task(checkpoint=path, evaluator="ptq_bn").float_accuracy
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bundled_file_is_a_checkpoint_like_any_other(tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(BUNDLED.read_bytes())
    task = make_task(checkpoint=path, evaluator="ptq_bn")
    assert task.float_accuracy == make_task(evaluator="ptq_bn").float_accuracy > 97


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (np.full((27, 2), 4), "must have the shape [..., 28, 2]"),
        (np.full((28, 2), 0), "bits must be 1 to 8, not 0"),
        (np.full((28, 2), 9), "bits must be 1 to 8, not 9"),
        (np.full((28, 2), 2.5), "bits must be integers"),
        (np.full((3, 28, 2), 4), "bits must be one policy"),
        (np.full((28, 2), 1), "1 activation bits are not possible"),
    ],
)
def test_bits_that_are_no_policy_are_refused(task, bits, message):
    with pytest.raises(InputError, match=re.escape(message)):
        task.evaluate(bits)
    assert task.float_accuracy > 97


def test_a_stack_of_one_policy_is_refused_whatever_is_known_and_is_no_evaluation():
    evaluator = make_task(evaluator="ptq_bn").evaluator
    evaluator.remember(np.full((28, 2), 4), 50.0)
    additive = AdditiveEvaluator(np.ones((28, 2)), 1.0)
    for evaluate in (evaluator.evaluate, evaluator.evaluate_batch, additive.evaluate):
        with pytest.raises(InputError, match="bits must be one policy"):
            evaluate(np.full((1, 1, 28, 2), 4))
    with pytest.raises(InputError, match="bits must be one policy"):
        evaluator.evaluate(np.full((1, 28, 2), 4))
    assert evaluator.evaluations == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "learning_rate": 0.0},
        {"steps": 1, "momentum": -0.1},
        {"steps": 1, "weight_decay": -1e-4},
        {"steps": 1, "max_norm": 0.0},
        {"steps": 1, "bn_images": 0},
    ],
)
def test_a_recipe_that_makes_no_sense_names_what_is_wrong(wrong):
    with pytest.raises(InputError, match=f"recipe: {list(wrong)[-1]} must"):
        Recipe(**wrong)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_when_the_task_is_made(device):
    with pytest.raises(InputError, match=f"torch device '{device}' cannot be used"):
        make_task(device=device)


def test_a_cuda_device_is_looked_for_without_touching_it(monkeypatch):
    # a process that has touched CUDA cannot be forked, as AsyncVectorEnv does
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: pytest.fail("CUDA was touched"))
    make_task(device="cuda:1")
    with pytest.raises(InputError, match="'cuda:2' cannot be used: 2 CUDA devices"):
        make_task(device="cuda:2")


def test_a_frozen_network_is_one_clear_error_where_it_must_be_finetuned(dropping):
    frozen = copy.deepcopy(dropping).requires_grad_(False)
    task = make_task(frozen, BARS, evaluator=BRIEF, budget=0.75)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        task.evaluate(task.uniform())
    make_task(frozen, BARS, evaluator="ptq_bn", budget=0.75).evaluate(task.uniform())


def test_a_name_without_weights_is_an_error_and_not_a_random_network(task):
    subject = Subject("mobilenet_v1", "digits", task.layers)
    with pytest.raises(InputError, match="has no trained weights to be evaluated"):
        TrainedEvaluator(subject, BRIEF).evaluate(task.uniform())
