"""The step for GPUs, on the CPU: the same weights as the ordinary step, no waiting, and what a replay must not miss."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.steps import objective_to_meta
from dassl.config import get_cfg_default
from dassl.utils.checkpoint import RESUME_NAME, load_checkpoint
from tests.trainers.replaying import record_on_cpu
from tests.trainers.small_runs import VARIANTS, build, needing, registered, stir, trained_tensors
from trainers.step import MAX_SKIPPED_IN_A_ROW, DeviceStep, RecordedFunction, Recording, record_on_cuda

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled"),
    pytest.mark.usefixtures("few_templates"),
]
CASES = sorted(needing("needs_training")) + sorted(VARIANTS)
RECORDED = [case for case in CASES if not case.startswith("ProDA")]
STEPS = 4


def batches(trainer, number=STEPS):
    """Several batches with other images each time; two views where the method compares two."""
    generator = torch.Generator().manual_seed(5)
    size = trainer.model.image_encoder.resolution
    for _ in range(number):
        views = [torch.randn(3, 3, size, size, generator=generator) for _ in range(trainer.n_views)]
        labels = torch.randint(trainer.num_classes, (3,), generator=generator)
        yield {"img": views if trainer.n_views > 1 else views[0], "label": labels}


def train(trainer, some_batches):
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, 100
    return [trainer.forward_backward(batch) for batch in some_batches]


def trained_alike(case, times=2, **options):
    """The same trainer several times, moved away from its start."""
    trainers = [build(case, **options) for _ in range(times)]
    for trainer in trainers:
        stir(trainer)
    return trainers


def assert_same(ordinary, other, **tolerance):
    tensors = trained_tensors(other)
    for name, tensor in trained_tensors(ordinary).items():
        torch.testing.assert_close(tensors[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("case", CASES)
def test_the_device_step_trains_as_the_ordinary_one(case):
    """Also as a recording that is replayed, where the method can be recorded."""
    recorders = [None, record_on_cpu] if case in RECORDED else [None]
    ordinary, *others = trained_alike(case, times=1 + len(recorders))
    expected = train(ordinary, batches(ordinary))
    for other, recorder in zip(others, recorders, strict=True):
        other.device_step = DeviceStep(other, recorder)
        assert train(other, batches(other)) == expected
        assert_same(ordinary, other)
        assert recorder is None or other.device_step.recorded.recording is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "amp"])
@pytest.mark.parametrize("case", RECORDED)
def test_a_cuda_graph_trains_as_the_ordinary_step(case, precision):
    node = build(case).node
    ordinary, other = trained_alike(case, **{"USE_CUDA": True, f"TRAINER.{node}.PREC": precision, "OPTIM.NAME": "sgd"})
    ordinary.device_step, other.device_step = None, DeviceStep(other, record_on_cuda)
    losses = [[step["loss"] for step in train(trainer, batches(trainer))] for trainer in (ordinary, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimiser_skips_and_steps_without_a_question(name, monkeypatch):
    ordinary, other = trained_alike("BMIP", **{"OPTIM.NAME": name})
    groups = [{**group, "fused": True} for group in other.optim.param_groups]
    other.optim = type(other.optim)(groups, fused=True)
    other.device_step = DeviceStep(other, record_on_cpu)
    train(ordinary, batches(ordinary))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", None)  # what the gradient scaler asks of other optimisers
        train(other, batches(other))
    assert_same(ordinary, other, rtol=1e-4, atol=1e-6)


class OnOneDevice(TorchDispatchMode):
    """Lets nothing but numbers pass from the host to the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, results)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta" and tensor.dim():
                raise RuntimeError(f"{operation} has a tensor {tuple(tensor.shape)} in the host's memory")
        return results


def to_meta(trainer):
    """Move all that a step reads; tensors of this device have no values, so asking for one is an error."""
    trainer.device = torch.device("meta")
    trainer.model.to("meta")
    objective_to_meta(trainer.objective)


