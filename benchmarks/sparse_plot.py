"""The picture of the benchmark of sparse training: score against the share of zeros, a panel for each task."""

from __future__ import annotations

from pathlib import Path

from sparse_report import OURS, Group, Table, load
from sparse_tasks import TASKS
from sparse_trial import METHODS

from torchreg.plots.style import FAINT, INK, MARKERS, PALETTE

LEFT_OUT = ("target-projection", "target-feedback", "target-magnitude")  # the default is one of them


def front(groups: list[Group]) -> list[Group]:
    """Those that no other one beats in zeros and in score."""
    points = [(group.mean("zeros"), group.mean("test_score")) for group in groups]
    return [
        group
        for group, (zeros, score) in zip(groups, points, strict=True)
        if not any(z >= zeros and s >= score and (z, s) != (zeros, score) for z, s in points)
    ]


def _panel(ax: object, name: str, table: Table) -> dict[str, object]:
    drawn, shown = {}, [group for group in table.values() if group.method not in ("dense", *LEFT_OUT)]
    for k, method in enumerate(m for m in METHODS if m not in ("dense", *LEFT_OUT)):
        points = sorted((g.mean("zeros"), g.mean("test_score")) for g in shown if g.method == method)
        if points:
            style = {
                "color": PALETTE[k % len(PALETTE)],
                "marker": MARKERS[(k + 3 * (k // len(PALETTE))) % len(MARKERS)],
                "markersize": 4,
            }
            style |= {"linewidth": 2.5 if method == OURS else 1.0, "linestyle": "-" if METHODS[method].ours else ":"}
            drawn[METHODS[method].about] = ax.plot(*zip(*points, strict=True), **style)[0]
    best = front(shown)
    ax.plot(
        [g.mean("zeros") for g in best], [g.mean("test_score") for g in best], "o", markersize=10, fillstyle="none",
        color=INK,
    )  # fmt: skip
    scores = [g.mean("test_score") for g in shown]
    dense = table.get(("dense", 0.0))
    if dense:
        ax.axhline(dense.mean("test_score"), color=FAINT, zorder=0)
        scores.append(dense.mean("test_score"))
    low, top = sorted(scores)[len(scores) // 5], max(scores)  # the worst fifth may lie below the picture
    ax.set_ylim(low - 0.3 * (top - low) - 1e-3, top + 0.1 * (top - low) + 1e-3)
    ax.set_xlim(0.75, 1.0)
    ax.set_title(name)
    ax.set_ylabel(TASKS[name].score)
    ax.set_xlabel("share of zeros")
    return drawn


def write(folder: Path) -> Path:
    """Write ``sparse_training.png`` beside the folder of rows: the Pareto front ringed, the dense net a grey line."""
    from matplotlib.figure import Figure

    tasks = {name: table for name, table in load(folder).items() if name in TASKS}
    columns = min(4, max(1, len(tasks) + 1))
    rows = -(-(len(tasks) + 1) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained", dpi=90)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[str, object] = {}
    for ax, (name, table) in zip(axes, tasks.items(), strict=False):
        handles |= _panel(ax, name, table)
    for ax in axes[len(tasks) :]:
        ax.axis("off")
    axes[len(tasks)].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=8)
    path = folder.parent / "sparse_training.png"
    figure.savefig(path)
    return path
