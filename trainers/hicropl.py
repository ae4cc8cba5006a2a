"""HiCroPL: prompts of both towers; in early layers the text's are mapped into the image's, in late ones the reverse.

Zheng et al., "Hierarchical Cross-modal Prompt Learning for Vision-Language Models", ICCV 2025,
https://arxiv.org/abs/2507.14976

A mapper attends from the image prompts of all early layers to one proxy per layer, pooled by attention from the layer's
text prompts; in late layers from the text to the image. Features are joined with the frozen model's: to classify
an image takes a second pass through the image tower, and every class needs sentences, new classes too.

``TRAINER.HICROPL.READING paper`` trains prompts, proxies, poolings and mappers through what they compute. ``official``
is what the released code computes: every forward pass writes the mapped prompts over the prompts, out of autograd's
sight. So the gradient reaches the prompts as if there was no mapper, everything else keeps its random start, and the
prompts go through the mappers at every step. There evaluation writes, too: logits differ from call to call. Here it is
always the first call after training; :meth:`HiCroPLLearner.overwrite` leads to the next.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from clip.model import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptedCLIP, PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.descriptions import sentences_by_class
from prompting.learner import context_parameter, linear_layer, normal_parameter
from prompting.model import frozen_image_features
from prompting.tokens import clean_name
from trainers.base import WEIGHT, Between, PromptTrainer, add_trainer_config, check_depth
from trainers.objectives import Loss
from trainers.templates import PROMPTSRC_TEMPLATES

READINGS = ("paper", "official")
HEADS = 8  # of poolings and mappers

add_trainer_config(
    "HICROPL",
    ranges={"CROSS_LAYER": (0, 1000), "LAMBD": WEIGHT, "READING": READINGS},
    N_CTX=16,  # tokens per layer and tower
    CTX_INIT="a photo of a",  # words of the text prompt, for as many tokens at most; the first N_CTX are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH=12,  # layers that are prompted
    CROSS_LAYER=6,  # layers from the first whose image prompts get the text's; in the others text prompts the image's
    LAMBD=12.0,  # weight of the consistency
    READING="paper",  # paper, official
    SENTENCES="",  # JSON file {class name: [sentences]} written by a language model; "": templates instead
)


def attention(width: int, generator: torch.Generator | None = None) -> nn.MultiheadAttention:
    """Multi-head attention as PyTorch starts it, drawn with a local generator."""
    layer = nn.utils.skip_init(nn.MultiheadAttention, width, HEADS)
    nn.init.xavier_uniform_(layer.in_proj_weight, generator=generator)
    nn.init.uniform_(layer.out_proj.weight, -(width**-0.5), width**-0.5, generator)
    nn.init.zeros_(layer.in_proj_bias)
    nn.init.zeros_(layer.out_proj.bias)
    return layer


class Pooling(nn.Module):
    """A layer's knowledge proxy: one token that attends to the layer's prompts."""

    def __init__(self, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.attn = attention(width, generator)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, proxy: Tensor, prompts: Tensor) -> Tensor:
        """Of (1, width) and (n_ctx, width), (1, width)."""
        keys = self.ln_1(prompts)
        return self.ln_2(proxy + self.attn(self.ln_1(proxy), keys, keys, need_weights=False)[0])


class Mapper(nn.Module):
    """Prompts of one tower that attend to the other tower's proxies, then an MLP."""

    def __init__(self, width: int, width_from: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.attn = attention(width, generator)
        self.linear_q = linear_layer(width, width, generator)
        self.linear_k = linear_layer(width_from, width, generator)
        self.linear_v = linear_layer(width_from, width, generator)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            OrderedDict(
                c_fc=linear_layer(width, 4 * width, generator),
                gelu=QuickGELU(),
                c_proj=linear_layer(4 * width, width, generator),
            )
        )

    def forward(self, prompts: Tensor, proxies: Tensor) -> Tensor:
        """Of (n, width) and (layers, width_from), (n, width)."""
        x = self.linear_q(prompts)
        keys, values = self.ln_1(self.linear_k(proxies)), self.ln_1(self.linear_v(proxies))
        x = x + self.attn(self.ln_1(x), keys, values, need_weights=False)[0]
        return x + self.ffn(self.ln_2(x))


