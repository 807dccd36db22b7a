"""What the paper claims, decided by results: met, NOT MET, or not decided yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from haq_board import CHOSEN, Board
from haq_paper import BLOCKS, PAPER_REDUCTIONS, TableCell, family
from haq_results import UNIFORM

MET, MISSED, OPEN = "met", "NOT MET", "not decided"

NO_LOSS = 0.5  # points of top-1 below 8 bits that count as no loss
PAPER_LOSS = 0.85  # the largest loss behind a headline of the paper (cloud, MobileNet-V1)
LATENCY, ENERGY = 1.4, 1.9  # reductions to reach
WINS, GAIN = 0.9, 2.0  # share of cells; points at the 4-bit latency budgets


@dataclass(frozen=True)
class ClaimVerdict:
    """One claim about one method.

    Attributes:
        claim: in words.
        method: what searched, or `CHOSEN`.
        state: `MET`, `MISSED` or `OPEN`.
        evidence: the numbers.
        cells: how many cells it rests on.
    """

    claim: str
    method: str
    state: str
    evidence: str
    cells: int


def verdicts(board: Board, cells: Sequence[TableCell]) -> list[ClaimVerdict]:
    """Decide every claim about cells for every method of the board and for `CHOSEN`."""
    networks, blocks = (
        list(dict.fromkeys(column)) for column in list(zip(*cells, strict=True))[:2]
    )
    found = []
    for method in (*board.methods, CHOSEN):
        found += _overall(board, cells, method)
        for network in networks:
            for block in blocks:
                row = in_block(cells, network, block)
                found += _gains(board, row, method)
                if BLOCKS[block].metric != "size":
                    found.append(_reduction(board, row, method))
    return found


def in_block(cells: Sequence[TableCell], network: str, block: str) -> list[TableCell]:
    """List a network's cells of one block: the paper's, tighter ones if they are there."""
    about = BLOCKS[block]
    row = [TableCell(network, block, budget) for budget in about.all_budgets]
    return [cell for cell in row if cell in cells or cell.budget in about.budgets]


def _gains(board: Board, cells: Sequence[TableCell], method: str) -> list[ClaimVerdict]:
    """A positive gain at every budget, and the least one where bits are most."""
    gains = [board.gain(cell, method) for cell in cells]
    run = [gain for gain in gains if gain is not None]
    complete = len(run) == len(cells)
    where = f"{cells[0].network}, {cells[0].block}"
    text = ", ".join("not run" if g is None else f"{g.value:+.2f}" for g in gains)
    clear = sum(gain.value > 0 and gain.clear for gain in run)
    lost = any(gain.value <= 0 for gain in run)
    positive = MISSED if lost else MET if complete else OPEN
    values = [gain.value for gain in run]
    falls = complete and values[0] > values[-1] == min(values)
    shrinks = (MET if falls else MISSED) if complete else OPEN
    return [
        ClaimVerdict(
            f"{where}: a positive gain at every budget",
            method,
            positive,
            f"{text}; {clear} of {len(run)} by more than two standard errors",
            len(run),
        ),
        ClaimVerdict(f"{where}: the gain shrinks as bits grow", method, shrinks, text, len(run)),
    ]


def _reduction(board: Board, cells: Sequence[TableCell], method: str) -> ClaimVerdict:
    """The largest reduction of cost against 8 bits among policies of no loss."""
    network, block, _ = cells[0]
    metric = BLOCKS[block].metric
    wanted = LATENCY if metric == "latency" else ENERGY
    best = {NO_LOSS: math.nan, PAPER_LOSS: math.nan}
    run = 0
    for cell in cells:
        ours, loss = board.at(cell, method), board.loss(cell, method)
        if ours is None or loss is None:
            continue
        run += 1
        for allowed in best:
            if loss <= allowed:
                best[allowed] = float(np.fmax(best[allowed], ours.reduction))
    state = MET if best[NO_LOSS] >= wanted else MISSED if run == len(cells) else OPEN
    parts = []
    for allowed, value in best.items():
        shown = "no policy" if math.isnan(value) else f"{value:.2f} x"
        parts.append(f"{shown} at a loss of at most {allowed:g} points")
    paper = PAPER_REDUCTIONS.get((family(network), block))
    if paper is not None:
        loss_text = "" if paper[1] is None else f" at a loss of {paper[1]:g} points"
        parts.append(f"paper: {paper[0]:.2f} x{loss_text}")
    return ClaimVerdict(
        f"{network}, {block}: {metric} at no loss reduced {wanted:g} x or more",
        method,
        state,
        f"{'; '.join(parts)} ({run} of {len(cells)} budgets run)",
        run,
    )


def _overall(board: Board, cells: Iterable[TableCell], method: str) -> list[ClaimVerdict]:
    """Say how often the search wins below 6 bits, and by how much at the 4-bit latencies."""
    below, tight, room = [], [], []
    for cell in cells:
        gain = board.gain(cell, method)
        if gain is None or cell.budget == "w6a6":
            continue
        below.append(gain.value)
        mobile = cell.network.startswith("mobilenet")
        if mobile and cell.budget == "w4a4" and BLOCKS[cell.block].metric == "latency":
            tight.append(gain.value)
            room.append(board.loss(cell, UNIFORM))
    wins = sum(value > 0 for value in below)
    won = wins >= WINS * len(below) if below else None
    mean = float(np.mean(tight)) if tight else math.nan
    lost = [loss for loss in room if loss is not None]
    at_most = f"; 8 bits are {np.mean(lost):.2f} above uniform bits there" if lost else ""
    return [
        ClaimVerdict(
            f"searched beats uniform in {WINS:.0%} of the cells run below 6 bits",
            method,
            _state(won),
            f"{wins} of {len(below)}",
            len(below),
        ),
        ClaimVerdict(
            f"mean gain at the 4-bit latency budgets run, MobileNets: {GAIN:+g} or more",
            method,
            _state(mean >= GAIN if tight else None),
            f"{mean:+.2f} over {len(tight)}{at_most}" if tight else "none run",
            len(tight),
        ),
    ]


def _state(holds: bool | None) -> str:
    return OPEN if holds is None else MET if holds else MISSED
