"""HAQ's tables run again: equal evaluations and finetuning, nothing twice, nothing made up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import haq_cells
import haq_settings
import numpy as np
import pytest
import reproduce_haq
from haq_board import CHOSEN, Board
from haq_claims import MET, MISSED, OPEN, verdicts
from haq_paper import (
    BLOCKS,
    PAPER_GAINS,
    TableCell,
    ordered_cells,
    paper_gain,
    tighter_cells,
)
from haq_results import EIGHT, UNIFORM, Result, read_results, write_results
from haq_tables import claims_table, gains_table, network_section
from rich.console import Console

from haq_env.agents.methods import search_method
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.evaluation.fingerprint import TRAINING_STEP
from haq_env.make import make_task
from haq_env.policy import uniform
from haq_env.versions import processor
from haq_env.yardstick import yardstick

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAN = float("nan")
TINY = ["--dataset", "digits", "--networks", "mobilenet_v1", "--blocks", "bitfusion-latency"]
TINY += ["--methods", "evolution", "haq-ddpg", "--evaluations", "4", "--seeds", "2"]
TINY += ["--epochs", "0.1"]


def row(cell: TableCell, method: str, *test: float, cost: float = 4.0, val: float = 60.0) -> Result:
    block = BLOCKS[cell.block]
    return Result(
        *cell, method, block.quantizer, "abc", "int8", "mine", 1, "8448", "8448", 10, 0.0, 70.0,
        NAN, (val,) * len(test), test, cost, 4.0, 8.0, cost, 8.0, 1.0,
    )  # fmt: skip


def eight(network: str, quantizer: str, *test: float) -> Result:
    nan = (NAN,) * 5
    return Result(
        network, "", "", EIGHT, quantizer, "abc", "int8", "mine", 1, "8888", "8888", 0, 0.0, NAN,
        NAN, test, test, *nan, 1.0,
    )  # fmt: skip


def cells(network: str, block: str) -> list[TableCell]:
    return [TableCell(network, block, budget) for budget in BLOCKS[block].budgets]


def states(board: Board, network: str, block: str, method: str) -> dict[str, str]:
    found = [v for v in verdicts(board, cells(network, block)) if v.method == method]
    return {each.claim.removeprefix(f"{network}, {block}: "): each.state for each in found}


def as_in_the_paper(network: str, block: str) -> list[Result]:
    found = [eight(network, BLOCKS[block].quantizer, 70.0)]
    for cell in cells(network, block):
        gain = paper_gain(cell)
        assert gain is not None
        found += [row(cell, UNIFORM, 60.0), row(cell, "haq-ddpg", 60.0 + gain)]
    return found


@pytest.mark.parametrize(("network", "block"), PAPER_GAINS)
def test_the_papers_own_gains_meet_the_claims_as_they_are_read_here(network, block):
    found = states(Board(as_in_the_paper(network, block), ["haq-ddpg"]), network, block, "haq-ddpg")
    assert found["a positive gain at every budget"] == MET
    assert found["the gain shrinks as bits grow"] == MET


def test_a_missed_gain_stands_beside_what_there_was_to_gain():
    board = Board(as_in_the_paper("mobilenet_v1", "edge-latency"), ["haq-ddpg"])
    found = verdicts(board, cells("mobilenet_v1", "edge-latency"))
    mean = next(v for v in found if v.claim.startswith("mean gain"))
    assert mean.evidence == "+4.96 over 1; 8 bits are 10.00 above uniform bits there"


def test_gains_that_grow_with_bits_or_are_lost_are_not_met():
    first, second, third = cells("resnet20", "size")
    ours = {first: 61.0, second: 60.5, third: 62.0}
    results = [row(cell, UNIFORM, 60.0) for cell in ours]
    results += [row(cell, "evolution", value) for cell, value in ours.items()]
    found = states(Board(results, ["evolution"]), "resnet20", "size", "evolution")
    assert found["the gain shrinks as bits grow"] == MISSED
    results[-1] = row(third, "evolution", 60.0)  # nothing better was found
    found = states(Board(results, ["evolution"]), "resnet20", "size", "evolution")
    assert found["a positive gain at every budget"] == MISSED
    assert found["the gain shrinks as bits grow"] == MET


def test_what_was_not_run_decides_nothing_and_is_shown_as_not_run():
    first, second, _ = cells("mobilenet_v1_050", "edge-latency")
    results = [row(first, UNIFORM, 60.0), row(first, "evolution", 63.0), row(second, UNIFORM, 61.0)]
    board = Board(results, ["evolution"])
    found = states(board, "mobilenet_v1_050", "edge-latency", "evolution")
    assert found["a positive gain at every budget"] == OPEN
    assert found["latency at no loss reduced 1.4 x or more"] == OPEN
    lines = gains_table(board, cells("mobilenet_v1_050", "edge-latency")).splitlines()[2:]
    assert [line.count("not run") for line in lines] == [1, 3, 4]  # no 8-bit row
    assert "+3.00" in lines[0]
    assert "+4.96" in lines[0]  # the paper's, from its MobileNet-V1
    assert lines[1].count("+") == 1  # no gain but the paper's
    both = [c for name in ("mobilenet_v1_050", "resnet20") for c in cells(name, "edge-latency")]
    claims = claims_table(verdicts(board, both))
    # three of ResNet-20, and a reduction that no 8-bit row has been run for
    assert "Not decided, no cell run: 4 claims." in claims
    section = network_section(board, "mobilenet_v1_050", both)
    # float and 8 bits: two accuracies each; one method of the second cell, all of the third
    assert section.count("not run") == 2 + 2 + 2
    assert "| w6a6 | all |" in section


def test_a_budget_below_the_papers_counts_where_it_was_run_and_is_no_part_of_the_table_elsewhere():
    tighter = TableCell("resnet20", "edge-latency", *BLOCKS["edge-latency"].tighter)
    paper = cells("resnet20", "edge-latency")
    ours = {tighter: 59.0, **dict(zip(paper, (63.0, 62.0, 61.0), strict=True))}
    results = [eight("resnet20", "linear", 64.0)]
    results += [row(cell, UNIFORM, 60.0) for cell in ours]
    results += [row(cell, "evolution", value) for cell, value in ours.items()]
    board = Board(results, ["evolution"])
    every = "resnet20, edge-latency: a positive gain at every budget"

    def found(cells):
        return {v.claim: v for v in verdicts(board, cells) if v.method == "evolution"}

    assert found(paper)[every].state == MET
    assert found([*paper, tighter])[every].state == MISSED
    assert found([*paper, tighter])[every].evidence.startswith("-1.00, +3.00, +2.00, +1.00")
    wins = next(v for claim, v in found([*paper, tighter]).items() if "of the cells run" in claim)
    assert wins.evidence == "2 of 3"  # w6a6 is not below 6 bits
    assert gains_table(board, [tighter]).splitlines()[2].split("|")[4:6] == [" 60.00 ", " +4.00 "]
    assert network_section(board, "resnet20", [*paper, tighter]).count("| w3a3 |") == 2
    assert "| w3a3 |" not in network_section(board, "resnet20", paper)


def test_only_policies_without_a_loss_against_8_bits_count_as_a_reduction():
    tight, middle, loose = cells("mobilenet_v1", "bitfusion-energy")
    costs = {tight: (3.0, 69.4), middle: (4.0, 69.6), loose: (6.0, 71.0)}
    results = [eight("mobilenet_v1", "linear", 70.0)]
    for cell, (cost, accuracy) in costs.items():
        results.append(replace(row(cell, "ilp-fit", accuracy), cost=cost, counted=cost, limit=cost))
    board = Board(results, ["ilp-fit"])
    claims = verdicts(board, cells("mobilenet_v1", "bitfusion-energy"))
    found = next(v for v in claims if "reduced 1.9 x" in v.claim and v.method == "ilp-fit")
    assert found.state == MET
    assert "2.00 x at a loss of at most 0.5 points" in found.evidence
    assert "2.67 x at a loss of at most 0.85 points" in found.evidence
    assert "paper: 1.90 x at a loss of 0.45 points" in found.evidence


def test_test_images_choose_no_method():
    cell = TableCell("resnet20", "size", "w2a8")
    results = [row(cell, UNIFORM, 60.0), row(cell, "evolution", 61.0, val=66.0)]
    results.append(row(cell, "ilp-fit", 69.0, val=65.0))
    gain = Board(results, ["ilp-fit", "evolution"]).gain(cell, CHOSEN)
    assert gain is not None
    assert (gain.method, gain.value) == ("evolution", 1.0)


def test_gains_are_measured_from_the_uniform_policy_of_the_same_processor_and_training_step():
    tight, other = (TableCell("resnet20", f"{name}-latency", "w4a4") for name in ("edge", "cloud"))
    results = [row(tight, UNIFORM, 60.0), row(tight, "ilp-fit", 61.0)]
    results += [replace(row(tight, "evolution", 63.0), steps=2)]
    board = Board(results, ["ilp-fit", "evolution"])
    assert board.gain(tight, "ilp-fit").value == 1.0
    assert board.gain(tight, "evolution") is None
    assert "uniform not run there" in gains_table(board, [tight])
    # the same uniform policy, finetuned alike for another budget
    results += [replace(row(other, UNIFORM, 62.5, cost=3.0), steps=2)]
    board = Board(results, ["ilp-fit", "evolution"])
    assert board.gain(tight, "evolution").value == 0.5
    assert " 60.00 / 62.50 " in gains_table(board, [tight])
    section = network_section(board, "resnet20", [tight])
    assert "| w4a4 | uniform | A |" in section
    assert "| w4a4 | uniform | B |" in section
    assert section.count("| 4.000 |") == 4  # costs are those of this cell, not of the other one


def test_what_other_machines_have_searched_is_not_searched_again(tmp_path):
    from haq_env.networks.bundled import WEIGHTS

    now = reproduce_haq.weights_digest(WEIGHTS / "mobilenet_v1_digits.safetensors")
    first, second, _ = cells("mobilenet_v1", "size")
    published = [row(first, UNIFORM, 60.0), row(first, "ilp-fit", 61.0), row(second, UNIFORM, 62.0)]
    published.append(eight("mobilenet_v1", "kmeans", 70.0))
    published = [replace(each, weights=now, processor="of elsewhere") for each in published]
    write_results(published, tmp_path / "results" / "digits.csv")
    settings = haq_settings.Settings(
        dataset="digits", networks=("mobilenet_v1",), blocks=("size",), methods=("ilp-fit",),
        out=tmp_path / "out", results=tmp_path / "results",
    )  # fmt: skip
    found = reproduce_haq.finished(settings)
    # what searches that are still to come are held against is measured here again
    assert {(job.budget, job.method) for job in found} == {("w2a8", UNIFORM), ("w2a8", "ilp-fit")}


def test_errors_are_paired_seed_by_seed():
    cell = TableCell("resnet20", "size", "w2a8")
    results = [row(cell, UNIFORM, 60.0, 64.0, 62.0), row(cell, "ilp-fit", 61.0, 65.5, 63.5)]
    gain = Board(results, ["ilp-fit"]).gain(cell, "ilp-fit")
    assert gain is not None
    assert gain.value == pytest.approx(4 / 3)
    assert gain.error == pytest.approx(np.std([1.0, 1.5, 1.5], ddof=1) / 3**0.5)


def test_the_most_telling_cells_come_first():
    networks = ("mobilenet_v1_050", "resnet20", "mobilenet_v2_050", "mobilenet_v1", "mobilenet_v2")
    order = ordered_cells(networks, tuple(BLOCKS))
    assert len(order) == len(set(order)) == 5 * 5 * 3
    tightest = [("mobilenet_v1_050", block, BLOCKS[block].budgets[0]) for block in BLOCKS]
    following = [("mobilenet_v1_050", block, BLOCKS[block].budgets[1]) for block in BLOCKS]
    assert order[:10] == tightest + following
    assert {cell.network for cell in order[10:20]} == {"resnet20"}
    assert {cell.network for cell in order[20:30]} == {"mobilenet_v2_050"}
    assert not set(order) & set(tighter_cells(networks, tuple(BLOCKS)))
    assert {cell.network for cell in order[45:]} == {"mobilenet_v1", "mobilenet_v2"}


def test_rows_are_written_exactly_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    results = [*as_in_the_paper("mobilenet_v1", "size"), eight("resnet20", "linear", 1 / 3, 2 / 3)]
    write_results(results, path)
    first = path.read_bytes()
    write_results(read_results(path), path)
    assert path.read_bytes() == first
    found = {each.what: each for each in read_results(path)}
    assert found["resnet20", "", "", EIGHT, "linear"].test == (1 / 3, 2 / 3)
    for cut in (1, 22, 28):  # a disk that was full once
        path.write_bytes(first[:-cut])
        with pytest.raises(InputError, match=r"rows\.csv.*(middle of a line|damaged)"):
            read_results(path)
    path.write_bytes(first.replace(b"70.0", b"seventy"))
    with pytest.raises(InputError, match=r"rows\.csv: a result is damaged"):
        read_results(path)


def test_a_policy_beyond_its_budget_is_no_result():
    with pytest.raises(InputError, match="costs more than the budget"):
        row(TableCell("resnet20", "size", "w2a8"), "ilp-fit", 60.0, cost=4.1)


# -- the benchmark -------------------------------------------------------------------------------


def command(folder: Path, *argv: str) -> list[str]:
    script = str(BENCHMARKS / "reproduce_haq.py")
    results = str(folder / "results")
    return [sys.executable, script, "--out", str(folder), "--results", results, *TINY, *argv]


def rows(folder: Path) -> dict[tuple, Result]:
    found = read_results(folder / "results" / "digits.csv")
    return {each.what: replace(each, seconds=0.0) for each in found}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    done = subprocess.run(command(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_row_has_the_same_search_and_finetuning_and_keeps_its_budget(unbroken):
    found = rows(unbroken)
    cell = ("mobilenet_v1", "bitfusion-latency", "w4a4")
    methods = {key[3] for key in found if key[1]}
    assert methods == {UNIFORM, "evolution", "haq-ddpg"}
    assert {key[3:] for key in found if not key[1]} == {(EIGHT, "linear"), ("float", "")}
    assert {len(each.test) for each in found.values()} == {2}
    task = make_task(
        hardware="bitfusion", metric="latency", budget="w4a4", evaluator="ptq_bn", inference="int8"
    )
    for method in methods:
        result = found[(*cell, method, "")]
        bits = np.array(
            [list(map(int, pair)) for pair in zip(result.w_bits, result.a_bits, strict=True)]
        )
        assert result.evaluations == (1 if method == UNIFORM else 4)
        assert result.cost == task.cost(bits) <= task.budget.limit
        assert result.eight == task.cost(uniform(len(bits), 8, 8))
        assert result.searched == task.evaluate(bits).accuracy
    result = found[(*cell, UNIFORM, "")]
    protocol = json.loads((unbroken / "digits" / "protocol.json").read_text())
    from haq_env.evaluation import Recipe

    alone = [
        task.evaluator.final(task.uniform(), Recipe(**protocol["final"]), s) for s in (1000, 1001)
    ]
    assert result.test == tuple(each["test"] for each in alone)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_rows(unbroken, tmp_path):
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    finals = tmp_path / "digits" / "finals"
    deadline = time.monotonic() + 120
    while len(list(finals.glob("*/*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in finals.glob("*/*.json")}
    assert 5 <= len(before) < len(list((unbroken / "digits" / "finals").glob("*/*.json")))
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == rows(unbroken)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("method", ["haq-ddpg", "residual-ppo", "random"])
def test_an_interrupted_search_is_no_finished_one(method):
    task = yardstick(0)

    class Interrupted:
        float_accuracy, count = 100.0, 0

        def evaluate(self, bits):
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt
            return Evaluation(50.0)

    with pytest.raises(KeyboardInterrupt):
        search_method(method)(replace(task, evaluator=Interrupted()), 12, 0)


def test_published_rows_count_as_run_until_the_weights_are_others(tmp_path):
    settings = haq_settings.Settings(
        dataset="digits", networks=("mobilenet_v1",), blocks=("size",), methods=("ilp-fit",),
        out=tmp_path / "out", results=tmp_path / "results",
    )  # fmt: skip
    from haq_env.networks.bundled import WEIGHTS

    now = haq_cells.weights_digest(WEIGHTS / "mobilenet_v1_digits.safetensors")
    cell = TableCell("mobilenet_v1", "size", "w3a8")
    published = [replace(row(cell, UNIFORM, 60.0), weights=now), row(cell, "ilp-fit", 61.0)]
    write_results(published, tmp_path / "results" / "digits.csv")
    assert not reproduce_haq.finished(settings)  # neither of these weights nor of this machine
    assert [job.method for job in reproduce_haq.collected(settings)] == [UNIFORM]  # for the table
    here = {"processor": processor(), "steps": TRAINING_STEP}
    published = [replace(each, **here) for each in published]
    write_results(published, tmp_path / "results" / "digits.csv")
    found = reproduce_haq.finished(settings)
    assert [(job.budget, job.method) for job in found] == [("w3a8", UNIFORM)]


def test_integers_and_floats_are_not_held_against_each_other():
    (first, second, *_) = cells("mobilenet_v1", "size")
    rows = [row(first, UNIFORM, 60.0), row(second, UNIFORM, 60.0)]
    reproduce_haq.same_arithmetic(rows)
    with pytest.raises(InputError, match=r"measured in float and .* in int8"):
        reproduce_haq.same_arithmetic([rows[0], replace(rows[1], arithmetic="float")])


def test_results_of_other_settings_are_not_mixed(tmp_path):
    settings = haq_settings.Settings(
        dataset="digits", networks=("mobilenet_v1",), out=tmp_path, results=tmp_path / "results"
    )
    data = haq_settings.images(settings)
    reproduce_haq.same_protocol(settings, settings.protocol(data))
    reproduce_haq.same_protocol(settings, settings.protocol(data))
    other = replace(settings, evaluations=50)
    with pytest.raises(InputError, match="evaluations was 100 and is now 50"):
        reproduce_haq.same_protocol(other, other.protocol(data))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"blocks": ("edge-latencies",)}, "Did you mean 'edge-latency'"),
        ({"methods": ("alphazero",)}, "unknown method 'alphazero'"),
        ({"tier": "ptq"}, "unknown tier 'ptq'"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"device": "toaster"}, "toaster"),
        ({"networks": ("resnet20",)}, "no trained weights of network 'resnet20'"),
    ],
)
def test_what_cannot_be_run_is_an_error_before_anything_is_spent(wrong, complaint):
    settings = haq_settings.Settings(**{"dataset": "digits", **wrong})
    with pytest.raises(InputError, match=complaint):
        haq_settings.trained(haq_settings.checked(settings))


def test_when_the_time_is_over_nothing_begins_and_the_report_says_what_was_not_run(tmp_path):
    settings = haq_settings.Settings(
        dataset="digits", networks=("mobilenet_v1",), minutes=0.0, out=tmp_path,
        results=tmp_path / "results",
    )  # fmt: skip
    data = haq_settings.images(settings)
    protocol = settings.protocol(data)
    assert not reproduce_haq.fill(settings, data, protocol, Console(quiet=True))
    assert not list(tmp_path.rglob("mobilenet_v1/**/*.json"))
    text = reproduce_haq.report(settings, protocol, {}).read_text()
    lines = [line for line in text.splitlines() if line.startswith("| mobilenet_v")]
    assert len(lines) == 2 * 5  # both networks of the digits, though one was asked for
    assert all(line.count("not run") == 7 for line in lines)
    budgets = [line.split("|")[3].strip() for line in lines]
    assert budgets[:5] == [", ".join(block.budgets) for block in BLOCKS.values()]
