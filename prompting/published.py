"""The published repositories' tensors under our names, so that their checkpoints load here.

Read from the repositories CoOp (CoOp, CoCoOp), KgCoOp, multimodal-prompt-learning (MaPLe, IVLP, VPT), PromptSRC,
CoPrompt and BMIP (BMIP, ProDA, PromptSRC_BMIP). Most save the whole CLIP with the prompts; what is frozen, or trainable
by name but never used, is left out. A tensor that is neither makes the file unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from common.unpickling import CheckpointError

_PART = r"(?P<part>weight|bias)"
_INDEX = r"(?P<index>\d+)"
_BLOCK = r"transformer\.resblocks\.(?P<layer>\d+)"
_BUFFERS = (r"(prompt_learner\.)?(nc_)?token_(prefix|suffix)",)
_TOWER_TENSOR = (
    r"(class_embedding|positional_embedding|proj|text_projection|(conv|bn|ln|layer|attnpool)\w*\..+|"
    r"transformer\.resblocks\.\d+\.(attn|ln_1|ln_2|mlp)\..+)"
)
_TOWERS = (rf"(image|text)_encoder\.{_TOWER_TENSOR}", r"logit_scale")
_WHOLE_CLIP = (*_BUFFERS, *_TOWERS)


@dataclass(frozen=True)
class Format:
    """What one repository saves for one method; patterns match whole names.

    Attributes:
        trained: pattern of a published name -> our name, with the pattern's groups in braces; ``{entry}`` is the
            group ``layer`` less one, since our lists of deep prompts begin with layer 1.
        ignored: patterns of tensors that are frozen or never used.
        needed: patterns of which each must match some tensor, so that methods are told apart.
        gates: our gate lists -> how many gates they have fewer than there are deep prompts; the others are unused.
        note: settings that the trainer needs for such a file.
    """

    trained: Mapping[str, str]
    ignored: tuple[str, ...]
    needed: tuple[str, ...]
    gates: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def our_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """Our name of each trained tensor, ``None`` for one that is ignored; a tensor that is neither is left out."""
        ours: dict[str, str | None] = {}
        for name in names:
            for pattern, target in self.trained.items():
                if found := re.fullmatch(pattern, name):
                    groups = found.groupdict()
                    ours[name] = target.format(**groups, entry=int(groups.get("layer") or 0) - 1)
                    break
            else:
                if any(re.fullmatch(pattern, name) for pattern in self.ignored):
                    ours[name] = None
        return ours

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The needed patterns that none of the names matches."""
        return [pattern for pattern in self.needed if not any(re.fullmatch(pattern, name) for name in names)]


_CONTEXT = {r"prompt_learner\.ctx": "ctx"}
_VISION_PROMPTS = {
    r"image_encoder\.VPT": "vision_tokens",
    rf"image_encoder\.{_BLOCK}\.VPT_shallow": "vision_prompts.{entry}",
}
_IVLP = {
    **_CONTEXT,
    **_VISION_PROMPTS,
    rf"text_encoder\.{_BLOCK}\.VPT_shallow": "text_prompts.{entry}",
}
_MAPLE = {
    **_CONTEXT,
    rf"prompt_learner\.proj\.{_PART}": "proj.{part}",
    rf"prompt_learner\.compound_prompts_text\.{_INDEX}": "text_prompts.{index}",
    rf"prompt_learner\.compound_prompt_projections\.{_INDEX}\.{_PART}": "projections.{index}.{part}",
}
_BMIP = {
    r"prompt_learner\.ctx_t": "ctx",
    rf"prompt_learner\.proj_t\.{_PART}": "project_ctx.{part}",
    rf"prompt_learner\.compound_prompts_text\.{_INDEX}": "text_prompts.{index}",
    rf"prompt_learner\.compound_prompts_visual\.{_INDEX}": "vision_prompts.{index}",
    rf"prompt_learner\.single_layer_t\.{_PART}": "text_to_vision.{part}",
    rf"prompt_learner\.single_layer_v\.{_PART}": "vision_to_text.{part}",
    rf"prompt_learner\.compound_prompt_projections_t\.{_INDEX}\.{_PART}": "text_to_vision.{index}.{part}",
    rf"prompt_learner\.compound_prompt_projections_v\.{_INDEX}\.{_PART}": "vision_to_text.{index}.{part}",
    rf"image_encoder\.{_BLOCK}\.learnable_linear1\.weight": "vision_gates.{entry}.alpha",
    rf"image_encoder\.{_BLOCK}\.learnable_linear1\.bias": "vision_gates.{entry}.beta",
    rf"text_encoder\.{_BLOCK}\.learnable_linear2\.bias": "text_gates.{entry}.beta",
}
# Trainable by name, never reached by a gradient: the second context and its projection, the exchange layers, the gates
# of the other tower, and the text gates' slope, which multiplies a zero.
_BMIP_UNUSED = (
    r"prompt_learner\.(ctx_v|proj_v\.(weight|bias))",
    r"prompt_learner\.(exchange_layer|compound_exchange)_[tv]\..+",
    rf"image_encoder\.{_BLOCK}\.learnable_linear2\.{_PART}",
    rf"text_encoder\.{_BLOCK}\.learnable_linear(1\.(weight|bias)|2\.weight)",
)
_BMIP_GATES = {"vision_gates": 0, "text_gates": 1}
_GATE_IN_FILE = r"image_encoder\.transformer\.resblocks\.\d+\.learnable_linear1\.weight"
_BMIP_NOTE = "a file of the released BMIP code needs TRAINER.BMIP.GATE official and TRAINER.BMIP.AGGREGATOR gate"
_TEACHER_TOWER = r"prompt_learner\.ZS_image_encoder\..+"
_META_NET = r"meta_net\.linear(?P<number>[12])\.(?P<part>weight|bias)"