@pytest.mark.parametrize("case", RECORDED)
def test_nothing_passes_between_host_and_device_within_a_step(case):
    trainer = build(case)
    to_meta(trainer)
    step = DeviceStep(trainer)
    step.scaler = Scale()
    trainer.set_model_mode("train")
    for number, batch in enumerate(batches(trainer, 2)):
        images, labels = trainer.parse_batch_train(batch)
        drawn = [trainer.objective.draw()] if step.draws else []
        inputs = (labels, *drawn, *(images if isinstance(images, list) else [images]))
        if number == 0:
            step._compute(*inputs)  # what is built once for a class list may come from the host
        else:
            with OnOneDevice():
                step._compute(*inputs)


class Scale:
    """A gradient scaler of another device than CUDA would not do on meta tensors."""

    def scale(self, loss):
        return loss


@pytest.mark.parametrize("recorder", [None, record_on_cpu])
def test_gradients_that_are_not_finite_end_the_run_and_leave_the_weights(recorder):
    trainer = build("CoOp")
    trainer.device_step = DeviceStep(trainer, recorder)
    good, bad = batches(trainer, 2)
    train(trainer, [good])
    before = trainer.model.prompt_learner.ctx.detach().clone()
    bad["img"][0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"Loss is infinite or NaN! \(epoch 1 of"):
        train(trainer, [bad])
    assert torch.equal(trainer.model.prompt_learner.ctx, before)


def spoil_gradient(trainer):
    """A finite loss whose gradient is not: the slope of a root at zero."""
    objective = trainer.objective

    def spoiled(model, images, labels):
        loss, ctx = objective(model, images, labels), model.prompt_learner.ctx
        return type(loss)(loss.total + (ctx[0, 0] - ctx[0, 0].detach()).abs().sqrt(), loss.output)

    trainer.objective = spoiled


def test_a_gradient_is_named():
    trainer = build("CoOp")
    spoil_gradient(trainer)
    trainer.device_step = DeviceStep(trainer)
    before = trainer.model.prompt_learner.ctx.detach().clone()
    with pytest.raises(
        FloatingPointError, match=r"the gradient of prompt_learner\.ctx is infinite or NaN \(epoch 1 of"
    ):
        train(trainer, batches(trainer, 1))
    assert torch.equal(trainer.model.prompt_learner.ctx, before)


def test_under_loss_scaling_such_steps_are_skipped_and_counted():
    trainer = build("CoOp")
    objective = trainer.objective
    spoil_gradient(trainer)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer.device_step = DeviceStep(trainer)
    before = trainer.model.prompt_learner.ctx.detach().clone()
    train(trainer, batches(trainer, 2))
    assert torch.equal(trainer.model.prompt_learner.ctx, before)
    assert (trainer.skipped_steps, trainer.scaler.get_scale()) == (2, 2.0**14)
    trainer.objective = objective
    train(trainer, batches(trainer, 1))
    assert trainer.skipped_steps == 2
    assert not torch.equal(trainer.model.prompt_learner.ctx, before)
    spoil_gradient(trainer)
    trainer._skipped_in_a_row = MAX_SKIPPED_IN_A_ROW - 1
    with pytest.raises(FloatingPointError, match="30 steps in a row, down to a loss scale of"):
        train(trainer, batches(trainer, 1))


def recording_of(trainer):
    """What its device step replays; None for the ordinary step."""
    return trainer.device_step and trainer.device_step.recorded.recording


@pytest.mark.parametrize("case", ["VPT", "BMIP", "CoCoOp"])
def test_a_step_is_recorded_again_where_what_it_reads_has_changed(case):
    ordinary, other = trained_alike(case)
    other.device_step = DeviceStep(other, record_on_cpu)
    first = {"img": torch.zeros(2, 3, 48, 48), "label": torch.tensor([0, 1])}
    seen = []
    for trainer in (ordinary, other):
        train(trainer, batches(trainer, 2))
        seen.append(recording_of(trainer))
        trainer.test("val")
        for split in ("new", "base"):
            trainer.set_class_split(split)
            with trainer.model.evaluating(), torch.no_grad():
                trainer.model(first["img"])
        train(trainer, batches(trainer, 2))
        seen.append(recording_of(trainer))  # still valid
        train(trainer, [first])  # a batch of another size
        seen.append(recording_of(trainer))
        trainer.model.set_classes(["zero", "one", "two", "three", "four", *trainer.train_classnames[5:]])
        train(trainer, [first])
        seen.append(recording_of(trainer))
    assert_same(ordinary, other)
    before, after, smaller, renamed = seen[4:]
    assert after is before
    assert len({id(recording) for recording in (after, smaller, renamed)}) == 3


