"""Few-shot data sets, one per file, found by scanning this folder.

Importing the package imports every module in it, so a file with a registered `DatasetBase` subclass that is dropped
here can be named in `DATASET.NAME` at once.
"""

import importlib
import pkgutil

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
