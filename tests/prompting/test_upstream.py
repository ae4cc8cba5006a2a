"""Checkpoints laid out as the published repositories save them: mapped, refused by name, converted, evaluated."""

import subprocess
import sys
from types import SimpleNamespace

import clip.model
import numpy as np
import pytest
import torch

from prompting.checkpoint import CheckpointError, convert, main, prompt_settings, read_trained
from prompting.published import FORMATS, from_published, published_methods
from tests.reference import load_reference
from tests.reference.ours import model_folder, trainer_of, upstream_state
from tests.reference.small_clip import small_clip, small_images
from trainers.bmip import BMIPLearner
from trainers.clip_lora import LoRALearner
from trainers.coop import CoOpLearner
from trainers.ivlp import IVLPLearner
from trainers.layernorm_tuning import LayerNormLearner
from trainers.maple import MaPLeLearner
from trainers.mma import MMALearner
from trainers.mmrl import MMRLLearner
from trainers.mmrlpp import MMRLppLearner

# One or more runs of every method; what each file says about the settings it was trained with.
RUNS = {
    "coop_middle": {"N_CTX": 4, "CSC": False},
    "coop_csc": {"N_CTX": 4, "CSC": True},
    "cocoop_batch3": {"N_CTX": 4},
    "kgcoop_w8": {"N_CTX": 4, "CSC": False},
    "proda_prompts8_step4": {"N_PROMPT": 8, "N_CTX": 4},
    "vpt_deep3": {"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 3},
    "ivlp_vision3_text2": {"N_CTX_TEXT": 2, "N_CTX_VISION": 2, "PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 3},
    "ivlp_language_only": {"N_CTX_TEXT": 4, "PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 0},
    "maple_depth3": {"N_CTX": 2, "PROMPT_DEPTH": 3},
    "tcp_pets": {"N_CTX": 4},
    "hicropl_cross1": {"N_CTX": 4, "PROMPT_DEPTH": 3, "CROSS_LAYER": 1},
    "promptsrc_ctx4_depth4": {"N_CTX_TEXT": 4, "N_CTX_VISION": 4, "PROMPT_DEPTH_TEXT": 4, "PROMPT_DEPTH_VISION": 4},
    "coprompt_depth3": {"N_CTX": 2, "PROMPT_DEPTH": 3},
    "mma_scale": {"ADAPTER_START": 3, "ADAPTER_END": 4, "ADAPTER_DIM": 8},
    "dept_coop": {"N_CTX": 4, "CSC": False},
    "mmrl_pets": {"N_REP_TOKENS": 2, "REP_DIM": 64},
    "mmrlpp_pets": {"N_REP_TOKENS": 2, "REP_DIM": 64, "RES_LORA_DIM": 2, "PROJ_LORA_DIM": 8},
    "bmip_shared": {
        **{"N_CTX": 2, "PROMPT_DEPTH": 3, "GATE": "official", "AGGREGATOR": "gate"},
        **{"SHARE_PARAMETER_TEXT": True, "SHARE_PARAMETER_VISUAL": True},
    },
    "bmip_share_visual": {
        **{"N_CTX": 2, "PROMPT_DEPTH": 3, "GATE": "official", "AGGREGATOR": "gate"},
        **{"SHARE_PARAMETER_TEXT": False, "SHARE_PARAMETER_VISUAL": True},
    },
    "bmip_shared_depth1": {"N_CTX": 2, "PROMPT_DEPTH": 1},
    "promptsrc_bmip_per_layer": {
        **{"N_CTX": 2, "PROMPT_DEPTH": 3, "GATE": "official", "AGGREGATOR": "gate"},
        **{"SHARE_PARAMETER_TEXT": False, "SHARE_PARAMETER_VISUAL": False},
    },
}
EPOCH = 5


class Scheduler:
    """Stands for the scheduler object that upstream's engine pickles into its checkpoints."""

    def __init__(self):
        self.successor, self.last_epoch = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), 5


@pytest.fixture(scope="module")
def model():
    return small_clip()


def write_published(folder, name, change=lambda state: state, epoch=EPOCH):
    """A run's folder as upstream leaves it; returns the reference and the file."""
    reference = load_reference(name)
    path = folder / model_folder(reference) / f"model.pth.tar-{epoch}"
    path.parent.mkdir(parents=True)
    scheduler = {"successor": Scheduler(), "base_lrs": [0.1], "_last_lr": [np.float64(0.01)]}
    content = {"state_dict": change(upstream_state(reference)), "epoch": epoch, "val_result": np.float64(80.5)}
    torch.save(content | {"optimizer": {"state": {}, "param_groups": []}, "scheduler": scheduler}, path)
    return reference, path


def check_logits(trainer, reference):
    with torch.no_grad():
        logits = trainer.model(small_images(len(reference.labels)))
    torch.testing.assert_close(logits, reference.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_model_dir_takes_a_published_run(model, name, tmp_path, capsys):
    reference, path = write_published(tmp_path, name)
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    trainer.load_model(str(tmp_path), epoch=EPOCH)
    assert f'"{path}" (epoch = {EPOCH})' in capsys.readouterr().out
    check_logits(trainer, reference)


@pytest.mark.parametrize("name", RUNS)
def test_convert_and_show(model, name, tmp_path, capsys):
    reference, path = write_published(tmp_path / "theirs", name)
    method = reference.record["method"]
    new = tmp_path / "ours" / "prompt_learner" / "model.pth.tar-5"
    assert main(["convert", str(path), str(new)]) == 0
    assert f"{method}, epoch 5" in capsys.readouterr().out
    content = torch.load(new, weights_only=True)
    assert (content["trainer"], content["epoch"], content["converted_from"]) == (method, 5, path.name)
    assert {value.dtype for value in content["state_dict"].values()} == {torch.float32}
    assert [p.name for p in new.parent.iterdir()] == [new.name]  # no temporary file stays
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    trainer.load_model(str(tmp_path / "ours"))
    check_logits(trainer, reference)
    assert prompt_settings(content["state_dict"], method) == RUNS[name]
    shown = []
    for file in (path, new):
        assert main(["show", str(file)]) == 0
        shown.append(capsys.readouterr().out)
    assert all(f"{key} {value}" in text for text in shown for key, value in RUNS[name].items())
    assert f"trainer   {method} (a published repository's file)" in shown[0]
    assert f"trainer   {method} (this project's format)" in shown[1]
    assert all(f"  {n}  {tuple(v.shape)}" in shown[1] for n, v in content["state_dict"].items())


def test_half_precision_becomes_float32_without_another_rounding(model, tmp_path):
    halve = lambda state: {key: value.half() for key, value in state.items()}  # noqa: E731
    reference, path = write_published(tmp_path, "maple_depth3", halve)
    exact = from_published(upstream_state(reference), "MaPLe", "memory")
    for name, value in read_trained(path, "MaPLe").tensors.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name].half().float()), name
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    trainer.load_model(str(tmp_path))
    with torch.no_grad():
        logits = trainer.model(small_images(4))
    torch.testing.assert_close(logits, reference.logits, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_the_method_is_told_from_the_tensors_and_others_are_refused_by_name(name):
    reference = load_reference(name)
    state, method = upstream_state(reference), reference.record["method"]
    assert published_methods(state) == [method]
    for other in FORMATS.keys() - {method, "ProGrad"}:
        with pytest.raises(CheckpointError, match=f"checkpoint FILE is one of {method}, not of {other}"):
            from_published(state, other, "FILE")


def test_files_of_prograd_are_those_of_coop(model, tmp_path):
    """No tensor tells them apart: the trainer that reads a file does."""
    reference, path = write_published(tmp_path, "prograd_init")
    assert read_trained(path).trainer == "CoOp"
    trainer = trainer_of(reference, model, objective=False)
    trainer.load_model(str(tmp_path))
    check_logits(trainer, reference)
    with pytest.raises(CheckpointError, match="is one of MaPLe, not of ProGrad"):
        from_published(upstream_state(load_reference("maple_depth3")), "ProGrad", "FILE")


def test_a_method_that_nobody_published_is_refused(model, tmp_path):
    _, path = write_published(tmp_path, "bmip_shared")
    with pytest.raises(CheckpointError, match="none publishes MaPLe_BMIP: files of CoOp, CoCoOp"):
        read_trained(path, "MaPLe_BMIP")


def test_every_unknown_tensor_is_named():
    state = upstream_state(load_reference("maple_depth3"))
    strange = ["prompt_learner.extra", "image_encoder.transformer.resblocks.1.adapter.weight", "head.bias"]
    state |= dict.fromkeys(strange, torch.zeros(2))
    with pytest.raises(CheckpointError) as error:
        from_published(state, "MaPLe", "FILE")
    assert all(f"unknown {name}" in str(error.value) for name in strange)
    assert str(error.value).count("unknown") == len(strange)


def test_bmips_predecessor_is_refused():
    with pytest.raises(CheckpointError, match=r"missing image_encoder\.transformer\.resblocks\.N\.learnable_linear1"):
        from_published(upstream_state(load_reference("bitp_joint")), "BMIP", "FILE")


@pytest.mark.parametrize(
    ("name", "node", "key", "value", "expected"),
    [
        ("bmip_shared", "BMIP", "GATE", "attention", ["missing text_gates.0.alpha", "TRAINER.BMIP.GATE official"]),
        ("bmip_shared", "BMIP", "SHARE_PARAMETER_TEXT", False, ["SHARE_PARAMETER_TEXT True"]),
        ("bmip_shared", "BMIP", "PROMPT_DEPTH", 4, ["missing text_prompts.2", "PROMPT_DEPTH 3"]),
        ("maple_depth3", "MAPLE", "N_CTX", 4, ["ctx has shape (2, 512) instead of (4, 512)", "N_CTX 2"]),
        ("coop_csc", "COOP", "CSC", False, ["ctx has shape (5, 4, 512)", "CSC True"]),
        ("ivlp_language_only", "IVLP", "PROMPT_DEPTH_VISION", 3, ["missing vision_tokens", "PROMPT_DEPTH_VISION 0"]),
        ("mma_scale", "MMA", "ADAPTER_START", 4, ["unexpected shared.3.bias", "ADAPTER_START 3, ADAPTER_END 4"]),
    ],
)
def test_other_settings_are_refused_and_the_files_own_are_named(model, name, node, key, value, expected, tmp_path):
    reference, _ = write_published(tmp_path, name)
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    trainer.cfg.TRAINER[node][key] = value
    learner = trainer.build_learner(model, torch.Generator().manual_seed(0))
    trainer.model = SimpleNamespace(prompt_learner=learner)
    before = {n: v.clone() for n, v in learner.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        trainer.load_model(str(tmp_path))
    assert all(text in str(error.value) for text in [*expected, str(tmp_path)])
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())  # all or none


def test_missing_epochs_and_folders_are_named(model, tmp_path):
    reference, path = write_published(tmp_path, "promptsrc_ctx4_depth4")
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    with pytest.raises(FileNotFoundError, match=r"VLPromptLearner/model\.pth\.tar-9.*epochs there: 5"):
        trainer.load_model(str(tmp_path), epoch=9)
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        trainer.load_model(str(tmp_path / "other"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=str(path)):
        trainer.load_model(str(tmp_path))


def test_convert_never_overwrites(tmp_path, capsys):
    _, path = write_published(tmp_path, "coop_csc")
    kept = tmp_path / "kept"
    kept.write_text("mine", encoding="utf-8")
    assert main(["convert", str(path), str(kept)]) == 1
    assert "kept exists and is not overwritten" in capsys.readouterr().err
    assert kept.read_text(encoding="utf-8") == "mine"
    convert(path, tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"in this project's format already \(trainer CoOp\)"):
        convert(tmp_path / "new", tmp_path / "newer")


def test_tensors_of_more_than_one_method_need_a_name(tmp_path, capsys):
    learner_only = ("prompt_learner.ctx", "prompt_learner.token_prefix", "prompt_learner.token_suffix")
    keep = lambda state: {name: state[name] for name in learner_only}  # noqa: E731
    _, path = write_published(tmp_path, "ivlp_language_only", keep)
    assert main(["convert", str(path), str(tmp_path / "new")]) == 1
    assert "may be one of ProDA or IVLP: say which with --trainer NAME" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["convert", str(path), str(tmp_path / "new"), "--trainer", "IVLP"]) == 0
    assert torch.load(tmp_path / "new", weights_only=True)["trainer"] == "IVLP"


def test_tensors_of_no_method_are_named(tmp_path, capsys):
    _, path = write_published(tmp_path, "coop_csc", lambda state: {"fc.weight": torch.ones(2, 2)})
    assert main(["show", str(path)]) == 1
    assert "has the tensors of no method that is known" in capsys.readouterr().err


def test_our_own_checkpoint_without_a_trainers_name_loads(model, tmp_path):
    """As upstream's engine writes it when our trainer runs in another checkout."""
    reference, path = write_published(tmp_path, "maple_depth3")
    tensors = read_trained(path, "MaPLe").tensors
    path.unlink()
    torch.save({"state_dict": tensors, "epoch": 5, "scheduler": Scheduler()}, path)
    trainer = trainer_of(reference, model, tmp_path, objective=False)
    trainer.load_model(str(tmp_path))
    check_logits(trainer, reference)


def test_the_command_needs_no_engine(tmp_path):
    _, path = write_published(tmp_path, "coop_csc")
    command = f"""
import runpy, sys
sys.modules["dassl"] = sys.modules["yacs"] = None  # an import of them raises
sys.argv = ["checkpoint", "show", {str(path)!r}]
runpy.run_module("prompting.checkpoint", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainer   CoOp" in done.stdout
    assert done.stderr == ""


def vit_b16():
    """ViT-B/16's widths and depths without its weights."""
    with torch.device("meta"):
        model = clip.model.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    model.token_embedding.weight = torch.nn.Parameter(torch.zeros(1, 512).expand(49408, 512))
    return model


@pytest.mark.parametrize(
    ("learner", "published"),
    [
        (lambda m: CoOpLearner(m, 16), 8_192),
        (lambda m: MaPLeLearner(m, 2, "a photo of a", 9), 3_555_072),
        (lambda m: IVLPLearner(m, 2, 2, "a photo of a", 9, 9), 23_040),  # 9 layers x 2 tokens x (512 + 768)
        # released code's count on ViT-B/16: 5 x 512, 7 layers x (513 x 768 + 513 x 512), 768 x 512
        (lambda m: MMRLLearner(m, "a photo of a {}.", 5, 512, range(5, 12)), 4_992_256),
        (lambda m: MMRLppLearner(m, "a photo of a {}.", 5, 512, range(5, 12), 0.9, 4, 64), 813_312),
        (lambda m: BMIPLearner(m, 2, "a photo of a", 9, gate="official"), 1_203_223),  # those that get a gradient
        (lambda m: MMALearner(m, "a photo of a", 5, 12, 32, 0.001), 674_560),  # what the released code counts
        # 12 layers x (q, k, v) x rank 2 x (2 x 512 + 2 x 768), as the released code builds them
        (lambda m: LoRALearner(m, "a photo of a", 2, 1.0, 0.25, ("q", "k", "v"), range(12), range(12)), 184_320),
        (lambda m: LayerNormLearner(m, "a photo of a", range(12), range(12)), 61_440),  # that get a gradient there
    ],
    ids=["CoOp", "MaPLe", "IVLP", "MMRL", "MMRLpp", "BMIP official", "MMA", "CLIP_LoRA", "LayerNormTuning"],
)
def test_published_parameter_counts(learner, published):
    assert sum(p.numel() for p in learner(vit_b16()).parameters() if p.requires_grad) == published
