"""Every file of ours under configs/trainers: it loads, its header's command is real, its values are the published ones.

tests/published_settings.py has the published values.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import sweep
import train
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from sweeping.plan import ELEVEN, FITTED, PROTOCOLS, build_queue, default_setting
from tests.ours import TRAINERS
from tests.published_settings import PUBLISHED, TINY_OF
from tests.trainers.small_runs import needed_by

pytestmark = pytest.mark.usefixtures("few_templates")
FOLDER = Path("configs/trainers")
BASES = sorted(Path("configs/base").glob("*.yaml"))
# What a user fills in; any data set's file does for the command to be real.
PLACEHOLDERS = {"$DATASET": "digits", "$DATA": "assets", "$SHOTS": "16"}
COUNTED = ("CLIP_LoRA", "LayerNormTuning", "TwoStage")  # trained by steps per shot
IDS = sorted([*PUBLISHED, *TINY_OF])  # a fork's files are the fork's to test
FILES = [FOLDER / f"{name}.yaml" for name in IDS]
TINY_IDS = sorted(TINY_OF)
TINY = [FOLDER / f"{name}.yaml" for name in TINY_IDS]
# Of the benchmark in miniature, which tests/test_miniature.py tests.
MINI_IDS = [f"{name}/{default_setting(name, PROTOCOLS['open_world'], 'mini_objects')}" for name in TRAINERS]
MINI = [FOLDER / f"{name}.yaml" for name in MINI_IDS]
ALWAYS_DIFFERENT = re.compile(r"INPUT\.|DATALOADER\.NUM_WORKERS|MODEL\.BACKBONE|TRAIN\.PRINT_FREQ|TRAINER\.\w+\.PREC")


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def configuration(path, *options):
    """Defaults and the file, as train.py merges them; an unknown key is an error there."""
    return train.setup_cfg(train.build_parser().parse_args(["--config-file", str(path), *options]))


def header(path):
    """The comment lines above the first key, without their sign."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def command(path):
    """The train.py arguments of the header's command, with placeholders filled in; of a sweep, its training run's."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    found = re.search(r"^python (train|sweep)\.py .*", text, flags=re.M)
    assert found, f"no command in {path}"
    line = found.group()
    for name, value in PLACEHOLDERS.items():
        line = re.sub(re.escape(name) + r"\b", value, line)
    assert "$" not in line, line
    words = shlex.split(line)[2:]
    if found[1] == "train":
        return words
    (plan,) = sweep.plans_of(sweep.parse(words))
    jobs = [job for job in build_queue(plan) if job.seed == 1 and job.shots == 16 and job.needs is None]
    assert len(jobs) == 1
    return list(jobs[0].arguments)


def flat(node, prefix=""):
    """A nested configuration as {dotted key: value}."""
    values = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return values


def test_every_trainer_has_a_tiny_and_a_full_setting():
    assert [str(path) for path in FILES if not path.is_file()] == []
    assert {path.parent.name for path in TINY} == set(TRAINERS)
    assert {path.parent.name for path in FILES if path not in TINY} == set(TRAINERS)
    assert all(TRAINER_REGISTRY.get(name).__name__ == name for name in TRAINERS)


@pytest.mark.parametrize("path", [*FILES, *MINI], ids=[*IDS, *MINI_IDS])
def test_header_command_runs_this_file(path):
    args = train.build_parser().parse_args(command(path))
    assert (args.trainer, args.config_file) == (path.parent.name, str(path))
    assert Path(args.dataset_config_file).is_file()
    cfg = train.setup_cfg(args)  # raises on an unknown key
    assert cfg.TRAINER.NAME in TRAINER_REGISTRY
    assert cfg.DATASET.NUM_SHOTS == 16
    assert args.output_dir.split("/")[2:4] == [path.parent.name, path.stem]
    bundled = {"tiny": "bundled:tiny_clip", "mini": "bundled:mini_clip"}.get(path.stem[:4])
    assert (bundled or PUBLISHED[_id(path)][0]) == cfg.MODEL.BACKBONE.NAME


def _id(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_header_says_what_to_expect(path):
    text = " ".join(header(path))
    if path in TINY:
        assert "not comparable with ViT-B/16's" in text
        assert "Published" not in text
    else:
        assert re.search(r"Published result: none|Published.*\d\d\.\d\d.*Source: ", text), text


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_file_sets_no_key_twice_and_reads_on_its_own_backbone_size(path):
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    assert not _repeated_keys(loader.get_single_node())
    assert tuple(configuration(path).INPUT.SIZE) == ((48, 48) if path in TINY else (224, 224))


def _repeated_keys(node):
    """Keys that come twice in a mapping, of which YAML would silently keep the last."""
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    return [key for key in keys if keys.count(key) > 1] + [k for _, value in node.value for k in _repeated_keys(value)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    backbone, optimiser, rate, epochs, warmup, batch, settings = PUBLISHED[name]
    cfg = configuration(FOLDER / f"{name}.yaml")
    assert backbone == cfg.MODEL.BACKBONE.NAME
    optim = cfg.OPTIM
    assert (optimiser, rate, epochs, warmup) == (optim.NAME, optim.LR, optim.MAX_EPOCH, optim.WARMUP_EPOCH)
    by_epsilon = {"TCP": 1e-3, "HiCroPL": 1e-3, "TipAdapterF": 1e-4}
    assert by_epsilon.get(name.split("/")[0], 1e-8) == optim.EPS
    assert batch == cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    assert cfg.DATALOADER.TEST.BATCH_SIZE == 100
    values = flat(cfg.TRAINER)
    assert {key: values[key] for key in settings} == settings
    if name.startswith("TipAdapterF"):
        assert (optim.LR_SCHEDULER, optim.WEIGHT_DECAY) == ("cosine", 0.01)
    elif not name.startswith(("Zeroshot", *FITTED)):
        assert (optim.LR_SCHEDULER, optim.WARMUP_TYPE, optim.WARMUP_CONS_LR) == ("cosine", "constant", 1e-5)
        decay = 0.0 if name.startswith("CLAP") else 0.01 if name.startswith(COUNTED) else 5e-4
        assert (decay, 0.9) == (optim.WEIGHT_DECAY, optim.MOMENTUM)
    node = TRAINER_REGISTRY.get(name.split("/")[0]).node
    assert values[f"{node}.PREC"] == (
        "amp" if node in ("MMA", "MMRL", "MMRLPP") or name.startswith(COUNTED) else "fp16"
    )
    if node.startswith(("MMRL", "TIPADAPTER", "LPPLUSPLUS")):
        assert cfg.INPUT.RRCROP_SCALE == (0.5, 1.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_augmentation_and_selection(name):
    cfg = configuration(FOLDER / f"{name}.yaml")
    coprompt_like = name.startswith("CoPrompt")
    if name.startswith("LinearProbe"):
        assert tuple(cfg.INPUT.TRANSFORMS) == ("normalize",)
        return
    augmentation = ("randaugment",) if coprompt_like else ("random_resized_crop", "random_flip")
    assert tuple(cfg.INPUT.TRANSFORMS) == (*augmentation, "normalize")
    assert (2 if coprompt_like else 1) == cfg.DATALOADER.K_TRANSFORMS
    chosen = ("BMIP", "ProDA", "PromptKD", "TipAdapterF")
    by_validation = name.startswith(chosen) and not name.endswith("cross_datasets")
    assert ("best_val" if by_validation else "last_step") == cfg.TEST.FINAL_MODEL
    assert (4 if by_validation and name.startswith("BMIP") else 0) == cfg.TRAIN.PATIENCE


@pytest.mark.parametrize("name", TINY_OF)
def test_tiny_settings_are_the_published_ones_but_for_what_is_said(name):
    published, different = TINY_OF[name]
    full = flat(configuration(FOLDER / name.split("/")[0] / f"{published}.yaml"))
    tiny = flat(configuration(FOLDER / f"{name}.yaml"))
    changed = {key: value for key, value in tiny.items() if value != full[key] and not ALWAYS_DIFFERENT.match(key)}
    assert changed == different


def test_tiny_settings_share_input_and_precision():
    inputs = {str(configuration(path).INPUT) for path in TINY if path.parent.name != "LinearProbe"}  # no augmentation
    assert len(inputs) == 1
    for path in TINY:
        cfg = configuration(path)
        assert cfg.TRAINER[TRAINER_REGISTRY.get(path.parent.name).node].PREC == "fp32"
        assert "random_flip" not in cfg.INPUT.TRANSFORMS  # a mirrored digit is another sign


@pytest.mark.parametrize("path", TINY, ids=TINY_IDS)
def test_tiny_settings_build_and_train(path, tmp_path):
    argv = command(path)
    argv[argv.index("--output-dir") + 1] = str(tmp_path)
    options = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]
    options += [word for pair in needed_by(path.parent.name).items() for word in pair]
    cfg = train.setup_cfg(train.build_parser().parse_args([*argv, *options]))
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    assert type(trainer).__name__ == path.parent.name
    trainer.configure(final_evaluation=lambda: None)  # the test set is not what this is about
    trainer.train()
    if path.stem != "tiny":  # zero-shot CLIP trains nothing
        assert [epoch["epoch"] for epoch in trainer.history] == [1]
        assert trainer.history[0]["loss"] / trainer.settings.get("KD_WEIGHT", 1) < 20


def _built_here(path):
    """Full settings that are built on the bundled model: one of those for the single data sets, all others."""
    of_a_dataset = path.stem.startswith("coprompt_") or (
        any(method in str(path) for method in ("MMRL", "TipAdapter")) and path.stem.endswith(ELEVEN[1:])
    )
    return (path not in TINY and not of_a_dataset) or path.stem == "coprompt_imagenet"


@pytest.mark.parametrize("path", [path for path in FILES if _built_here(path)], ids=_id)
def test_full_settings_fit_together(path):
    """On the bundled model, 4 layers deep: every setting is one that its trainer takes."""
    trainer_class = TRAINER_REGISTRY.get(path.parent.name)
    deep = re.compile(r"\.(PROMPT_DEPTH|ADAPTER_START|ADAPTER_END)")
    depths = {k: v for k, v in flat(configuration(path).TRAINER, "TRAINER.").items() if deep.search(k) and v > 4}
    options = {
        "TRAINER.NAME": path.parent.name,
        "DATASET.NAME": "Digits",
        "DATASET.ROOT": "assets",
        "DATASET.NUM_SHOTS": 1,
        "DATASET.SUBSAMPLE_CLASSES": "base",
        "MODEL.BACKBONE.NAME": "bundled:tiny_clip",
        "INPUT.SIZE": (48, 48),
        "DATALOADER.NUM_WORKERS": 0,
        "USE_CUDA": False,
        "VERBOSE": False,
        f"TRAINER.{trainer_class.node}.PREC": "fp32",
        **{f"TRAINER.{node}.REP_LAYERS": (2, 3, 4) for node in ("MMRL", "MMRLPP")},
        **dict.fromkeys(depths, 4),
        **needed_by(path.parent.name),
        "TRAINER.TCP.LAYER": 3,
        "TRAINER.HICROPL.CROSS_LAYER": 2,
    }
    cfg = configuration(path, *(str(part) for pair in options.items() for part in pair))
    trainer = build_trainer(cfg)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert (trained > 0) == ("Zeroshot" not in path.parent.name)


def test_every_base_is_one_of_a_setting():
    named = {base.resolve() for path in [*FILES, *MINI, *BASES] for base in _bases(path)}
    assert set(BASES) <= {path.relative_to(Path.cwd()) for path in named}


def _bases(path):
    names = yaml.safe_load(path.read_text(encoding="utf-8")).get("_BASE_", [])
    return [path.parent / name for name in ([names] if isinstance(names, str) else names)]
