"""Data sets: their registry, the base class, and the record of one image."""

from .base_dataset import DATASET_REGISTRY, DatasetBase, Datum, EmptySplitError, build_dataset

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "EmptySplitError", "build_dataset"]
