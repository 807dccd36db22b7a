"""policy.json: what is written is read back, and a file that is no policy says so."""

import json
import os
import re

import numpy as np
import pytest

from haq_env.cost import UNITS
from haq_env.errors import InputError
from haq_env.make import make_task
from haq_env.policy import MAX_BITS, MIN_BITS, SCHEMA, Policy, as_bits

NAMES = ("stem", "blocks.0", "blocks.1", "head")
BITS = np.array([[8, 8], [3, 2], [1, 7], [8, 8]])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.json"


def document(path):
    return json.loads(path.read_text(encoding="utf-8"))


def edited(path, edit):
    """Write a good file and change its document."""
    Policy(BITS, NAMES, {"seed": 0}).save(path)
    changed = document(path)
    edit(changed)
    path.write_text(json.dumps(changed), encoding="utf-8")
    return path


def test_bits_names_and_record_come_back_equal(path):
    record = {"accuracy": {"float": 98.4, "final": [97.1, 97.3]}, "seed": 3, "note": "größer"}
    Policy(BITS, NAMES, record).save(path)
    read = Policy.load(path, NAMES)
    assert (read.bits == BITS).all()
    assert read.bits.dtype == np.int64
    assert read.names == NAMES
    assert read.record == record
    assert read.w_bits == [8, 3, 1, 8]
    assert read.a_bits == [8, 2, 7, 8]


