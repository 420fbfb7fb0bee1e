"""Every bar that a committed measurement was held to, met or missed, in one table.

    python benchmarks/bars.py   # reads benchmarks/results/*.json, writes benchmarks/results/bars.md

Run it after any other benchmark; a measurement without a bar is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness import RESULTS

FIGURES = ("ratio", "times faster", "milliseconds", "seconds", "found")


def held(found: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Records with a bar, wherever they stand in a result file, each with its name."""
    if isinstance(found, Mapping):
        if found.get("bar") is not None and found.get("verdict"):
            what = f"to a gap of {found['target']:g}, over {found['best_peer']}" if "target" in found else name
            yield str(found.get("what", what)), found
        else:
            for key, value in found.items():
                yield from held(value, key)
    elif isinstance(found, list):
        for value in found:
            yield from held(value, name)


def figure(record: Mapping[str, Any]) -> str:
    """What was measured, in the bar's unit."""
    value = next((record[key] for key in FIGURES if isinstance(record.get(key), (int, float, dict))), None)
    value = value.get("fused") if isinstance(value, dict) else value
    return "-" if value is None else f"{value:.4g}"


def main() -> None:
    lines, met = [], []
    for path in sorted(RESULTS.glob("*.json")):
        for name, record in held(json.loads(path.read_text())):
            met.append(record["verdict"] == "met")
            lines.append(f"| {path.stem} | {name} | {figure(record)} | {record['bar']:g} | {record['verdict']} |")
    head = ["# Bars", "", f"{sum(met)} of {len(met)} are met. A ratio is a time over that of the reference.", ""]
    table = ["| result file | what | measured | bar | |", "|---|---|---:|---:|---|", *lines, ""]
    (RESULTS / "bars.md").write_text("\n".join([*head, *table]))
    print(f"{sum(met)} of {len(met)} bars are met: {RESULTS / 'bars.md'}")


if __name__ == "__main__":
    main()
