"""How an ablation was made, for readers who want to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchreg.ablation.ledger.provenance import without_secrets
from torchreg.report.html import Html, definitions, element, join, table, text

if TYPE_CHECKING:
    from torchreg.ablation import Ablation

_UNKNOWN = "not recorded"
_READ = """from torchreg.ablation import Ablation
from torchreg.report import write_report

ablation = Ablation.load({directory!r})
write_report(ablation, "report.html")"""


def grid(ablation: Ablation) -> Html:
    """What was asked for."""
    grids = ablation.manifest.get("grids", ())
    asked = {name: [value for one in grids for value in one[name]] for name in ("penalties", "alphas", "seeds")}
    axes = {f"axis {name}": [v for one in grids for v in one["axes"].get(name, ())] for name in ablation.axes}
    return definitions((name, _listed(values)) for name, values in (asked | axes).items())


def record(ablation: Ablation) -> Html:
    """The last session in full, and a line for each if there were several."""
    sessions = ablation.manifest.get("sessions", ())
    if not sessions:
        return element("p", text("No session was recorded."))
    last = definitions((name, _told(value)) for name, value in {**sessions[-1], "argv": _argv(sessions[-1])}.items())
    if len(sessions) == 1:
        return last
    head = ("start", "end", "host", "commit", "command")
    body = [[text(one.get(name) or _UNKNOWN) for name in head[:3]] + [_commit(one), _command(one)] for one in sessions]
    return join([last, table(f"All {len(sessions)} sessions", head, body, numbers=frozenset())])


def reproduce(ablation: Ablation) -> Html:
    """The command of the last session, and how to read what is there."""
    sessions, parts = ablation.manifest.get("sessions", ()), []
    if sessions:
        git = sessions[-1].get("git") or {}
        folder = sessions[-1].get("directory")
        before = f"cd {shlex.quote(str(folder))}\n" if folder else ""
        before += f"git checkout {shlex.quote(str(git['commit']))}\n" if git.get("commit") else ""
        parts += [
            element("p", text(f"Run again; cells that are finished are not run twice.{_missing(git)}")),
            element("pre", element("code", text(before), _command(sessions[-1]))),
        ]
    if ablation.dir is not None:
        parts += [
            element("p", text("Read the results, and write this page again:")),
            element("pre", element("code", text(_READ.format(directory=str(ablation.dir))))),
        ]
    return join(parts)


def _missing(git: Mapping[str, Any]) -> str:
    """What the commit does not hold of the code that ran."""
    if git.get("tracked") is False:
        return " The function's file is not in that commit."
    return " The files differed from that commit, so that it alone does not suffice." if git.get("dirty") else ""


def _listed(values: Sequence[Any]) -> Html:
    """Each value once, in their order."""
    return text(", ".join(dict.fromkeys(map(_word, values))) or _UNKNOWN)


def _told(value: Any) -> Html:
    if isinstance(value, Mapping):
        return text(", ".join(f"{name} {_word(inner)}" for name, inner in value.items()))
    return text(_UNKNOWN if value is None else _word(value))


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _commit(session: Mapping[str, Any]) -> Html:
    git = session.get("git")
    if not git:
        return text(_UNKNOWN)
    other = ", without the function's file" if git.get("tracked") is False else " and changes" if git["dirty"] else ""
    return text(f"{git['commit'][:12]}{other}")


def _command(session: Mapping[str, Any]) -> Html:
    return text(shlex.join(["python", *_argv(session)]))


def _argv(session: Mapping[str, Any]) -> list[str]:
    return without_secrets([str(word) for word in session.get("argv", ())])
