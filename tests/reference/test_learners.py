"""Our methods against upstream's code: with the same values in the same tensors, its logits, losses and gradients.

Three runs on file differ from ours on purpose, and are compared after the difference is undone: PromptSRC_BMIP's
teacher averages the 80 templates of its repository where ours takes PromptSRC's 60; ProDA and CoPrompt draw prompts and
sentences from other random streams, so the draw is set. The files of BMIP's predecessor (`bitp_*`) are no oracle: we
have no such method.
"""

from types import SimpleNamespace

import pytest
import torch

from prompting import resolve_precision
from prompting.model import ensemble, template_features
from prompting.published import FORMATS
from tests.reference import Reference, load_record, load_reference, reference_names
from tests.reference.ours import load_upstream_values, our_name, trainer_of
from tests.reference.small_clip import prompt_tensor, small_clip, small_images
from trainers.base import PromptTrainer
from trainers.ivlp import IVLPLearner
from trainers.objectives import Loss
from trainers.promptsrc import GaussianAggregation, gaussian_weights
from trainers.step import differentiable
from trainers.templates import PROMPTSRC_TEMPLATES
from trainers.zsclip import EnsembleCLIP, ZeroshotCLIP, ZeroshotCLIP2

LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4
SCALAR_GRADIENT_TOLERANCE = 1e-3  # a gate's gradient is a sum that nearly cancels
TERM_TOLERANCE = 1e-4
METHODS = (
    *("coop_", "cocoop_", "kgcoop_", "maple_", "ivlp_", "vpt_", "promptsrc_vision", "promptsrc_ctx"),
    *("promptsrc_bmip_", "coprompt_", "tcp_", "mma_", "dept_", "mmrl_", "mmrlpp_", "hicropl_", "proda_", "bmip_"),
    *("prograd_", "clip_lora_", "layernorm_", "promptkd_", "taskres_", "clip_adapter_"),
)
RUNS = [name for prefix in METHODS for name in reference_names(prefix)]
PLAIN = [
    "maple_depth3",
    "bmip_shared",
    "ivlp_vision3_text2",
    "cocoop_batch3",
    "mma_all",
    "clip_lora_qkvo",
]  # tests hold both together


@pytest.fixture(scope="module")
def model():
    return small_clip()


def training_images(reference: Reference) -> torch.Tensor | list[torch.Tensor]:
    """The images of upstream's training step; two views of each for CoPrompt."""
    n = len(reference.labels)
    if reference.record["method"] == "CoPrompt":
        return list(small_images(2 * n).split(n))
    return small_images(n)


def settle_differences(trainer: PromptTrainer, reference: Reference) -> None:
    """Undo where our objective draws or averages otherwise than the run on file."""
    objective, record = trainer.objective, reference.record
    if record["method"] == "CoPrompt":
        wanted = objective.sentences[record["sentence_index_drawn"]]
        objective.step = next(step for step in range(100) if torch.equal(_draw_at(objective, step), wanted))
    elif record["method"] == "ProDA":
        objective._draw = lambda: record["prompts_of_this_step"]
    elif record["method"] == "PromptSRC_BMIP":
        encoder = trainer.model.text_encoder
        features = template_features(encoder, reference.class_names, record["text_templates"], trainer.precision)
        objective.teacher = ensemble(features, normalise_each=False)


def _draw_at(objective, step: int) -> torch.Tensor:
    objective.step = step
    return objective.draw()


def check_terms(loss: Loss, reference: Reference) -> None:
    """The parts of the loss, where upstream's run has them."""
    terms, kept = loss.terms, reference.record.get("loss_terms", {})
    weight = kept.get("weight", 1.0)
    expected = {"loss_ce": kept.get("cross_entropy"), "loss_logits": kept.get("logit_kl")}
    if reference.record["method"] == "ProGrad":
        kept = reference.record["summary"]
        expected |= {"loss_ce": kept["xe_loss"], "loss_kl": kept["kl_loss"]}
    elif reference.record["method"] == "KgCoOp":
        expected["loss_text"] = kept["one_minus_mean_cosine"]
    elif reference.record["method"].startswith("PromptSRC"):
        s = reference.settings["TRAINER.PROMPTSRC"]
        expected["loss_text"] = kept["text_l1_times_weight"] / s["TEXT_LOSS_WEIGHT"]
        expected["loss_image"] = kept["image_l1_times_weight"] / s["IMAGE_LOSS_WEIGHT"]
    elif reference.record["method"] == "CoPrompt":
        consistency = weight * (terms["loss_text"] + terms["loss_image"])
        assert consistency.item() == pytest.approx(kept["consistency_times_weight"], rel=TERM_TOLERANCE)
    for name, value in expected.items():
        if value is not None:
            assert terms[name].item() == pytest.approx(value, rel=TERM_TOLERANCE), name


