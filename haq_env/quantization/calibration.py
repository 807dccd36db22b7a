"""Where to clip: the clips of one tensor for all widths at once, and the error they leave.

The least-squares clips come from one sort and one prefix sum. With the magnitudes a sorted, the
codes 0..n at step s and e_k the first element of a that rounds to at least k,

    sum (a - q(a))^2 = sum a^2 - 2 s sum_k S(e_k) + s^2 sum_k (2k - 1) N(e_k),   k = 1..n,

where N(e) and S(e) count and sum the elements from e on: n binary searches for one clip.
"""

from __future__ import annotations

from math import gcd, sqrt
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq_env.errors import unknown_name
from haq_env.policy import MAX_BITS
from haq_env.quantization.scheme import ClipRule, check_finite

Floats = NDArray[np.float64]

MAX_SAMPLES = 1 << 20  # of one tensor; the clips of larger samples do not differ visibly
COARSE, FINE = 64, 17  # clips tried over the whole range, then around the best of them
NOTHING = 1e-30  # magnitudes that count as zero: their steps would underflow in float32
HAQ_SEARCH_BELOW = 5  # bits from which HAQ takes the largest magnitude
HAQ_ACTIVATION_LIMIT = 6.0


class ClipTable(NamedTuple):
    """Clips of one tensor.

    Attributes:
        clip: clip at 1 to 8 bits, positive, float64 [8].
        mse: mean squared error at that clip, float64 [8].
    """

    clip: Floats
    mse: Floats


def clip_table(
    values: ArrayLike,
    signed: bool,
    rule: ClipRule = "mse",
    *,
    activations: bool = False,
    name: str = "values",
) -> ClipTable:
    """Choose the clips of one tensor at 1 to 8 bits.

    Codes are -n..n with n = 2^(bits-1) - 1 if signed, else 0..n with n = 2^bits - 1. One signed
    bit is sign(x) * mean|x|, so its entry is mean|x| under every rule.

    ``"mse"`` minimises the squared error. ``"max"`` clips nothing. ``"haq-kl"`` is what the
    released code of HAQ does (Wang et al., CVPR 2019): below 5 bits it compares the cumulative
    histogram with its image on a coarser grid, else it takes the maximum; a signed activation
    counts as one bit less; activations are clipped at 6 at most. Where that comparison has no
    grid (a single point: one bit, or two signed activation bits) the least-squares clip is used.
    ``"lsq"`` is the first step 2 mean|x| / sqrt(n) of Esser et al. (ICLR 2020, section 2.1).

    A tensor without any magnitude gets the clip 1, which maps zeros to zeros.

    Args:
        values: any shape; errors are those of at most about a million values, evenly strided.
        signed: whether negative values are represented; if not, they are clipped to zero.
        rule: ``"mse"``, ``"haq-kl"``, ``"max"`` or ``"lsq"``.
        activations: whether HAQ's rules for activations apply; only matters to ``"haq-kl"``.
        name: whose values these are, for error messages.

    Raises:
        InputError: no values, NaN or infinite values, or an unknown rule.
    """
    whole = np.asarray(values)
    check_finite(whole, name)
    magnitudes = _Magnitudes(subsample(whole), signed)
    if rule != "mse":  # which looks at errors; these want the largest of all
        magnitudes.max = float(np.abs(whole).max() if signed else max(0, whole.max()))
    if magnitudes.max <= NOTHING:
        return ClipTable(np.ones(MAX_BITS), np.full(MAX_BITS, magnitudes.mse_of_zero))
    if rule == "mse":
        clips = [magnitudes.best_clip(n) for n in _largest_codes(signed)]
    elif rule == "max":
        clips = [magnitudes.max] * MAX_BITS
    elif rule == "haq-kl":
        clips = _haq_clips(magnitudes, signed, activations)
    elif rule == "lsq":
        clips = [2 * magnitudes.mean * sqrt(n) for n in _largest_codes(signed)]
    else:
        raise unknown_name("clip rule", rule, get_args(ClipRule))
    clip = np.array(clips)
    if signed:
        clip[0] = magnitudes.mean
    codes = _largest_codes(signed)
    mse = np.array([magnitudes.mse(clip[b : b + 1], codes[b])[0] for b in range(MAX_BITS)])
    if signed:
        mse[0] = magnitudes.mse_of_sign
    return ClipTable(clip, mse)


def subsample(values: NDArray[Any], limit: int = MAX_SAMPLES) -> NDArray[np.floating[Any]]:
    """Return at most `limit` of the values, flat, at a fixed stride.

    The stride has no common factor with the number of values, so it visits all columns and
    channels of a feature map evenly.
    """
    flat = values.reshape(-1)
    flat = flat[:: sampling_stride(flat.size, limit)]
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float64)


