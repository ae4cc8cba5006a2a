"""Reads a log.txt as the result parsers of the CoOp family's repositories do: the format that they rely on.

A line that is exactly the end signal ("Finish training", or "=> result" for logs of --eval-only) opens the results;
after it, every "* <keyword>: <number>%" sets the keyword's value, so that the last one counts.
"""

import re
from pathlib import Path


def last_result(log, keyword="accuracy", end_signal="Finish training"):
    """The keyword's last value after the end signal, None without one."""
    pattern = re.compile(rf"\* {keyword}: ([\.\deE+-]+)%")
    value, finished = None, False
    for line in Path(log).read_text().splitlines():
        line = line.strip()
        finished = finished or line == end_signal
        match = pattern.search(line)
        if match and finished:
            value = float(match[1])
    return value
