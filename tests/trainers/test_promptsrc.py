"""PromptSRC: its losses written out, and the Gaussian mean of all epochs' prompts."""

import math

import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build
from trainers.ivlp import IVLPLearner
from trainers.objectives import SelfRegulating
from trainers.promptsrc import gaussian_weights

FP32 = resolve_precision("fp32", "cpu")
EPOCHS, MEAN, STD = 3, 2.0, 0.8


def test_losses(small_clip, some_images):
    learner = IVLPLearner(small_clip, 2, 2, "a photo of a", 3, 3, torch.Generator().manual_seed(0))
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    teacher = F.normalize(torch.randn(len(CLASSNAMES), 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    labels = torch.tensor([1, 0, 4])
    loss = SelfRegulating(teacher, 25.0, 10.0)(model, some_images, labels)
    with torch.no_grad():
        frozen = F.normalize(small_clip.encode_image(some_images), dim=-1)
    output = model.outputs(some_images)
    text = (output.text_features - teacher).abs().mean()
    image = (output.image_features - frozen).abs().mean()
    p0, p = (100 * frozen @ teacher.T).softmax(1), output.logits.softmax(1)
    divergence = (p0 * (p0.log() - p.log())).sum() / p.numel()
    expected = F.cross_entropy(output.logits, labels) + 25 * text + 10 * image + divergence
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5)
    assert set(loss.terms) == {"loss_ce", "loss_text", "loss_image", "loss_logits"}


def test_weights_of_the_epochs():
    weights = gaussian_weights(MEAN, STD, EPOCHS)
    density = [math.exp(-((epoch - MEAN) ** 2) / (2 * STD**2)) for epoch in (1, 2, 3)]
    assert weights == pytest.approx([d / sum(density) for d in density])
    assert max(range(20), key=gaussian_weights(15, 1, 20).__getitem__) == 14


@pytest.mark.parametrize("case", ["PromptSRC", "PromptSRC_BMIP"])
def test_the_last_checkpoint_is_the_weighted_mean_of_all_epochs(case, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.promptsrc.PROMPTSRC_TEMPLATES", ["a photo of a {}."])
    options = {
        "OPTIM.MAX_EPOCH": EPOCHS,
        "TRAIN.CHECKPOINT_FREQ": 1,
        "TRAINER.PROMPTSRC.GPA_MEAN": MEAN,
        "TRAINER.PROMPTSRC.GPA_STD": STD,
    }
    trainer = build(case, tmp_path, **options)
    last = []  # the last epoch's own prompts, before the mean takes their place
    update_lr = trainer.update_lr

    def remember():
        update_lr()
        last[:] = [{name: value.clone() for name, value in trainer.model.prompt_learner.state_dict().items()}]

    trainer.update_lr = remember
    trainer.train()
    saved = [
        torch.load(tmp_path / f"prompt_learner/model.pth.tar-{epoch}", weights_only=True)["state_dict"]
        for epoch in (1, 2, 3)
    ]
    epochs = [saved[0], saved[1], last[0]]
    for name, value in saved[2].items():
        expected = sum(w * e[name] for w, e in zip(gaussian_weights(MEAN, STD, EPOCHS), epochs, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(value, trainer.model.prompt_learner.state_dict()[name])
    assert not torch.equal(saved[2]["ctx"], last[0]["ctx"])
