"""What files written for Dassl rely on: import names, and a trainer that uses nothing but Dassl's own API."""

import datetime
import importlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import mkdir_if_missing
from tests.dassl import coop_style_trainer

ROOT = Path(__file__).resolve().parents[2]
# Public names of Dassl 0.6.3, by module, that trainer and data set files import.
NAMES = {
    "dassl": ["__version__"],
    "dassl.config": ["cfg_default", "clean_cfg", "get_cfg_default"],
    "dassl.data": ["DataManager", "DatasetWrapper"],
    "dassl.data.data_manager": ["DataManager", "DatasetWrapper", "build_data_loader"],
    "dassl.data.datasets": ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"],
    "dassl.data.datasets.base_dataset": ["DatasetBase", "Datum"],
    "dassl.data.datasets.build": ["DATASET_REGISTRY", "build_dataset"],
    "dassl.data.samplers": ["build_sampler"],
    "dassl.data.transforms": ["INTERPOLATION_MODES", "build_transform"],
    "dassl.data.transforms.transforms": ["AVAI_CHOICES", "INTERPOLATION_MODES", "build_transform"],
    "dassl.engine": [
        "SimpleNet",
        "SimpleTrainer",
        "TRAINER_REGISTRY",
        "TrainerBase",
        "TrainerX",
        "TrainerXU",
        "build_trainer",
    ],
    "dassl.engine.build": ["TRAINER_REGISTRY", "build_trainer"],
    "dassl.engine.trainer": ["SimpleNet", "SimpleTrainer", "SummaryWriter", "TrainerBase", "TrainerX", "TrainerXU"],
    "dassl.evaluation": ["Classification", "EVALUATOR_REGISTRY", "EvaluatorBase", "build_evaluator"],
    "dassl.evaluation.build": ["EVALUATOR_REGISTRY", "build_evaluator"],
    "dassl.evaluation.evaluator": ["Classification", "EvaluatorBase"],
    "dassl.metrics": ["compute_accuracy"],
    "dassl.modeling": [
        "BACKBONE_REGISTRY",
        "Backbone",
        "HEAD_REGISTRY",
        "NETWORK_REGISTRY",
        "build_backbone",
        "build_head",
        "build_network",
    ],
    "dassl.modeling.backbone": ["BACKBONE_REGISTRY", "Backbone", "build_backbone"],
    "dassl.modeling.head": ["HEAD_REGISTRY", "build_head"],
    "dassl.modeling.network": ["NETWORK_REGISTRY", "build_network"],
    "dassl.optim": ["build_lr_scheduler", "build_optimizer"],
    "dassl.optim.lr_scheduler": [
        "AVAI_SCHEDS",
        "ConstantWarmupScheduler",
        "LinearWarmupScheduler",
        "build_lr_scheduler",
    ],
    "dassl.optim.optimizer": ["AVAI_OPTIMS", "build_optimizer"],
    "dassl.optim.radam": ["RAdam"],
    "dassl.utils": [
        "AverageMeter",
        "Logger",
        "MetricMeter",
        "Registry",
        "check_availability",
        "check_isfile",
        "collect_env_info",
        "count_num_param",
        "download_url",
        "get_most_similar_str_to_a_from_b",
        "init_network_weights",
        "listdir_nohidden",
        "load_checkpoint",
        "load_pretrained_weights",
        "mkdir_if_missing",
        "open_all_layers",
        "open_specified_layers",
        "read_image",
        "read_json",
        "resume_from_checkpoint",
        "save_checkpoint",
        "set_random_seed",
        "setup_logger",
        "tolist_if_not",
        "write_json",
    ],
    "dassl.utils.tools": ["check_isfile", "mkdir_if_missing", "read_image", "read_json", "set_random_seed"],
    "dassl.utils.torchtools": ["count_num_param", "load_checkpoint", "load_pretrained_weights", "save_checkpoint"],
}
TRAINER_METHODS = [
    "register_model",
    "get_model_names",
    "save_model",
    "resume_model_if_exist",
    "load_model",
    "set_model_mode",
    "update_lr",
    "detect_anomaly",
    "init_writer",
    "close_writer",
    "write_scalar",
    "train",
    "before_train",
    "after_train",
    "before_epoch",
    "after_epoch",
    "run_epoch",
    "test",
    "parse_batch_train",
    "parse_batch_test",
    "forward_backward",
    "model_inference",
    "model_zero_grad",
    "model_backward",
    "model_update",
    "model_backward_and_update",
    "check_cfg",
    "build_data_loader",
    "build_model",
    "get_current_lr",
]
TRAINER_ATTRIBUTES = [
    "cfg",
    "device",
    "start_epoch",
    "epoch",
    "max_epoch",
    "output_dir",
    "train_loader_x",
    "train_loader_u",
    "val_loader",
    "test_loader",
    "num_classes",
    "num_source_domains",
    "lab2cname",
    "dm",
    "evaluator",
    "best_result",
    "_models",
    "_optims",
    "_scheds",
    "_writer",
]


