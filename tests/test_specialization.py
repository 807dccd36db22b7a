"""What is said of policies on other devices adds up, and the benchmark says what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cross_devices import (
    cross_costs,
    cross_table,
    mean_bits,
    plot_specialization,
    specialized,
)
from layer_tables import linear, mobilenet_v1
from rich.console import Console

from haq_env.errors import InputError
from haq_env.hardware.load import load_hardware
from haq_env.layers import LayerTable
from haq_env.policy import uniform

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables():
    names = ("bismo-edge", "bismo-cloud", "bitfusion")
    return {name: load_hardware(name).cost_table(mobilenet_v1()) for name in names}


def test_a_row_is_one_policy_on_all_devices(tables):
    policies = {name: uniform(28, 4 + i, 8 - i) for i, name in enumerate(tables)}
    costs = cross_costs(policies, tables)
    for row, bits in enumerate(policies.values()):
        for column, table in enumerate(tables.values()):
            assert costs[row, column] == table.cost(bits, "latency")


def test_a_device_is_specialized_only_if_its_own_policy_is_strictly_the_fastest_there():
    own, tie, worse = [1.0, 2.0, 3.0], [2.0, 5.0, 4.0], [0.9, 5.0, 6.0]
    assert specialized(np.array([own, [2.0, 1.0, 4.0], [3.0, 2.0, 1.0]])).all()
    assert specialized(np.array([own, tie, worse])).tolist() == [False, False, False]
    assert specialized(np.array([own, [1.0, 1.0, 4.0], [3.0, 2.0, 1.0]])).tolist() == [
        False, True, True,
    ]  # fmt: skip


def test_the_table_marks_the_least_of_each_column(tmp_path):
    table = cross_table(np.array([[1.5, 20.0], [1.0, 30.0]]), ("a", "b"), "ms", {"%": ["9", "8"]})
    console = Console(record=True, width=80, file=(tmp_path / "text").open("w"))
    console.print(table)
    rows = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert [row.count("*") for row in rows] == [1, 1]
    assert "20 *" in rows[0]
    assert "1 *" in rows[1]


@pytest.mark.parametrize("names", [("bismo-edge",), ("bismo-cloud", "bismo-edge", "bitfusion")])
def test_policies_and_costs_of_other_devices_are_refused(tables, names):
    with pytest.raises(InputError, match="policies are for"):
        cross_costs({name: uniform(28, 4, 4) for name in names}, tables)
    with pytest.raises(InputError, match="two devices or more"):
        cross_costs({"bitfusion": uniform(28, 4, 4)}, {"bitfusion": tables["bitfusion"]})


def test_means_are_over_the_layers_of_one_kind():
    bits = uniform(28, 8, 8)
    bits[1:27:2] = 2, 3
    bits[2:27:2] = 4, 5
    assert mean_bits(bits, mobilenet_v1()) == {"depthwise": (2.0, 3.0), "pointwise": (4.0, 5.0)}
    assert mean_bits(uniform(1, 4, 4), LayerTable("one", (linear("fc", 4, 4),))) == {}


def test_the_plot_has_two_panels_for_each_policy(tmp_path):
    layers = mobilenet_v1()
    one = plot_specialization({"edge": uniform(28, 4, 6)}, layers, tmp_path / "one.png")
    two = plot_specialization(
        {"edge": uniform(28, 4, 6), "cloud": uniform(28, 6, 4)}, layers, tmp_path / "two.svg"
    )
    assert matplotlib.image.imread(one).shape[1] > 500
    text = two.read_text()
    for comment in ("edge", "cloud", "mean: depthwise 4.00, pointwise 4.00"):
        assert f"<!-- {comment} -->" in text
    for policies in ({}, {"edge": uniform(3, 4, 4)}):
        with pytest.raises(InputError):
            plot_specialization(policies, layers, tmp_path / "no.png")


@pytest.mark.slow
def test_each_device_is_fastest_with_its_own_policy(tmp_path):
    command = [sys.executable, "benchmarks/specialization.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "specialization.md").read_text(encoding="utf-8")
    assert text.count("met: ") == 9  # three devices, three networks
    assert "NOT MET" not in text
    assert matplotlib.image.imread(tmp_path / "specialization.png").shape[0] > 500
