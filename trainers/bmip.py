"""BMIP: prompts in both towers at every prompted layer, each mixed with the other tower's, projected.

Lv et al., "BMIP: Bi-directional Modality Interaction Prompt Learning for VLM", IJCAI 2025,
https://doi.org/10.24963/ijcai.2025/655, arXiv 2501.07769.

At layer i (1 <= i < J) each tower has b own prompt tokens P_i and gets the other tower's, projected: F(P_i). How much
of each enters is decided by a gate that reads the layer's attention to the prompt tokens that arrive:

    m_k = stopgrad(mean over heads and query rows of the attention to prompt token k)
    w_k = sigmoid(alpha * a_k + beta)             alpha, beta: scalars per layer and tower
    new prompt_k = w_k * P_i[k] + (1 - w_k) * F(P_i)[k]

By default (``GATE attention``) every image and every class has its own weights, from a_k = m_k * n with n the number of
tokens that the rows attend to, so that uniform attention gives 1. The query rows are an image's CLS and patches, and a
text's [EOT]. As released (``GATE official``) a_k is m_k, averaged over the batch, in the image tower; in the text tower
a_k = 0 (the row is [SOS], which sees only itself), at layers i < J - 1 only.

Layer 0 is MaPLe's: context vectors in the text, and their projection behind the image patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import AttentionMass, GatedPrompt, PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.learner import context_parameter, equal_linear_layers, linear_layer, normal_parameter
from trainers.base import PromptTrainer, add_trainer_config, check_depth

GATES = ("attention", "official")
AGGREGATORS = ("gate", "add", "mean", "joint", "own", "text_to_vision", "vision_to_text")
# The released code starts image prompts that are not shared at U(-v, v), v^2 = 6 / (this + width), for any patch size.
RELEASED_FAN_IN = 3 * 16

add_trainer_config(
    "BMIP",
    ranges={"GATE": GATES, "AGGREGATOR": AGGREGATORS},
    N_CTX=2,  # prompt tokens per layer and tower, b
    CTX_INIT="a photo of a",  # words of the text prompt; the first N_CTX of them are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH=9,  # layers that are prompted, counted from the first, J
    GATE="attention",  # attention: per image and class; official: the released code's arithmetic
    AGGREGATOR="gate",  # how own and foreign prompts meet: gate, add, mean, joint, own, text_to_vision, vision_to_text
    SHARE_PARAMETER_TEXT=True,  # one projection text -> vision for all layers; False: one per layer
    SHARE_PARAMETER_VISUAL=True,  # one projection vision -> text for all layers, image prompts start equal
)


class Gate(nn.Module):
    """Mixing weight of one layer and tower, ``w = sigmoid(alpha * a + beta)``.

    Args:
        reading: "sample": relative attention of every image or class on its own; "batch": raw attention, mean over the
            batch; "constant": no attention is read, ``w = sigmoid(beta)``.
        generator: draws alpha and beta from U(-1, 1).
    """

    def __init__(self, reading: str, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.reading = reading
        if reading != "constant":
            self.alpha = nn.Parameter(torch.empty(()).uniform_(-1, 1, generator=generator))
        self.beta = nn.Parameter(torch.empty(()).uniform_(-1, 1, generator=generator))
        self.last: Tensor | None = None  # weights of the last forward pass; for the log

    def weight(self, attention: AttentionMass | None) -> Tensor:
        """Mixing weights: (n, n_prompts) per sample, (n_prompts,) per batch, () when constant."""
        if self.reading == "constant":
            w = torch.sigmoid(self.beta)
        else:
            a = attention.relative() if self.reading == "sample" else attention.mass.mean(0)
            w = torch.sigmoid(torch.addcmul(self.beta, self.alpha, a))
        self.last = w.detach()
        return w

    def mix(self, own: Tensor, foreign: Tensor) -> Tensor | GatedPrompt:
        """Prompt tokens of the layer: (n_prompts, width), or a rule that makes them from the layer's attention."""
        if self.reading == "constant":
            w = self.weight(None)
            return w * own + (1 - w) * foreign
        return GatedPrompt(self.weight, own, foreign, per_sample=self.reading == "sample")


