"""The evaluation cache: a hit is what would have been computed, and nothing finished is lost."""

import copy
import functools
import itertools
import multiprocessing
import pickle
import random
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from haq_env.cli import main
from haq_env.data import Dataset, Split
from haq_env.database import APPLICATION, Database
from haq_env.errors import InputError
from haq_env.evaluation import RECIPES, Evaluation, Recipe
from haq_env.evaluation.answers import Answers
from haq_env.evaluation.cache import SCHEMA, EvaluationCache, Origin
from haq_env.evaluation.finetune import Images, finetune
from haq_env.layers import LayerTable
from haq_env.make import make_task
from haq_env.networks.trace import trace

ORIGIN = Origin("net", "data", "linear", "ptq_bn", "0")
BITS = np.array([[8, 8], [4, 2]])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The number of threads is part of a key."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


def images(count: int, seed: int) -> Split:
    """Two classes of 6 x 6 images: bright above or bright below, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    pixels = rng.integers(0, 200, (count, 1, 6, 6))
    for image, label in zip(pixels, labels, strict=True):
        image[0, 3 * label : 3 * label + 3] += 40
    return Split(pixels.astype(np.uint8), labels)


DATA = Dataset("halves", 2, (0.4,), (0.25,), images(128, 0), images(200, 1), images(8, 2))


class Net(nn.Module):
    """A small network whose forward a subclass can change without a trace in its structure."""

    def __init__(self, activation: nn.Module | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.activation = activation or nn.ReLU()
        self.middle = nn.Conv2d(6, 6, 3)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(24, 2)
        self.gain = 1.0

    def forward(self, images):
        found = self.activation(self.norm(self.first(images)))
        found = (self.gain * self.middle(found)).relu().flatten(1)
        return self.head(self.dropout(found))


def like(net: Net) -> Net:
    """Another network with the same weights."""
    net.load_state_dict(trained().state_dict())
    return net


def changed(**attributes) -> Net:
    net = copy.deepcopy(trained())
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def nudged() -> Net:
    net = copy.deepcopy(trained())
    with torch.no_grad():
        net.middle.weight[0, 0, 0, 0] += 1e-6
    return net


def frozen() -> Net:
    net = copy.deepcopy(trained())
    net.head.requires_grad_(False)
    return net


def with_split(part: str, change) -> Dataset:
    pixels, labels = (array.copy() for array in vars(getattr(DATA, part)).values())
    change(pixels, labels)
    return replace(DATA, **{part: Split(pixels, labels)})


def brighten(pixels, _labels):
    pixels[-1, 0, 0, 0] ^= 1


def relabel(_pixels, labels):
    labels[-1] ^= 1


def swap(pixels, labels):
    pixels[:2], labels[:2] = pixels[1::-1].copy(), labels[1::-1].copy()


@functools.cache
def trained() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        finetune(net, Images(DATA.train, DATA, torch.device("cpu")), Recipe(steps=60), 0)
    return net


def middles() -> list[np.ndarray]:
    """All 49 policies of the network, whose first and last layer stay at 8 bits."""
    pairs = itertools.product(range(2, 9), repeat=2)
    return [np.array([[8, 8], pair, [8, 8]]) for pair in pairs]


def small(path=None, network=None, dataset=DATA, **settings):
    settings = {"hardware": "size", "evaluator": "ptq_bn", "budget": 0.7} | settings
    return make_task(network or trained(), dataset, cache=path, **settings)


def keys(path) -> set[str]:
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {key for (key,) in file.execute("SELECT key FROM evaluations")}
    file.close()
    return found


# -- a hit is what would have been computed ----------------------------------------------------


@pytest.mark.parametrize("tier", ["ptq_bn", Recipe(steps=4)])
@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
def test_a_later_task_finds_the_answers_that_it_would_compute(tier, quantizer, path):
    settings = {"evaluator": tier, "quantizer": quantizer}
    first, later, alone = small(path, **settings), small(path, **settings), small(**settings)
    policies = middles()[::12]
    computed = [first.evaluate(policy) for policy in policies]
    found = [later.evaluate(policy) for policy in policies[::-1]][::-1]
    expected = [alone.evaluate(policy).accuracy for policy in policies]
    assert [answer.accuracy for answer in computed] == expected
    assert found == [Evaluation(accuracy, 0.0, cache_hit=True) for accuracy in expected]
    assert not any(answer.cache_hit for answer in computed)
    assert (later.evaluator.evaluations, later.evaluator.seconds) == (5, 0)
    assert len(set(expected)) > 1
    fresh = np.array([[8, 8], [7, 1], [8, 8]])
    assert later.evaluate(fresh).accuracy == alone.evaluate(fresh).accuracy


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"evaluator": Recipe(steps=1)},
        {"evaluator": replace(RECIPES["ptq_bn"], bn_images=100)},
        {"quantizer": "kmeans"},
        {"clip": "haq-kl"},
        {"network": nudged()},
        {"network": frozen()},
        {"network": like(Net(dropout=0.2))},
        {"network": like(Net(nn.ReLU6()))},
        {"network": changed(gain=1.01)},
        {"dataset": with_split("train", brighten)},
        {"dataset": with_split("train", relabel)},
        {"dataset": with_split("train", swap)},
        {"dataset": with_split("val", brighten)},
        {"dataset": with_split("val", relabel)},
        {"dataset": replace(DATA, mean=(0.41,))},
        {"dataset": replace(DATA, std=(0.26,))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_can_change_an_answer_is_part_of_the_key(other, path):
    policy = np.full((3, 2), 4)
    small(path).evaluate(policy)
    assert not small(path, **other).evaluate(policy).cache_hit
    assert small(path).evaluate(policy).cache_hit
    assert len(keys(path)) == 2


def test_a_signed_input_is_part_of_the_key(path):
    policy = np.full((3, 2), 4)
    layers = trace(Net(), (1, 6, 6))
    signed = tuple(replace(layer, signed_input=True) for layer in layers)
    for table, hit in ((layers, False), (LayerTable("Net", signed, (1, 6, 6)), False)):
        assert small(path, layers=table).evaluate(policy).cache_hit is hit


@pytest.mark.parametrize(
    "other",
    [
        {"hardware": "bismo-edge", "budget": 0.9},
        {"bits": (1, 8)},
        {"dataset": replace(DATA, name="renamed", test=images(9, 3))},
    ],
    ids=["hardware and budget", "bits", "names and test images"],
)
def test_what_cannot_change_an_answer_is_not(other, path):
    policy = np.full((3, 2), 4)
    small(path).evaluate(policy)
    assert small(path, **other).evaluate(policy).cache_hit


def test_another_number_of_threads_or_version_of_the_answers_is_another_key(path, monkeypatch):
    policy = np.full((3, 2), 4)
    small(path).evaluate(policy)
    with monkeypatch.context() as patch:
        patch.setattr("haq_env.evaluation.fingerprint.ANSWERS", 0)
        assert not small(path).evaluate(policy).cache_hit
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        assert not small(path).evaluate(policy).cache_hit
    assert small(path).evaluate(policy).cache_hit


def test_the_cache_is_in_no_record(path):
    with_cache, without = small(path), small()
    policy = without.uniform()
    assert with_cache.settings == without.settings
    assert with_cache.policy(policy).record == without.policy(policy).record


# -- processes ---------------------------------------------------------------------------------

SEARCH = """
    import sys
    import gymnasium as gym
    import haq_env
    env = gym.make("HAQ-BISMO-Edge-v0", evaluator="ptq_bn", cache=sys.argv[1])
    assert "torch" not in sys.modules
    task = env.unwrapped.task
    answers = [task.evaluate(task.space.uniform(w, 4)) for w in (2, 3, 5)]
    print([(answer.accuracy.hex(), answer.cache_hit) for answer in answers])
