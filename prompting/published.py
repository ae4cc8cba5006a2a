"""Checkpoints of the published repositories: which tensors they hold, under our names.

Read from the repositories CoOp (CoOp, CoCoOp), KgCoOp, Prompt-align (ProGrad), multimodal-prompt-learning (MaPLe, IVLP,
VPT), PromptSRC, CoPrompt, Textual-based_Class-aware_prompt_tuning (TCP), VLM-MultiModalAdapter (MMA), DePT (CoOp_DePT),
MMRL (MMRL, MMRLpp), TaskRes, CLIP-Adapter, CLIP-LoRA, HiCroPL, PromptKD and BMIP (BMIP, ProDA, PromptSRC_BMIP). Most
save the whole CLIP with the prompts; what is frozen, or trainable by name but never used, is left out. A tensor that is
neither makes the file unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from common.unpickling import CheckpointError
from prompting.changes import layers_at

# Names are regular expressions in which a dot is a dot and {i}, {part} and {any} stand for these.
PLACEHOLDERS = {"i": r"(?P<i>\d+)", "part": "(?P<part>weight|bias)", "any": ".+"}


@dataclass(frozen=True)
class Format:
    """What one repository saves for one method, by patterns of whole names."""

    # Published name -> our name; {before} is {i} less one, since our lists of deep prompts begin with layer 1.
    trained: Mapping[str, str]
    ignored: tuple[str, ...]  # frozen or never used
    needed: tuple[str, ...]  # each must be there, so that methods are told apart
    # Our gate lists -> how many gates they have fewer than there are deep prompts; the others are unused.
    gates: Mapping[str, int] = field(default_factory=dict)
    note: str = ""  # settings that the trainer needs for such a file
    like: str = ""  # a method whose files have the same tensors: a file that names no trainer is taken for that one's

    def our_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """Our name of each trained tensor, ``None`` for one that is ignored; a tensor that is neither is left out."""
        ours: dict[str, str | None] = {}
        for name in names:
            for pattern, target in [*self.trained.items(), *dict.fromkeys(self.ignored).items()]:
                if found := _regex(pattern).fullmatch(name):
                    groups = found.groupdict()
                    ours[name] = target and target.format(**groups, before=int(groups.get("i", 0)) - 1)
                    break
        return ours

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The needed patterns that none of the names matches."""
        return [pattern for pattern in self.needed if not any(_regex(pattern).fullmatch(name) for name in names)]


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(".", r"\.").format(**PLACEHOLDERS))


