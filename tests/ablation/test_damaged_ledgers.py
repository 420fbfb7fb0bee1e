"""Ledgers whose bits have changed: nothing wrong enters a table, and every error names the file, and the line."""

import copy
import json
import random
import re
from contextlib import suppress
from functools import partial

import pytest
import torch

from torchreg import L1, L2
from torchreg.ablation import Ablation, LedgerError, ablate
from torchreg.ablation.ledger.reader import as_line

ablate = partial(ablate, progress=False)


def run(cell, lr):
    cell.report(0, loss=cell.alpha)
    return {"loss": cell.alpha + lr, "nan": float("nan"), "text": "ä"}


def trains(cell):
    start = cell.start()
    cell.save({"w": torch.arange(64.0) if start is None else start["w"] + 1.0})
    return {"first": 0.0 if start is None else float(start["w"][0])}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    out = tmp_path_factory.mktemp("sound") / "results"
    ablate(run, [L1(1.0), L2(1.0)], [0.0, 0.1], seeds=[0, 1], grid={"lr": [0.5, 1.0]}, out=out)
    return out


@pytest.fixture
def files(sound):
    """The ledger's files, put back as they were at the end."""
    before = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()}
    yield before
    for path, data in before.items():
        path.write_bytes(data)


def shard(sound):
    (file,) = (sound / "rows").iterdir()
    return file


def seen(ablation):
    return sorted(json.dumps(row, sort_keys=True) for row in ablation.rows)


def test_no_flipped_bit_of_a_row_is_taken_for_a_result(sound, files):
    file = shard(sound)
    whole, right = file.read_bytes(), seen(Ablation.load(sound))
    draw, refused = random.Random(0), 0
    for _ in range(300):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        number = whole[:place].count(b"\n") + 1
        found = told(lambda: seen(Ablation.load(sound)))
        if isinstance(found, str):
            assert re.search(rf"^Line {number} of .*{file.name} is no row", found)
            refused += 1
        elif place == len(whole) - 1:  # the end of the last line, which is then as one that was not written whole
            assert set(found) < set(right)
        else:  # the name of the checksum
            assert found == right
    assert refused > 290


def told(use):
    """What came back, or the words of the error."""
    try:
        return use()
    except (LedgerError, ValueError, FileNotFoundError) as error:
        return f"{error}"


def test_rows_without_a_checksum_and_rows_that_were_written_otherwise_are_read(sound, files):
    file, right = shard(sound), seen(Ablation.load(sound))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for write in (
        lambda row: json.dumps({k: v for k, v in row.items() if k != "sum"}),  # of an earlier version
        lambda row: json.dumps(row, indent=None, separators=(" , ", " : "), ensure_ascii=False),
    ):
        file.write_text("".join(f"{write(row)}\n" for row in lines))
        assert seen(Ablation.load(sound)) == right
    lines[0]["metrics"]["loss"] += 1.0
    file.write_text("".join(f"{json.dumps(row)}\n" for row in lines))
    with pytest.raises(LedgerError, match=r"Line 1 .*checksum"):
        Ablation.load(sound)


def test_a_state_that_was_changed_starts_nothing(out):
    ablate(trains, L1(1.0), [0.2], path="descending", out=out)
    (state,) = out.rglob("state.pt")
    whole = state.read_bytes()
    place = whole.index(torch.arange(64.0).numpy().tobytes()[8:64])
    state.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(LedgerError, match=r"state.pt, from which this cell starts, is not as it was saved"):
        ablate(trains, L1(1.0), [0.2, 0.1], path="descending", out=out)
    state.with_suffix(".sha256").unlink()  # as of an earlier version
    state.write_bytes(whole)
    rows = ablate(trains, L1(1.0), [0.2, 0.1], path="descending", out=out).rows
    assert [row["status"] for row in rows] == ["ok", "ok"]


ODD = (None, 3, -1, "x", "", [], {}, [[]], True, 0.5, {"$float": "nan"}, [None], ["x"], "removed")


