"""The table of docs/figures.md, from the log of the long form: `python -m tests.faults.counts faults.jsonl`."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: of each victim and fault the rounds, the strikes tried and made, and how the rounds ended.

    A fault that was tried counts as struck when the process did not end with status 0.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["victim"], record["fault"]].append(record)
    rows = [_row(victim, fault, group) for (victim, fault), group in sorted(groups.items())]
    total = _row("all", "", [record for group in groups.values() for record in group])
    head = "| Victim | Fault | Rounds | Faults | Struck | Rounds that ended as if nothing had happened |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, total])


def _row(victim: str, fault: str, group: list[dict[str, Any]]) -> str:
    tried = [strike["status"] != 0 for record in group for strike in record["strikes"]]
    well = sum(record["as_if_nothing"] for record in group)
    return f"| {victim} | {fault} | {len(group)} | {len(tried)} | {sum(tried)} | {well} |"


if __name__ == "__main__":
    print(table(json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