_BUFFERS = ("(prompt_learner.)?(nc_)?token_(prefix|suffix)",)
_TOWERS = (
    "(image|text)_encoder.(class_embedding|positional_embedding|proj|text_projection)",
    r"(image|text)_encoder.(conv|bn|ln|layer|attnpool)\w*.{any}",
    "(image|text)_encoder.transformer.resblocks.{i}.(attn|ln_1|ln_2|mlp).{any}",
    "logit_scale",
)
_WHOLE_CLIP = (*_BUFFERS, *_TOWERS)
_TEACHER_TOWER = "prompt_learner.ZS_image_encoder.{any}"
_CONTEXT = {"prompt_learner.ctx": "ctx"}
_META_NET = {"ctx": "ctx", **{f"meta_net.linear{n}.{{part}}": f"meta_net.linear{n}.{{part}}" for n in (1, 2)}}
_VISION_PROMPTS = {
    "image_encoder.VPT": "vision_tokens",
    "image_encoder.transformer.resblocks.{i}.VPT_shallow": "vision_prompts.{before}",
}
_IVLP = {**_CONTEXT, **_VISION_PROMPTS, "text_encoder.transformer.resblocks.{i}.VPT_shallow": "text_prompts.{before}"}
_MAPLE = {
    **_CONTEXT,
    "prompt_learner.proj.{part}": "proj.{part}",
    "prompt_learner.compound_prompts_text.{i}": "text_prompts.{i}",
    "prompt_learner.compound_prompt_projections.{i}.{part}": "projections.{i}.{part}",
}
_COPROMPT = {pattern: f"prompts.{target}" for pattern, target in _MAPLE.items()} | {
    f"adapter_{tower}.fc.{number}.weight": f"adapter_{tower}.{name}"
    for tower in ("image", "text")
    for number, name in ((0, "down"), (2, "up"))
}
_MMA = {"shared_adapter.{i}.0.{part}": "shared.{i}.{part}"} | {
    f"{theirs}_adapter.{{i}}.{layer}.{{part}}": f"{ours}_adapters.{{i}}.{name}.{{part}}"
    for theirs, ours in (("text", "text"), ("visual", "vision"))
    for layer, name in (("down.0", "down"), ("up", "up"))
}
_DEPT_HEAD = {
    "film_lp_img.scale": "head.image_scale",
    "film_lp_img.bias": "head.image_shift",
    "film_lp_text.scale": "head.text_scale",
    "film_lp_text.bias": "head.text_shift",
    "linear_probe_proj.{part}": "head.classifier.{part}",
}
_MMRL = {
    "representation_learner.compound_rep_tokens": "space",
    "representation_learner.compound_rep_tokens_r2vproj.{i}.{part}": "to_vision.{i}.{part}",
    "representation_learner.compound_rep_tokens_r2tproj.{i}.{part}": "to_text.{i}.{part}",
    "image_encoder.proj_rep": "rep_projection",
}
_MMRLPP = {"representation_learner.compound_rep_tokens": "space"} | {
    f"representation_learner.srra_r2{letter}proj.{theirs}": f"to_{tower}.{ours}"
    for letter, tower in (("v", "vision"), ("t", "text"))
    for theirs, ours in (
        *(("weight", "weight"), ("srra.{i}.bias", "bias.{i}")),
        *(("srra.{i}.A", "up.{i}"), ("srra.{i}.B", "down.{i}")),
    )
}
_MMRLPP |= {"image_encoder.A": "readout_down", "image_encoder.B": "readout_up"}
_REST = r"(?P<rest>\S+)"  # of a name
_HICROPL = {
    **_CONTEXT,
    "prompt_learner.cross_prompts_text.(?P<i>[1-9]\\d*)": "text_prompts.{before}",
    "prompt_learner.cross_prompts_visual.0": "vision_tokens",
    "prompt_learner.cross_prompts_visual.{i}": "vision_prompts.{before}",
    **{
        f"prompt_learner.{theirs}.{_REST}": f"{ours}.{{rest}}"
        for theirs, ours in (
            *(("text2visual_net", "text_to_vision"), ("visual2text_net", "vision_to_text")),
            *(("attn_pooling_text_nets", "text_pooling"), ("attn_pooling_visual_nets", "vision_pooling")),
            *(("text_proxy_token", "text_proxies"), ("visual_proxy_token", "vision_proxies")),
        )
    },
}
_PROMPTKD = _VISION_PROMPTS | {
    "VPT_image_trans.conv1.(?P<i>[013]).{part}": "projection.{i}.{part}",
    "VPT_image_trans.conv1.1.running_(?P<rest>mean|var)": "projection.1.running_{rest}",
}
_LORA_LAYER = "weights.(?P<tower>text|vision).{i}"  # as from_lora_file writes them
_LORA = {
    f"{_LORA_LAYER}.{theirs}.w_lora_{matrix}": f"{{tower}}.{{i}}.{ours}.{matrix}"
    for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("proj", "o"))
    for matrix in "AB"
}
_BMIP_GATE = "image_encoder.transformer.resblocks.{i}.learnable_linear1.weight"
_BMIP = {
    "prompt_learner.ctx_t": "ctx",
    "prompt_learner.proj_t.{part}": "project_ctx.{part}",
    "prompt_learner.compound_prompts_text.{i}": "text_prompts.{i}",
    "prompt_learner.compound_prompts_visual.{i}": "vision_prompts.{i}",
    "prompt_learner.single_layer_t.{part}": "text_to_vision.{part}",
    "prompt_learner.single_layer_v.{part}": "vision_to_text.{part}",
    "prompt_learner.compound_prompt_projections_t.{i}.{part}": "text_to_vision.{i}.{part}",
    "prompt_learner.compound_prompt_projections_v.{i}.{part}": "vision_to_text.{i}.{part}",
    _BMIP_GATE: "vision_gates.{before}.alpha",
    "image_encoder.transformer.resblocks.{i}.learnable_linear1.bias": "vision_gates.{before}.beta",
    "text_encoder.transformer.resblocks.{i}.learnable_linear2.bias": "text_gates.{before}.beta",
}
# Trainable by name, never reached by a gradient: the second context and its projection, the exchange layers, the gates
# of the other tower, and the text gates' slope, which multiplies a zero.
_BMIP_UNUSED = (
    "prompt_learner.(ctx_v|proj_v.{part})",
    "prompt_learner.(exchange_layer|compound_exchange)_[tv].{any}",
    "image_encoder.transformer.resblocks.{i}.learnable_linear2.{part}",
    "text_encoder.transformer.resblocks.{i}.learnable_linear(1.{part}|2.weight)",
)
_BMIP_GATES = {"vision_gates": 0, "text_gates": 1}
_BMIP_NOTE = "a file of the released BMIP code needs TRAINER.BMIP.GATE official and TRAINER.BMIP.AGGREGATOR gate"

