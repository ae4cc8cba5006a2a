"""Text features of hand-written prompts: zero-shot classifiers, and the frozen teachers of regularised methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from prompting.layout import clean_name, layout_from_texts
from prompting.precision import Precision
from prompting.text import TextEncoder


@torch.no_grad()
def template_features(
    encoder: TextEncoder, classnames: Sequence[str], templates: Sequence[str], precision: Precision
) -> Tensor:
    """Frozen text features of every template and class.

    Args:
        encoder: CLIP's text tower.
        classnames: underscores are spaces.
        templates: each with one "{}" for the class name.
        precision: how the tower computes.

    Returns:
        (n_templates, n_cls, embed_dim), float32, not normalised.
    """
    names = [clean_name(name) for name in classnames]
    features = [sentence_features(encoder, [t.format(name) for name in names], names, precision) for t in templates]
    return torch.stack(features)


@torch.no_grad()
def sentence_features(
    encoder: TextEncoder, sentences: Sequence[str], classnames: Sequence[str], precision: Precision
) -> Tensor:
    """Frozen text features of ready sentences, one per class name (named in errors); (n, embed_dim), float32."""
    layout = layout_from_texts(sentences, classnames, encoder.context_length)
    with precision.autocast(encoder.positional_embedding.device):
        return encoder(layout).float()


def ensemble(features: Tensor, normalise_each: bool = True) -> Tensor:
    """One normalised feature per class from several templates'.

    Args:
        features: (n_templates, n_cls, embed_dim).
        normalise_each: before the mean, as OpenAI's ensembles do; PromptSRC's teacher does not.

    Returns:
        (n_cls, embed_dim).
    """
    if normalise_each:
        features = F.normalize(features, dim=-1)
    return F.normalize(features.mean(0), dim=-1)
