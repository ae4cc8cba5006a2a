"""What pretraining does to drawings before a CLIP sees them: random changes, and CLIP's normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

RESOLUTION = 48
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers between two bounds."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def augment_glyphs(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, slant, scale, shift and tint glyphs.

    Args:
        pixels: (B, CANVAS, CANVAS) uint8, dark on white.
        generator: source of all randomness.
        strength: 0 leaves the shape alone, 1 is the full range.

    Returns:
        (B, 3, RESOLUTION, RESOLUTION), normalised as CLIP's images.
    """
    number = len(pixels)
    angle, shear, stretch = (strength * uniform(-bound, bound, (number,), generator) for bound in (0.25, 0.3, 0.1))
    zoom = 1 + strength * uniform(-0.2, 0.5, (number,), generator)
    shift_x, shift_y = strength * uniform(-0.08, 0.08, (2, number), generator)
    width = zoom * (1 + stretch)
    row_x = torch.stack([angle.cos() * width, shear - angle.sin() * zoom, shift_x], dim=1)
    row_y = torch.stack([angle.sin() * width, angle.cos() * zoom, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [number, 1, RESOLUTION, RESOLUTION], align_corners=False)
    ink = 1 - pixels[:, None] / 255  # white is 0, so that what lies outside the canvas is white
    images = 1 - F.grid_sample(ink, grid, align_corners=False)
    tint = uniform(0.8, 1.2, (number, 3, 1, 1), generator) * uniform(0.8, 1.2, (number, 1, 1, 1), generator)
    return ((images * tint).clamp(0, 1) - MEAN) / STD


def augment_emoji(pixels: Tensor, may_flip: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, slant, scale, shift, mirror, tint and grey drawings.

    Args:
        pixels: (B, CANVAS, CANVAS, 3) uint8, on white.
        may_flip: (B,) bool, which may be mirrored.
        generator: source of all randomness.
        strength: 0 leaves the shape alone, 1 is the full range.

    Returns:
        (B, 3, RESOLUTION, RESOLUTION), normalised as CLIP's images.
    """
    number = len(pixels)
    angle, shear, stretch = (strength * uniform(-bound, bound, (number,), generator) for bound in (0.2, 0.1, 0.1))
    zoom = 1 + strength * uniform(-0.25, 0.25, (number,), generator)
    shift_x, shift_y = strength * uniform(-0.12, 0.12, (2, number), generator)
    mirror = 1 - 2 * ((torch.rand(number, generator=generator) < 0.5) & may_flip).float()
    width = zoom * (1 + stretch)
    row_x = torch.stack([mirror * angle.cos() * width, shear - angle.sin() * zoom, shift_x], dim=1)
    row_y = torch.stack([mirror * angle.sin() * width, angle.cos() * zoom, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [number, 3, RESOLUTION, RESOLUTION], align_corners=False)
    ink = 1 - pixels.permute(0, 3, 1, 2) / 255  # white is 0, so that what lies outside the canvas is white
    images = 1 - F.grid_sample(ink, grid, align_corners=False)
    tint = uniform(0.7, 1.3, (number, 3, 1, 1), generator) * uniform(0.7, 1.3, (number, 1, 1, 1), generator)
    images = (images * tint).clamp(0, 1)
    grey = torch.rand(number, 1, 1, 1, generator=generator) < 0.15
    return (torch.where(grey, images.mean(dim=1, keepdim=True), images) - MEAN) / STD


def prepare(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 as CLIP's transform makes them: bicubic to RESOLUTION, normalised, (B, 3, R, R)."""
    size = (RESOLUTION, RESOLUTION)
    images = F.interpolate(pixels.permute(0, 3, 1, 2) / 255, size, mode="bicubic", antialias=True, align_corners=False)
    return (images.clamp(0, 1) - MEAN) / STD
