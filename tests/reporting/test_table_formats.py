"""Golden tables, one small set of runs in every format."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest

from reporting.__main__ import main
from reporting.formats import FORMATS, escape_latex
from reporting.table import build_table, document
from results.schema import load_runs

MARKDOWN = """\
## Base-to-new generalization

### digits_8

| Method       | Seeds               |         base |          new |     H |        avg H |
|--------------|---------------------|--------------|--------------|-------|--------------|
| ZeroshotCLIP | deterministic (n=1) |        64.00 |        65.00 | 64.50 |        64.50 |
| CoOp         | 1, 2, 3 (n=3)       | 72.00 ± 1.00 | 66.67 ± 5.77 | 69.23 | 69.14 ± 3.23 |
| MaPLe        | 1 (n=1)             |        84.00 |            - |     - |            - |

"""

LATEX = r"""% needs \usepackage{booktabs} in the preamble

\begin{table}
\centering
\caption{Base-to-new generalization: digits\_8}
\begin{tabular}{llrrrr}
\toprule
Method & Seeds & base & new & H & avg H \\
\midrule
ZeroshotCLIP & deterministic (n=1) & 64.00 & 65.00 & 64.50 & 64.50 \\
CoOp & 1, 2, 3 (n=3) & 72.00 $\pm$ 1.00 & \textbf{66.67} $\pm$ 5.77 & \textbf{69.23} & \textbf{69.14} $\pm$ 3.23 \\
MaPLe & 1 (n=1) & \textbf{84.00} & - & - & - \\
\bottomrule
\end{tabular}
\end{table}

