"""What this repository lists as its own: a fork's own trainers and settings are the fork's to test.

A method that joins the repository is added here, to tests/published_settings.py, README.md, docs/methods.md and
sweeping/plan.py, and to reporting/methods.py's TRAINER_ORDER. It also gets a file for the miniature,
`configs/trainers/<method>/mini_*.yaml`, with its trials (tools/mini_tune.py). Then every test of trainers and of
settings takes it.
"""

TRAINERS = (
    *("ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "CoCoOp", "ProDA", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC"),
    "ProGrad",
    *("CoPrompt", "TCP", "MMA", "CoOp_DePT", "PromptSRC_DePT", "MMRL", "MMRLpp", "HiCroPL"),
    *("CLIP_LoRA", "LayerNormTuning", "TwoStage", "PromptKD"),
    *("TaskRes", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "CLAP", "LPPlusPlus"),
    *("BMIP", "MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"),
)
