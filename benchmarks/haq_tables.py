"""HAQ's tables run again, as Markdown: gains, claims, and every row behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from haq_board import CHOSEN, Board
from haq_claims import ClaimVerdict, in_block
from haq_paper import BLOCKS, TableCell, paper_gain
from haq_results import EIGHT, FLOAT, UNIFORM, Result

from haq_env.cost import UNITS
from haq_env.report.units import DASH, Scale

NOT_RUN = "not run"
NOT_PAIRED = "uniform not run there"  # with the same sums
_NONE = (DASH, DASH)
ROOM = "8 bits - uniform"  # what there is to gain


def gains_table(board: Board, cells: Sequence[TableCell]) -> str:
    """Write a line for each cell: gain of every method over uniform beside the paper's.

    Args:
        board: the results.
        cells: in the order in which they are shown. Those that no method has run share a line
            for each block, which says so. Where methods of a cell were finetuned with different
            sums, there are as many uniform accuracies.
    """
    head = ["network", "block", "budget", "uniform, test %", ROOM]
    head += [*board.methods, CHOSEN, "paper's gain"]
    rows = []
    for cell in [cell for cell in cells if board.has(cell)]:
        uniforms, paper = board.uniforms(cell), paper_gain(cell)
        room = [board.below_eight(each) for each in uniforms]
        row = [*cell, " / ".join(accuracy(each, "test") for each in uniforms) or NOT_RUN]
        row.append(" / ".join(NOT_RUN if r is None else f"{r:+.2f}" for r in room) or NOT_RUN)
        for method in board.methods:
            row.append(_gain(board, cell, method))
        chosen = board.gain(cell, CHOSEN)
        best = NOT_RUN if chosen is None else f"{_gain(board, cell, CHOSEN)} ({chosen.method})"
        rows.append([*row, best, _points(paper)])
    for network, block in dict.fromkeys(cell[:2] for cell in cells):
        missing = [cell for cell in in_block(cells, network, block) if not board.has(cell)]
        if missing:
            papers = [_points(paper_gain(cell)) for cell in missing]
            budgets = ", ".join(cell.budget for cell in missing)
            nothing = [NOT_RUN] * (len(head) - 4)
            theirs = DASH if set(papers) == {DASH} else ", ".join(papers)
            rows.append([network, block, budgets, *nothing, theirs])
    return markdown_table(head, rows, left=3)


def claims_table(verdicts: Sequence[ClaimVerdict]) -> str:
    """Write a line for each claim: its state for every method, and the numbers of the last one.

    Claims about cells none of which was run are counted and not listed.
    """
    methods = list(dict.fromkeys(each.method for each in verdicts))
    claims: dict[str, dict[str, ClaimVerdict]] = {}
    for each in verdicts:
        claims.setdefault(each.claim, {})[each.method] = each
    rows, untouched = [], 0
    for claim, by_method in claims.items():
        if not any(each.cells for each in by_method.values()):
            untouched += 1
            continue
        states = [by_method[name].state for name in methods]
        rows.append([claim, *states, by_method[methods[-1]].evidence])
    evidence = f"evidence: {methods[-1]}" if methods else "evidence"
    text = markdown_table(["claim", *methods, evidence], rows, left=len(methods) + 2)
    return text + (f"\nNot decided, no cell run: {untouched} claims.\n" if untouched else "")


def network_section(board: Board, network: str, cells: Sequence[TableCell]) -> str:
    """Write all rows of a network: the references, then every block of its cells."""
    blocks = list(dict.fromkeys(cell.block for cell in cells if cell.network == network))
    lines = [f"## {network}\n"]
    rows = []
    missing = [DASH, NOT_RUN, NOT_RUN]
    for result in board.references(network, FLOAT):
        rows.append(["float, as trained", "", DASH, f"{result.untrained:.2f}", ""])
        rows.append(["float, finetuned alike", "", board.letter(result.sums), *_pair(result)])
    if not rows:
        rows.append([FLOAT, "", *missing])
    for quantizer in dict.fromkeys(BLOCKS[block].quantizer for block in blocks):
        found = board.references(network, EIGHT, quantizer)
        rows += [[EIGHT, quantizer, board.letter(result.sums), *_pair(result)] for result in found]
        if not found:
            rows.append([EIGHT, quantizer, *missing])
    head = ["network", "quantizer", "on", "test, %", "val, %"]
    lines.append(markdown_table(head, rows, left=3))
    for block in blocks:
        about = BLOCKS[block]
        lines.append(
            f"### {network}, {block}\n\nHAQ's {about.source}: {about.metric} on {about.hardware}.\n"
        )
        lines.append(_block_table(board, in_block(cells, network, block)))
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table whose first columns are flush left and the others right."""
    rule = [":---"] * left + ["---:"] * (len(head) - left)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    return "\n".join(lines) + "\n"


