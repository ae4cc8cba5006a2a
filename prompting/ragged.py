"""How the rows of the text tower lie: classes of different lengths as one ragged batch.

Matrix products see one row after the other, without padding:

    kept rows     [SOS] words of the prefix | own tokens of class 0 .. [EOT] | own tokens of class 1 .. [EOT] | ...
    prompt rows   n of all classes, or n of class 0, n of class 1 ...; deep layers replace them

Attention sees *entries* of equal length, in one bucket or several. The classes' shared prefix is among them once as
queries, in parts no longer than a class, and in every entry as keys:

                  queries                           keys
    class c       own tokens, padding               prefix | own tokens, padding
    prefix part   tokens of the prefix, padding     prefix | padding

When a layer's prompts differ between classes, the prefix shrinks to [SOS] and the prompts are the classes' own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prompting.launches import few_launches
from prompting.layout import PromptLayout

# Attention with a mask wants its rows aligned on CUDA, else it copies the mask at every layer.
KEYS_MULTIPLE = 8


@dataclass(frozen=True)
class Bucket:
    """Entries that are attended in one call.

    Attributes:
        n_classes: how many of the entries are classes; they come first.
        rows: (entries, n_queries) the row of every query; padding has any.
        keys: (entries, n_keys) the row of every key; padding has any.
        seen: (entries, n_queries, n_keys) what each query sees. Padding sees itself only: what it computes, and its
            gradient, reach nobody else.
        eot_seen: (n_classes, 1, n_keys) what each class's [EOT] sees.
    """

    n_classes: int
    rows: Tensor
    keys: Tensor
    seen: Tensor
    eot_seen: Tensor

    def to(self, device: torch.device) -> Bucket:
        """The same on a device."""
        return Bucket(self.n_classes, *(t.to(device) for t in (self.rows, self.keys, self.seen, self.eot_seen)))


class Gather:
    """Takes the queries (where wanted), keys and values of rows to their places in the buckets.

    Args:
        buckets: of the padded batch, on the host.
        n_rows: rows of the ragged batch.
        shared: (n_prefix,) the rows of the prefix, on the host.
        queries: whether queries are among a row's parts: Q, K, V of all entries, or K, V of the classes' alone.
        device: where the index tensors live.

    Attributes:
        parts: for each part of each bucket its entries, and where among the keys the entry's own begin; 0 for queries.
        takes: for each of them, (slots,) the row's part that each slot takes; take: all of them, one after the other.
        owns: for each of them, (slots,) those of its slots, without the prefix, one after the other as rows' parts.
        give: (n_rows * parts,) the slot, among all, from which each row's part takes its gradient.
        shared: (2 * n_prefix,) the keys, then the values of the prefix, whose gradient is a sum over all entries.
    """

    def __init__(self, buckets: list[Bucket], n_rows: int, shared: Tensor, queries: bool, device: torch.device) -> None:
        n_parts, n_prefix = 2 + queries, len(shared)
        self.parts: list[tuple[int, int]] = []
        takes, owns, start = [], [], 0
        give = torch.zeros(n_rows * n_parts, dtype=torch.long)
        for bucket in buckets:
            n = len(bucket.rows) if queries else bucket.n_classes
            for part in range(n_parts):
                is_query = queries and part == 0
                take = n_parts * (bucket.rows if is_query else bucket.keys)[:n] + part
                # What is neither the prefix's, nor padding, which is all that does not see [SOS]
                real = bucket.seen[:n, :, 0]
                own, slots = take, start + torch.arange(take.numel()).view(take.shape)
                if not is_query:
                    width = bucket.rows.shape[1] if bucket.n_classes else 0
                    own, slots = (t[: bucket.n_classes, n_prefix : n_prefix + width] for t in (take, slots))
                    real = real[: bucket.n_classes, :width]
                give[own[real]] = slots[real]
                takes.append(take.flatten())
                owns.append(own.flatten())
                self.parts.append((n, 0 if is_query else n_prefix))
                start += take.numel()
        self.is_padded = len(buckets) == 1
        self.takes, self.owns = ([index.to(device) for index in indices] for indices in (takes, owns))
        self.take, self.give = torch.cat(takes).to(device), give.to(device)
        self.shared = torch.cat([n_parts * shared + n_parts - 2, n_parts * shared + n_parts - 1]).to(device)

    def __call__(self, projected: Tensor) -> list[list[Tensor]]:
        """Every bucket's Q (if it is among the parts), K and V.

        Args:
            projected: (groups, rows, parts, heads, head_width).

        Returns:
            For each bucket tensors of (groups * entries, n, heads, head_width).
        """
        groups, heads = len(projected), projected.shape[3:]
        gathered = (GatherPadded if self.is_padded else GatherBuckets).apply(projected.flatten(1, 2), self)
        parts = [part.reshape(groups * n, -1, *heads) for part, (n, _) in zip(gathered, self.parts, strict=True)]
        each = projected.shape[2]
        return [parts[i : i + each] for i in range(0, len(parts), each)]


class GatherPadded(torch.autograd.Function):
    """Rows' parts to the slots of one padded bucket, (groups, slots, heads, head_width) for each part.

    A handful of launches; the gradient's sums over slots are ordinary ones, not atomic additions in any order.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Gather) -> tuple[Tensor, ...]:
        ctx.gather = gather
        return rows.index_select(1, gather.take).split([len(take) for take in gather.takes], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gather = ctx.gather
        grad, (n, n_prefix) = torch.cat(grads, dim=1), gather.parts[-1]
        keys_and_values = grad[:, -2 * len(gather.takes[-1]) :].unflatten(1, (2, n, -1))
        sums = keys_and_values[:, :, :, :n_prefix].sum(2).flatten(1, 2)
        return grad.index_select(1, gather.give).index_copy_(1, gather.shared, sums), None


class GatherBuckets(torch.autograd.Function):
    """Rows' parts to the slots of buckets without padding, (groups, slots, heads, head_width) for each part of each.

    Every tensor is small enough to stay in memory that the process has already.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Gather) -> tuple[Tensor, ...]:
        ctx.gather, ctx.shape = gather, rows.shape
        return tuple(rows.index_select(1, take) for take in gather.takes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gather = ctx.gather
        rows = grads[0].new_empty(ctx.shape)
        sums: list[Tensor] = []  # over the entries of each bucket: of keys, of values, of keys ...
        for grad, own, (n, n_prefix) in zip(grads, gather.owns, gather.parts, strict=True):
            grad = grad.unflatten(1, (n, -1))
            if n_prefix:
                sums.append(grad[:, :, :n_prefix].sum(1))
                grad = grad[:, :, n_prefix:]
            rows.index_copy_(1, own, grad.flatten(1, 2))
        return rows.index_copy_(1, gather.shared, torch.cat([sum(sums[0::2]), sum(sums[1::2])], dim=1)), None


class DropPadding(torch.autograd.Function):
    """Rows out of padded queries, (groups, slots, width) -> (groups, n, width).

    The gradient of padding may be anything (see :class:`Bucket`); that of rows that are not taken is zero.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, batch: RaggedBatch, n: int) -> Tensor:
        ctx.batch, ctx.n = batch, n
        return padded.index_select(1, batch.slots[:n])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        batch = ctx.batch
        if ctx.n == len(batch.slots):
            return grad.index_select(1, batch.row_of_slot), None, None
        padded = grad.new_zeros(len(grad), len(batch.row_of_slot), grad.shape[2])
        return padded.index_copy_(1, batch.slots[: ctx.n], grad), None, None


