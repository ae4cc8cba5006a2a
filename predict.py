"""Classify images with trained prompts, or with zero-shot CLIP.

python predict.py --model-dir output/demo/BMIP/tiny_c2_ep10_batch4_2ctx/digits/shots16/seed1 assets/digits/images
python predict.py --backbone ViT-B/16 --classes cat,dog photos/ --top 2 --format csv

Without a run, photos are turned upright by their EXIF orientation; with one, as the run did (INPUT.EXIF_ORIENTATION).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.commandline import add_debug, csv_cell, guarded, printable


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument("--model-dir", default="", help="output folder of a finished run; without it zero-shot CLIP")
    parser.add_argument("--load-epoch", type=int, help="which epoch's checkpoint; default: best, else last")
    parser.add_argument("--backbone", default="", help="zero-shot: ViT-B/16, a .pt file, bundled:tiny_clip ...")
    parser.add_argument("--template", default="a photo of a {}.", help="zero-shot: prompt with one {} for the class")
    parser.add_argument("--classes", default="", help="class names with commas between; default: the run's own")
    parser.add_argument("--classes-file", default="", help="file with one class name per line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show per image")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="", help="cpu or cuda; default: cuda when there is one")
    add_debug(parser)
    return parser


if __name__ == "__main__":  # the rest takes seconds to import: a wrong option is answered before
    build_parser().parse_args()

from tqdm import tqdm

from datasets.folders import EXTENSIONS, is_clutter
from prompting.names import check_names
from trainers.predictor import Classifier, Prediction, load_run, zero_shot


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files among files and, recursively, folders.

    Raises:
        FileNotFoundError: for a place that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS and not is_clutter(p.name))
            if not inside:
                raise FileNotFoundError(f"{place} holds no image ({', '.join(EXTENSIONS)})")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise FileNotFoundError(f"{place} does not exist")
    return found


def class_names(args: argparse.Namespace) -> list[str] | None:
    """Class names from the options; ``None`` for the run's own.

    Raises:
        ValueError: for an empty list, a name that cannot be told from another, or both options at once.
    """
    if args.classes and args.classes_file:
        raise ValueError("give --classes or --classes-file, not both")
    if not args.classes and not args.classes_file:
        return None
    text = read_names(args.classes_file) if args.classes_file else args.classes.replace(",", "\n")
    source, unit = (args.classes_file, "line") if args.classes_file else ("--classes", "name")
    lines = [(f"{unit} {n}", line.strip()) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"no class name in {source}")
    places, names = zip(*lines, strict=True)
    check_names(names, places, source)
    return list(names)


def read_names(path: str) -> str:
    """The text of --classes-file.

    Raises:
        ValueError: it is in another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes-file {path} is not in UTF-8 ({error.reason}): save it so") from error


def load_classifier(args: argparse.Namespace, classes: Sequence[str] | None) -> Classifier:
    """The run's classifier, or zero-shot CLIP.

    Raises:
        ValueError: when neither a run nor a backbone with classes is given.
    """
    if args.model_dir:
        return load_run(args.model_dir, args.device, args.load_epoch)
    if not args.backbone or classes is None:
        raise ValueError("give --model-dir, or --backbone together with --classes or --classes-file")
    return zero_shot(args.backbone, classes, args.template, args.device)


def write_text(predictions: Iterable[Prediction]) -> None:
    """A line per image: path, then class and probability in per cent, or the error."""
    for prediction in predictions:
        ranking = ", ".join(f"{name} {100 * p:.1f}%" for name, p in prediction.ranking)
        error = f"error: {prediction.error.removeprefix(f'{prediction.path} is ')}"
        print(printable(f"{prediction.path}: {ranking or error}"))


def write_json(predictions: Iterable[Prediction]) -> None:
    """One JSON object per line; an unreadable image's has an "error"."""
    for prediction in predictions:
        ranking = [{"class": name, "probability": p} for name, p in prediction.ranking]
        error = {"error": prediction.error} if prediction.error else {}
        text = json.dumps({"image": prediction.path, "ranking": ranking, **error}, ensure_ascii=False)
        print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))  # JSON's own escapes


def write_csv(predictions: Iterable[Prediction]) -> None:
    """A row per image and rank; an unreadable image has one, with the error in the last column."""
    table = csv.writer(sys.stdout)
    table.writerow(["image", "rank", "class", "probability", "error"])
    for prediction in predictions:
        for rank, (name, p) in enumerate(prediction.ranking, start=1):
            table.writerow([csv_cell(printable(prediction.path)), rank, csv_cell(printable(name)), f"{p:.6f}", ""])
        if prediction.error:
            table.writerow([csv_cell(printable(prediction.path)), "", "", "", csv_cell(printable(prediction.error))])


WRITERS = {"text": write_text, "json": write_json, "csv": write_csv}


def run(args: argparse.Namespace) -> int:
    """Find the images, load the classifier, print; returns 1 where some images could not be read."""
    images, classes = find_images(args.images), class_names(args)
    stdout, sys.stdout = sys.stdout, sys.stderr  # what Dassl says while building is no result
    try:
        classifier = load_classifier(args, classes)
    finally:
        sys.stdout = stdout
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be UTF-8
    predictions: Iterator[Prediction] = classifier.predict(images, classes, args.top, args.batch_size)
    unreadable: list[str] = []
    WRITERS[args.format](noting(unreadable, tqdm(predictions, total=len(images), disable=None, unit="image")))
    if unreadable:
        print(f"error: {len(unreadable)} of {len(images)} images could not be read: {unreadable[0]}", file=sys.stderr)
    return 1 if unreadable else 0


def noting(unreadable: list[str], predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """The same predictions, the errors among them added to a list."""
    for prediction in predictions:
        if prediction.error:
            unreadable.append(printable(prediction.error))
        yield prediction


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 some images could not be read, 2 wrong input."""
    return guarded(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
