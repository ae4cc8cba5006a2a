"""Our trainers with the settings and the values of a reference run, and that run's checkpoint as upstream saves it.

reference = load_reference("maple_depth3")
trainer = trainer_of(reference, small_clip())           # model and objective of our MaPLe
load_upstream_values(trainer, reference)                # now it computes what upstream computed
torch.save({"state_dict": upstream_state(reference)}, path)   # what upstream's code would have written
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import trainers  # noqa: F401  registers the methods
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompting import PromptedCLIP, resolve_precision
from prompting.checkpoint import load_trained
from prompting.published import FORMATS, Format, from_published
from tests.reference import Reference
from tests.reference.small_clip import named_uniform, prompt_tensor, small_clip, small_clip_state_dict
from trainers.base import PromptTrainer
from trainers.ivlp import IVLPLearner

NODES = dict.fromkeys(("CoOp", "KgCoOp", "ProGrad", "TCP", "CoOp_DePT"), "COOP")
NODES |= {"CoCoOp": "COCOOP", "MaPLe": "MAPLE", "PromptSRC": "PROMPTSRC", "MMA": "MMADAPTER", "HiCroPL": "HICROPL"}
NODES |= {"PromptKD": "PROMPTKD"}
NODES |= {"CLIP_Adapter": "CLIP_ADAPTER"}
UNREAD_BY_OURS = ("ALPHA", "CONNECT_METHOD", "WEIGHT_THRESHOLD")
VISUAL = "visual."
# Upstream's names, as in FORMATS, of methods whose published code saves no such names.
_LORA = "transformer.resblocks.{i}.attn.(?P<p>[qkv])_proj.w_lora_(?P<m>[AB])"
_LORA_O = "transformer.resblocks.{i}.attn.proj.w_lora_(?P<m>[AB])"
_NORM = "transformer.resblocks.{i}.(?P<n>ln_[12]).{part}"
_NORMS = {_NORM: "text.{i}.{n}.{part}", VISUAL + _NORM: "vision.{i}.{n}.{part}"}
UNSAVED = {
    "CLIP_LoRA": Format(
        {
            **{_LORA: "text.{i}.{p}.{m}", _LORA_O: "text.{i}.o.{m}"},
            **{VISUAL + _LORA: "vision.{i}.{p}.{m}", VISUAL + _LORA_O: "vision.{i}.o.{m}"},
        },
        *((), ()),
    ),
    "LayerNormTuning": Format(_NORMS, (), ()),
    "TwoStage": Format({**_NORMS, "classifier": "classifier.weight"}, (), ()),
}


def our_settings(reference: Reference, folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Config nodes of our trainer, by name, from upstream's settings; `folder` takes CoPrompt's sentences."""
    method, given = reference.record["method"], reference.settings
    if method == "PromptSRC_BMIP":
        own = _kept(given["TRAINER.PROMPTSRC"])
        # Upstream reads the prompts' number from N_CTX_TEXT and their depth from a key of its own.
        bmip = {"N_CTX": own["N_CTX_TEXT"], "CTX_INIT": own["CTX_INIT"], "PROMPT_DEPTH": own.pop("PROMPT_DEPTH")}
        del own["N_CTX"]
        return {"PROMPTSRC": own, "BMIP": bmip | _bmip_extra(given)}
    if method == "CLIP_LoRA":  # arguments of a command; dropout was switched off
        own = {key.upper(): value for key, value in given["args"].items()}
        return {"CLIP_LORA": own | {"PREC": "fp32", "DROPOUT_RATE": 0.0}}
    if method in ("LayerNormTuning", "TwoStage"):
        return {method.upper(): {key.upper().removeprefix("LN_"): value for key, value in given["args"].items()}}
    own = _kept(given[f"TRAINER.{NODES.get(method, method)}"])
    if method == "BMIP":
        own |= _bmip_extra(given)
    elif method == "ProGrad":
        own |= {"LAMBDA": given["LOSS"]["LAMBDA"], "T": given["LOSS"]["T"]}
    elif method == "CoOp_DePT":
        head = {"LAMBDA": given["TRAINER.LINEAR_PROBE"]["WEIGHT"], "FUSION": "logits"}
        return {"COOP": own, "DEPT": head}
    elif method == "KgCoOp":  # any true value means these words
        own["CTX_INIT"] = "a photo of a" if own["CTX_INIT"] else ""
    elif method == "TCP":  # the same words; W, and where the class name stands, are never used
        own["CTX_INIT"] = "a photo of a" if own["CTX_INIT"] else ""
        own = {key: own[key] for key in ("N_CTX", "CTX_INIT", "CSC", "PREC")}
    elif method == "HiCroPL":
        del own["TEACHER_NAME"]
        own["READING"] = "official"
    elif method == "PromptKD":
        own = {key: own[key] for key in ("N_CTX_VISION", "PROMPT_DEPTH_VISION", "KD_WEIGHT", "TEMPERATURE", "PREC")}
    elif method == "ProDA":  # upstream takes as many prompts per step as images
        own["PROMPT_BATCH"] = given["DATALOADER.TRAIN_X.BATCH_SIZE"]
    elif method == "MMA":
        own["CTX_INIT"] = own.pop("TEXT_CTX_INIT")
    elif method == "TaskRes":
        del own["ENHANCED_BASE"]
    elif method in ("MMRL", "MMRLpp"):  # the logits on file are [CLS]'s
        own |= {"ALPHA": given[f"TRAINER.{method}"]["ALPHA"], "LOGITS": "plain"}
    elif method == "CoPrompt":
        own |= {"W": given["TRAINER.W"], "DISTILL": given["TRAINER.DISTILL"]}
    if "sentences" in reference.record and folder is not None:
        path = folder / "sentences.json"
        path.write_text(json.dumps(reference.record["sentences"]), encoding="utf-8")
        own["SENTENCES"] = str(path)
    return {TRAINER_REGISTRY.get(method).node: own}


