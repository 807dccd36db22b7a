"""Pictures of an episode: a line of text, or an image drawn with numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits

BAR = 20  # characters of a budget that is used up exactly

LEVEL = 14  # pixels of one bit
MARGIN = 8
COST_BAR = 24
WHITE = 255
AXIS = (64, 64, 64)
# Okabe-Ito colours: told apart with every kind of colour blindness.
WEIGHTS, WEIGHTS_OPEN = (0, 114, 178), (190, 217, 233)
ACTIVATIONS, ACTIVATIONS_OPEN = (230, 159, 0), (249, 228, 184)
INSIDE, OVER, TRACK = (0, 158, 115), (213, 94, 0), (232, 232, 232)

Image = NDArray[np.uint8]


def ansi(bits: Bits, decided: NDArray[np.bool_], cost: float) -> str:
    """Write an episode as one line.

    For example ``w 8..8  a 8..8  [########            ] 40 % of the budget``.

    Args:
        bits: int64 [L, 2], weight and activation bits.
        decided: bool [L, 2]; a dot stands where a width is still open.
        cost: share of the budget that the bits use; above 1 is over. An arrow at the bar's end
            means that it would be longer.
    """
    sides = []
    for name, side in (("w", WEIGHT), ("a", ACTIVATION)):
        pairs = zip(bits[:, side], decided[:, side], strict=True)
        sides.append(f"{name} {''.join(str(int(b)) if done else '.' for b, done in pairs)}")
    filled = min(max(round(cost * BAR), 0), BAR)
    bar = "#" * filled + " " * (BAR - filled) + (">" if cost > 1 else "]")
    return f"{'  '.join(sides)}  [{bar} {100 * cost:.0f} % of the budget"


def rgb_array(bits: Bits, decided: NDArray[np.bool_], cost: float) -> Image:
    """Draw an episode.

    Each layer has two bars, weights upwards and activations downwards, as high as they have bits;
    pale where they are not decided yet. The bar below is the cost: the line in its middle is the
    budget.

    Args:
        bits: int64 [L, 2], weight and activation bits.
        decided: bool [L, 2].
        cost: share of the budget that the bits use; above 1 is over. The bar ends at 2.

    Returns:
        A fresh uint8 [H, W, 3]; its size depends on the number of layers alone. Both sides are
        multiples of 16, as video encoders want them.
    """
    count = len(bits)
    column = int(np.clip(640 // count, 4, 24))  # pixels of a layer, one or more of them a gap
    width = _multiple_of_16(count * column + 2 * MARGIN)
    bars = 2 * MAX_BITS * LEVEL + 2
    height = _multiple_of_16(bars + COST_BAR + 3 * MARGIN)
    image = np.full((height, width, 3), WHITE, dtype=np.uint8)
    left = (width - count * column) // 2
    area = image[MARGIN : MARGIN + bars, left : left + count * column]
    area[: MAX_BITS * LEVEL] = _bars(
        bits[:, WEIGHT], decided[:, WEIGHT], (WEIGHTS, WEIGHTS_OPEN), column
    )[::-1]
    area[MAX_BITS * LEVEL + 2 :] = _bars(
        bits[:, ACTIVATION], decided[:, ACTIVATION], (ACTIVATIONS, ACTIVATIONS_OPEN), column
    )
    area[MAX_BITS * LEVEL : MAX_BITS * LEVEL + 2] = AXIS
    top = 2 * MARGIN + bars
    _draw_cost(image[top : top + COST_BAR, left : left + count * column], cost)
    return image


def _bars(
    bits: NDArray[np.int64],
    decided: NDArray[np.bool_],
    colours: tuple[tuple[int, int, int], tuple[int, int, int]],
    column: int,
) -> Image:
    """Draw the bars of one side, growing downwards: uint8 [8 * LEVEL, L * column, 3]."""
    cells = np.arange(MAX_BITS)[:, None] < bits[None, :]
    palette = np.array([(WHITE, WHITE, WHITE), *colours], dtype=np.uint8)
    index = np.where(cells, np.where(decided, 1, 2)[None, :], 0)
    rows = palette[index].repeat(column, axis=1)
    # Gaps between layers tell bars apart, gaps between bits make them countable.
    rows[:, column - 1 :: column] = WHITE
    image = rows.repeat(LEVEL, axis=0)
    image[LEVEL - 1 :: LEVEL] = WHITE
    return image


def _draw_cost(area: Image, cost: float) -> None:
    width = area.shape[1]
    area[:] = TRACK
    filled = round(min(max(cost, 0.0), 2.0) / 2 * width)
    area[:, :filled] = OVER if cost > 1 else INSIDE
    area[:, width // 2 - 1 : width // 2 + 1] = AXIS


def _multiple_of_16(pixels: int) -> int:
    return -(-pixels // 16) * 16