"""

# Writes answers until it is killed, and says of each one that it is finished.
WRITER = """
    import sys
    import numpy as np
    from haq_env.evaluation.cache import EvaluationCache, Origin
    cache = EvaluationCache(sys.argv[1])
    bits, origin = np.full((30, 2), 4), Origin("net", "data", "linear", "ptq_bn", "0")
    number = 0
    while True:
        key = f"{sys.argv[2]}-{number}"
        cache.put(key, float(number), 0.1, bits, origin)
        print(key, flush=True)
        number += 1
"""


def program(text: str, *argv: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, argv)]


@pytest.mark.slow
def test_another_process_finds_the_answers_and_making_its_environment_loads_no_torch(path):
    task = make_task(evaluator="ptq_bn", cache=path)
    answers = [task.evaluate(task.space.uniform(w, 4)).accuracy for w in (2, 3, 5)]
    done = subprocess.run(program(SEARCH, path), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([(answer.hex(), True) for answer in answers])


def write_keys(path, name, start, answers):
    cache = EvaluationCache(path)
    start.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(25):
            kept = cache.put(f"shared-{number}", float(name), 0.1, BITS, ORIGIN)
            cache.put(f"own-{name}-{number}", float(number), 0.1, BITS, ORIGIN)
            answers.put((number, kept))


def test_four_processes_that_write_at_once_lose_nothing_and_agree(path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    children = [
        context.Process(target=write_keys, args=(path, name, start, answers)) for name in range(4)
    ]
    for child in children:
        child.start()
    told = [answers.get(timeout=60) for _ in range(100)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    expected = {f"own-{name}-{number}" for name in range(4) for number in range(25)}
    assert keys(path) == expected | {f"shared-{number}" for number in range(25)}
    assert len(set(told)) == 25  # the first answer is everybody's


def open_cache(path, start, answers):
    start.wait()
    try:
        EvaluationCache(path).put("key", 1.0, 0.1, BITS, ORIGIN)
        answers.put("")
    except Exception as error:
        answers.put(repr(error))


def test_many_processes_may_make_the_file_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        start, answers = context.Barrier(6), context.Queue()
        arguments = (tmp_path / f"{attempt}.sqlite", start, answers)
        children = [context.Process(target=open_cache, args=arguments) for _ in range(6)]
        for child in children:
            child.start()
        assert [answers.get(timeout=60) for _ in children] == [""] * 6
        for child in children:
            child.join()


def test_what_was_finished_survives_kill_9_at_any_moment(path):
    dice, finished = random.Random(0), set()
    for attempt in range(10):
        with subprocess.Popen(
            program(WRITER, path, attempt), stdout=subprocess.PIPE, text=True
        ) as writer:
            if attempt:  # the first one may be killed while it makes the file
                finished.add(writer.stdout.readline().strip())
            time.sleep(dice.uniform(0, 0.3))
            writer.send_signal(signal.SIGKILL)
            finished.update(line.strip() for line in writer.stdout if line.endswith("\n"))
        assert writer.returncode == -signal.SIGKILL
        cache = EvaluationCache(path)
        for key in finished:
            assert cache.get(key) == float(key.partition("-")[2])
        cache.close()
        assert keys(path) >= finished
    assert len(finished) > 20


def child_of_a_fork(cache, pipe):
    for number in itertools.count():
        if pipe.recv() == "stop":
            return
        found = cache.get("parent-0")
        pipe.send((found, cache.put(f"child-{number}", 1.0, 0.1, BITS, ORIGIN)))


def test_a_fork_has_a_connection_of_its_own(path):
    cache = EvaluationCache(path)
    cache.put("parent-0", 2.0, 0.1, BITS, ORIGIN)
    assert cache._file._connection is not None
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=child_of_a_fork, args=(cache, theirs))
    child.start()
    for number in range(1, 6):
        ours.send("go")
        assert ours.recv() == (2.0, 1.0)
        cache.put(f"parent-{number}", 2.0, 0.1, BITS, ORIGIN)
        cache.close()  # the last one out removes the log, unless the child's lock is known
    ours.send("stop")
    child.join()
    expected = {f"child-{n}" for n in range(5)} | {f"parent-{n}" for n in range(6)}
    assert keys(path) == expected


def test_copies_and_pickles_of_an_environment_share_the_file(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = gym.make(
        "HAQ-ModelSize-v0", network=trained(), dataset=DATA, evaluator="ptq_bn", cache=path.name
    )
    policy, other = np.full((3, 2), 4), np.full((3, 2), 5)
    env.unwrapped.task.evaluate(policy)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for copied in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        task = copied.unwrapped.task
        task.evaluator.answers = Answers(task.evaluator.cache)
        assert task.evaluate(policy).cache_hit
        task.evaluate(other)
    assert task.evaluate(other).cache_hit
    assert env.unwrapped.task.evaluate(other).cache_hit
    assert len(keys(path)) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_threads_share_a_cache(path):
    cache = EvaluationCache(path)
    with ThreadPoolExecutor(4) as pool:
        kept = pool.map(lambda n: cache.put(f"{n}", float(n), 0.1, BITS, ORIGIN), range(40))
        assert list(kept) == [float(n) for n in range(40)]
    cache.close()
    assert len(keys(path)) == 40


# -- what goes wrong ---------------------------------------------------------------------------


def text_file(folder):
    path = folder / "notes.txt"
    path.write_text("accuracy, 94\n" * 100)
    return path


def foreign(folder):
    path = folder / "foreign.sqlite"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE evaluations (key, accuracy)")
        file.execute(f"PRAGMA user_version = {SCHEMA}")
    file.close()
    return path


def newer(folder):
    path = folder / "newer.sqlite"
    EvaluationCache(path).close()
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    file.close()
    return path


def beneath_a_file(folder):
    return text_file(folder) / "cache.sqlite"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, "cannot be used: file is not a database"),
        (foreign, "is no evaluation cache: another program made it"),
        (newer, f"is an evaluation cache of version {SCHEMA + 1}, and this haq-env reads version"),
        (beneath_a_file, "cannot be used: "),
        (lambda folder: folder, "cannot be used: unable to open database file"),
        (lambda _: "/proc/cache.sqlite", "cannot be used: unable to open database file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_before_any_work(make, message, tmp_path):
    path = make(tmp_path)
    before = path.read_bytes() if hasattr(path, "is_file") and path.is_file() else None
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make_task(cache=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if before is not None:
        assert path.read_bytes() == before


def test_a_full_disk_is_one_warning_and_the_search_goes_on(path, monkeypatch):
    task, alone = small(path), small()
    policies = middles()
    task.evaluate(policies[0])
    really = Database._open

    def limited(self):
        connection = really(self)
        connection.execute("PRAGMA max_page_count = 1")  # not below what is there
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_open", limited)
        task.evaluator.cache.close()
        with pytest.warns(RuntimeWarning) as caught:
            found = [task.evaluate(policy).accuracy for policy in policies]
    assert found == [alone.evaluate(policy).accuracy for policy in policies]
    assert len(caught) == 1
    assert "disk is full" in str(caught[0].message)
    assert "the search goes on" in str(caught[0].message)
    kept = len(keys(path))
    assert 1 <= kept < len(policies)
    task.evaluate(np.full((3, 2), 3))  # there is space again
    assert len(keys(path)) == kept + 1


def test_a_file_that_is_destroyed_during_a_search_is_one_warning(path):
    task = small(path)
    task.evaluate(np.full((3, 2), 4))
    task.evaluator.cache.close()
    path.write_text("something else\n" * 100)
    with pytest.warns(RuntimeWarning, match="file is not a database") as caught:
        hits = [task.evaluate(np.full((3, 2), bits)).cache_hit for bits in (5, 6)]
    assert hits == [False, False]
    assert len(caught) == 1


def test_a_writer_that_takes_its_time_is_waited_for(path):
    cache = EvaluationCache(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, lambda: other.execute("COMMIT")).start()
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get("key") is None  # readers do not wait
        assert time.monotonic() - start < 0.4
        cache.put("key", 1.0, 0.1, BITS, ORIGIN)
    assert time.monotonic() - start > 0.4
    other.close()


# -- speed -------------------------------------------------------------------------------------


def test_a_hit_takes_less_than_a_twentieth_of_the_cheapest_evaluation(path):
    task = make_task(evaluator="ptq_bn", cache=path)
    policies = task.space.random(np.random.default_rng(0), 6)
    computed = [task.evaluate(policy).seconds for policy in policies]
    later = make_task(evaluator="ptq_bn", cache=path)
    assert later.evaluate(policies[0]).cache_hit  # loads the network
    start = time.perf_counter()
    assert all(later.evaluate(policy).cache_hit for policy in policies[1:])
    hit = (time.perf_counter() - start) / 5
    assert hit < min(computed) / 20
    assert hit < 5e-3  # below 1e-3 on a machine that has nothing else to do


# -- the command -------------------------------------------------------------------------------


def run(*argv: object) -> int:
    try:
        main([*map(str, argv)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def filled(path):
    """Three answers of one network, one of them 40 days old, and one of another."""
    cache = EvaluationCache(path)
    for number, network in enumerate(["one", "one", "one", "two[b]"]):
        cache.put(f"{number}", 90.0, 60.0, BITS, ORIGIN._replace(network=network))
    cache.close()
    with sqlite3.connect(path) as file:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 40 * 86400))
        file.execute("UPDATE evaluations SET created = ? WHERE key = '0'", (moment,))
        row = file.execute("SELECT * FROM evaluations WHERE key = '3'").fetchone()
        assert row[1:10] == (90.0, "two[b]", "data", "linear", "ptq_bn", "0", "84", "82", 60.0)
        assert file.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    file.close()
    return path


def test_show_counts_answers_and_time_by_origin(filled, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert run("cache", "show", filled) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    about = ["data", "linear", "ptq_bn", "0"]
    assert ["one", *about, "3", "3.0", "min", today] in rows
    assert ["two[b]", *about, "1", "1.0", "min", today] in rows
    assert ["total", "4", "4.0", "min"] in rows


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        (["--all"], {"0", "1", "2", "3"}),
        (["--network", "one"], {"0", "1", "2"}),
        (["--older-than", "30"], {"0"}),
        (["--older-than", "30", "--network", "two[b]"], set()),
        (["--older-than", "50"], set()),
    ],
)
def test_prune_drops_what_is_chosen_and_a_dry_run_nothing(filled, options, dropped, capsys):
    count = f"{len(dropped)} answer" + "s" * (len(dropped) != 1)
    assert run("cache", "prune", filled, *options, "--dry-run") == 0
    assert capsys.readouterr().out == f"Would be dropped: {count}\n"
    assert len(keys(filled)) == 4
    assert run("cache", "prune", filled, *options) == 0
    assert capsys.readouterr().out == f"Dropped: {count}\n"
    assert keys(filled) == {"0", "1", "2", "3"} - dropped


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["show", "missing.sqlite"], "there is no evaluation cache missing.sqlite"),
        (["show", "notes.txt"], "file is not a database"),
        (["show", "empty.sqlite"], "is no evaluation cache"),
        (["prune", "missing.sqlite", "--all"], "there is no evaluation cache missing.sqlite"),
        (["prune", "cache.sqlite"], "say what to prune"),
        (["prune", "cache.sqlite", "--all", "--network", "one"], "--all contradicts"),
        (["prune", "cache.sqlite", "--network", "oen"], "Did you mean 'one'?"),
        (["prune", "cache.sqlite", "--older-than", "-1"], "must be 0 to 100,000 days, not -1"),
        (["prune", "cache.sqlite", "--older-than", "nan"], "must be 0 to 100,000 days, not nan"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line_and_change_nothing(
    argv, says, filled, tmp_path, monkeypatch, capsys
):
    text_file(tmp_path)
    (tmp_path / "empty.sqlite").touch()
    monkeypatch.chdir(tmp_path)
    assert run("cache", *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert len(keys(filled)) == 4
    assert (tmp_path / "empty.sqlite").read_bytes() == b""
    assert not (tmp_path / "missing.sqlite").exists()
