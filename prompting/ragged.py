"""How the rows of the text tower lie: classes of different lengths as one ragged batch.

Matrix products see one row after the other, without padding:

    kept rows     [SOS] words of the prefix | own tokens of class 0 .. [EOT] | own tokens of class 1 .. [EOT] | ...
    prompt rows   n of all classes, or n of class 0, n of class 1 ...; deep layers replace them

Attention sees a padded batch of *entries*. The classes' shared prefix is in it once as queries, in parts no longer than
the longest class, and in every entry as keys:

                  queries (longest)                 keys (prefix + longest)
    class c       own tokens, padding               prefix | own tokens, padding
    prefix part   tokens of the prefix, padding     prefix | padding

Causality hides the padding: what follows a class's [EOT] is seen by padding only. When a layer's prompts differ between
classes, the prefix shrinks to [SOS] and the prompts are the classes' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prompting.layout import PromptLayout

# Attention with a mask wants its rows aligned on CUDA, else it copies the mask at every layer.
KEYS_MULTIPLE = 8


@dataclass(frozen=True)
class Gather:
    """Takes rows to the slots of a padded batch.

    Attributes:
        take: (slots,) the row that each slot takes; queries first, then keys, then values.
        give: (rows,) the slot from which each row takes its gradient.
        shared: (2 * n_prefix,) the rows, keys and then values, whose gradient is the sum over the entries instead.
        n_queries: slots before the keys.
        n_entries, n_keys, n_prefix: entries, keys of each, and how many of these are the shared prefix.
    """

    take: Tensor
    give: Tensor
    shared: Tensor
    n_queries: int
    n_entries: int
    n_keys: int
    n_prefix: int

    def split(self, padded: Tensor) -> tuple[Tensor, ...]:
        """Queries (where there are some), keys and values, (groups * entries, n, heads, head_width) each."""
        sizes = [self.n_queries] * (self.n_queries > 0) + [self.n_entries * self.n_keys] * 2
        parts = padded.split(sizes, dim=1)
        return tuple(part.reshape(len(part) * self.n_entries, -1, *part.shape[2:]) for part in parts)


class GatherRows(torch.autograd.Function):
    """Rows to slots, (groups, rows, heads, head_width) -> (groups, slots, heads, head_width), without atomic sums."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return rows.index_select(1, gather.take)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        g = ctx.gather
        keys = grad[:, g.n_queries :].unflatten(1, (2, g.n_entries, g.n_keys))[:, :, :, : g.n_prefix]
        return grad.index_select(1, g.give).index_copy_(1, g.shared, keys.sum(2).flatten(1, 2)), None


