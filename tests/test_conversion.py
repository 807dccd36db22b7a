"""A policy goes to other tools and comes back as it was."""

import ast
import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq_env.cli import main
from haq_env.conversion import from_csv, to_csv, to_hawq, to_nncf
from haq_env.errors import InputError
from haq_env.networks import load_layers
from haq_env.policy import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    names = load_layers("mobilenet_v1", image_size=32, width=0.25).names
    bits = np.random.default_rng(0).integers(1, 9, (len(names), 2))
    return Policy(bits, names, {"network": "mobilenet_v1"})


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1),
            st.integers(1, 8),
            st.integers(1, 8),
        ),
        min_size=1,
        max_size=30,
        unique_by=lambda row: row[0],
    )
)
def test_a_table_is_read_back_bit_by_bit_whatever_layers_are_called(rows):
    names = tuple(name for name, *_ in rows)
    bits = np.array([pair for _, *pair in rows])
    back = from_csv(to_csv(Policy(bits, names)))
    assert back.names == names
    assert (back.bits == bits).all()


def test_a_name_that_is_no_text_is_one_clear_error(policy, tmp_path, capsys):
    source = tmp_path / "policy.json"
    policy.save(source)
    source.write_text(source.read_text().replace(policy.names[0], "\\ud800", 1))
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(source), "--out", str(tmp_path / "o.csv"), "--to", "csv"])
    assert "the name of a layer is no text" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


def test_a_bit_config_has_every_layers_weights_and_input_in_order(policy):
    config = json.loads(to_hawq(policy))
    assert config == ast.literal_eval(to_hawq(policy))
    assert len(config) == 2 * len(policy.names)
    assert [config[name] for name in policy.names] == policy.w_bits
    assert [config[f"{name}.quant_act"] for name in policy.names] == policy.a_bits
    assert [name for name in config if not name.endswith(".quant_act")] == list(policy.names)


def test_scopes_have_every_layers_weights_and_input(policy):
    precision = json.loads(to_nncf(policy))["compression"]["initializer"]["precision"]
    found = {scope: bits for bits, scope in precision["bitwidth_per_scope"]}
    assert precision["type"] == "manual"
    assert [found[f"{name}|WEIGHT"] for name in policy.names] == policy.w_bits
    assert [found[f"{name}|INPUT"] for name in policy.names] == policy.a_bits


def test_the_command_converts_there_and_back(policy, tmp_path, capsys):
    source, table, back = (tmp_path / name for name in ("policy.json", "bits.csv", "back.json"))
    policy.save(source)
    main(["convert", str(source), "--to", "csv", "--out", str(table)])
    with table.open(newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file)] == list(policy.names)
    main(["convert", str(table), "--out", str(back)])
    assert (Policy.load(back, policy.names).bits == policy.bits).all()
    assert capsys.readouterr().out == f"Written: {table}\nWritten: {back}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 0 cannot be used: the first line must be layer,w_bits,a_bits"),
        ("name,w,a\n", "the first line must be"),
        ("layer,w_bits,a_bits\n", "there is no layer"),
        ("layer,w_bits,a_bits\nconv,9,4\n", "line 2 cannot be used: bits must be 1 to 8, not 9"),
        ("layer,w_bits,a_bits\nconv,4.5,4\n", "bits must be integers"),
        ("layer,w_bits,a_bits\nconv,\u00b2,4\n", "bits must be integers"),
        ("layer,w_bits,a_bits\nconv,4\n", "2 columns instead of 3"),
        ("layer,w_bits,a_bits\nconv,4,4\nconv,4,4\n", "line 3 .* 'conv' is there twice"),
        ('layer,w_bits,a_bits\n"conv,4,4\n', "line 2 cannot be used"),
    ],
)
def test_a_wrong_table_is_one_clear_error_with_its_line(text, complaint):
    with pytest.raises(InputError, match=complaint):
        from_csv(text)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["policy.json", "--to", "onnx"], "unknown form 'onnx'"),
        (["policy.json"], "say what to turn"),
        (["missing.csv"], "cannot read"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_and_writes_nothing(
    policy, tmp_path, capsys, argv, complaint
):
    policy.save(tmp_path / "policy.json")
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(tmp_path / argv[0]), *argv[1:], "--out", str(tmp_path / "out")])
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
