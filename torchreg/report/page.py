"""The page around the sections: head, style, contents."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from torchreg.report.html import Html, element, join, text


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        body: what stands below it.
    """

    title: str
    body: Html


def page(title: str, opening: Html, sections: Sequence[Section]) -> Html:
    """A whole document that asks for nothing from elsewhere and runs no script: its policy forbids both.

    Args:
        title: of the document, as text.
        opening: below the title.
        sections: in their order.
    """
    style = Html(files("torchreg.report").joinpath("page.css").read_text(encoding="utf-8"))  # ours, and holds no "<"
    contents = [element("li", element("a", text(part.title), href=f"#part-{k}")) for k, part in enumerate(sections)]
    parts = [
        element("section", element("h2", text(part.title), id=f"part-{k}"), part.body, aria_labelledby=f"part-{k}")
        for k, part in enumerate(sections)
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", text(title)),
        element("style", style),
    )
    header = element(
        "header", element("h1", text(title)), opening, element("nav", element("ul", *contents), aria_label="Contents")
    )
    body = element("body", header, element("main", join(parts)))
    return Html(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


def _policy(style: str) -> str:
    """Nothing but pictures within the page, and the one style whose hash this is."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
