"""Every registered method on the bundled digits and the bundled CLIP, at settings that take a moment.

trainer = build("MaPLe", tmp_path)                                # two shots of the base classes, five images a batch
trainer = build("IVLP/vision_only", tmp_path, **{"OPTIM.LR": 1.0})
"""

import atexit
import functools
import json
import tempfile
from pathlib import Path

import torch

import datasets  # noqa: F401  registers the data sets
import results.evaluate  # noqa: F401  registers TEST.CLASS_SPLITS
import trainers  # noqa: F401  registers the trainers and their settings
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from tests.ours import TRAINERS

BATCH = 5
# Every method's own tiny setting, cut short.
COMMON = {
    "SEED": 1,
    "USE_CUDA": False,
    "VERBOSE": False,
    "DATASET.NUM_SHOTS": 2,
    "DATASET.SUBSAMPLE_CLASSES": "base",
    "DATALOADER.TRAIN_X.BATCH_SIZE": BATCH,
    "OPTIM.LR": 0.01,
    "OPTIM.MAX_EPOCH": 2,
    "TEST.NO_TEST": True,
    "TEST.FINAL_MODEL": "last_step",
    "TRAIN.PATIENCE": 0,
    "TRAIN.PRINT_FREQ": 100,
}
OPTIONS = {
    "ProDA": {"TRAINER.PRODA.N_CTX": 4, "TRAINER.PRODA.N_PROMPT": 4, "TRAINER.PRODA.PROMPT_BATCH": 2},
    **{
        name: {
            "TRAINER.TIPADAPTER.BETA_STEPS": 5,
            "TRAINER.TIPADAPTER.ALPHA_STEPS": 4,
            "TRAINER.TIPADAPTER.CACHE_VIEWS": 2,
        }
        for name in ("TipAdapter", "TipAdapterF")
    },
    "LinearProbe": {"TRAINER.LINEARPROBE.BINARY_STEPS": 2},
    "LPPlusPlus": {"TRAINER.LPPLUSPLUS.EPOCHS": 20},
    "PromptSRC": {"TRAINER.PROMPTSRC.GPA_MEAN": 2.0, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 2},
    "PromptSRC_DePT": {"TRAINER.PROMPTSRC.GPA_MEAN": 2.0, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 2},
    "PromptSRC_BMIP": {"TRAINER.PROMPTSRC.GPA_MEAN": 2.0},
    "CLIP_LoRA": {"TRAINER.CLIP_LORA.DROPOUT_RATE": 0.0},  # tests compare steps that are to draw nothing
    "TwoStage": {"TRAINER.TWOSTAGE.N_ITERS_FRAC": 1.0},  # the second stage is test_two_stage.py's
    "PromptKD": {"TRAINER.PROMPTKD.CLASSES": "base", "TRAINER.PROMPTKD.SHOTS": 2, "TRAINER.PROMPTKD.KD_WEIGHT": 10.0},
}
# Methods that normalise over the images of a batch in training, of which it needs two.
NEED_A_BATCH = ("PromptKD",)
# Methods with a product of two trained tensors of which one starts at zero, so that the other has no first gradient.
START_AT_ZERO = ("MMRLpp", "CLIP_LoRA")
# Heads on features of frozen towers: no layer of a tower gets a gradient.
HEADS = ("TaskRes", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "CLAP", "LPPlusPlus")
# Methods that start as zero-shot CLIP and stay it on classes that are not trained.
ZERO_SHOT_ON_NEW = ("TaskRes", "CLAP")
# Methods that refuse classes that they were not trained on.
OWN_CLASSES = ("LinearProbe", "LPPlusPlus")
# Settings that change which tensors exist or how the towers run.
VARIANTS = {
    "CoOp/class_specific": {"TRAINER.COOP.CSC": True},
    "CoOp/middle": {"TRAINER.COOP.CLASS_TOKEN_POSITION": "middle"},
    "CoOp/front": {"TRAINER.COOP.CLASS_TOKEN_POSITION": "front"},
    "KgCoOp/class_specific": {"TRAINER.KGCOOP.CSC": True},
    "ProGrad/class_specific": {"TRAINER.PROGRAD.CSC": True, "TRAINER.PROGRAD.CTX_INIT": False},
    "ProDA/orthogonal": {"TRAINER.PRODA.ORTHOGONAL_WEIGHT": 0.1},
    "VPT/shallow": {"TRAINER.VPT.PROMPT_DEPTH_VISION": 1},
    "IVLP/language_only": {"TRAINER.IVLP.PROMPT_DEPTH_VISION": 0},
    "IVLP/vision_only": {"TRAINER.IVLP.PROMPT_DEPTH_TEXT": 0},
    "CoPrompt/mse": {"TRAINER.COPROMPT.DISTILL": "mse"},
    "CoOp_DePT/logits": {"TRAINER.DEPT.FUSION": "logits"},
    "MMRL/first_layer": {"TRAINER.MMRL.REP_LAYERS": (1, 3)},
    "MMRL/probabilities": {"TRAINER.MMRL.FUSION": "probabilities"},
    "CLIP_LoRA/all_products": {"TRAINER.CLIP_LORA.PARAMS": ("q", "k", "v", "o", "mlp")},
    "CLIP_LoRA/text": {"TRAINER.CLIP_LORA.ENCODER": "text", "TRAINER.CLIP_LORA.POSITION": "half-up"},
    "CLIP_LoRA/vision": {"TRAINER.CLIP_LORA.ENCODER": "vision", "TRAINER.CLIP_LORA.PARAMS": ("v", "o")},
    "LayerNormTuning/upper": {"TRAINER.LAYERNORMTUNING.TEXT_START": 1, "TRAINER.LAYERNORMTUNING.VISION_START": 3},
    "LayerNormTuning/text": {"TRAINER.LAYERNORMTUNING.MODALITY": "text"},
    "LayerNormTuning/vision": {"TRAINER.LAYERNORMTUNING.MODALITY": "vision"},
    "PromptKD/temperature": {"TRAINER.PROMPTKD.TEMPERATURE": 2.0, "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION": 1},
    "BMIP/official": {"TRAINER.BMIP.GATE": "official"},
    "BMIP/per_layer": {"TRAINER.BMIP.SHARE_PARAMETER_TEXT": False, "TRAINER.BMIP.SHARE_PARAMETER_VISUAL": False},
}


