"""Several seeds in one process: every method trains as it does alone, and its neighbours do not matter."""

import random
import sys

import pytest
import torch

from prompting.lockstep import Lockstep, current_member
from results.features import forget_all, train_on_features
from tests.trainers.small_runs import build, first_batch, needing, stir, train_on, trained_tensors
from trainers.together import join_trainer, run_together

TRAINED = needing("needs_training")


def training(case, seed, steps=2):
    """Some steps of gradient descent on the same images but other prompts; the towers' calls, losses and tensors."""

    def work():
        trainer = build(case, **{"OPTIM.NAME": "sgd", "OPTIM.LR": 0.05, "MODEL.INIT_SEED": seed})
        stir(trainer, std=0.01 * seed)
        join_trainer(trainer)
        batch = first_batch(trainer)
        batch["label"] = batch["label"].roll(seed)
        losses = [train_on(trainer, batch)["loss"] for _ in range(steps)]
        return losses, {name: tensor.detach().clone() for name, tensor in trained_tensors(trainer).items()}

    return work


@pytest.mark.parametrize("case", [*TRAINED, "BMIP/official", "IVLP/vision_only", "CoOp/class_specific"])
def test_every_method_trains_as_it_does_alone(case):
    """One step of gradient descent shows every gradient."""
    alone = [training(case, seed, steps=1)() for seed in (1, 2)]
    together = run_together([training(case, seed, steps=1) for seed in (1, 2)])
    for (losses, tensors), (joint_losses, joint_tensors) in zip(alone, together, strict=True):
        assert joint_losses == pytest.approx(losses, abs=1e-4)
        for name, tensor in tensors.items():
            torch.testing.assert_close(joint_tensors[name], tensor, atol=1e-5, rtol=1e-4)
    assert alone[0][0] != pytest.approx(alone[1][0], abs=1e-3)  # the seeds do differ


@pytest.mark.parametrize("case", ["BMIP", "CoOp"])
def test_the_towers_compute_once_for_all(case, monkeypatch):
    from prompting import joint

    sizes = {"_encode_images": [], "_encode_texts": []}
    for name, seen in sizes.items():
        encode = getattr(joint, name)
        monkeypatch.setattr(
            joint, name, lambda f, runs, encode=encode, seen=seen: (seen.append(len(runs)), encode(f, runs))[1]
        )
    run_together([training(case, seed, steps=2) for seed in (1, 2, 3)])
    assert sizes == {"_encode_images": [3, 3], "_encode_texts": [3, 3]}


def test_a_seed_that_ends_early_leaves_the_others_as_they_are():
    alone = training("BMIP", 1, steps=3)()
    together = run_together([training("BMIP", 1, steps=3), training("BMIP", 2, steps=1)])
    assert together[0][0] == pytest.approx(alone[0], abs=1e-4)


def test_a_seed_that_fails_does_not_end_the_others():
    ended = []

    def fails():
        trainer = build("CoOp")
        join_trainer(trainer)
        batch = first_batch(trainer)
        train_on(trainer, batch)
        trained_tensors(trainer)["ctx"].data.fill_(float("nan"))
        train_on(trainer, batch)

    def goes_on():
        ended.append(training("CoOp", 2, steps=4)())

    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN"):
        run_together([fails, goes_on])
    assert ended[0][0] == pytest.approx(training("CoOp", 2, steps=4)()[0], abs=1e-4)


def test_a_gradient_that_is_not_finite_ends_its_seed():
    def work():
        trainer = build("CoOp")
        join_trainer(trainer)
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1
        ctx = trainer.model.prompt_learner.ctx
        trainer.model_backward_and_update((ctx - ctx.detach()).abs().sqrt().sum())  # the slope of a root at zero

    with pytest.raises(FloatingPointError, match="the gradient of prompt_learner.ctx is infinite or NaN"):
        run_together([work])


def test_seeds_train_on_features_too():
    def work(seed):
        def train():
            trainer = build("CoOp", **{"INPUT.TRANSFORMS": ("normalize",), "OPTIM.NAME": "sgd", "SEED": seed})
            join_trainer(trainer)
            train_on_features(trainer, trainer.cfg)
            trainer.set_model_mode("train")
            trainer.batch_idx, trainer.num_batches = 0, 100
            return [trainer.forward_backward(batch)["loss"] for batch in trainer.train_loader_x]

        return train

    alone = [work(seed)() for seed in (1, 2)]
    forget_all()
    for losses, expected in zip(run_together([work(1), work(2)]), alone, strict=True):
        assert losses == pytest.approx(expected, abs=1e-4)


def test_an_error_of_the_joint_work_reaches_every_seed():
    def too_much(requests):
        raise RuntimeError("out of memory")

    caught = []

    def work():
        try:
            current_member().meet("key", None, too_much, last=False)
        except RuntimeError as error:
            caught.append(str(error))

    Lockstep().run([work, work])
    assert caught == ["out of memory"] * 2


def test_random_numbers_and_the_log_are_each_seeds_own(capsys):
    def work(seed):
        def draw():
            random.seed(seed)
            torch.manual_seed(seed)
            sys.stdout = type("Log", (), {"lines": [], "write": lambda self, text: self.lines.append(text)})()
            drawn = []
            for _ in range(3):
                current_member().meet("key", None, lambda requests: requests, last=False)
                drawn.append((random.random(), float(torch.rand(()))))
                print(seed, end="")
            return drawn, sys.stdout

        return draw

    random.seed(77)
    torch.manual_seed(77)
    before, stdout = (random.getstate(), torch.get_rng_state()), sys.stdout
    results = Lockstep().run([work(1), work(2)])
    assert sys.stdout is stdout
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    for seed, (drawn, _) in zip((1, 2), results, strict=True):
        random.seed(seed)
        torch.manual_seed(seed)
        assert drawn == [(random.random(), float(torch.rand(()))) for _ in range(3)]
    assert capsys.readouterr().out == ""


def test_a_stop_ends_every_seed():
    """Ctrl-C reaches the main thread, while a seed computes in another."""
    lockstep, ended = Lockstep(), []

    def work(stops):
        def steps():
            try:
                for _ in range(5):
                    current_member().meet("key", None, lambda requests: requests, last=False)
                    if stops:
                        lockstep.back.acquire = interrupted
            finally:
                ended.append(stops)

        return steps

    acquire = lockstep.back.acquire

    def interrupted():
        lockstep.back.acquire = acquire
        acquire()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lockstep.run([work(False), work(True)])
    assert sorted(ended) == [False, True]
    assert not any(member.thread.is_alive() for member in lockstep.members)


def test_only_trainers_whose_step_is_known_join():
    def work():
        trainer = build("CoOp")
        trainer.__class__ = type("Own", (type(trainer),), {"model_backward": lambda self, loss: loss.backward()})
        join_trainer(trainer)

    with pytest.raises(ValueError, match=r"Own has a backward pass of its own.*one --seed"):
        run_together([work])
