"""Trained prompts on disk: read a run's checkpoint or a published repository's, show it, convert it, load it.

python -m prompting.checkpoint show FILE|RUN
python -m prompting.checkpoint convert OLD NEW [--trainer NAME]
python -m prompting.checkpoint words FILE|RUN [--top 5] [--backbone NAME]
python -m prompting.checkpoint export RUN OUT [--push USER/REPOSITORY]
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.commandline import add_debug, guarded, printable
from common.files import atomic_write
from common.hub import HUB_PREFIX, hub_folder
from common.unpickling import CheckpointError, as_checkpoint, misfits, read_checkpoint, read_content
from prompting.changes import layers_at

MAX_SHOWN = 5  # names in a message
MODEL_NAME = "prompt_learner"
# Folders of checkpoints in a run's output: ours, whose name some published code shares, and other published code's.
CHECKPOINT_FOLDERS = (
    *(MODEL_NAME, "PromptLearner", "MultiModalPromptLearner", "VLPromptLearner", "adapter_learner"),
    *("MultiModalRepresentationLearner", "clip_adapter"),
)
SHARED = "prompts.safetensors"  # the checkpoint of a folder that `export` wrote

# The published repositories' tensors under our names, read from the repositories CoOp (CoOp, CoCoOp), KgCoOp,
# Prompt-align (ProGrad), multimodal-prompt-learning (MaPLe, IVLP, VPT), PromptSRC, CoPrompt,
# Textual-based_Class-aware_prompt_tuning (TCP), VLM-MultiModalAdapter (MMA), DePT (CoOp_DePT), MMRL (MMRL, MMRLpp),
# TaskRes, CLIP-Adapter, CLIP-LoRA, HiCroPL, PromptKD and BMIP (BMIP, ProDA, PromptSRC_BMIP). Most save the whole CLIP
# with the prompts; what is frozen, or trainable by name but never used, is left out. A tensor that is neither makes the
# file unknown.

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
    marks = ("prompt_learner.", "image_encoder.", "text_encoder.", "token_prefix", "token_suffix", "bias_vectors")
    marks += ("text_adapter.", "visual_adapter.", "shared_adapter.", "VPT_image_trans.")
    marks += ("weights.",)
    marks += ("base_text_features", "text_feature_residuals", "fc.")
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
    deep = _count_deep(tensors, "text")

    def in_use(name: str) -> bool:  # BMIP's gates of layers without deep prompts are never asked
        first, index = f"{name}.".split(".")[:2]
        if first in form.gates:
            return 0 <= int(index) < deep - form.gates[first]
        return deep > 0 or first not in ("text_to_vision", "vision_to_text")

    return {name: value for name, value in tensors.items() if not form.gates or in_use(name)}


def _count_deep(names: Iterable[str], tower: str) -> int:
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


def _read(path: str | Path, bare: bool = False) -> dict[str, Any]:
    """A checkpoint's content, of the layouts that are known."""
    content = read_content(path)
    if isinstance(content, dict) and dict.keys(content) == {"weights", "metadata"}:
        try:
            content = from_lora_file(content["weights"], content["metadata"])
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise CheckpointError(f'"{path}" is not as CLIP-LoRA\'s code saves its weights ({error!r})') from error
    return as_checkpoint(content, path, bare)


# Trained prompts, of either


@dataclass(frozen=True)
class TrainedPrompts:
    """What a checkpoint holds of a method."""

    trainer: str
    epoch: int | None  # finished epochs, if the file says so
    tensors: dict[str, Tensor]  # the trained ones under our names
    published: bool  # whether a published repository's code wrote the file
    content: Mapping[str, Any]  # everything else in the file

    @property
    def settings(self) -> str:
        """Prompt settings that show in the tensors' names and shapes, "" for none."""
        return ", ".join(f"{key} {value}" for key, value in prompt_settings(self.tensors, self.trainer).items())

    @property
    def advice(self) -> str:
        """What to set so that a prompt learner takes the tensors; "" when nothing is known."""
        trained_with = self.settings and f"the file was trained with {self.settings}"
        note = FORMATS[self.trainer].note if self.published else ""
        return "; ".join(filter(None, (trained_with, note)))


