"""The published settings of every method, and which of them a setting for the bundled model follows.

Written from the methods' released configuration files and papers, not from the files under test.
"""

WORDS = "a photo of a"
SGD, ADAM, ADAMW = "sgd", "adam", "adamw"


def coop(backbone, epochs, words=""):
    values = {"COOP.CTX_INIT": words, "COOP.N_CTX": 4 if words else 16, "COOP.CSC": False}
    return backbone, SGD, 0.002, epochs, 1, 32, values


def cocoop(n_ctx, words=""):
    return "ViT-B/16", SGD, 0.002, 10, 1, 1, {"COCOOP.N_CTX": n_ctx, "COCOOP.CTX_INIT": words}


def kgcoop(backbone):
    values = {"KGCOOP.W": 8.0, "KGCOOP.N_CTX": 4, "KGCOOP.CTX_INIT": WORDS, "KGCOOP.CLASS_TOKEN_POSITION": "end"}
    return backbone, SGD, 0.002, 100, 1, 128, values


def prograd(backbone, epochs):
    values = {"PROGRAD.N_CTX": 16, "PROGRAD.CTX_INIT": True, "PROGRAD.LAMBDA": 1.0, "PROGRAD.T": 1.0}
    return backbone, SGD, 0.002, epochs, 1, 32, values


def ivlp(rate, epochs, n_vision, n_text, vision_depth, text_depth):
    ctx = {"IVLP.N_CTX_VISION": n_vision, "IVLP.N_CTX_TEXT": n_text, "IVLP.CTX_INIT": WORDS}
    depth = {"IVLP.PROMPT_DEPTH_VISION": vision_depth, "IVLP.PROMPT_DEPTH_TEXT": text_depth}
    return "ViT-B/16", SGD, rate, epochs, 1, 4, ctx | depth


def maple(rate, epochs, depth):
    values = {"MAPLE.N_CTX": 2, "MAPLE.CTX_INIT": WORDS, "MAPLE.PROMPT_DEPTH": depth}
    return "ViT-B/16", SGD, rate, epochs, 1, 4, values


def promptsrc(epochs, depth, mean, std):
    ctx = {"PROMPTSRC.N_CTX_VISION": 4, "PROMPTSRC.N_CTX_TEXT": 4, "PROMPTSRC.CTX_INIT": WORDS}
    depths = {"PROMPTSRC.PROMPT_DEPTH_VISION": depth, "PROMPTSRC.PROMPT_DEPTH_TEXT": depth}
    return "ViT-B/16", SGD, 0.0025, epochs, 1, 4, ctx | depths | self_regulating(mean, std)


def self_regulating(mean, std):
    weights = {"PROMPTSRC.TEXT_LOSS_WEIGHT": 25.0, "PROMPTSRC.IMAGE_LOSS_WEIGHT": 10.0}
    return {**weights, "PROMPTSRC.GPA_MEAN": mean, "PROMPTSRC.GPA_STD": std}


def bmip_prompts(n_ctx, depth, gate="attention", aggregator="gate", share=True):
    prompts = {"BMIP.N_CTX": n_ctx, "BMIP.CTX_INIT": WORDS, "BMIP.PROMPT_DEPTH": depth}
    shares = {"BMIP.SHARE_PARAMETER_TEXT": share, "BMIP.SHARE_PARAMETER_VISUAL": share}
    return {**prompts, "BMIP.GATE": gate, "BMIP.AGGREGATOR": aggregator, **shares}


def bmip(**prompts):
    return "ViT-B/16", ADAM, 0.002, 10, 1, 4, bmip_prompts(2, 9, **prompts)


def with_bmip(rate, epochs, prompts, host=None):
    return "ViT-B/16", SGD, rate, epochs, 1, 4, prompts | (host or {})


def mma(epochs, batch, start):
    layers = {"MMA.CTX_INIT": WORDS, "MMA.ADAPTER_START": start, "MMA.ADAPTER_END": 12}
    return "ViT-B/16", SGD, 0.0015, epochs, 0, batch, layers | {"MMA.ADAPTER_DIM": 32, "MMA.ADAPTER_SCALE": 0.001}


def consistency(weight):
    return {"COPROMPT.W": weight, "COPROMPT.DISTILL": "cosine", "COPROMPT.SENTENCES": ""}


