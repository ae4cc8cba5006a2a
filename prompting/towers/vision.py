"""The vision tower with prompts, fast and exact: images in, image features out.

Rows of every image: [CLS] and the patches, which are kept from layer to layer, then the prompt tokens. Both are
projected apart where nothing is to be recorded for the frozen rows, or a gate reads the layer's Q and K. The last layer
is computed for the rows that are read: [CLS], and the prompt tokens where there is a read-out of them. ResNets, and
what open_clip has beside plain ViTs, take no prompts and run as their package built them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prompting.changes import changed_blocks
from prompting.prompts import (
    AttentionMass,
    ComposedPrompt,
    DeepPrompt,
    GatedPrompt,
    SideBranch,
    VisionPrompts,
    check_deep_prompts,
    check_side_branches,
)
from prompting.towers.attention import (
    KV,
    QKV,
    K,
    Q,
    attend,
    cast_once,
    few_launches,
    finish,
    project,
    prompt_mass,
    run_layer,
)

# Images that go through the tower together on the CPU where no gradient is wanted. The tensors of larger batches would
# be fresh memory of the system's at every layer, page by page, and beyond a processor's cache: a fifth of the time.
IMAGES_AT_ONCE = 10


def is_vit(clip_model: nn.Module) -> bool:
    """Whether the vision tower is a transformer, which can take prompts."""
    return hasattr(clip_model.visual, "transformer")


def embed_patches(visual: nn.Module, images: Tensor, tokens: Tensor | None) -> Tensor:
    """Layer 0's input, after ``ln_pre``: [CLS], patches and prompt tokens, (batch, 1 + patches + prompts, width)."""
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
    if tokens is not None:
        x = torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    return visual.ln_pre(x)


