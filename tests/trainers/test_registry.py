"""What holds for every registered method: training, saving, resuming, copying, precision, both paths, class lists."""

import copy
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from common.free_options import TRAINER_NODES
from dassl.engine import TRAINER_REGISTRY, build_trainer
from results.features import FeatureCollector
from sweeping.plan import FITTED, OWN_CLASSES, UNTRAINED
from tests.trainers.small_runs import (
    BATCH,
    HEADS,
    NEED_A_BATCH,
    OPTIONS,
    VARIANTS,
    ZERO_SHOT_ON_NEW,
    build,
    configuration,
    first_batch,
    logits_of,
    needing,
    registered,
    repository,
    stir,
    train_on,
    trained_tensors,
)
from trainers.heads import FittedTrainer

pytestmark = pytest.mark.usefixtures("few_templates")
MAX_LOGIT_DIFFERENCE = 1e-4  # at logit scale 100
MIN_COSINE = 0.999999
METHODS = registered()
TRAINED = needing("needs_training")
VARIANTS_TOO = TRAINED + sorted(VARIANTS)
# Their predictions belong to one class list, or (official BMIP) may depend on it and on the batch.
ANY_CLASSES = [name for name in METHODS if name not in OWN_CLASSES]
OWN_CLASSES_ONLY = ("CoOp/class_specific", "KgCoOp/class_specific", "ProGrad/class_specific")
DEPENDS_ON_BATCH = ("BMIP/official",)
CLASSES = ["digit seven", "digit two", "digit nine", "a fairly long name", "digit_three", "digit zero"]


@pytest.fixture(scope="module")
def built():
    """One trainer per case, its prompts moved from their start and the logit scale at CLIP's 100; tests leave it so."""
    trainers = {}

    def trainer_of(case):
        if case not in trainers:
            trainers[case] = stirred(case)
        return trainers[case]

    return trainer_of


def stirred(case, path="fast"):
    trainer = build(case, path=path)
    trainer.model.logit_scale.fill_(torch.tensor(100.0).log())
    stir(trainer)
    return trainer


@pytest.fixture(scope="module")
def first_step():
    """What one step from the start did in fp32, by case: what it reported, and names of tensors."""
    steps = {}

    def step_of(case):
        if case not in steps:
            trainer = build(case, **{"OPTIM.WARMUP_EPOCH": -1})
            tensors, learner = trained_tensors(trainer), trainer.model.prompt_learner
            before = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
            summary = train_on(trainer, first_batch(trainer))
            in_optimiser = {id(p) for group in trainer.optim.param_groups for p in group["params"]}
            steps[case] = SimpleNamespace(
                summary=summary,
                trained={f"prompt_learner.{name}" for name in tensors},
                all_in_optimiser=in_optimiser == {id(p) for p in learner.parameters()},
                dead=[name for name, tensor in tensors.items() if tensor.grad is None or not tensor.grad.any()],
                finite=all(torch.isfinite(tensor.grad).all() for tensor in tensors.values()),
                moved={name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])},
            )
        return steps[case]

    return step_of


@pytest.fixture(scope="module")
def images():
    return torch.randn(7, 3, 48, 48, generator=torch.Generator().manual_seed(4))


def test_every_method_is_tested():
    """A trainer that joins tests/ours.py needs a tiny setting, and then takes every test here."""
    assert len(METHODS) >= 15
    assert [name for name in METHODS if not list(repository().glob(f"configs/trainers/{name}/tiny*.yaml"))] == []
    assert {case.partition("/")[0] for case in VARIANTS} | set(OPTIONS) <= set(METHODS)


def test_a_sweep_knows_which_methods_take_no_steps():
    """Its lists need no torch; the classes say the same."""
    assert {name for name in METHODS if issubclass(TRAINER_REGISTRY.get(name), FittedTrainer)} == set(FITTED)
    assert set(METHODS) - set(TRAINED) == set(UNTRAINED)


@pytest.mark.parametrize("case", VARIANTS_TOO)
def test_checkpointed_activations_change_no_gradient(case, built):
    """TRAIN.CHECKPOINT_ACTIVATIONS computes layers again: same loss, same gradients, and fewer tensors kept."""
    trainer, batch = built(case), None
    gradients, kept = {}, {}
    for recompute in (False, True):
        trainer.model.checkpoint_activations(recompute)
        batch = batch or trainer.parse_batch_train(first_batch(trainer))
        gradients[recompute], kept[recompute] = gradients_and_kept_elements(trainer, batch)
    trainer.model.checkpoint_activations(False)
    for name, reference in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], reference, rtol=1e-5, atol=1e-7, msg=name)
    assert kept[True] < 0.8 * kept[False] or case in HEADS


