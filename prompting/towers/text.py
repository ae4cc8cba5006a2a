"""The text tower with prompts, fast and exact: class names in, text features out.

How its rows lie, for two classes, "a photo of a {}." with n_ctx = 2 learned vectors, and two deep prompts:

    position    0      1   2   3   4 | 5     6     7      8
    class 0     [SOS]  v1  v2  of  a | cat   .     [EOT]            lengths 8 and 9 of 77: the tower is causal,
    class 1     [SOS]  v1  v2  of  a | sea   lion  .      [EOT]     so nothing after [EOT] matters
                \\____ shared prefix __/ \\_____ class tokens ____/

    x is (groups, rows, width): the kept rows and, after them, the prompt rows, which deep layers replace.

    row         0      1   2 | 3    4   5     | 6    7     8   9     | 10  11
                [SOS]  of  a | cat  .   [EOT] | sea  lion  .   [EOT] | v1  v2
                \\_ prefix __/ \\__ class 0 ___/ \\___ class 1 ______/   prompt rows

    once per layer    LayerNorm, Q, K, V, output projection, MLP: one product over all (groups * rows, width), without
                      padding; of the shared prefix once for all classes
    per class         attention alone: queries (n_cls, longest), keys (n_cls, n_prefix + longest), padded or in buckets
                      of one length (prefix.py). The prefix attends to itself once.
    layer 0           words and learned vectors are projected apart, so that words record no gradient
    last layer        K and V of all rows; the rest for the [EOT] rows (here 5 and 9) only, (groups, n_cls, width)

    Tokens that a layer inserts (MMRL) are prompt rows from that layer on: position 1 and those that follow move on, and
    the other rows lie as before.

    From the first layer on that gives every class prompts of its own (BMIP's gates, TCP), only [SOS] is shared:

    row         0     | 1   2  3    4  5     | 6   7  8    9     10  11    | 12  13    | 14  15
                [SOS] | of  a  cat  .  [EOT] | of  a  sea  lion  .   [EOT] | class 0's | class 1's prompt rows

``groups`` is 1, or the number of contexts that each encode all classes (CoCoOp's images, ProDA's prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prompting.changes import changed_blocks
from prompting.prompts import (
    AttentionMass,
    ClassPrompt,
    ComposedPrompt,
    DeepPrompt,
    GatedPrompt,
    SideBranch,
    TextPrompts,
    check_deep_prompts,
    check_side_branches,
    differs,
)
from prompting.tokens import PromptLayout
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
from prompting.towers.prefix import DropPadding, RaggedBatch

# Rows of kept and prompt rows in the batch where all classes share their prompts, see RaggedBatch.rows_in.
SharedRows = tuple[Tensor, Tensor]


class At(NamedTuple):
    """What a layer begins with."""

    deep: DeepPrompt | None  # its new prompts
    batch: RaggedBatch  # how the rows lie
    shared_rows: SharedRows | None  # where the batch has its rows in x, if the classes' prompts differ from here on
    beside: SideBranch | None = None  # its block's side branch


class TextEncoder(nn.Module):
    """CLIP's frozen text tower, run with prompts; the model's modules are used, not changed."""

    recompute = False  # keep only each layer's input for the backward pass

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.blocks = clip_model.transformer.resblocks
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.context_length: int = clip_model.positional_embedding.shape[0]
        # What was derived from a layout lives as long as the layout.
        self._batches: WeakKeyDictionary[PromptLayout, dict] = WeakKeyDictionary()

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].attn.in_proj_weight.dtype

    def forward(self, layout: PromptLayout, prompts: TextPrompts | None = None) -> Tensor:
        """Features of every class, not normalised: (n_cls, embed_dim), with groups (groups, n_cls, embed_dim)."""
        prompts = prompts or TextPrompts()
        check_deep_prompts(prompts.deep, len(self.blocks), "text", first=0 if prompts.inserts else 1)
        check_side_branches(prompts.beside, len(self.blocks), "text")
        batch, later, shared_rows = self._batches_of(layout, prompts)
        blocks = changed_blocks(self.blocks, prompts.changes, "text")
        x, projected = self._first_layer_rows(blocks[0], batch, prompts.context)
        for index, block in enumerate(blocks):
            deep, following = map(prompts.deep.get, (index, index + 1))
            changes = batch is not later and (differs(deep) or (prompts.inserts and deep is not None))
            batch = later if changes else batch
            at = At(deep, batch, shared_rows if changes else None, prompts.beside.get(index))
            projected = projected if deep is None else None  # tokens inserted before layer 0 are not in it
            if index == len(blocks) - 1:
                features = self._last_layer(block, x, at)
            else:
                x = run_layer(self.recompute, self._layer, block, x, at, projected, following)
                projected = None  # from now on, by the layer itself
        return features if prompts.context is not None and prompts.context.dim() == 3 else features[0]

    def _batches_of(self, layout: PromptLayout, prompts: TextPrompts) -> tuple[RaggedBatch, RaggedBatch, SharedRows]:
        """How the rows lie at first, how once prompts are inserted or differ by class, and the way; made once."""
        made = self._batches.setdefault(layout, {})
        n_prompts, per_class, device = prompts.n_deep, prompts.per_class, self.positional_embedding.device
        key = (n_prompts, per_class, prompts.inserts, device)
        if key not in made and prompts.inserts:
            inserted = RaggedBatch(layout.widened(n_prompts), n_prompts, False, device)
            made[key] = RaggedBatch(layout, 0, False, device), inserted, None
        elif key not in made:
            batch = RaggedBatch(layout, n_prompts, per_class, device)
            made[key] = batch, batch, None
            if per_class and layout.shared_length() >= 1 + n_prompts:  # until then there is something to share
                shared = RaggedBatch(layout, n_prompts, False, device)
                made[key] = shared, batch, batch.rows_in(shared)
        return made[key]

    def _first_layer_rows(self, block: nn.Module, batch: RaggedBatch, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Layer 0's input and its Q, K, V; words and learned rows apart, so that words record no gradient."""
        x = self.token_embedding(batch.word_token) + self.positional_embedding[batch.word_position]
        x = x.to(self.dtype).unsqueeze(0)
        qkv = project(block, x)
        if len(batch.learned_context):
            if context is None:
                raise ValueError("the layout has learned positions but no context vectors were given")
            context = context if context.dim() == 3 else context.unsqueeze(0)
            learned = context.index_select(1, batch.learned_context) + self.positional_embedding[batch.learned_position]
            learned = learned.to(self.dtype)
            x = torch.cat([x.expand(len(learned), -1, -1), learned], dim=1)
            qkv = torch.cat([qkv.expand(len(learned), -1, -1, -1, -1), project(block, learned)], dim=1)
        if batch.row_order is not None:
            x, qkv = x.index_select(1, batch.row_order), qkv.index_select(1, batch.row_order)
        return x, qkv

    def _layer(
        self, block: nn.Module, x: Tensor, at: At, projected: Tensor | None, following: DeepPrompt | None
    ) -> Tensor:
        """One layer but the last, (groups, rows, width); layer 0 comes with its Q, K, V.

        Prompt rows that the following layer replaces (``following``) are computed for its gate only, which takes no
        gradient, or not at all; those that it mixes with its own are computed.
        """
        batch = at.batch
        if projected is None:
            x, projected = self._project(block, x, at, QKV)
        if following is None or isinstance(following, ComposedPrompt) or batch.n_prompt_rows == 0:
            return finish(block, x, self._attend(projected, batch, len(batch.slots)), at.beside)
        sizes = [batch.n_kept, batch.n_prompt_rows]
        kept, prompts = x.split(sizes, dim=1)
        if not isinstance(following, GatedPrompt):
            return finish(block, kept, self._attend(projected, batch, batch.n_kept), at.beside)
        attended = self._attend(projected, batch, len(batch.slots))
        if few_launches(x.device):
            return finish(block, x, attended, at.beside)
        attended, unread = attended.split(sizes, dim=1)
        with torch.no_grad():
            prompts = finish(block, prompts, unread, at.beside)
        return torch.cat([finish(block, kept, attended, at.beside), prompts], dim=1)

    def _project(self, block: nn.Module, x: Tensor, at: At, parts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The rows with this layer's prompts, if it has some, and their Q, K, V (or K, V)."""
        deep, batch, shared_rows, _ = at
        if not isinstance(deep, GatedPrompt):
            if deep is None:
                return x, project(block, x, parts)
            if shared_rows is not None:
                kept = x.index_select(1, shared_rows[0])
            else:
                kept = x if x.shape[1] == batch.n_kept else x[:, : batch.n_kept]
            if isinstance(deep, ComposedPrompt):  # (groups, classes or 1, n_prompts, width) arrive
                prompts = deep.compose(x[:, batch.n_kept :].unflatten(1, (-1, batch.n_prompts))).flatten(1, 2)
            else:
                prompts = _prompt_rows(deep, kept, batch)
            x = torch.cat([kept, prompts], dim=1)
            # Nothing is recorded for frozen rows. (A view of a leaf requires gradients where none are recorded, too.)
            if torch.is_grad_enabled() and prompts.requires_grad and not kept.requires_grad:
                return x, torch.cat([project(block, kept, parts), project(block, prompts, parts)], dim=1)
            return x, project(block, x, parts)
        # A gate reads the layer's Q and K before it mixes the prompts.
        n_arriving = batch.n_prompts if shared_rows else batch.n_prompt_rows
        kept, arriving = x.split([x.shape[1] - n_arriving, n_arriving], dim=1)
        projected = project(block, kept)
        with torch.no_grad():
            key = project(block, arriving, K)[:, :, 0]
        if shared_rows is not None:
            kept, projected = (rows.index_select(1, shared_rows[0]) for rows in (kept, projected))
            key = key.index_select(1, shared_rows[1])
        prompts = _prompt_rows(deep.mix(self._mass(projected, key, batch)), kept, batch)
        projected = torch.cat([projected, project(block, prompts)], dim=1)
        return torch.cat([kept, prompts], dim=1), projected[:, :, slice(*parts)]

    @torch.no_grad()
    def _mass(self, projected: Tensor, key: Tensor, batch: RaggedBatch) -> AttentionMass:
        """Attention of each class's [EOT] row to the prompts that arrive; (groups * n_cls, n_prompts)."""
        groups, n_classes = len(projected), batch.layout.n_classes
        kv = torch.stack([torch.cat([projected[:, :, 1], key], dim=1)] * 2, dim=2)
        queries = projected[:, :, 0].index_select(1, batch.eot_rows)
        masks, prompts = batch.masks(groups, torch.float32, eot=True), slice(1, 1 + batch.n_prompts)
        masses = [
            prompt_mass(query, k, prompts, mask).view(groups, -1, batch.n_prompts)
            for query, (k, _), mask in zip(_by_bucket(queries, batch), batch.class_attention(kv), masks, strict=True)
        ]
        mass = torch.cat(masses, dim=1).view(groups * n_classes, -1)
        return AttentionMass(mass, batch.visible_keys.expand(groups, -1, -1).flatten(0, 1))

    def _attend(self, projected: Tensor, batch: RaggedBatch, n: int) -> Tensor:
        """Causal attention, (groups, rows, 3, heads, head_width) -> (groups, n, width), of the first n rows."""
        masks = batch.masks(len(projected), projected.dtype)
        return DropPadding.apply(_attend_buckets(batch.attention(projected), masks, len(projected)), batch, n)

    def _last_layer(self, block: nn.Module, x: Tensor, at: At) -> Tensor:
        """The last layer for the [EOT] rows only, and the projection; (groups, n_cls, embed_dim)."""
        batch = at.batch
        x, projected = self._project(block, x, at, KV)
        eot = x.index_select(1, batch.eot_rows)
        queries = _by_bucket(project(block, eot, Q)[:, :, 0], batch)
        qkv = [(q, *kv) for q, kv in zip(queries, batch.class_attention(projected), strict=True)]
        eot = finish(block, eot, _attend_buckets(qkv, batch.masks(len(x), x.dtype, eot=True), len(x)), at.beside)
        features = self.ln_final(eot).to(self.text_projection.dtype) @ cast_once(self.text_projection)
        return features if batch.class_rank is None else features.index_select(1, batch.class_rank)


def _attend_buckets(qkv: Sequence[Sequence[Tensor]], masks: list[Tensor], groups: int) -> Tensor:
    """Attention of every bucket's Q, K and V, one after the other, (groups, slots, width)."""
    out = [attend(*part, mask) for part, mask in zip(qkv, masks, strict=True)]
    out = [some.unflatten(0, (groups, -1)).flatten(1, 2) for some in out]
    return torch.cat(out, dim=1) if len(out) > 1 else out[0]


def _by_bucket(queries: Tensor, batch: RaggedBatch) -> list[Tensor]:
    """One query of every class, (groups, n_cls, heads, head_width), as (groups * classes, 1, heads, head_width)."""
    parts = queries.split([bucket.n_classes for bucket in batch.class_buckets], dim=1)
    return [part.flatten(0, 1).unsqueeze(1) for part in parts]


def _prompt_rows(tokens: Tensor | ClassPrompt, kept: Tensor, batch: RaggedBatch) -> Tensor:
    """A layer's new prompts as rows beside the kept ones, (groups, prompt_rows, width).

    The tokens are (n_prompts, width) for all, (groups, n_prompts, width), one set per group and class, or one per class
    of the layout.
    """
    n_classes = batch.layout.n_classes
    if isinstance(tokens, ClassPrompt):
        if len(tokens.tokens) != n_classes:
            raise ValueError(f"deep prompts for {len(tokens.tokens)} classes, but the class list has {n_classes}")
        tokens = tokens.tokens.index_select(0, batch.class_order).flatten(0, 1)
    elif batch.per_class and tokens.shape[:-2].numel() < len(kept) * n_classes:
        tokens = tokens.unsqueeze(-3).expand(*tokens.shape[:-2], n_classes, -1, -1)
    rows = tokens.reshape(-1, batch.n_prompt_rows, tokens.shape[-1])
    return rows.to(kept.dtype).expand(len(kept), -1, -1)