@pytest.mark.parametrize("case", ["BMIP", "BMIP/official", "CoPrompt_BMIP"])
def test_gates_that_are_logged_are_the_last_steps_and_not_an_evaluations(case):
    ordinary, other = trained_alike(case)
    other.device_step = DeviceStep(other, record_on_cpu)
    values = []
    for trainer in (ordinary, other):
        logged = []
        for number in (1, 2):
            train(trainer, batches(trainer, number))
            logged.append(trainer.model.prompt_learner.gate_values())
            trainer.set_model_mode("eval")
            with trainer.model.evaluating(), torch.no_grad():
                trainer.model(torch.ones(2, 3, 48, 48))
            assert case == "BMIP/official" or trainer.model.prompt_learner.gate_values() != logged[-1]
        values.append(logged)
    assert values[0] == values[1]
    assert values[0][0] != values[0][1]


def test_what_a_recording_reads_is_kept_alive():
    table = [torch.ones(2)]
    function = RecordedFunction(lambda x: x * table[0], lambda: (table[0],), record_on_cpu)
    assert function(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
    recording = function.recording
    assert function(torch.tensor([4.0, 5.0])).tolist() == [4.0, 5.0]
    assert function.recording is recording
    table[0] = torch.tensor([10.0, 10.0])
    assert function(torch.tensor([4.0, 5.0])).tolist() == [40.0, 50.0]
    assert function.recording is not recording


def ask_the_device(trainer):
    """Make a step wait for a number, which cannot be recorded."""
    objective = trainer.objective
    trainer.objective = lambda model, *batch: objective(model, *batch) if model.logit_scale.item() else None


def test_a_step_that_cannot_be_recorded_says_what_to_set():
    trainer = build("CoOp")
    ask_the_device(trainer)
    trainer.device_step = DeviceStep(trainer, record_on_cpu)
    with pytest.raises(RuntimeError, match=r"on: a training step of CoOp cannot be recorded \(.*set it to auto"):
        train(trainer, batches(trainer, 1))


def test_by_default_training_goes_on_without_and_says_so_once(capsys):
    ordinary, other = trained_alike("CoOp")
    ask_the_device(other)
    other.device_step = DeviceStep(other, record_on_cpu, required=False)
    assert train(ordinary, batches(ordinary)) == train(other, batches(other))
    assert_same(ordinary, other)
    note = other.notes["cuda_graph"]
    assert note.startswith("TRAIN.CUDA_GRAPH auto: the steps are not recorded as a CUDA graph: a training step of CoOp")
    assert capsys.readouterr().out.count(note) == 1


def test_memory_that_suffices_only_without_a_recording_suffices():
    def exhausted(compute):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    trainer = build("CoOp")
    for required in (True, False):
        trainer.device_step = DeviceStep(trainer, exhausted, required)
        if required:
            with pytest.raises(torch.OutOfMemoryError):
                train(trainer, batches(trainer, 1))
    train(trainer, batches(trainer, 2))
    assert "CUDA out of memory" in trainer.notes["cuda_graph"]


def test_a_recording_that_computes_something_else_is_not_used():
    trainer = build("CoOp")
    trainer.device_step = DeviceStep(trainer, lambda compute: Recording(lambda: None, compute() * 2), required=False)
    train(trainer, batches(trainer, 1))
    assert "computes something else when it is replayed" in trainer.notes["cuda_graph"]


# When it is chosen


def on_cuda(trainer, **settings):
    """Ask for the step as a run on CUDA would."""
    trainer.device = torch.device("cuda")
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.TRAIN.CUDA_GRAPH = settings.get("graph", "off")
    return trainer.build_device_step()


@pytest.mark.parametrize("name", registered())
def test_cuda_takes_the_device_step_and_records_it_if_asked_to(name):
    trainer = build(name)
    assert trainer.device_step is None, "on the CPU, Dassl's hooks"
    if not trainer.needs_training:
        return
    assert on_cuda(trainer).recorded is None
    automatic = on_cuda(trainer, graph="auto")
    if name == "ProDA":
        assert automatic.recorded is None
        assert trainer.notes["cuda_graph"].endswith("ProDA does other operations at every step")
        with pytest.raises(
            ValueError, match="CUDA_GRAPH on: ProDA does other operations at every step; set it to auto or off"
        ):
            on_cuda(trainer, graph="on")
    else:
        assert (automatic.recorded is not None, automatic.required) == (True, False)
        assert "cuda_graph" not in getattr(trainer, "notes", {})
        required = on_cuda(trainer, graph="on")
        assert (required.recorded is not None, required.required) == (True, True)


def test_the_plain_path_takes_the_same_step_and_is_not_recorded():
    trainer = build("CoOp")
    trainer.path = "plain"
    for mode in ("off", "auto", "on"):
        step = on_cuda(trainer, graph=mode)
        assert (type(step), step.recorded) == (DeviceStep, None)
    assert "cuda_graph" not in getattr(trainer, "notes", {})


def test_a_trainer_with_hooks_of_its_own_keeps_them():
    trainer = build("CoOp")
    trainer.__class__ = type("Mine", (type(trainer),), {"model_backward": lambda self, loss: loss.backward()})
    assert on_cuda(trainer) is None
    assert on_cuda(trainer, graph="auto") is None
    assert trainer.notes["cuda_graph"].endswith("Mine has a training step of its own")
    with pytest.raises(ValueError, match="CUDA_GRAPH on: Mine has a training step of its own; set it to auto or off"):
        on_cuda(trainer, graph="on")


def test_a_run_without_cuda_refuses_the_setting():
    with pytest.raises(ValueError, match=r"TRAIN\.CUDA_GRAPH on needs a CUDA device"):
        build("CoOp", **{"TRAIN.CUDA_GRAPH": "on"})


@pytest.mark.parametrize(("was", "now"), [(True, "on"), (False, "off"), ("True", "on"), ("off", "off")])
def test_values_of_earlier_versions_are_taken(was, now, tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text(f"TRAIN:\n  CUDA_GRAPH: {was}\n")
    from_command, from_file = get_cfg_default(), get_cfg_default()
    from_command.merge_from_list(["TRAIN.CUDA_GRAPH", was])
    from_file.merge_from_file(str(file))
    assert {from_command.TRAIN.CUDA_GRAPH, from_file.TRAIN.CUDA_GRAPH} == {now}


def test_a_run_begun_with_another_value_goes_on(tmp_path):
    trainer = build("CoOp", tmp_path)
    trainer.train()
    trainer.save_state(1)
    state = load_checkpoint(tmp_path / RESUME_NAME)
    state["config"]["TRAIN.CUDA_GRAPH"] = "False"  # as earlier versions wrote it
    assert build("CoOp", tmp_path / "on").load_state(state, "state") == 1


# What the host does while the device works


def watched(trainer, events):
    """Tell of the batches that are fetched, the scalars that are written and the numbers that are waited for."""
    batches = trainer.train_loader_x

    class Loader:
        set_epoch = staticmethod(batches.set_epoch)

        def __len__(self):
            return len(batches)

        def __iter__(self):
            for number, batch in enumerate(batches):
                events.append(f"batch {number}")
                yield batch

    trainer.train_loader_x = Loader()
    trainer.write_scalar = lambda tag, value, step: events.append(f"{tag} {step}") if tag == "train/loss" else None
    return trainer


def test_the_next_batch_comes_and_the_last_step_is_logged_while_the_device_works(monkeypatch, tmp_path):
    events = []
    ordinary = watched(build("CoOp", tmp_path / "ordinary"), [])
    trainer = watched(build("CoOp", tmp_path / "device"), events)
    trainer.device_step = step = DeviceStep(trainer)
    monkeypatch.setattr(step, "_read", lambda numbers: (events.append("wait"), DeviceStep._read(step, numbers))[1])
    ordinary.train()
    trainer.train()
    assert events[:6] == ["batch 0", "batch 1", "wait", "train/loss 0", "wait", "train/loss 1"]
    assert [epoch["loss"] for epoch in trainer.history] == [epoch["loss"] for epoch in ordinary.history]
    assert_same(ordinary, trainer)
