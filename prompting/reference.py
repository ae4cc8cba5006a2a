"""The plain path: every token, every row, attention weights asked for, one class or image after the other in a batch.

Short and obviously correct rather than fast. The tests hold the fast encoders to it, the benchmarks take it as their
baseline, and look.py reads attention from it; nothing else calls it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.changes import changed_blocks, plus, terms_of
from prompting.prompts import (
    AttentionMass,
    ClassPrompt,
    ComposedPrompt,
    DeepPrompt,
    GatedPrompt,
    SideBranch,
    TextPrompts,
    VisionPrompts,
)
from prompting.tokens import PromptLayout
from prompting.towers.text import TextEncoder
from prompting.towers.vision import VisionEncoder, embed_patches


def attention_weights(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities of a block on its input, mean over heads, (n, rows, rows)."""
    y = block.ln_1(x).transpose(0, 1)  # clip's attention takes (rows, n, width)
    return block.attn(y, y, y, need_weights=True, average_attn_weights=True, attn_mask=mask)[1].float()


def run_block(
    block: nn.Module,
    x: Tensor,
    mask: Tensor | None,
    beside: SideBranch | None = None,
    seen: list[Tensor] | None = None,
) -> Tensor:
    """A residual attention block as its definition reads, and the branch beside it; (n, rows, width).

    Its attention probabilities, mean over heads, (n, rows, rows), are appended to ``seen``.
    """
    normed = block.ln_1(x)
    if terms_of(block):
        attended, weights = attention_with_terms(block, normed, mask)
        x = x + attended
        x = x + mlp_with_terms(block, block.ln_2(x))
    else:
        y = normed.transpose(0, 1)
        attended, weights = block.attn(y, y, y, need_weights=True, attn_mask=mask)
        x = x + attended.transpose(0, 1)
        x = x + block.mlp(block.ln_2(x))
    if seen is not None:
        seen.append(weights.float())
    return x if beside is None else x + beside(normed).to(x.dtype)