@pytest.mark.parametrize("module", NAMES)
def test_import_names(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def test_any_of_the_paths_may_be_imported_first():
    """Several lead to one module."""
    lines = ["import sys"]
    for module, names in NAMES.items():
        lines.append(
            "for name in [name for name in sys.modules if name.split('.')[0] == 'dassl']: del sys.modules[name]"
        )
        lines += [f"from {module} import {', '.join(names)}", f"import {module}", f"{module}.{names[0]}"]
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], check=True, cwd=ROOT)


def test_trainer_interface(cfg):
    trainer = build_trainer(cfg)
    assert [name for name in TRAINER_METHODS if not callable(getattr(trainer, name, None))] == []
    assert [name for name in TRAINER_ATTRIBUTES if not hasattr(trainer, name)] == []


def test_the_engine_imports_none_of_the_rooms_above_it():
    import dassl

    roots = ("trainers", "datasets", "results", "prompting", "reporting", "extras")
    for directory, _, files in os.walk(os.path.dirname(dassl.__file__)):
        for file in files:
            if not file.endswith(".py"):
                continue
            with open(os.path.join(directory, file)) as source:
                lines = source.read().splitlines()
            imports = [line.strip() for line in lines if line.lstrip().startswith(("import ", "from "))]
            # which says what to do where it is not there
            allowed = ["from extras import device_transform"] if file == "data_manager.py" else []
            assert [line for line in imports if line.split()[1].split(".")[0] in roots] == allowed, file


@pytest.fixture
def coop_cfg(cfg):
    """Configuration of the trainer in `coop_style_trainer.py`, extended as CoOp's train.py does."""
    coop_style_trainer.extend_cfg(cfg)
    cfg.TRAINER.NAME = "CoOpStyle"
    cfg.OPTIM.LR = 0.02
    return cfg


@TRAINER_REGISTRY.register()
class CoOpStyleHooks(coop_style_trainer.CoOpStyle):
    """The trainer with hooks that are overridden without `super()`."""

    def before_train(self):
        directory = self.cfg.RESUME or self.cfg.OUTPUT_DIR
        self.start_epoch = self.resume_model_if_exist(directory)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()
        self.calls = ["before_train"]

    def after_epoch(self):
        if (self.epoch + 1) == self.max_epoch:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        self.test()
        print(datetime.timedelta(seconds=round(time.time() - self.time_start)))
        self.close_writer()
        self.calls.append("after_train")


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_a_trainer_written_for_dassl_runs_unchanged(coop_cfg, precision):
    coop_cfg.TRAINER.NAME = "CoOpStyleHooks"
    coop_cfg.TRAINER.COOPSTYLE.PREC = precision
    coop_cfg.OPTIM.MAX_EPOCH = 12
    coop_cfg.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.cuda.amp's deprecation, and that there is no GPU
        trainer = build_trainer(coop_cfg)
        trainer.train()
    assert len(trainer.history) == 12
    assert trainer.history[0]["lr"] == 1e-5
    assert trainer.history[1]["lr"] == 0.02
    prompts = trainer.model.prompt_learner
    with open(os.path.join(coop_cfg.OUTPUT_DIR, "prompt_learner", "checkpoint")) as file:
        assert file.read() == "model.pth.tar-12\n"
    assert trainer.optim.state[prompts.ctx]["momentum_buffer"].abs().max() > 0
    assert trainer.calls == ["before_train", "after_train"]
    saved = os.listdir(os.path.join(coop_cfg.OUTPUT_DIR, "prompt_learner"))
    assert sorted(saved) == ["checkpoint", "model.pth.tar-12"]


def test_its_checkpoint_is_evaluated_on_other_classes(coop_cfg):
    trainer = build_trainer(coop_cfg)
    trainer.train()
    other = build_trainer(coop_cfg)
    other.load_model(coop_cfg.OUTPUT_DIR, epoch=3)
    assert torch.equal(other.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
    assert other.test() == trainer.last_results["accuracy"]


def test_a_trainer_with_its_own_data_loader(coop_cfg):
    """The loop must not rely on a DataManager or on loaders of the engine's own."""

    @TRAINER_REGISTRY.register(force=True)
    class OwnLoader(coop_style_trainer.CoOpStyle):
        def build_data_loader(self):
            batch = {
                "img": torch.rand(4, 3, 8, 8),
                "label": torch.tensor([0, 1, 2, 0]),
                "domain": torch.zeros(4),
            }
            self.train_loader_x = self.test_loader = [batch, batch]
            self.train_loader_u = self.val_loader = None
            self.num_classes, self.num_source_domains = 3, 0
            self.lab2cname = {0: "a", 1: "b", 2: "c"}
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=["a", "b", "c"]))

    coop_cfg.TRAINER.NAME = "OwnLoader"
    trainer = build_trainer(coop_cfg)
    trainer.train()
    assert len(trainer.history) == 3
    assert trainer.evaluator._total == 8
