"""The text tower with prompts, fast and exact: class names in, text features out.

Two facts make it fast. The tower is causal, so nothing after a class's [EOT] matters; and all classes begin with the
same tokens ([SOS], the context), so this *head* is computed once, and each class only adds its own rows. All rows are
packed into one tensor (:mod:`prompting.packing`), so every matrix product of a layer is a single call. Only from the
first layer on whose prompts differ between classes (BMIP's per-class gate) does each class have its own prompts and
what follows them. The last layer is computed for the [EOT] rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prompting.attention import KV, QKV, K, Q, attend, finish, project, prompt_mass
from prompting.layout import PromptLayout
from prompting.mixture import project_mixture
from prompting.packing import Own, Packing, Rows, Spreading
from prompting.prompts import AttentionMass, DeepPrompt, GatedPrompt, TextPrompts, check_deep_prompts, differs
from prompting.recompute import run_layer


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
        plan = self._plan(layout, prompts)
        rows, projected = self._first_layer_rows(plan[0][0], prompts.context)
        for index, block in enumerate(self.blocks[:-1]):
            deep, following = map(prompts.deep.get, (index, index + 1))
            rows = run_layer(self.recompute, self._layer, block, rows, projected, deep, following, *plan[index])
            projected = None  # from now on, by the layer itself
        features = self._last_layer(rows, prompts.deep.get(self.n_layers - 1), *plan[-1])
        return features if grouped else features[0]

    def _plan(self, layout: PromptLayout, prompts: TextPrompts) -> list[tuple[Packing, Spreading | None]]:
        """How each layer's rows lie once its prompts are in place, and how they come to lie so if they did not."""
        packing, spreading = self._packings_of(layout, prompts)
        plan = []
        for index in range(self.n_layers):
            spread = spreading if differs(prompts.deep.get(index)) and not packing.per_class else None
            packing = packing if spread is None else spread.own
            plan.append((packing, spread))
        return plan

    def _packings_of(self, layout: PromptLayout, prompts: TextPrompts) -> tuple[Packing, Spreading | None]:
        """How a layout's rows lie, and how they come to lie once prompts differ between classes; made once."""
        packings = self._packings.setdefault(layout, {})
        key = (prompts.n_deep, prompts.per_class, self.positional_embedding.device)
        if key not in packings:
            packings[key] = _make_packings(layout, *key)
        return packings[key]

    def _first_layer_rows(self, packing: Packing, context: Tensor | None) -> tuple[Rows, Rows]:
        """Layer 0's input and its Q, K, V; words and learned rows apart, so that words record no gradient."""
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
        return packing.split(x[:, packing.packed_order]), packing.split(qkv[:, packing.packed_order])

    def _layer(
        self,
        block: nn.Module,
        rows: Rows,
        projected: Rows | None,
        deep: DeepPrompt | None,
        following: DeepPrompt | None,
        packing: Packing,
        spreading: Spreading | None,
    ) -> Rows:
        """One layer but the last; layer 0 comes with its Q, K, V.

        Prompt rows that the following layer replaces (``following``) are computed for its gate only, which takes no
        gradient, or not at all.
        """
        if projected is None:
            rows, projected = self._project(block, rows, deep, packing, spreading, QKV)
        attended = self._attend(projected, packing)
        stay, prompts = finish(block, rows.stay, attended.stay), rows.prompts
        if packing.prompt_rows and not isinstance(following, Tensor):
            with torch.set_grad_enabled(torch.is_grad_enabled() and following is None):
                prompts = finish(block, prompts, attended.prompts)
        return Rows(stay, prompts)

    def _project(
        self,
        block: nn.Module,
        rows: Rows,
        deep: DeepPrompt | None,
        packing: Packing,
        spreading: Spreading | None,
        parts: tuple[int, int],
    ) -> tuple[Rows, Rows]:
        """The rows with this layer's prompts, if it has some, and their Q, K, V (or K, V)."""
        if isinstance(deep, GatedPrompt):
            return self._project_gated(block, rows, deep, packing, spreading)
        stay, prompts = rows
        if deep is not None:
            prompts = _prompt_rows(deep, stay, packing)
        return Rows(stay, prompts), Rows(project(block, stay, parts), project(block, prompts, parts))

    def _project_gated(
        self, block: nn.Module, rows: Rows, deep: GatedPrompt, packing: Packing, spreading: Spreading | None
    ) -> tuple[Rows, Rows]:
        """As :meth:`_project`, where a gate reads the layer's Q and K first."""
        stay, projected = rows.stay, project(block, rows.stay)
        key = self._arriving_keys(block, rows.prompts)
        if spreading is not None:
            stay, projected, key = spreading.stay(stay), spreading.stay(projected), spreading.prompts(key)
        mixture = deep.mix(self._mass(projected, key, packing))
        prompts = _prompt_rows(mixture.tokens, stay, packing)
        if deep.per_sample:
            mixed = project_mixture(block, mixture)
            mixed = mixed.reshape(*prompts.shape[:2], *mixed.shape[2:])
        else:
            mixed = project(block, prompts)
        return Rows(stay, prompts), Rows(projected, mixed)

    @torch.no_grad()
    def _arriving_keys(self, block: nn.Module, prompts: Tensor) -> Tensor:
        """Keys of the prompts that arrive, (groups, prompt_rows, heads, head_width)."""
        return project(block, prompts, K)[:, :, 0]

    @torch.no_grad()
    def _mass(self, projected: Tensor, key: Tensor, packing: Packing) -> AttentionMass:
        """Attention of each class's [EOT] row to the prompts that arrive, in bucket order.

        (groups * n_cls, n_prompts), group by group.
        """
        head, owns = packing.unpack(Rows(projected[:, :, 1], key))
        _, queries = packing.unpack(Rows(projected[:, :, 0], key))  # only the [EOT] rows, the last ones, are read
        masses = []
        for own, query in zip(owns, queries, strict=True):
            eot = query[-1][:, :, -1:]
            mass = prompt_mass(eot.flatten(0, 1), _with_head(head, own), slice(1, 1 + packing.n_prompts))
            masses.append(mass.unflatten(0, eot.shape[:2]))
        mass = torch.cat(masses, dim=1).flatten(0, 1)
        return AttentionMass(mass, packing.visible_keys.repeat(len(projected), 1))

    def _attend(self, projected: Rows, packing: Packing) -> Rows:
        """Causal attention of all packed rows, (groups, rows, 3, heads, head_width) -> (groups, rows, width)."""
        head, owns = packing.unpack(projected)
        out = [_attend_bucket(head, own) for own in owns]
        # A copy: the backward pass keeps what attention reads, and a view of the head's few rows would keep all rows.
        return packing.pack(attend(*head.clone().unbind(2), causal=True), out)

    def _last_layer(self, rows: Rows, deep: DeepPrompt | None, packing: Packing, spreading: Spreading | None) -> Tensor:
        """The last layer for the [EOT] rows only, and the projection; (groups, n_cls, embed_dim)."""
        block = self.blocks[-1]
        rows, projected = self._project(block, rows, deep, packing, spreading, KV)
        head, owns = packing.unpack(Rows(*(part[:, :, -2:] for part in projected)))
        _, states = packing.unpack(rows)
        eot = torch.cat([own[-1][:, :, -1] for own in states], dim=1)  # (groups, n_cls, width)
        queries = project(block, eot, Q)[:, :, 0].split([b.classes for b in packing.buckets], dim=1)
        attended = [_attend_eot(q, head, own) for q, own in zip(queries, owns, strict=True)]
        eot = finish(block, eot, torch.cat(attended, dim=1))
        features = self.ln_final(eot).to(self.text_projection.dtype) @ self.text_projection
        return features[:, packing.class_rank]