FORMATS: dict[str, Format] = {
    "CoOp": Format({"ctx": "ctx"}, _BUFFERS, ("ctx",)),
    "CoCoOp": Format(_META_NET, _BUFFERS, ("ctx", "meta_net.linear2.weight")),
    "ProGrad": Format({"ctx": "ctx"}, _BUFFERS, ("ctx",), like="CoOp"),
    "TCP": Format(_META_NET, _BUFFERS, ("ctx", "meta_net.linear2.weight")),
    "KgCoOp": Format({"ctx": "ctx"}, (*_BUFFERS, "bias_vectors", "meta_net.linear1.{part}"), ("ctx", "bias_vectors")),
    "ProDA": Format(_CONTEXT, _WHOLE_CLIP, ("prompt_learner.ctx",)),
    "VPT": Format(_VISION_PROMPTS, _TOWERS, ("image_encoder.VPT",)),
    "IVLP": Format(_IVLP, ("prompt_learner.token_(prefix|suffix)", *_TOWERS), ("prompt_learner.ctx",)),
    "MaPLe": Format(_MAPLE, _WHOLE_CLIP, ("prompt_learner.ctx", "prompt_learner.proj.weight")),
    "PromptSRC": Format(_IVLP, (*_WHOLE_CLIP, _TEACHER_TOWER), ("prompt_learner.ctx", _TEACHER_TOWER)),
    "CoPrompt": Format(
        _COPROMPT, (*_WHOLE_CLIP, "model_distill.{any}"), ("prompt_learner.ctx", "adapter_image.fc.0.weight")
    ),
    "HiCroPL": Format(
        _HICROPL,
        (*_WHOLE_CLIP, _TEACHER_TOWER, "prompt_learner.cross_prompts_text.0"),  # the last is ctx once more
        ("prompt_learner.ctx", "prompt_learner.text_proxy_token.0", _TEACHER_TOWER),
    ),
    "MMA": Format(
        _MMA,
        ("token_embedding", "tokenized_prompts"),
        ("text_adapter.{i}.down.0.weight", "shared_adapter.{i}.0.weight"),
    ),
    "CoOp_DePT": Format({**_CONTEXT, **_DEPT_HEAD}, _WHOLE_CLIP, ("prompt_learner.ctx", "linear_probe_proj.weight")),
    "TaskRes": Format(
        {"text_feature_residuals": "head.residual"}, ("base_text_features",), ("text_feature_residuals",)
    ),
    "CLIP_Adapter": Format(
        {"fc.0.weight": "head.down.weight", "fc.2.weight": "head.up.weight"}, (), ("fc.0.weight", "fc.2.weight")
    ),
    "MMRL": Format(
        _MMRL,
        (*_WHOLE_CLIP, "prompt_embeddings"),
        ("representation_learner.compound_rep_tokens", "image_encoder.proj_rep"),
    ),
    "MMRLpp": Format(
        _MMRLPP,
        (*_WHOLE_CLIP, "prompt_embeddings"),
        ("representation_learner.compound_rep_tokens", "image_encoder.A"),
    ),
    "CLIP_LoRA": Format(_LORA, (), ("weights.(text|vision).{i}.([qkv]_)?proj.w_lora_A",)),
    "PromptKD": Format(
        _PROMPTKD,
        (*_TOWERS, "VPT_image_trans.conv1.1.num_batches_tracked"),
        ("image_encoder.VPT", "VPT_image_trans.conv1.3.weight"),
    ),
    "BMIP": Format(_BMIP, (*_WHOLE_CLIP, *_BMIP_UNUSED), ("prompt_learner.ctx_t", _BMIP_GATE), _BMIP_GATES, _BMIP_NOTE),
    "PromptSRC_BMIP": Format(
        _BMIP,
        # `prompt_learner.ctx` starts as a copy of ctx_t and is never used
        (*_WHOLE_CLIP, *_BMIP_UNUSED, _TEACHER_TOWER, "prompt_learner.ctx"),
        ("prompt_learner.ctx_t", _BMIP_GATE, _TEACHER_TOWER),
        _BMIP_GATES,
        _BMIP_NOTE,
    ),
}