def gradients_and_kept_elements(trainer, batch):
    """Gradient of every trained tensor, and how many numbers the forward pass keeps for it."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    if hasattr(trainer.objective, "step"):
        trainer.objective.step = 0
    tensors = trained_tensors(trainer)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.objective(trainer.model, *batch).total
    n_kept = sum(kept.values())
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True)), n_kept


@pytest.mark.parametrize("case", VARIANTS_TOO)
def test_one_step_moves_every_trained_tensor(case, first_step):
    """No tensor is dead: each is in the optimiser, gets a finite gradient and changes. All other tensors stay."""
    step = first_step(case)
    assert all(torch.isfinite(torch.tensor(value)) for value in step.summary.values())
    assert 0 < step.summary["loss"] < 100
    assert step.all_in_optimiser
    assert step.dead == []
    assert step.finite
    assert step.moved == step.trained
    assert step.trained


def test_zero_shot_trains_nothing(built):
    for name in sorted(set(METHODS) - set(TRAINED)):
        trainer = built(name)
        assert not any(p.requires_grad for p in trainer.model.parameters())
        assert trainer.get_model_names() == []


@pytest.mark.parametrize("case", [case for case in TRAINED if case in ANY_CLASSES])
def test_saved_prompts_give_the_same_logits_on_new_classes(case, images, tmp_path):
    trainer = build(case, tmp_path, **{"OPTIM.MAX_EPOCH": 1})
    trainer.train()
    trainer.set_class_split("new")
    before = logits_of(trainer, images)
    accuracy = trainer.test()
    loaded = build(case, **{"DATASET.SUBSAMPLE_CLASSES": "new", "MODEL.INIT_SEED": 99})
    assert torch.equal(logits_of(loaded, images), before) == (case in ZERO_SHOT_ON_NEW)
    loaded.load_model(str(tmp_path), epoch=1)
    assert loaded.model.classnames == trainer.model.classnames
    assert torch.equal(logits_of(loaded, images), before)
    assert loaded.test() == accuracy


OTHER_SETTINGS = {
    "CoOp": ("TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    "CLIP_LoRA": ("TRAINER.CLIP_LORA.ALPHA", 2.0),
    "MMA": ("TRAINER.MMA.ADAPTER_SCALE", 0.5),
    "MMRLpp": ("TRAINER.MMRLPP.BETA", 0.25),
    "TaskRes": ("TRAINER.TASKRES.RESIDUAL_SCALE", 0.25),
    "CLIP_Adapter": ("TRAINER.CLIP_ADAPTER.RATIO", 0.5),
    **dict.fromkeys(("MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"), ("TRAINER.BMIP.CTX_INIT", "a photo of the")),
    **dict.fromkeys(("CoOp_DePT", "PromptSRC_DePT"), ("TRAINER.DEPT.LAMBDA", 0.25)),
}


@pytest.mark.parametrize("case", OTHER_SETTINGS)
def test_settings_other_than_the_checkpoints_are_said(case, built, tmp_path, capsys):
    key, value = OTHER_SETTINGS[case]
    node, name = key.split(".")[1:]
    own = built(case).cfg.TRAINER[node][name]
    build(case, tmp_path, **{key: value}).save_model(0, str(tmp_path))
    for loaded, said in (
        (built(case), [f"Note: {key} is {own!r}, the checkpoint was trained with {value!r}"]),
        (build(case, **{key: value}), []),
    ):
        capsys.readouterr()
        copy.deepcopy(loaded).load_model(str(tmp_path))
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note")] == said


@pytest.mark.parametrize(
    "settings", [None, "CSC: false\nCLASS_TOKEN_POSITION: middle\nCTX_INIT:\n- x\n", ":", "\x1b: \n"]
)
def test_a_checkpoint_with_settings_as_earlier_versions_wrote_them_loads(settings, built, tmp_path):
    trainer = build("CoOp", tmp_path)
    extra = trainer.checkpoint_extra
    trainer.checkpoint_extra = lambda name: extra(name) | {"settings": settings}
    trainer.save_model(0, str(tmp_path))
    copy.deepcopy(built("CoOp")).load_model(str(tmp_path))


@pytest.mark.parametrize("case", ANY_CLASSES)
def test_evaluation(case, built):
    """As Dassl does it: one number, the same each time, of whichever classes are asked for."""
    trainer = built(case)
    accuracy = trainer.test()
    trainer.set_class_split("all")
    assert logits_of(trainer, torch.zeros(2, 3, 48, 48)).shape == (2, 10)
    assert 0 <= trainer.test() <= 100
    trainer.set_class_split("base")
    assert trainer.test() == accuracy


@pytest.mark.parametrize("case", METHODS)
def test_a_deep_copy_is_equal_and_independent(case, built, images):
    trainer = built(case)
    before = logits_of(trainer, images)
    copied = copy.deepcopy(trainer.model)
    with torch.no_grad():
        assert torch.equal(copied(images), before)
        for parameter in copied.parameters():
            parameter.mul_(1.5)
        classes = trainer.train_classnames[:2] if case in OWN_CLASSES else CLASSES
        copied.set_classes(classes)
        assert copied(images).shape == (len(images), len(classes))
    assert torch.equal(logits_of(trainer, images), before)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp"])  # fp32 is every other test's
@pytest.mark.parametrize("case", TRAINED)
def test_precisions(case, precision, built, first_step):
    """Lower number types, forward and backward: float32 trained tensors and gradients, a loss close to fp32's."""
    trainer = build(case, **{f"TRAINER.{built(case).node}.PREC": precision, "TRAIN.CPU_HALF": True})
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    assert trainer.model.image_encoder.visual.conv1.weight.dtype == half
    summary = train_on(trainer, first_batch(trainer))
    assert summary["loss"] == pytest.approx(first_step(case).summary["loss"], rel=0.05)
    for name, tensor in trained_tensors(trainer).items():
        assert tensor.dtype == tensor.grad.dtype == torch.float32, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.any(), name
    assert logits_of(trainer, first_batch_images(trainer)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp"])
@pytest.mark.parametrize("case", sorted(set(METHODS) - set(TRAINED)))
def test_precisions_of_zero_shot(case, precision, built, images):
    trainer = build(case, **{"TRAINER.ZEROSHOTCLIP.PREC": precision, "TRAIN.CPU_HALF": True})
    logits, exact = (logits_of(t, images).softmax(1) for t in (trainer, build(case)))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("case", "precision"), [*((name, "fp16") for name in METHODS), ("CoOp", "amp"), ("ZeroshotCLIP", "amp")]
)
def test_half_precision_is_computed_in_fp32_on_a_cpu(case, precision, built, images):
    """Every parameter is float32; of fp16 the frozen matrices have float16's values."""
    trainer = build(case, **{f"TRAINER.{built(case).node}.PREC": precision})
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert (trainer.precision.name, trainer.precision.asked) == ("fp32", precision)
    matrix = trainer.model.image_encoder.visual.conv1.weight
    assert torch.equal(matrix, matrix.half().float())  # the bundled model's file holds float16
    torch.testing.assert_close(logits_of(trainer, images), logits_of(build(case), images))


