"""A finished run's trained prompts as a folder to share, and that folder on huggingface.co.

python -m prompting.checkpoint export RUN OUT [--push USER/REPOSITORY]

The folder stands in for the run: ``load_run``, ``predict.py --model-dir`` and ``train.py --eval-only --model-dir`` take
it. It holds the trained tensors with what their checkpoint says of itself (prompts.safetensors), the class names, the
configuration, the run's numbers and a model card; nothing of CLIP, of the images or of the machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.hub import HUB_PREFIX, check_repository
from common.unpickling import CheckpointError, read_checkpoint, reason
from prompting.checkpoint import SHARED, find_checkpoint

NOT_SHARED = ("state_dict", "optimizer", "scheduler")  # of a checkpoint's fields
# Of the configuration: places on the machine of the run, and the start that the trained tensors replace
PLACES = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "DATASET.PATH", "FEATURES.FOLDER", "MODEL.INIT_WEIGHTS")
FILES = ("DATASET.SPLIT_FILE", "DATASET.SELECTION")  # of which the name alone is kept: it says what was trained on
NUMBERS = (
    *("trainer", "setting", "protocol", "dataset", "source_dataset", "train_classes", "shots", "seed", "init_seed"),
    *("backbone", "selection_rule", "data", "model", "metrics", "finished_at"),
)
HUB_NAMES = {  # OpenAI's models on huggingface.co, which a model card links to
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def export(run: str | Path, out: str | Path, repository: str = "") -> Path:
    """Write a finished run's prompts, of the epoch that it evaluated, as the folder ``out``, whole or not at all.

    Args:
        repository: its name on huggingface.co, for the model card.

    Raises:
        ValueError: ``repository`` is no repository's name.
        FileExistsError: when ``out`` exists.
        FileNotFoundError: when the run has no results.json, config.yaml or checkpoint.
        CheckpointError: when the checkpoint is damaged, or not the one that results.json is about.
    """
    from safetensors.torch import save

    run, out = Path(run), Path(out)
    if repository:
        check_repository(repository, "--push ")
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists and is not overwritten: give another name")
    for name in ("results.json", "config.yaml"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}: give the --output-dir of a finished run")
    try:
        results = dict(json.loads((run / "results.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{run}/results.json is damaged ({error}): restore it, or evaluate the run anew"
        ) from error
    config = CfgNode.load_cfg((run / "config.yaml").read_text(encoding="utf-8"))
    path = find_checkpoint(run)
    content = read_checkpoint(path)
    if results.get("trainer") != content.get("trainer") or results.get("eval_only"):
        raise CheckpointError(f"{run}/results.json is not about {path}: give the folder of the run that trained it")
    for place in PLACES + FILES:
        *sections, key = place.split(".")
        node = config
        for section in sections:
            node = node.get(section, {})
        if key in node:
            node[key] = os.path.basename(node[key]) if place in FILES else ""
    tensors = {name: tensor.contiguous().clone() for name, tensor in content["state_dict"].items()}
    said = {name: value for name, value in content.items() if name not in NOT_SHARED}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        (folder / SHARED).write_bytes(save(tensors, {"format": "pt", "checkpoint": json.dumps(said)}))
        texts = {
            "classes.txt": "".join(f"{name}\n" for name in content.get("classnames") or ()),
            "config.yaml": config.dump(),
            "metrics.json": json.dumps({k: results[k] for k in NUMBERS if k in results}, indent=1, ensure_ascii=False),
            "README.md": model_card(results, content, repository),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        os.rename(folder, out)
    return out


def model_card(results: Mapping[str, Any], content: Mapping[str, Any], repository: str = "") -> str:
    """README.md of an exported run, in Markdown with the hub's header: its own numbers, and how far they hold."""
    trainer, backbone, data = results["trainer"], results["backbone"], results["data"]
    base_model = HUB_NAMES.get(backbone) or (
        backbone.removeprefix(HUB_PREFIX) if backbone.startswith(HUB_PREFIX) else ""
    )
    place = f"{HUB_PREFIX}{repository}" if repository else "PATH/TO/THIS/FOLDER"
    classes = content.get("classnames") or ()
    header = [f"tags: [clip, prompt-learning, {trainer}]", "pipeline_tag: zero-shot-image-classification"]
    header += [f"base_model: {base_model}"] if base_model else []
    facts = {
        "method": f"{trainer}, setting {results['setting']}",
        "backbone": f"{backbone}, tensors' SHA-256 {results['model'].get('backbone_sha256')}; not in this folder",
        "trained on": f"{results['dataset']}, class split {results['train_classes']} ({len(classes)} classes, "
        f"classes.txt), {results['shots']} shots: {data['num_train']} images, and {data['num_val']} to validate on",
        "split": f"{data.get('split_file')}, SHA-256 {data.get('split_sha256')}; the drawn images' "
        f"{data.get('fewshot_sha256')}",
        "seed": f"{results['seed']}; of the initial values {results['init_seed']}",
        "epoch": f"{content.get('epoch')}, chosen by: {results['selection_rule']}",
        "trained numbers": f"{sum(tensor.numel() for tensor in content['state_dict'].values()):,}",
    }
    cautions = [
        "The numbers are of one run with one seed, on these splits, and say nothing about the spread: compare methods "
        "over several seeds.",
        "The epoch was chosen by the rule above, never on test images.",
        "Classes and images unlike those above were not tested.",
    ]
    if backbone.startswith("bundled:"):
        cautions.insert(
            0, f"The backbone {backbone} is a small demonstration model: these accuracies say nothing about CLIP's."
        )
    rows = [
        f"| {split} | {values['num_classes']} | {values['num_images']} | {values['accuracy']:.2f} | "
        f"{values['macro_f1']:.2f} |"
        for split, values in results["metrics"].items()
    ]
    lines = [
        *("---", *header, "---", ""),
        *(f"# {trainer} on {results['dataset']}, for CLIP {backbone}", ""),
        "What prompt learning trained in one run, for a frozen CLIP. Nothing of CLIP is in here.",
        *("", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""),
        *("## Numbers of this run", "", "| classes | how many | test images | accuracy, % | macro F1, % |"),
        *("|---|---|---|---|---|", *rows, "", "As the run wrote them; all of them are in `metrics.json`.", ""),
        *("## How far they hold", "", *(f"- {caution}" for caution in cautions), ""),
        *("## Use", "", "With the repository that trained it:", "", "```python", "from trainers import load_run", ""),
        *(f'classifier = load_run("{place}")', 'for prediction in classifier.predict(["photo.png"]):'),
        *("    print(prediction.ranking)", "```", ""),
        *("Settings of the method:", "", "```yaml", str(content.get("settings", "")).strip(), "```", ""),
    ]
    return "\n".join(lines)


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder as a new repository of huggingface.co; returns its address.

    Raises:
        ValueError: without ``huggingface_hub``, when the repository exists, or where it cannot be reached.
    """
    by_hand = f"{folder} is written; by hand: hf auth login; hf upload {repository} {folder}"
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError(f"--push needs huggingface_hub ({error}): pip install huggingface_hub. {by_hand}") from error
    try:
        api = HfApi()
        address = api.create_repo(repository)  # an error where it exists: nothing there is overwritten
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the client, of its web library, of the system
        raise ValueError(f"{repository} was not pushed ({reason(error)}). {by_hand}") from error
    return str(address)
