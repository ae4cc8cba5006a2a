"""Which options change nothing of what a run computes. Needs the standard library only, for reporting, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options that may differ between the parts of a run, since they change nothing of what it computes: where files lie,
# how fast they are read, on which device, what is reported. The one list of them: resume, output folders and tables.
FREE_OPTIONS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_MB",
    "DATALOADER.DEVICE_TRANSFORM",
    "DATALOADER.TEST.BATCH_SIZE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.CUDA_GRAPH",
    "TRAIN.TRACKERS",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "FEATURES.REUSE",
    "FEATURES.FOLDER",
    "FEATURES.MAX_GIB",
)
# But an option matters where another one has a certain value: BMIP's official gate reads all images of a test batch.
NOT_FREE_WITH = {"DATALOADER.TEST.BATCH_SIZE": ("TRAINER.BMIP.GATE", "official")}


def is_free(option: str, config: Mapping[str, Any]) -> bool:
    """Return whether an option may differ between the parts of a run; its config holds values, or their `repr`."""
    other, value = NOT_FREE_WITH.get(option, ("", None))
    return option in FREE_OPTIONS and not (other and config.get(other) in (value, repr(value)))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of a config under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
