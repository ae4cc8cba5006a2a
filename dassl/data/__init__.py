"""Data: from a registered data set to loaders of batches."""

from .data_manager import DataManager, DatasetWrapper, build_data_loader
from .stored_features import StoredFeatureLoader

__all__ = ["DataManager", "DatasetWrapper", "StoredFeatureLoader", "build_data_loader"]
