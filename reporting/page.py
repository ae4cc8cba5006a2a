"""HTML pages that need nothing from elsewhere: style and script inside, nothing fetched, foreign text escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path

_FOLDER = Path(__file__).parent


def html_page(title: str, body: str) -> str:
    """A whole page around a body.

    The content security policy lets no script run but the page's own, so that nothing in a results file can.

    Args:
        title: plain text.
        body: HTML, its foreign parts escaped.
    """
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """A value as text of a page or of an attribute: no character keeps a meaning for HTML."""
    return escape(str(value), quote=True)


def bullets(lines: list[str] | tuple[str, ...]) -> str:
    """A list of plain lines; empty for none."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


@cache
def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