class BMIPLearner(PromptLearner):
    """BMIP's prompts, projections and gates.

    Args:
        clip_model: gives widths, depths and the embeddings of ``words``.
        n_ctx: tokens per layer and tower, b ("joint" places 2b).
        words: the text prompt in words; its first tokens are learned.
        depth: number of prompted layers, J.
        gate: "attention" or "official"; with the latter, image prompts that do not start equal start as released.
        aggregator: how own and foreign prompts meet; one of ``AGGREGATORS``.
        share_text, share_visual: one projection for all layers, from text to vision and from vision to text.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        n_ctx: int,
        words: str,
        depth: int,
        gate: str = "attention",
        aggregator: str = "gate",
        share_text: bool = True,
        share_visual: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        n_placed = 2 * n_ctx if aggregator == "joint" else n_ctx
        words = words if n_placed <= len(words.split()) else ""  # random start when the words do not suffice
        super().__init__(sizes, n_placed, words)
        self.depth, self.aggregator, self.gate = depth, aggregator, gate
        if aggregator != "vision_to_text":
            self.ctx = context_parameter(clip_model, n_ctx, words, generator)
        self._build_prompts(n_ctx, share_visual, generator)
        self._build_projections(share_text, share_visual, generator)
        if aggregator == "gate":
            self._build_gates(generator)

    @property
    def to_vision(self) -> bool:
        """Whether text prompts go to the image tower."""
        return self.aggregator not in ("own", "vision_to_text")

    @property
    def to_text(self) -> bool:
        """Whether image prompts go to the text tower."""
        return self.aggregator not in ("own", "text_to_vision")

    def _build_prompts(self, n_ctx: int, same_start: bool, generator: torch.Generator | None) -> None:
        """P^t_i and P^v_i of layers 1..J-1; only those that the aggregator uses."""
        text, vision, layers = self.sizes.text_width, self.sizes.vision_width, range(self.depth - 1)
        self.text_prompts = nn.ParameterList()
        self.vision_prompts = nn.ParameterList()
        if self.aggregator != "vision_to_text":
            self.text_prompts.extend(normal_parameter(n_ctx, text, generator=generator) for _ in layers)
        if self.aggregator in ("own", "joint", "vision_to_text"):
            self.vision_ctx = normal_parameter(n_ctx, vision, generator=generator)
        if self.aggregator != "text_to_vision":
            start = normal_parameter(n_ctx, vision, generator=generator)
            for _ in layers:
                if self.gate == "official" and not same_start:
                    bound = (6 / (RELEASED_FAN_IN + vision)) ** 0.5
                    fresh = nn.Parameter(torch.empty(n_ctx, vision).uniform_(-bound, bound, generator=generator))
                else:
                    fresh = normal_parameter(n_ctx, vision, generator=generator)
                self.vision_prompts.append(nn.Parameter(start.detach().clone()) if same_start else fresh)

    def _build_projections(self, share_text: bool, share_visual: bool, generator: torch.Generator | None) -> None:
        """Layer 0's and the deep layers' projections F_t (text to vision) and F_v (vision to text)."""
        text, vision, deep = self.sizes.text_width, self.sizes.vision_width, self.depth - 1
        if self.to_vision:
            self.project_ctx = linear_layer(text, vision, generator)
            self.text_to_vision = _projections(text, vision, deep, share_text, generator)
        if self.to_text:
            self.vision_to_text = _projections(vision, text, deep, share_visual, generator)
        if self.aggregator in ("joint", "vision_to_text"):
            self.project_vision_ctx = linear_layer(vision, text, generator)

    def _build_gates(self, generator: torch.Generator | None) -> None:
        """One gate per layer and tower. The released code gates the text one layer less, reading no attention."""
        official = self.gate == "official"
        vision, text = ("batch", "constant") if official else ("sample", "sample")
        deep = self.depth - 1
        self.vision_gates = nn.ModuleList(Gate(vision, generator) for _ in range(deep))
        self.text_gates = nn.ModuleList(Gate(text, generator) for _ in range(deep - 1 if official else deep))

    def forward(self) -> Prompts:
        """Tokens of both towers at every prompted layer."""
        own_text, own_vision = list(self.text_prompts), list(self.vision_prompts)
        to_vision = _project_all(self.text_to_vision, own_text) if self.to_vision else []
        to_text = _project_all(self.vision_to_text, own_vision) if self.to_text else []
        context, tokens = self._first_layer()
        text = self._combine(own_text, to_text, "text_gates", foreign_only=self.aggregator == "vision_to_text")
        vision = self._combine(own_vision, to_vision, "vision_gates", foreign_only=self.aggregator == "text_to_vision")
        return Prompts(
            TextPrompts(context, dict(enumerate(text, start=1))),
            VisionPrompts(tokens, dict(enumerate(vision, start=1))),
        )

    def _first_layer(self) -> tuple[Tensor, Tensor]:
        """Layer 0's context vectors and image tokens."""
        if self.aggregator == "own":
            return self.ctx, self.vision_ctx
        if self.aggregator == "vision_to_text":
            return self.project_vision_ctx(self.vision_ctx), self.vision_ctx
        if self.aggregator == "joint":
            context = torch.cat([self.ctx, self.project_vision_ctx(self.vision_ctx)])
            return context, torch.cat([self.vision_ctx, self.project_ctx(self.ctx)])
        return self.ctx, self.project_ctx(self.ctx)

    def _combine(
        self, own: list[Tensor], foreign: list[Tensor], gates: str, foreign_only: bool
    ) -> list[Tensor | GatedPrompt]:
        """Prompts of layers 1..J-1 of one tower from its own and the other's projected ones."""
        if foreign_only:
            return list(foreign)
        if not foreign:
            return list(own)
        pairs = list(zip(own, foreign, strict=True))
        if self.aggregator == "add":
            return [p + f for p, f in pairs]
        if self.aggregator == "mean":
            return [(p + f) / 2 for p, f in pairs]
        if self.aggregator == "joint":
            return [torch.cat([p, f]) for p, f in pairs]
        # With the released code's gates the last text prompt enters the image tower only.
        return [gate.mix(p, f) for gate, (p, f) in zip(getattr(self, gates), pairs, strict=False)]

    def gate_values(self) -> dict[str, float]:
        """Weight of the own prompt in the last forward pass, by "tower/layer"; empty for other aggregators."""
        if self.aggregator != "gate":
            return {}
        towers = {"vision": self.vision_gates, "text": self.text_gates}
        return {
            f"{tower}/{layer}": float(gate.last.mean())
            for tower, gates in towers.items()
            for layer, gate in enumerate(gates, start=1)
            if gate.last is not None
        }