def places(found, trail=()):
    """The way to every value in JSON."""
    yield trail
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for name, value in inner:
        yield from places(value, (*trail, name))


def changed(found, trail, odd):
    """With another value at a place, or without it."""
    if not trail:
        return odd
    found = copy.deepcopy(found)
    inner = found
    for name in trail[:-1]:
        inner = inner[name]
    if odd == "removed":
        del inner[trail[-1]]
    else:
        inner[trail[-1]] = odd
    return found


def used(out):
    """Everything that reads a ledger."""
    ablation = Ablation.load(out)
    _ = repr(ablation)
    for use in (ablation.summary, ablation.paired, ablation.curves, lambda: ablation.best("loss", rule="min")):
        with suppress(ValueError):  # of rows that are too few, or have no such metric
            use()
    ablation.to_jsonl(out.parent / "rows.jsonl")


def works_or_names(use, file, line=""):
    found = told(use)
    if isinstance(found, str):
        assert re.search(rf"{line}.*{re.escape(file.name)}", found, re.DOTALL), found


def test_whatever_a_manifest_says_it_is_read_or_named(sound, files):
    file = sound / "manifest.json"
    whole = json.loads(file.read_text())
    whole["sessions"] = whole["sessions"][:1]
    for trail in places(whole):
        if trail[:1] in (("penalties",), ("sessions",)) and len(trail) > 3:
            continue
        for odd in ODD:
            file.write_text(json.dumps(changed(whole, trail, odd)))
            works_or_names(lambda: used(sound), file)


@pytest.mark.parametrize("old", ['"penalties": {', '"grids": ['])
def test_a_manifest_that_nests_too_deep_is_named(sound, files, old):
    file = sound / "manifest.json"
    nested = f"{'[' * 900}{']' * 900}"
    new = {"{": f'"odd": {nested}, ', "[": f"{nested}, "}[old[-1]]
    file.write_text(file.read_text().replace(old, old + new, 1))
    with pytest.raises(LedgerError, match=r"manifest\.json is damaged: it nests .* more than 100 deep"):
        Ablation.load(sound)


def test_a_manifest_that_is_no_json_names_line_and_column(sound, files):
    file = sound / "manifest.json"
    file.write_text(file.read_text().replace('"grids"', "grids", 1))
    with pytest.raises(LedgerError, match=r"manifest.json is no manifest .*line \d+ column \d+"):
        Ablation.load(sound)
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(LedgerError, match=r"manifest\.json"):
        Ablation.load(sound)


def test_whatever_a_row_says_it_is_read_or_named(sound, files):
    file = shard(sound)
    first, *rest = file.read_text().splitlines()
    whole = json.loads(first)
    del whole["sum"]
    for trail in places(whole):
        for odd in ODD:
            file.write_text("\n".join((json.dumps(changed(whole, trail, odd)), *rest, "")))
            works_or_names(lambda: used(sound), file, "Line 1")


def test_whatever_a_curve_says_it_is_read_or_named(sound, files):
    file = sorted(sound.rglob("curve.jsonl"))[0]
    whole = json.loads(file.read_text())
    for trail in places(whole):
        for odd in ODD:
            file.write_text(json.dumps(changed(whole, trail, odd)) + "\n")
            works_or_names(lambda: used(sound), file, "Line 1")
    for line in ("{", "\x00", "[1]", '{"epoch": null, "loss": 1}', '{"epoch": [1], "loss": 1}'):
        file.write_text(f"{line}\n")
        with pytest.raises(LedgerError, match=rf"Line 1.*{re.escape(file.name)}"):
            Ablation.load(sound).curves()


def test_a_checksum_is_of_the_text():
    row = {"key": "a", "metrics": {"loss": 0.1, "nan": float("nan")}}
    lines = {as_line(row), as_line(row | {"key": "b"}), as_line({"metrics": row["metrics"], "key": "a"})}
    assert len({json.loads(line)["sum"] for line in lines}) == 3
