"""Where every row of the text tower sits when all classes' rows are packed into one tensor.

    rows that stay: [head rows | class rows, sorted by length]        prompt rows that deep layers replace

The *head* are the tokens that all classes begin with; its rows are computed once. Classes of equal length form a
*bucket*, whose attention is one batched call over (head + own rows). When a layer's prompts differ between classes, the
head shrinks to [SOS] and the prompts belong to the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prompting.layout import PromptLayout


@dataclass(frozen=True)
class Bucket:
    """Classes whose own part has the same length.

    Attributes:
        classes: number of classes.
        length: rows of each class that always stay (its deep prompts not counted).
    """

    classes: int
    length: int


class Rows(NamedTuple):
    """Something of all packed rows: their states, their Q, K and V, what they attended to.

    Attributes:
        stay: (groups, stay_rows, ...).
        prompts: (groups, prompt_rows, ...); no rows without deep prompts.
    """

    stay: Tensor
    prompts: Tensor


# A bucket's own rows, (groups, classes, n, ...) each, in sentence order: the classes' prompts, if they have some, and
# the rows that stay.
Own = tuple[Tensor, ...]


class Packing:
    """Where every row of a layout sits in the packed tensors, for a given number of deep prompts.

    Args:
        layout: the classes' tokens.
        n_prompts: prompt tokens that deep layers replace, at positions 1..n_prompts; 0 without deep prompts.
        per_class: whether these prompts differ between classes.
        device: where the index tensors live.
    """

    def __init__(self, layout: PromptLayout, n_prompts: int, per_class: bool, device: torch.device) -> None:
        self.layout, self.n_prompts, self.per_class, self.device = layout, n_prompts, per_class, device
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
        self._index_rows(order, head, first_own, shared_prompts)

    def _index_rows(self, order: Tensor, head: int, first_own: int, shared_prompts: int) -> None:
        """Token, position and context vector of every packed row, words and learned rows apart."""
        stay = [(int(order[0]), p) for p in range(head) if not 1 <= p <= shared_prompts]
        for c in order.tolist():
            stay += [(c, p) for p in range(first_own, int(self.layout.lengths[c]))]
        owners = order.tolist() if self.per_class else [int(order[0])]
        prompts = [(c, p) for c in owners for p in range(1, 1 + self.n_prompts)]
        self.cells = (stay, prompts)  # (class, position) of every row
        self.stay_rows, self.prompt_rows = len(stay), len(prompts)
        rows = torch.tensor(stay + prompts)
        context = self.layout.context[rows[:, 0], rows[:, 1]]
        words, learned = (context < 0).nonzero()[:, 0], (context >= 0).nonzero()[:, 0]
        self.word_token = self.layout.tokens[rows[words, 0], rows[words, 1]].to(self.device)
        self.word_position = rows[words, 1].to(self.device)
        self.learned_context = context[learned].to(self.device)
        self.learned_position = rows[learned, 1].to(self.device)
        self.packed_order = torch.argsort(torch.cat([words, learned])).to(self.device)

    def split(self, packed: Tensor) -> Rows:
        """One tensor of all rows, (groups, stay_rows + prompt_rows, ...), in two."""
        return Rows(*packed.split([self.stay_rows, self.prompt_rows], dim=1))

    def unpack(self, rows: Rows) -> tuple[Tensor, list[Own]]:
        """Head, (groups, n_head, ...) in sentence order, and every bucket's own rows."""
        stay, prompts = rows
        head, *owns = stay.split([self.head_rows, *(b.classes * b.length for b in self.buckets)], dim=1)
        owns = [own.unflatten(1, (b.classes, b.length)) for own, b in zip(owns, self.buckets, strict=True)]
        if self.n_prompts == 0:
            return head, [(own,) for own in owns]
        if not self.per_class:
            return torch.cat([head[:, :1], prompts, head[:, 1:]], dim=1), [(own,) for own in owns]
        prompts = prompts.unflatten(1, (-1, self.n_prompts)).split([b.classes for b in self.buckets], dim=1)
        return head, list(zip(prompts, owns, strict=True))

    def pack(self, head: Tensor, owns: list[Tensor]) -> Rows:
        """The inverse of :meth:`unpack`, from one tensor per bucket, (groups, classes, n_own, ...)."""
        n = self.n_prompts
        prompts = head[:, :0]
        if n and self.per_class:
            prompts = torch.cat([own[:, :, :n].flatten(1, 2) for own in owns], dim=1)
            owns = [own[:, :, n:] for own in owns]
        elif n:
            prompts = head[:, 1 : 1 + n]
            head = torch.cat([head[:, :1], head[:, 1 + n :]], dim=1)
        return Rows(torch.cat([head, *(own.flatten(1, 2) for own in owns)], dim=1), prompts)


class Spreading:
    """Takes rows from where all classes share their prompts to where each class has its own.

    Args:
        shared: how the rows are packed.
        own: how they shall be, of the same layout.
    """

    def __init__(self, shared: Packing, own: Packing) -> None:
        self.own = own
        stay, prompts = shared.cells
        row_of = {cell: row for row, cell in enumerate(stay)}
        row_of |= {(None, p): row for row, (_, p) in enumerate(stay[: shared.head_rows])}
        prompt_of = {p: row for row, (_, p) in enumerate(prompts)}
        stay_index = [row_of.get((None, p), row_of.get((c, p))) for c, p in own.cells[0]]
        self.stay_index = torch.tensor(stay_index, device=own.device)
        self.prompt_index = torch.tensor([prompt_of[p] for _, p in own.cells[1]], device=own.device)

    def stay(self, rows: Tensor) -> Tensor:
        """Rows that stay, (groups, shared stay_rows, ...) -> (groups, stay_rows, ...)."""
        return rows.index_select(1, self.stay_index)

    def prompts(self, rows: Tensor) -> Tensor:
        """Prompt rows, (groups, n_prompts, ...) -> (groups, prompt_rows, ...)."""
        return rows.index_select(1, self.prompt_index)
