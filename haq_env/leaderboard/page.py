"""The leaderboard as one HTML file that needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from haq_env.leaderboard.agreement import ABOUT, Agreement, told
from haq_env.leaderboard.agreement import HEAD as CLAIMS
from haq_env.leaderboard.charts import page_data
from haq_env.leaderboard.entries import BASELINE
from haq_env.leaderboard.protocol import SEARCH, TRANSFER, VERSION, Suite
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.suites import way
from haq_env.leaderboard.table import ABOUT_TRANSFER, hours
from haq_env.leaderboard.verified import Verified
from haq_env.report.comparison_tables import plain
from haq_env.report.estimates import Estimate
from haq_env.report.units import DASH

_HOLE = re.compile(r"\{\{(\w+)\}\}")


def page(
    submissions: Sequence[Verified],
    standings: Standings,
    others: Sequence[Suite] = (),
    agreements: Mapping[str, Agreement] | None = None,
) -> str:
    """Return the page of a suite, with links to those of others.

    Nothing of a submission becomes markup or code: names are escaped, the script reads data from
    JSON and only ever sets text, and the page's policy runs no script but its own.
    """
    folder = files("haq_env.leaderboard") / "assets"
    template, style, script = (
        (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    tracks = {run.cell.track for runs in standings.entries.values() for run in runs}
    return _filled(
        template,
        {
            "policy": "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_digest(style)}; script-src {_digest(script)}",
            "suite": "" if standings.suite == SEARCH else f": {standings.suite}",
            "more": _more(standings.suite, others),
            "style": style,
            "script": script,
            "summary": escape(
                f"{len(standings.entries)} entries on {len(tracks)} "
                f"track{'s' * (len(tracks) != 1)}."
            ),
            "ranked": str(standings.main),
            "standings": _standings(standings),
            "unscored": escape(f" {standings.left_out}"),
            "submissions": _submissions(submissions, agreements or {}),
            "claims": escape(ABOUT),
            "protocol": str(VERSION),
            "data": _embedded(page_data(standings)),
        },
    )


def _more(suite: Suite, others: Sequence[Suite]) -> str:
    about = [escape(ABOUT_TRANSFER)] if suite == TRANSFER else []
    if others:
        links = [f'<a href="{way(suite, other)}index.html">{other}</a>' for other in others]
        about.append(f"Other suites, which do not compare: {', '.join(links)}.")
    return "".join(f"\n{sentence}" for sentence in about)


def _filled(template: str, values: Mapping[str, str]) -> str:
    # in one pass, so that nothing is filled in where a value looks like a hole
    return _HOLE.sub(lambda match: values[match[1]], template)


def _digest(text: str) -> str:
    """Return the source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(data: Any) -> str:
    """Write JSON that no content can end before its end."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _standings(standings: Standings) -> str:
    rows, main = standings.rows, standings.main
    counts = sorted({count for row in rows for count in row.at})
    head = [("", True), ("entry", True), *((f"after {count}", False) for count in counts)]
    head += [("", False), ("regret", False), (f"over {BASELINE}", False), ("over leader", False)]
    head += [("seeds", False), ("charge", False)]
    ends = [found for row in rows for found in row.at.values()]
    bounds = [0.0, 1.0, *(x for e in ends for x in (e.value, e.low, e.high) if math.isfinite(x))]
    body = []
    for place, row in enumerate(rows, 1):
        cells = [_cell(str(place) if row.at else DASH, "left"), _cell(row.entry, "left entry")]
        cells += [_cell(_value(row.at.get(count), 3)) for count in counts]
        cells.append(f"<td>{_whisker(row.at.get(main), min(bounds), max(bounds))}</td>")
        cells.append(_cell(_value(row.regret, 3)))
        for found in (row.over_baseline, row.over_leader):
            cells.append(_cell(DASH if found is None else f"{100 * found.value:.0f} %"))
        seeds = "\N{EN DASH}".join(map(str, dict.fromkeys(row.seeds)))
        partial = f" ({row.tracks[0]} of {row.tracks[1]} tracks)" if not row.at else ""
        cells += [_cell(seeds + partial), _cell(plain(row.charge))]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(head, body)


def _submissions(submissions: Sequence[Verified], agreements: Mapping[str, Agreement]) -> str:
    numbers = ("runs", "refused", *CLAIMS, "hours of the whole submission (declared)")
    names = (
        *("submission", "authors", "runs", "refused", *CLAIMS, "code", "environment changed"),
        *("hardware (declared)", "hours of the whole submission (declared)"),
    )
    body = []
    for each in sorted(submissions, key=lambda each: each.name):
        cells = [_cell(f"{each.name}: {each.title}", "left wide")]
        cells.append(_cell(", ".join(each.authors), "left wide"))
        cells += [_cell(str(len(each.runs))), _cell(str(len(each.refused)))]
        cells += map(_cell, told(agreements.get(each.name)))
        # its form is checked where it is read: https, and no character that ends an attribute
        link = f'<a rel="noopener noreferrer nofollow" href="{escape(each.code)}">code</a>'
        cells.append(f'<td class="left">{link if each.code else "this package"}</td>')
        cells.append(_cell(each.environment_changed or "no", "left wide"))
        cells.append(_cell(each.hardware or DASH, "left wide"))
        cells.append(_cell(hours(each)))
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table([(name, name not in numbers) for name in names], body)


def _table(head: Sequence[tuple[str, bool]], body: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col"{" class=left" if left else ""}>{escape(name)}</th>' for name, left in head
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>\n{chr(10).join(body)}\n</tbody></table>"


def _cell(text: str, kind: str = "") -> str:
    about = f' class="{kind}"' if kind else ""
    return f"<td{about}>{escape(text)}</td>"


def _value(found: Estimate | None, decimals: int) -> str:
    return DASH if found is None else f"{round(found.value, decimals) + 0.0:.{decimals}f}"


def _whisker(found: Estimate | None, low: float, high: float) -> str:
    """Draw an interval on the scale from low to high; the axis has marks at 0 and 1."""
    if found is None:
        return ""

    def at(value: float) -> str:
        return f"{5 + 140 * (value - low) / (high - low):.1f}"

    parts = [f'<line class="axis" x1="{at(low)}" x2="{at(high)}" y1="7" y2="7"/>']
    parts += [f'<line class="axis" x1="{at(x)}" x2="{at(x)}" y1="2" y2="12"/>' for x in (0, 1)]
    label = _value(found, 3)
    if math.isfinite(found.low):
        ends = f'x1="{at(found.low)}" x2="{at(found.high)}"'
        parts.append(f'<line class="range" {ends} y1="7" y2="7"/>')
        label += f" ({found.low:.3f} to {found.high:.3f})"
    parts.append(f'<circle class="dot" cx="{at(found.value)}" cy="7" r="3.5"/>')
    title = f"<title>{label}</title>"
    svg = f'<svg class="whisker" viewBox="0 0 150 14" role="img" aria-label="{label}">'
    return f"{svg}{title}{''.join(parts)}</svg>"