def trainer_of(
    reference: Reference, model: nn.Module, folder: Path | None = None, path: str = "fast", objective: bool = True
) -> PromptTrainer:
    """Our trainer of the reference's method with model and objective, on `model` in fp32, without data or optimiser."""
    method = reference.record["method"]
    if layers := reference.record.get("layers"):  # of a run that needs more than the others
        model = small_clip(layers)
    trainer = object.__new__(TRAINER_REGISTRY.get(method))
    trainer.notes = {}
    trainer.cfg, trainer.path = get_cfg_default(), path
    trainer.cfg.DATASET.NAME = reference.settings.get("DATASET.NAME", "Caltech101")
    for node, values in our_settings(reference, folder).items():
        for key, value in values.items():
            assert key in trainer.cfg.TRAINER[node], f"TRAINER.{node} has no {key}"
            trainer.cfg.TRAINER[node][key] = value
    trainer.device, trainer.precision = torch.device("cpu"), resolve_precision("fp32", "cpu")
    trainer.train_classnames = list(reference.class_names)
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=trainer.train_classnames))
    if method == "PromptKD":
        trainer.teacher, trainer.distilled_classnames = teacher_of(reference), trainer.train_classnames
    learner = trainer.build_learner(model, torch.Generator().manual_seed(0))
    trainer.model = trainer.build_classifier(model, learner)
    if objective:
        trainer.objective = trainer.build_objective(model)
    return trainer


def teacher_of(reference: Reference) -> PromptedCLIP:
    """PromptKD's teacher: prompts in every layer of both towers of a small CLIP with another feature width."""
    model, values = small_clip(embed_dim=768), reference.record["teacher"]
    learner = IVLPLearner(model, 4, 4, "a photo of a", 4, 4)
    tensors = {name: prompt_tensor(f"teacher.{name}", shape) for name, shape in values.items()}
    load_trained(learner, from_published(tensors, "IVLP", reference.name), reference.name)
    return PromptedCLIP(model, learner, reference.class_names, resolve_precision("fp32", "cpu"))


def load_upstream_values(trainer: PromptTrainer, reference: Reference) -> None:
    """Give our learner the values that upstream's trainable tensors had."""
    state, method = upstream_state(reference), reference.record["method"]
    if method in UNSAVED:
        tensors = {name: state[theirs] for theirs, name in UNSAVED[method].our_names(state).items()}
        for theirs, name in UNSAVED[method].our_names(state).items():
            if ".ln_" in name:  # near CLIP's own: a small scale would leave nothing of the rows
                start = 0.1 * named_uniform(f"start/{theirs}", tuple(tensors[name].shape))
                tensors[name] = start + 1 if name.endswith("weight") else start
    else:
        tensors = from_published(state, method, reference.name)
    load_trained(trainer.model.prompt_learner, tensors, reference.name)


def our_name(reference: Reference, name: str) -> str | None:
    """Our name of upstream's trainable tensor; `None` for one that is never used."""
    saved = _saved_name(reference, name)
    return (FORMATS | UNSAVED)[reference.record["method"]].our_names([saved])[saved]


def upstream_state(reference: Reference) -> dict[str, Tensor]:
    """The state dict that upstream's code writes: trained values, and zeros for buffers and frozen weights.

    A variance is 1. The zeros are views of one number, so that files of whole CLIPs stay small.
    """
    (saved,) = reference.record["saved"].values()
    frozen = [name for prefix in saved["frozen_prefixes"] for name in _frozen_names(prefix)]
    assert len(frozen) == saved["frozen_tensor_count"]
    shapes = {name: tuple(shape) for name, shape in saved["keys"].items()}
    state = {name: torch.tensor(float("running_var" in name)).expand(shape) for name, shape in shapes.items()}
    for name, shape in reference.trainable_shapes.items():
        assert shapes[_saved_name(reference, name)] == shape
        state[_saved_name(reference, name)] = prompt_tensor(name, shape)
    return state | dict.fromkeys(frozen, torch.zeros(()).expand(3, 5))


def model_folder(reference: Reference) -> str:
    """Name of the folder that upstream's checkpoints go to."""
    (name,) = reference.record["saved"]
    return name


def _saved_name(reference: Reference, name: str) -> str:
    """A trainable tensor's name in the checkpoint: some methods save the prompt learner alone."""
    (saved,) = reference.record["saved"].values()
    if name in saved["keys"]:
        return name
    return name.removeprefix("prompt_learner.").removeprefix("adapter_learner.").removeprefix("adapter.")


def _frozen_names(prefix: str) -> list[str]:
    """Names of a saved CLIP's tensors under one of its prefixes."""
    names = [*_CLIP_NAMES, "logit_scale"]
    if prefix == "logit_scale":
        return [prefix]
    if prefix == "model_distill.":
        return [prefix + name for name in names]
    if prefix == "text_encoder.":
        text = ("transformer.", "positional_embedding", "ln_final.", "text_projection")
        return [prefix + name for name in names if name.startswith(text)]
    return [prefix + name.removeprefix(VISUAL) for name in names if name.startswith(VISUAL)]


def _kept(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in UNREAD_BY_OURS}


def _bmip_extra(settings: dict[str, Any]) -> dict[str, Any]:
    shares = ("SHARE_PARAMETER_VISUAL", "SHARE_PARAMETER_TEXT")
    return {"GATE": "official", **{key: settings[f"SHARE.{key}"] for key in shares}}


_CLIP_NAMES = tuple(name for name in small_clip_state_dict() if name != "logit_scale")