def coprompt(depth, n_ctx, weight, epochs=8):
    prompts = {"COPROMPT.N_CTX": n_ctx, "COPROMPT.CTX_INIT": WORDS, "COPROMPT.PROMPT_DEPTH": depth}
    return "ViT-B/16", SGD, 0.0035, epochs, 1, 4, prompts | consistency(weight)


def coprompt_bmip(depth, n_ctx, weight, epochs=8):
    return with_bmip(0.0035, epochs, bmip_prompts(n_ctx, depth, share=False), consistency(weight))


def mmrl(weight, dim=512, epochs=10, batch=4, warmup=1):
    return "ViT-B/16", "adamw", 0.001, epochs, warmup, batch, representation("MMRL", weight, dim)


def mmrlpp(beta, weight, rate=0.001, epochs=10, batch=4, warmup=1):
    values = {"MMRLPP.BETA": beta, "MMRLPP.RES_LORA_DIM": 4, "MMRLPP.PROJ_LORA_DIM": 64}
    return "ViT-B/16", "adamw", rate, epochs, warmup, batch, values | representation("MMRLPP", weight)


def representation(node, weight, dim=512):
    values = {"N_REP_TOKENS": 5, "REP_LAYERS": (6, 7, 8, 9, 10, 11, 12), "REP_DIM": dim, "ALPHA": 0.7}
    values |= {"REG_WEIGHT": weight, "LOGITS": "auto", "FUSION": "logits"}
    return {f"{node}.{key}": value for key, value in values.items()}


def hicropl(epochs, batch, n_ctx=16, depth=12, cross=6, reading="paper"):
    prompts = {"HICROPL.N_CTX": n_ctx, "HICROPL.CTX_INIT": WORDS, "HICROPL.PROMPT_DEPTH": depth}
    values = {"HICROPL.CROSS_LAYER": cross, "HICROPL.LAMBD": 12.0, "HICROPL.READING": reading}
    return "ViT-B/16", ADAM, 0.0025, epochs, 1, batch, prompts | values


def promptkd(weight, depth=9):
    values = {"PROMPTKD.N_CTX_VISION": 4, "PROMPTKD.PROMPT_DEPTH_VISION": depth, "PROMPTKD.KD_WEIGHT": weight}
    values |= {"PROMPTKD.TEMPERATURE": 1.0, "PROMPTKD.CLASSES": "all", "PROMPTKD.SHOTS": 0}
    return "ViT-B/16", SGD, 0.005, 20, 1, 8, values


def taskres(epochs, rate=0.002, scale=0.5):
    return "ViT-B/16", ADAM, rate, epochs, 1, 256, {"TASKRES.RESIDUAL_SCALE": scale, "TASKRES.VIEWS": 0}


def clip_adapter(epochs):
    values = {"CLIP_ADAPTER.RATIO": 0.2, "CLIP_ADAPTER.REDUCTION": 4, "CLIP_ADAPTER.VIEWS": 0}
    return "ViT-B/16", SGD, 0.002, epochs, 1, 32, values


def tip_adapter(most_alpha=3.0, most_beta=7.0, init=1.17):
    values = {"INIT_ALPHA": init, "INIT_BETA": 1.0, "SEARCH": True, "MAX_ALPHA": most_alpha, "MAX_BETA": most_beta}
    values |= {"ALPHA_STEPS": 20, "BETA_STEPS": 200, "CACHE_VIEWS": 10, "VIEWS": 0}
    values = {f"TIPADAPTER.{key}": value for key, value in values.items()}
    return "ViT-B/16", ADAM, 0.0003, 1, -1, 32, values  # Dassl's defaults stand where an optimiser would be set


def tip_adapter_f(epochs, *search):
    return "ViT-B/16", "adamw", 0.001, epochs, -1, 256, tip_adapter(*search)[-1]