class RaggedBatch:
    """Where every row of a layout lies, for a given number of deep prompts.

    Args:
        layout: the classes' tokens.
        n_prompts: prompt tokens that deep layers replace, at positions 1..n_prompts; 0 without deep prompts.
        per_class: whether these prompts differ between classes.
        device: where the index tensors live.

    Attributes:
        n_kept, n_prompt_rows: rows that stay, and after them the rows that deep layers replace.
        n_prefix: tokens that all classes share, prompts among them.
        buckets, class_buckets: what is attended together, and those with classes. A CPU computes what it is told, so
            there the prefix and the classes of each length are a bucket, and nothing is padded; a GPU waits for being
            told, so there is one bucket.
        class_rank: (n_cls,) where each class is in the order of the rows; ``None``: in its own place.
        eot_rows: (n_cls,) the rows that become the features, in the order of the rows.
        attention, class_attention: take Q, K and V of all rows, and K and V of the classes, to the buckets.
        slots: (rows,) the slot of each row among the queries of all buckets; row_of_slot: the row of each slot.
    """

    def __init__(self, layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device) -> None:
        self.layout, self.n_prompts, self.per_class, self.device = layout, n_prompts, per_class, device
        self.n_prefix = prefix = 1 if per_class else layout.shared_length()
        if not per_class and prefix < 1 + n_prompts:
            raise ValueError(
                f"deep prompts take positions 1..{n_prompts}, but the classes share only {prefix} leading tokens: "
                "class-specific context (CSC) and deep prompts do not go together"
            )
        self.by_length = not few_launches(device)
        order = torch.argsort(layout.lengths, stable=True) if self.by_length else torch.arange(layout.n_classes)
        self.class_rank = torch.argsort(order).to(device) if self.by_length else None
        lengths, context = layout.lengths.tolist(), layout.context.tolist()
        # The cell of a row: its class (None for the prefix) and its position.
        tokens = [(None, p) for p in range(prefix)]
        tokens += [(c, p) for c in order.tolist() for p in range(prefix, lengths[c])]
        is_prompt = [1 <= p <= n_prompts and (c is None) != per_class for c, p in tokens]
        # Words before learned rows, the order in which layer 0 makes them.
        kept = [cell for cell, prompt in zip(tokens, is_prompt, strict=True) if not prompt]
        self.kept = sorted(kept, key=lambda cell: context[cell[0] or 0][cell[1]] >= 0)
        self.prompts = [cell for cell, prompt in zip(tokens, is_prompt, strict=True) if prompt]
        self.n_kept, self.n_prompt_rows = len(self.kept), len(self.prompts)
        self._index_tokens()
        row_of = {cell: row for row, cell in enumerate(self.kept + self.prompts)}
        classes = [[row_of[c, p] for p in range(prefix, lengths[c])] for c in order.tolist()]
        self._index_slots(classes, [row_of[None, p] for p in range(prefix)])
        self._masks: dict[Any, list[Tensor]] = {}

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

    def _index_slots(self, classes: list[list[int]], shared: list[int]) -> None:
        """The buckets, and what takes rows there and back.

        Args:
            classes: the rows of each class's own tokens.
            shared: the rows of the prefix.
        """
        key = len if self.by_length else lambda rows: 0
        together = [list(some) for _, some in itertools.groupby(classes, key)]
        if self.by_length:
            buckets = [self._bucket([], [shared], shared), *(self._bucket(some, [], shared) for some in together)]
        else:
            longest = max(map(len, classes))
            parts = [shared[start : start + longest] for start in range(0, len(shared), longest)]
            buckets = [self._bucket(classes, parts, shared)]
        row_of_slot = torch.cat([bucket.rows.flatten() for bucket in buckets])
        slots, start = torch.zeros(self.n_kept + self.n_prompt_rows, dtype=torch.long), 0
        for bucket in buckets:
            real = bucket.seen[:, :, 0]
            slots[bucket.rows[real]] = start + real.flatten().nonzero()[:, 0]
            start += bucket.rows.numel()
        prefix, device = torch.tensor(shared), self.device
        self.attention = Gather(buckets, len(slots), prefix, queries=True, device=device)
        with_classes = [bucket for bucket in buckets if bucket.n_classes]
        self.class_attention = Gather(with_classes, len(slots), prefix, queries=False, device=device)
        self.buckets = [bucket.to(device) for bucket in buckets]
        self.class_buckets = [bucket for bucket in self.buckets if bucket.n_classes]
        self.slots, self.row_of_slot = slots.to(device), row_of_slot.to(device)
        self.eot_rows = torch.tensor([rows[-1] for rows in classes], device=device)
        self.visible_keys = torch.tensor([[len(shared) + len(rows)] for rows in classes], device=device)

    def _bucket(self, classes: list[list[int]], parts: list[list[int]], shared: list[int]) -> Bucket:
        """A bucket of some classes and, as entries of their own, parts of the prefix; a list of rows for each."""
        n_classes, prefix, longest = len(classes), len(shared), max(map(len, [*classes, *parts]))
        multiple = KEYS_MULTIPLE if self.device.type == "cuda" else 1
        n_keys = -(-(prefix + (longest if classes else 0)) // multiple) * multiple
        rows = torch.tensor([own + own[:1] * (longest - len(own)) for own in [*classes, *parts]])
        keys = rows[:, :1].repeat(1, n_keys)
        keys[:, :prefix] = torch.tensor(shared)
        if classes:
            keys[:n_classes, prefix : prefix + longest] = rows[:n_classes]
        # How many keys each query sees: a class's all of the prefix and its own up to itself.
        step = torch.arange(longest)
        first = torch.tensor([prefix] * n_classes + [part * longest for part in range(len(parts))])
        seen = torch.arange(n_keys) <= (first.unsqueeze(1) + step).unsqueeze(2)
        padding = step >= torch.tensor([len(own) for own in [*classes, *parts]]).unsqueeze(1)
        itself = torch.arange(n_keys) == prefix + step.unsqueeze(1)
        seen = torch.where(padding.unsqueeze(2), itself, seen)
        ends = torch.tensor([prefix + len(own) for own in classes])
        eot_seen = (torch.arange(n_keys) < ends.unsqueeze(1)).unsqueeze(1)
        return Bucket(n_classes, rows, keys, seen, eot_seen)

    def masks(self, groups: int, dtype: torch.dtype, eot: bool = False) -> list[Tensor]:
        """For each bucket what is added to its scores, (groups * entries, 1, queries, keys); made once.

        Args:
            groups: of the rows.
            dtype: of the scores.
            eot: of the classes' [EOT] queries alone.
        """
        key = (groups, dtype, eot)
        if key not in self._masks:
            seen = [b.eot_seen for b in self.class_buckets] if eot else [b.seen for b in self.buckets]
            zeros = [torch.zeros(some.shape, dtype=dtype, device=self.device) for some in seen]
            masks = [zero.masked_fill_(~some, float("-inf")) for zero, some in zip(zeros, seen, strict=True)]
            self._masks[key] = [mask.unsqueeze(1).repeat(groups, 1, 1, 1) for mask in masks]
        return self._masks[key]

    def spread_from(self, shared: RaggedBatch) -> tuple[Tensor, Tensor]:
        """For each kept row and each prompt row, the one among those where all classes share their prompts."""
        kept = {cell: row for row, cell in enumerate(shared.kept)}
        prompts = {p: row for row, (_, p) in enumerate(shared.prompts)}
        rows = [kept[None, p] if (None, p) in kept else kept[c, p] for c, p in self.kept]
        indices = rows, [prompts[p] for _, p in self.prompts]
        return tuple(torch.tensor(index, device=self.device) for index in indices)