class HiCroPLLearner(PromptLearner):
    """Prompts for the same layers of both towers, the early and the late ones mapped across.

    Args:
        clip_model: gives widths and the embeddings of ``words``.
        n_ctx: tokens per layer and tower.
        words: the text prompt in words; its first ``n_ctx`` tokens are learned. Random start where they do not suffice.
        depth: prompted layers, at least 2.
        cross_layer: how many of them, from the first, map text into the image; from 1 to ``depth`` - 1.
        official: the released code's arithmetic in place of the paper's.
        sentences: JSON file {class name: [sentences]}; "": templates.
        generator: draws the initial values.
    """

    joins_frozen_features = True

    def __init__(
        self,
        clip_model: nn.Module,
        n_ctx: int,
        words: str,
        depth: int,
        cross_layer: int,
        official: bool = False,
        sentences: str = "",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        words = words if n_ctx <= len(words.split()) else ""
        super().__init__(sizes, n_ctx, words)
        self.cross_layer, self.official, self.sentences = cross_layer, official, sentences
        text, vision = sizes.text_width, sizes.vision_width
        self.ctx = context_parameter(clip_model, n_ctx, words, generator)
        self.text_prompts = nn.ParameterList(
            normal_parameter(n_ctx, text, generator=generator) for _ in range(1, depth)
        )
        # As released, the image's prompts and the poolings have the same start at all layers. So have proxies there:
        # then all that is pooled is the same, and the mapper's keys have no gradient in the first step.
        self.vision_tokens = normal_parameter(n_ctx, vision, generator=generator)
        self.vision_prompts = nn.ParameterList(copy.deepcopy(self.vision_tokens) for _ in range(1, depth))
        self.text_to_vision, self.vision_to_text = Mapper(vision, text, generator), Mapper(text, vision, generator)
        for tower, width, count in (("text", text, cross_layer), ("vision", vision, depth - cross_layer)):
            pooling, proxies = Pooling(width, generator), torch.empty(count, 1, width).normal_(generator=generator)
            if official:
                proxies = proxies[:1].expand(count, -1, -1)
            setattr(self, f"{tower}_pooling", nn.ModuleList(copy.deepcopy(pooling) for _ in range(count)))
            setattr(self, f"{tower}_proxies", nn.ParameterList(nn.Parameter(proxy.clone()) for proxy in proxies))
        if official:  # nothing but prompts ever gets a gradient
            own = {id(prompt) for prompt in self.text_layers + self.vision_layers}
            for parameter in self.parameters():
                parameter.requires_grad_(id(parameter) in own)

    @property
    def text_layers(self) -> list[nn.Parameter]:
        """The text prompts of every layer before they are mapped, (n_ctx, text_width)."""
        return [self.ctx, *self.text_prompts]

    @property
    def vision_layers(self) -> list[nn.Parameter]:
        """The image prompts of every layer before they are mapped, (n_ctx, vision_width)."""
        return [self.vision_tokens, *self.vision_prompts]

    def class_sentences(self, classnames: Sequence[str]) -> list[list[str]]:
        if self.sentences:
            return sentences_by_class(self.sentences, classnames, "TRAINER.HICROPL.SENTENCES")
        return [[template.format(clean_name(name)) for template in PROMPTSRC_TEMPLATES] for name in classnames]

    def mapped(self) -> tuple[list[Tensor], list[Tensor]]:
        """Text and image prompts of every layer as they enter the towers."""
        text, vision, k = self.text_layers, self.vision_layers, self.cross_layer
        pooled = zip(self.text_pooling, self.text_proxies, text[:k], strict=True)
        proxies = torch.cat([pooling(proxy, prompts) for pooling, proxy, prompts in pooled])
        early_vision = self.text_to_vision(torch.cat(vision[:k]), proxies).split(self.n_ctx)
        pooled = zip(self.vision_pooling, self.vision_proxies, vision[k:], strict=True)
        proxies = torch.cat([pooling(proxy, prompts) for pooling, proxy, prompts in pooled])
        late_text = self.vision_to_text(torch.cat(text[k:]), proxies).split(self.n_ctx)
        return [*text[:k], *late_text], [*early_vision, *vision[k:]]

    def forward(self) -> Prompts:
        text, vision = self.mapped()
        if self.official:  # the mapped values, with a gradient as if they were the prompts themselves
            text, vision = (
                [value.detach() + (prompt - prompt.detach()) for value, prompt in zip(values, own, strict=True)]
                for values, own in ((text, self.text_layers), (vision, self.vision_layers))
            )
        return Prompts(
            TextPrompts(text[0], dict(enumerate(text[1:], start=1))),
            VisionPrompts(vision[0], dict(enumerate(vision[1:], start=1))),
        )

    @torch.no_grad()
    def overwrite(self) -> None:
        """Write the mapped prompts over the prompts, as the released code's forward pass does."""
        text, vision = self.mapped()
        for own, value in zip(self.text_layers + self.vision_layers, text + vision, strict=True):
            own.copy_(value)


class ConsistentWithFrozen:
    """Cross-entropy, and both towers' joined features held close to the frozen model's.

    ``CE + weight * (1 - mean cos(text, frozen text) + 1 - mean cos(image, frozen image))``.

    Args:
        teacher: normalised frozen text features of the classes' sentences, (n_cls, embed_dim).
        weight: of the consistency.
        official: write the mapped prompts over the prompts at every step; then no two steps are the same operations on
            the same values, and they cannot be recorded.
    """

    def __init__(self, teacher: Tensor, weight: float, official: bool = False) -> None:
        self.teacher, self.weight, self.official, self.recordable = teacher, weight, official, not official

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        frozen, prompts = frozen_image_features(model, images), model.prompts()
        output = model.compare(model.image_features(images, prompts, frozen), model.text_features(prompts))
        if self.official:
            model.prompt_learner.overwrite()
        cross_entropy = F.cross_entropy(output.logits, labels)
        text = 1 - F.cosine_similarity(output.text_features, self.teacher, dim=-1).mean()
        image = 1 - F.cosine_similarity(output.image_features, frozen, dim=-1).mean()
        terms = {"loss_ce": cross_entropy, "loss_text": text, "loss_image": image}
        return Loss(cross_entropy + self.weight * (text + image), output, terms)


@TRAINER_REGISTRY.register()
class HiCroPL(PromptTrainer):
    """Hierarchical cross-modal prompt learning."""

    node = "HICROPL"
    search_space = {"TRAINER.HICROPL.LAMBD": Between(1.0, 50.0)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> HiCroPLLearner:
        s, sizes = self.settings, TowerSizes.of(clip_model)
        most = min(sizes.text_layers, sizes.vision_layers)
        check_depth("TRAINER.HICROPL.PROMPT_DEPTH", s.PROMPT_DEPTH, 2, most)
        if not 1 <= s.CROSS_LAYER < s.PROMPT_DEPTH:
            raise ValueError(
                f"TRAINER.HICROPL.CROSS_LAYER is {s.CROSS_LAYER}: of the {s.PROMPT_DEPTH} prompted layers, 1 to "
                f"{s.PROMPT_DEPTH - 1} can map text into the image, so that at least one maps back; set it to "
                f"{s.PROMPT_DEPTH // 2}"
            )
        learner = HiCroPLLearner(
            *(clip_model, s.N_CTX, s.CTX_INIT, s.PROMPT_DEPTH, s.CROSS_LAYER),
            *(s.READING == "official", s.SENTENCES, generator),
        )
        source = f"sentences from {Path(s.SENTENCES).name}"
        if not s.SENTENCES:
            source = f"{len(PROMPTSRC_TEMPLATES)} templates (TRAINER.HICROPL.SENTENCES is empty)"
        print(f"HiCroPL: text of the frozen model: {source}")
        self.notes["consistency_text"] = source
        return learner

    def build_objective(self, clip_model: nn.Module) -> ConsistentWithFrozen:
        s = self.settings
        return ConsistentWithFrozen(self.model.class_features(), s.LAMBD, s.READING == "official")