def _projections(
    n_in: int, n_out: int, layers: int, share: bool, generator: torch.Generator | None
) -> nn.Linear | nn.ModuleList:
    """One linear layer for all prompted layers, or one each; none where there are no deep layers."""
    if share and layers > 0:
        return linear_layer(n_in, n_out, generator)
    return equal_linear_layers(layers, n_in, n_out, generator)


def _project_all(projections: nn.Linear | nn.ModuleList, prompts: list[Tensor]) -> list[Tensor]:
    """Every layer's prompts through their projection."""
    if isinstance(projections, nn.ModuleList):
        return [project(p) for project, p in zip(projections, prompts, strict=True)]
    return list(projections(torch.stack(prompts)).unbind()) if prompts else []


def build_bmip_learner(settings: CfgNode, clip_model: nn.Module, generator: torch.Generator) -> BMIPLearner:
    """The learner that ``cfg.TRAINER.BMIP`` describes.

    Raises:
        ValueError: for a depth that the towers do not have.
    """
    sizes = TowerSizes.of(clip_model)
    check_depth("TRAINER.BMIP.PROMPT_DEPTH", settings.PROMPT_DEPTH, 1, min(sizes.text_layers, sizes.vision_layers))
    return BMIPLearner(
        clip_model,
        n_ctx=settings.N_CTX,
        words=settings.CTX_INIT,
        depth=settings.PROMPT_DEPTH,
        gate=settings.GATE,
        aggregator=settings.AGGREGATOR,
        share_text=settings.SHARE_PARAMETER_TEXT,
        share_visual=settings.SHARE_PARAMETER_VISUAL,
        generator=generator,
    )


@TRAINER_REGISTRY.register()
class BMIP(PromptTrainer):
    """Bi-directional modality interaction prompt learning, trained with cross-entropy."""

    node = "BMIP"
    search_space = {"TRAINER.BMIP.N_CTX": (1, 2, 4)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> BMIPLearner:
        return build_bmip_learner(self.settings, clip_model, generator)