def test_saving_what_was_read_changes_no_byte(path, tmp_path):
    Policy(BITS, NAMES, {"b": 1, "a": [2.5, None]}).save(path)
    Policy.load(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_file_is_plain_json_with_one_object_for_each_layer(path):
    Policy(BITS, NAMES).save(path)
    assert document(path) == {
        "schema": SCHEMA,
        "layers": [
            {"name": "stem", "w_bits": 8, "a_bits": 8},
            {"name": "blocks.0", "w_bits": 3, "a_bits": 2},
            {"name": "blocks.1", "w_bits": 1, "a_bits": 7},
            {"name": "head", "w_bits": 8, "a_bits": 8},
        ],
    }


def test_a_task_fills_in_the_documented_keys(path):
    task = make_task(evaluator="ptq_bn", hardware="bitfusion", seed=5)
    task.policy(task.uniform(), algorithm="none").save(path)
    read = Policy.load(path, task.layers.names)
    assert (read.bits == task.uniform()).all()
    record = read.record
    assert record["network"] == "mobilenet_v1"
    assert record["dataset"] == "digits"
    assert record["hardware"] == "bitfusion"
    assert record["bits"] == [2, 8]
    assert (record["quantizer"], record["clip"]) == ("linear", "mse")
    assert (record["evaluator"], record["seed"]) == ("ptq_bn", 5)
    assert record["budget"] == {
        "metric": task.budget.metric,
        "unit": UNITS[task.budget.metric],
        "limit": task.budget.limit,
        "ratio": task.budget.ratio,
    }
    assert record["cost"] == task.all_costs(task.uniform())
    assert {"latency", "energy", "size"} <= set(record["cost"])
    assert record["algorithm"] == "none"


def test_a_file_cut_off_anywhere_is_refused(path):
    Policy(BITS, NAMES, {"seed": 0}).save(path)
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is not a complete policy file") as caught:
            Policy.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "cannot read the policy file"),
        (b"[" * 100_000, "is not a complete policy file"),
        (b"1" * 5_000, "is not a complete policy file"),
        (b"[]", "policy schema must be 1"),
        (b"{}", "policy schema must be 1, not None"),
        (b'{"schema": 2, "layers": []}', "policy schema must be 1, not 2"),
        (b'{"schema": "1", "layers": []}', "policy schema must be 1, not '1'"),
        (b'{"schema": 1}', "'layers' must be a list of name, w_bits and a_bits"),
        (b'{"schema": 1, "layers": []}', "bits must have the shape"),
        (b'{"schema": 1, "layers": {"stem": [8, 8]}}', "'layers' must be a list of"),
        (b'{"schema": 1, "layers": [{"name": "stem", "w_bits": 8}]}', "'a_bits'"),
    ],
)
def test_what_is_no_policy_file_is_one_error_that_names_the_file(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("bits", [0, 9, -3, 10**30, 2.5, 4.0, "4", None, True, [4], float("nan")])
@pytest.mark.parametrize("side", ["w_bits", "a_bits"])
def test_a_width_that_is_none_is_refused(path, bits, side):
    def change(content):
        content["layers"][2][side] = bits

    with pytest.raises(InputError, match="bits must be") as caught:
        Policy.load(edited(path, change))
    assert str(path) in str(caught.value)


def test_every_width_from_1_to_8_is_accepted(path):
    widths = np.arange(MIN_BITS, MAX_BITS + 1)
    every = np.stack([widths, widths[::-1]], axis=1)
    Policy(every, tuple("abcdefgh")).save(path)
    assert (Policy.load(path).bits == every).all()


def test_a_missing_file_and_a_folder_are_one_clear_error(path, tmp_path):
    for wrong in (path, tmp_path):
        with pytest.raises(InputError, match="cannot read the policy file") as caught:
            Policy.load(wrong)
        assert str(wrong) in str(caught.value)


def test_a_policy_for_other_layers_is_refused(path):
    Policy(BITS, NAMES).save(path)
    Policy.load(path, list(NAMES))
    with pytest.raises(InputError, match=r"unknown here: blocks\.1"):
        Policy.load(path, ("stem", "blocks.0", "blocks.9", "head"))
    with pytest.raises(InputError, match="the order differs"):
        Policy.load(path, NAMES[::-1])
    with pytest.raises(InputError, match="missing there: more"):
        Policy.load(path, (*NAMES, "more"))
    with pytest.raises(InputError, match="than this network's 3"):
        Policy.load(path, NAMES[:3])


def test_a_policy_needs_one_pair_of_bits_for_each_name():
    with pytest.raises(InputError, match=r"shape \[\.\.\., 3, 2\]"):
        Policy(BITS, NAMES[:3])


@pytest.mark.parametrize("key", ["schema", "layers"])
def test_a_record_cannot_overwrite_the_bits(key):
    with pytest.raises(InputError, match=key):
        Policy(BITS, NAMES, {key: 1})


@pytest.mark.parametrize("bits", [[[8, 8], [8]], [["8", "8"]], [[None, 8]], [[True, False]]])
def test_what_is_no_array_of_integers_is_an_input_error(bits):
    with pytest.raises(InputError, match="bits must be"):
        as_bits(bits)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "policy.json", tmp_path / "missing" / "policy.json", tmp_path):
        with pytest.raises(InputError, match="cannot write") as caught:
            Policy(BITS, NAMES).save(path)
        assert str(path) in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file_whole(path, monkeypatch):
    Policy(BITS, NAMES, {"seed": 0}).save(path)
    before = path.read_bytes()
    other = Policy(BITS[::-1], NAMES[::-1], {"seed": 1})
    with pytest.raises(TypeError):
        Policy(BITS, NAMES, {"seed": object()}).save(path)
    assert path.read_bytes() == before

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        other.save(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    other.save(path)
    assert Policy.load(path).names == NAMES[::-1]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_what_is_no_file_is_not_replaced_by_one(path):
    """Whoever may write everywhere could else lose /dev/null."""
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"policy\.json: it is a device or a pipe, and no file"):
        Policy(BITS, NAMES).save(path)
    assert path.is_fifo()


def test_a_reader_never_sees_half_a_file(path, monkeypatch):
    """At no moment of writing is there anything but the old or the new document."""
    Policy(BITS, NAMES, {"seed": 0}).save(path)
    seen = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append(document(path)["seed"]))
    Policy(BITS, NAMES, {"seed": 1}).save(path)
    assert seen == [0]  # all is written, and nobody sees it yet
    assert document(path)["seed"] == 1
