"""Where the rows of the text tower lie: a shared prefix, and classes of different lengths as one ragged batch.

``text.py`` draws the rows as matrix products see them, without padding. Attention sees *entries* of equal length, in
one bucket or several:

                  queries                            keys
    class c       its class tokens, padding          shared prefix | its class tokens, padding
    prefix part   tokens of the prefix, padding      shared prefix | padding

On a CPU the prefix, and the classes of each length, are a bucket of their own, and nothing is padded. On a GPU, where
launches count, all is one bucket; there the prefix's queries are cut into parts no longer than the longest class.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prompting.tokens import PromptLayout
from prompting.towers.attention import few_launches

# Attention with a mask wants its rows aligned on CUDA, else it copies the mask at every layer.
KEYS_MULTIPLE = 8


class RaggedBatch:
    """Where every row of a layout lies, for a given number of deep prompts.

    Args:
        n_prompts: prompt tokens that deep layers replace, at positions 1..n_prompts; 0 without deep prompts.
        per_class: whether these prompts differ between classes; then the shared prefix is [SOS] alone.
        device: where the index tensors live.
    """

    def __init__(self, layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device) -> None:
        self.layout, self.n_prompts, self.per_class, self.device = layout, n_prompts, per_class, device
        n_prefix = 1 if per_class else layout.shared_length()
        if not per_class and n_prefix < 1 + n_prompts:
            raise ValueError(
                f"deep prompts take positions 1..{n_prompts}, but the classes share only {n_prefix} leading tokens: "
                "class-specific context (CSC) and deep prompts do not go together"
            )
        by_length = not few_launches(device)
        order = torch.argsort(layout.lengths, stable=True) if by_length else torch.arange(layout.n_classes)
        # (n_cls,) where each class is in the order of the rows; None: in its place
        self.class_rank = torch.argsort(order).to(device) if by_length else None
        self.class_order = order.to(device)  # (n_cls,) the classes in the order of the rows
        # (class, position) of every row, the class None in the shared prefix: the rows that are kept from layer to
        # layer, words before learned ones, as layer 0 makes them; after them those that deep layers replace
        lengths, context = layout.lengths.tolist(), layout.context.tolist()
        cells = [(None, p) for p in range(n_prefix)]
        cells += [(c, p) for c in order.tolist() for p in range(n_prefix, lengths[c])]
        self.prompts = [(c, p) for c, p in cells if 1 <= p <= n_prompts and (c is None) != per_class]
        prompts = set(self.prompts)
        kept = [cell for cell in cells if cell not in prompts]
        self.kept = sorted(kept, key=lambda cell: context[cell[0] or 0][cell[1]] >= 0)
        self.n_kept, self.n_prompt_rows = len(self.kept), len(self.prompts)
        # Token and position of the rows that are words, context vector and position of those that are learned, and the
        # way from these two to the order of the rows; None: they are in order
        rows = torch.tensor([(c or 0, p) for c, p in self.kept + self.prompts])
        contexts = layout.context[rows[:, 0], rows[:, 1]]
        words, learned = (contexts < 0).nonzero()[:, 0], (contexts >= 0).nonzero()[:, 0]
        self.word_token = layout.tokens[rows[words, 0], rows[words, 1]].to(device)
        self.word_position, self.learned_position = rows[words, 1].to(device), rows[learned, 1].to(device)
        self.learned_context = contexts[learned].to(device)
        in_order = torch.argsort(torch.cat([words, learned]))
        self.row_order = None if torch.equal(in_order, torch.arange(len(rows))) else in_order.to(device)
        # What is attended together, as the rows of each class's tokens and of the prefix
        row_of = {cell: row for row, cell in enumerate(self.kept + self.prompts)}
        classes = [[row_of[c, p] for p in range(n_prefix, lengths[c])] for c in order.tolist()]
        prefix = [row_of[None, p] for p in range(n_prefix)]
        if by_length:
            same_length = [list(some) for _, some in itertools.groupby(classes, len)]
            buckets = [self._bucket([], [prefix], prefix), *(self._bucket(some, [], prefix) for some in same_length)]
        else:
            longest = max(map(len, classes))
            parts = [prefix[start : start + longest] for start in range(0, n_prefix, longest)]
            buckets = [self._bucket(classes, parts, prefix)]
        self.buckets, self.class_buckets = buckets, [bucket for bucket in buckets if bucket.n_classes]
        # These take Q, K and V of all rows, and K and V for the classes, to the buckets.
        self.attention = Gather(buckets, len(rows), torch.tensor(prefix), queries=True, device=device)
        self.class_attention = Gather(self.class_buckets, len(rows), torch.tensor(prefix), queries=False, device=device)
        # The slot of each row among the queries of all buckets, and the row of each slot
        slots, start = torch.zeros(len(rows), dtype=torch.long), 0
        for bucket in buckets:
            real = bucket.seen[:, :, 0]
            slots[bucket.rows[real]] = start + real.flatten().nonzero()[:, 0]
            start += bucket.rows.numel()
        self.slots, self.row_of_slot = slots.to(device), torch.cat([b.rows.flatten() for b in buckets]).to(device)
        # (n_cls,) the rows that become the features; (n_cls, 1) how many keys they see
        self.eot_rows = torch.tensor([rows[-1] for rows in classes], device=device)
        self.visible_keys = torch.tensor([[n_prefix + len(rows)] for rows in classes], device=device)
        self._masks: dict[Any, list[Tensor]] = {}

    def _bucket(self, classes: list[list[int]], parts: list[list[int]], prefix: list[int]) -> Bucket:
        """A bucket of some classes and, as entries of their own, parts of the prefix; a list of rows for each."""
        n_classes, n_prefix, longest = len(classes), len(prefix), max(map(len, [*classes, *parts]))
        multiple = KEYS_MULTIPLE if self.device.type == "cuda" else 1
        n_keys = -(-(n_prefix + (longest if classes else 0)) // multiple) * multiple
        rows = torch.tensor([entry + entry[:1] * (longest - len(entry)) for entry in [*classes, *parts]])
        keys = rows[:, :1].repeat(1, n_keys)
        keys[:, :n_prefix] = torch.tensor(prefix)
        if classes:
            keys[:n_classes, n_prefix : n_prefix + longest] = rows[:n_classes]
        # How many keys each query sees: a class's all of the prefix and its tokens up to itself.
        step = torch.arange(longest)
        first = torch.tensor([n_prefix] * n_classes + [part * longest for part in range(len(parts))])
        seen = torch.arange(n_keys) <= (first.unsqueeze(1) + step).unsqueeze(2)
        padding = step >= torch.tensor([len(entry) for entry in [*classes, *parts]]).unsqueeze(1)
        itself = torch.arange(n_keys) == n_prefix + step.unsqueeze(1)
        seen = torch.where(padding.unsqueeze(2), itself, seen)
        ends = torch.tensor([n_prefix + len(entry) for entry in classes])
        eot_seen = (torch.arange(n_keys) < ends.unsqueeze(1)).unsqueeze(1)
        return Bucket(n_classes, rows, keys, seen, eot_seen)

    def masks(self, groups: int, dtype: torch.dtype, eot: bool = False) -> list[Tensor]:
        """What each bucket adds to its scores, (groups * entries, 1, queries, keys); ``eot``: for the [EOT] rows."""
        key = (groups, dtype, eot)
        if key not in self._masks:
            seen = [b.eot_seen for b in self.class_buckets] if eot else [b.seen for b in self.buckets]
            masks = [torch.zeros(some.shape, dtype=dtype).masked_fill_(~some, float("-inf")) for some in seen]
            self._masks[key] = [mask.to(self.device).unsqueeze(1).repeat(groups, 1, 1, 1) for mask in masks]
        return self._masks[key]

    def rows_in(self, shared: RaggedBatch) -> tuple[Tensor, Tensor]:
        """For each kept row and each prompt row, the same token's row where all classes share their prompts."""
        kept = {cell: row for row, cell in enumerate(shared.kept)}
        prompts = {p: row for row, (_, p) in enumerate(shared.prompts)}
        rows = [kept[None, p] if (None, p) in kept else kept[c, p] for c, p in self.kept]
        indices = rows, [prompts[p] for _, p in self.prompts]
        return tuple(torch.tensor(index, device=self.device) for index in indices)


