"""Hand-written prompts: one template per data set, and OpenAI's ensembles for ImageNet.

Templates as published with CoOp (https://github.com/KaiyangZhou/CoOp) and CLIP (https://github.com/openai/CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from prompting.tokens import check_template

DATASET_TEMPLATES = {
    "Caltech101": "a photo of a {}.",
    "DescribableTextures": "{} texture.",
    "Digits": "a photo of the {}.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "ImageNet": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetV2": "a photo of a {}.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.",
    "SUN397": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
}

# OpenAI's 80 ImageNet templates (Radford et al., 2021).
IMAGENET_TEMPLATES = (
    *("a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}."),
    *("a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}."),
    *("a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}."),
    *("a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}."),
    *("a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}."),
    *("a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}."),
    *("a painting of a {}.", "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}."),
    *("a cropped photo of a {}.", "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}."),
    *("a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}."),
    *("a {} in a video game.", "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}."),
    *("a photo of a {}.", "the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}."),
    *("a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}."),
    *("a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}."),
    *("a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}."),
    *("a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}."),
    *("a good photo of a {}.", "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}."),
    *("a photo of the weird {}.", "the cartoon {}.", "art of the {}.", "a drawing of the {}."),
    *("a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}."),
    *("itap of a {}.", "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}."),
    *("a photo of a small {}.", "a tattoo of the {}."),
)
# PromptSRC averages the first 60 of them (Khattak et al., ICCV 2023).
PROMPTSRC_TEMPLATES = IMAGENET_TEMPLATES[:60]
# The seven that OpenAI found to do best together.
IMAGENET_TEMPLATES_SELECT = (
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
)


def template_of(cfg: CfgNode, dataset: Any, published: Mapping[str, str] = DATASET_TEMPLATES) -> str:
    """The prompt template: ``DATASET.TEMPLATE``, else the published one, else the data set's own, else a default.

    Args:
        published: by data set; a method that has some of its own lays them over zero-shot CLIP's.

    Raises:
        ValueError: for a template without exactly one "{}".
    """
    if configured := getattr(cfg.DATASET, "TEMPLATE", ""):
        return check_template(configured, "DATASET.TEMPLATE")
    known = published.get(cfg.DATASET.NAME)
    return check_template(known or getattr(dataset, "template", "") or "a photo of a {}.")
