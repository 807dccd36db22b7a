"""Image sets: the built-in ones by name, and the user's own."""

from haq_env.data.dataset import Dataset
from haq_env.data.handwritten import digits
from haq_env.data.loading import DATASETS, dataset_argument, dataset_name, load_dataset
from haq_env.data.splits import Split

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "dataset_argument",
    "dataset_name",
    "digits",
    "load_dataset",
]