def attention_with_terms(block: nn.Module, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A block's attention written out, with the terms beside its products.

    Returns:
        The output, (n, rows, width), and the probabilities, mean over heads, (n, rows, rows).
    """
    attention, terms = block.attn, terms_of(block)
    matrices = zip("qkv", attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    qkv = (plus(F.linear(y, weight, bias), terms.get(name), y) for name, weight, bias in matrices)
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return plus(attention.out_proj(out), terms.get("o"), out), weights.mean(dim=1)


def mlp_with_terms(block: nn.Module, y: Tensor) -> Tensor:
    """A block's MLP written out, with the terms beside its products; (n, rows, width)."""
    mlp, terms = block.mlp, terms_of(block)
    hidden = mlp.gelu(plus(mlp.c_fc(y), terms.get("up"), y))
    return plus(mlp.c_proj(hidden), terms.get("down"), hidden)


def causal_mask(x: Tensor) -> Tensor:
    """What is added to the scores of (n, rows, width) so that a row sees itself and those before it, (rows, rows)."""
    return torch.full((x.shape[1],) * 2, float("-inf"), device=x.device).triu(1).to(x.dtype)


class PlainTextEncoder(TextEncoder):
    """All positions of the context length for every class; same interface as :class:`TextEncoder`."""

    def forward(self, layout: PromptLayout, prompts: TextPrompts | None = None) -> Tensor:
        prompts = prompts or TextPrompts()
        if prompts.context is not None and prompts.context.dim() == 3:
            groups = [replace(prompts, context=context) for context in prompts.context]
            return torch.stack([self.forward(layout, group) for group in groups])
        x = self._embed(layout, prompts.context)
        mask, eot, inserts = causal_mask(x), (layout.lengths - 1).to(x.device), prompts.inserts
        for index, block in enumerate(changed_blocks(self.blocks, prompts.changes, "text")):
            deep = prompts.deep.get(index)
            if deep is not None:
                new = self._new_prompts(block, x, deep, mask, eot)
                x = torch.cat([x[:, :1], new, x[:, 1 if inserts else 1 + new.shape[1] :]], dim=1)
                if inserts:  # from here on all texts are longer
                    mask, eot, inserts = causal_mask(x), eot + new.shape[1], False
            x = run_block(block, x, mask, prompts.beside.get(index))
        x = x[torch.arange(len(x), device=x.device), eot]
        return self.ln_final(x).to(self.text_projection.dtype) @ self.text_projection

    def _embed(self, layout: PromptLayout, context: Tensor | None) -> Tensor:
        device = self.positional_embedding.device
        pad = self.context_length - layout.tokens.shape[1]
        x = self.token_embedding(F.pad(layout.tokens, (0, pad)).to(device))  # (n_cls, context_length, width)
        if context is not None:
            index = F.pad(layout.context, (0, pad), value=-1).to(device)
            x = torch.where(index.unsqueeze(-1) >= 0, context[index.clamp(min=0)], x)
        return (x + self.positional_embedding).to(self.dtype)

    def _new_prompts(self, block: nn.Module, x: Tensor, deep: DeepPrompt, mask: Tensor, eot: Tensor) -> Tensor:
        if isinstance(deep, GatedPrompt):
            with torch.no_grad():
                weights = attention_weights(block, x, mask)
                row = weights[torch.arange(len(x), device=x.device), eot]  # (n_cls, context_length)
            deep = deep.mix(AttentionMass(row[:, 1 : 1 + deep.n_prompts], (eot + 1).unsqueeze(1)))
        elif isinstance(deep, ComposedPrompt):
            deep = deep.compose(x[:, 1 : 1 + deep.n_prompts])
        elif isinstance(deep, ClassPrompt):
            deep = deep.tokens
        return deep.to(x.dtype).expand(len(x), -1, -1)


class PlainVisionEncoder(VisionEncoder):
    """All rows of every layer; same interface as :class:`VisionEncoder`."""

    @torch.no_grad()
    def attention(self, images: Tensor, prompts: VisionPrompts | None = None) -> tuple[list[Tensor], dict[int, Tensor]]:
        """What every layer attends to, and how its gate mixes, for images (batch, 3, resolution, resolution).

        Returns:
            By layer, the attention probabilities, mean over heads, (batch, rows, rows), float32: a row is what that row
            attends to and sums to 1; rows are [CLS], the patches line by line, the layer's prompt tokens.
            By layer with gated prompts, the own tokens' weight, (batch, n_prompts), or (n_prompts,) for the batch.

        Raises:
            ValueError: for a ResNet tower.
        """
        if not self.takes_prompts:
            raise ValueError(
                "a ResNet image tower has no attention of a [CLS] token to patches: its layers are convolutions, and "
                "one attention pools the last one's map: take a run on a ViT, for example ViT-B/16"
            )
        seen: list[Tensor] = []
        gates: dict[int, Tensor] = {}
        self._run_blocks(images, prompts or VisionPrompts(), seen, gates)
        return seen, gates

    def _run_blocks(
        self,
        images: Tensor,
        prompts: VisionPrompts,
        seen: list[Tensor] | None = None,
        gates: dict[int, Tensor] | None = None,
    ) -> Tensor:
        x = embed_patches(self.visual, images, prompts.tokens)
        n_kept = self.visual.positional_embedding.shape[0]
        for index, block in enumerate(changed_blocks(self.visual.transformer.resblocks, prompts.changes, "vision")):
            deep = prompts.deep.get(index)
            if isinstance(deep, GatedPrompt):
                with torch.no_grad():
                    weights = attention_weights(block, x, None)[:, :n_kept, n_kept:].mean(1)
                mass = AttentionMass(weights, x.shape[1])
                if gates is not None:
                    gates[index] = deep.weigh(mass)
                deep = deep.mix(mass)
            elif isinstance(deep, ComposedPrompt):
                deep = deep.compose(x[:, n_kept:])
            if deep is not None:
                x = torch.cat([x[:, :n_kept], deep.to(x.dtype).expand(len(x), -1, -1)], dim=1)
            x = run_block(block, x, None, prompts.beside.get(index), seen)
        features = self.visual.ln_post(x[:, 0]).to(self.visual.proj.dtype) @ self.visual.proj
        if prompts.readout is None:
            return features
        mean = self.visual.ln_post(x[:, n_kept:]).mean(dim=1)
        return torch.stack([features, mean.to(features.dtype) @ prompts.readout.to(features.dtype)], dim=1)