def sampling_stride(size: int, limit: int = MAX_SAMPLES) -> int:
    """Return the least stride that leaves at most `limit` of `size` values, coprime to `size`."""
    stride = max(1, -(-size // limit))
    while stride > 1 and gcd(stride, size) > 1:
        stride += 1
    return stride


def _largest_codes(signed: bool) -> list[int]:
    return [max(1, 2 ** (bits - signed) - 1) for bits in range(1, MAX_BITS + 1)]


class _Magnitudes:
    """Sorted magnitudes with what is needed to evaluate a clip."""

    def __init__(self, sample: NDArray[np.floating[Any]], signed: bool) -> None:
        size = sample.size
        negative = 0.0
        if signed:
            sorted_ = np.abs(sample)
        else:
            below = sample[sample < 0].astype(np.float64)
            negative = float(below @ below)
            sorted_ = np.maximum(sample, 0)
        sorted_.sort()
        # zeros are right at every clip: they only count in the number of values
        sorted_ = sorted_[np.searchsorted(sorted_, 0, side="right") :]
        self.sorted = sorted_
        self.size = size
        self.prefix: Floats = np.zeros(sorted_.size + 1)
        np.cumsum(sorted_, dtype=np.float64, out=self.prefix[1:])
        self.total = float(self.prefix[-1])
        self.squares = float(np.einsum("i,i->", sorted_, sorted_, dtype=np.float64)) + negative
        self.max = float(sorted_[-1]) if sorted_.size else 0.0
        self.mean = self.total / size
        self.mse_of_zero = self.squares / size
        self.mse_of_sign = max(0.0, self.mse_of_zero - self.mean**2)

    def mse(self, clips: Floats, n: int) -> Floats:
        """Return the mean squared error of codes 0..n at every clip, [T]."""
        steps = clips / n
        codes = np.arange(1, n + 1)
        edges = (steps[:, None] * (codes - 0.5)).astype(self.sorted.dtype)
        first = np.searchsorted(self.sorted, edges)
        count = (self.sorted.size - first) @ (2.0 * codes - 1)
        total = (self.total - self.prefix[first]).sum(axis=1)
        error = self.squares - 2 * steps * total + steps**2 * count
        return np.maximum(error, 0.0) / self.size  # type: ignore[no-any-return]

    def best_clip(self, n: int) -> float:
        """Return the clip of least squared error for codes 0..n."""
        # no optimum lies below half the mean magnitude: with one code it is the mean of what
        # rounds up, and more codes move it outwards
        low, high = 0.5 * self.total / self.sorted.size, self.max
        points = COARSE
        for _ in range(3):
            clips = np.geomspace(low, high, points)
            clips[-1] = high
            best = int(self.mse(clips, n).argmin())
            low, high = clips[max(best - 1, 0)], clips[min(best + 1, points - 1)]
            points = FINE
        return float(clips[best])


def _haq_clips(magnitudes: _Magnitudes, signed: bool, activations: bool) -> list[float]:
    cumulative, width = _cumulative_histogram(magnitudes)
    clips = []
    for bits, n in enumerate(_largest_codes(signed), start=1):
        effective = bits - (signed and activations)
        points = 2 ** max(effective - 1, 0)
        if points < 2:
            clip = magnitudes.best_clip(n)
        elif effective >= HAQ_SEARCH_BELOW or points + 1 > cumulative.size:
            clip = magnitudes.max
        else:
            clip = _haq_threshold(cumulative, width, points)
        if activations:
            clip = min(clip, magnitudes.max, HAQ_ACTIVATION_LIMIT)
        clips.append(clip)
    return clips


def _cumulative_histogram(magnitudes: _Magnitudes) -> tuple[Floats, float]:
    bins = int(np.ceil(np.sqrt(magnitudes.size)))
    edges = np.linspace(0.0, magnitudes.max, bins + 1)
    inner = edges[1:-1].astype(magnitudes.sorted.dtype)
    zeros = magnitudes.size - magnitudes.sorted.size
    below = np.append(np.searchsorted(magnitudes.sorted, inner), magnitudes.sorted.size)
    return (below + zeros) / magnitudes.size, magnitudes.max / bins


def _haq_threshold(cumulative: Floats, width: float, points: int) -> float:
    """Compare the cumulative histogram, cut after i bins and resampled, with the whole one."""
    bins = cumulative.size
    cuts = np.arange(points + 1, bins + 1)
    scores = np.empty(cuts.size)
    block = max(1, (1 << 19) // bins)  # bounds the scratch memory
    for start in range(0, cuts.size, block):
        cut = cuts[start : start + block, None]
        # the cut histogram, which is 1 at its last bin, at `points` even positions
        at = np.linspace(0.0, 1.0, points) * (cut - 1)
        left = np.minimum(at.astype(np.int64), cut - 2)
        upper = np.where(left + 1 == cut - 1, 1.0, cumulative[left + 1])
        coarse = cumulative[left] + (at - left) * (upper - cumulative[left])
        # and back at every bin
        bin_ = np.arange(bins)
        at = bin_ * ((points - 1) / (cut - 1))
        left = np.minimum(at.astype(np.int64), points - 2)
        low = np.take_along_axis(coarse, left, 1)
        back = low + (at - left) * (np.take_along_axis(coarse, left + 1, 1) - low)
        image = np.where(bin_ < cut, back, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = (cumulative - image) * np.log2(cumulative / image)
        score[cumulative == image] = 0.0
        scores[start : start + block] = score.sum(axis=1)
    return float((cuts[int(scores.argmin())] + 0.5) * width)
