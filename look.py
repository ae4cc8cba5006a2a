"""Look into a finished run: its features, its errors, its attention.

python look.py features RUN -o features.npz
python look.py errors RUN --split new --html errors.html
python look.py attention RUN IMAGE -o attention.png
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from common.commandline import add_debug, csv_cell, guarded, printable
from common.files import atomic_write, refuse_existing
from results.schema import RECORD_FILES


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, words: str, output: str, needed: bool) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(command=name)
        command.add_argument("run", metavar="RUN", help="output folder of a finished run")
        command.add_argument("--output", "-o", type=Path, required=needed, metavar="FILE", help=output)
        command.add_argument("--force", action="store_true", help="replace FILE where it exists")
        add_debug(command)
        return command

    command = add("features", "image and text features of all images of a run, for numpy", "a .npz file", True)
    _add_root(command)
    _add_model(command)

    command = add("errors", "misclassified test images as csv, most confident first", "default: the terminal", False)
    _add_root(command)
    command.add_argument("--split", default="", help="only this class split: base, new or all (default: each)")
    command.add_argument("--html", type=Path, metavar="PAGE", help="also write a page with the images, whole in itself")
    command.add_argument("--limit", type=int, default=100, help="images on the page at most (default: %(default)s)")

    command = add("attention", "what [CLS] attends to in an image, drawn layer by layer", "ends in .png or .svg", True)
    command.add_argument("image", metavar="IMAGE", help="an image file")
    command.add_argument("--layers", type=int, nargs="+", metavar="N", help="only these, from 0 (default: all)")
    command.add_argument("--dpi", type=int, default=150, help="dots per inch of a PNG (default: %(default)s)")
    _add_model(command)
    return parser


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", default="", help="data root, where it is no longer the run's")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--load-epoch", type=int, help="which epoch's checkpoint; default: best, else last")
    command.add_argument("--device", default="", help="cpu or cuda; default: cuda when there is one")


if __name__ == "__main__":  # the rest takes seconds to import: a wrong option is answered before
    build_parser().parse_args()

import torch
from torchvision.transforms import Normalize
from yacs.config import CfgNode

import datasets  # noqa: F401  registers the data sets
import trainers  # noqa: F401  registers the trainers and their settings
from dassl.config import ConfigError, get_cfg_default
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from extras import trackers  # noqa: F401  registers the trackers' keys
from prompting.reference import PlainVisionEncoder
from reporting.attention import draw_attention
from reporting.drawing import FILE_FORMATS
from reporting.formats import html_page
from results.calibration import PREDICTIONS_FILE, read_predictions
from results.evaluate import class_splits_of, evaluate_class_splits
from results.features import FEATURES_FILE
from results.rundir import earlier_config
from train import select_device
from trainers.predictor import load_run, read_rgb

THUMBNAIL = 128  # pixels of the longer edge


def run_config(args: argparse.Namespace) -> Any:
    """The configuration that the run's folder holds, to read the run only; `--root` and `--device` change it.

    Raises:
        FileNotFoundError: the folder is no run's.
        ValueError: its configuration has keys that this version does not know.
    """
    saved = earlier_config(Path(args.run))
    if saved is None:
        raise FileNotFoundError(f"{args.run} holds no run (a results.json or config.yaml): give its --output-dir")
    cfg = get_cfg_default()
    try:
        cfg.merge_from_other_cfg(CfgNode(saved))
    except ConfigError as error:
        raise ValueError(f"{args.run}: its configuration does not fit this version ({error}): redo the run") from error
    cfg.DATASET.ROOT = args.root or cfg.DATASET.ROOT
    device = getattr(args, "device", "")
    cfg.USE_CUDA = select_device(device) if device else torch.cuda.is_available()
    cfg.MODEL.INIT_WEIGHTS = cfg.RESUME = ""  # what the run began with is in what it ended with
    cfg.VERBOSE = False
    return cfg


def run_features(args: argparse.Namespace) -> None:
    """Test the run again with its features kept, those of its training and validation images, too."""
    if args.output.suffix.lower() != ".npz":
        raise ValueError(f"{args.output}: the name must end in .npz")
    cfg = run_config(args)
    cfg.TEST.SAVE_FEATURES, cfg.TEST.SAVE_PREDICTIONS = True, False
    cfg.TEST.FIT_TEMPERATURE = cfg.TEST.COMPUTE_CMAT = False
    with tempfile.TemporaryDirectory() as scratch:
        cfg.OUTPUT_DIR = scratch  # nothing is written in the run's folder
        cfg.freeze()
        with contextlib.redirect_stdout(sys.stderr):
            trainer = build_trainer(cfg)
            trainer.load_model(args.run, epoch=args.load_epoch)
            where = {"model_dir": args.run, "load_epoch": args.load_epoch}
            metrics = evaluate_class_splits(trainer, cfg, class_splits_of(cfg), training_images=True, **where)
        with open(Path(scratch) / FEATURES_FILE, "rb") as file, atomic_write(args.output, replace=args.force) as out:
            shutil.copyfileobj(file, out)
    accuracies = ", ".join(f"{split} {values['accuracy']:.2f}%" for split, values in metrics.items())
    print(f"Wrote {args.output}; accuracy by class split: {accuracies}")


class Mistake(NamedTuple):
    """A misclassified test image; the columns of the csv."""

    path: str
    true: str
    predicted: str
    confidence: float  # largest probability
    margin: float  # how far it is above the next
    split: str  # class split: the classes to choose from


def mistakes(folder: Path, cfg: Any, only: str = "") -> list[Mistake]:
    """The misclassified images of a run's test, most confident first; `only`: of one class split.

    predictions.npz has them in the order of the data set, which is read anew for their paths.

    Raises:
        FileNotFoundError: the run has no predictions.npz.
        ValueError: there is no such class split, or the data set is another than at the test.
    """
    path, found = folder / PREDICTIONS_FILE, []
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, which TEST.SAVE_PREDICTIONS True (the default) writes: test the run again with "
            f"train.py --eval-only --model-dir {folder} and another --output-dir, and look into that"
        )
    splits = read_predictions(path)
    if only and only not in splits:
        raise ValueError(f"--split {only}: the run was tested on {', '.join(splits)}")
    for split in [only] if only else splits:
        cfg.DATASET.SUBSAMPLE_CLASSES, parts = split, splits[split]
        dataset = build_dataset(cfg)
        items, names = dataset.val if cfg.TEST.SPLIT == "val" else dataset.test, dataset.lab2cname
        if [item.label for item in items] != parts["label"].tolist():
            raise ValueError(
                f"{path}: its labels of class split {split} are not those of the images under {cfg.DATASET.ROOT}: give "
                "the data that the run was tested on as --root, or test the run again with --eval-only"
            )
        columns = (parts[name].tolist() for name in ("label", "prediction", "confidence", "margin"))
        for item, label, guess, confidence, margin in zip(items, *columns, strict=True):
            if guess != label:
                found.append(Mistake(item.impath, names[label], names[guess], confidence, margin, split))
    return sorted(found, key=lambda mistake: -mistake.confidence)


def thumbnail(path: str, upright: bool) -> str:
    """A small JPEG of an image file as a data URI, "" where it cannot be read."""
    try:
        image = read_rgb(path, upright)
    except ValueError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def run_errors(args: argparse.Namespace) -> None:
    """List the misclassified images; draw the first of them."""
    refuse_existing(args.html, args.force, RECORD_FILES)
    if args.html and args.output and os.path.abspath(args.html) == os.path.abspath(args.output):
        raise ValueError(f"--output and --html are both {args.html}: name two files")
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}: at least 1")
    cfg = run_config(args)
    with contextlib.redirect_stdout(sys.stderr):
        found = mistakes(Path(args.run), cfg, args.split)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Mistake._fields)
    for mistake in found:
        numbers = {"confidence": f"{mistake.confidence:.6f}", "margin": f"{mistake.margin:.4f}"}
        table.writerow([csv_cell(printable(cell)) for cell in mistake._replace(**numbers)])
    if args.html is not None:
        shown = [(mistake, thumbnail(mistake.path, cfg.INPUT.EXIF_ORIENTATION)) for mistake in found[: args.limit]]
        page = html_page(f"Errors of {args.run}", "errors.html.j2", shown=shown, total=len(found))
        with atomic_write(args.html, replace=args.force) as file:
            file.write(page.encode("utf-8", "backslashreplace"))
    if args.output is None:
        sys.stdout.write(text.getvalue())
        return
    with atomic_write(args.output, replace=args.force) as file:
        file.write(text.getvalue().encode("utf-8"))


def run_attention(args: argparse.Namespace) -> None:
    """Run the plain image tower on one image; draw what it attends to, and print the shares by layer as csv."""
    file_format = args.output.suffix.lower().removeprefix(".")
    if file_format not in FILE_FORMATS:
        raise ValueError(f"{args.output}: the name must end in .{' or .'.join(FILE_FORMATS)}")
    if not 10 <= args.dpi <= 1200:
        raise ValueError(f"--dpi must be between 10 and 1200, got {args.dpi}")
    read_rgb(args.image)  # before CLIP is loaded: it may be missing, or no image
    with contextlib.redirect_stdout(sys.stderr):
        classifier = load_run(args.run, args.device, args.load_epoch)
    model, visual = classifier.model, classifier.model.image_encoder.visual
    image = classifier.transform(read_rgb(args.image, classifier.upright, classifier.shorter_edge))
    with torch.no_grad(), model.precision.autocast(model.device):
        encoder = PlainVisionEncoder(SimpleNamespace(visual=visual))
        weights, gates = encoder.attention(image[None].to(model.device), model.prompts().vision)
    gates = {layer: float(weight.mean()) for layer, weight in gates.items()}
    layers = range(len(weights)) if args.layers is None else args.layers
    if wrong := [layer for layer in layers if not 0 <= layer < len(weights)]:
        raise ValueError(f"--layers {wrong[0]}: this image tower has layers 0 to {len(weights) - 1}")

    side = image.shape[1] // visual.conv1.kernel_size[0]  # patches in a row
    of_cls = [layer[0, 0].cpu().numpy() for layer in weights]  # (1 + patches + prompts,) each
    shares = [(row[0], row[1 : 1 + side**2].sum(), row[1 + side**2 :].sum()) for row in of_cls]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["layer", "cls", "patches", "prompts", "gate"])
    for layer, parts in enumerate(shares):
        table.writerow([layer, *(f"{part:.6f}" for part in parts), f"{gates[layer]:.6f}" if layer in gates else ""])

    for step in classifier.transform.transforms:
        if isinstance(step, Normalize):  # seen by people as it was before it was normalised
            image = image * torch.tensor(step.std)[:, None, None] + torch.tensor(step.mean)[:, None, None]
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    maps = {layer: of_cls[layer][1 : 1 + side**2].reshape(side, side) for layer in layers}
    on_prompts = [float(prompts) for _, _, prompts in shares]
    title = printable(Path(args.image).name)
    drawn = draw_attention(pixels, maps, on_prompts, gates, title, file_format, args.dpi)
    with atomic_write(args.output, replace=args.force) as file:
        file.write(drawn)


COMMANDS = {"features": run_features, "errors": run_errors, "attention": run_attention}


def run(args: argparse.Namespace) -> None:
    """Run one command, once its output is known to be free."""
    refuse_existing(args.output, args.force, RECORD_FILES)
    COMMANDS[args.command](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2: unusable input, the reason on stderr)."""
    return guarded(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
