"""Frozen CLIP towers that take prompts, fast and exact. Knows torch and CLIP; nothing of Dassl or of configs.

What it offers is imported when it is asked for: the ``clip`` package brings torchvision, which takes seconds and 150
MiB that looking at a checkpoint does not need.
"""

import importlib
import warnings
from typing import Any

# clip imports pkg_resources, which announces its end; requirements.txt keeps a setuptools that has it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

_MODULES = {
    "learner": ("PromptLearner", "TowerSizes"),
    "model": ("Output", "PRECISIONS", "Precision", "PromptedCLIP", "resolve_precision"),
    "prompts": (
        *("AttentionMass", "ClassPrompt", "ComposedPrompt", "GatedPrompt"),
        *("Prompts", "TextPrompts", "VisionPrompts"),
    ),
    "tokens": ("PromptLayout", "layout_from_texts", "layout_with_context"),
    "weights": ("BackboneError", "load_clip"),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(f"prompting.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