FORMATS: dict[str, Format] = {
    "CoOp": Format({"ctx": "ctx"}, _BUFFERS, ("ctx",)),
    "CoCoOp": Format(
        {"ctx": "ctx", _META_NET: "meta_net.linear{number}.{part}"}, _BUFFERS, ("ctx", r"meta_net\.linear2\.weight")
    ),
    "KgCoOp": Format(
        {"ctx": "ctx"}, (*_BUFFERS, "bias_vectors", r"meta_net\.linear1\.(weight|bias)"), ("ctx", "bias_vectors")
    ),
    "ProDA": Format(_CONTEXT, _WHOLE_CLIP, (r"prompt_learner\.ctx",)),
    "VPT": Format(_VISION_PROMPTS, _TOWERS, (r"image_encoder\.VPT",)),
    "IVLP": Format(_IVLP, (r"prompt_learner\.token_(prefix|suffix)", *_TOWERS), (r"prompt_learner\.ctx",)),
    "MaPLe": Format(_MAPLE, _WHOLE_CLIP, (r"prompt_learner\.ctx", r"prompt_learner\.proj\.weight")),
    "PromptSRC": Format(_IVLP, (*_WHOLE_CLIP, _TEACHER_TOWER), (r"prompt_learner\.ctx", _TEACHER_TOWER)),
    "CoPrompt": Format(
        {
            **{pattern: f"prompts.{target}" for pattern, target in _MAPLE.items()},
            r"(?P<adapter>adapter_(image|text))\.fc\.0\.weight": "{adapter}.down",
            r"(?P<adapter>adapter_(image|text))\.fc\.2\.weight": "{adapter}.up",
        },
        (*_WHOLE_CLIP, r"model_distill\..+"),
        (r"prompt_learner\.ctx", r"adapter_image\.fc\.0\.weight"),
    ),
    "BMIP": Format(
        _BMIP, (*_WHOLE_CLIP, *_BMIP_UNUSED), (r"prompt_learner\.ctx_t", _GATE_IN_FILE), _BMIP_GATES, _BMIP_NOTE
    ),
    # `prompt_learner.ctx` starts as a copy of ctx_t and is never used
    "PromptSRC_BMIP": Format(
        _BMIP,
        (*_WHOLE_CLIP, *_BMIP_UNUSED, _TEACHER_TOWER, r"prompt_learner\.ctx"),
        (r"prompt_learner\.ctx_t", _GATE_IN_FILE, _TEACHER_TOWER),
        _BMIP_GATES,
        _BMIP_NOTE,
    ),
}


def is_published(names: Iterable[str]) -> bool:
    """Whether tensor names are a published repository's: ours begin with neither a tower nor token buffers."""
    marks = ("prompt_learner.", "image_encoder.", "text_encoder.", "token_prefix", "token_suffix", "bias_vectors")
    return any(name.startswith(marks) for name in names)


def published_methods(names: Iterable[str]) -> list[str]:
    """Methods whose published checkpoints hold exactly such tensors."""
    names = list(names)
    return [n for n, form in FORMATS.items() if not form.lacking(names) and len(form.our_names(names)) == len(names)]


def from_published(state_dict: Mapping[str, Tensor], trainer: str, source: str | Path) -> dict[str, Tensor]:
    """The trained tensors of a published checkpoint under our names, float32.

    Args:
        state_dict: as the method's repository saves it.
        trainer: name of our trainer.
        source: file named in errors.

    Raises:
        CheckpointError: when the file is another method's, or naming every tensor that the method does not have.
    """
    if trainer not in FORMATS:
        raise CheckpointError(
            f"checkpoint {source} has a published repository's tensors, but none publishes {trainer}: "
            f"files of {', '.join(FORMATS)} are known"
        )
    form, methods = FORMATS[trainer], published_methods(state_dict)
    if trainer not in methods and methods:
        raise CheckpointError(f"checkpoint {source} is one of {' or '.join(methods)}, not of {trainer}")
    names = form.our_names(state_dict)
    problems = [f"unknown {name}" for name in state_dict if name not in names]
    for pattern in form.lacking(state_dict):
        problems.append("missing " + pattern.replace("\\d+", "N").replace(".+", "*").replace("\\", ""))
    if problems:
        raise CheckpointError(f"checkpoint {source} is not as {trainer}'s repository saves it: {'; '.join(problems)}")
    # A gate's one number has no dimensions here. float32, and a copy: the file's other tensors need not stay in memory.
    tensors = {
        ours: (state_dict[name].reshape(()) if "_gates." in ours else state_dict[name]).float().clone()
        for name, ours in names.items()
        if ours is not None
    }
    deep = len([name for name in tensors if re.fullmatch(r"text_prompts\.\d+", name)])
    return {name: value for name, value in tensors.items() if not form.gates or _in_use(name, deep, form.gates)}


def _in_use(name: str, deep: int, gates: Mapping[str, int]) -> bool:
    """Whether BMIP uses a tensor with ``deep`` layers of deep prompts: gates of other layers are never asked."""
    first, _, rest = name.partition(".")
    if first in gates:
        return 0 <= int(rest.partition(".")[0]) < deep - gates[first]
    return deep > 0 or first not in ("text_to_vision", "vision_to_text")