class Bucket(NamedTuple):
    """Entries that are attended in one call; index tensors on the host.

    Padding sees itself only: what it computes, and its gradient, reach nobody else.
    """

    n_classes: int  # how many of the entries are classes; they come first
    rows: Tensor  # (entries, n_queries) the row of every query; padding has any
    keys: Tensor  # (entries, n_keys) the row of every key; padding has any
    seen: Tensor  # (entries, n_queries, n_keys) what each query sees
    eot_seen: Tensor  # (n_classes, 1, n_keys) what each class's [EOT] sees


class Gather:
    """Takes Q (where wanted), K and V of the rows to their slots in the buckets.

    Row r's Q, K and V lie one after the other: with n_parts of them, part i of row r is at n_parts * r + i.

    Args:
        prefix: (n_prefix,) the rows of the prefix, on the host.
        queries: whether to take Q, K, V to all entries, or K, V to the classes' alone.
    """

    def __init__(self, buckets: list[Bucket], n_rows: int, prefix: Tensor, queries: bool, device: torch.device) -> None:
        n_parts, n_prefix = 2 + queries, len(prefix)
        self.is_padded = len(buckets) == 1
        # For Q, K and V of each bucket: the number of entries, and of each entry's first slots that are the prefix's;
        # (slots,) the row's part that each slot takes; the same without the prefix's slots of K and V
        self.parts: list[tuple[int, int]] = []
        self.takes: list[Tensor] = []
        self.class_takes: list[Tensor] = []
        # (n_rows * n_parts,) of one padded bucket: the slot, among all, whose gradient is that of each row's part
        give, start = torch.zeros(n_rows * n_parts, dtype=torch.long), 0
        for bucket in buckets:
            n = len(bucket.rows) if queries else bucket.n_classes
            for part in range(n_parts):
                is_query = queries and part == 0
                first, entries = (0, n) if is_query else (n_prefix, bucket.n_classes)
                take = n_parts * (bucket.rows if is_query else bucket.keys)[:n] + part
                class_take = n_parts * bucket.rows[:entries] + part
                if self.is_padded:
                    slots = start + torch.arange(take.numel()).view(take.shape)[:entries, first:]
                    real = bucket.seen[:entries, :, 0]  # padding is all that does not see [SOS]
                    give[class_take[real]] = slots[:, : real.shape[1]][real]
                self.takes.append(take.flatten().to(device))
                self.class_takes.append(class_take.flatten().to(device))
                self.parts.append((n, first))
                start += take.numel()
        self.take, self.give = torch.cat(self.takes), give.to(device)
        # The keys, then the values of the prefix, whose gradient is a sum over all entries
        self.prefix = torch.cat([n_parts * prefix + n_parts - 2, n_parts * prefix + n_parts - 1]).to(device)

    def __call__(self, projected: Tensor) -> list[list[Tensor]]:
        """(groups, rows, parts, heads, head_width) -> each bucket's parts, (groups * entries, n, heads, head_width)."""
        groups, heads, each = len(projected), projected.shape[3:], projected.shape[2]
        gathered = GatherRows.apply(projected.flatten(1, 2), self)
        parts = [part.reshape(groups * n, -1, *heads) for part, (n, _) in zip(gathered, self.parts, strict=True)]
        return [parts[i : i + each] for i in range(0, len(parts), each)]


