"""Images that are in two splits: what was learned or chosen with them is measured too well."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haq_env.data.dataset import Dataset
    from haq_env.data.splits import Split

_SHARE = 0.01  # of a split: real sets have some images twice, CIFAR-10 a handful


def warn_of_overlap(data: Dataset) -> None:
    """Warn where more than a hundredth of a split's images are in an earlier split, too."""
    known = {part: _digests(getattr(data, part)) for part in ("train", "val", "test")}
    for earlier, later in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = len(known[earlier] & known[later])
        if shared > _SHARE * len(known[later]):
            warnings.warn(
                f"data set {data.name!r}: {shared:,} of {len(known[later]):,} {later} images are "
                f"{earlier} images, too, so {later} accuracies are not those of unseen images.",
                RuntimeWarning,
                stacklevel=3,  # whoever called Dataset.of
            )


def _digests(split: Split) -> set[bytes]:
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images}