DEPT = {"DEPT.LAMBDA": 0.7, "DEPT.LR_MULT": 6.5, "DEPT.FUSION": "probabilities"}
# depth, prompts, weight of the consistency (and epochs, where not 8)
COPROMPT = {
    "coprompt": (9, 2, 1.0),
    "coprompt_imagenet": (12, 4, 8.0),
    "coprompt_caltech101": (12, 4, 4.0),
    "coprompt_oxford_pets": (12, 2, 0.1),
    "coprompt_stanford_cars": (12, 4, 4.0),
    "coprompt_oxford_flowers": (9, 4, 8.0),
    "coprompt_food101": (9, 4, 0.5, 5),
    "coprompt_fgvc_aircraft": (9, 4, 2.0),
    "coprompt_sun397": (12, 4, 8.0),
    "coprompt_dtd": (12, 2, 8.0),
    "coprompt_eurosat": (12, 2, 0.1),
    "coprompt_ucf101": (12, 4, 2.0),
}
# weight of the distances (and width of the representation space, where not 512), ImageNet apart
MMRL = {
    **{"caltech101": (0.5,), "oxford_pets": (0.2,), "stanford_cars": (7.0,), "oxford_flowers": (4.0,)},
    **{"food101": (5.0,), "fgvc_aircraft": (6.0,), "sun397": (6.0,), "dtd": (6.0,), "eurosat": (0.01, 2048)},
    "ucf101": (3.0,),
}
# ends of the grid for alpha and for beta, and alpha of the training
TIP_ADAPTER = {
    **{"caltech101": (5.0, 12.0, 3.0), "dtd": (13.0, 13.0, 2.0), "eurosat": (10.0, 12.0, 2.0)},
    **{"fgvc_aircraft": (30.0, 30.0, 5.0), "food101": (10.0, 10.0, 1.17), "oxford_flowers": (50.0, 50.0, 10.0)},
    **{"stanford_cars": (10.0, 20.0, 3.0), "sun397": (10.0, 12.0, 1.17), "ucf101": (3.0, 7.0, 3.0)},
}
# share of a later layer's own tokens, weight of the distances, ImageNet apart
MMRLPP = {
    **{"caltech101": (0.6, 3.0), "oxford_pets": (0.7, 0.01), "stanford_cars": (0.7, 6.0), "oxford_flowers": (0.4, 7.0)},
    **{"food101": (0.1, 1.0), "fgvc_aircraft": (0.9, 2.0), "sun397": (0.5, 3.0), "dtd": (0.9, 7.0)},
    **{"eurosat": (0.2, 0.01), "ucf101": (0.9, 3.0)},
}
BACKBONES = {"rn50": "RN50", "rn101": "RN101", "vit_b32": "ViT-B/32", "vit_b16": "ViT-B/16", "vit_l14": "ViT-L/14"}
BMIP_SETTING = "BMIP/vit_b16_c2_ep10_batch4_2ctx"
ABLATIONS = ("add", "mean", "joint", "own", "text_to_vision", "vision_to_text")

