"""Small random CLIPs in OpenAI's architecture, reproducible from a seed."""

import torch
from clip.model import CLIP

CLASSNAMES = ["cat", "golden retriever", "sea_anemone", "dog", "yellow lady's slipper", "crane (bird)"]


def random_clip(vision_layers=4, seed=0, **sizes):
    """A CLIP whose logits are not degenerate: matrices scaled up, logit scale 100."""
    kwargs = dict(
        embed_dim=64,
        image_resolution=32,
        vision_layers=vision_layers,
        vision_width=128,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(**(kwargs | sizes)).float().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "ln" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.logit_scale.fill_(torch.tensor(100.0).log())
    return model
