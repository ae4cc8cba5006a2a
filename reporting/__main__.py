"""Command line of the reporting package.

python -m reporting table --protocol open_world output/open_world
python -m reporting table --published --format latex --output table.tex output/base_to_new
python -m reporting compare BMIP/setting_a BMIP/setting_b output/open_world --format json
python -m reporting rank output/open_world --metrics base,new,average_H
python -m reporting plot confusion output/open_world --trainer BMIP --dataset EuroSAT -o confusion.png
python -m reporting html output -o report.html
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.commandline import add_debug, guarded, printable
from common.files import atomic_write, refuse_existing
from reporting import compare, drawing, plots, ranks, recompute, report, table, verify
from reporting.formats import FORMATS, Document
from reporting.methods import COSTS, PROTOCOLS, check_protocol, of_protocol, selected
from results.schema import RECORD_FILES, Run, load_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status (2: unusable input, the reason on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m reporting", description="Tables, comparisons, plots and reports of finished runs."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    words = "one protocol's results as a table: mean and standard deviation over seeds"
    command = commands.add_parser("table", help=words, description=words)
    _add_files(command, run_table)
    _add_protocol(command)
    command.add_argument(
        "--group",
        choices=("dataset", "metric", "average"),
        help="a block per data set, or per metric with the data sets as columns, as papers have it "
        "(default: metric where there are several data sets), or the average over the data sets only",
    )
    _add_published(command)
    _add_metrics(command)
    command.add_argument("--format", choices=sorted(FORMATS), default="md")
    command.add_argument("--digits", type=int, default=2, help="decimals in md, latex and html (default: %(default)s)")

    words = "paired differences between two methods, with confidence interval and tests"
    command = commands.add_parser("compare", help=words, description=words)
    command.add_argument("first", metavar="A", help="trainer, or trainer/setting")
    command.add_argument(
        "second", metavar="B", help="trainer, or trainer/setting; all: every other method, a row for each"
    )
    _add_files(command, run_compare)
    _add_protocol(command)
    _add_metrics(command)
    command.add_argument("--format", choices=sorted(FORMATS), default="md")

    words = "average ranks over five data sets or more, with Friedman's test and Nemenyi's critical difference"
    command = commands.add_parser("rank", help=words, description=words)
    _add_files(command, run_rank)
    _add_selection(command)
    _add_metrics(command)
    command.add_argument("--format", choices=sorted(FORMATS), default="md")

    words = "calibration of every run and class split, computed anew from predictions.npz"
    command = commands.add_parser("recompute", help=words, description=words)
    _add_files(command, run_recompute)
    command.add_argument("--bins", type=int, default=15, help="of the calibration errors (default: %(default)s)")
    command.add_argument("--format", choices=sorted(FORMATS), default="md")

    words = "is the set-up right? zero-shot CLIP's accuracies beside published ones; exit status 1 where one differs"
    command = commands.add_parser("verify", help=words, description=words)
    _add_files(command, run_verify)
    command.add_argument("--format", choices=sorted(FORMATS), default="md")

    words = "a plot of runs, as PNG or SVG"
    kinds = "kinds: " + "; ".join(f"{name}: {kind.help}" for name, kind in plots.KINDS.items())
    command = commands.add_parser("plot", help=words, description=words, epilog=kinds)
    command.add_argument("kind", choices=sorted(plots.KINDS), metavar="KIND", help=", ".join(sorted(plots.KINDS)))
    _add_files(command, run_plot, "ends in .png or .svg")
    command.add_argument("--metric", default="", help="which number (default: H, or accuracy over all classes)")
    command.add_argument("--baseline", default="", help="gain: over which trainer (default: ZeroshotCLIP)")
    words = "cost: which (default: %(default)s)"
    command.add_argument("--cost", choices=COSTS, default="params", help=words)
    command.add_argument("--split", default="", help="confusion, tsne, reliability: which class split (default: all)")
    command.add_argument("--dpi", type=int, default=150, help="dots per inch of a PNG (default: %(default)s)")
    _add_selection(command)

    words = "one self-contained page: tables, plots and every run"
    command = commands.add_parser("html", help=words, description=words)
    _add_files(command, run_html, "the page")
    command.add_argument("--title", default="Results", help="the page's heading (default: %(default)s)")
    _add_published(command)
    _add_selection(command)

    for command in commands.choices.values():
        add_debug(command)
    parsed = parser.parse_args(arguments)
    return guarded(parsed.run, parsed)


def _add_files(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], output: str = ""
) -> None:
    """`output`: what the file is, where there must be one."""
    parser.set_defaults(run=run)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="results.json files, or folders to search for them")
    words = output or "write there instead of to the terminal"
    parser.add_argument("--output", "-o", type=Path, required=bool(output), metavar="FILE", help=words)
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")


def _add_protocol(
    parser: argparse.ArgumentParser, words: str = "only its runs; default: the one that all runs share"
) -> None:
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), help=words)


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    """`metrics` becomes a list, empty by default."""
    words = "only these metrics, in this order, such as base,new,H (default: all of the protocol's)"
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=[], metavar="KEY,KEY", help=words)


def _add_published(parser: argparse.ArgumentParser) -> None:
    """`published` becomes "measured" or "all", or stays None."""
    words = "add published numbers of the methods in the table, and of BMIP, from their authors"
    parser.add_argument("--published", action="store_const", const="measured", help=words)
    words = "add every published number that is known, other methods' and other groups' runs included"
    parser.add_argument("--published-all", action="store_const", const="all", dest="published", help=words)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """Choices among the runs; all but the protocol may come several times."""
    _add_protocol(parser, "only runs of this protocol")
    add = functools.partial(parser.add_argument, action="append", default=[])
    add("--trainer", metavar="NAME", help="only this trainer, or trainer/setting")
    add("--dataset", metavar="NAME", help="only this data set")
    add("--shots", type=int, metavar="N", help="only this number of shots")
    add("--seed", type=int, metavar="N", help="only this seed")


def run_table(args: argparse.Namespace) -> None:
    """Build the table and write it out."""
    if not 0 <= args.digits <= 10:
        raise ValueError(f"--digits must be between 0 and 10, got {args.digits}")
    _check_target(args)
    runs = of_protocol(load_runs(args.runs), args.protocol)
    group = args.group or ("metric" if len({run.dataset for run in runs}) > 1 else "dataset")
    built = table.build_table(runs, args.protocol, group=group, published=args.published, metrics=args.metrics)
    _write_document(args, table.document(built, args.digits))


def run_compare(args: argparse.Namespace) -> None:
    """Compare two methods and write the result out."""
    _check_target(args)
    if args.first == "all":
        raise ValueError(
            f"compare all {args.second}: all comes second: python -m reporting compare {args.second} all RUNS"
        )
    runs = of_protocol(load_runs(args.runs), args.protocol)
    if args.second == "all":
        _write_document(args, compare.against_all(runs, args.first, args.protocol, args.metrics))
    else:
        comparison = compare.build_comparison(runs, args.first, args.second, args.protocol, args.metrics)
        _write_document(args, compare.document(comparison))


def run_rank(args: argparse.Namespace) -> None:
    """Rank the methods and write the ranks out."""
    _check_target(args)
    _write_document(args, ranks.build_ranks(_selected_runs(args), args.protocol, args.metrics))


def run_recompute(args: argparse.Namespace) -> None:
    """Compute calibration anew and write it out."""
    if not 1 <= args.bins <= 1000:
        raise ValueError(f"--bins must be between 1 and 1000, got {args.bins}")
    _check_target(args)
    _write_document(args, recompute.recomputed(load_runs(args.runs), args.bins))


def run_verify(args: argparse.Namespace) -> int:
    """Compare with published numbers and write it out; 1 if one differs."""
    _check_target(args)
    content, agrees = verify.verified(load_runs(args.runs))
    _write_document(args, content)
    return 0 if agrees else 1


def run_plot(args: argparse.Namespace) -> None:
    """Draw the plot and write it."""
    file_format = args.output.suffix.lower().removeprefix(".")
    if file_format not in drawing.FILE_FORMATS:
        raise ValueError(f"{args.output}: the name must end in .{' or .'.join(drawing.FILE_FORMATS)}")
    if not 10 <= args.dpi <= 1200:
        raise ValueError(f"--dpi must be between 10 and 1200, got {args.dpi}")
    _check_target(args)
    runs = _selected_runs(args)
    check_protocol(runs, None)  # before matplotlib is imported
    options = drawing.Options(args.metric, args.baseline, args.split, args.cost)
    _write(args, plots.draw_plot(args.kind, runs, file_format, options, args.dpi))


def run_html(args: argparse.Namespace) -> None:
    """Build the page and write it."""
    _check_target(args)
    page, warnings = report.build_report(_selected_runs(args), args.output, title=args.title, published=args.published)
    _write(args, page.encode("utf-8"), warnings)


def _selected_runs(args: argparse.Namespace) -> list[Run]:
    return selected(load_runs(args.runs), args.trainer, args.dataset, args.seed, args.shots, protocol=args.protocol)


def _check_target(args: argparse.Namespace) -> None:
    """Refuse a path that is taken, before any work is done."""
    refuse_existing(args.output, args.force, RECORD_FILES)


def _write_document(args: argparse.Namespace, content: Document) -> None:
    text = FORMATS[args.format](content)
    # csv has no place for warnings, and a file is not looked at while it is written
    _write(args, text.encode("utf-8"), content.warnings if args.format == "csv" or args.output is not None else ())


def _write(args: argparse.Namespace, content: bytes, warnings: Iterable[str] = ()) -> None:
    """To the file, or the terminal; warnings go to stderr, one a line: names and paths in them come from files."""
    sys.stderr.writelines(f"warning: {printable(warning)}\n" for warning in warnings)
    if args.output is None:
        sys.stdout.write(content.decode("utf-8"))
        return
    _check_target(args)
    with atomic_write(args.output, replace=args.force) as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