class VisionEncoder(nn.Module):
    """CLIP's frozen vision tower, run with prompts; the model's modules are used, not changed."""

    recompute = False  # keep only each layer's input for the backward pass

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.visual = clip_model.visual
        self.takes_prompts = is_vit(clip_model)
        self.resolution: int = self.visual.input_resolution

    def forward(self, images: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        """Features of normalised images, (batch, 3, resolution, resolution) -> (batch, embed_dim), not normalised.

        With a ``readout`` of the prompts they are two of each image, (batch, 2, embed_dim).

        Raises:
            ValueError: for prompts on a ResNet tower, or images of another size than the tower's.
        """
        prompts = prompts or VisionPrompts()
        if images.shape[-2:] != (self.resolution, self.resolution):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height}x{width} pixels, but this backbone takes {self.resolution}x{self.resolution}: "
                f"set INPUT.SIZE to ({self.resolution}, {self.resolution})"
            )
        if not self.takes_prompts:
            if prompts.tokens is not None or prompts.deep or prompts.beside or prompts.changes:
                raise ValueError(
                    "an image tower that is not a plain ViT takes no prompt tokens, no side branches and no changes: "
                    "use one, for example ViT-B/16"
                )
            return self.visual(images.to(next(self.visual.parameters()).dtype))
        first = 0 if prompts.tokens is None else 1
        check_deep_prompts(prompts.deep, len(self.visual.transformer.resblocks), "vision", first)
        check_side_branches(prompts.beside, len(self.visual.transformer.resblocks), "vision")
        if torch.is_grad_enabled() or few_launches(images.device) or not _same_for_all(prompts):
            return self._run_blocks(images, prompts)
        return torch.cat([self._run_blocks(some, prompts) for some in images.split(IMAGES_AT_ONCE)])

    def _run_blocks(self, images: Tensor, prompts: VisionPrompts) -> Tensor:
        with torch.no_grad():
            kept = embed_patches(self.visual, images, None)
        tokens = kept[:, :0]
        if prompts.tokens is not None:
            tokens = _for_each(self.visual.ln_pre(prompts.tokens.to(kept.dtype)), kept)  # ln_pre is per row
        blocks = changed_blocks(self.visual.transformer.resblocks, prompts.changes, "vision")
        for index, block in enumerate(blocks[:-1]):
            deep, following = prompts.deep.get(index), prompts.deep.get(index + 1)
            beside = prompts.beside.get(index)
            kept, tokens = run_layer(self.recompute, self._layer, block, kept, tokens, deep, following, beside)
        return self._last_layer(blocks[-1], kept, tokens, prompts)

    def _layer(
        self,
        block: nn.Module,
        kept: Tensor,
        tokens: Tensor,
        deep: DeepPrompt | None,
        following: DeepPrompt | None,
        beside: SideBranch | None,
    ) -> tuple[Tensor, Tensor]:
        """One layer but the last: [CLS] and patches, and the prompt tokens.

        Prompt tokens that the following layer replaces (``following``) without a gate to read them are not computed.
        """
        x, qkv = self._project(block, kept, tokens, deep, QKV)
        q, k, v = qkv.unbind(2)
        n_kept = kept.shape[1]
        if isinstance(following, Tensor):
            return finish(block, kept, attend(q[:, :n_kept], k, v), beside), tokens
        return finish(block, x, attend(q, k, v), beside).split([n_kept, x.shape[1] - n_kept], dim=1)

    def _project(
        self, block: nn.Module, kept: Tensor, tokens: Tensor, deep: DeepPrompt | None, parts: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Replace the prompt tokens if this layer does: all rows, and their Q, K, V (or K, V)."""
        if isinstance(deep, GatedPrompt):
            projected = project(block, kept)  # the gate reads the queries too
            tokens = _for_each(deep.mix(self._mass(block, projected, tokens)), kept)
            projected = torch.cat([projected[:, :, slice(*parts)], project(block, tokens, parts)], dim=1)
            return torch.cat([kept, tokens], dim=1), projected
        if isinstance(deep, ComposedPrompt):
            tokens = deep.compose(tokens)
        elif deep is not None:
            tokens = _for_each(deep, kept)
        x = torch.cat([kept, tokens], dim=1)
        if tokens.requires_grad and not kept.requires_grad:  # nothing is recorded for the frozen rows
            return x, torch.cat([project(block, kept, parts), project(block, tokens, parts)], dim=1)
        return x, project(block, x, parts)

    @torch.no_grad()
    def _mass(self, block: nn.Module, kept_qkv: Tensor, arriving: Tensor) -> AttentionMass:
        """Attention of [CLS] and all patches to the prompts that arrive; (batch, n_prompts)."""
        n_kept = kept_qkv.shape[1]
        keys = torch.cat([kept_qkv[:, :, 1], project(block, arriving, K)[:, :, 0]], dim=1)
        mass = prompt_mass(kept_qkv[:, :, 0], keys, slice(n_kept, None))
        return AttentionMass(mass, keys.shape[1])

    def _last_layer(self, block: nn.Module, kept: Tensor, tokens: Tensor, prompts: VisionPrompts) -> Tensor:
        """The last layer for [CLS], and for the prompt tokens if they are read out, and the projections."""
        last, readout = len(self.visual.transformer.resblocks) - 1, prompts.readout
        x, kv = self._project(block, kept, tokens, prompts.deep.get(last), KV)
        read = kept[:, :1] if readout is None else torch.cat([kept[:, :1], x[:, kept.shape[1] :]], dim=1)
        read = finish(block, read, attend(project(block, read, Q)[:, :, 0], *kv.unbind(2)), prompts.beside.get(last))
        features = self.visual.ln_post(read[:, 0]).to(self.visual.proj.dtype) @ cast_once(self.visual.proj)
        if readout is None:
            return features
        mean = self.visual.ln_post(read[:, 1:]).mean(dim=1)
        return torch.stack([features, mean.to(features.dtype) @ readout.to(features.dtype)], dim=1)


def _for_each(tokens: Tensor, kept: Tensor) -> Tensor:
    """Prompt tokens next to the kept rows of every image, in their type; (batch, n_prompts, width)."""
    return tokens.to(kept.dtype).expand(len(kept), -1, -1)


def _same_for_all(prompts: VisionPrompts) -> bool:
    """Whether every image gets the same prompts or makes its own, so that a batch may be cut."""
    tensors = [] if prompts.tokens is None else [prompts.tokens]
    for prompt in prompts.deep.values():
        if isinstance(prompt, GatedPrompt) and not prompt.per_sample:
            return False
        tensors.append(prompt if isinstance(prompt, Tensor) else prompt.own)
    return all(tensor.dim() == 2 for tensor in tensors)
