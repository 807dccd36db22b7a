"""From a name to a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from haq_env.data.dataset import Dataset
from haq_env.errors import InputError, unknown_name
from haq_env.imports import import_address
from haq_env.registry import Registry

DATASETS: Registry[Callable[..., Dataset]] = Registry(
    "data set",
    {
        "digits": "haq_env.data.handwritten:digits",
        "cifar10": "haq_env.data.cifar:cifar10",
        "imagefolder": "haq_env.data.folders:imagefolder",
        "imagenet": "haq_env.data.folders:imagenet",
    },
)


def load_dataset(dataset: str | Dataset, **options: Any) -> Dataset:
    """Return a data set.

    Args:
        dataset: a name in `DATASETS`, for some of them with a path, such as ``"cifar10:FOLDER"``;
            ``"package.module:factory"``, where the factory returns a `Dataset`; or a `Dataset`,
            returned as it is.
        **options: keyword arguments of the named loader.

    Raises:
        InputError: unknown name, no such option, or what it names is no data set.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if not isinstance(dataset, str):
        what = "a function: call it first" if callable(dataset) else type(dataset).__name__
        raise InputError(f"dataset must be a name or a haq_env.data.Dataset, not {what}.")
    name, colon, root = dataset.partition(":")
    named = name in DATASETS
    factory = DATASETS[name] if named or not colon else import_address("data set", dataset)
    asked = callable(factory) and (named or options)
    known = dict(inspect.signature(factory).parameters) if asked else {}
    if named and colon:
        if "root" not in known:
            raise InputError(f"data set {name!r} has no folder: write {name!r} alone.")
        options = {"root": root, **options}
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for option in options:
        if option not in known and not anything:
            what = name if named else dataset
            raise unknown_name(f"option of data set {what!r}:", option, known)
    loaded = _called(dataset, factory, options, named) if callable(factory) else factory
    if not isinstance(loaded, Dataset):
        raise InputError(f"data set {dataset!r} is {type(loaded).__name__}, not a Dataset.")
    return loaded


def _called(name: str, factory: Callable[..., Any], options: dict[str, Any], named: bool) -> Any:
    try:
        return factory(**options)
    except Exception as error:
        if named or isinstance(error, InputError):
            raise
        raise InputError(
            f"data set {name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def dataset_argument(dataset: str) -> str:
    """Return a data set's name as a command takes it, with FOLDER for a place on this machine."""
    name, colon, _ = dataset.partition(":")
    return f"{name}:FOLDER" if colon and name in DATASETS else dataset


def dataset_name(dataset: str | Dataset) -> str:
    """Return what a data set is called, without the path that it is read from."""
    if not isinstance(dataset, str):
        return load_dataset(dataset).name
    name = dataset.partition(":")[0]
    return name if name in DATASETS else dataset
