"""A small CLIP and its training: OpenAI's architecture, captions as tokens, the contrastive loss, the optimiser."""

import math
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

from prompting.state_dict import read_bundled
from tools.augment import RESOLUTION

TEXT_GROUP = 32  # captions encoded at once
VOCABULARY, CONTEXT_LENGTH = 49408, 77
ARCHITECTURE = {
    "embed_dim": 128,
    "image_resolution": RESOLUTION,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": CONTEXT_LENGTH,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 4,
}


class Vocabulary:
    """The tokens in use, renumbered without gaps: the embedding that is trained has these rows only.

    The order of ids is kept, so that [EOT] still has the highest id, which is how CLIP finds it.
    """

    def __init__(self, captions: list[str]) -> None:
        self.ids = torch.unique(clip.tokenize(captions))
        self._row = torch.full((VOCABULARY,), -1)
        self._row[self.ids] = torch.arange(len(self.ids))

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions as rows of the small embedding, (B, longest) long, cut after the longest [EOT]."""
        tokens = clip.tokenize(captions)
        rows = self._row[tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]]
        if (rows < 0).any():
            raise ValueError(f"a caption has a word outside the vocabulary: {captions}")
        return rows


def new_model(vocabulary: int, seed: int) -> CLIP:
    """A randomly initialised small CLIP in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(vocab_size=vocabulary, **ARCHITECTURE).float()


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """CLIP's text features for a cut token matrix: exact, since what follows [EOT] cannot influence it."""
    length = tokens.shape[1]
    for block in model.transformer.resblocks:
        block.attn_mask = causal_mask(length).to(tokens.device)
    return model.encode_text(tokens)


def causal_mask(length: int) -> Tensor:
    """(length, length), -inf above the diagonal."""
    return torch.full((length, length), -math.inf).triu_(1)


def encode_image(model: CLIP, images: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """CLIP's image features (B, dim) from a random part of the image tokens; all of them if `kept` is 1."""
    if kept >= 1:
        return model.visual(images)
    tower = model.visual
    tokens = tower.conv1(images).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
    number, length, width = tokens.shape
    chosen = torch.rand(number, length, generator=generator).argsort(dim=1)[:, : round(kept * length)]
    chosen = chosen.to(images.device)  # drawn on the CPU, so that every device drops the same
    tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(number, 1, -1)
    tokens = tower.ln_pre(torch.cat([first, tokens], dim=1)).permute(1, 0, 2)
    return tower.ln_post(tower.transformer(tokens)[0]) @ tower.proj


def encode_text_by_length(model: CLIP, tokens: Tensor) -> Tensor:
    """CLIP's text features (B, dim), short captions apart from long ones so that none is padded for long."""
    order = tokens.argmax(dim=-1).argsort(stable=True)
    parts = tokens[order].split(TEXT_GROUP)
    features = torch.cat([encode_text(model, part[:, : int(part.argmax(dim=-1).max()) + 1]) for part in parts])
    return features[order.argsort()]


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, the target uniform over all pairs that fit.

    Args:
        logits: (B, B) images against captions.
        same: (B, B) bool, true where the caption is about the image; need not be symmetric.
    """
    fits = same.float()
    loss_image = -(fits / fits.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    loss_text = -(fits / fits.sum(dim=0, keepdim=True) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (loss_image + loss_text) / 2


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW as CLIP's: no weight decay on gains, biases and embeddings."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "embedding" not in name]
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), foreach=True)


@torch.no_grad()
def logits_of(model: CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, classes) of images against captions."""
    text_features = F.normalize(torch.cat([encode_text(model, part) for part in tokens.split(256)]), dim=-1)
    features = torch.cat([F.normalize(model.visual(part), dim=-1) for part in images.split(256)])
    return model.logit_scale.exp() * features @ text_features.T


def full_state_dict(model: CLIP, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The trained weights with the token embedding back at its full size, zero where untrained."""
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    rows = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.zeros(VOCABULARY, rows.shape[1])
    state["token_embedding.weight"][vocabulary.ids] = rows
    return state


def load_model(path: Path) -> CLIP:
    """The model as it is on disk, that is, after rounding to fp16."""
    model = new_model(VOCABULARY, seed=0)
    model.load_state_dict(read_bundled(path))
    return model.eval()
