"""The frozen towers for several runs at once: their batches become one, each with its own run's prompts.

The towers' weights are the same for every run, so their matrix products are batched: images one after the other, with
prompt tokens per image; texts as groups, with context and deep prompts per group. A run's gates see its own images or
classes only. Apart from the rounding of larger matrix products each run gets what it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from prompting.lockstep import Member
from prompting.model import PromptedCLIP
from prompting.prompts import AttentionMass, DeepPrompt, GatedPrompt, TextPrompts, VisionPrompts, differs
from prompting.tokens import PromptLayout

Images = tuple[Tensor, VisionPrompts]
Texts = tuple[PromptLayout, TextPrompts]

_layout_keys: WeakKeyDictionary[PromptLayout, Hashable] = WeakKeyDictionary()


def join_towers(model: PromptedCLIP, member: Member) -> None:
    """Let a run's towers compute together with those of the other runs while it trains; changes the model in place.

    Args:
        model: of the run; its CLIP must be the very one of the other runs.
        member: the run.
    """
    encode_images, encode_texts = model.image_encoder.forward, model.text_encoder.forward
    visual, blocks = model.image_encoder.visual, model.text_encoder.blocks

    def images_forward(images: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        prompts = prompts or VisionPrompts()
        if not model.prompt_learner.training:
            return encode_images(images, prompts)
        key = ("images", id(visual), torch.is_grad_enabled(), prompts.tokens is None, _deep_key(prompts.deep))
        return member.meet(key, (images, prompts), lambda runs: _encode_images(encode_images, runs), last=False)

    def texts_forward(layout: PromptLayout, prompts: TextPrompts | None = None) -> Tensor:
        prompts = prompts or TextPrompts()
        if not model.prompt_learner.training or prompts.context is None:
            return encode_texts(layout, prompts)
        key = ("texts", id(blocks), torch.is_grad_enabled(), _layout_key(layout), _deep_key(prompts.deep))
        return member.meet(key, (layout, prompts), lambda runs: _encode_texts(encode_texts, runs), last=False)

    model.image_encoder.forward = images_forward
    model.text_encoder.forward = texts_forward


def joint_backward(member: Member, loss: Tensor) -> None:
    """Compute the gradients of a run's loss together with those of the other runs, whose graphs share the towers."""

    def backward(losses: list[Tensor]) -> list[None]:
        torch.autograd.backward(losses)
        return [None] * len(losses)

    member.meet("backward", loss, backward, last=True)


def _deep_key(deep: Any) -> Hashable:
    """What deep prompts of several runs must have in common to go through a tower together."""
    gated = {layer: differs(prompt) for layer, prompt in deep.items()}
    lengths = {p.n_prompts if isinstance(p, GatedPrompt) else p.shape[-2] for p in deep.values()}
    return tuple(sorted(gated.items())), tuple(sorted(lengths))


def _layout_key(layout: PromptLayout) -> Hashable:
    if layout not in _layout_keys:
        parts = (layout.tokens, layout.context, layout.lengths)
        _layout_keys[layout] = tuple((tuple(part.shape), part.cpu().numpy().tobytes()) for part in parts)
    return _layout_keys[layout]


def _encode_images(encode: Callable[..., Tensor], runs: Sequence[Images]) -> Sequence[Tensor]:
    if len(runs) == 1:
        return [encode(*runs[0])]
    sizes = [len(images) for images, _ in runs]
    prompts = [prompts for _, prompts in runs]
    tokens = None if prompts[0].tokens is None else _per_row([p.tokens for p in prompts], sizes)
    deep = {layer: _merge([p.deep[layer] for p in prompts], sizes) for layer in prompts[0].deep}
    return encode(torch.cat([images for images, _ in runs]), VisionPrompts(tokens, deep)).split(sizes)


def _encode_texts(encode: Callable[..., Tensor], runs: Sequence[Texts]) -> Sequence[Tensor]:
    if len(runs) == 1:
        return [encode(*runs[0])]
    layout, first = runs[0]
    contexts = [p.context if p.context.dim() == 3 else p.context.unsqueeze(0) for _, p in runs]
    groups = [len(context) for context in contexts]
    deep = {layer: _merge([p.deep[layer] for _, p in runs], groups, layout.n_classes) for layer in first.deep}
    features = encode(layout, TextPrompts(torch.cat(contexts), deep)).split(groups)
    return [own if p.context.dim() == 3 else own[0] for own, (_, p) in zip(features, runs, strict=True)]


def _per_row(tokens: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Every run's tokens, (n_prompts, width) or (size, n_prompts, width), for each of its rows."""
    return torch.cat([own.expand(size, -1, -1) for own, size in zip(tokens, sizes, strict=True)])


def _merge(prompts: Sequence[DeepPrompt], sizes: Sequence[int], classes: int = 1) -> DeepPrompt:
    """One layer's prompts of all runs: tokens per row, or a gate that hands each run's rows to its own gate.

    Args:
        prompts: of each run.
        sizes: images, or groups of texts, of each run.
        classes: rows that a gate reads per image or group.
    """
    gates = [prompt for prompt in prompts if isinstance(prompt, GatedPrompt)]
    if not gates:
        return _per_row(prompts, sizes)
    rows = [size * classes for size in sizes]

    def weigh(attention: AttentionMass) -> Tensor:
        n_keys = attention.n_keys
        n_keys = n_keys.split(rows) if isinstance(n_keys, Tensor) else [n_keys] * len(rows)
        own = zip(gates, attention.mass.split(rows), n_keys, strict=True)
        weights = [gate.weigh(AttentionMass(mass, n_keys)) for gate, mass, n_keys in own]
        return torch.cat([weight.expand(count, -1) for weight, count in zip(weights, rows, strict=True)])

    own, foreign = (_per_row(tokens, sizes) for tokens in ([g.own for g in gates], [g.foreign for g in gates]))
    return GatedPrompt(weigh, own, foreign, per_sample=True)
