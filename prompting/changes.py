"""What a method changes in the frozen weights of a tower's blocks: terms beside their products, other LayerNorms.

The model's modules stay as they are: a block that is changed is another object, of the same frozen tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

# A term added to a product with a frozen matrix: from the product's input, (..., n_in), to what is added, (..., n_out).
# It sees each row alone, so that what classes share stays shared. One with a true attribute `draws` draws at random.
Term = Callable[[Tensor], Tensor]

# Which blocks of a tower, as CLIP-LoRA names them: thirds, halves and the last three.
POSITIONS = ("all", "bottom", "mid", "up", "half-bottom", "half-up", "top3")


def layers_at(position: str, n_layers: int) -> range:
    """The layers of a tower at a position of ``POSITIONS``, counted from 0."""
    third, half = n_layers // 3, n_layers // 2
    ends = {"bottom": (0, third), "mid": (third, 2 * third), "up": (2 * third, n_layers), "all": (0, n_layers)}
    ends |= {"half-bottom": (0, half), "half-up": (half, n_layers), "top3": (max(0, n_layers - 3), n_layers)}
    return range(*ends[position])


@dataclass(frozen=True)
class Norm:
    """A LayerNorm with a scale and shift of its own, (width,) each, in place of a frozen one."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The rows, (..., width), normalised in float32."""
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


@dataclass(frozen=True)
class BlockChange:
    """The change of one block, the same for all rows.

    Attributes:
        terms: by name of the product: "q", "k", "v", "o" (the attention's output), "up" and "down" (the MLP's).
        norms: by name of the LayerNorm, "ln_1" or "ln_2".
    """

    terms: Mapping[str, Term] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)


class ChangedBlock:
    """A residual attention block with a change: its parts by the names that they have in the block, and the terms."""

    def __init__(self, block: nn.Module, change: BlockChange) -> None:
        self.attn, self.mlp, self.terms = block.attn, block.mlp, change.terms
        self.ln_1, self.ln_2 = (change.norms.get(name, getattr(block, name)) for name in ("ln_1", "ln_2"))


def changed_blocks(blocks: Iterable[nn.Module], changes: Mapping[int, BlockChange], tower: str) -> list:
    """The blocks, those with a change replaced; a ValueError for a change of a layer that the tower does not have."""
    blocks = list(blocks)
    if wrong := [layer for layer in changes if not 0 <= layer < len(blocks)]:
        raise ValueError(
            f"a change of layer {wrong[0]} of the {tower} tower, which has layers 0..{len(blocks) - 1}: leave it out, "
            "or take a deeper backbone"
        )
    return [ChangedBlock(block, changes[i]) if i in changes else block for i, block in enumerate(blocks)]


def terms_of(block: nn.Module | ChangedBlock) -> Mapping[str, Term]:
    """The terms beside a block's products, by name."""
    return block.terms if isinstance(block, ChangedBlock) else {}


def draws(block: nn.Module | ChangedBlock) -> bool:
    """Whether running the block draws random numbers."""
    return any(getattr(term, "draws", False) for term in terms_of(block).values())


def plus(product: Tensor, term: Term | None, x: Tensor) -> Tensor:
    """A product of ``x`` and the term beside it, if there is one."""
    return product if term is None else product + term(x).to(product.dtype)
