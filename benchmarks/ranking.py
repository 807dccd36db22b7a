"""How well one quantity ranks policies by another: rank correlations with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from haq_env.errors import InputError
from haq_env.report.bootstrap import CONFIDENCE, REPETITIONS
from haq_env.report.estimates import Estimate
from haq_env.report.scores import Array

_ROWS = 64  # at once, so that all pairs of policies fit the memory


@dataclass(frozen=True)
class Ranking:
    """How a proxy ranks policies.

    Attributes:
        spearman: rho, with a percentile interval over resampled policies; NaN where either side
            is constant.
        kendall: tau-b, likewise.
        overlap: share of the best quarter by the truth that is in the best quarter by the proxy;
            a quarter by chance.
        policies: how many there are.
    """

    spearman: Estimate
    kendall: Estimate
    overlap: float
    policies: int


def ranking(proxy: Array, truth: Array, seed: int = 0, repetitions: int = REPETITIONS) -> Ranking:
    """Compare two rankings of the same policies.

    Args:
        proxy: float64 [N], large is good.
        truth: float64 [N], likewise.
        seed: of the resampling.
        repetitions: how often the policies are resampled.

    Raises:
        InputError: fewer than four policies, other shapes, or numbers that are not finite.
    """
    proxy, truth = np.asarray(proxy, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if proxy.ndim != 1 or proxy.shape != truth.shape or len(proxy) < 4:
        raise InputError(
            "a ranking needs four policies or more, with one number of both sides for each, not "
            f"{list(proxy.shape)} and {list(truth.shape)}."
        )
    if not np.isfinite([proxy, truth]).all():
        raise InputError("a ranking needs finite numbers.")
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(proxy), size=(repetitions, len(proxy)))
    estimates = []
    for correlation in (spearman, kendall):
        value = float(correlation(proxy[None], truth[None])[0])
        drawn = correlation(proxy[picks], truth[picks])
        kept = drawn[np.isfinite(drawn)]  # a sample may hold one value only
        ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        known = np.isfinite(value) and kept.size
        low, high = np.quantile(kept, ends) if known else (np.nan, np.nan)
        estimates.append(Estimate(value, float(low), float(high)))
    return Ranking(estimates[0], estimates[1], _overlap(proxy, truth), len(proxy))


def reliability(measured: Array) -> float:
    """Return how much of the spread of mean accuracies is of the policies and not of the seeds.

    Cronbach's alpha, float64 [N policies, S seeds] to a number up to 1, below 0 where seeds
    disagree; NaN for a single seed or policies that are all alike. Its square root is about the
    correlation that a proxy without any noise would have with the mean over the seeds.
    """
    count = measured.shape[1]
    total = measured.sum(axis=1).var(ddof=1)
    if count < 2 or not total > 0:
        return float("nan")
    return float(count / (count - 1) * (1 - measured.var(axis=0, ddof=1).sum() / total))


def spearman(x: Array, y: Array) -> Array:
    """Return Spearman's rho of every row, [rows, N] to [rows]; NaN where a row is constant.

    As `scipy.stats.spearmanr`, for thousands of resampled rows at once.
    """
    a, b = (rankdata(side, axis=1) for side in (x, y))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _ratio((a * b).sum(axis=1), (a * a).sum(axis=1) * (b * b).sum(axis=1))


def kendall(x: Array, y: Array) -> Array:
    """Return Kendall's tau-b of every row, likewise; as `scipy.stats.kendalltau`."""
    found = []
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        a, b = (np.sign(side[rows, :, None] - side[rows, None, :]) for side in (x, y))
        tied = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
        found.append(_ratio((a * b).sum(axis=(1, 2)), tied))
    return np.concatenate(found)


def _ratio(above: Array, squared: Array) -> Array:
    result = np.full(len(above), np.nan)
    np.divide(above, np.sqrt(squared), out=result, where=squared > 0)
    return result


def _overlap(proxy: Array, truth: Array) -> float:
    count = max(1, len(proxy) // 4)
    best = [set(np.argsort(-side, kind="stable")[:count].tolist()) for side in (proxy, truth)]
    return len(best[0] & best[1]) / count
