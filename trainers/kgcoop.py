"""KgCoOp: CoOp held close to hand-written prompts.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023,
https://arxiv.org/abs/2303.13283
"""

from __future__ import annotations

from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting.descriptions import sentences_by_class
from prompting.model import described_features, ensemble, template_features
from prompting.tokens import CLASS_TOKEN_POSITIONS
from prompting.towers.text import TextEncoder
from trainers.base import WEIGHT, Between, add_trainer_config
from trainers.coop import CoOp
from trainers.objectives import KnowledgeGuided
from trainers.templates import DATASET_TEMPLATES, template_of

add_trainer_config(
    "KGCOOP",
    ranges={"CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITIONS, "W": WEIGHT},
    N_CTX=4,  # number of context vectors, when CTX_INIT is empty
    CSC=False,  # class-specific context
    CTX_INIT="a photo of a",  # words to start from
    PREC="fp16",  # fp32, fp16, bf16, amp
    CLASS_TOKEN_POSITION="end",  # end, middle, front
    W=8.0,  # weight of the distance to the hand-written prompts' features
    SENTENCES="",  # JSON file {class name: [sentences]} by a language model, in place of the hand-written prompts
)

# The published code's teacher differs from zero-shot CLIP's template on one data set.
TEACHER_TEMPLATES = DATASET_TEMPLATES | {"DescribableTextures": "a photo of a {}, a type of texture."}


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Knowledge-guided context optimization: CoOp's prompts; cross-entropy and a distance to zero-shot CLIP."""

    node = "KGCOOP"
    search_space = {"TRAINER.KGCOOP.W": Between(1.0, 32.0)}

    def build_objective(self, clip_model: nn.Module) -> KnowledgeGuided:
        encoder, sentences = TextEncoder(clip_model), self.settings.SENTENCES
        if sentences:
            by_class = sentences_by_class(sentences, self.train_classnames, "TRAINER.KGCOOP.SENTENCES")
            teacher = described_features(encoder, by_class, self.train_classnames, self.precision)
        else:
            template = template_of(self.cfg, self.dm.dataset, TEACHER_TEMPLATES)
            teacher = ensemble(template_features(encoder, self.train_classnames, [template], self.precision))
        return KnowledgeGuided(teacher, self.settings.W)
