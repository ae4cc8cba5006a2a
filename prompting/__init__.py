"""Frozen CLIP towers that take prompts, fast and exact. Knows torch and CLIP; nothing of Dassl or of configs."""

import warnings

with warnings.catch_warnings():
    # clip imports pkg_resources, which announces its end; requirements.txt keeps a setuptools that has it.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    import clip  # noqa: F401

from prompting.architecture import BackboneError
from prompting.backbone import load_clip
from prompting.layout import PromptLayout, layout_from_texts, layout_with_context
from prompting.learner import PromptLearner, TowerSizes
from prompting.model import Output, PromptedCLIP
from prompting.precision import PRECISIONS, Precision, resolve_precision
from prompting.prompts import AttentionMass, GatedPrompt, Prompts, TextPrompts, VisionPrompts

__all__ = [
    "PRECISIONS",
    "AttentionMass",
    "BackboneError",
    "GatedPrompt",
    "Output",
    "Precision",
    "PromptLayout",
    "PromptLearner",
    "PromptedCLIP",
    "Prompts",
    "TextPrompts",
    "TowerSizes",
    "VisionPrompts",
    "layout_from_texts",
    "layout_with_context",
    "load_clip",
    "resolve_precision",
]
