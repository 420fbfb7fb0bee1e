"""HTML that is escaped by construction: a checker tells `Html` from a string of the user's."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from typing import NewType

Html = NewType("Html", str)

_VOID = frozenset({"img", "meta"})
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def text(value: object) -> Html:
    """Anything as text.

    Control characters, halves of surrogate pairs and overrides of the writing direction, which could make text
    look like other text, are shown as U+FFFD.
    """
    return Html(html.escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def element(name: str, /, *children: Html, **attributes: str) -> Html:
    """An element; attributes are escaped, and a ``_`` at the end of their names is left out."""
    told = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{told}>" if name in _VOID else f"<{name}{told}>{join(children)}</{name}>")


def join(parts: Iterable[Html]) -> Html:
    """Parts one after the other."""
    return Html("".join(parts))


def table(caption: str, head: Sequence[str], body: Iterable[Sequence[Html]], *, numbers: frozenset[int]) -> Html:
    """A table that scrolls within itself where the page is narrow.

    Args:
        caption: above it.
        head: names of the columns.
        body: cells of each row; the first is the row's heading.
        numbers: which columns are aligned to the right.
    """
    looks = [{"class_": "number"} if k in numbers else {} for k in range(len(head))]
    top = join(element("th", text(name), scope="col", **look) for name, look in zip(head, looks, strict=True))
    rows = join(element("tr", _row(cells, looks)) for cells in body)
    whole = element(
        "table", element("caption", text(caption)), element("thead", element("tr", top)), element("tbody", rows)
    )
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _row(cells: Sequence[Html], looks: Sequence[dict[str, str]]) -> Html:
    first = element("th", cells[0], scope="row", **looks[0])
    return join([first, *(element("td", cell, **look) for cell, look in zip(cells[1:], looks[1:], strict=True))])


def definitions(pairs: Iterable[tuple[str, Html]]) -> Html:
    """Names and what they stand for."""
    return element("dl", join(join([element("dt", text(name)), element("dd", told)]) for name, told in pairs))


def figure(svg: bytes, caption: str, description: str) -> Html:
    """A picture within the page; as an image it is a world of its own, in which no script would run."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    picture = element("img", src=source, alt=description)
    return element("figure", picture, element("figcaption", text(caption)))