class DropPadding(torch.autograd.Function):
    """Rows out of a padded batch, (groups, slots, width) -> (groups, rows, width); padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, slots: Tensor) -> Tensor:
        ctx.slots, ctx.n_slots = slots, padded.shape[1]
        return padded.index_select(1, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        padded = grad.new_zeros(len(grad), ctx.n_slots, grad.shape[2])
        return padded.index_copy_(1, ctx.slots, grad), None


class RaggedBatch:
    """Where every row of a layout lies, for a given number of deep prompts.

    Args:
        layout: the classes' tokens.
        n_prompts: prompt tokens that deep layers replace, at positions 1..n_prompts; 0 without deep prompts.
        per_class: whether these prompts differ between classes.
        device: where the index tensors live.

    Attributes:
        n_kept, n_prompt_rows: rows that stay, and rows that deep layers replace after them.
        n_prefix: tokens that all classes share, prompts among them.
        row_order: (rows,) where each row is among the words and, after them, the learned rows; ``None``: at its place.
        eot_rows: (n_cls,) the row that becomes each class's feature.
        attention: takes Q, K and V of all rows, as (groups, rows * 3, ...), to their slots.
        slots: (rows,) the slot of each row among the queries.
        class_keys: (n_cls * n_keys,) the rows that are each class's keys.
        class_attention: takes K and V of all rows, as (groups, rows * 2, ...), to the classes' slots.
    """

    def __init__(self, layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device) -> None:
        self.layout, self.n_prompts, self.per_class, self.device = layout, n_prompts, per_class, device
        self.n_prefix = prefix = 1 if per_class else layout.shared_length()
        if not per_class and prefix < 1 + n_prompts:
            raise ValueError(
                f"deep prompts take positions 1..{n_prompts}, but the classes share only {prefix} leading tokens: "
                "class-specific context (CSC) and deep prompts do not go together"
            )
        lengths = layout.lengths.tolist()
        # The cell of a row: its class (None for the prefix) and its position.
        tokens = [(None, p) for p in range(prefix)]
        tokens += [(c, p) for c, length in enumerate(lengths) for p in range(prefix, length)]
        is_prompt = [1 <= p <= n_prompts and (c is None) != per_class for c, p in tokens]
        # Words before learned rows, the order in which layer 0 makes them.
        kept = [cell for cell, prompt in zip(tokens, is_prompt, strict=True) if not prompt]
        self.kept = sorted(kept, key=lambda cell: bool(layout.context[cell[0] or 0, cell[1]] >= 0))
        self.prompts = [cell for cell, prompt in zip(tokens, is_prompt, strict=True) if prompt]
        self.n_kept, self.n_prompt_rows = len(self.kept), len(self.prompts)
        self._index_tokens()
        self._index_slots(lengths)
        self._masks: dict[Any, Tensor] = {}

    def _index_tokens(self) -> None:
        """Token, position and context vector of every row, words and learned rows apart."""
        rows = torch.tensor([(c or 0, p) for c, p in self.kept + self.prompts])
        context = self.layout.context[rows[:, 0], rows[:, 1]]
        words, learned = (context < 0).nonzero()[:, 0], (context >= 0).nonzero()[:, 0]
        self.word_token = self.layout.tokens[rows[words, 0], rows[words, 1]].to(self.device)
        self.word_position = rows[words, 1].to(self.device)
        self.learned_context = context[learned].to(self.device)
        self.learned_position = rows[learned, 1].to(self.device)
        order = torch.argsort(torch.cat([words, learned]))
        self.row_order = None if torch.equal(order, torch.arange(len(order))) else order.to(self.device)

    def _index_slots(self, lengths: list[int]) -> None:
        """Which slot of the padded batch takes which row, and which keys each query sees."""
        prefix, device, n_classes = self.n_prefix, self.device, len(lengths)
        row_of = {cell: row for row, cell in enumerate(self.kept + self.prompts)}
        longest = max(lengths) - prefix
        entries = [[row_of[c, p] for p in range(prefix, length)] for c, length in enumerate(lengths)]
        shared = [row_of[None, p] for p in range(prefix)]
        entries += [shared[start : start + longest] for start in range(0, prefix, longest)]
        n_entries, n_rows = len(entries), len(row_of)
        multiple = 1 if device.type == "cpu" else KEYS_MULTIPLE
        n_keys = -(-(prefix + longest) // multiple) * multiple
        queries = torch.zeros(n_entries, longest, dtype=torch.long)  # padding takes any row: it is seen by none
        keys = torch.zeros(n_entries, n_keys, dtype=torch.long)
        keys[:, :prefix] = torch.tensor(shared)
        seen = torch.zeros(n_entries, longest, n_keys, dtype=torch.bool)
        for entry, rows in enumerate(entries):
            queries[entry, : len(rows)] = torch.tensor(rows)
        keys[:n_classes, prefix : prefix + longest] = queries[:n_classes]
        steps = torch.arange(longest)
        seen[:n_classes] = torch.arange(n_keys) <= prefix + steps.unsqueeze(1)
        for part, entry in enumerate(seen[n_classes:]):
            entry[:] = torch.arange(n_keys) <= (part * longest + steps).clamp(max=prefix - 1).unsqueeze(1)
        slot_of = torch.empty(n_rows, dtype=torch.long)
        for entry, rows in enumerate(entries):
            slot_of[torch.tensor(rows)] = entry * longest + torch.arange(len(rows))
        key_slot_of = torch.zeros(n_rows, dtype=torch.long)  # of the prefix any: its gradient is a sum
        for entry, rows in enumerate(entries[:n_classes]):
            key_slot_of[torch.tensor(rows)] = entry * n_keys + prefix + torch.arange(len(rows))
        self.slots, self.seen = slot_of.to(device), seen.to(device)
        self.eot_rows = torch.tensor([rows[-1] for rows in entries[:n_classes]], device=device)
        own_lengths = torch.tensor([len(rows) for rows in entries[:n_classes]])
        self.eot_seen = (torch.arange(n_keys) < prefix + own_lengths.unsqueeze(1)).unsqueeze(1).to(device)
        self.visible_keys = (prefix + own_lengths).unsqueeze(1).to(device)  # (n_cls, 1), what each [EOT] row sees
        self.class_keys = keys[:n_classes].flatten().to(device)

        def gather(keys: Tensor, queries: Tensor | None) -> Gather:
            parts = 2 if queries is None else 3
            n_queries = 0 if queries is None else queries.numel()
            k = parts - 2  # which part of a row is its key; the value follows
            take = [parts * keys.flatten() + k, parts * keys.flatten() + k + 1]
            give = [n_queries + key_slot_of, n_queries + keys.numel() + key_slot_of]
            if queries is not None:
                take, give = [parts * queries.flatten(), *take], [slot_of, *give]
            prefix_rows = torch.tensor(shared)
            return Gather(
                torch.cat(take).to(device),
                torch.stack(give, dim=1).flatten().to(device),
                torch.cat([parts * prefix_rows + k, parts * prefix_rows + k + 1]).to(device),
                n_queries,
                len(keys),
                n_keys,
                prefix,
            )

        self.attention = gather(keys, queries)
        self.class_attention = gather(keys[:n_classes], None)

    def mask(self, seen: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of a padded batch, (groups * entries, 1, queries, keys); made once."""
        key = (seen is self.seen, groups, dtype)
        if key not in self._masks:
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = mask.unsqueeze(1).repeat(groups, 1, 1, 1)
        return self._masks[key]

    def spread_from(self, shared: RaggedBatch) -> tuple[Tensor, Tensor]:
        """For each kept row and each prompt row, the one among those where all classes share their prompts."""
        kept = {cell: row for row, cell in enumerate(shared.kept)}
        prompts = {p: row for row, (_, p) in enumerate(shared.prompts)}
        rows = [kept[None, p] if (None, p) in kept else kept[c, p] for c, p in self.kept]
        return torch.tensor(rows, device=self.device), torch.tensor(
            [prompts[p] for _, p in self.prompts], device=self.device
        )
