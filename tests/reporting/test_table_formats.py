"""Golden tables, one small set of runs in every format."""

import csv
import io
import json

import pytest

from reporting.formats import FORMATS, escape_latex
from reporting.runs import load_runs
from reporting.table import build_table

MARKDOWN = """\
## Base-to-new generalization

### digits_8

| Method       | Seeds               |         base |          new |     H |        avg H |
|--------------|---------------------|--------------|--------------|-------|--------------|
| ZeroshotCLIP | deterministic (n=1) |        64.00 |        65.00 | 64.50 |        64.50 |
| CoOp         | 1, 2, 3 (n=3)       | 72.00 ± 1.00 | 66.67 ± 5.77 | 69.23 | 69.14 ± 3.23 |
| MaPLe        | 1 (n=1)             |        84.00 |            - |     - |            - |

"""

LATEX = r"""\begin{table}
\centering
\caption{Base-to-new generalization: digits\_8}
\begin{tabular}{llrrrr}
\hline
 Method       & Seeds               &             base &              new &     H &            avg H \\
\hline
 ZeroshotCLIP & deterministic (n=1) &            64.00 &            65.00 & 64.50 &            64.50 \\
 CoOp         & 1, 2, 3 (n=3)       & 72.00 $\pm$ 1.00 & 66.67 $\pm$ 5.77 & 69.23 & 69.14 $\pm$ 3.23 \\
 MaPLe        & 1 (n=1)             &            84.00 &                - &     - &                - \\
\hline
\end{tabular}
\end{table}

{\footnotesize\noindent
All numbers in percent; mean $\pm$ sample standard deviation (n - 1)"""

CSV = """\
protocol,block,method,trainer,setting,backbone,shots,selection_rule,source,column,n,mean,std,seed_1,seed_2,seed_3
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,base,1,64.0,,64.0,,
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,new,1,65.0,,65.0,,
base_to_new,digits_8,ZeroshotCLIP,ZeroshotCLIP,tiny_ep10,bundled:tiny,,last_step,,H,1,64.49612403100775,,,,
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
    text = FORMATS["md"](table, 2)
    assert text.startswith(MARKDOWN)
    assert "\n- H: harmonic mean of the average base and the average new accuracy" in text
    assert "\n- Selection rule: last_step.\n" in text
    assert "\n- **Warning:** MaPLe on digits_8: other rows have seed 2, 3, this one only 1 (beside " in text


def test_latex(table):
    text = FORMATS["latex"](table, 2)
    assert text.startswith(LATEX)
    assert "\nSelection rule: last\\_step.\\\\\n" in text
    assert "\nWarning: MaPLe on digits\\_8: other rows have seed 2, 3" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_csv(table):
    text = FORMATS["csv"](table, 2)
    assert text.startswith(CSV)
    lines = list(csv.DictReader(io.StringIO(text)))
    coop_new = next(line for line in lines if line["method"] == "CoOp" and line["column"] == "new")
    assert [float(coop_new[f"seed_{seed}"]) for seed in (1, 2, 3)] == [70.0, 60.0, 70.0]
    assert coop_new["mean"] == repr(200 / 3)
    maple_new = next(line for line in lines if line["method"] == "MaPLe" and line["column"] == "new")
    assert (maple_new["n"], maple_new["mean"]) == ("0", "")


def test_json(table):
    content = json.loads(FORMATS["json"](table, 2))
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
    assert "| 72.0 ± 1.0 |" in FORMATS["md"](table, 1)
    assert "72.000 $\\pm$ 1.000" in FORMATS["latex"](table, 3)


def test_fewer_seeds_in_a_cell_than_in_its_row_are_marked(runs):
    runs.add({"base": {"accuracy": 70.0}, "new": {"accuracy": 60.0}}, protocol="base_to_new", seed=1)
    runs.add({"base": {"accuracy": 72.0}}, protocol="base_to_new", seed=2)
    text = FORMATS["md"](build_table(load_runs([runs.root])), 1)
    assert "| CoOp     | 1, 2 (n=2) | 71.0 ± 1.4 | 60.0 (n=1) | 64.6 (n=1) | 64.6 (n=1) |" in text


@pytest.mark.parametrize("few_shot_column", ["1", "16"])
def test_csv_of_a_few_shot_table_gives_the_shots(runs, few_shot_column):
    for shots in (1, 16):
        runs.add({"all": {"accuracy": 50.0 + shots}}, protocol="few_shot", shots=shots)
    lines = csv.DictReader(io.StringIO(FORMATS["csv"](build_table(load_runs([runs.root])), 2)))
    line = next(line for line in lines if line["column"] == few_shot_column)
    assert (line["shots"], float(line["mean"])) == (few_shot_column, 50.0 + int(few_shot_column))


def test_every_special_character_is_safe_in_latex():
    assert escape_latex(r"a_b & 5% of $3 #1 {x} ~y ^z \ <q> ± |") == (
        r"a\_b \& 5\% of \$3 \#1 \{x\} \textasciitilde{}y \textasciicircum{}z \textbackslash{} "
        r"\textless{}q\textgreater{} $\pm$ \textbar{}"
    )


def test_names_cannot_break_a_markdown_row(runs):
    runs.add(trainer="A|B")
    row = next(line for line in FORMATS["md"](build_table(load_runs([runs.root])), 2).splitlines() if "A\\|B" in line)
    assert row.replace("\\|", "").count("|") == 11
