"""Whether a network, its weights and a data set go together."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from haq_env.data import Dataset
from haq_env.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from haq_env.evaluation.bench import Subject


def check_fits(module: nn.Module, data: Dataset, image: Tensor) -> None:
    """See that the network takes the images and has an output for every class.

    Args:
        module: the network.
        data: the data set.
        image: one of its images as the network sees it, float [1, C, H, W].

    Raises:
        InputError: it does not.
    """
    import torch

    from haq_env.networks.modes import evaluation_mode

    try:
        with torch.no_grad(), evaluation_mode(module):
            logits = module(image)
    except RuntimeError as error:
        raise InputError(
            f"the network cannot be run on images {list(data.input_shape)} of data set "
            f"{data.name!r}: {first_line(error)}"
        ) from error
    if not data.shows_all_classes and torch.is_tensor(logits) and logits.shape[-1] != data.classes:
        raise InputError(
            f"the network has {logits.shape[-1]} outputs, and data set {data.name!r} "
            f"{data.classes} classes: labels are places among its folders, so those of all classes "
            "must be there."
        )
    if not torch.is_tensor(logits) or logits.ndim != 2 or logits.shape[1] < data.classes:
        found = list(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise InputError(
            f"the network must answer [1, classes] logits for an image; data set {data.name!r} "
            f"has {data.classes} classes, but the answer is {found}."
        )
    if logits.shape[1] > data.classes:
        warnings.warn(
            f"the network has {logits.shape[1]} outputs, and data set {data.name!r} has "
            f"{data.classes} classes: label k must mean output k.",
            RuntimeWarning,
            stacklevel=2,
        )


def warn_of_batches(module: nn.Module) -> None:
    """Warn where what an image gets depends on the others of its batch, in evaluation as well."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for path, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            warnings.warn(
                f"{path!r} keeps no running statistics, so answers depend on how images are put "
                "into batches, and tables of gradients (fit, hawq) are those of another function: "
                "train it with track_running_stats=True.",
                RuntimeWarning,
                stacklevel=2,
            )
            return


def check_weights(subject: Subject, data: Dataset) -> None:
    """See that weights are for these classes, and that none of the held-out images trained them.

    Args:
        subject: the network and where its weights come from.
        data: the data set that was loaded for it.

    Raises:
        InputError: they are not.
    """
    classes = dict(subject.build).get("classes", data.classes)
    if classes != data.classes:
        raise InputError(
            f"{subject.checkpoint} is for {classes} classes, and data set {data.name!r} has "
            f"{data.classes}."
        )
    if subject.checkpoint is None:
        return
    from haq_env.networks.checkpoint import read_metadata

    about = read_metadata(subject.checkpoint)
    trained, used = about.get("images", {}), dict(data.about)
    classes_known = "classes" in trained and "classes" in used and data.shows_all_classes
    if classes_known and trained["classes"] != used["classes"]:
        raise InputError(
            f"{subject.checkpoint} is for the classes {', '.join(trained['classes'])[:80]}, and "
            f"data set {data.name!r} has {', '.join(used['classes'])[:80]}."
        )
    same = str(about.get("dataset")).partition(":")[0] == data.name.partition(":")[0]
    if not same or "sha256" not in trained or "sha256" not in used:
        return
    folder = ":" in data.name  # another one may be what is wanted; a known set is always the same
    for name in ("seed", "counts"):
        if trained.get(name) != used.get(name) and not folder:
            raise InputError(
                f"{subject.checkpoint} was trained on another split of data set {data.name!r} "
                f"({name} {trained.get(name)}, now {used.get(name)}): images that it has learned "
                "would be held out. Load the data set as it was, or train it again."
            )
    # of other encodings of its images that hold the same ones out
    known = {trained["sha256"]["val"], *trained.get("held_out_alike", {}).values()}
    if used["sha256"]["val"] not in known:
        warnings.warn(
            f"{subject.checkpoint} was trained on other files of data set {data.name!r} than "
            "these: images that it has learned may be among the held-out ones.",
            RuntimeWarning,
            stacklevel=2,
        )
