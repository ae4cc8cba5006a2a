"""`trainers/bmip.py` with what it needs, copied into another repository on Dassl: `--trainer BMIP` works there."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prompting.weight_files import load_bundled_state_dict

ROOT = Path(__file__).resolve().parent.parent
FILES = ("bmip", "base", "objectives", "step")
TRAINER_FILES = [f"trainers/{name}.py" for name in FILES]
ROOMS = ("prompting", "common")
COPIED = [
    *TRAINER_FILES,
    *sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in ROOT.glob(f"{room}/**/*.py")),
]
# What the published Dassl (version 0.6.3) offers under these names; frozen, so that nothing of our own engine slips in.
DASSL = {
    "dassl.config": {"cfg_default", "get_cfg_default", "clean_cfg"},
    "dassl.data": {"DataManager", "DatasetWrapper"},
    "dassl.engine": {
        *("TRAINER_REGISTRY", "build_trainer", "TrainerX", "TrainerXU", "TrainerBase", "SimpleTrainer", "SimpleNet"),
    },
    "dassl.evaluation": {"build_evaluator", "EVALUATOR_REGISTRY", "EvaluatorBase", "Classification"},
    "dassl.metrics": {
        *("compute_accuracy", "cosine_distance", "compute_distance_matrix", "euclidean_squared_distance"),
    },
    "dassl.optim": {"build_optimizer", "build_lr_scheduler"},
    "dassl.utils": {
        *("MetricMeter", "AverageMeter", "Registry", "setup_logger", "set_random_seed", "collect_env_info"),
        *("count_num_param", "init_network_weights", "load_checkpoint", "load_pretrained_weights", "save_checkpoint"),
        *("mkdir_if_missing", "check_isfile", "read_json", "write_json", "tolist_if_not", "listdir_nohidden"),
        *("resume_from_checkpoint", "open_all_layers", "open_specified_layers", "get_most_similar_str_to_a_from_b"),
    },
}
# Of the clip package: its public names, and those that CoOp's own trainers take too.
CLIP = {"clip": {"*module*"}, "clip.clip": {"_MODELS", "_tokenizer"}, "clip.model": {"CLIP", "QuickGELU"}}
OWN = {f"trainers.{name}" for name in FILES if name != "bmip"}
PACKAGES = {"torch", "torchvision", "yacs", "prompting", "common", "filelock"}
OPTIONAL = {
    "open_clip",
    "huggingface_hub",
    "safetensors",
    "safetensors.torch",
}  # asked for inside a function, by a backbone's name


def imports_of(path):
    """(module, name or "*module*", whether at the top of the file) of every import in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "*module*", id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from ((node.module, alias.name, id(node) not in inside) for alias in node.names)


def is_offered(module, name, at_top):
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in PACKAGES or module in OWN:
        return True
    return name in (DASSL | CLIP).get(module, ()) or (module in OPTIONAL and not at_top)


@pytest.mark.parametrize("path", COPIED)
def test_imports_are_offered_by_what_a_fork_has(path):
    offending = [
        f"{module}.{name}" for module, name, at_top in imports_of(path) if not is_offered(module, name, at_top)
    ]
    assert offending == []


def test_the_check_sees_what_a_fork_does_not_have():
    assert not is_offered("dassl.utils", "atomic_write", True)
    assert not is_offered("results.evaluate", "CLASS_SPLITS", True)
    assert not is_offered("open_clip", "*module*", True)
    assert not is_offered("trainers.coop", "CoOp", True)


# A checkout in miniature, in the shape of CoOp's. `import trainers.bmip` is the line that a user adds.
TRAIN = """
import argparse

from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger

import datasets.standard
import trainers.bmip


def extend_cfg(cfg):
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16, "PREC": "fp16"})
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


parser = argparse.ArgumentParser()
for option in ("root", "output-dir", "trainer", "config-file", "model-dir"):
    parser.add_argument(f"--{option}", default="")
parser.add_argument("--seed", type=int)
parser.add_argument("--load-epoch", type=int)
parser.add_argument("--eval-only", action="store_true")
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args()
cfg = get_cfg_default()
extend_cfg(cfg)
cfg.merge_from_file(args.config_file)
cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED, cfg.TRAINER.NAME = args.root, args.output_dir, args.seed, args.trainer
cfg.merge_from_list(args.opts)
cfg.freeze()
set_random_seed(cfg.SEED)
setup_logger(cfg.OUTPUT_DIR)
trainer = build_trainer(cfg)
if args.eval_only:
    trainer.load_model(args.model_dir, epoch=args.load_epoch)
    trainer.test()
else:
    trainer.train()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The miniature checkout: its own packages, the copied files, a config file of ours and a CLIP in a file."""
    folder = tmp_path_factory.mktemp("fork")
    for package in ("dassl", "datasets"):  # in place of the Dassl and the data set file that a user has
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets/__init__.py").write_text("")
    for path in COPIED:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    (folder / "trainers/__init__.py").write_text("")
    (folder / "train.py").write_text(TRAIN)
    settings = (ROOT / "configs/trainers/BMIP/vit_b16_c2_ep10_batch4_2ctx.yaml").read_text()
    assert "_BASE_:" not in settings  # which upstream does not know
    (folder / "bmip.yaml").write_text(settings)
    state = {name: value.half() for name, value in load_bundled_state_dict("tiny_clip").items()}
    torch.save(state, folder / "clip.pt")
    return folder


def run(checkout, output, *arguments):
    command = [
        *(sys.executable, "-W", "ignore", "train.py", "--root", str(ROOT / "assets"), "--output-dir", str(output)),
        *("--trainer", "BMIP", "--seed", "1", "--config-file", "bmip.yaml"),
        *arguments,
        *("DATASET.NAME", "Digits", "DATASET.NUM_SHOTS", "2", "MODEL.BACKBONE.NAME", "clip.pt"),
        *("OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0", "INPUT.SIZE", "(48, 48)"),
        *("TRAINER.BMIP.PREC", "fp32", "TRAINER.BMIP.PROMPT_DEPTH", "3"),
    ]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_bmip_trains_and_evaluates_in_another_checkout(checkout, tmp_path):
    log = run(checkout, tmp_path / "run")
    assert "Loading trainer: BMIP" in log
    assert "epoch [1/1]" in log
    assert "Deploy the model with the best val performance" in log
    accuracy = re.findall(r"\* accuracy: ([\d.]+)%", log)[-1]
    saved = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]
    assert {"ctx", "text_prompts.0", "vision_prompts.0", "vision_gates.0.alpha", "text_gates.0.alpha"} <= set(saved)
    again = run(checkout, tmp_path / "eval", "--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "1")
    assert re.findall(r"\* accuracy: ([\d.]+)%", again) == [accuracy]
    assert "epoch = 1" in again


def test_nothing_of_this_repository_is_loaded_from_elsewhere(checkout):
    code = (
        "import trainers.bmip, sys; print([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)])"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert str(checkout / "prompting") in result.stdout
    assert not re.search(rf"'{re.escape(str(ROOT))}/(?!\.venv)", result.stdout)


def test_the_page_names_the_files_and_the_line():
    page = (ROOT / "docs/your_fork.md").read_text(encoding="utf-8")
    assert all(path in page for path in TRAINER_FILES)
    assert "cp -r ../bmip/prompting ../bmip/common ." in page
    added = re.search(r"sed -i '(.*)' train.py", page)[1]
    train = subprocess.run(["sed", added], input="import trainers.coop\n", capture_output=True, text=True, check=True)
    assert train.stdout == "import trainers.coop\nimport trainers.bmip\n"
