"""The trainer that all methods share: build, step, save, load, evaluate on other classes.

A method is a prompt learner and an objective. Its trainer says which config node it reads and builds these two; all
else is here. Beside its neighbours ``objectives`` and ``step`` only torch, yacs, ``common``, ``prompting`` and Dassl's
public API are imported, so this file also works in a checkout that runs on upstream Dassl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from common.commandline import LISTED, listed, printable
from common.files import hash_file
from common.free_options import flatten
from dassl.config import cfg_default
from dassl.data import DataManager
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from prompting import PRECISIONS, PromptedCLIP, PromptLearner, TowerSizes, load_clip, resolve_precision
from prompting.checkpoint import MODEL_NAME, CheckpointError, find_checkpoint, load_trained, read_initial, read_trained
from prompting.model import Watch
from prompting.towers.attention import BACKENDS, CHOOSER, set_compile
from prompting.weights import is_path, is_resnet_name
from trainers.objectives import CrossEntropy, Objective
from trainers.step import GRAPH_MODES, Steps, memory_advice, redefines

# What keys may hold, by dotted key: (least, most) of a number, or the names to choose from.
RANGES: dict[str, tuple[Any, ...]] = {}
# Of the keys that methods share. How many layers and tokens fit is the backbone's to say.
COMMON_RANGES = {"PREC": PRECISIONS, "N_CTX": (1, 1000)} | dict.fromkeys(
    ("N_CTX_TEXT", "N_CTX_VISION", "PROMPT_DEPTH", "PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION"), (0, 1000)
)
WEIGHT = (0, 10**6)  # of a term of a loss


class Between(NamedTuple):
    """Values that a search tries, from the lowest to the highest: evenly in their logarithm, or in themselves."""

    low: float
    high: float
    log: bool = True


def add_trainer_config(name: str, ranges: dict[str, tuple[Any, ...]] | None = None, **defaults: Any) -> None:
    """Add the node ``cfg.TRAINER.<name>`` with its defaults to Dassl's default config.

    Called when a trainer's module is imported, before ``get_cfg_default()`` hands out copies. ``ranges`` are, by key,
    (least, most) of a number or the names to choose from; a key without any takes all values of its default's kind.
    """
    cfg_default.TRAINER[name] = CfgNode(defaults)
    ranges = {key: COMMON_RANGES[key] for key in defaults if key in COMMON_RANGES} | (ranges or {})
    RANGES.update({f"TRAINER.{name}.{key}": allowed for key, allowed in ranges.items()})


if "INIT_SEED" not in cfg_default.MODEL:
    # Seed of the prompts' initial values, apart from SEED, which draws the few-shot samples. -1: the same as SEED.
    cfg_default.MODEL.INIT_SEED = -1
if "CHECKPOINT_ACTIVATIONS" not in cfg_default.TRAIN:
    # Compute the towers' layers again in the backward pass instead of keeping them: for class counts that do not fit.
    cfg_default.TRAIN.CHECKPOINT_ACTIVATIONS = False
    # Products with frozen weights in fp32 on the CPU: native (F.linear), onednn, or auto: the faster, measured once;
    # packed: the fastest, with copies of the weights in oneDNN's order beside them.
    cfg_default.TRAIN.FROZEN_LINEAR = "auto"
    RANGES["TRAIN.FROZEN_LINEAR"] = BACKENDS
    # Run the towers' frozen blocks through torch.compile, which fuses what lies between products and attention.
    cfg_default.TRAIN.COMPILE = False
    # Record the training step as one CUDA graph and replay it, so that no time goes into launching its kernels: auto
    # (on CUDA, where it can be had), on (or an error), off.
    cfg_default.TRAIN.CUDA_GRAPH = "auto"
    RANGES["TRAIN.CUDA_GRAPH"] = GRAPH_MODES
    # Compute PREC fp16 and amp in half precision on a CPU too, where fp32, which stands in for them, is far faster.
    cfg_default.TRAIN.CPU_HALF = False


class PromptTrainer(Steps, TrainerX):
    """Base of all prompt-learning trainers."""

    node: str  # name of the method's config node, cfg.TRAINER.<node>
    needs_vit = False  # whether the method puts tokens into the image tower
    n_views = 1  # augmented views of each training image that the method compares
    needs_training = True  # whether there is anything to train
    lr_by_step = False  # whether the learning rate changes at every step rather than at every epoch
    # What a search tries beside the learning rate (sweep.py --tune): a `Between`, or a tuple of choices, by dotted key.
    search_space: Mapping[str, Any] = {}
    # Gives the parts with which a test adapts the model to each image (trainers/tpt.py); None: no test does
    adaptation: Callable[[PromptTrainer, Watch], dict[str, Any]] | None = None
    path = "fast"  # which implementation of the towers runs; "plain" is for tests and benchmarks

    def __init__(self, cfg: CfgNode) -> None:
        self.notes: dict[str, Any] = {}  # what results.json shall say of the run beside its numbers
        super().__init__(cfg)

    @property
    def settings(self) -> CfgNode:
        """The method's own settings."""
        return self.cfg.TRAINER[self.node]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the config nodes that the method reads: its own; a mixin adds another's."""
        return (self.node,)

    @property
    def all_settings(self) -> dict[str, str]:
        """What stands in these nodes, as text by dotted key."""
        nodes = {node: self.cfg.TRAINER[node] for node in self.nodes}
        return {key: repr(value) for key, value in flatten({"TRAINER": nodes}).items()}

    @property
    def linear_kernels(self) -> dict[str, Any]:
        """Which kernels computed the products with frozen weights, for results.json; they differ by rounding."""
        return CHOOSER.report()

    @property
    def image_features_follow(self) -> str:
        """What the image features that it tests on follow from, as :attr:`PromptLearner.image_features_follow` says.

        A method that classifies in its own way, not from ``model.image_features``, gets "batch": nothing is reused.
        """
        if self.adaptation or redefines(self, PromptTrainer, "test", "model_inference", "parse_batch_test"):
            return "batch"
        if redefines(self.model, PromptedCLIP, "forward", "outputs", "image_features"):
            return "batch"
        return self.model.prompt_learner.image_features_follow

    @property
    def logits_kind(self) -> str:
        """Which logits predict the current class list, for log and results.json; "" for methods that have one kind."""
        return ""

    @property
    def trains_on_features(self) -> bool:
        """Whether image features may stand in for the training images."""
        redefined = redefines(self, PromptTrainer, "forward_backward", "parse_batch_train")
        takes_features = getattr(getattr(self, "objective", None), "takes_features", False)
        return self.image_features_follow == "image" and takes_features and not redefined

    # What a method provides

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> PromptLearner:
        """The method's prompt learner, its initial values drawn with ``generator``."""
        raise NotImplementedError

    def build_objective(self, clip_model: nn.Module) -> Objective:
        """What the method minimises; cross-entropy unless it says otherwise."""
        return CrossEntropy()

    def build_classifier(self, clip_model: nn.Module, learner: PromptLearner) -> PromptedCLIP:
        """The frozen CLIP with the learner's prompts."""
        return PromptedCLIP(clip_model, learner, self.train_classnames, self.precision, self.path)

    def parameter_groups(self, learner: PromptLearner) -> list[dict[str, Any]] | None:
        """Groups of the learner's parameters that train at rates of their own; ``None``: all at OPTIM.LR."""
        return None

    def build_schedule(self) -> Any:
        """The schedule of the learning rate."""
        return build_lr_scheduler(self.optim, self.cfg.OPTIM)

    def load_backbone(self) -> nn.Module:
        """The frozen CLIP of the configuration, on the CPU."""
        model = load_clip(self.cfg.MODEL.BACKBONE.NAME, "cpu", self.precision.weights_dtype)
        return model.float() if self.precision.tower_dtype == torch.float32 else model

    # Dassl's hooks

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse settings that cannot work, before anything is loaded."""
        for node in self.nodes:
            check_settings(node, cfg.TRAINER[node])
        if cfg.INPUT.NO_TRANSFORM:
            raise ValueError("INPUT.NO_TRANSFORM True: CLIP takes tensors, which the transforms make: set it to False")
        check_choice("TRAIN.CUDA_GRAPH", cfg.TRAIN.CUDA_GRAPH, GRAPH_MODES)
        if cfg.TRAIN.CUDA_GRAPH == "on" and not (cfg.USE_CUDA and torch.cuda.is_available()):
            raise ValueError("TRAIN.CUDA_GRAPH on needs a CUDA device, and this run has none: set it to auto or off")
        views, name = cfg.DATALOADER.K_TRANSFORMS, type(self).__name__
        if views != self.n_views and self.needs_training:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {views}, but {name} trains on {self.n_views} augmented "
                f"{'view' if self.n_views == 1 else 'views'} of each image: set it to {self.n_views}"
            )
        if self.needs_vit and is_resnet_name(cfg.MODEL.BACKBONE.NAME):
            raise ValueError(self._no_resnet(cfg))

    def build_model(self) -> None:
        """Load the frozen CLIP, build learner, objective, optimiser and schedule, and register the learner."""
        cfg = self.cfg
        self.gates: list[dict[str, float]] = []  # per epoch, weight of the tower's prompt by "tower/layer"
        self._resumed_gate_values: dict[str, float] = {}
        CHOOSER.use(cfg.TRAIN.FROZEN_LINEAR)
        set_compile(cfg.TRAIN.COMPILE)
        clip_model = self.load_checked_backbone()
        generator = torch.Generator()  # of the prompts' initial values
        seed = cfg.MODEL.INIT_SEED if cfg.MODEL.INIT_SEED >= 0 else cfg.SEED
        generator.manual_seed(seed) if seed >= 0 else generator.seed()
        learner = self.build_learner(clip_model, generator)
        clip_model.to(self.device)
        self.model = self.build_classifier(clip_model, learner).to(self.device)
        self.model.checkpoint_activations(cfg.TRAIN.CHECKPOINT_ACTIVATIONS)
        if set(cfg.TEST.get("CLASS_SPLITS", ())) - {cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")}:
            # a name that is too long for the prompt, or has no sentence in a file, is refused now, not after training
            names = getattr(self.dm.dataset, "all_classnames", self.train_classnames)
            learner.layout(names)
            if learner.sees_class_features or learner.joins_frozen_features:
                learner.class_sentences(names)
        self.objective = self.build_objective(clip_model)
        if path := cfg.MODEL.INIT_WEIGHTS:  # all of the learner's tensors, or none and an error
            tensors, sha256 = read_initial(path, type(self).__name__), hash_file(path)
            load_trained(learner, tensors, path)
            names = sorted(tensors)
            self.notes["init_weights"] = {"file": str(path), "sha256": sha256, "tensors": names}
            print(f"Initial weights from {path} (sha256 {sha256}): {len(names)} tensors, {', '.join(names)}")
        self.optim = build_optimizer(learner, cfg.OPTIM, self.parameter_groups(learner))
        self.sched = self.build_schedule()
        self.register_model(MODEL_NAME, learner, self.optim, self.sched)
        self.skipped_steps = self._skipped_in_a_row = 0
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision.needs_scaler else None
        print(f"Trainable parameters: {sum(p.numel() for p in learner.parameters() if p.requires_grad):,}")
        self.device_step = self.build_device_step()

    def train(self) -> None:
        """Train, unless the data set is there to be tested on only (ImageNetV2, -Sketch, -A, -R)."""
        if getattr(self.dm.dataset, "test_only", False):
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has test images only: train on another data set (ImageNet) and evaluate here "
                "with --eval-only --model-dir RUN"
            )
        with memory_advice(self.cfg, self.node, self.device, self.num_classes, training=True):
            super().train()

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One optimisation step; returns loss, its terms and the training accuracy."""
        summary = (self.device_step or self.step)(*self.parse_batch_train(batch))
        if self.lr_by_step or (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return summary

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch, on the trainer's device."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))  # pinned on CUDA
        return images, labels

    def after_epoch(self) -> None:
        """Keep the gates' weights of this epoch, for the log and results.json; then as Dassl does."""
        if values := self._gate_values():
            self.gates.append({"epoch": self.epoch + 1, **values})
        for name, value in values.items():
            self.write_scalar(f"gate/{name}", value, self.epoch)
        super().after_epoch()

    def _gate_values(self) -> dict[str, float]:
        """The gates' weights in the last step, which may have been before the run was stopped."""
        return self.model.prompt_learner.gate_values() or self._resumed_gate_values

    def resume_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {
            "gates": self.gates,
            "gate_values": self._gate_values(),
            "objective_step": getattr(self.objective, "step", 0),
            "skipped_steps": (self.skipped_steps, self._skipped_in_a_row),
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`resume_state` gave."""
        gates, skipped, step = state["gates"], state.get("skipped_steps", (0, 0)), state["objective_step"]
        last = state.get("gate_values", {})
        numbers = [*skipped, step, *(number for weights in (*gates, last) for number in weights.values())]
        if not isinstance(gates, list) or any(type(number) not in (int, float) for number in numbers):
            raise ValueError("its gates, skipped_steps or objective_step are no numbers")
        self.gates, self._resumed_gate_values = gates, last
        self.skipped_steps, self._skipped_in_a_row = skipped
        if hasattr(self.objective, "step"):  # objectives that draw at random draw by their step
            self.objective.step = step

    def test(self, split: str | None = None) -> float:
        """Evaluate as Dassl does, with the text features computed once."""
        self.evaluating = split or self.cfg.TEST.SPLIT
        validating = self.evaluating == "val"
        if self.logits_kind and not validating:
            self.notes.setdefault("logits", {})[self._class_split] = self.logits_kind
            print(f"Class split *{self._class_split}* is predicted by: {self.logits_kind}")
        advice = memory_advice(self.cfg, self.node, self.device, self.num_classes, training=False)
        with advice, self.model.evaluating() as watch, self.adapted(watch):
            result = super().test(split)
            loader = self.val_loader if validating else self.test_loader
            items = getattr(getattr(loader, "dataset", None), "data_source", [])
            images, classes = watch.heed([item.impath for item in items]), watch.zero_classes
        if images or classes:  # of features of norm zero
            seen = {"images": len(images), "first_images": images[:LISTED], "classes": list(classes)}
            self.zero_norm["val" if validating else self._class_split] = seen
            print(
                f"Features of norm zero, which are like nothing: {len(images)} images ({listed(images) or 'none'}), "
                f"{len(classes)} classes ({listed(classes) or 'none'})"
            )
        return result

    def adapted(self, watch: Watch) -> AbstractContextManager[None]:
        """Context in which test images are predicted as :attr:`adaptation` says."""
        return self.swapped(**self.adaptation(self, watch)) if self.adaptation else nullcontext()

    def checkpoint_extra(self, name: str) -> dict[str, Any]:
        """What a checkpoint says about itself, beside the trained tensors."""
        return {
            "trainer": type(self).__name__,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "classnames": list(self.train_classnames),
            "settings": "".join(f"{key}: {value}\n" for key, value in self.all_settings.items()),
        }

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load trained prompts from a run's folder, by this project or by the method's published code; "": none.

        Settings of the method other than those that it was trained with are said, for they may change what it predicts.

        Raises:
            FileNotFoundError: there is no such checkpoint (by default the best on validation if there, else the last).
            CheckpointError: when it does not fit this trainer and its settings.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        path = find_checkpoint(directory, epoch)
        trained = read_trained(path, type(self).__name__)
        # Prompts of another backbone are refused; a file's path says nothing about what is in it.
        name, trained_on = self.cfg.MODEL.BACKBONE.NAME, trained.content.get("backbone")
        is_file = any(known is None or is_path(str(known)) for known in (trained_on, name))
        if not is_file and trained_on != name:
            raise CheckpointError(
                f"checkpoint {path} was trained on the backbone {trained_on}, this run has {name}: "
                f"set MODEL.BACKBONE.NAME {trained_on}"
            )
        self.take_content({**trained.content, "state_dict": trained.tensors}, str(path))
        load_trained(self.model.prompt_learner, trained.tensors, path, trained.advice)
        print(f'Loading weights to {MODEL_NAME} from "{path}" (epoch = {trained.epoch})')
        lines = (trained.content.get("settings") or "").splitlines()  # earlier versions wrote keys without their node
        trained_with = dict(line.partition(": ")[::2] for line in lines)
        for key, value in self.all_settings.items():
            if (earlier := trained_with.get(key, value)) != value:
                print(f"Note: {key} is {value}, the checkpoint was trained with {printable(earlier)}")

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """Take what else the method needs of a checkpoint's content, or refuse it; nothing here. A hook."""

    # Evaluation on other classes

    def build_data_loader(self) -> None:
        """Dassl's loaders; remembers which classes are trained on."""
        super().build_data_loader()
        self.train_classnames = list(self.dm.dataset.classnames)  # in label order
        self._class_split = self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        self._managers = {self._class_split: self.dm}
        self.zero_norm: dict[str, dict[str, Any]] = {}  # by class split, or "val": images and classes of such features

    def set_class_split(self, split: str) -> None:
        """Evaluate on another part of the classes from now on: "base", "new" or "all"; nothing trained changes."""
        if split not in self._managers:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.DATASET.SUBSAMPLE_CLASSES = split
            cfg.freeze()
            self._managers[split] = DataManager(cfg)
        self.dm, self._class_split = self._managers[split], split
        self.test_loader, self.val_loader = self.dm.test_loader, self.dm.val_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.model.set_classes(self.dm.dataset.classnames)

    # Building

    def load_checked_backbone(self) -> nn.Module:
        """The backbone in this run's precision; refused where it does not fit the method or the image size."""
        cfg, name = self.cfg, self.cfg.MODEL.BACKBONE.NAME
        self.precision = resolve_precision(self.settings.PREC, self.device, cfg.TRAIN.CPU_HALF)
        if (asked := self.precision.asked) != self.precision.name:
            print(
                f"PREC {asked} is computed in {self.precision.name} on a CPU, where half precision takes many times as "
                "long (TRAIN.CPU_HALF True computes in it)"
            )
        print(f"Loading CLIP (backbone: {name})")
        clip_model = self.load_backbone()
        self.backbone_sha256 = getattr(clip_model, "weights_sha256", None)
        if self.needs_vit and TowerSizes.of(clip_model).vision_layers == 0:
            raise ValueError(self._no_resnet(cfg))
        resolution, size = clip_model.visual.input_resolution, tuple(cfg.INPUT.SIZE)
        if size != (resolution, resolution):
            raise ValueError(
                f"INPUT.SIZE is {size}, but {name} takes images of {resolution}x{resolution} pixels: "
                f"set INPUT.SIZE to ({resolution}, {resolution})"
            )
        return clip_model

    def _no_resnet(self, cfg: CfgNode) -> str:
        return (
            f"{type(self).__name__} changes the image tower from within, which {cfg.MODEL.BACKBONE.NAME} (not a plain "
            "ViT) does not allow: set MODEL.BACKBONE.NAME to a ViT, for example ViT-B/16, or use CoOp, CoCoOp, KgCoOp, "
            "ProGrad, ProDA, TCP, CoOp_DePT, TaskRes, CLIP_Adapter, TipAdapter, CLAP, LPPlusPlus or LinearProbe"
        )


# What every method refuses in the same words: a ValueError names the config key and what it may hold


def check_settings(node: str, settings: CfgNode) -> None:
    """Refuse values of a method's node outside the declared ranges, and prompts without tokens in a prompted tower."""
    for key, value in settings.items():
        name = f"TRAINER.{node}.{key}"
        allowed = RANGES.get(name)
        if allowed and isinstance(allowed[0], str):
            check_choice(name, value, allowed)
        elif allowed and (value is None or not allowed[0] <= value <= allowed[1]):
            raise ValueError(f"{name} is {value}: at least {allowed[0]}, at most {allowed[1]}")
        if key == "CTX_INIT" and isinstance(value, str) and set(value) & {"{", "}"}:
            words = value.partition("{")[0].strip()
            raise ValueError(f"{name} {value!r}: it is words without a place for the class name: set it to {words!r}")
        depth = f"PROMPT_DEPTH_{key.removeprefix('N_CTX').strip('_')}"
        if key.startswith("N_CTX") and value < 1 and settings.get(depth) != 0:
            instead = f"; for no tokens in that tower set TRAINER.{node}.{depth} 0" if depth in settings else ""
            raise ValueError(f"{name} is {value}: at least 1 token is learned{instead}")


def check_depth(key: str, depth: int, least: int, most: int) -> None:
    """Refuse a number of prompted layers that the backbone does not have."""
    if not least <= depth <= most:
        raise ValueError(
            f"{key} is {depth}, but this backbone can be prompted in {least} to {most} layers: set it to "
            f"{min(max(depth, least), most)}"
        )


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{key} {value!r}: choose one of {', '.join(choices)}")
