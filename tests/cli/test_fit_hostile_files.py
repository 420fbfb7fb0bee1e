"""Damaged, ambiguous and malicious tables for ``torchreg fit``: an error that names the file, and nothing obeyed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pytest

from torchreg.cli import main

pytest.importorskip("pandas")

ROWS = [(k, k * k % 7, k % 5 + 0.5) for k in range(30)]
TEXT = "\n".join(["a,b,y", *(f"{a},{b},{y}" for a, b, y in ROWS), ""]).encode()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, TEXT)
    return file.getvalue()


ARCHIVES = {
    "gz": gzip.compress(TEXT), "bz2": bz2.compress(TEXT), "xz": lzma.compress(TEXT), "zip": _zip("data.csv"),
}  # fmt: skip


def fit(*arguments):
    return main(["fit", *map(str, arguments), "--target", "y", "--alpha", "0.1", "--out", "out"])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        fit(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("damage", ["none", "cut", "changed", "plain text", "empty"])
def test_an_archive_is_read_or_refused_by_name(kind, damage, folder, capsys):
    whole = ARCHIVES[kind]
    middle = len(whole) // 2
    data = {
        "none": whole, "cut": whole[:-20], "plain text": TEXT, "empty": b"",
        "changed": whole[: middle - 8] + bytes(byte ^ 0xFF for byte in whole[middle - 8 : middle]) + whole[middle:],
    }[damage]  # fmt: skip
    name = f"data.csv.{kind}"
    (folder / name).write_bytes(data)
    if damage == "none":
        assert fit(name) == 0
    else:
        assert name in refused(capsys, name)


@pytest.mark.parametrize("name", ["data.tar", "data.csv.tar.gz"])
def test_a_tar_archive_in_which_damage_would_go_unnoticed_is_refused(name, capsys):
    assert "unpack it" in refused(capsys, name)


@pytest.mark.parametrize("names", [(), ("a.csv", "b.csv")])
def test_an_archive_of_no_table_or_several_is_refused(names, folder, capsys):
    (folder / "data.zip").write_bytes(_zip(*names))
    assert "files found in ZIP" in refused(capsys, "data.zip")


@pytest.mark.parametrize(
    "data",
    [b"\0" * 200, TEXT.replace(b"3,2", b"\0,2"), TEXT.replace(b"3,2", b"3\0,2"), TEXT.replace(b"3,2", b'"3\0",2')],
)
def test_nuls_are_refused(data, folder, capsys):
    (folder / "data.csv").write_bytes(data)
    said = refused(capsys, "data.csv")
    assert "\0" not in said


def test_a_path_with_a_nul_is_refused(capsys):
    assert "null byte" in refused(capsys, "da\0ta.csv")


@pytest.mark.parametrize("header", ["y,b,y", "a,a,y"])
def test_two_columns_of_one_name_are_refused(header, folder, capsys):
    (folder / "data.csv").write_bytes(TEXT.replace(b"a,b,y", header.encode()))
    assert f"Two columns are called {header[0]!r}" in refused(capsys, "data.csv")


def test_a_column_that_looks_like_a_second_one_is_a_column(folder):
    (folder / "data.csv").write_bytes(TEXT.replace(b"a,b,y", b"y.1,b,y"))
    assert fit("data.csv") == 0


def test_rows_longer_than_the_header_are_refused_not_shifted(folder, capsys):
    (folder / "data.csv").write_text("\n".join(["a,b,y", *(f"{k},{k},{k * k % 5},{k % 3}" for k in range(30))]))
    assert "more values in its rows" in refused(capsys, "data.csv")


def test_names_cannot_write_to_the_terminal_or_become_formulas(folder, capsys):
    (folder / "data.csv").write_bytes(TEXT.replace(b"a,b,y", b"=1+1,b\x1b[2J\x07,y"))
    assert fit("data.csv", "--alpha", "0.0001") == 0
    said = capsys.readouterr().out
    assert not set(said) & {"\x1b", "\x07"}
    assert r"b\x1b[2J" in said
    with open("out/coefficients.csv", newline="", encoding="utf-8") as file:
        names = [row[0] for row in csv.reader(file)]
    assert sorted(names) == ["'=1+1", "(intercept)", r"b\x1b[2J\x07", "feature"]
    json.loads((folder / "out" / "fit.json").read_text())


def test_an_error_cannot_write_to_the_terminal(folder, capsys):
    (folder / "data.csv").write_bytes(TEXT.replace(b"3,2", b"\x1b[2Jx,2"))
    assert "\x1b" not in refused(capsys, "data.csv")
