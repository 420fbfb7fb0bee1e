"""The report: what it says is what the rows say, and nothing that users wrote is more than text in it."""

import base64
import itertools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import ablations
import pytest
from ablations import ALPHAS, EVIL, ablation, grid, measured, row
from helpers import QUICK
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchreg.report import write_report
from torchreg.report.html import element, text

REMOTE = '"><img src=http://taken.invalid/a.png onerror="document.title=\'taken\'">'
SESSION = {
    "start": "2030-01-02T03:04:05Z", "end": None, "argv": ["train.py", f"--tag={EVIL}"],
    "directory": "/data/my project", "host": "node-7", "versions": {"torch": "9.8.7", "cuda": None},
    "git": {"commit": "abc123" * 6, "dirty": True}, "device": REMOTE,
}  # fmt: skip
MANIFEST = {
    "penalties": {name: {"type": name} for name in ("L1", EVIL)},
    "run": {"name": EVIL, "sha256": "0"},
    "grids": [{"penalties": ["L1", EVIL], "alphas": list(ALPHAS), "seeds": [0, 1], "axes": {}, "path": None}],
    "sessions": [SESSION | {"argv": ["first.py"], "git": None}, SESSION],
}
VOID = {"meta", "img"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Elements with their attributes, texts, and the cells of tables, of an HTML file."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words, self.cells = [], [], [], {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.cells[self.caption][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are nested"

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "caption":
            self.caption = data
        if {"td", "th"} & set(self.open):
            self.cells[self.caption][-1][-1] += data

    @property
    def said(self):
        return "\n".join(self.words)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def table(self, start):
        """Rows of the table whose caption begins so, as dicts."""
        (rows,) = (rows for caption, rows in self.cells.items() if caption.startswith(start))
        return [dict(zip(rows[0], cells, strict=True)) for cells in rows[1:]]


def hostile():
    rows = grid(("L1",)) + [
        row(EVIL, a, s, **measured(EVIL, a, s), **{EVIL: a + s, REMOTE: a * s}, note=EVIL)
        for a in ALPHAS for s in range(3)
    ]  # fmt: skip
    rows += [row(REMOTE, 0.1, 5, error=f"</pre>{EVIL}\x1b[31m\u202e{REMOTE}")]
    return ablation(rows, manifest=MANIFEST)


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    return write_report(hostile(), tmp_path_factory.mktemp("evil") / "report.html")


@pytest.fixture(scope="module")
def evil(evil_page):
    return Page(evil_page)


def written(tmp_path, of, **options):
    return Page(write_report(of, tmp_path / "report.html", **options))


# --- nothing is more than text


def test_there_is_nothing_that_could_run_or_be_fetched(evil):
    assert not {"script", "iframe", "object", "embed", "link", "form", "base", "svg", "video", "audio"} & {
        tag for tag, _ in evil.elements
    }
    for tag, attrs in evil.elements:
        assert not [name for name in attrs if name.startswith("on") or name in ("style", "srcset", "action")], tag
        assert attrs.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert attrs.get("href", "#").startswith("#")


def test_the_policy_forbids_all_but_pictures_within_and_the_one_style(evil):
    (policy,) = (attrs["content"] for attrs in evil.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", rules["style-src"])
    assert set(rules) == {"default-src", "img-src", "style-src", "base-uri", "form-action"}
    place = [attrs.get("http-equiv") for tag, attrs in evil.elements].index("Content-Security-Policy")
    assert {tag for tag, _ in evil.elements[:place]} <= {"html", "head", "meta"}, "it stands before all it governs"


def test_what_users_wrote_is_there_as_they_wrote_it(evil):
    for words in (EVIL, REMOTE, f"Ablation of {EVIL}", shlex.quote(f"--tag={EVIL}")):
        assert words in evil.said
    (failed,) = evil.table("Cells that failed")
    assert failed["error"] == f"</pre>{EVIL}\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}{REMOTE}"
    assert any(EVIL in attrs["alt"] for attrs in evil.all("img"))


def test_pictures_are_sound_and_ask_for_nothing(evil):
    pictures = [base64.b64decode(attrs["src"].partition(",")[2]) for attrs in evil.all("img")]
    assert len(pictures) >= 8
    for picture in pictures:
        for node in ElementTree.fromstring(picture).iter():
            assert not node.tag.endswith("}script")
            targets = [value for name, value in node.attrib.items() if name.endswith("href")]
            assert all(target.startswith(("#", "data:")) for target in targets)
            assert not [name for name in node.attrib if name.startswith("on")]


@QUICK
@given(st.text())
def test_any_text_comes_back_as_it_was_but_for_what_cannot_be_seen(words):
    class Reader(HTMLParser):
        found, attribute = "", None

        def handle_data(self, data):
            self.found += data

        def handle_starttag(self, tag, attrs):
            assert tag == "p"
            self.attribute = dict(attrs)["title"]

    reader = Reader()
    reader.feed(element("p", text(words), title=words))
    reader.close()
    unseen = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
    assert reader.found == reader.attribute == re.sub(unseen, "\N{REPLACEMENT CHARACTER}", words)


# --- what it says is what the rows say


def interval(values):
    mean, se = sum(values) / len(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * se
    return f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]"


@pytest.fixture(scope="module")
def rows():
    return [r for r in grid() if (r["penalty"], r["alpha"], r["seed"]) != ("MCP", 0.1, 2)] + [
        row("MCP", 0.1, 2, error="ValueError: diverged")
    ]


@pytest.fixture(scope="module")
def plain(rows, tmp_path_factory):
    return Page(write_report(ablation(rows), tmp_path_factory.mktemp("plain") / "report.html"))


def test_means_have_intervals_and_n(plain, rows):
    found = {(r["penalty"], float(r["alpha"])): r for r in plain.table("Mean over seeds")}
    assert set(found) == {(r["penalty"], r["alpha"]) for r in rows}
    for (penalty, alpha), shown in found.items():
        values = [measured(penalty, alpha, seed)["val_accuracy"] for seed in range(int(shown["n"]))]
        assert shown["val_accuracy"] == interval(values)
    assert (found["MCP", 0.1]["n"], found["MCP", 0.1]["n_failed"]) == ("2", "1")


def test_differences_are_of_equal_seeds(plain):
    found = {(r["penalty"], float(r["alpha"])): r for r in plain.table("Metric minus that of alpha = 0")}
    assert {alpha for _, alpha in found} == set(ALPHAS[1:])
    for (penalty, alpha), shown in found.items():
        losses = [[measured(penalty, a, s)["val_loss"] for a in (alpha, 0.0)] for s in range(int(shown["n"]))]
        assert shown["val_loss.diff"] == interval([strong - none for strong, none in losses])


def test_best_strengths_follow_the_direction_that_is_stated(plain):
    best = {(r["metric"], r["penalty"]): r for r in plain.table("Best mean by penalty")}
    for penalty in ("L1", "MCP"):
        means = {a: sum(measured(penalty, a, s)["val_accuracy"] for s in range(3)) / 3 for a in ALPHAS[:3]}
        top = max(means, key=means.get)
        for metric, words in (
            ("val_accuracy", f"highest {means[top]:.4g}"),
            ("val_loss", f"lowest {1 - means[top]:.4g}"),
        ):
            assert best[metric, penalty]["best mean"] == words
            assert float(best[metric, penalty]["at alpha"]) == top
    assert "Less is better of val_loss; more of the others." in plain.said


def test_the_caller_may_say_what_is_better(tmp_path, rows):
    page = written(tmp_path, ablation(rows), minimize=["val_accuracy"])
    assert "Less is better of val_accuracy; more of the others." in page.said
    assert {r["best mean"].split()[0] for r in page.table("Best mean") if r["metric"] == "val_accuracy"} == {"lowest"}
    with pytest.raises(ValueError, match=r"minimize has 'nope'.*val_accuracy"):
        written(tmp_path, ablation(rows), minimize=["nope"])


def test_metrics_of_test_data_choose_nothing(tmp_path):
    rows = [row(alpha=a, seed=s, val_score=a, test_score=a, sparsity=a) for a in ALPHAS for s in (0, 1)]
    page = written(tmp_path, ablation(rows))
    assert {r["metric"] for r in page.table("Best mean by penalty")} == {"val_score"}
    assert [caption for caption in page.cells if "Pareto" in caption] == [
        "Pareto front for more sparsity and more val_score, of means"
    ]
    assert "test_score against sparsity: means over seeds, with 95 % t-intervals." in page.said


def test_failed_cells_are_told_with_their_errors(plain):
    (failed,) = plain.table("Cells that failed")
    assert failed == {
        "penalty": "MCP", "alpha": "0.1", "seed": "2", "attempt": "1", "seconds": "0.5",
        "error": "ValueError: diverged",
    }  # fmt: skip
    assert "23 done, 1 failed" in plain.said


def test_the_record_and_how_to_reproduce(evil):
    for words in ("2030-01-02T03:04:05Z", "node-7", "torch 9.8.7", SESSION["git"]["commit"], "dirty true"):
        assert words in evil.said
    commands = [shlex.split(r["command"]) for r in evil.table("All 2 sessions")]
    assert commands == [["python", "first.py"], ["python", *SESSION["argv"]]]
    assert f"cd '/data/my project'\ngit checkout {SESSION['git']['commit']}" in evil.said
    assert "The files differed from that commit" in evil.said


ALL = {
    "Differences to alpha = 0", "Best strengths", "Pareto fronts", "Metrics against alpha", "Trade-offs",
    "Sparsity of layers",
}  # fmt: skip
CASES = {
    "one seed": (grid(seeds=1), ALL),
    "no baseline": (grid(alphas=(0.1, 1.0)), ALL),
    "baseline alone": (grid(alphas=(0.0,)), ALL - {"Metrics against alpha"}),
    "no numbers": ([row(alpha=a, word="x") for a in ALPHAS], set()),
    "all failed": ([row(alpha=a, error="boom") for a in ALPHAS], set()),
    "all diverged": (
        [row(alpha=a, val=math.nan, sparsity=1.0, layers={}) for a in ALPHAS],
        {"Differences to alpha = 0", "Metrics against alpha", "Trade-offs"},
    ),
}


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES)
def test_sections_are_those_that_the_rows_allow(tmp_path, rows, expected):
    page = written(tmp_path, ablation(rows))
    always = {"Means", "Failed cells", "Run record", "How to reproduce"}
    headings = [name for name in page.words if name in ALL | always]
    assert set(headings) == expected | always
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#{attrs['id']}" for attrs in page.all("h2")]
    assert len(headings) == 2 * len(links), "each is in the contents and above its section"


def test_missing_differences_are_explained(tmp_path):
    page = written(tmp_path, ablation(grid(alphas=(0.1, 1.0))))
    assert "No row that is ok has the baseline alpha=0" in page.said


def test_no_rows_no_report(tmp_path):
    with pytest.raises(ValueError, match="no rows yet"):
        write_report(ablation([]), tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


# --- readable by all


def test_headings_pictures_and_tables_can_be_read_without_seeing(evil):
    levels = [int(tag[1]) for tag, _ in evil.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert levels.count(1) == 1
    assert all(len(attrs["alt"]) > 20 for attrs in evil.all("img"))
    assert all(attrs["scope"] in ("row", "col") for attrs in evil.all("th"))
    assert len(evil.all("caption")) == len(evil.all("table"))
    assert evil.all("html") == [{"lang": "en"}]
    ids = [attrs["id"] for _, attrs in evil.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    scrolling = [attrs for attrs in evil.all("div") if attrs.get("class") == "scroll"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling), "keys can scroll them"


# --- the file


def test_an_earlier_report_stays_whole_if_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(ablation(grid(seeds=1)), path)
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["report.html"]


def test_who_reads_the_earlier_report_meanwhile_reads_all_of_it(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    with path.open() as reader:
        write_report(ablation(grid(("L1",), seeds=1)), path)
        assert reader.read() == "earlier"
    assert Page(path).all("h1")


def test_equal_results_give_equal_files_with_usual_rights(tmp_path):
    one, two = (write_report(ablation(grid(("L1",), seeds=2)), tmp_path / name) for name in ("a.html", "b.html"))
    assert one.read_bytes() == two.read_bytes()
    (tmp_path / "usual").touch()
    assert one.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(ablation(grid(seeds=1)), tmp_path / "none" / "report.html")


def test_without_matplotlib_there_are_tables_and_a_word_about_figures(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.path.insert(0, sys.argv[1])\n"
        "from ablations import ablation, grid; from torchreg.report import write_report"
        "\nwrite_report(ablation(grid()), sys.argv[2])"
    )
    path = tmp_path / "report.html"
    subprocess.run([sys.executable, "-c", code, str(Path(ablations.__file__).parent), str(path)], check=True)
    page = Page(path)
    assert "There are none: torchreg.plots needs matplotlib" in page.said
    assert not page.all("img")
    assert page.table("Mean over seeds")


# --- in a browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip
OWN = re.compile(r"https?://([a-z0-9-]+\.)*(google|googleapis|gvt1)\.com[/:]")  # the browser's, whatever it shows


def shown(path, folder):
    """The document after it has loaded, what stands on the console, and the addresses that were asked for."""
    log = folder / "net.json"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked = {
        url
        for url in re.findall(r'"url":"(https?://[^"]*)"', log.read_text(encoding="utf-8", errors="replace"))
        if not OWN.match(url)
    }
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], asked


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_runs_nothing_asks_for_nothing_and_complains_of_nothing(evil_page, tmp_path):
    document, console, asked = shown(evil_page, tmp_path)
    assert (console, asked) == ([], set())
    seen = tmp_path / "seen.html"
    seen.write_text(document, encoding="utf-8")
    page = Page(seen)
    assert not page.all("script")
    assert f"Ablation of {EVIL}" in page.words, "the title too, which the script would have changed"
    assert REMOTE in page.said


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_browser_would_have_told(tmp_path):
    """What the test above looks for is seen where it happens."""
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><title>a</title>{EVIL}<script>console.error('b')</script>{REMOTE}")
    document, console, asked = shown(page, tmp_path)
    assert "<title>taken</title>" in document
    assert len(console) == 1
    assert asked == {"http://taken.invalid/a.png"}