def find_checkpoint(directory: str | Path, epoch: int | None = None) -> Path:
    """A run's checkpoint of an epoch; by default the best on validation if there is one, else the last.

    The folder may be one that `export` wrote, which has one epoch, or such a folder's name on the hub, "hf:USER/NAME".

    Raises:
        FileNotFoundError: naming what was looked for and which checkpoints there are.
    """
    if str(directory).startswith(HUB_PREFIX):
        directory = hub_folder(str(directory).removeprefix(HUB_PREFIX), ("config.yaml",), (SHARED,))
    directory = Path(directory)
    shared = directory / SHARED
    if shared.is_file():
        only = None if epoch is None else read_checkpoint(shared).get("epoch")
        if only != epoch:
            raise FileNotFoundError(f"{directory} has epoch {only} alone, not {epoch}")
        return shared
    folders = (directory / name for name in CHECKPOINT_FOLDERS)
    folder = next((folder for folder in folders if folder.is_dir()), directory / MODEL_NAME)
    matches = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    found = {int(match[1]): folder / match[0] for match in matches if match}
    best = folder / "model-best.pth.tar"
    if epoch is None and best.exists():
        return best
    path = found.get(max(found, default=0) if epoch is None else epoch)
    if path is not None:
        return path
    results: Any = None
    with suppress(OSError, ValueError):
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    if isinstance(results, dict) and results.get("eval_only") and not found:
        tested = printable(str(results.get("loaded_from") or "another folder"))
        raise FileNotFoundError(f"{directory} only tested the run in {tested} and holds no checkpoint: give that one")
    wanted = folder / (f"model.pth.tar-{epoch}" if epoch is not None else "model-best.pth.tar or model.pth.tar-*")
    there = f"epochs there: {', '.join(map(str, sorted(found)))}" if found else "no checkpoint there"
    raise FileNotFoundError(f'Model not found at "{wanted}" ({there}): give the OUTPUT_DIR of a finished run')


