"""The ledger: what a reader makes of files that are torn, odd or hostile, and what a writer leaves behind."""

import hashlib
import json
import os
import re
import signal
from functools import partial

import pytest
import torch
from ablation_runs import noted, quick

from torchreg import L1
from torchreg.ablation import Ablation, LedgerError, ablate, merge
from torchreg.ablation.json_values import loads
from torchreg.ablation.ledger import shard
from torchreg.ablation.ledger.manifest import FORMAT
from torchreg.ablation.ledger.reader import Reader
from torchreg.ablation.ledger.rows import cell_folder

ablate = partial(ablate, progress=False)


def shards(out):
    return sorted((out / "rows").iterdir())


def filled(out, log, alphas=(0.0, 0.1)):
    ablate(partial(quick, log=log), L1(1.0), alphas, out=out)
    (file,) = shards(out)
    return file


def test_a_torn_last_line_is_a_cell_that_did_not_run(out, log, monkeypatch):
    file = filled(out, log)
    whole = file.read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second, len(whole)):  # wherever the power went
        file.write_bytes(whole[:end])
        assert [row["alpha"] for row in Ablation.load(out).rows] == [0.0]
    file.write_bytes(whole[:second] + bytes(100))  # a file system that had made room and not yet written
    assert len(Ablation.load(out).rows) == 1
    monkeypatch.setattr(shard, "_token", "next")  # as of another process
    filled_again = ablate(partial(quick, log=log), L1(1.0), [0.0, 0.1], out=out)
    assert len(filled_again.rows) == 2
    assert len(noted(log)) == 3
    assert file.read_bytes() == whole[:second] + bytes(100)


ODD = {
    "no JSON": b"{",
    "a number": b"3",
    "a list": b"[1]",
    "no fields": b"{}",
    "a comment": b"# kept by hand",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "nothing": b"",
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_a_line_that_is_no_row_is_named_and_nothing_is_changed(line, out, log):
    file = filled(out, log)
    before = file.read_bytes()
    file.write_bytes(before + line + b"\n" + before)
    with pytest.raises(LedgerError, match=rf"Line 3 of .*{file.name} is no row"):
        Ablation.load(out)
    with pytest.raises(LedgerError, match="Line 3"):
        ablate(partial(quick, log=log), L1(1.0), [0.5], out=out)
    assert file.read_bytes() == before + line + b"\n" + before
    assert len(noted(log)) == 2


FIELDS = {
    "key": "../../etc", "penalty": 3, "alpha": "0.1", "seed": None, "axes": [], "mode": 1, "status": None,
    "metrics": "a", "seconds": "x", "attempt": 1.5, "source": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_another_kind_is_no_row(name, out, log):
    file = filled(out, log)
    row = json.loads(file.read_text().splitlines()[0])
    for odd in (row | {name: FIELDS[name]}, {k: v for k, v in row.items() if k != name}):
        file.write_text(json.dumps(odd) + "\n")
        with pytest.raises(LedgerError, match="Line 1"):
            Ablation.load(out)


@pytest.mark.parametrize("key", ["..", "../..", "/etc", "a/b", "", ".", "a\0b", "C:\\x", None, 3])
def test_a_key_leads_nowhere_else(key, out):
    with pytest.raises(LedgerError, match="which is none"):
        cell_folder(out, key)


def test_a_reader_reads_what_is_new_alone(out, log, monkeypatch):
    file = filled(out, log)
    whole = file.read_bytes()
    half = whole.index(b"\n") + 1
    source = loads(whole[:half])["source"]
    file.write_bytes(whole[: half + 20])
    reader = Reader(out, source)
    assert len(reader.rows()) == 1
    file.write_bytes(b" " * half + whole[half:])  # what was read is not looked at again, the torn line is
    assert [row["alpha"] for row in reader.rows().values()] == [0.0, 0.1]


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("taken_back", [True, False])
def test_ctrl_c_within_a_write_leaves_a_readable_ledger(taken_back, out, log, monkeypatch):
    """The signal comes when half a row is in the file; the same process, a notebook's, then goes on."""
    file = filled(out, log)

    def half(handle, data):
        os.write(handle, data[: len(data) // 2])
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_write", half)
        if not taken_back:
            patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(KeyboardInterrupt):
            shard.append(out, "x" * 100)
    ablate(partial(quick, log=log), L1(1.0), [0.0, 0.1, 0.2], out=out)
    assert len(Ablation.load(out).rows) == 3
    assert file in shards(out)


def test_a_short_write_is_written_on(out, log, monkeypatch):
    written = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written(file, data[:7]))
    filled(out, log)
    assert len(Ablation.load(out).rows) == 2


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(out, log):
    def run(penalty, seed):
        if seed == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return quick(penalty, seed, log)

    with pytest.raises(KeyboardInterrupt) as stopped:
        ablate(run, L1(1.0), [0.1], seeds=range(4), out=out)
    assert "run the same line again" in stopped.value.__notes__[0]
    assert str(out) in stopped.value.__notes__[0]
    assert len(Ablation.load(out).rows) == len(noted(log)) == 2
    assert Ablation.load(out).manifest["sessions"][-1]["end"] is not None


def test_a_later_format_is_neither_read_nor_written(out, log):
    file = filled(out, log)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    before = {p: p.read_bytes() for p in (file, out / "manifest.json")}
    for use in (lambda: Ablation.load(out), lambda: filled(out, log), lambda: merge(out.parent / "new", [out])):
        with pytest.raises(ValueError, match=f"has format {FORMAT + 1}.*update torchreg"):
            use()
    assert {p: p.read_bytes() for p in before} == before
    assert not (out.parent / "new").exists()


class Malice:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_ledger_is_executed(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(cell):
        cell.start()
        cell.save(torch.ones(2))
        return {"a": cell.alpha}

    rows = ablate(run, L1(1.0), [0.2, 0.3], path="descending", out=out).rows
    state = out / "cells" / rows[1]["key"] / "state.pt"
    torch.save(Malice(), state)
    state.with_suffix(".sha256").write_text(hashlib.sha256(state.read_bytes()).hexdigest())
    with pytest.warns(RuntimeWarning, match="UnpicklingError"):
        rows = ablate(run, L1(1.0), [0.1, 0.2, 0.3], path="descending", out=out).rows
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"]
    assert not (tmp_path / "executed").exists()
    for file in out.rglob("*.jsonl"):  # and text stays text
        text = re.sub(r',"sum":"\w+"', "", file.read_text())
        file.write_text(text.replace('"a":0.3', "\"a\":\"__import__('os').mkdir('executed')\""))
    assert Ablation.load(out).rows[0]["a"].startswith("__import__")
    assert not (tmp_path / "executed").exists()