def _make_packings(
    layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device
) -> tuple[Packing, Spreading | None]:
    """A layout's packing where classes share what they can, and how to spread the rows where prompts come to differ."""
    if not per_class:
        return Packing(layout, n_prompts, False, device), None
    own = Packing(layout, n_prompts, True, device)
    if layout.shared_length() < 1 + n_prompts:  # nothing to share before
        return own, None
    shared = Packing(layout, n_prompts, False, device)
    return shared, Spreading(shared, own)


def _prompt_rows(tokens: Tensor, stay: Tensor, packing: Packing) -> Tensor:
    """A layer's new prompts as packed rows, (groups, prompt_rows, width).

    Args:
        tokens: (n_prompts, width) for all, (groups, n_prompts, width), or one set per group and class.
        stay: the other rows, for their type and number of groups.
        packing: where the rows lie.
    """
    if packing.per_class and tokens.shape[:-2].numel() < len(stay) * packing.layout.n_classes:
        tokens = tokens.unsqueeze(-3).expand(*tokens.shape[:-2], packing.layout.n_classes, -1, -1)
    rows = tokens.reshape(-1, packing.prompt_rows, tokens.shape[-1])
    return rows.to(stay.dtype).expand(len(stay), -1, -1)


def _with_head(head: Tensor, own: Sequence[Tensor]) -> Tensor:
    """The head's rows before each class's own; (groups, classes, m, ..) -> (groups * classes, n_head + m, ..)."""
    head = head.unsqueeze(1).expand(-1, own[0].shape[1], *head.shape[1:])
    return torch.cat([head, *own], dim=2).flatten(0, 1)


def _attend_bucket(head: Tensor, own: Own) -> Tensor:
    """Attention of a bucket's own rows to the head and, causally, to themselves; (groups, classes, n_own, width)."""
    n_head, n_own = head.shape[1], sum(part.shape[2] for part in own)
    seen = torch.ones(n_own, n_head + n_own, dtype=torch.bool, device=head.device).tril(n_head)
    queries, keys, values = zip(*(part.unbind(3) for part in own), strict=True)
    k, v = (_with_head(head[:, :, i], part) for i, part in ((1, keys), (2, values)))
    # A copy: a view of the queries would keep K and V a second time.
    queries = torch.cat(queries, dim=2).flatten(0, 1)
    return attend(queries, k, v, mask=seen).unflatten(0, own[0].shape[:2])


def _attend_eot(query: Tensor, head: Tensor, own: Own) -> Tensor:
    """Attention of each class's [EOT] row, which sees everything before it; (groups, classes, width)."""
    k, v = _with_head(head, own).unbind(2)
    return attend(query.flatten(0, 1).unsqueeze(1), k, v).reshape(*query.shape[:2], -1)