def first_batch_images(trainer):
    views = first_batch(trainer)["img"]
    return views[0] if isinstance(views, list) else views


@pytest.mark.parametrize("case", VARIANTS_TOO)
def test_both_paths_agree(case, built):
    """Logits and the gradient of the training loss, the fast path's against the plain one's."""
    fast, plain = built(case), stirred(case, "plain")
    batch = first_batch(fast)
    images, labels = fast.parse_batch_train(batch)
    if hasattr(fast.objective, "step"):
        fast.objective.step = 0
    shown = images[0] if isinstance(images, list) else images
    torch.testing.assert_close(logits_of(fast, shown), logits_of(plain, shown), atol=MAX_LOGIT_DIFFERENCE, rtol=0)
    gradients = [gradients_of(trainer, images, labels) for trainer in (fast, plain)]
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert F.cosine_similarity(gradient.flatten(), other.flatten(), dim=0, eps=1e-30) >= MIN_COSINE, name
        torch.testing.assert_close(gradient.norm(), other.norm(), rtol=1e-3, atol=0, msg=name)


def gradients_of(trainer, images, labels):
    """Gradient of the loss at a logit scale of 10, where no class takes all probability."""
    trainer.model.logit_scale.fill_(torch.tensor(10.0).log())
    tensors = trained_tensors(trainer)
    loss = trainer.objective(trainer.model, images, labels).total
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    trainer.model.logit_scale.fill_(torch.tensor(100.0).log())
    return {name: gradient.double() for name, gradient in zip(tensors, gradients, strict=True)}


