"""Checkpoints in which one value is another."""

import copy
import math

import torch

ODD = {
    "None": None,
    "number": 5,
    "negative": -1,
    "huge": 10**400,
    "text": "x",
    "long text": "x" * 100_000,
    "control characters": "\x1b[2J\n\x00",
    "list": [],
    "dictionary": {},
    "numbers": [1, 2],
    "deep": [[[{"a": [None]}]]],
    "bool": torch.tensor([True]),
    "empty": torch.empty(0),
    "NaN": torch.full((2, 128), math.nan),
    "float8": torch.ones(2, 128).to(torch.float8_e4m3fn),
    "complex": torch.ones(2, 128, dtype=torch.complex64),
    "sparse": torch.ones(2, 128).to_sparse(),
    "meta": torch.empty(2, 128, device="meta"),
    "quantised": torch.quantize_per_tensor(torch.ones(2, 128), 0.1, 0, torch.qint8),
}


def places(content, way=()):
    """Ways to all values of nested dictionaries and lists; of long lists, to the first."""
    if way:
        yield way
    entries = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in entries:
        yield from places(value, (*way, key))


def mutated(content):
    """(what was changed, the content with it) for every value and every odd one; then without it, and renamed."""
    for way in places(content):
        for name in (*ODD, "missing", "renamed"):
            odd = copy.deepcopy(content)
            inner = odd
            for key in way[:-1]:
                inner = inner[key]
            if name in ODD:
                inner[way[-1]] = ODD[name]
            elif isinstance(inner, list):
                continue
            else:
                value = inner.pop(way[-1])
                if name == "renamed":
                    inner["\x1b[2J" + str(way[-1])] = value
            yield f"{'/'.join(map(str, way))}: {name}", odd