def check_gradients(learner: torch.nn.Module, reference: Reference) -> None:
    """Every gradient of upstream's is ours; ours has no further tensor; what upstream never uses has none."""
    ours = dict(learner.named_parameters())
    covered = set()
    for upstream, gradient in reference.gradients.items():
        name = our_name(reference, upstream)
        assert name in ours, f"{upstream} is trained upstream, but not here"
        tolerance = SCALAR_GRADIENT_TOLERANCE if ours[name].numel() == 1 else GRADIENT_TOLERANCE
        assert gradient.relative_error(ours[name].grad.reshape(gradient.shape)) < tolerance, upstream
        covered.add(name)
    unused = {our_name(reference, name) for name in reference.without_gradient}
    for name, parameter in ours.items():
        if name not in covered:
            assert name in unused, f"{name} is not upstream's"
            # the normalisation after it takes out what PromptKD's first bias adds
            rounding = 1e-3 if name == "projection.0.bias" else 0
            assert parameter.grad is None or parameter.grad.norm() <= rounding, name


@pytest.mark.parametrize(("name", "path"), [(name, "fast") for name in RUNS] + [(name, "plain") for name in PLAIN])
def test_logits_loss_and_gradients(model, name, path, tmp_path):
    reference = load_reference(name)
    trainer = trainer_of(reference, model, tmp_path, path)
    load_upstream_values(trainer, reference)
    with torch.no_grad():
        logits = trainer.model.eval()(small_images(len(reference.labels)))
    torch.testing.assert_close(logits, reference.logits, atol=LOGITS_TOLERANCE, rtol=0)
    trainer.model.train()
    settle_differences(trainer, reference)
    loss = trainer.objective(trainer.model, training_images(reference), reference.labels)
    assert loss.total.item() == pytest.approx(reference.loss, rel=TERM_TOLERANCE)
    check_terms(loss, reference)
    differentiable(loss, trainer.model.parameters()).backward()
    check_gradients(trainer.model.prompt_learner, reference)