def accuracy(result: Result, part: str) -> str:
    """Write the mean over seeds with its standard error, where there is one."""
    mean, error = result.mean_and_error(part)
    return f"{mean:.2f}" if math.isnan(error) else f"{mean:.2f} ± {error:.2f}"


def _block_table(board: Board, cells: Sequence[TableCell]) -> str:
    network, block, _ = cells[0]
    metric = BLOCKS[block].metric
    found = [r for c in cells for m in (UNIFORM, *board.methods) if (r := board.at(c, m))]
    scale = Scale.of(metric, max((result.eight for result in found), default=1.0))
    unit = scale.unit or UNITS[metric]
    head = ["budget", "method", "on", "evaluations", "search val, %", "test, %", "val, %"]
    head += [f"{metric}, {unit}", "of 8 bits", "8 bits / it, as the paper counts", "gain", "paper"]
    cost = scale.write(found[0].eight) if found else NOT_RUN
    used = {result.sums for result in found}
    rows = [
        [
            DASH,
            EIGHT,
            board.letter(eight.sums),
            DASH,
            DASH,
            *_pair(eight),
            cost,
            "1.000",
            "1.00",
            *_NONE,
        ]
        for eight in board.references(network, EIGHT, BLOCKS[block].quantizer)
        if eight.sums in used
    ]
    for cell in cells:
        if not board.has(cell):
            rows.append([cell.budget, "all", DASH, NOT_RUN, *[DASH] * (len(head) - 4)])
            continue
        paper = _points(paper_gain(cell))
        searches = [(method, board.at(cell, method)) for method in board.methods]
        uniforms: list[Result | None] = [*board.uniforms(cell)] or [None]
        for method, result in (*((UNIFORM, each) for each in uniforms), *searches):
            if result is None:
                rows.append([cell.budget, method, DASH, NOT_RUN, *[DASH] * (len(head) - 4)])
                continue
            searched = method != UNIFORM
            charge = f" + {result.charge:.1f}" if result.charge else ""
            rows.append(
                [
                    cell.budget,
                    method,
                    board.letter(result.sums),
                    f"{result.evaluations}{charge}",
                    f"{result.searched:.2f}",
                    *_pair(result),
                    scale.write(result.cost),
                    f"{result.cost / result.eight:.3f}",
                    f"{result.reduction:.2f}",
                    _gain(board, cell, method) if searched else DASH,
                    paper if searched else DASH,
                ]
            )
    return markdown_table(head, rows, left=3)


def _gain(board: Board, cell: TableCell, method: str) -> str:
    gain = board.gain(cell, method)
    if gain is None:
        return NOT_RUN if board.at(cell, method) is None else NOT_PAIRED
    return f"{gain.value:+.2f}" + ("" if math.isnan(gain.error) else f" ± {gain.error:.2f}")


def _points(gain: float | None) -> str:
    return DASH if gain is None else f"{gain:+.2f}"


def _pair(result: Result) -> list[str]:
    return [accuracy(result, "test"), accuracy(result, "val")]