def is_published(names: Iterable[str]) -> bool:
    """Whether tensor names are a published repository's: ours begin with neither a tower nor token buffers."""
    marks = (
        *("prompt_learner.", "image_encoder.", "text_encoder.", "token_prefix", "token_suffix", "bias_vectors"),
        *("text_adapter.", "visual_adapter.", "shared_adapter.", "VPT_image_trans.", "weights.", "fc."),
        *("base_text_features", "text_feature_residuals"),
    )
    return any(name.startswith(marks) for name in names)


def published_methods(tensors: Mapping[str, Tensor]) -> list[str]:
    """Methods whose published checkpoints hold exactly such tensors."""
    forms = [(name, form) for name, form in FORMATS.items() if not form.like]
    methods = [n for n, form in forms if not form.lacking(tensors) and len(form.our_names(tensors)) == len(tensors)]
    if methods == ["CoCoOp", "TCP"]:  # the same names; TCP's hidden layer has a quarter of the features' width
        n_hidden, n_in = tensors["meta_net.linear1.weight"].shape
        return ["TCP" if n_in == 4 * n_hidden else "CoCoOp"]
    return methods


def from_published(state_dict: Mapping[str, Tensor], trainer: str, source: str | Path) -> dict[str, Tensor]:
    """A published checkpoint's trained tensors by our names, float32; a CheckpointError names what is in the way."""
    if trainer not in FORMATS:
        raise CheckpointError(
            f"checkpoint {source} has a published repository's tensors, but none publishes {trainer}: "
            f"files of {', '.join(FORMATS)} are known"
        )
    form, methods = FORMATS[trainer], published_methods(state_dict)
    if (form.like or trainer) not in methods and methods:
        raise CheckpointError(f"checkpoint {source} is one of {' or '.join(methods)}, not of {trainer}")
    names = form.our_names(state_dict)
    problems = [f"unknown {name}" for name in state_dict if name not in names]
    problems += [f"missing {pattern.format(i='N', part='weight', any='*')}" for pattern in form.lacking(state_dict)]
    if problems:
        raise CheckpointError(f"checkpoint {source} is not as {trainer}'s repository saves it: {'; '.join(problems)}")
    # A gate's one number has no dimensions here; a convolution over one pixel is a linear layer. float32, and a copy:
    # the file's other tensors need not stay in memory.
    tensors = {
        ours: (state_dict[name].reshape(()) if "_gates." in ours else state_dict[name]).float().clone()
        for name, ours in names.items()
        if ours is not None
    }
    tensors = {name: value.flatten(1) if value.dim() == 4 else value for name, value in tensors.items()}
    deep = count_deep(tensors, "text")

    def in_use(name: str) -> bool:  # BMIP's gates of layers without deep prompts are never asked
        first, index = f"{name}.".split(".")[:2]
        if first in form.gates:
            return 0 <= int(index) < deep - form.gates[first]
        return deep > 0 or first not in ("text_to_vision", "vision_to_text")

    return {name: value for name, value in tensors.items() if not form.gates or in_use(name)}


def count_deep(names: Iterable[str], tower: str) -> int:
    """How many prompts of deeper layers a tower has, by our names."""
    return sum(re.fullmatch(rf"{tower}_prompts\.\d+", name) is not None for name in names)


def from_lora_file(weights: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP-LoRA's released file as a checkpoint with tensors such as ``weights.text.3.q_proj.w_lora_A`` and alpha.

    The file counts the changed layers of both towers through, the text's first. Where the vision's begin shows in their
    width; which of a tower's layers they are follows from the file's position, in a tower of 12 or 24 layers.
    """
    layers, position = [weights[f"layer_{number}"] for number in range(len(weights))], metadata["position"]
    widths = [next(iter(layer.values()))["w_lora_A"].shape[1] for layer in layers]
    n_text = {"text": len(layers), "vision": 0, "both": widths.count(widths[0])}[metadata["encoder"]]
    state_dict = {}
    for tower, changed in (("text", layers[:n_text]), ("vision", layers[n_text:])):
        sizes = (len(changed),) if position == "all" else (12, 24)
        fitting = [layers_at(position, n) for n in sizes if len(layers_at(position, n)) == len(changed)]
        for number, layer in zip(fitting[0] if changed else (), changed, strict=True):
            for product, matrices in layer.items():
                state_dict |= {f"weights.{tower}.{number}.{product}.{name}": t for name, t in matrices.items()}
    return {"state_dict": state_dict, "alpha": metadata["alpha"]}
