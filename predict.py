"""Classify images with trained prompts, or with zero-shot CLIP.

python predict.py --model-dir output/demo/BMIP/mini_ep10_batch32/mini_digits/shots16/seed1 assets/digits/images
python predict.py --backbone ViT-B/16 --classes cat,dog photos/ --top 2 --format csv

Without a run, photos are turned upright by their EXIF orientation; with one, as the run did (INPUT.EXIF_ORIENTATION).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.commandline import add_debug, csv_cell, guarded, printable

FORMATS = ("text", "json", "csv")


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument(
        "--model-dir", default="", help="a finished run's folder, an exported one, or hf:USER/REPOSITORY"
    )
    parser.add_argument("--load-epoch", type=int, help="which epoch's checkpoint; default: best, else last")
    parser.add_argument("--backbone", default="", help="zero-shot: ViT-B/16, a file, a folder, hf:USER/REPOSITORY ...")
    parser.add_argument("--template", help="zero-shot: prompt with one {} for the class; default: a photo of a {}.")
    parser.add_argument("--classes", default="", help="class names with commas between; default: the run's own")
    parser.add_argument("--classes-file", default="", help="file with one class name per line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show per image")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="", help="cpu or cuda; default: cuda when there is one")
    add_debug(parser)
    return parser


if __name__ == "__main__":  # the rest takes seconds to import: a wrong option is answered before
    build_parser().parse_args()

from tqdm import tqdm

from datasets.splits import EXTENSIONS, is_clutter
from prompting.tokens import check_names
from trainers.predictor import Prediction, load_run, zero_shot


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files among files and, recursively, folders.

    Raises:
        FileNotFoundError: for a place that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not (place.is_dir() or place.is_file()):
            raise FileNotFoundError(f"{place} does not exist")
        inside = [place] if place.is_file() else sorted(place.rglob("*"))
        if place.is_dir():
            inside = [path for path in inside if path.suffix.lower() in EXTENSIONS and not is_clutter(path.name)]
        if not inside:
            raise FileNotFoundError(f"{place} holds no image ({', '.join(EXTENSIONS)})")
        found += inside
    return found


def class_names(args: argparse.Namespace) -> list[str] | None:
    """Class names from the options; ``None`` for the run's own.

    Raises:
        ValueError: both options at once, no name, one that cannot be told from another, or a file not in UTF-8.
    """
    if args.classes and args.classes_file:
        raise ValueError("give --classes or --classes-file, not both")
    source, unit, text = "--classes", "name", args.classes.replace(",", "\n")
    if args.classes_file:
        source, unit = args.classes_file, "line"
        try:
            text = Path(source).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"--classes-file {source} is not in UTF-8 ({error.reason}): save it so") from error
    elif not args.classes:
        return None
    lines = [(f"{unit} {n}", line.strip()) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"no class name in {source}")
    places, names = zip(*lines, strict=True)
    check_names(names, places, source)
    return list(names)


def write(predictions: Iterable[Prediction], form: str) -> list[str]:
    """Print predictions as they come, in one of `FORMATS`; returns what was wrong with images that could not be read.

    text has a line per image, json an object per line, csv a row per image and rank. An unreadable image has its error
    in place of the classes.
    """
    errors, table = [], csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        table.writerow(["image", "rank", "class", "probability", "error"])
    for prediction in predictions:
        path, ranking, error = prediction.path, prediction.ranking, prediction.error
        errors += [printable(error)] if error else []
        if form == "text":
            answer = ", ".join(f"{name} {100 * p:.1f}%" for name, p in ranking)
            print(printable(f"{path}: {answer or 'error: ' + error.removeprefix(f'{path} is ')}"))
        elif form == "json":
            answer = {"image": path, "ranking": [{"class": name, "probability": p} for name, p in ranking]}
            text = json.dumps(answer | ({"error": error} if error else {}), ensure_ascii=False)
            print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))  # JSON's own escapes
        else:
            rows = [(rank, name, f"{p:.6f}", "") for rank, (name, p) in enumerate(ranking, start=1)]
            for row in rows or [("", "", "", error)]:
                table.writerow([csv_cell(printable(str(cell))) for cell in (path, *row)])
    return errors


def run(args: argparse.Namespace) -> int:
    """Find the images, load the classifier, predict, print; returns 1 where some images could not be read."""
    if args.model_dir and args.backbone:
        raise ValueError("give --model-dir or --backbone, not both")
    if args.template is not None and not args.backbone:
        raise ValueError("--template is for zero-shot: give --backbone with it")
    if args.load_epoch is not None and not args.model_dir:
        raise ValueError("--load-epoch is for a run: give --model-dir with it")
    images, classes = find_images(args.images), class_names(args)
    with contextlib.redirect_stdout(sys.stderr):  # what Dassl says while building is no result
        if args.model_dir:
            classifier = load_run(args.model_dir, args.device, args.load_epoch)
        elif args.backbone and classes is not None:
            template = {} if args.template is None else {"template": args.template}
            classifier = zero_shot(args.backbone, classes, device=args.device, **template)
        else:
            raise ValueError("give --model-dir, or --backbone together with --classes or --classes-file")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be UTF-8
    answers = classifier.predict(images, classes, args.top, args.batch_size)
    unreadable = write(tqdm(answers, total=len(images), disable=None, unit="image"), args.format)
    if unreadable:
        print(f"error: {len(unreadable)} of {len(images)} images could not be read: {unreadable[0]}", file=sys.stderr)
    return 1 if unreadable else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 some images could not be read, 2 wrong input."""
    return guarded(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
