"""Which cheap measurement ranks policies as the full finetuning does?

    python benchmarks/proxy_rank.py --dataset cifar10:FOLDER [--minutes 60] [--device cuda]
    python benchmarks/proxy_rank.py --dataset digits --quick

Policies of mixed budgets are ranked well by anything that counts bits; what a search needs is the
order of policies that cost the same. So all policies are permutations of one multiset of widths
(2, 3, 4, 5 in turn, for weights and for activations; the first and the last layer stay at 8), or,
with --draw budget, random policies that spend one budget to within a percent.

The held-out images are cut in two: proxies are measured on one half, the truth on the other, so
that no proxy shares the luck of its images with the truth. Test images are not used. Every policy
is a file as soon as it is measured; call it again and it goes on, with what is there in the report.
Writes proxy_rank_DATASET.md and .csv into benchmarks/results.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from haq_settings import NETWORKS, ON_DIGITS
from haq_tables import markdown_table
from proxy_study import CEILING, FEWEST, ON_THEM, Settings, Study
from ranking import reliability
from result_files import read, write_text
from rich.console import Console

import haq_env
from haq_env.data import dataset_argument
from haq_env.errors import InputError, unknown_name
from haq_env.evaluation.device import find_device
from haq_env.malloc import keep_freed_memory
from haq_env.networks.bundled import find_trained
from haq_env.report.estimates import Estimate
from haq_env.search.sensitivity import METHODS

GATE = 0.6  # Spearman's rho from which a tier may be the default
ENOUGH = 16  # policies, for a decision


def checked(settings: Settings) -> Settings:
    """Fill in what was not given, and refuse what cannot be before anything is spent."""
    for method in settings.sensitivities:
        METHODS[method]
    if settings.draw not in ("permutations", "budget"):
        raise unknown_name("draw", settings.draw, ("permutations", "budget"))
    for name, least in (("policies", FEWEST), ("seeds", 1), ("threads", 1)):
        if getattr(settings, name) < least:
            raise InputError(f"{name} must be {least} or more, not {getattr(settings, name)}.")
    if min(settings.steps, default=1) < 1:
        raise InputError(f"steps must be 1 or more, not {min(settings.steps)}.")
    find_device(settings.device)
    if settings.quick:
        folder = settings.out / "quick"
        settings = replace(
            settings,
            policies=min(6, settings.policies),
            steps=settings.steps[:1],
            sensitivities=tuple(n for n in settings.sensitivities if n in ("output_kl", "fit")),
            epochs=min(0.5, settings.final.epochs),
            out=folder,
            results=folder / "results",
        )
    usual = ON_DIGITS if settings.name == "digits" else NETWORKS
    found, missing = [], None
    for network in settings.networks or usual:
        try:
            find_trained(network, settings.dataset, settings.checkpoint(network))
        except InputError as error:
            missing = error
            if settings.networks:
                raise
        else:
            found.append(network)
    if missing is not None and not found:
        raise missing
    return replace(settings, networks=tuple(found[:1] if settings.quick else found))


def fill(settings: Settings, studies: list[Study], console: Console) -> bool:
    """Measure what is missing; return whether all is done."""
    deadline = time.monotonic() + 60 * settings.minutes
    todo = []
    for study in studies:
        known = study.complete()
        todo += [(study, n) for n in range(len(study.policies)) if n not in known]
    console.print(f"{len(todo)} policies to measure")
    for study in studies:
        if time.monotonic() < deadline:
            study.tables(console)
    times: list[float] = []
    for count, (study, number) in enumerate(todo):
        if time.monotonic() >= deadline:
            console.print("the time is over: call it again to go on")
            return False
        start = time.monotonic()
        study.measure(number)
        times.append(time.monotonic() - start)
        left = np.mean(times[-10:]) * (len(todo) - count - 1) / 60
        console.print(f"{study.network}, policy {number}: {left:.0f} min left", highlight=False)
    return not any(study.missing for study in studies)


def section(study: Study) -> str:
    """Write one network: every proxy, and which tier may be the default."""
    known = study.complete()
    lines = [f"## {study.network}\n"]
    if len(known) < FEWEST:
        return f"{lines[0]}\nNot run: {len(known)} of {len(study.policies)} policies.\n"
    costs = study.task.budget.cost(study.policies[list(known)]) / study.task.budget.reference
    measured = study.measured(known)
    truth = measured.mean(axis=1)
    lines.append(
        f"{len(known)} of {len(study.policies)} policies; {study.images[0]} images for proxies, "
        f"{study.images[1]} others for the truth, which is {truth.min():.2f} to "
        f"{truth.max():.2f} % (mean {truth.mean():.2f}). Latency on {study.settings.hardware}: "
        f"{costs.min():.3f} to {costs.max():.3f} of 8 bits. Full finetune: {study.full.steps} "
        f"steps of {study.full.batch_size} images, seeds: {len(study.full_seeds)}."
    )
    trust = reliability(measured)
    if math.isfinite(trust):
        lines.append(
            f"Reliability of the truth over its seeds (Cronbach's alpha): {trust:.2f}, so that a "
            f"proxy without noise would have a correlation of about {math.sqrt(max(0, trust)):.2f}."
        )
    lines.append("")
    rows, rhos = [], {}
    for name, found in study.rankings():
        rhos[name] = found.spearman.value
        both = [interval(found.spearman), interval(found.kendall)]
        rows.append([name, *both, f"{found.overlap:.2f}"])
    head = ["proxy", "Spearman's rho", "Kendall's tau", "best quarter in common"]
    lines.append(markdown_table(head, rows))
    cheapest = sorted(study.short, key=lambda name: study.short[name].steps)
    passed = [name for name in cheapest if rhos[name] >= GATE]
    state = "met" if rhos["ptq_bn"] >= GATE else "NOT MET"
    state = state if len(known) >= ENOUGH else "not decided"
    default = passed[0] if passed else "none"
    lines.append(
        f"{state}: ptq_bn has a rho of {GATE} or more ({rhos['ptq_bn']:.2f}; the full finetuning "
        f"on those images {rhos[ON_THEM]:.2f}). Cheapest tier that reaches it: {default}.\n"
    )
    return "\n".join(lines)


def interval(found: Estimate) -> str:
    """Write an estimate with its interval; a dash where one side is constant."""
    if math.isnan(found.value):
        return "-"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def report(settings: Settings, studies: list[Study]) -> Path:
    """Write the tables and all numbers; return the file of the tables."""
    command = f"python benchmarks/proxy_rank.py --dataset {dataset_argument(settings.dataset)}"
    command += f" --networks {' '.join(settings.networks)} --hardware {settings.hardware}"
    command += "" if settings.weights is None else " --weights FOLDER"
    command += f" --sensitivities {' '.join(settings.sensitivities)}"
    options = ("policies", "draw", "budget", "seeds", "seed", "step_rate", "device", "threads")
    command += "".join(f" --{n.replace('_', '-')} {getattr(settings, n)}" for n in options)
    command += f" --epochs {settings.final.epochs:g} --steps {' '.join(map(str, settings.steps))}"
    notes = {study.note for study in studies if study.note}
    parts = [
        f"# Proxies of the accuracy after finetuning, on {settings.name}\n\n`{command}`"
        f"{' (--quick: not for the record)' if settings.quick else ''}\n\n"
        "In brackets: 95 % bootstrap intervals over policies. Sensitivities: minus the predicted "
        f'sum. "{ON_THEM}" is the truth, but measured on the images of the proxies: where that '
        f'does not rank policies, there are too few images. "{CEILING}" is one full finetuning. By '
        "chance, a quarter of the best quarter is in common.\n\n"
        f"haq-env {haq_env.__version__}, torch {torch.__version__}"
        f"{'; ' if notes else ''}{', '.join(notes)}\n"
    ]
    parts += [section(study) for study in studies]
    path = settings.results / f"proxy_rank_{settings.name}.md"
    numbers = io.StringIO()
    writer = csv.writer(numbers, lineterminator="\n")
    writer.writerow(["network", "policy", "w_bits", "a_bits", "quantity", "val", "truth"])
    for study in studies:
        for number, record in study.complete().items():
            start = [study.network, number, *record["bits"]]
            for name, value in record["proxies"].items():
                writer.writerow([*start, name, value, ""])
            for seed, both in record["full"].items():
                writer.writerow([*start, f"full, seed {seed}", both["val"], both["test"]])
        for method in settings.sensitivities:
            table = study.table(method)
            if table.exists():
                for number, value in enumerate(read(table)["predicted"]):
                    writer.writerow([study.network, number, "", "", method, value, ""])
    write_text(path.with_suffix(".csv"), numbers.getvalue())
    write_text(path, "\n".join(parts))
    return path


def main() -> None:
    """Measure what is missing, then report."""
    keep_freed_memory()
    settings = tyro.cli(Settings, description=__doc__)
    console = Console(width=110)
    try:
        settings = checked(settings)
        torch.set_num_threads(settings.threads)
        studies = [Study(settings, network) for network in settings.networks]
        done = True if settings.report_only else fill(settings, studies, console)
        path = report(settings, studies)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: call it again to go on; all that was measured is kept", file=sys.stderr)
        sys.exit(130)
    print(path.read_text(encoding="utf-8"))
    print(f"Written: {path}")
    sys.exit(0 if done else 3)


if __name__ == "__main__":
    main()
