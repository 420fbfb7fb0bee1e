"""Everything that a GPU can tell of torchreg: tests, steps, fits, each in a process with its own limit of time.

    benchmarks/gpu.sh [--out FOLDER] [--seconds 465] [--only PART ...] [--limit PART=SECONDS ...] [--tiny]

Needs a GPU, torch, numpy and pytest, no network; what else is missing is a line of the result. In FOLDER, by default
$OUT or benchmarks/results, one JSON and one Markdown file are named after the card and written anew after each part:
a part that fails or is stopped keeps what it measured until then, and the others run. The exit status is 1 if a part or
a measurement failed; a missed bar is no failure. `--tiny` rehearses it all on the CPU and the tests' pretended device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = {"tests": "gpu_tests.py", "steps": "optimizers_gpu.py", "fits": "fit_gpu.py"}
TITLES = {"tests": "Tests marked gpu", "steps": "Steps", "fits": "Fits"}
SHARES = {"tests": 0.36, "steps": 0.5, "fits": 1.0}  # of the time that is left
GRACE = 8.0  # seconds between a part's own end and its last


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.environ.get("OUT") or HERE / "results"
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seconds", type=float, default=465.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--limit", nargs="+", default=[], metavar="PART=SECONDS", help="in place of a share of the time"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU and the pretended device")
    chosen = parser.parse_args()
    try:
        chosen.limit = {part: float(seconds) for part, seconds in (text.split("=") for text in chosen.limit)}
    except ValueError:
        parser.error(f"--limit takes PART=SECONDS, got {' '.join(chosen.limit)}")
    if unknown := set(chosen.limit) - set(PARTS):
        parser.error(f"--limit knows {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return chosen


def run(part: str, seconds: float, tiny: bool, folder: Path) -> dict[str, Any]:
    """One part: how it ended, and its rows until then."""
    began, rows, log = time.monotonic(), folder / f"{part}.json", folder / f"{part}.log"
    devices = ["cpu", "fake"] if tiny else ["cuda"]
    command = [
        sys.executable,
        str(HERE / PARTS[part]),
        "--json",
        str(rows),
        "--seconds",
        str(max(1.0, seconds - GRACE)),
    ]
    command += ["--tiny"] * tiny + ["--devices", *(devices[1:] if part == "tests" and tiny else devices)]
    with log.open("w") as out:
        around = os.environ | {"TMPDIR": str(folder)}  # emptied here, whatever becomes of the part
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=around)
    try:
        code = process.wait(timeout=seconds)
        status = "ran" if code == 0 else f"failed: exit status {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after {seconds:.0f} s"
    finally:
        end(process)
    told = json.loads(rows.read_text()) if rows.exists() else {"rows": [], "environment": {}}
    found = {"status": status, "seconds": round(time.monotonic() - began, 1), **told}
    bad = status != "ran" or any(one["verdict"].startswith("failed") for one in told["rows"])
    text = log.read_text(errors="replace")
    print(text[-6000:] if bad else text, flush=True)
    return found | ({"log": text[-6000:]} if bad else {})


def end(process: subprocess.Popen) -> None:
    """The process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def name_of(card: str | None) -> str:
    """h100 of "NVIDIA H100 80GB HBM3"."""
    words = re.findall(r"[a-z0-9]+", (card or "unknown").lower())
    named = [w for w in words if re.fullmatch(r"[a-z]{1,2}\d+[a-z]?", w)]
    return named[0] if named else "-".join(w for w in words if w not in ("nvidia", "geforce"))


def card() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def roomy() -> Path | None:
    """Memory for the files by which scikit-learn's process gets the data, where there is enough."""
    shared = Path("/dev/shm")
    return shared if shared.exists() and shutil.disk_usage(shared).free > 12 * 2**30 else None


def write(found: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(found, indent=1) + "\n"), (".md", table(found))):
        stem.with_suffix(suffix).write_text(text)


def table(found: dict[str, Any]) -> str:
    environment = found["environment"]
    packages = environment.get("packages", {})
    missing = [name for name, version in packages.items() if version == "missing"]
    there = ", ".join(f"{name} {version}" for name, version in packages.items() if version != "missing")
    lines = [
        f"# torchreg on {found['card'] or 'no GPU'}" + (": a rehearsal, whose figures mean nothing" * found["tiny"]),
        "",
        f"Python {environment.get('python', '?')}, {there}; CUDA {environment.get('cuda')}, {environment.get('cores')} "
        f"cores, commit {found['commit'] or 'unknown'}. Not installed: {', '.join(missing) or 'nothing that is used'}.",
        "Made by `benchmarks/gpu.sh`, not by hand; the scripts say what is measured, and how.",
    ]
    for part, told in found["parts"].items():
        lines += ["", f"## {TITLES[part]}", "", f"{told['status']}, {told['seconds']:.0f} s", ""]
        lines += ["| what | found | bar | verdict | |", "|---|---|---|---|---|"]
        lines += [_line(one, found["tiny"]) for one in told["rows"]]
    return "\n".join(lines) + "\n"


def _line(one: dict[str, Any], tiny: bool) -> str:
    where = f" ({one['device']})" if tiny and "device" in one else ""
    value = f"{one['found']:g} {one['unit']}".strip() if "found" in one else ""
    cells = [one["what"] + where, value, one.get("bar", ""), one["verdict"], one.get("note", "")]
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main() -> int:
    chosen, began = options(), time.monotonic()
    found: dict[str, Any] = {"card": None if chosen.tiny else card(), "tiny": chosen.tiny, "commit": commit()}
    found |= {"environment": {}, "parts": {}}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the part that runs, too
    with tempfile.TemporaryDirectory(dir=roomy()) as folder:
        for part in chosen.only:
            left = chosen.seconds - (time.monotonic() - began)
            last = part == chosen.only[-1]
            seconds = chosen.limit.get(part, left * (1.0 if last else SHARES[part]))
            print(f"== {part}, at most {seconds:.0f} s", flush=True)
            told = run(part, seconds, chosen.tiny, Path(folder))
            found["environment"] |= told.pop("environment")
            found["card"] = found["card"] or found["environment"].get("card")
            found["parts"][part] = told
            stem = chosen.out / f"gpu-{'tiny' if chosen.tiny else name_of(found['card'])}"
            write(found, stem)
    print(f"written to {stem}.json and .md")
    rows = [one for told in found["parts"].values() for one in told["rows"]]
    ended = all(told["status"] == "ran" for told in found["parts"].values())
    return 0 if ended and not any(one["verdict"].startswith("failed") for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
