"""Combinations that make no sense are refused before anything is trained, with the reason and what works instead."""

import pytest
import torch

from tests.clips import random_clip
from tests.trainers.small_runs import build, needed_by, needing

# Cases: method or variant, options, what the message says.
WRONG = [
    ("CoCoOp", {"TRAINER.COCOOP.CSC": True}, r"COCOOP.CSC True.*set it False, or use the trainer CoOp"),
    ("TCP", {"TRAINER.TCP.CSC": True}, r"TCP.CSC True.*set it False, or use the trainer CoOp or KgCoOp"),
    ("TCP", {"TRAINER.TCP.LAYER": 8}, r"TCP.LAYER is 8.*layers 1 to 3: set it to 3"),
    ("TCP", {"TRAINER.TCP.LAYER": 0}, r"TCP.LAYER is 0.*layers 1 to 3: set it to 1"),
    ("HiCroPL", {"TRAINER.HICROPL.CROSS_LAYER": 4}, r"CROSS_LAYER is 4: of the 4 prompted.*1 to 3.*set it to 2"),
    ("HiCroPL", {"TRAINER.HICROPL.CROSS_LAYER": 0}, r"CROSS_LAYER is 0.*set it to 2"),
    ("HiCroPL", {"TRAINER.HICROPL.PROMPT_DEPTH": 1}, r"HICROPL.PROMPT_DEPTH is 1.*2 to 4 layers: set it to 2"),
    ("HiCroPL", {"TRAINER.HICROPL.PROMPT_DEPTH": 12}, r"HICROPL.PROMPT_DEPTH is 12.*2 to 4 layers: set it to 4"),
    ("HiCroPL", {"TRAINER.HICROPL.READING": "both"}, r"HICROPL.READING 'both'.*paper, official"),
    ("CoOp/class_specific", {"TEST.CLASS_SPLITS": ("base", "new")}, r"COOP.CSC.*\(base\), not the class splits new"),
    ("KgCoOp/class_specific", {"TEST.CLASS_SPLITS": ("all",)}, r"KGCOOP.CSC.*not the class splits all.*CSC False"),
    ("CoOp", {"TRAINER.COOP.CLASS_TOKEN_POSITION": "back"}, r"CLASS_TOKEN_POSITION 'back'.*end, middle, front"),
    ("CoOp", {"TRAINER.COOP.N_CTX": 0}, r"COOP.N_CTX is 0: at least 1"),
    ("ProGrad", {"TRAINER.PROGRAD.CSC": True}, r"PROGRAD.CSC True and CTX_INIT True.*set CTX_INIT False, or CSC False"),
    ("ProGrad", {"TRAINER.PROGRAD.N_CTX": 3}, r"PROGRAD.N_CTX is 3.*the 4 words 'a photo of the'.*to at least 4"),
    ("ProGrad", {"DATASET.TEMPLATE": "{} texture."}, r"PROGRAD.CTX_INIT True: the template has no word.*set it False"),
    ("ProGrad", {"TRAINER.PROGRAD.T": 0.0}, r"PROGRAD.T is 0.0: at least 0.001"),
    ("CoOp_DePT", {"TRAINER.DEPT.LAMBDA": 1.5}, r"DEPT.LAMBDA is 1.5: at least 0.0, at most 1.0"),
    ("PromptSRC_DePT", {"TRAINER.DEPT.FUSION": "sum"}, r"DEPT.FUSION 'sum': choose one of probabilities, logits"),
    ("CoCoOp", {"TRAINER.COCOOP.N_CTX": -1}, r"COCOOP.N_CTX is -1: at least 1"),
    ("BMIP", {"TRAINER.BMIP.N_CTX": 0}, r"BMIP.N_CTX is 0: at least 1"),
    ("CoPrompt_BMIP", {"TRAINER.BMIP.N_CTX": 0}, r"BMIP.N_CTX is 0: at least 1"),
    ("VPT", {"TRAINER.VPT.N_CTX_VISION": 0}, r"VPT.N_CTX_VISION is 0"),
    ("IVLP", {"TRAINER.IVLP.N_CTX_TEXT": 0}, r"IVLP.N_CTX_TEXT is 0.*set TRAINER.IVLP.PROMPT_DEPTH_TEXT 0"),
    (
        "IVLP",
        {"TRAINER.IVLP.PROMPT_DEPTH_TEXT": 0, "TRAINER.IVLP.PROMPT_DEPTH_VISION": 0},
        r"IVLP.PROMPT_DEPTH_TEXT and PROMPT_DEPTH_VISION are both 0.*at least 1, or use ZeroshotCLIP",
    ),
    ("IVLP", {"TRAINER.IVLP.PROMPT_DEPTH_VISION": 5}, r"IVLP.PROMPT_DEPTH_VISION is 5.*0 to 4"),
    ("VPT", {"TRAINER.VPT.PROMPT_DEPTH_VISION": 0}, r"VPT.PROMPT_DEPTH_VISION is 0.*1 to 4"),
    ("MaPLe", {"TRAINER.MAPLE.PROMPT_DEPTH": 9}, r"MAPLE.PROMPT_DEPTH is 9.*1 to 4"),
    ("MaPLe_BMIP", {"TRAINER.BMIP.PROMPT_DEPTH": 9}, r"BMIP.PROMPT_DEPTH is 9.*1 to 4"),
    ("PromptSRC", {"TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 5}, r"PROMPTSRC.PROMPT_DEPTH_TEXT is 5.*0 to 4"),
    ("PromptSRC", {"TRAINER.PROMPTSRC.GPA_STD": 0.0}, r"GPA_STD is 0.0.*above 0"),
    ("PromptSRC", {"TRAINER.PROMPTSRC.GPA_MEAN": 100.0}, r"GPA_MEAN 100.0.*within 1..MAX_EPOCH"),
    (
        "PromptSRC_BMIP",
        {"TEST.FINAL_MODEL": "best_val"},
        r"FINAL_MODEL is best_val.*PromptSRC_BMIP.*set it to last_step",
    ),
    ("CoPrompt", {"DATALOADER.K_TRANSFORMS": 1}, r"K_TRANSFORMS is 1.*2 augmented views.*set it to 2"),
    ("CoPrompt_BMIP", {"DATALOADER.K_TRANSFORMS": 1}, r"K_TRANSFORMS is 1.*CoPrompt_BMIP.*set it to 2"),
    ("BMIP", {"DATALOADER.K_TRANSFORMS": 2}, r"K_TRANSFORMS is 2.*1 augmented view of.*set it to 1"),
    ("CoPrompt", {"TRAINER.COPROMPT.DISTILL": "l1"}, r"DISTILL 'l1'.*cosine, mse"),
    ("ProDA", {"TRAINER.PRODA.PROMPT_BATCH": 3}, r"PROMPT_BATCH 3 must be at least 2 and divide.*N_PROMPT 4"),
    ("ProDA", {"TRAINER.PRODA.PROMPT_BATCH": 1}, r"PROMPT_BATCH 1 must be at least 2"),
    (
        "MMA",
        {"TRAINER.MMA.ADAPTER_START": 4, "TRAINER.MMA.ADAPTER_END": 3},
        r"START is 4, after.*END 3: set.*at most 3",
    ),
    ("MMA", {"TRAINER.MMA.ADAPTER_END": 12}, r"START 2 and ADAPTER_END 12.*has 4 in the text.*END to at most 4$"),
    (
        "MMA",
        {"TRAINER.MMA.ADAPTER_START": 5, "TRAINER.MMA.ADAPTER_END": 12},
        r"ADAPTER_START 5 and ADAPTER_END 12.*set ADAPTER_END to at most 4 and ADAPTER_START too",
    ),
    (
        "MMA",
        {"TRAINER.MMA.CTX_INIT": "a photo of a {}."},
        r"MMA.CTX_INIT 'a photo of a \{\}.': .*set it to 'a photo of a'",
    ),
    ("MMA", {"TRAINER.MMA.ADAPTER_START": 0}, r"MMA.ADAPTER_START is 0: at least 1"),
    ("MMRL", {"TRAINER.MMRL.REP_LAYERS": (3, 4, 5)}, r"REP_LAYERS is \(3, 4, 5\).*from 1 to 4.*set it to \(3, 4\)"),
    ("MMRL", {"TRAINER.MMRL.REP_LAYERS": (6, 7)}, r"REP_LAYERS is \(6, 7\).*from 1 to 4.*set it to \(4,\)"),
    ("MMRL", {"TRAINER.MMRL.REP_LAYERS": (0, 3, 2)}, r"REP_LAYERS is \(0, 3, 2\).*ascending: set it to \(2, 3\)"),
    ("MMRL", {"TRAINER.MMRL.REP_LAYERS": ()}, r"REP_LAYERS is \(\).*set it to \(4,\)"),
    ("MMRL", {"TRAINER.MMRL.N_REP_TOKENS": 0}, r"MMRL.N_REP_TOKENS is 0: at least 1"),
    ("MMRL", {"TRAINER.MMRL.LOGITS": "new"}, r"MMRL.LOGITS 'new'.*auto, plain, fused"),
    ("CLIP_LoRA", {"TRAINER.CLIP_LORA.PARAMS": ()}, r"CLIP_LORA.PARAMS is .*name at least one of q, k, v, o, mlp"),
    ("CLIP_LoRA", {"TRAINER.CLIP_LORA.PARAMS": ("q", "w")}, r"CLIP_LORA.PARAMS 'w': choose one of q, k, v, o, mlp"),
    ("CLIP_LoRA", {"TRAINER.CLIP_LORA.POSITION": "top"}, r"CLIP_LORA.POSITION 'top'.*all, bottom, mid, up"),
    (
        "LayerNormTuning",
        {"TRAINER.LAYERNORMTUNING.TEXT_START": 4},
        r"TEXT_START is 4.*text tower has layers 0 to 3: set it to at most 3, or MODALITY",
    ),
    ("LayerNormTuning", {"TRAINER.LAYERNORMTUNING.MODALITY": "image"}, r"MODALITY 'image'.*both, text, vision"),
    ("BMIP", {"TRAINER.BMIP.GATE": "soft"}, r"BMIP.GATE 'soft'.*attention, official"),
    ("PromptSRC_BMIP", {"TRAINER.BMIP.AGGREGATOR": "max"}, r"BMIP.AGGREGATOR 'max'.*gate, add"),
    ("KgCoOp", {"TRAINER.KGCOOP.PREC": "half"}, r"KGCOOP.PREC 'half'.*fp32, fp16, bf16, amp"),
]


@pytest.mark.parametrize(("case", "options", "message"), WRONG)
def test_wrong_settings(case, options, message):
    with pytest.raises(ValueError, match=message):
        build(case, **options)


def test_sentences_that_are_not_there():
    with pytest.raises(FileNotFoundError, match=r"COPROMPT.SENTENCES: no file nowhere.json.*use templates"):
        build("CoPrompt", **{"TRAINER.COPROMPT.SENTENCES": "nowhere.json"})


@pytest.mark.parametrize("name", ["RN50", "RN101", "open_clip:RN50/openai"])
@pytest.mark.parametrize("case", needing("needs_vit"))
def test_a_resnet_by_name_is_refused_before_it_is_loaded(case, name, monkeypatch):
    needed_by(case)  # PromptKD's teacher is built first
    monkeypatch.setattr("trainers.base.load_clip", None)
    with pytest.raises(
        ValueError, match=rf"{case} changes the image tower from within, which {name}.*ViT-B/16, or use CoOp"
    ):
        build(case, **{"MODEL.BACKBONE.NAME": name})


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "resnet.pt"
    sizes = dict(vision_layers=(1, 1, 1, 1), vision_width=64, image_resolution=64, vision_patch_size=None)
    torch.save(random_clip(**sizes).state_dict(), path)
    return path


@pytest.mark.parametrize("case", ["MaPLe", "PromptKD"])  # one of all others, and one with a backbone before it
def test_a_file_that_holds_a_resnet_is_refused(case, resnet_file):
    options = {"MODEL.BACKBONE.NAME": str(resnet_file), "INPUT.SIZE": (64, 64)}
    with pytest.raises(ValueError, match=rf"{case} changes the image tower from within.*resnet.pt \(not a plain ViT\)"):
        build(case, **options)


@pytest.mark.parametrize("case", ["CoOp/class_specific", "KgCoOp/class_specific"])
def test_class_specific_context_of_other_classes_is_not_loaded(case, tmp_path):
    """Base and new have five classes each, so that the shapes alone would fit."""
    build(case, tmp_path, **{"OPTIM.MAX_EPOCH": 1}).train()
    other = build(case, **{"DATASET.SUBSAMPLE_CLASSES": "new"})
    with pytest.raises(
        ValueError, match=r"\(CSC\) of other classes \('digit zero' ...\).*'digit five'.*SUBSAMPLE_CLASSES"
    ):
        other.load_model(str(tmp_path))
    build(case).load_model(str(tmp_path))
