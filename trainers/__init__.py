"""Prompt-learning methods, one per file, each registered in Dassl's TRAINER_REGISTRY under its published name.

Importing this package imports every module in the folder, so a file dropped in here is found without a list to edit.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from trainers.predictor import load_run  # noqa: E402  after the scan, which registers every method

__all__ = ["load_run"]