def read_trained(path: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Trained prompts of this project's or a published repository's checkpoint; ``trainer`` is found out if ``None``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, belongs to another method, or leaves the method open.
    """
    content = _read(path)
    state_dict, named = content.pop("state_dict"), content.get("trainer")
    if named and trainer and named != trainer:
        raise CheckpointError(f"checkpoint {path} was trained with {named}, not {trainer}")
    published = named is None and (trainer is None or is_published(state_dict))
    trainer = trainer or named
    if not trainer:  # the one method whose published checkpoints hold such tensors
        methods = published_methods(state_dict)
        if len(methods) > 1:
            raise CheckpointError(
                f"checkpoint {path} may be one of {' or '.join(methods)}: say which with --trainer NAME"
            )
        if not methods:
            raise CheckpointError(
                f"checkpoint {path} has the tensors of no method that is known ({', '.join(FORMATS)}); it holds "
                f"{shown(list(state_dict))}. Name the method with --trainer NAME to see which tensors are in the way"
            )
        trainer = methods[0]
    tensors = from_published(state_dict, trainer, path) if published else state_dict
    epoch = content.get("epoch")
    return TrainedPrompts(trainer, epoch if isinstance(epoch, int) else None, tensors, published, content)


def read_initial(path: str | Path, trainer: str) -> dict[str, Tensor]:
    """Tensors to start training from: of any method's checkpoint, or a bare state dict; ``module.`` is dropped.

    A published repository's names are translated as those of ``trainer``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, is a published file of another method, or holds a name twice.
    """
    state_dict = _read(path, bare=True)["state_dict"]
    tensors = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise CheckpointError(f"checkpoint {path} holds a tensor twice, with and without module. before its name")
    return from_published(tensors, trainer, path) if is_published(tensors) else tensors


def shown(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of the names, and how many there are more."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"{separator.join(names[:MAX_SHOWN])}{more}"


def load_trained(learner: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path, advice: str = "") -> None:
    """Load trained tensors into a prompt learner, all or none; they become float32.

    Raises:
        CheckpointError: naming each missing, unexpected, wrongly shaped or non-finite tensor, and ``advice``.
    """
    problems = misfits(learner, state_dict)
    problems += [f"{name} holds NaN or infinite values" for name, v in state_dict.items() if not v.isfinite().all()]
    if problems:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(learner).__name__}: {'; '.join(sorted(problems))}. "
            "It belongs to another method, backbone or other prompt settings (N_CTX, PROMPT_DEPTH, ...): "
            f"use the config file it was trained with{advice and f' ({advice})'}"
        )
    learner.load_state_dict({name: value.float() for name, value in state_dict.items()})


def convert(old: str | Path, new: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Write the trained prompts of a published repository's checkpoint in this project's format.

    Raises:
        FileExistsError: when ``new`` exists.
        CheckpointError: when ``old`` cannot be read, is in this project's format already, or leaves the method open.
    """
    new = Path(new)
    if new.exists():
        raise FileExistsError(f"{new} exists and is not overwritten: give another name")
    trained = read_trained(old, trainer)
    if "trainer" in trained.content:
        raise CheckpointError(f"checkpoint {old} is in this project's format already (trainer {trained.trainer})")
    content = {"state_dict": trained.tensors, "trainer": trained.trainer, "epoch": trained.epoch}
    content |= {"val_result": None, "converted_from": Path(old).name}
    content |= {key: trained.content[key] for key in ("alpha",) if key in trained.content}
    with atomic_write(new, replace=False) as file:
        torch.save(content, file)
    return trained


def prompt_settings(tensors: Mapping[str, Tensor], trainer: str | None) -> dict[str, Any]:
    """Prompt settings that show in trained tensors, by config key; none for an unknown trainer."""
    tensors = {name.removeprefix("prompts."): value for name, value in tensors.items()}
    deep = {tower: _count_deep(tensors, tower) for tower in ("text", "vision")}
    ctx = tensors.get("ctx")
    if trainer in ("MMRL", "MMRLpp") and "space" in tensors:  # which layers they are does not show
        ranks = {"RES_LORA_DIM": "to_text.down.0", "PROJ_LORA_DIM": "readout_up"}
        shown = {key: len(tensors[name]) for key, name in ranks.items() if name in tensors}
        return dict(zip(("N_REP_TOKENS", "REP_DIM"), tensors["space"].shape, strict=True)) | shown
    if trainer in ("VPT", "PromptKD", "IVLP", "PromptSRC", "PromptSRC_DePT"):
        towers = {"VISION": tensors.get("vision_tokens")} | ({} if trainer in ("VPT", "PromptKD") else {"TEXT": ctx})
        counts = {f"N_CTX_{tower}": len(first) for tower, first in towers.items() if first is not None}
        return counts | {
            f"PROMPT_DEPTH_{tower}": 0 if first is None else 1 + deep[tower.lower()] for tower, first in towers.items()
        }
    if trainer == "MMA":
        found = {name: re.fullmatch(r"shared\.(\d{1,4})\.bias", name) for name in tensors}
        dims = {int(layer[1]): tensors[name].numel() for name, layer in found.items() if layer}
        keys = ("ADAPTER_START", "ADAPTER_END", "ADAPTER_DIM")
        return dict(zip(keys, (min(dims), max(dims), max(dims.values())), strict=True)) if dims else {}
    if trainer == "CLIP_LoRA":
        found = {name: re.fullmatch(r"(text|vision)\.\d{1,4}\.([qkvo]|up|down)\.A", name) for name in tensors}
        terms = [(term[1], term[2], len(tensors[name])) for name, term in found.items() if term and tensors[name].dim()]
        if not terms:
            return {}
        towers, products, ranks = map(set, zip(*terms, strict=True))
        params = (*(name for name in "qkvo" if name in products), *(("mlp",) if "up" in products else ()))
        return {"R": max(ranks), "ENCODER": "both" if len(towers) > 1 else towers.pop(), "PARAMS": params}
    if ctx is None or trainer is None:
        return {}
    if trainer == "ProDA":
        return {"N_PROMPT": len(ctx), "N_CTX": ctx.shape[-2]}
    if trainer in ("CoOp", "KgCoOp", "ProGrad", "CoOp_DePT"):
        return {"N_CTX": ctx.shape[-2], "CSC": ctx.dim() == 3}
    if trainer in ("CoCoOp", "TCP"):
        return {"N_CTX": len(ctx)}
    settings = {"N_CTX": len(ctx), "PROMPT_DEPTH": 1 + deep["text"]}
    if trainer == "HiCroPL":
        return settings | {"CROSS_LAYER": sum(name.startswith("text_proxies.") for name in tensors)}
    if "vision_gates.0.beta" in tensors:  # of BMIP, as what follows
        attention = f"text_gates.{deep['text'] - 1}.beta" in tensors
        settings |= {"GATE": "attention" if attention else "official", "AGGREGATOR": "gate"}
    for key, head in (("TEXT", "text_to_vision"), ("VISUAL", "vision_to_text")):
        if any(name.startswith(f"{head}.") for name in tensors):
            settings[f"SHARE_PARAMETER_{key}"] = f"{head}.weight" in tensors
    return settings


def nearest_words(context: Tensor, embedding: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The tokens of the vocabulary whose embeddings are nearest to context vectors, by Euclidean distance.

    CoOp's way to interpret learned prompts (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
    https://arxiv.org/abs/2109.01134). It is of the first layer's tokens: deeper ones lie in another space than words.

    Args:
        context: (n_vectors, width); embedding: (vocabulary, width).

    Returns:
        Distances and rows of the vocabulary, (n_vectors, top) each, nearest first.
    """
    return torch.cdist(context.double(), embedding.double()).topk(top, largest=False)


def print_words(trained: TrainedPrompts, source: str, backbone: str, top: int) -> None:
    """Print the nearest words of every context vector, for each class or prompt that has its own.

    Raises:
        ValueError: the method learns no context in the text, the backbone is not known or does not fit, or `top` is
            more words than there are.
    """
    from clip.clip import _tokenizer

    from prompting.weights import is_path, load_clip

    tensors = {name.removeprefix("prompts."): value for name, value in trained.tensors.items()}
    if "ctx" not in tensors:
        raise CheckpointError(f"checkpoint {source} of {trained.trainer} has no context vectors in the text (ctx)")
    if tensors["ctx"].dim() not in (2, 3) or not tensors["ctx"].isfinite().all():
        raise CheckpointError(f"checkpoint {source}: ctx is no finite context vectors, {tuple(tensors['ctx'].shape)}")
    named = str(trained.content.get("backbone") or "")
    if backbone and named and backbone != named and not is_path(named):  # a path may be another machine's
        raise CheckpointError(f"checkpoint {source} was trained with the words of {named}: leave out --backbone")
    backbone = backbone or named
    if not backbone:
        raise CheckpointError(f"checkpoint {source} does not say its backbone: give it with --backbone")
    embedding, context = load_clip(backbone).token_embedding.weight, tensors["ctx"]
    if context.shape[-1] != embedding.shape[1]:
        raise CheckpointError(
            f"checkpoint {source} has context vectors of {context.shape[-1]} numbers, the words of {backbone} have "
            f"{embedding.shape[1]}: give its own backbone with --backbone"
        )
    known_ids = embedding.any(dim=1).nonzero().flatten()  # a bundled model has zeros for the others
    if not 1 <= top <= len(known_ids):
        raise ValueError(f"--top is {top}: at least 1, at most {len(known_ids)}, the words of {backbone}")
    groups, names = context.unbind() if context.dim() == 3 else [context], [""]
    if context.dim() == 3:
        known = trained.content.get("classnames") if trained.trainer != "ProDA" else None
        what = "prompt" if trained.trainer == "ProDA" else "class"
        names = [f"{what} {number}" for number in range(1, len(groups) + 1)]
        if isinstance(known, list) and len(known) == len(groups):
            names = list(map(str, known))
    for name, vectors in zip(names, groups, strict=True):
        nearest = nearest_words(vectors, embedding[known_ids], top)
        for number, (distances, rows) in enumerate(zip(*nearest, strict=True), start=1):
            words = [_tokenizer.decoder[token] for token in known_ids[rows].tolist()]
            found = "  ".join(f"{word} {d:.4f}" for word, d in zip(words, distances.tolist(), strict=True))
            print(printable(f"{name and name + ', '}context {number}: {found}"))
    if trained.trainer == "CoCoOp":
        print("Note: an image's own shift, which CoCoOp adds to every context vector, is not in these.")
    if deep := _count_deep(tensors, "text"):
        print(f"Note: the text prompts of {deep} deeper layers are left out: they lie in another space than words.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m prompting.checkpoint", description="Checkpoints of trained prompts.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what a checkpoint holds")
    show.add_argument("file", metavar="FILE|RUN", help="a checkpoint, or the --output-dir of a run")
    change = commands.add_parser("convert", help="a published repository's checkpoint into this project's format")
    change.add_argument("old", metavar="OLD")
    change.add_argument("new", metavar="NEW", help="DIR/prompt_learner/model.pth.tar-EPOCH for --model-dir DIR")
    words = commands.add_parser("words", help="the words nearest to each context vector")
    words.add_argument("file", metavar="FILE|RUN", help="a checkpoint, or the --output-dir of a run")
    words.add_argument("--top", type=int, default=5, help="words per context vector (default: %(default)s)")
    words.add_argument("--backbone", default="", help="whose words; default: the one that the file names")
    for command in (show, change, words):
        command.add_argument("--trainer", metavar="NAME", help=f"the method: {', '.join(FORMATS)}")
        add_debug(command)
    share = commands.add_parser("export", help="a finished run's trained prompts as a folder to share")
    share.add_argument("run", metavar="RUN", help="the --output-dir of a finished run")
    share.add_argument("out", metavar="OUT", help="the folder to write, which load_run and --model-dir take")
    share.add_argument("--push", metavar="USER/REPOSITORY", default="", help="upload it as a new one of huggingface.co")
    add_debug(share)
    return guarded(_run, parser.parse_args(arguments), status=1)


def _run(args: argparse.Namespace) -> None:
    if args.command == "convert":
        trained = convert(args.old, args.new, args.trainer)
        what = f"{trained.trainer}, epoch {trained.epoch}, {len(trained.tensors)} tensors"
        print(printable(f"Wrote {args.new}: {what}"))
        return
    if args.command == "export":
        from prompting.sharing import export, push  # which imports this module

        folder = export(args.run, args.out, args.push)
        print(printable(f"Wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"))
        if args.push:
            print(printable(f"Pushed to {push(folder, args.push)}"))
        return
    file = find_checkpoint(args.file) if Path(args.file).is_dir() else args.file
    trained = read_trained(file, args.trainer)
    if args.command == "words":
        print_words(trained, file, args.backbone, args.top)
        return
    content, tensors = trained.content, trained.tensors
    origin = "a published repository's file" if trained.published else "this project's format"
    print(printable(f"trainer   {trained.trainer} ({origin})"))
    print(f"epoch     {trained.epoch}\nsettings  {trained.settings or '?'}")
    if content.get("backbone") is not None:
        classes = content.get("classnames")
        print(printable(f"backbone  {content['backbone']}, {'?' if classes is None else len(classes)} classes"))
    if content.get("converted_from") is not None:
        print(printable(f"from      {content['converted_from']}"))
    print(f"tensors   {len(tensors)} with {sum(t.numel() for t in tensors.values()):,} numbers")
    for name, tensor in tensors.items():
        print(printable(f"  {name}  {tuple(tensor.shape)}"))


if __name__ == "__main__":
    sys.exit(main())
