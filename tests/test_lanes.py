"""Policies side by side: the answers of one by one, however a step is repeated, or a reason."""

import copy
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from haq_env.data import Dataset, Split
from haq_env.errors import InputError
from haq_env.evaluation import Recipe, cuda_graphs
from haq_env.evaluation.capture import MOST, CudaGraphs, lanes_in
from haq_env.evaluation.descent import Descent, descend
from haq_env.evaluation.finetune import Images, batches_of, finetune, parameter_groups, rate_of
from haq_env.evaluation.lanes import Lanes
from haq_env.make import make_task

BRIEF = Recipe(steps=4)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def digits():
    """The bundled network and task, with a brief finetuning."""
    return make_task(evaluator=BRIEF)


@cache
def trained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(0.0),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip
    data = images()
    finetune(module, Images(data.train, data, torch.device("cpu")), Recipe(steps=60), 0)
    return module.eval()


def network(dropout=0.0) -> nn.Module:
    module = copy.deepcopy(trained())
    module[6].p = dropout
    return module


class Waiting(nn.Module):
    """Reads a number on the host in every step, as no graph can."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, inputs):
        outputs = self.body(inputs)
        if self.training and float(outputs.detach().sum()) > 1e9:
            return outputs * 2
        return outputs


def images(val=300) -> Dataset:
    """Four classes of noise, by where it is brighter."""
    rng = np.random.default_rng(0)

    def part(size):
        labels = rng.integers(4, size=size)
        pixels = rng.integers(0, 200, (size, 1, 8, 8))
        for image, label in zip(pixels, labels, strict=True):
            np.rot90(image[0], label)[:3] += 30
        return Split(pixels.astype(np.uint8), labels)

    return Dataset("corners", 4, (0.4,), (0.25,), part(200), part(val), part(20))


def small(module=None, val=300, **settings):
    settings = {"hardware": "size", "budget": 0.7, "evaluator": BRIEF, **settings}
    return make_task((module or network)(), images(val), **settings)


def some(task, count, seed=0):
    return list(task.space.random(np.random.default_rng(seed), count))


def weights(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def everything(net):
    """What quantizers learn, too."""
    return {**weights(net.module), **weights(net.learned)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- stand-ins for a CUDA graph ----------------------------------------------------------------


class Log(TorchDispatchMode):
    """Writes down every operation on tensors, with the very tensors that went in and came out."""

    READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "bincount", "masked_select")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.split("::")[1] in self.READING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


class Again:
    """Runs the parts again, one after the other; as many lanes fit as it is told."""

    def __init__(self, lanes):
        self._lanes = lanes

    def record(self, parts):
        def repeat():
            for part in parts:
                part()

        return repeat

    def held(self):
        return 0

    def lanes(self, held):
        return self._lanes


class Tape(Again):
    """Repeats operations on the same memory, as a CUDA graph does, and no line of Python between.

    Numbers are frozen, and reading one on the host is an error. Like the real one it first runs
    parts that it does not know, and only the latest recording can be repeated.
    """

    def __init__(self, lanes):
        super().__init__(lanes)
        self.known, self.recordings = set(), 0

    def record(self, parts):
        for part in set(parts) - self.known:
            part()
        self.known.update(parts)
        log = Log()
        with log:
            for part in parts:
                part()
        self.recordings += 1
        number = self.recordings

        @torch.no_grad()
        def repeat():
            assert number == self.recordings
            for func, args, kwargs, out in log.calls:
                found = func(*args, **kwargs)
                pairs = zip(found, out, strict=True) if isinstance(out, (list, tuple)) else ()
                for new, kept in [(found, out)] if torch.is_tensor(out) else pairs:
                    if new is not None and new.data_ptr() != kept.data_ptr():
                        kept.copy_(new)

        return repeat


class OneLane(Again):
    """Forgets all lanes but the first."""

    def record(self, parts):
        return super().record(parts[:1])


class Uncounted(Again):
    """Forgets to count."""

    def record(self, parts):
        return super().record(parts if torch.is_grad_enabled() else [])


class Spoiling(Again):
    """Leaves something in the weights that is no number."""

    def record(self, parts):
        repeat = super().record(parts)

        def spoil():
            repeat()
            parts[0].__self__.network.module[0].weight.data.fill_(float("nan"))

        return spoil


class Failing(Again):
    """Fails from some recording on."""

    def __init__(self, lanes, after=0):
        super().__init__(lanes)
        self.left = after

    def record(self, parts):
        if not self.left:
            raise RuntimeError("CUDA error: out of memory\nand much more")
        self.left -= 1
        return super().record(parts)


# -- one step ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [Recipe(steps=5), Recipe(steps=5, momentum=0.0), Recipe(steps=5, weight_decay=0.0)]
)
def test_a_finetuning_ends_in_the_weights_of_torchs_own_optimizer(digits, recipe):
    bench = digits.evaluator.bench
    net, train = bench.network, bench.images["train"]
    net.restore()
    net.set_policy(some(digits, 1)[0])
    finetune(net, train, recipe, 3)
    found = weights(net)
    net.restore()
    net.train()
    sgd = torch.optim.SGD(
        parameter_groups(net, recipe.weight_decay), 1.0, momentum=recipe.momentum, foreach=True
    )
    for step, index in enumerate(batches_of(len(train), recipe, 3)):
        for group in sgd.param_groups:
            group["lr"] = rate_of(recipe, step)
        sgd.zero_grad()
        nn.functional.cross_entropy(net(train.batch(index)), train.labels[index]).backward()
        nn.utils.clip_grad_norm_(list(net.parameters()), recipe.max_norm)
        sgd.step()
    assert same(found, weights(net))


class Spare(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.body, self.spare = network(), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.body(inputs)


def test_a_parameter_that_no_step_reaches_stays():
    net = Spare()
    before = weights(net.spare)
    descent = Descent(net, small().evaluator.bench.images["train"], BRIEF)
    descent.push(torch.arange(8))
    assert net.body[0].weight.grad is not None
    descend([descent], 0.1)
    assert same(weights(net.spare), before)
    descent.release()
    assert all(parameter.grad is None for parameter in net.parameters())


# -- lanes -------------------------------------------------------------------------------------


def lanes_of(task, recorder):
    evaluator = task.evaluator
    bench = evaluator.bench
    return Lanes(bench.network, bench.images, evaluator.recipe, evaluator.seed, recorder)


@pytest.mark.parametrize(
    ("bundled", "recorder", "tier", "quantizer"),
    [
        (True, Tape, BRIEF, "linear"),
        (True, Tape, "ptq_bn", "linear"),
        (True, Tape, BRIEF, "lsq"),
        (False, Tape, Recipe(steps=3, momentum=0.0), "linear"),
        (False, Again, BRIEF, "linear"),
        (False, Again, "ptq_bn", "linear"),
        (False, Again, BRIEF, "lsq"),
    ],
)
def test_side_by_side_gives_the_answers_and_weights_of_one_by_one(
    bundled, recorder, tier, quantizer
):
    task = (make_task if bundled else small)(evaluator=tier, quantizer=quantizer, reuse=0)
    bench, lanes = task.evaluator.bench, lanes_of(task, recorder(3))
    policies = some(task, 4)
    answers, states = [], []
    for bits in policies:
        answers.append(task.evaluator.measurer.measure(bits).accuracy)
        states.append(everything(bench.network))
    assert not same(states[0], states[1])
    # groups of other sizes and in another order; a lane gets other policies
    for group in ([0, 1, 2], [3], [2, 0], [1, 3, 0]):
        found = lanes.measure([policies[at] for at in group])
        assert found == [answers[at] for at in group]
        for at, net in zip(group, lanes.networks, strict=False):
            assert same(everything(net), states[at])
    assert same(everything(bench.network), states[-1])  # what was copied is not touched


@pytest.mark.parametrize("val", [300, 256, 100])
def test_images_that_fill_no_batch_are_counted_too(val):
    task = small(val=val)
    lanes = lanes_of(task, Tape(2))
    policies = some(task, 2)
    expected = [task.evaluator.measurer.measure(bits).accuracy for bits in policies]
    assert lanes.measure(policies) == expected


def test_no_quantized_weights_of_another_policy_or_step_serve():
    task = small(evaluator=Recipe(steps=6, learning_rate=0.5))
    lanes = lanes_of(task, Tape(1))
    policy, other = some(task, 2)
    for bits in (policy, other, policy):
        lanes.measure([bits])
        (net,) = lanes.networks
        with torch.no_grad():
            found = net(task.evaluator.bench.images["val"].batch(slice(0, 20)))
            net.weights_changed()
            assert torch.equal(net(task.evaluator.bench.images["val"].batch(slice(0, 20))), found)
        for layer in net.quantized_layers:  # a recording's memory must not end up in there
            assert len(layer.slot.cache) == 0
            expected = layer.slot.quantizer.weight(layer.weight, layer.slot.w_bits)
            with torch.no_grad():
                assert torch.equal(layer.slot.quantized(layer.weight), expected)
            assert layer.weight.grad is None


def test_an_interrupted_group_leaves_the_next_one_as_it_was(monkeypatch):
    task = small()
    lanes = lanes_of(task, Again(2))
    policies = some(task, 2)
    expected = lanes.measure(policies)
    really, calls = torch.nn.functional.cross_entropy, []

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return really(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", interrupting)
        with pytest.raises(KeyboardInterrupt):
            lanes.measure(policies[::-1])
    assert lanes.measure(policies) == expected


@pytest.mark.parametrize(
    ("free", "taken", "count"),
    [(0, 10, 1), (19, 10, 1), (20, 10, 2), (100, 10, 6), (10**9, 10, MOST), (100, 0, MOST)],
)
def test_lanes_take_half_of_the_memory_at_most(free, taken, count):
    assert lanes_in(free, taken) == count


# -- the choice --------------------------------------------------------------------------------


@pytest.fixture
def recording(monkeypatch):
    """Let a CPU have graphs, which are as fast as told."""

    def set_up(recorder, times=(1.0, 3.0, 1.5)):
        seconds = iter(times)
        monkeypatch.setattr(cuda_graphs, "recorder_for", lambda device: recorder)
        monkeypatch.setattr(cuda_graphs, "_seconds", lambda run: (run(), next(seconds))[1])
        return recorder

    return set_up


def test_graphs_serve_batches_and_single_policies_with_the_same_answers(recording):
    alone = small()
    policies = some(alone, 8)
    expected = [alone.evaluate(bits) for bits in policies]
    recorder = recording(Tape(3))
    task = small()
    assert task.evaluate(policies[0]).accuracy == expected[0].accuracy
    tried = recorder.recordings
    found = task.evaluate_batch(policies[:7])  # one is known, the others are two groups
    assert recorder.recordings == tried + 2 * 2
    assert [each.accuracy for each in found] == [each.accuracy for each in expected[:7]]
    assert [each.note for each in found] == [""] * 7
    assert task.evaluator.seconds > 0
    assert task.evaluator.evaluations == 8


@pytest.mark.parametrize(
    ("times", "most", "note"),
    [
        ((1.0, 3.0, 1.5), 3, ""),
        ((1.0, 3.0, 3.5), 1, ""),  # side by side gains nothing
        ((3.0, 1.0), 0, "no CUDA graphs: one by one is faster here"),
    ],
)
def test_what_is_faster_serves(recording, times, most, note):
    recording(Again(3), times)
    task = small()
    assert task.evaluator.measurer.graphs.most == most
    assert task.evaluate(some(task, 1)[0]).note == note


def test_graphs_that_were_asked_for_need_not_be_faster(recording):
    recording(Again(3), (3.0, 1.0))  # one by one is not even timed
    assert small(graphs="on").evaluator.measurer.graphs.most == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"early_stopping": 0.1}, "early stopping looks at every chunk of images"),
        ({"quantizer": "kmeans"}, "quantizer 'kmeans' may have work to do after a step"),
        ({"evaluator": "ptq_bn"}, "policies that begin alike share more"),
        ({"module": partial(network, dropout=0.1)}, "a step draws random numbers"),
    ],
)
def test_what_graphs_cannot_do_is_done_one_by_one_and_says_why(recording, settings, reason):
    recording(Tape(3))
    task, alone = small(**settings), small(**settings, graphs="off")
    policies = some(task, 3)
    found, expected = task.evaluate_batch(policies), alone.evaluate_batch(policies)
    assert [each.accuracy for each in found] == [each.accuracy for each in expected]
    assert {each.note for each in found} == {f"no CUDA graphs: {reason}"}
    assert {each.note for each in expected} == {""}


@pytest.mark.parametrize(
    ("module", "recorder", "reason"),
    [
        (network, Failing(3), "they fail (RuntimeError: CUDA error: out of memory)"),
        (network, OneLane(3), "they give other weights (relative distance"),
        (network, Spoiling(3), "they give other weights (relative distance nan)"),
        (network, Uncounted(3), "they give another accuracy ("),
        (Waiting, Tape(3), "they fail (RuntimeError: operation not permitted when stream is c"),
    ],
)
def test_graphs_that_fail_or_answer_otherwise_are_refused(recording, module, recorder, reason):
    alone = small(module, graphs="off")
    policies = some(alone, 3)
    expected = alone.evaluate_batch(policies)
    recording(recorder)
    task = small(module)
    found = task.evaluate_batch(policies)
    assert [each.accuracy for each in found] == [each.accuracy for each in expected]
    assert all(each.note.startswith(f"no CUDA graphs: {reason}") for each in found)


def test_graphs_that_fail_later_hand_over_to_one_by_one(recording, tmp_path):
    alone = small()
    policies = some(alone, 6)
    expected = [alone.evaluate(bits).accuracy for bits in policies]
    recorder = recording(Failing(2, after=100))
    task = small(cache=tmp_path / "answers.sqlite")
    task.evaluate_batch(policies[:2])
    recorder.left = 1
    found = task.evaluate_batch(policies)
    assert [each.accuracy for each in found] == expected
    assert [each.note for each in found] == ["", ""] + 4 * [
        "no CUDA graphs: they fail (RuntimeError: CUDA error: out of memory)"
    ]


def test_answers_of_graphs_and_of_one_by_one_have_other_places_in_the_cache(recording, tmp_path):
    file = tmp_path / "answers.sqlite"
    plain = small(cache=file)
    policies = some(plain, 2)
    plain.evaluate_batch(policies)
    recording(Again(2))
    with_graphs = [small(cache=file) for _ in range(2)]
    recording(Again(2), 2 * (1.0, 3.0, 1.5))
    hits = [[r.cache_hit for r in task.evaluate_batch(policies)] for task in with_graphs]
    assert hits == [[False, False], [True, True]]
    off = small(cache=file, graphs="off")
    assert [r.cache_hit for r in off.evaluate_batch(policies)] == [True, True]


def test_worker_processes_measure_one_by_one(recording):
    recording(Again(2))
    task = small(workers=2)
    assert task.evaluator.measurer.graphs.most == 0
    assert task.evaluate(some(task, 1)[0]).note == ""


def test_a_cpu_has_no_graphs_and_says_so_only_when_asked():
    task = small()
    assert task.evaluate(some(task, 1)[0]).note == ""
    forced = small(graphs="on")
    with pytest.warns(RuntimeWarning, match="no CUDA graphs: the device is 'cpu'"):
        found = forced.evaluate(some(task, 1)[0])
    assert found.note == "no CUDA graphs: the device is 'cpu'"
    with pytest.raises(InputError, match="unknown graphs 'yes'"):
        small(graphs="yes")


# -- on a GPU ----------------------------------------------------------------------------------


@needs_cuda
def test_captured_policies_answer_as_one_by_one_on_a_gpu():
    task, alone = make_task(device="cuda", graphs="on"), make_task(device="cuda", graphs="off")
    policies = some(task, 5)
    found, expected = task.evaluate_batch(policies), alone.evaluate_batch(policies)
    assert {each.note for each in found} == {""}
    assert task.evaluator.measurer.graphs.most > 1
    gaps = [abs(f.accuracy - e.accuracy) for f, e in zip(found, expected, strict=True)]
    assert np.median(gaps) <= 0.5  # one that begins to differ may differ by more


@needs_cuda
def test_graphs_serve_on_a_gpu_only_where_they_are_faster():
    task = make_task(device="cuda")
    note = task.evaluate(some(task, 1)[0]).note
    assert (task.evaluator.measurer.graphs.most > 0) == (note == "")
    assert note in ("", "no CUDA graphs: one by one is faster here")


@needs_cuda
def test_many_groups_on_a_gpu_take_no_more_memory():
    task = make_task(device="cuda", evaluator=BRIEF)
    bench = task.evaluator.bench
    lanes = lanes_of(task, recorder := CudaGraphs(bench.device))
    held = []
    for number in range(12):
        lanes.measure(some(task, 4, seed=number))
        held.append(recorder.held())
    assert max(held[6:]) <= max(held[:6])


@needs_cuda
def test_a_network_that_waits_for_the_gpu_is_measured_one_by_one():
    task, alone = small(Waiting, device="cuda"), small(Waiting, device="cuda", graphs="off")
    bits = some(task, 1)[0]
    assert task.evaluate(bits).note.startswith("no CUDA graphs: they fail")
    assert abs(task.evaluate(bits).accuracy - alone.evaluate(bits).accuracy) < 1
