"""Data sets: their registry, the base class, and the record of one image."""

from .build import DATASET_REGISTRY, build_dataset  # isort: skip
from .base_dataset import DatasetBase, Datum, EmptySplitError

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "EmptySplitError", "build_dataset"]