# trainer/setting: backbone, optimiser, learning rate, epochs, warm-up epochs, batch, values under TRAINER
PUBLISHED = {
    "CoOp/rn50": coop("RN50", 200),
    "CoOp/rn50_ep50": coop("RN50", 50),
    "CoOp/rn50_ep100": coop("RN50", 100),
    "CoOp/rn50_ctxv1": coop("RN50", 200, WORDS),
    "CoOp/rn50_ep50_ctxv1": coop("RN50", 50, WORDS),
    "CoOp/rn101": coop("RN101", 200),
    "CoOp/rn101_ep50": coop("RN101", 50),
    "CoOp/vit_b32": coop("ViT-B/32", 200),
    "CoOp/vit_b32_ep50": coop("ViT-B/32", 50),
    "CoOp/vit_b16": coop("ViT-B/16", 200),
    "CoOp/vit_b16_ep50": coop("ViT-B/16", 50),
    "CoOp/vit_b16_ep100": coop("ViT-B/16", 100),
    "CoOp/vit_b16_ctxv1": coop("ViT-B/16", 200, WORDS),
    "CoOp/vit_b16_ep50_ctxv1": coop("ViT-B/16", 50, WORDS),
    "CoOp/vit_b16_ep100_ctxv1": coop("ViT-B/16", 100, WORDS),
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": cocoop(4, WORDS),
    "CoCoOp/vit_b16_c4_ep10_batch1": cocoop(4),
    "CoCoOp/vit_b16_c8_ep10_batch1": cocoop(8),
    "CoCoOp/vit_b16_c16_ep10_batch1": cocoop(16),
    "KgCoOp/vit_b16_ep100_ctxv1": kgcoop("ViT-B/16"),
    "KgCoOp/rn50_ep100": kgcoop("RN50"),
    "ProGrad/vit_b16": prograd("ViT-B/16", 200),
    "ProGrad/vit_b16_ep100": prograd("ViT-B/16", 100),
    "ProGrad/vit_b16_ep50": prograd("ViT-B/16", 50),
    "ProGrad/rn50": prograd("RN50", 200),
    "ProGrad/rn50_ep100": prograd("RN50", 100),
    "ProGrad/rn50_ep50": prograd("RN50", 50),
    "ProDA/vit_b16_c2_e100_ctx16_warmup5_BZ64_ProDA": (
        *("ViT-B/16", SGD, 0.001, 100, 5, 4),
        {"PRODA.N_CTX": 16, "PRODA.N_PROMPT": 32, "PRODA.PROMPT_BATCH": 4, "PRODA.ORTHOGONAL_WEIGHT": 0.0},
    ),
    "VPT/vit_b16_c2_ep5_batch4_4": (
        *("ViT-B/16", SGD, 0.0025, 5, 1, 4),
        {"VPT.N_CTX_VISION": 8, "VPT.PROMPT_DEPTH_VISION": 12, "VPT.CTX_INIT": WORDS},
    ),
    "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": ivlp(0.0035, 5, 2, 2, 12, 12),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": ivlp(0.0025, 5, 0, 4, 0, 12),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_vision_only": ivlp(0.0025, 5, 4, 0, 12, 0),
    "IVLP/vit_b16_c2_ep20_batch4_4+4ctx": ivlp(0.0025, 20, 4, 4, 9, 9),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": maple(0.0035, 5, 9),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": maple(0.0026, 2, 3),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": promptsrc(20, 9, 15.0, 1.0),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": promptsrc(20, 3, 6.0, 10.0),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": promptsrc(50, 9, 30.0, 30.0),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45": promptsrc(50, 9, 45.0, 5.0),
    "PromptSRC/vit_l14_c2_ep20_batch8_4+4ctx": ("ViT-L/14", SGD, 0.005, 20, 1, 8, promptsrc(20, 9, 15.0, 1.0)[-1]),
    "MMA/vit_b16_ep5": mma(5, 16, 5),
    "MMA/vit_b16_ep5_imagenet": mma(5, 128, 5),
    "MMA/vit_b16_ep1_cross_datasets": mma(1, 128, 9),
    "CoOp_DePT/vit_b16_ep10_bs4_lr35": (
        *("ViT-B/16", SGD, 0.0035, 10, 1, 4),
        {"COOP.N_CTX": 16, "COOP.CTX_INIT": "", **DEPT},
    ),
    "PromptSRC_DePT/vit_b16_c2_ep20_batch4_4+4ctx": (*promptsrc(20, 9, 15.0, 1.0)[:-1], DEPT),
    BMIP_SETTING: bmip(),
    f"{BMIP_SETTING}_official": bmip(gate="official"),
    f"{BMIP_SETTING}_not_shared": bmip(share=False),
    **{f"{BMIP_SETTING}_{name}": bmip(aggregator=name) for name in ABLATIONS},
    "BMIP/vit_b16_c2_ep4_batch4_2ctx_cross_datasets": ("ViT-B/16", ADAM, 0.002, 4, 2, 4, bmip_prompts(2, 3)),
    "MaPLe_BMIP/vit_b16_c2_ep5_batch4_2ctx": with_bmip(0.0035, 5, bmip_prompts(2, 9, share=False)),
    "PromptSRC_BMIP/vit_b16_c2_ep20_batch4_4+4ctx": with_bmip(
        0.0025, 20, bmip_prompts(4, 9), self_regulating(15.0, 1.0)
    ),
    "PromptSRC_BMIP/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": with_bmip(
        0.0025, 20, bmip_prompts(2, 9), self_regulating(6.0, 10.0)
    ),
    "TCP/vit_b16_c4_ep50_batch32": (
        *("ViT-B/16", ADAM, 0.002, 50, 1, 32),
        {"TCP.N_CTX": 4, "TCP.CTX_INIT": "", "TCP.LAYER": 8, "TCP.W": 8.0},
    ),
    "MMRL/vit_b16": mmrl(1.0),
    "MMRL/vit_b16_imagenet": mmrl(0.5, epochs=5, batch=32),
    "MMRL/vit_b16_few_shot": mmrl(0.5, epochs=50, batch=32),
    "MMRL/vit_b16_few_shot_imagenet": mmrl(0.5, epochs=5, batch=32),
    "MMRL/vit_b16_cross_datasets": mmrl(0.2, epochs=1, batch=32, warmup=0),
    **{f"MMRL/vit_b16_{name}": mmrl(*values) for name, values in MMRL.items()},
    **{f"MMRL/vit_b16_few_shot_{name}": mmrl(*values, epochs=50, batch=32) for name, values in MMRL.items()},
    "MMRLpp/vit_b16": mmrlpp(0.9, 1.0),
    "MMRLpp/vit_b16_imagenet": mmrlpp(0.9, 0.2, epochs=5, batch=32),
    "MMRLpp/vit_b16_few_shot": mmrlpp(0.9, 1.0, 0.002, 100, 32),
    "MMRLpp/vit_b16_few_shot_imagenet": mmrlpp(0.9, 0.2, epochs=5, batch=32),
    "MMRLpp/vit_b16_cross_datasets": mmrlpp(0.9, 0.1, epochs=1, batch=32, warmup=0),
    **{f"MMRLpp/vit_b16_{name}": mmrlpp(*values) for name, values in MMRLPP.items()},
    **{f"MMRLpp/vit_b16_few_shot_{name}": mmrlpp(*values, 0.002, 100, 32) for name, values in MMRLPP.items()},
    "HiCroPL/vit_b16_c2_ep50_batch32_16ctx": hicropl(50, 32),
    "HiCroPL/vit_b16_c2_ep50_batch32_16ctx_few_shot": hicropl(50, 32),
    "HiCroPL/vit_b16_c2_ep50_batch32_16ctx_official": hicropl(50, 32, reading="official"),
    "HiCroPL/vit_b16_c2_ep50_batch32_16ctx_imagenet": hicropl(40, 128),
    "HiCroPL/vit_b16_c2_ep5_batch32_2ctx_cross_datasets": hicropl(5, 32, 2, 6, 5),
    "CLIP_LoRA/vit_b16": (
        *("ViT-B/16", ADAMW, 0.0002, 10, 0, 32),
        {
            **{"CLIP_LORA.N_ITERS": 500, "CLIP_LORA.CTX_INIT": WORDS, "CLIP_LORA.R": 2, "CLIP_LORA.ALPHA": 1.0},
            **{"CLIP_LORA.DROPOUT_RATE": 0.25, "CLIP_LORA.PARAMS": ("q", "k", "v")},
            **{"CLIP_LORA.ENCODER": "both", "CLIP_LORA.POSITION": "all"},
        },
    ),
    "LayerNormTuning/vit_b16": (
        *("ViT-B/16", ADAMW, 0.0002, 10, 0, 32),
        {
            **{"LAYERNORMTUNING.N_ITERS": 300, "LAYERNORMTUNING.CTX_INIT": WORDS, "LAYERNORMTUNING.MODALITY": "both"},
            **{"LAYERNORMTUNING.TEXT_START": 0, "LAYERNORMTUNING.VISION_START": 0},
        },
    ),
    "TwoStage/vit_b16": (
        *("ViT-B/16", ADAMW, 0.0002, 10, 0, 32),
        {
            **{"TWOSTAGE.N_ITERS": 300, "TWOSTAGE.N_ITERS_FRAC": 0.6, "TWOSTAGE.CTX_INIT": WORDS},
            **{"TWOSTAGE.MODALITY": "both", "TWOSTAGE.TEXT_START": 0, "TWOSTAGE.VISION_START": 0},
        },
    ),
    "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx": promptkd(1000.0),
    **{
        f"PromptKD/vit_b16_c2_ep20_batch8_4+4ctx_{name}": promptkd(200.0)
        for name in ("dtd", "fgvc_aircraft", "oxford_flowers")
    },
    "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets": promptkd(1000.0, 3),
    **{f"TaskRes/vit_b16_ep{n}": taskres(n) for n in (100, 200)},
    **{f"TaskRes/vit_b16_ep{n}_imagenet": taskres(n, rate=0.0002) for n in (100, 200)},
    **{f"TaskRes/vit_b16_ep{n}_oxford_flowers": taskres(n, scale=1.0) for n in (100, 200)},
    "CLIP_Adapter/vit_b16": clip_adapter(200),
    "LinearProbe/vit_b16": (
        *("ViT-B/16", ADAM, 0.0003, 1, -1, 32),
        {"LINEARPROBE.C": 0.0, "LINEARPROBE.BINARY_STEPS": 8, "LINEARPROBE.MAX_ITERATIONS": 1000},
    ),
    "CLAP/vit_b16_ep300": ("ViT-B/16", SGD, 0.1, 300, 1, 256, {"CLAP.CONSTRAINT": True, "CLAP.VIEWS": 20}),
    "LPPlusPlus/vit_b16": (
        *("ViT-B/16", ADAM, 0.0003, 1, -1, 32),
        {"LPPLUSPLUS.EPOCHS": 300, "LPPLUSPLUS.SEARCH": True},
    ),
    "TipAdapter/vit_b16": tip_adapter(),
    "TipAdapterF/vit_b16": tip_adapter_f(20),
    **{f"TipAdapter/vit_b16_{name}": tip_adapter(*values) for name, values in TIP_ADAPTER.items()},
    **{
        f"TipAdapterF/vit_b16_{name}": tip_adapter_f(100 if name == "eurosat" else 20, *values)
        for name, values in TIP_ADAPTER.items()
    },
    **{f"CLIP_Adapter/vit_b16_ep{n}": clip_adapter(n) for n in (50, 100)},
    **{f"CoPrompt/{name}": coprompt(*values) for name, values in COPROMPT.items()},
    **{f"CoPrompt_BMIP/{name}": coprompt_bmip(*values) for name, values in COPROMPT.items()},
    # nothing is trained: Dassl's defaults stand where an optimiser would be set
    **{
        f"{trainer}/{name}": (backbone, ADAM, 0.0003, 10, -1, 32, {"ZEROSHOTCLIP.TEMPLATE": ""})
        for trainer in ("ZeroshotCLIP", "ZeroshotCLIP2")
        for name, backbone in BACKBONES.items()
    },
}

