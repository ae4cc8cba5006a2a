"""What is wrong with the numbers of an evaluation: logits that are not finite, features of norm zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHOWN = 5


class Watch:
    """Notes, batch by batch and without waiting for a GPU, which images and classes have such numbers.

    Attributes:
        zero_classes: names of the classes whose text feature has norm zero, as far as :meth:`heed` was asked.
    """

    def __init__(self, classnames: Sequence[str]) -> None:
        self.classnames = classnames
        self.zero_classes: list[str] = []
        self._images: list[Tensor] = []  # per batch, (2, batch): logits not finite, feature of norm zero
        self._texts: list[Tensor] = []  # per batch whose texts are its own, (n_cls,): feature of norm zero

    def see_text(self, text: Tensor) -> None:
        """Look at the text features that serve all batches, (n_cls, dim).

        Raises:
            FloatingPointError: one is infinite or NaN; the classes are named.
        """
        broken, zero = torch.stack([~text.isfinite().all(dim=-1), ~text.any(dim=-1)]).tolist()
        if any(broken):
            classes = shown(_chosen(self.classnames, broken))
            raise FloatingPointError(f"the text feature of {classes} is infinite or NaN")
        self.zero_classes = _chosen(self.classnames, zero)

    def see(self, logits: Tensor, image: Tensor, text: Tensor) -> None:
        """Look at a batch: logits (batch, n_cls), image features (batch, dim), text features (of each image: 3-D)."""
        self._images.append(torch.stack([~logits.isfinite().all(dim=1), ~image.any(dim=1)]))
        if text.dim() == 3:
            self._texts.append((~text.any(dim=-1)).any(dim=0))

    def heed(self, names: Sequence[str]) -> list[str]:
        """Say what was seen of the images since the last call.

        Args:
            names: of these images, in order; of another number, their positions stand in for them.

        Returns:
            The names of those whose feature has norm zero.

        Raises:
            FloatingPointError: the logits of one are infinite or NaN; the images are named.
        """
        if not self._images:
            return []
        broken, zero = torch.cat(self._images, dim=1).tolist()
        if self._texts:
            self.zero_classes = _chosen(self.classnames, torch.stack(self._texts).any(dim=0).tolist())
        self._images, self._texts = [], []
        if len(names) != len(broken):
            names = [f"image {position}" for position in range(1, len(broken) + 1)]
        if any(broken):
            raise FloatingPointError(f"the logits of {shown(_chosen(names, broken))} are infinite or NaN")
        return _chosen(names, zero)


def shown(names: Sequence[str]) -> str:
    """The first few of the names, and how many there are more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _chosen(names: Sequence[str], flags: Sequence[bool]) -> list[str]:
    return [name for name, flag in zip(names, flags, strict=True) if flag]
