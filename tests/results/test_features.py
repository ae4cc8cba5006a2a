from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dassl.engine import TrainerX
from results.features import FeatureCollector, save_features

NAMES = {1: "dog", 0: "cat", 2: "eel"}


class Model:
    """Shows random features; with `per_image`, texts that depend on the image."""

    def __init__(self, per_image=False):
        self.generator, self.per_image = torch.Generator().manual_seed(0), per_image

    def random(self, *shape):
        return F.normalize(torch.randn(*shape, 8, generator=self.generator), dim=-1)

    def outputs(self, images):
        images = self.random(len(images))
        texts = self.random(len(images), 3) if self.per_image else self.random(3)
        logits = torch.einsum("bd,bcd->bc", images, texts) if self.per_image else images @ texts.t()
        return SimpleNamespace(logits=logits, image_features=images, text_features=texts)


def test_features_of_all_batches_are_kept_in_order():
    model, expected = Model(), []
    collector = FeatureCollector(model)
    for size in (4, 2):
        model_state = model.generator.get_state()
        logits = collector.infer(torch.zeros(size, 3, 4, 4))
        model.generator.set_state(model_state)
        output = model.outputs(torch.zeros(size, 3, 4, 4))
        torch.testing.assert_close(logits, output.logits)
        expected.append(output.image_features)
    arrays = collector.arrays(torch.tensor([0, 1, 2, 0, 1, 2]), NAMES)
    np.testing.assert_allclose(arrays["images"], torch.cat(expected).numpy(), atol=1e-6)
    assert arrays["texts"].shape == (3, 8)
    assert arrays["classnames"].tolist() == ["cat", "dog", "eel"]
    assert arrays["images"].dtype == np.float32


def test_texts_that_depend_on_the_image_are_averaged():
    model = Model(per_image=True)
    state = model.generator.get_state()
    collector = FeatureCollector(model)
    for size in (3, 2):
        collector.infer(torch.zeros(size, 1))
    model.generator.set_state(state)
    texts = torch.cat([model.outputs(torch.zeros(size, 1)).text_features for size in (3, 2)])
    expected = F.normalize(texts.mean(dim=0), dim=-1)
    np.testing.assert_allclose(collector.arrays(torch.zeros(5), NAMES)["texts"], expected.numpy(), atol=1e-6)


def test_the_trainer_is_itself_again_afterwards():
    class Trainer(TrainerX):
        test_loader = None

        def __init__(self):
            self.evaluator = "own"

        def model_inference(self, images):
            return "own"

    def fail_inside(trainer):
        with trainer.swapped(evaluator="other", test_loader=[], model_inference=lambda images: "other"):
            assert (trainer.evaluator, trainer.test_loader, trainer.model_inference(None)) == ("other", [], "other")
            raise RuntimeError("broken batch")

    trainer = Trainer()
    with pytest.raises(RuntimeError, match="broken batch"):
        fail_inside(trainer)
    assert (trainer.test_loader, trainer.model_inference(None)) == (None, "own")
    assert vars(trainer) == {"evaluator": "own"}


def test_a_model_that_hides_its_features_is_refused():
    with pytest.raises(ValueError, match="Linear does not"):
        FeatureCollector(torch.nn.Linear(1, 1))


def test_the_file_holds_every_class_split(tmp_path):
    collector = FeatureCollector(Model())
    collector.infer(torch.zeros(3, 1))
    arrays = collector.arrays(torch.tensor([0, 1, 2]), NAMES)
    save_features(tmp_path, {"base": arrays, "all": arrays})
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert sorted(file) == sorted(
            f"{split}_{part}" for split in ("all", "base") for part in ("images", "labels", "texts", "classnames")
        )
        np.testing.assert_array_equal(file["base_images"], arrays["images"])
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]
