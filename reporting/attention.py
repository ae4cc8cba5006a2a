"""What the layers of an image tower attend to, drawn over the image."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reporting.drawing import COLOURS, FILE_FORMATS, panels, style, wrapped

if TYPE_CHECKING:
    from numpy import ndarray


def draw_attention(
    image: ndarray,
    maps: Mapping[int, ndarray],
    on_prompts: Sequence[float],
    gates: Mapping[int, float],
    title: str,
    file_format: str,
    dpi: int = 150,
) -> bytes:
    """A png or svg file: the image, a heat map for each layer, and by layer the share of attention on prompts.

    Args:
        image: (height, width, 3), from 0 to 1, as the tower sees it.
        maps: by layer, the attention of [CLS] to the patches, (rows, columns); each has its own scale from 0.
        on_prompts: the share of [CLS]'s attention on prompt tokens, of every layer.
        gates: by layer, the weight of the tower's own prompt; the rest is the projected one's (BMIP).
        title: above the image.
        file_format: png or svg.
        dpi: of a png.
    """
    height, width = image.shape[:2]
    prompted = any(on_prompts)
    with style():
        figure, axes = panels(1 + len(maps) + prompted, columns=5, size=(2.0, 2.2))
        axes[0].imshow(image)
        axes[0].set_title(wrapped(axes[0], title))
        for panel, (layer, heat) in zip(axes[1:], maps.items(), strict=False):
            panel.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            panel.imshow(heat, cmap="inferno", alpha=0.65, vmin=0, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            said = [f"prompts {100 * on_prompts[layer]:.0f}%"] if prompted else []
            said += [f"gate {gates[layer]:.2f}"] if layer in gates else []
            panel.set_title(f"layer {layer}\n{', '.join(said)}", fontsize=8)
        for panel in axes[: 1 + len(maps)]:
            panel.axis("off")
        if prompted:
            axes[-1].plot(on_prompts, color=COLOURS[0], marker="o", label="share on prompts")
            if gates:
                layers, weights = zip(*gates.items(), strict=True)
                label = "gate: weight of the tower's\nown prompt, rest: projected"
                axes[-1].plot(layers, weights, color=COLOURS[1], marker="s", label=label)
            axes[-1].set(xlabel="layer", ylim=(0, 1))
            axes[-1].xaxis.get_major_locator().set_params(integer=True)
            axes[-1].legend(fontsize=6, handlelength=1.5)
        figure.savefig(buffer := io.BytesIO(), format=file_format, dpi=dpi, metadata=FILE_FORMATS[file_format])
    return buffer.getvalue()