{\footnotesize\noindent
Bold: the best measured mean of a column, as rounded here, where several methods have one.\\
All numbers in percent; mean $\pm$ sample standard deviation (n - 1)"""

CSV = """\
protocol,block,method,trainer,setting,backbone,shots,selection_rule,source,column,n,mean,std,\
seeds_low,seeds_high,datasets_low,datasets_high,seed_1,seed_2,seed_3
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,base,1,64.0,,,,,,64.0,,
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,new,1,65.0,,,,,,65.0,,
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,H,1,64.49612403100775,,,,,,,,
"""

COOP_BASE = {
    "mean": 72.0,
    "std": 1.0,
    "n": 3,
    "seeds": [1, 2, 3],
    "values": {"1": 71.0, "2": 72.0, "3": 73.0},
}


@pytest.fixture
def table(runs):
    def add(base, new, **changes):
        new_metrics = {} if new is None else {"new": {"accuracy": new}}
        runs.add({"base": {"accuracy": base}, **new_metrics}, protocol="base_to_new", dataset="digits_8", **changes)

    add(64.0, 65.0, trainer="ZeroshotCLIP", zero_shot=True)
    for seed, base, new in [(1, 71.0, 70.0), (2, 72.0, 60.0), (3, 73.0, 70.0)]:
        add(base, new, seed=seed)
    add(84.0, None, trainer="MaPLe")
    return build_table(load_runs([runs.root]))


def test_markdown(table):
    text = FORMATS["md"](document(table, 2))
    assert text.startswith(MARKDOWN)
    assert "\n- H: harmonic mean of the average base and the average new accuracy" in text
    assert "\n- Selection rule: last_step.\n" in text
    assert "\n- **Warning:** MaPLe on digits_8: other rows have seed 2, 3, this one only 1 (beside " in text


def test_latex(table):
    text = FORMATS["latex"](document(table, 2))
    assert re.sub(" +", " ", text).startswith(LATEX)
    assert "\nSelection rule: last\\_step.\\\\\n" in text
    assert "\nWarning: MaPLe on digits\\_8: other rows have seed 2, 3" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_csv(table):
    text = FORMATS["csv"](document(table, 2))
    assert text.startswith(CSV)
    lines = list(csv.DictReader(io.StringIO(text)))
    coop_new = next(line for line in lines if line["method"] == "CoOp" and line["column"] == "new")
    assert [float(coop_new[f"seed_{seed}"]) for seed in (1, 2, 3)] == [70.0, 60.0, 70.0]
    assert coop_new["mean"] == repr(200 / 3)
    maple_new = next(line for line in lines if line["method"] == "MaPLe" and line["column"] == "new")
    assert (maple_new["n"], maple_new["mean"]) == ("0", "")


def test_json(table):
    content = json.loads(FORMATS["json"](document(table, 2)))
    (block,) = content["blocks"]
    assert (content["protocol"], block["title"], block["columns"]) == (
        "base_to_new",
        "digits_8",
        ["base", "new", "H", "average_H"],
    )
    zero_shot, coop, maple = block["rows"]
    assert zero_shot["deterministic"]
    assert (coop["method"], coop["seeds"], coop["cells"]["base"]) == ("CoOp", [1, 2, 3], COOP_BASE)
    assert coop["cells"]["new"]["mean"] == 200 / 3
    assert maple["cells"]["new"] is None
    assert len(content["warnings"]) == 2


def test_digits_rounds_the_tables_for_reading(table):
    assert "| 72.0 ± 1.0 |" in FORMATS["md"](document(table, 1))
    assert "72.000 $\\pm$ 1.000" in FORMATS["latex"](document(table, 3))


def test_fewer_seeds_in_a_cell_than_in_its_row_are_marked(runs):
    runs.add({"base": {"accuracy": 70.0}, "new": {"accuracy": 60.0}}, protocol="base_to_new", seed=1)
    runs.add({"base": {"accuracy": 72.0}}, protocol="base_to_new", seed=2)
    text = FORMATS["md"](document(build_table(load_runs([runs.root])), 1))
    assert "| CoOp     | 1, 2 (n=2) | 71.0 ± 1.4 | 60.0 (n=1) | 64.6 (n=1) | 64.6 (n=1) |" in text


@pytest.mark.parametrize("few_shot_column", ["1", "16"])
def test_csv_of_a_few_shot_table_gives_the_shots(runs, few_shot_column):
    for shots in (1, 16):
        runs.add({"all": {"accuracy": 50.0 + shots}}, protocol="few_shot", shots=shots)
    lines = csv.DictReader(io.StringIO(FORMATS["csv"](document(build_table(load_runs([runs.root])), 2))))
    line = next(line for line in lines if line["column"] == few_shot_column)
    assert (line["shots"], float(line["mean"])) == (few_shot_column, 50.0 + int(few_shot_column))


def bold(text):
    return re.findall(r"\\textbf\{([^}]*)\}", text)


def test_ties_as_shown_are_all_bold_and_a_lone_number_is_not(runs):
    for trainer, accuracy in (("CoOp", 70.004), ("MaPLe", 70.001), ("BMIP", 69.0)):
        runs.add({"all": {"accuracy": accuracy}}, protocol="cross_dataset", trainer=trainer, dataset="digits")
    runs.add({"all": {"accuracy": 99.0}}, protocol="cross_dataset", dataset="emoji")
    table = build_table(load_runs([runs.root]))
    assert bold(FORMATS["latex"](document(table, 2))) == ["70.00", "70.00"]
    assert bold(FORMATS["latex"](document(table, 3))) == ["70.004"]


def test_published_rows_stand_apart_and_are_never_bold(runs):
    for trainer, accuracy in (("CoOp", 20.0), ("BMIP", 21.0)):
        runs.add({"base": {"accuracy": accuracy}, "new": {"accuracy": accuracy}}, trainer=trainer, dataset="EuroSAT")
    text = FORMATS["latex"](document(build_table(load_runs([runs.root]), "open_world", published="measured")))
    assert set(bold(text)) == {"21.00"}
    measured, published = text.split(r"\bottomrule")[0].split(r"\midrule")[1:]
    assert "published" not in measured
    assert all("published" in line for line in published.strip().splitlines())


def test_every_latex_row_has_as_many_cells_as_its_table_has_columns(table):
    text = FORMATS["latex"](document(table, 2))
    (columns,) = re.findall(r"\\begin\{tabular\}\{(l*r*)\}", text)
    rows = [line for line in text.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {row.count("&") + 1 for row in rows} == {len(columns)}
    assert len({len(row) for row in rows}) == 1
    assert [text.count(f"\\{rule}") for rule in ("toprule", "midrule", "bottomrule", "hline")] == [1, 1, 1, 0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles_with_the_packages_that_it_names(runs, capsys):
    for index, trainer in enumerate(("CoOp", "BMIP", "[*a] \\input{/etc/passwd} $%&_^~#| {<b>\n\nc")):
        for seed in (1, 2):
            path = runs.add(runs.open_world_metrics(70.0 + seed, 60.0 + index), dataset="EuroSAT", seed=seed)
            record = json.loads(path.read_text()) | {"trainer": trainer}
            path.unlink()
            (runs.root / f"{index}-{seed}.json").write_text(json.dumps(record))
    files = [str(path) for path in sorted(runs.root.glob("*.json"))]
    for command in (["table", "--published-all"], ["compare", "CoOp", "BMIP"]):
        assert main([*command, *files, "--format", "latex"]) == 0
        content = capsys.readouterr().out
        packages = re.findall(r"\\usepackage\{\w+\}", content.split("\n", 1)[0])
        document = ["\\documentclass{article}", *packages, "\\begin{document}", content, "\\end{document}"]
        (runs.root / "table.tex").write_text("\n".join(document), encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
            cwd=runs.root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("form", FORMATS)
def test_chosen_metrics_are_the_columns_of_every_format(runs, capsys, form):
    runs.add()
    runs.add(trainer="BMIP")
    assert main(["table", str(runs.root), "--format", form, "--metrics", "H, AUROC,base"]) == 0
    text = capsys.readouterr().out
    found = {
        "md": lambda: re.search(r"^\| Method +\| Seeds +\|(.*)$", text, re.MULTILINE)[1],
        "latex": lambda: re.search(r"^Method +& Seeds +&(.*)\\\\$", text, re.MULTILINE)[1],
        "html": lambda: re.sub(r"<.*?>", " ", re.search(r"Seeds</button></th>(.*)</tr>", text)[1]),
        "csv": lambda: " ".join(line["column"] for line in list(csv.DictReader(io.StringIO(text)))[:3]),
        "json": lambda: " ".join(json.loads(text)["blocks"][0]["columns"]),
    }[form]()
    named = ["H", "auroc", "base"] if form in ("csv", "json") else ["H", "AUROC", "base"]
    assert re.findall(r"\w+", found) == named


def test_chosen_metrics_are_the_blocks_of_the_papers_layout(runs):
    for dataset in ("digits", "emoji"):
        runs.add({"base": {"accuracy": 70.0}, "new": {"accuracy": 60.0}}, dataset=dataset)
    table = build_table(load_runs([runs.root]), group="metric", metrics=["new", "avg H"])
    assert [block.title for block in table.blocks] == ["new", "avg H"]
    assert table.blocks[1].rows[0].cells["average over 2 data sets"].mean == pytest.approx(2 * 70 * 60 / 130)
    assert table.warnings == ()  # of a number that is not asked for, none is missing


def test_what_a_chosen_metric_is_computed_from_is_missed_too(runs):
    path = runs.add({"base": {"accuracy": 70.0}})
    assert build_table(load_runs([runs.root]), metrics=["H"]).warnings == (f"{path} holds no new",)
    assert build_table(load_runs([runs.root]), metrics=["base"]).warnings == ()


@pytest.mark.parametrize("names", ["f1", "", "base,,new"])
def test_a_metric_that_is_none_is_refused_with_the_choices(runs, capsys, names):
    runs.add()
    assert main(["table", str(runs.root), "--metrics", names]) == 2
    error = capsys.readouterr().err
    assert "in Open-world generalization; choose from base, new, H, average_H, all, open_H, auroc" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("form", ["md", "latex", "html"])
def test_headings_name_shots(runs, capsys, form):
    for dataset in ("digits", "emoji"):
        for shots in (1, 16):
            runs.add({"all": {"accuracy": 50.0 + shots}}, protocol="few_shot", shots=shots, dataset=dataset)
    for group in ("dataset", "metric"):
        assert main(["table", str(runs.root), "--format", form, "--group", group]) == 0
        text = capsys.readouterr().out
        for shots in ("1 shot", "16 shots"):
            heading = {
                "md": rf"(\| +|### ){shots}( \||\n)",
                "latex": rf"(& +|: ){shots}( \\\\| &|\}})",
                "html": rf"(<h3>|<button type=\"button\">){shots}<",
            }[form]
            assert re.search(heading, text)


def test_every_special_character_is_safe_in_latex():
    assert escape_latex(r"a_b & 5% of $3 #1 {x} ~y ^z \ <q> ± |") == (
        r"a\_b \& 5\% of \$3 \#1 \{x\} \textasciitilde{}y \textasciicircum{}z \textbackslash{} "
        r"\textless{}q\textgreater{} $\pm$ \textbar{}"
    )


def test_names_cannot_break_a_markdown_row(runs):
    runs.add(trainer="A|B")
    row = next(
        line for line in FORMATS["md"](document(build_table(load_runs([runs.root])), 2)).splitlines() if "A\\|B" in line
    )
    assert row.replace("\\|", "").count("|") == 11
