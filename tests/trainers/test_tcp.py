"""TCP: which texts it takes, and tokens that follow the class list without being kept."""

import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from prompting.model import sentence_features
from prompting.towers.text import TextEncoder
from tests.clips import CLASSNAMES, random_clip
from tests.trainers.small_runs import build, first_batch, logits_of, train_on, trained_tensors
from trainers import load_run
from trainers.tcp import AFTER_CONTEXT, FROZEN_TEMPLATES, TCPLearner
from trainers.templates import DATASET_TEMPLATES

FP32 = resolve_precision("fp32", "cpu")


def learner_of(model, n_ctx=4, words="", layer=2, template="{}.", frozen="a photo of a {}."):
    return TCPLearner(model, n_ctx, words, layer, template, frozen, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(DATASET_TEMPLATES))
def test_the_texts_of_every_data_set(small_clip, name):
    """Four places of the context, then what is published; a frozen sentence that names the class."""
    after = AFTER_CONTEXT.get(name, "{}.")
    layout = learner_of(small_clip, template=after).layout(["sea_lion"])
    assert layout.context[0, 1:5].tolist() == [0, 1, 2, 3]
    assert int((layout.context >= 0).sum()) == 4
    text = SimpleTokenizer().decode(layout.tokens[0, 5 : int(layout.lengths[0]) - 1].tolist())
    assert text.split() == after.format("sea lion").lower().replace(".", " .").replace(",", " ,").split()
    assert FROZEN_TEMPLATES[name].count("{}") == 1


def test_class_features_are_the_mean_of_sentences_and_computed_once(small_clip, monkeypatch):
    learner = learner_of(small_clip)
    learner.class_sentences = lambda names: [[f"a {name}.", *["an animal."] * (len(name) > 3)] for name in names]
    model, calls = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32), []
    monkeypatch.setattr("prompting.model.SENTENCES_AT_ONCE", 3)

    def counted(encoder, sentences, *others):
        calls.append(len(sentences))
        return sentence_features(encoder, sentences, *others)

    monkeypatch.setattr("prompting.model.sentence_features", counted)
    features = model.class_features()
    assert (max(calls), sum(calls)) == (3, sum(1 + (len(name) > 3) for name in CLASSNAMES))
    for name, feature in zip(CLASSNAMES, features, strict=True):
        texts = [f"a {name}.", *["an animal."] * (len(name) > 3)]
        own = F.normalize(sentence_features(TextEncoder(small_clip), texts, [name] * len(texts), FP32), dim=-1)
        torch.testing.assert_close(feature, F.normalize(own.mean(0), dim=-1), atol=1e-5, rtol=1e-4)
    calls.clear()
    model.set_classes(CLASSNAMES[:2])
    assert len(model.class_features()) == 2
    assert sum(calls) == 3
    calls.clear()
    model.set_classes(CLASSNAMES)  # the classes to train on: still there, for recorded steps
    assert model.class_features() is features
    assert calls == []


def test_no_tensor_depends_on_the_class_list(small_clip):
    learner = learner_of(small_clip)
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    before = {name: tensor.shape for name, tensor in learner.state_dict().items()}
    model.prompts()
    model.set_classes(CLASSNAMES[:1])
    assert model.prompts().text.deep[2].tokens.shape == (1, 4, 128)
    assert {name: tensor.shape for name, tensor in learner.state_dict().items()} == before


def test_the_loss_is_kgcoops_with_the_frozen_features():
    trainer = build("TCP")
    objective, model = trainer.objective, trainer.model
    assert objective.teacher is model.class_features()
    images, labels = torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 2, 3])
    loss, output = objective(model, images, labels), model.outputs(images)
    distance = 1 - (output.text_features * model.class_features()).sum(-1).mean()
    torch.testing.assert_close(loss.total, F.cross_entropy(output.logits, labels) + 8 * distance)


def test_words_to_start_from_give_as_many_tokens():
    trainer = build("TCP", **{"TRAINER.TCP.CTX_INIT": "a photo of", "TRAINER.TCP.N_CTX": 7})
    shapes = {name: tuple(tensor.shape) for name, tensor in trained_tensors(trainer).items()}
    width = trainer.model.prompt_learner.sizes.text_width
    assert shapes["ctx"] == (3, width)
    assert shapes["meta_net.linear2.weight"][0] == 3 * width


def test_a_template_of_ones_own_is_the_frozen_sentence_in_training_and_prediction(tmp_path):
    options = {"DATASET.TEMPLATE": "a scan of a {}.", "OPTIM.MAX_EPOCH": 1}
    trainer = build("TCP", tmp_path, **options)
    trainer.train()
    assert trainer.model.prompt_learner.frozen_template == "a scan of a {}."
    (tmp_path / "config.yaml").write_text(trainer.cfg.dump(), encoding="utf-8")
    images = torch.randn(3, 3, 48, 48)
    assert torch.equal(logits_of(load_run(tmp_path, "cpu"), images), logits_of(trainer, images))


@pytest.mark.parametrize("layer", [1, 3])
def test_any_layer_but_the_first_trains(layer):
    trainer = build("TCP", **{"TRAINER.TCP.LAYER": layer})
    train_on(trainer, first_batch(trainer))
    assert all(tensor.grad.any() for tensor in trained_tensors(trainer).values())


def test_a_resnet_reuses_image_features():
    sizes = dict(vision_layers=(1, 1, 1, 1), vision_width=64, image_resolution=64, vision_patch_size=None)
    assert learner_of(random_clip(**sizes)).image_features_follow == "image"
