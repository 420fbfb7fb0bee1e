"""The user's training function: what it asks for, and whether it can travel."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

Run = Callable[..., Mapping[str, Any]]


def arguments(run: Run, axes: Collection[str], n_seeds: int) -> tuple[str, ...]:
    """Which of ``penalty, seed, cell`` and the axes ``run`` takes by keyword.

    Raises:
        TypeError: if it cannot be called, or needs what is not offered.
        ValueError: if it would not see the penalty, an axis, or the seeds.
    """
    if not callable(run):
        raise TypeError(f"run must be a function that trains and returns metrics, got {run!r}.")
    offered = ("penalty", "seed", "cell", *axes)
    try:
        parameters = inspect.signature(run).parameters.values()
    except ValueError as error:
        raise TypeError(f"{title(run)} has no signature that Python can read; wrap it in a function.") from error
    taken = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return offered
    for p in taken:
        if p.default is p.empty and (p.kind is p.POSITIONAL_ONLY or p.name not in offered):
            raise TypeError(
                f"{title(run)} needs {p.name!r}, and is given by keyword only {', '.join(offered)}; "
                f"add grid={{{p.name!r}: [...]}}, or give it a default."
            )
    names = tuple(p.name for p in taken if p.name in offered and p.kind is not p.POSITIONAL_ONLY)
    if "cell" not in names:
        unseen = [axis for axis in axes if axis not in names]
        unseen += ["penalty"] if "penalty" not in names else []
        unseen += ["seed"] if "seed" not in names and n_seeds > 1 else []
        if unseen:
            raise ValueError(
                f"{title(run)} takes no {unseen[0]!r}, so it would change nothing; add it, or take `cell`."
            )
    return names


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name, or takes all; False where Python cannot read its signature."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def title(run: Run) -> str:
    """How messages call it."""
    inner = _inner(run)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def source_file(run: Run) -> str | None:
    """The file that defines it, None where there is none."""
    try:
        return inspect.getsourcefile(inspect.unwrap(_subject(run)))
    except TypeError:
        return None


def check_travels(run: Run) -> None:
    """See that ``run`` can be sent to another process, and that this is not one that is itself being started.

    Raises:
        TypeError: if it cannot be sent.
        RuntimeError: if a worker calls this while it imports the script that made it.
    """
    inner = _inner(run)
    main = sys.modules.get("__main__")
    importing = sys.modules.get("__mp_main__")  # a script as a new worker sees it, its main module once it is imported
    if importing is not main and getattr(importing, "__name__", None) == "__mp_main__":
        raise RuntimeError(
            "ablate was called by a worker that was only importing this script; call it under "
            "`if __name__ == '__main__':`, so that the script can be imported."
        )
    remedy = "put it at the top of a module and import it, or use workers=0 or RayExecutor()"
    file = getattr(main, "__file__", None)
    if getattr(inner, "__module__", None) == "__main__" and (file or "<stdin>") == "<stdin>":
        raise TypeError(f"{title(run)} was typed in a notebook or a shell, where workers cannot find it; {remedy}.")
    if file == "<stdin>":
        raise TypeError("Workers import the program that makes them, and cannot from standard input; put it in a file.")
    try:
        pickle.dumps(run)
    except Exception as error:
        raise TypeError(f"{title(run)} cannot be sent to workers ({error}); {remedy}.") from error


def _inner(run: Any) -> Any:
    while isinstance(run, functools.partial) or hasattr(run, "__func__"):
        run = run.func if isinstance(run, functools.partial) else run.__func__
    return run


def _subject(run: Any) -> Any:
    """What has a source text: the function, or the class of an object that is called."""
    inner = _inner(run)
    return inner if hasattr(inner, "__code__") else type(inner)