# Each method's tiny setting is a published one but for these values, and image size, precision and augmentation: depths
# of 9 and 12 of 12 layers are 3 and 4 of 4.
TINY_OF = {
    "ZeroshotCLIP/tiny": ("vit_b16", {}),
    "ZeroshotCLIP2/tiny": ("vit_b16", {}),
    "CoOp/tiny_c4_ep50_batch32": ("vit_b16_ep50", {"TRAINER.COOP.N_CTX": 4}),
    "CoOp/tiny_c4_ep50_batch32_ctxv1": ("vit_b16_ep50_ctxv1", {}),
    "CoCoOp/tiny_c4_ep10_batch1_ctxv1": ("vit_b16_c4_ep10_batch1_ctxv1", {}),
    "KgCoOp/tiny_c4_ep100_batch128_ctxv1": ("vit_b16_ep100_ctxv1", {}),
    "ProGrad/tiny_c4_ep50_batch32": ("vit_b16_ep50", {"TRAINER.PROGRAD.N_CTX": 4}),
    "ProDA/tiny_c16_ep20_batch4": (
        "vit_b16_c2_e100_ctx16_warmup5_BZ64_ProDA",
        {"OPTIM.MAX_EPOCH": 20, "OPTIM.WARMUP_EPOCH": 1},
    ),
    "VPT/tiny_c2_ep10_batch4_8ctx": (
        "vit_b16_c2_ep5_batch4_4",
        {"OPTIM.MAX_EPOCH": 10, "TRAINER.VPT.PROMPT_DEPTH_VISION": 4},
    ),
    "IVLP/tiny_c2_ep10_batch4_2+2ctx": (
        "vit_b16_c2_ep5_batch4_2+2ctx",
        {"OPTIM.MAX_EPOCH": 10, "TRAINER.IVLP.PROMPT_DEPTH_VISION": 4, "TRAINER.IVLP.PROMPT_DEPTH_TEXT": 4},
    ),
    "MaPLe/tiny_c2_ep10_batch4_2ctx": (
        "vit_b16_c2_ep5_batch4_2ctx",
        {"OPTIM.MAX_EPOCH": 10, "TRAINER.MAPLE.PROMPT_DEPTH": 3},
    ),
    "PromptSRC/tiny_c2_ep20_batch4_4+4ctx": (
        "vit_b16_c2_ep20_batch4_4+4ctx",
        {"TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 3},
    ),
    "CoPrompt/tiny_c2_ep8_batch4_2ctx": ("coprompt", {"TRAINER.COPROMPT.PROMPT_DEPTH": 3}),
    "TCP/tiny_c4_ep50_batch32": ("vit_b16_c4_ep50_batch32", {"TRAINER.TCP.LAYER": 2}),
    "MMA/tiny_ep10_batch16": (
        "vit_b16_ep5",
        {"OPTIM.MAX_EPOCH": 10, "TRAINER.MMA.ADAPTER_START": 2, "TRAINER.MMA.ADAPTER_END": 4},
    ),
    "CoOp_DePT/tiny_c4_ep10_batch4": ("vit_b16_ep10_bs4_lr35", {"TRAINER.COOP.N_CTX": 4}),
    "PromptSRC_DePT/tiny_c2_ep20_batch4_4+4ctx": (
        "vit_b16_c2_ep20_batch4_4+4ctx",
        {"TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 3},
    ),
    "MMRL/tiny_5tok_ep10_batch4": ("vit_b16", {"TRAINER.MMRL.REP_LAYERS": (2, 3, 4)}),
    "MMRLpp/tiny_5tok_ep10_batch4": ("vit_b16", {"TRAINER.MMRLPP.REP_LAYERS": (2, 3, 4)}),
    "HiCroPL/tiny_c2_ep50_batch32_16ctx": (
        "vit_b16_c2_ep50_batch32_16ctx",
        {"TRAINER.HICROPL.PROMPT_DEPTH": 4, "TRAINER.HICROPL.CROSS_LAYER": 2},
    ),
    "CLIP_LoRA/tiny_ep50_batch32": ("vit_b16", {"OPTIM.MAX_EPOCH": 50, "TRAINER.CLIP_LORA.N_ITERS": 0}),
    "LayerNormTuning/tiny_ep50_batch32": ("vit_b16", {"OPTIM.MAX_EPOCH": 50, "TRAINER.LAYERNORMTUNING.N_ITERS": 0}),
    "TwoStage/tiny_ep50_batch32": ("vit_b16", {"OPTIM.MAX_EPOCH": 50, "TRAINER.TWOSTAGE.N_ITERS": 0}),
    "PromptKD/tiny_c2_ep20_batch8_4+4ctx": (
        "vit_b16_c2_ep20_batch8_4+4ctx",
        {"TRAINER.PROMPTKD.PROMPT_DEPTH_VISION": 3},
    ),
    "TaskRes/tiny_ep200_batch256": ("vit_b16_ep200", {"TRAINER.TASKRES.VIEWS": 20}),
    "TipAdapter/tiny": ("vit_b16", {}),
    "CLAP/tiny_ep300_batch256": ("vit_b16_ep300", {}),
    "LinearProbe/tiny": ("vit_b16", {}),
    "LPPlusPlus/tiny": ("vit_b16", {}),
    "TipAdapterF/tiny_ep20_batch256": ("vit_b16", {"TRAINER.TIPADAPTER.VIEWS": 20}),
    "CLIP_Adapter/tiny_ep200_batch32": ("vit_b16", {"TRAINER.CLIP_ADAPTER.VIEWS": 20}),
    "BMIP/tiny_c2_ep10_batch4_2ctx": ("vit_b16_c2_ep10_batch4_2ctx", {"TRAINER.BMIP.PROMPT_DEPTH": 3}),
    "MaPLe_BMIP/tiny_c2_ep10_batch4_2ctx": (
        "vit_b16_c2_ep5_batch4_2ctx",
        {"OPTIM.MAX_EPOCH": 10, "TRAINER.BMIP.PROMPT_DEPTH": 3},
    ),
    "PromptSRC_BMIP/tiny_c2_ep20_batch4_4+4ctx": (
        "vit_b16_c2_ep20_batch4_4+4ctx",
        {"TRAINER.BMIP.PROMPT_DEPTH": 3},
    ),
    "CoPrompt_BMIP/tiny_c2_ep8_batch4_2ctx": ("coprompt", {"TRAINER.BMIP.PROMPT_DEPTH": 3}),
}