@pytest.mark.parametrize("name", reference_names("mmrl"))
def test_both_kinds_of_mmrls_logits(model, name):
    """On file the class token's are `logits`, which the test above holds."""
    reference = load_reference(name)
    trainer = trainer_of(reference, model)
    load_upstream_values(trainer, reference)
    trainer.model.logits = "fused"
    with torch.no_grad():
        output = trainer.model.outputs(small_images(len(reference.labels)))
    for ours, kept in ((output.rep_logits, "logits_rep"), (output.logits, "logits_fusion")):
        torch.testing.assert_close(ours, torch.tensor(reference.record[kept]), atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_both_stages_of_2sfs(model, path):
    reference = load_reference("two_stage")
    record, trainer = reference.record, trainer_of(reference, model, path=path)
    load_upstream_values(trainer, reference)
    learner, images = trainer.model.prompt_learner, small_images(len(reference.labels))
    theirs = learner.classifier.weight.detach().clone()
    losses = []
    for stage in (1, 2):
        learner.set_stage(stage)
        losses.append(trainer.objective(trainer.model, images, reference.labels).total)
        losses[-1].backward()
    assert [loss.item() for loss in losses] == pytest.approx(record["losses"], rel=TERM_TOLERANCE)
    check_gradients(learner, reference)
    with torch.no_grad():
        for names, logits in ((record["class_names"], "logits"), (record["mixed_class_names"], "logits_mixed")):
            trainer.model.set_classes(names)
            torch.testing.assert_close(
                trainer.model(images), torch.tensor(record[logits]), atol=LOGITS_TOLERANCE, rtol=0
            )
        trainer.model.set_classes(record["class_names"])
        learner.set_stage(1)
        first = trainer.model.text_features()
    torch.testing.assert_close(first[:, :16], torch.tensor(record["first_classifier"]), atol=1e-5, rtol=0)
    assert torch.equal(learner.classifier.weight, theirs)


@pytest.mark.parametrize("name", reference_names("proda_"))
def test_proda_training_logits_prompt_positions_and_overlap(model, name):
    reference = load_reference(name)
    record, trainer = reference.record, trainer_of(reference, model)
    load_upstream_values(trainer, reference)
    settle_differences(trainer, reference)
    assert [("front", "middle", "end").index(p) for p in trainer.model.prompt_learner.positions] == record["positions"]
    with torch.no_grad():
        loss = trainer.objective(trainer.model, small_images(len(reference.labels)), reference.labels)
        overlap = trainer.objective._overlap(trainer.model.class_free_features())
    expected = torch.tensor(record["training_logits_with_covariance"])
    torch.testing.assert_close(loss.output.logits, expected, atol=LOGITS_TOLERANCE, rtol=0)
    # Upstream computes this term and drops it; ORTHOGONAL_WEIGHT adds it.
    assert overlap.item() == pytest.approx(record["context_orthogonality_term_not_in_loss"], rel=TERM_TOLERANCE)


def test_proda_takes_every_prompt_once_per_cycle(model):
    trainer = trainer_of(load_reference("proda_prompts8_step4"), model)
    steps = [trainer.objective._draw() for _ in range(4)]
    assert all(len(step) == 4 for step in steps)
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == list(range(8))


@pytest.mark.parametrize("name", reference_names("kgcoop_"))
def test_kgcoop_teacher_is_the_template_upstream_takes(model, name):
    reference = load_reference(name)
    trainer = trainer_of(reference, model)
    template = reference.record["teacher_template"]
    features = template_features(trainer.model.text_encoder, reference.class_names, [template], trainer.precision)
    torch.testing.assert_close(trainer.objective.teacher, ensemble(features))


@pytest.mark.parametrize("name", ["promptsrc_vision3_text2", "promptsrc_ctx4_depth4"])
def test_promptsrc_teacher(model, name):
    reference = load_reference(name)
    trainer = trainer_of(reference, model)
    assert sorted(PROMPTSRC_TEMPLATES) == sorted(reference.record["text_templates"])
    with torch.no_grad():
        frozen = torch.nn.functional.normalize(trainer.model.image_encoder(small_images(4)), dim=-1)
        logits = trainer.model.compare(frozen, trainer.objective.teacher).logits
    expected = torch.tensor(reference.record["zero_shot_logits"])
    torch.testing.assert_close(logits, expected, atol=LOGITS_TOLERANCE, rtol=0)


def test_promptsrc_epoch_weights():
    record = load_record("promptsrc_aggregation")
    s = record["settings"]["TRAINER.PROMPTSRC"]
    weights = gaussian_weights(s["GPA_MEAN"], s["GPA_STD"], record["settings"]["OPTIM.MAX_EPOCH"])
    assert weights == pytest.approx(record["weights_per_epoch"], rel=1e-9)
    for shipped in record["weights_of_shipped_settings"].values():
        weights = gaussian_weights(shipped["GPA_MEAN"], shipped["GPA_STD"], shipped["MAX_EPOCH"])
        assert weights == pytest.approx(shipped["weights"], rel=1e-9, abs=0)


class Epochs:
    """As much of a trainer as the aggregation touches."""

    def before_train(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass


class AggregatedRun(GaussianAggregation, Epochs):
    """Epochs whose prompts are set from outside."""


def test_promptsrc_aggregates_as_upstream(model):
    record = load_record("promptsrc_aggregation")
    s, run = record["settings"]["TRAINER.PROMPTSRC"], AggregatedRun()
    learner = IVLPLearner(model, s["N_CTX_TEXT"], s["N_CTX_VISION"], s["CTX_INIT"], 2, 2)
    run.model, run.settings = SimpleNamespace(prompt_learner=learner), SimpleNamespace(**s)
    run.max_epoch = record["settings"]["OPTIM.MAX_EPOCH"]
    names = FORMATS["PromptSRC"].our_names(record["aggregated"])
    run.before_train()
    for epoch in range(run.max_epoch):
        run.epoch = epoch
        values = {
            names[upstream]: prompt_tensor(f"epoch{epoch + 1}/{upstream}", tuple(kept["shape"]))
            for upstream, kept in record["aggregated"].items()
        }
        learner.load_state_dict(values)
        run.after_epoch()
    final = learner.state_dict()
    assert set(final) == set(names.values())
    for upstream, kept in record["aggregated"].items():
        flat = final[names[upstream]].reshape(-1)
        samples = flat[:: kept["sample_stride"]][: len(kept["samples"])]
        torch.testing.assert_close(samples, torch.tensor(kept["samples"]), atol=1e-7, rtol=1e-5)
        assert flat.double().norm().item() == pytest.approx(kept["norm"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "trainer_class"),
    [
        ("zeroshotclip_oxfordpets", ZeroshotCLIP),
        ("zeroshotclip_eurosat", ZeroshotCLIP),
        ("zeroshotclip2_dtd", ZeroshotCLIP2),
        ("zeroshotclip2_imagenet", ZeroshotCLIP2),
    ],
)
def test_zero_shot(model, name, trainer_class):
    record = load_record(name)
    trainer = object.__new__(trainer_class)
    dataset = SimpleNamespace(NAME=record["settings"].get("DATASET.NAME"))
    trainer.cfg = SimpleNamespace(DATASET=dataset, TRAINER={"ZEROSHOTCLIP": SimpleNamespace(TEMPLATE="")})
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace())
    assert sorted(trainer.templates()) == sorted(record["templates"])
    classifier = EnsembleCLIP(model, trainer.templates(), record["class_names"], resolve_precision("fp32", "cpu"))
    with torch.no_grad():
        logits = classifier(small_images(4))
    torch.testing.assert_close(logits, torch.tensor(record["logits"]), atol=LOGITS_TOLERANCE, rtol=0)