def registered() -> list[str]:
    """Names of this repository's methods; forks, and other tests, register trainers of their own."""
    return sorted(TRAINERS)


def needing(attribute: str) -> list[str]:
    """Registered methods whose class attribute is true."""
    return [name for name in registered() if getattr(TRAINER_REGISTRY.get(name), attribute)]


def setting_file(name) -> Path:
    """The method's setting for the bundled model."""
    return sorted((repository() / "configs/trainers" / name).glob("tiny*.yaml"))[0]


@functools.cache
def data_root() -> str:
    """A data root with the bundled digits, whose test set is cut to four images per class."""
    folder = tempfile.TemporaryDirectory(prefix="digits")
    atexit.register(folder.cleanup)
    digits = Path(folder.name, "digits")
    digits.mkdir()
    split = json.loads((repository() / "assets/digits/split_digits.json").read_text(encoding="utf-8"))
    by_label = {label: [item for item in split["test"] if item[1] == label] for label in range(10)}
    split["test"] = [item for items in by_label.values() for item in items[:4]]
    (digits / "split_digits.json").write_text(json.dumps(split), encoding="utf-8")
    (digits / "images").symlink_to(repository() / "assets/digits/images")
    return folder.name


@functools.cache
def teacher() -> str:
    """Folder of a small finished run of IVLP, which PromptKD learns from."""
    folder = tempfile.TemporaryDirectory(prefix="teacher")
    atexit.register(folder.cleanup)
    with torch.enable_grad():  # whatever the test that asks first
        trainer = build("IVLP", folder.name, **{"OPTIM.MAX_EPOCH": 1})
        trainer.train()
    Path(folder.name, "config.yaml").write_text(trainer.cfg.dump(), encoding="utf-8")
    return folder.name


def needed_by(name) -> dict[str, str]:
    """Options without which a method cannot run."""
    return {"TRAINER.PROMPTKD.TEACHER": teacher()} if name == "PromptKD" else {}


def configuration(case, output="", **options):
    """The configuration of a method or variant, for example "BMIP/official"."""
    name = case.partition("/")[0]
    cfg = get_cfg_default()
    cfg.merge_from_file(str(setting_file(name)))
    cfg.merge_from_file(str(repository() / "configs/datasets/digits.yaml"))
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR, cfg.DATASET.ROOT = name, str(output), data_root()
    for key, value in (COMMON | needed_by(name) | OPTIONS.get(name, {}) | VARIANTS.get(case, {}) | options).items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg


def build(case, output="", path="fast", **options):
    """A trainer, built through Dassl, from the same random state every time."""
    set_random_seed(1)
    cfg = configuration(case, output, **options)
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trainer = build_trainer(cfg) if path == "fast" else type(kind.__name__, (kind,), {"path": path})(cfg)
    if cfg.TRAINER.NAME in START_AT_ZERO:
        stir(trainer, 0.01)
    return trainer


def first_batch(trainer):
    """Images and labels of the first training batch, as the trainer takes them; always the same."""
    set_random_seed(2)
    return next(iter(trainer.train_loader_x))


def train_on(trainer, batch):
    """One optimisation step on a batch, as Dassl's loop does it."""
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, 2
    return trainer.forward_backward(batch)


def trained_tensors(trainer):
    """The trainable tensors by name."""
    return {name: p for name, p in trainer.model.prompt_learner.named_parameters() if p.requires_grad}


@torch.no_grad()
def stir(trainer, std=0.1):
    """Move all trained tensors away from their start, so that prompts matter and equal starts are told apart."""
    generator = torch.Generator().manual_seed(3)
    for tensor in trained_tensors(trainer).values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * std)


@torch.no_grad()
def logits_of(trainer, images):
    """Logits in evaluation mode."""
    trainer.model.eval()
    return trainer.model(images)


def repository() -> Path:
    """The repository's root folder."""
    return Path(__file__).resolve().parents[2]