class GatherRows(torch.autograd.Function):
    """Rows' parts to the slots of the buckets, (groups, slots, heads, head_width) for each part of each.

    One padded bucket takes a handful of launches, and the gradient's sums over slots are ordinary ones, not atomic
    additions in any order. Of buckets without padding every tensor is small enough to stay in memory that the process
    has already.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Gather) -> tuple[Tensor, ...]:
        ctx.gather, ctx.shape = gather, rows.shape
        if gather.is_padded:
            return rows.index_select(1, gather.take).split([len(take) for take in gather.takes], dim=1)
        return tuple(rows.index_select(1, take) for take in gather.takes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gather = ctx.gather
        if gather.is_padded:
            grad, (n, n_prefix) = torch.cat(grads, dim=1), gather.parts[-1]
            keys_and_values = grad[:, -2 * len(gather.takes[-1]) :].unflatten(1, (2, n, -1))
            sums = keys_and_values[:, :, :, :n_prefix].sum(2).flatten(1, 2)
            return grad.index_select(1, gather.give).index_copy_(1, gather.prefix, sums), None
        rows = grads[0].new_empty(ctx.shape)
        sums = []  # over the entries of each bucket: of keys, of values, of keys ...
        for grad, class_take, (n, n_prefix) in zip(grads, gather.class_takes, gather.parts, strict=True):
            grad = grad.unflatten(1, (n, -1))
            if n_prefix:
                sums.append(grad[:, :, :n_prefix].sum(1))
                grad = grad[:, :, n_prefix:]
            rows.index_copy_(1, class_take, grad.flatten(1, 2))
        return rows.index_copy_(1, gather.prefix, torch.cat([sum(sums[0::2]), sum(sums[1::2])], dim=1)), None


class DropPadding(torch.autograd.Function):
    """The first n rows out of padded queries, (groups, slots, width) -> (groups, n, width).

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
