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
# The nodes of TRAINER that a method reads: other methods' nodes change nothing of its runs. A trainer that is not here,
# such as a fork's, may read them all.
TRAINER_NODES = {
    name: (name.upper(),)
    for name in (
        *("BMIP", "CoCoOp", "CoOp", "CoPrompt", "HiCroPL", "IVLP", "KgCoOp", "MMA", "MMRL", "MMRLpp", "MaPLe", "ProDA"),
        *("CLIP_LoRA", "LayerNormTuning", "TwoStage", "TaskRes", "CLIP_Adapter", "TipAdapter", "LinearProbe", "CLAP"),
        *("ProGrad", "PromptKD", "PromptSRC", "TCP", "VPT", "LPPlusPlus"),
    )
} | {
    "CoOp_DePT": ("COOP", "DEPT"),
    "TipAdapterF": ("TIPADAPTER",),
    "PromptSRC_DePT": ("PROMPTSRC", "DEPT"),
    "CoPrompt_BMIP": ("COPROMPT", "BMIP"),
    "MaPLe_BMIP": ("MAPLE", "BMIP"),
    "PromptSRC_BMIP": ("PROMPTSRC", "BMIP"),
    "ZeroshotCLIP": ("ZEROSHOTCLIP",),
    "ZeroshotCLIP2": ("ZEROSHOTCLIP",),
}


def is_free(option: str, config: Mapping[str, Any]) -> bool:
    """Return whether an option may differ between the parts of a run, or between runs of one row of a table.

    `config` is the run's, by dotted names; values, or their `repr`.
    """
    node = option.split(".")[1] if option.startswith("TRAINER.") and option.count(".") > 1 else ""
    nodes = TRAINER_NODES.get(str(config.get("TRAINER.NAME", "")).strip("'\""), (node,))
    if node and node not in nodes:
        return True
    if option.startswith("TPT."):  # of test-time prompt tuning
        return not str(config.get("TEST.ADAPTATION", "")).strip("'\"")
    other, value = NOT_FREE_WITH.get(option, ("", None))
    return option in FREE_OPTIONS and not (other and config.get(other) in (value, repr(value)))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of a config under their dotted names; an empty section stays as itself."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        is_section = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat
