"""What the paper claims, decided by results: met, NOT MET, or not decided yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from haq_env.report.reproduction import (
    BLOCKS,
    EIGHT,
    PAPER_REDUCTIONS,
    UNIFORM,
    Cell,
    Result,
    family,
    mean_and_error,
)

MET, MISSED, OPEN = "met", "NOT MET", "not decided"
CHOSEN = "best on held-out"  # of the methods of a cell, by held-out images after finetuning

NO_LOSS = 0.5  # points of top-1 below 8 bits that count as no loss
PAPER_LOSS = 0.85  # the largest loss behind a headline of the paper (cloud, MobileNet-V1)
LATENCY, ENERGY = 1.4, 1.9  # reductions to reach
WINS, GAIN = 0.9, 2.0  # share of cells; points at the 4-bit latency budgets


@dataclass(frozen=True)
class Gain:
    """Searched minus uniform in one cell, in points of top-1 on the test images.

    Attributes:
        value: mean over finetuning seeds, paired seed by seed.
        error: standard error over seeds; NaN for one seed. Test images are no part of it.
        method: what searched.
    """

    value: float
    error: float
    method: str

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors from zero."""
        return abs(self.value) > 2 * self.error


@dataclass(frozen=True)
class Verdict:
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


class Board:
    """Results by what they are of.

    Accuracies are subtracted only where both were finetuned with the same sums: on another
    processor the same policy comes out by points higher or lower.

    Args:
        results: at most one of each key.
        methods: searches that are compared, in order.
    """

    def __init__(self, results: Iterable[Result], methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._found: dict[tuple[str, ...], list[Result]] = {}
        for result in results:
            self._found.setdefault(result.what, []).append(result)
        self._uniform = {
            (*_policy(each), each.sums): each
            for found in self._found.values()
            for each in found
            if each.method == UNIFORM
        }

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """All kinds of sums that finetuned results."""
        return sorted({each.sums for found in self._found.values() for each in found})

    def letter(self, sums: tuple[str, int]) -> str:
        """Return what tables call a kind of sums: A, B, ..."""
        return chr(ord("A") + self.kinds.index(sums))

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def references(self, network: str, method: str, quantizer: str = "") -> list[Result]:
        """Return the float or the 8-bit network, from every kind of sums."""
        return self._found.get((network, "", "", method, quantizer), [])

    def at(self, cell: Cell, method: str) -> Result | None:
        """Return what a method has reached in a cell, None where it was not run.

        `CHOSEN` is the method that is best on the held-out images after the final finetuning, so
        that the test images choose nothing.
        """
        if method == CHOSEN:
            run = [self.at(cell, name) for name in self.methods]
            there = [result for result in run if result is not None]
            return max(there, key=lambda each: each.mean_and_error("val")[0], default=None)
        found = self._found.get((*cell, method, ""), [])
        paired = [result for result in found if self.uniform_beside(result) is not None]
        return next(iter(paired or found), None)

    def has(self, cell: Cell) -> bool:
        """Return whether any method has been run in a cell, the uniform policy included."""
        return any(self.at(cell, method) for method in (UNIFORM, *self.methods))

    def uniform_beside(self, result: Result) -> Result | None:
        """Return the uniform policy of a result's cell, finetuned with the same sums.

        It may have been finetuned in another cell: there are budgets of the same uniform policy.
        """
        cell = (result.network, result.block, result.budget, UNIFORM, "")
        found = self._found.get(cell, [])
        for uniform in found:
            if uniform.sums == result.sums:
                return uniform
        for uniform in found:
            known = self._uniform.get((*_policy(uniform), result.sums))
            if known is not None:  # the accuracies are of the policy, the costs of this cell
                return replace(
                    uniform,
                    processor=known.processor,
                    steps=known.steps,
                    val=known.val,
                    test=known.test,
                )
        return None

    def uniforms(self, cell: Cell) -> list[Result]:
        """Return what the gains of a cell are measured from, one for every kind of sums."""
        run = [self.at(cell, method) for method in (UNIFORM, *self.methods)]
        beside = [self.uniform_beside(result) for result in run if result is not None]
        return list({each.sums: each for each in beside if each is not None}.values())

    def gain(self, cell: Cell, method: str) -> Gain | None:
        """Return searched minus uniform, None where either was not run."""
        ours = self.at(cell, method)
        uniform = None if ours is None else self.uniform_beside(ours)
        if ours is None or uniform is None:
            return None
        value, error = mean_and_error(np.subtract(ours.test, uniform.test).tolist())
        return Gain(value, error, ours.method)

    def loss(self, cell: Cell, method: str) -> float | None:
        """Return how far a searched policy is below 8 bits, in points on the test images."""
        ours = self.at(cell, method)
        return None if ours is None else self.below_eight(ours)

    def below_eight(self, result: Result) -> float | None:
        """Return how far a result is below 8 bits of the same sums, None where those are not."""
        for eight in self.references(result.network, EIGHT, BLOCKS[result.block].quantizer):
            if eight.sums == result.sums:
                return eight.mean_and_error("test")[0] - result.mean_and_error("test")[0]
        return None


def _policy(result: Result) -> tuple[str, str, str, str]:
    return result.network, result.quantizer, result.w_bits, result.a_bits


def verdicts(board: Board, cells: Sequence[Cell]) -> list[Verdict]:
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


def in_block(cells: Sequence[Cell], network: str, block: str) -> list[Cell]:
    """List a network's cells of one block: the paper's, the tighter one if it is there."""
    about = BLOCKS[block]
    row = [Cell(network, block, budget) for budget in about.all_budgets]
    return [cell for cell in row if cell in cells or cell.budget in about.budgets]


def _gains(board: Board, cells: Sequence[Cell], method: str) -> list[Verdict]:
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
        Verdict(
            f"{where}: a positive gain at every budget",
            method,
            positive,
            f"{text}; {clear} of {len(run)} by more than two standard errors",
            len(run),
        ),
        Verdict(f"{where}: the gain shrinks as bits grow", method, shrinks, text, len(run)),
    ]


def _reduction(board: Board, cells: Sequence[Cell], method: str) -> Verdict:
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
    return Verdict(
        f"{network}, {block}: {metric} at no loss reduced {wanted:g} x or more",
        method,
        state,
        f"{'; '.join(parts)} ({run} of {len(cells)} budgets run)",
        run,
    )


def _overall(board: Board, cells: Iterable[Cell], method: str) -> list[Verdict]:
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
        Verdict(
            f"searched beats uniform in {WINS:.0%} of the cells run below 6 bits",
            method,
            _state(won),
            f"{wins} of {len(below)}",
            len(below),
        ),
        Verdict(
            f"mean gain at the 4-bit latency budgets run, MobileNets: {GAIN:+g} or more",
            method,
            _state(mean >= GAIN if tight else None),
            f"{mean:+.2f} over {len(tight)}{at_most}" if tight else "none run",
            len(tight),
        ),
    ]


def _state(holds: bool | None) -> str:
    return OPEN if holds is None else MET if holds else MISSED