@pytest.mark.parametrize("case", METHODS + sorted(set(VARIANTS) - set(DEPENDS_ON_BATCH)))
def test_an_image_does_not_depend_on_its_batch(case, built, images):
    trainer = built(case)
    alone = torch.cat([logits_of(trainer, image[None]) for image in images])
    torch.testing.assert_close(alone, logits_of(trainer, images), atol=MAX_LOGIT_DIFFERENCE, rtol=0)


@pytest.mark.parametrize("case", METHODS + sorted(VARIANTS))
def test_saving_features_changes_no_prediction(case, built, images):
    trainer = built(case)
    collector = FeatureCollector(trainer.model.eval())
    with torch.no_grad():
        torch.testing.assert_close(collector.infer(images), logits_of(trainer, images), atol=0, rtol=0)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("case", TRAINED)
def test_batches_of_any_size_train(case, size, built):
    trainer = built(case)
    trainer.model.train(not (case in NEED_A_BATCH and size == 1))
    images, labels = trainer.parse_batch_train(first_batch(trainer))
    assert len(labels) == BATCH
    images = [view[:size] for view in images] if isinstance(images, list) else images[:size]
    loss = trainer.objective(trainer.model, images, labels[:size])
    assert loss.output.logits.shape == (size, 5)
    gradients = torch.autograd.grad(loss.total, list(trained_tensors(trainer).values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("case", ANY_CLASSES + sorted(set(VARIANTS) - set(OWN_CLASSES_ONLY) - set(DEPENDS_ON_BATCH)))
def test_a_class_does_not_depend_on_the_others(case, built, images):
    """A class's logits are the same in every list that has it, in any order; so no split leaks into another."""
    trainer = built(case)
    try:
        trainer.model.set_classes(CLASSES)
        together = logits_of(trainer, images)
        for some in ([0], [5, 2], [3, 1, 4]):
            trainer.model.set_classes([CLASSES[i] for i in some])
            torch.testing.assert_close(logits_of(trainer, images), together[:, some], atol=MAX_LOGIT_DIFFERENCE, rtol=0)
    finally:
        trainer.model.set_classes(trainer.train_classnames)


@pytest.mark.parametrize("case", OWN_CLASSES_ONLY)
def test_class_specific_context_serves_its_own_classes_only(case, built):
    trainer = built(case)
    for names in (["digit five", "digit six", "digit seven", "digit eight", "digit nine"], ["digit zero"]):
        with pytest.raises(
            ValueError, match=r"class-specific context \(CSC\).*classes trained on only, or set CSC False"
        ):
            trainer.model.set_classes(names)
    assert trainer.model.classnames == tuple(trainer.train_classnames)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_no_other_methods_node(method):
    """What stands there is free to change: in a run that goes on, in a finished one, in a table's row."""
    cfg = configuration(method).clone()
    cfg.defrost()
    for node in [key for key, value in cfg.TRAINER.items() if isinstance(value, CfgNode)]:
        if node not in TRAINER_NODES[method]:
            del cfg.TRAINER[node]
    trainer = build_trainer(cfg)
    assert trainer.nodes == TRAINER_NODES[method]
    if trainer.needs_training:
        assert torch.isfinite(torch.tensor(train_on(trainer, first_batch(trainer))["loss"]))
    assert len(trainer.checkpoint_extra("prompt_learner")["settings"]) > 0


def test_no_sum_depends_on_how_python_orders_a_set():
    """Sets of texts have another order in every process: the same command would give other bits."""
    code = (
        "import hashlib\n"
        "import trainers\n"
        "for module in (trainers.promptsrc, trainers.coprompt, trainers.hicropl):\n"
        "    module.PROMPTSRC_TEMPLATES = module.PROMPTSRC_TEMPLATES[:3]\n"
        "from tests.trainers.small_runs import build, first_batch, registered, train_on, trained_tensors\n"
        "for name in registered():\n"
        "    options = {'TRAINER.PRODA.N_PROMPT': 8, 'TRAINER.PRODA.PROMPT_BATCH': 8} if name == 'ProDA' else {}\n"
        "    trainer = build(name, **options)\n"
        "    if trainer.needs_training:\n"
        "        train_on(trainer, first_batch(trainer))\n"
        "        tensors = [tensor.detach().numpy().tobytes() for tensor in trained_tensors(trainer).values()]\n"
        "        print('digest', name, hashlib.sha256(b''.join(tensors)).hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=repository(),
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")  # "front" comes first, and last
    ]
    digests = [[line for line in text.splitlines() if line.startswith("digest ")] for text in outputs]
    assert digests[0] == digests[1]
    assert len(digests[0]) == len(TRAINED)
