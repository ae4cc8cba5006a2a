"""CoPrompt: MaPLe's prompts and adapters, held consistent with the frozen model under other text and another view.

Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024,
https://arxiv.org/abs/2306.01195
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLayout, PromptLearner, Prompts
from prompting.descriptions import sentences_by_class
from prompting.learner import linear_layer
from prompting.model import sentence_features, template_features
from prompting.towers.text import TextEncoder
from trainers.base import WEIGHT, Between, add_trainer_config
from trainers.maple import MaPLe
from trainers.objectives import ConsistencyGuided
from trainers.templates import PROMPTSRC_TEMPLATES

DISTANCES = ("cosine", "mse")
IMAGE_ADAPTER_SHARE, TEXT_ADAPTER_SHARE = 0.1, 0.2

add_trainer_config(
    "COPROMPT",
    ranges={"W": WEIGHT, "DISTILL": DISTANCES},
    N_CTX=2,  # tokens per layer and tower
    CTX_INIT="a photo of a",  # words of the text prompt; the first N_CTX of them are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH=9,  # layers that are prompted
    W=8.0,  # weight of the consistency
    DISTILL="cosine",  # cosine, mse
    SENTENCES="",  # JSON file {class name: [sentences]} written by a language model; "": templates instead
)


class Adapter(nn.Module):
    """Bottleneck on features, mixed with its input: ``share * relu(W2 relu(W1 x)) + (1 - share) * x``.

    Args:
        width: of the features.
        share: of the adapted features.
        generator: draws the initial values.
    """

    def __init__(self, width: int, share: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.share = share
        self.down = nn.Parameter(linear_layer(width, width // 4, generator).weight.detach())
        self.up = nn.Parameter(linear_layer(width // 4, width, generator).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        adapted = F.relu(F.linear(F.relu(F.linear(x, self.down)), self.up))
        return self.share * adapted + (1 - self.share) * x


class AdaptedLearner(PromptLearner):
    """Any prompt learner, with an adapter on either tower's features.

    Args:
        prompts: the learner that places the tokens.
        generator: draws the adapters' initial values.
    """

    def __init__(self, prompts: PromptLearner, generator: torch.Generator | None = None) -> None:
        super().__init__(prompts.sizes, prompts.n_ctx, prompts.words)
        self.prompts = prompts
        self.adapter_image = Adapter(prompts.sizes.embed_dim, IMAGE_ADAPTER_SHARE, generator)
        self.adapter_text = Adapter(prompts.sizes.embed_dim, TEXT_ADAPTER_SHARE, generator)

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        return self.prompts.layout(classnames)

    def forward(self) -> Prompts:
        return self.prompts()

    def adapt_text(self, features: Tensor) -> Tensor:
        return self.adapter_text(features)

    def adapt_image(self, features: Tensor) -> Tensor:
        return self.adapter_image(features)

    def gate_values(self) -> dict[str, float]:
        return self.prompts.gate_values()


KEY = "TRAINER.COPROMPT.SENTENCES"


def read_sentences(path: str, classnames: Sequence[str]) -> list[list[str]]:
    """One list per sentence number, with one sentence per class; as many as the class with the fewest has.

    Errors are those of :func:`sentences_by_class`.
    """
    return [list(row) for row in zip(*sentences_by_class(path, classnames, KEY), strict=False)]


@TRAINER_REGISTRY.register()
class CoPrompt(MaPLe):
    """Consistency-guided prompt learning. Needs two augmented views of each image: DATALOADER.K_TRANSFORMS 2."""

    node = "COPROMPT"
    search_space = {"TRAINER.COPROMPT.W": Between(0.1, 10.0)}
    n_views = 2

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> AdaptedLearner:
        return AdaptedLearner(self.build_prompts(clip_model, generator), generator)

    def build_prompts(self, clip_model: nn.Module, generator: torch.Generator) -> PromptLearner:
        """The learner under the adapters; MaPLe's here."""
        return super().build_learner(clip_model, generator)

    def build_objective(self, clip_model: nn.Module) -> ConsistencyGuided:
        s, encoder = self.cfg.TRAINER.COPROMPT, TextEncoder(clip_model)
        if s.SENTENCES:
            rows = read_sentences(s.SENTENCES, self.train_classnames)
            features = [sentence_features(encoder, row, self.train_classnames, self.precision) for row in rows]
            sentences, source = torch.stack(features), f"{len(rows)} sentences per class from {Path(s.SENTENCES).name}"
        else:
            sentences = template_features(encoder, self.train_classnames, PROMPTSRC_TEMPLATES, self.precision)
            source = f"{len(PROMPTSRC_TEMPLATES)} templates (TRAINER.COPROMPT.SENTENCES is empty)"
        print(f"{type(self).__name__}: text of the frozen model: {source}")
        self.notes["consistency_text"] = source
        return ConsistencyGuided(F.normalize(sentences, dim=-1), s.W, s.DISTILL, max(self.cfg.SEED, 0))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        """The two views of the images, and the labels, on the trainer's device."""
        *views, labels = (part.to(self.device, non_blocking=True) for part in (*batch["img"], batch["label"]))
        return views, labels
