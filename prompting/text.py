"""The text tower with prompts, fast and exact: class names in, text features out.

Two facts make it fast. The tower is causal, so nothing after a class's [EOT] matters; and all classes begin with the
same tokens ([SOS], the context), so this *head* is computed once, and each class only adds its own rows. All rows are
packed into one tensor, so every matrix product of a layer is a single call:

    [head rows that stay | class rows, sorted by length | prompt rows that deep layers replace]

Classes of equal length form a *bucket*, whose attention is one batched call over (head + own rows). When a layer's
prompts differ between classes (BMIP's per-class gate), the head shrinks to [SOS] and the prompts belong to the classes.
The last layer is computed for the [EOT] rows only.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prompting.attention import KV, QKV, K, Q, attend, finish, project, prompt_mass
from prompting.layout import PromptLayout
from prompting.prompts import AttentionMass, DeepPrompt, GatedPrompt, TextPrompts, check_deep_prompts
from prompting.recompute import run_layer


@dataclass(frozen=True)
class Bucket:
    """Classes whose own part has the same length.

    Attributes:
        classes: number of classes.
        length: rows of each class that always stay (its deep prompts not counted).
    """

    classes: int
    length: int


class Packing:
    """Where every row of a layout sits in the packed tensor, for a given number of deep prompts.

    Args:
        layout: the classes' tokens.
        n_prompts: prompt tokens that deep layers replace, at positions 1..n_prompts; 0 without deep prompts.
        per_class: whether these prompts differ between classes.
        device: where the index tensors live.
    """

    def __init__(self, layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device) -> None:
        self.layout, self.n_prompts, self.per_class = layout, n_prompts, per_class
        head = 1 if per_class else layout.shared_length()
        if not per_class and head < 1 + n_prompts:
            raise ValueError(
                f"deep prompts take positions 1..{n_prompts}, but the classes share only {head} leading tokens: "
                "class-specific context (CSC) and deep prompts do not go together"
            )
        first_own = 1 + n_prompts if per_class else head
        order = torch.argsort(layout.lengths, stable=True)
        self.class_rank = torch.argsort(order).to(device)
        self.visible_keys = layout.lengths[order].unsqueeze(1).to(device)  # (n_cls, 1), what each [EOT] row sees
        own_lengths = (layout.lengths[order] - first_own).tolist()
        self.buckets = [Bucket(own_lengths.count(length), length) for length in sorted(set(own_lengths))]
        shared_prompts = 0 if per_class else n_prompts
        self.head_rows = head - shared_prompts  # those that stay
        self.prompt_rows = layout.n_classes * n_prompts if per_class else n_prompts
        self._index_rows(order, head, first_own, shared_prompts, device)

    def _index_rows(self, order: Tensor, head: int, first_own: int, shared_prompts: int, device: torch.device) -> None:
        """Token, position and context vector of every packed row, words and learned rows apart."""
        cells = [(int(order[0]), p) for p in range(head) if not 1 <= p <= shared_prompts]
        for c in order.tolist():
            cells += [(c, p) for p in range(first_own, int(self.layout.lengths[c]))]
        self.stay_rows = len(cells)
        owners = order.tolist() if self.per_class else [int(order[0])]
        cells += [(c, p) for c in owners for p in range(1, 1 + self.n_prompts)]
        rows = torch.tensor(cells)
        context = self.layout.context[rows[:, 0], rows[:, 1]]
        words, learned = (context < 0).nonzero()[:, 0], (context >= 0).nonzero()[:, 0]
        self.word_token = self.layout.tokens[rows[words, 0], rows[words, 1]].to(device)
        self.word_position = rows[words, 1].to(device)
        self.learned_context = context[learned].to(device)
        self.learned_position = rows[learned, 1].to(device)
        self.packed_order = torch.argsort(torch.cat([words, learned])).to(device)

    def unpack(self, packed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Packed rows -> (head, one tensor per bucket).

        Args:
            packed: (groups, rows, ...).

        Returns:
            head (groups, n_head, ...) and per bucket (groups, classes, n_own, ...), rows in sentence order.
        """
        sizes = [self.head_rows, *(b.classes * b.length for b in self.buckets), self.prompt_rows]
        head, *owns, prompts = packed.split(sizes, dim=1)
        owns = [own.unflatten(1, (b.classes, b.length)) for own, b in zip(owns, self.buckets, strict=True)]
        if self.n_prompts == 0:
            return head, owns
        if not self.per_class:
            return torch.cat([head[:, :1], prompts, head[:, 1:]], dim=1), owns
        prompts = prompts.unflatten(1, (-1, self.n_prompts)).split([b.classes for b in self.buckets], dim=1)
        return head, [torch.cat(pair, dim=2) for pair in zip(prompts, owns, strict=True)]

    def pack(self, head: Tensor, owns: list[Tensor]) -> Tensor:
        """The inverse of :meth:`unpack`."""
        n = self.n_prompts
        prompts: list[Tensor] = []
        if n and self.per_class:
            prompts = [own[:, :, :n].flatten(1, 2) for own in owns]
            owns = [own[:, :, n:] for own in owns]
        elif n:
            prompts = [head[:, 1 : 1 + n]]
            head = torch.cat([head[:, :1], head[:, 1 + n :]], dim=1)
        return torch.cat([head, *(own.flatten(1, 2) for own in owns), *prompts], dim=1)


