"""CoPrompt and BMIP's combinations: losses, sentences, adapters, and which parts a combination is made of."""

import json

import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build
from trainers.bmip import BMIPLearner
from trainers.coprompt import AdaptedLearner, read_sentences
from trainers.maple import MaPLeLearner
from trainers.objectives import ConsistencyGuided, CrossEntropy, SelfRegulating

FP32 = resolve_precision("fp32", "cpu")
NAMES = ["digit zero", "digit one", "digit two", "digit three", "digit four"]


def adapted(model):
    generator = torch.Generator().manual_seed(0)
    return AdaptedLearner(MaPLeLearner(model, 2, "a photo of a", 3, generator), generator)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_losses(small_clip, some_images, distance):
    model = PromptedCLIP(small_clip, adapted(small_clip), CLASSNAMES, FP32)
    sentences = F.normalize(torch.randn(1, len(CLASSNAMES), 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    labels, other_view = torch.tensor([1, 0, 4]), some_images.flip(-1)
    loss = ConsistencyGuided(sentences, 3.0, distance, seed=0)(model, [some_images, other_view], labels)
    frozen = F.normalize(small_clip.encode_image(other_view), dim=-1)
    output = model.outputs(some_images)
    pairs = [(output.text_features, sentences[0]), (output.image_features, frozen)]
    if distance == "cosine":
        consistency = sum(1 - (a * b).sum(-1).mean() for a, b in pairs)
    else:
        consistency = sum((a - b).square().mean() for a, b in pairs)
    expected = F.cross_entropy(output.logits, labels) + 3 * consistency
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5)


def test_adapters_come_before_normalisation(small_clip, some_images):
    learner = adapted(small_clip)
    bare = PromptedCLIP(small_clip, learner.prompts, CLASSNAMES, FP32)
    output = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32).outputs(some_images)
    raw = bare.image_encoder(some_images, learner.prompts().vision)
    adapter = learner.adapter_image
    features = 0.1 * torch.relu(torch.relu(raw @ adapter.down.T) @ adapter.up.T) + 0.9 * raw
    torch.testing.assert_close(output.image_features, F.normalize(features, dim=-1), rtol=1e-4, atol=1e-5)
    raw = bare.text_encoder(bare.layout, learner.prompts().text)
    adapter = learner.adapter_text
    features = 0.2 * torch.relu(torch.relu(raw @ adapter.down.T) @ adapter.up.T) + 0.8 * raw
    torch.testing.assert_close(output.text_features, F.normalize(features, dim=-1), rtol=1e-4, atol=1e-5)


def test_every_sentence_is_drawn_and_draws_follow_from_the_step():
    sentences = torch.arange(4.0).reshape(4, 1, 1)
    objective = ConsistencyGuided(sentences, 1.0, "cosine", seed=5)
    drawn = [int(objective.draw()) for _ in range(60)]
    assert set(drawn) == {0, 1, 2, 3}
    resumed = ConsistencyGuided(sentences, 1.0, "cosine", seed=5)
    resumed.step = 30
    assert [int(resumed.draw()) for _ in range(30)] == drawn[30:]


def sentence_file(folder, content):
    path = folder / "sentences.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_sentences_are_read_by_class_name_and_recorded(tmp_path, capsys):
    table = {name.replace(" ", "_"): [f"{name}, number {i}." for i in range(3)] for name in [*NAMES, "another"]}
    table["digit_one"].append("one more")  # the class with the fewest decides
    path = sentence_file(tmp_path, table)
    assert read_sentences(path, NAMES) == [[f"{name}, number {i}." for name in NAMES] for i in range(3)]
    trainer = build("CoPrompt", **{"TRAINER.COPROMPT.SENTENCES": path})
    assert trainer.objective.sentences.shape == (3, 5, 128)
    assert trainer.notes == {"consistency_text": "3 sentences per class from sentences.json"}
    assert "3 sentences per class from sentences.json" in capsys.readouterr().out


def test_without_sentences_templates_are_used_and_said(capsys):
    trainer = build("CoPrompt")
    assert trainer.notes["consistency_text"] == "60 templates (TRAINER.COPROMPT.SENTENCES is empty)"
    assert "60 templates" in capsys.readouterr().out


WRONG = {
    "not JSON": ("{", "is not valid JSON"),
    "a list": ([1, 2], r"should hold \{class name: \[sentences\]\}"),
    "a sentence alone": (dict.fromkeys(NAMES, "text"), r"should hold \{class name: \[sentences\]\}"),
    "numbers": ({name: [1, 2] for name in NAMES}, r"should hold \{class name: \[sentences\]\}"),
    "a class missing": (
        {name: ["text"] for name in NAMES[1:]},
        "no sentence for 1 classes, the first is 'digit zero': add them, or set TRAINER.COPROMPT.SENTENCES '' to use",
    ),
    "an empty sentence": (
        {name: ["text", " "] if name == NAMES[2] else ["text"] for name in NAMES},
        "COPROMPT.SENTENCES: .* an empty sentence for class 'digit two': take it out",
    ),
    "a class empty": ({name: [] if name == NAMES[2] else ["a"] for name in NAMES}, "the first is 'digit two'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sentence_files(case, tmp_path):
    content, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        read_sentences(sentence_file(tmp_path, content), NAMES)


COMBINATIONS = {
    "MaPLe_BMIP": ("MaPLe", CrossEntropy),
    "PromptSRC_BMIP": ("PromptSRC", SelfRegulating),
    "CoPrompt_BMIP": ("CoPrompt", ConsistencyGuided),
}


@pytest.mark.parametrize("case", COMBINATIONS)
def test_a_combination_is_the_hosts_training_with_bmips_prompts(case):
    host, objective = COMBINATIONS[case]
    trainer, bmip = build(case), build("BMIP", **_bmip_settings_of(case))
    assert isinstance(trainer.objective, objective)
    assert type(trainer.objective) is type(build(host).objective)
    learner = trainer.model.prompt_learner
    learner = getattr(learner, "prompts", learner)
    assert isinstance(learner, BMIPLearner)
    shapes = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
    assert shapes == {name: tuple(v.shape) for name, v in bmip.model.prompt_learner.state_dict().items()}


def _bmip_settings_of(case):
    settings = build(case).cfg.TRAINER.BMIP
    return {f"TRAINER.BMIP.{key}": value for key, value in settings.items() if key != "PREC"}


def test_a_combination_reads_bmips_settings():
    trainer = build("CoPrompt_BMIP", **{"TRAINER.BMIP.AGGREGATOR": "own", "TRAINER.BMIP.N_CTX": 3})
    assert trainer.model.prompt_learner.prompts.aggregator == "own"
    assert trainer.model.prompt_learner.prompts.vision_ctx.shape == (3, 128)
