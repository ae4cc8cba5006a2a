"""Few-shot data sets, found by scanning this folder.

Importing the package imports every module in it, so a file with a registered `DatasetBase` subclass that is dropped
here can be named in `DATASET.NAME` at once. Such files, as those written for CoOp, may import from CoOp's modules
(`from .oxford_pets import OxfordPets`); one that is called as such a module takes the place of our data set.
"""

import importlib
import os
import pkgutil
import sys

from dassl.data.datasets import DATASET_REGISTRY

_COOP_MODULES = {
    "caltech101": "Caltech101",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "fgvc_aircraft": "FGVCAircraft",
    "food101": "Food101",
    "imagenet": "ImageNet",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
    "imagenet_sketch": "ImageNetSketch",
    "imagenetv2": "ImageNetV2",
    "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "sun397": "SUN397",
    "ucf101": "UCF101",
}
_COOP_MODULES |= {  # as Dassl's readers and forks of CoOp call theirs
    "pacs": "PACS",
    "office_home_dg": "OfficeHomeDG",
    "vlcs": "VLCS",
    "domainnet": "DomainNet",
    "resisc45": "RESISC45",
    "ucmerced": "UCMerced",
}
for _module in ("standard", "domains", "remote_sensing"):
    importlib.import_module(f"datasets.{_module}")
for _module, _name in _COOP_MODULES.items():
    if os.path.isfile(os.path.join(__path__[0], f"{_module}.py")):
        DATASET_REGISTRY._obj_map.pop(_name, None)
    elif _name in DATASET_REGISTRY:
        globals()[_module] = sys.modules[DATASET_REGISTRY.get(_name).__module__]
        sys.modules[f"{__name__}.{_module}"] = globals()[_module]

for _found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    if not _found.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_found.name}")