class TextEncoder(nn.Module):
    """CLIP's frozen text tower, run with prompts.

    Args:
        clip_model: a CLIP with OpenAI's attribute layout; its modules are used, not changed.

    Attributes:
        recompute: keep only each layer's input for the backward pass (:mod:`prompting.recompute`).
    """

    recompute = False

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.blocks = clip_model.transformer.resblocks
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.width: int = clip_model.ln_final.weight.shape[0]
        self.context_length: int = clip_model.positional_embedding.shape[0]
        # What was derived from a layout lives as long as the layout.
        self._packings: WeakKeyDictionary[PromptLayout, dict] = WeakKeyDictionary()

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].attn.in_proj_weight.dtype

    def forward(self, layout: PromptLayout, prompts: TextPrompts | None = None) -> Tensor:
        """Text features of every class.

        Args:
            layout: tokens of the classes.
            prompts: learned tokens; ``None`` for the words alone.

        Returns:
            (n_cls, embed_dim), or (groups, n_cls, embed_dim) when the context has groups; not normalised.
        """
        prompts = prompts or TextPrompts()
        check_deep_prompts(prompts.deep, self.n_layers, "text")
        grouped = prompts.context is not None and prompts.context.dim() == 3
        packing = self._packing(layout, prompts)
        x, qkv = self._first_layer_rows(packing, prompts.context)
        for index, block in enumerate(self.blocks[:-1]):
            first, (deep, following) = qkv if index == 0 else None, map(prompts.deep.get, (index, index + 1))
            x = run_layer(self.recompute, self._layer, block, x, first, deep, following, packing)
        features = self._last_layer(x, prompts.deep.get(self.n_layers - 1), packing)
        return features if grouped else features[0]

    def _packing(self, layout: PromptLayout, prompts: TextPrompts) -> Packing:
        """Packing of a layout, made once."""
        packings = self._packings.setdefault(layout, {})
        key = (prompts.n_deep, prompts.per_class, self.positional_embedding.device)
        if key not in packings:
            packings[key] = Packing(layout, *key)
        return packings[key]

    def _first_layer_rows(self, packing: Packing, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Input rows of layer 0 and their Q, K, V; words and learned rows apart, so that words record no gradient."""
        x = self.token_embedding(packing.word_token) + self.positional_embedding[packing.word_position]
        x = x.to(self.dtype).unsqueeze(0)
        qkv = project(self.blocks[0], x)
        if len(packing.learned_context):
            if context is None:
                raise ValueError("the layout has learned positions but no context vectors were given")
            context = context if context.dim() == 3 else context.unsqueeze(0)
            own = context[:, packing.learned_context] + self.positional_embedding[packing.learned_position]
            own = own.to(self.dtype)
            x = torch.cat([x.expand(len(own), -1, -1), own], dim=1)
            qkv = torch.cat([qkv.expand(len(own), -1, -1, -1, -1), project(self.blocks[0], own)], dim=1)
        return x[:, packing.packed_order], qkv[:, packing.packed_order]

    def _layer(
        self,
        block: nn.Module,
        x: Tensor,
        qkv: Tensor | None,
        deep: DeepPrompt | None,
        following: DeepPrompt | None,
        packing: Packing,
    ) -> Tensor:
        """One layer but the last; layer 0 comes with its Q, K, V.

        Prompt rows that the following layer replaces (``following``) are computed for its gate only, which takes no
        gradient, or not at all.
        """
        if qkv is None:
            x, qkv = self._project(block, x, deep, packing, QKV)
        attended = self._attend(qkv, packing)
        if following is None:
            return finish(block, x, attended)
        sizes = [packing.stay_rows, packing.prompt_rows]
        (stay, leaving), (to_stay, to_leaving) = x.split(sizes, dim=1), attended.split(sizes, dim=1)
        with torch.no_grad():
            read = isinstance(following, GatedPrompt)
            leaving = finish(block, leaving, to_leaving) if read else leaving.detach()
        return torch.cat([finish(block, stay, to_stay), leaving], dim=1)

    def _project(
        self, block: nn.Module, x: Tensor, deep: DeepPrompt | None, packing: Packing, rows: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Replace the prompt rows if this layer does, and project: returns the rows and their Q, K, V (or K, V)."""
        if deep is None:
            return x, project(block, x, rows)
        stay, arriving = x.split([packing.stay_rows, packing.prompt_rows], dim=1)
        if isinstance(deep, GatedPrompt):
            rows = QKV  # the gate reads queries too
        projected = project(block, stay, rows)
        if isinstance(deep, GatedPrompt):
            deep = deep.mix(self._mass(block, projected, arriving, packing))
        new = deep.reshape(-1, packing.prompt_rows, deep.shape[-1]).to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([stay, new], dim=1), torch.cat([projected, project(block, new, rows)], dim=1)

    @torch.no_grad()
    def _mass(self, block: nn.Module, stay_qkv: Tensor, arriving: Tensor, packing: Packing) -> AttentionMass:
        """Attention of each class's [EOT] row to the prompts that arrive, in bucket order.

        (groups * n_cls, n_prompts), group by group.
        """
        key = project(block, arriving, K)
        # A prompt row's own query is never read; its key stands in to keep the rows aligned.
        qk = torch.cat([stay_qkv[:, :, :2], key.expand(-1, -1, 2, -1, -1)], dim=1)
        head, owns = packing.unpack(qk)
        masses = []
        for own in owns:
            queries, keys = own[:, :, -1:, 0].flatten(0, 1), _with_head(head[:, :, 1], own[:, :, :, 1])
            mass = prompt_mass(queries, keys, slice(1, 1 + packing.n_prompts))
            masses.append(mass.unflatten(0, own.shape[:2]))
        mass = torch.cat(masses, dim=1).flatten(0, 1)
        return AttentionMass(mass, packing.visible_keys.repeat(len(qk), 1))

    def _attend(self, qkv: Tensor, packing: Packing) -> Tensor:
        """Causal attention of all packed rows, (groups, rows, 3, heads, head_width) -> (groups, rows, width)."""
        head, owns = packing.unpack(qkv)
        out = [_attend_bucket(head, own) for own in owns]
        # A copy: the backward pass keeps what attention reads, and a view of the head's few rows would keep all rows.
        return packing.pack(attend(*head.clone().unbind(2), causal=True), out)

    def _last_layer(self, x: Tensor, deep: DeepPrompt | None, packing: Packing) -> Tensor:
        """The last layer for the [EOT] rows only, and the projection; (groups, n_cls, embed_dim)."""
        block = self.blocks[-1]
        x, kv = self._project(block, x, deep, packing, KV)
        head, owns = packing.unpack(kv[:, :, -2:])
        _, own_rows = packing.unpack(x)
        eot = torch.cat([own[:, :, -1] for own in own_rows], dim=1)  # (groups, n_cls, width)
        queries = project(block, eot, Q)[:, :, 0].split([b.classes for b in packing.buckets], dim=1)
        attended = [_attend_eot(q, head, own) for q, own in zip(queries, owns, strict=True)]
        eot = finish(block, eot, torch.cat(attended, dim=1))
        features = self.ln_final(eot).to(self.text_projection.dtype) @ self.text_projection
        return features[:, packing.class_rank]


def _with_head(head: Tensor, own: Tensor) -> Tensor:
    """The head's rows before each class's own; (groups, classes, m, ..) -> (groups * classes, n_head + m, ..)."""
    head = head.unsqueeze(1).expand(-1, own.shape[1], *head.shape[1:])
    return torch.cat([head, own], dim=2).flatten(0, 1)


def _attend_bucket(head: Tensor, own: Tensor) -> Tensor:
    """Attention of a bucket's own rows to the head and, causally, to themselves; (groups, classes, n_own, width)."""
    groups, classes, n_own = own.shape[:3]
    n_head = head.shape[1]
    seen = torch.ones(n_own, n_head + n_own, dtype=torch.bool, device=own.device).tril(n_head)
    k, v = _with_head(head[:, :, 1:], own[:, :, :, 1:]).unbind(2)
    queries = own[:, :, :, 0].flatten(0, 1).contiguous()  # a view would keep the class rows' K and V, too
    return attend(queries, k, v, mask=seen).unflatten(0, (groups, classes))


def _attend_eot(query: Tensor, head: Tensor, own: Tensor) -> Tensor:
    """Attention of each class's [EOT] row, which sees everything before it; (groups, classes, width)."""
    k, v = _with_head(head, own).unbind(2)
    return attend(query.flatten(0, 1).unsqueeze(1), k, v).reshape(len(own), own.shape[1], -1)
