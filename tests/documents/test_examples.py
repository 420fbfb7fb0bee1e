"""Each example runs as it stands, and does what its first lines promise."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[2] / "examples"
LONGEST = 80
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def surroundings():
    """One thread, since the problems are small, and the random state as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    """Run an example's main: what it returns, and what it prints."""

    def of(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        return module.main(), capsys.readouterr().out

    return of


def numbers(pattern, printed):
    """The numbers in the one line that the pattern describes."""
    (found,) = re.findall(pattern, printed, flags=re.MULTILINE)
    return [float(x) for x in ([found] if isinstance(found, str) else found)]


def test_training_loop(run):
    accuracy, printed = run("training_loop")
    assert accuracy > 0.9
    zeros, total, fraction = numbers(r"^total +(\d+) +(\d+) +([\d.]+)$", printed)
    assert total == 64 * 64 + 64 * 10
    assert fraction == pytest.approx(zeros / total, abs=1e-4)
    assert fraction > 0.5


def test_target_sparsity(run):
    accuracy, printed = run("target_sparsity")
    zeros, total, _ = numbers(r"^total +(\d+) +(\d+) +([\d.]+)$", printed)
    assert (zeros, total) == (15322, 17024)
    assert accuracy > 0.95
    assert "frozen" in printed


def test_feature_selection(run):
    (kept, right), printed = run("feature_selection")
    assert numbers(r"^(\d+) of 200 inputs kept, (\d+) of the 15 that matter$", printed) == [kept, right]
    assert kept == 15
    assert right >= 13


def test_smaller_network(run):
    (accuracy, difference), printed = run("smaller_network")
    assert accuracy > 0.9
    assert difference < 1e-4
    before, after, ratio = numbers(r"^parameters +([\d,]+) +([\d,]+) +([\d.]+)$", printed.replace(",", ""))
    assert ratio == pytest.approx(before / after, abs=0.01)
    assert ratio > 1.5


def test_two_of_four(run):
    accuracy, printed = run("two_of_four")
    assert accuracy > 0.9
    assert numbers(r"^total +(\d+) +(\d+) ", printed) == [8192, 16384]
    assert numbers(r"^at most (\d) of each four", printed) == [2]


def test_accelerate_training(run):
    pytest.importorskip("accelerate")
    accuracy, printed = run("accelerate_training")
    assert accuracy > 0.88
    assert numbers(r"^(\d+) steps, alpha ([\d.]+),", printed) == [480, 0.0005]
    assert numbers(r"^total +\d+ +\d+ +([\d.]+)$", printed)[0] > 0.4


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's use of torch's pytrees
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_training(run):
    pytest.importorskip("lightning")
    accuracy, printed = run("lightning_training")
    assert accuracy > 0.88
    assert "'penalty/alpha': 0.0005" in printed
    assert numbers(r"^total +\d+ +\d+ +([\d.]+)$", printed)[0] > 0.4


def test_transformers_trainer(run):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    share, printed = run("transformers_trainer")
    loss, told = numbers(r"^loss ([\d.]+), neurons without input ([\d.]+)%$", printed)
    assert loss < 0.1
    assert told == pytest.approx(100 * share, abs=0.1)
    assert share > 0.3


def test_per_layer_strengths(run):
    value, printed = run("per_layer_strengths")
    for line in (
        r"^0\.weight +\(64, 20\) +L2\(alpha=0\.001\) +0\.001$",
        r"^2\.weight +\(64, 64\) +L1\(alpha=0\.0001\) +0\.0001$",
        r"^4\.weight +\(1, 64\) +L1L2\(alpha=0\.0001, l1_ratio=0\.5\) +0\.0001$",
        r"^2\.bias +\(64,\) +L2\(alpha=0\.01\) +0\.01$",
    ):
        assert re.search(line, printed, flags=re.MULTILINE), line
    penalties = [float(x) for x in re.findall(r"penalty ([\d.]+)$", printed, flags=re.MULTILINE)]
    assert penalties == sorted(penalties, reverse=True)
    assert 0.0 < value == pytest.approx(penalties[-1], abs=1e-4)


def test_custom_penalty(run):
    kept, printed = run("custom_penalty")
    assert kept == 5
    assert numbers(r"^total +(\d+) +40 ", printed) == [35]
    (error,) = numbers(r"largest error of a true weight: ([\d.]+)$", printed)
    assert error < 0.05  # L1 would be off by its alpha; the noise alone makes about 0.02
    assert "tensor([[0.2000, 0.0000]])" in printed  # the unpenalised entry, and the one at zero
    assert re.search(r"\[0\.0000, 0\.0000\]\]\)$", printed.strip())  # the small row, as a whole


def test_fine_tuning(run):
    moved, printed = run("fine_tuning")
    assert 0.0 < moved < 0.6
    before, after = numbers(r"^accuracy on mirrored digits: ([\d.]+) before, ([\d.]+) after$", printed)
    assert after > before + 0.1


def test_million_features(run):
    kept, printed = run("million_features")
    shown, useful = numbers(r"^(\d+) of 1000000 features kept, (\d+) of the 20 that matter$", printed)
    assert shown == useful == kept  # all that it keeps are planted ones
    assert 15 <= kept <= 20
    assert numbers(r"^total +(\d+) +1000000 ", printed) == [1_000_000 - kept]


def test_out_of_core(run):
    kept, printed = run("out_of_core")
    data, chunk = numbers(r"^file of (\d+) MiB, chunks of (\d+) MiB$", printed)
    assert data > 30 * chunk
    (intercept,) = numbers(r"kept \[0, 1, 2, 3, 4\], intercept ([\d.]+)$", printed)
    assert kept == 5
    assert abs(intercept - 7.0) < 0.01  # the mean of the noise has deviation 0.002
    (gap,) = numbers(r"^largest relative duality gap: (.+)$", printed)
    assert gap < 1e-12
    (difference,) = numbers(r"coefficients differ by (.+) at most$", printed)
    assert difference < 1e-12


def test_tuned_strengths(run):
    ratio, printed = run("tuned_strengths")
    before, after, features = numbers(r"^test loss ([\d.]+) with one strength, ([\d.]+) with (\d+);", printed)
    assert ratio == pytest.approx(after / before, abs=1e-3)
    assert 1.0 < after < 0.95 * before  # the noise alone is 1
    steps = [[float(x) for x in re.findall(r"[\d.]+", line)] for line in printed.splitlines()[1:5]]
    assert [row[0] for row in steps] == [0, 20, 40, 60]
    tuning = [row[1] for row in steps]
    assert tuning == sorted(tuning, reverse=True)
    assert steps[0][4] == steps[0][5]  # one strength for all to begin with
    assert steps[-1][4] < 0.5 * steps[-1][5]  # in the end what matters is penalised less
    assert steps[-1][3] < steps[0][3] < features


def test_more_features_than_rows(run):
    worst, printed = run("more_features_than_rows")
    assert worst < 1e-9
    points, gap = numbers(r"^largest relative gap of (\d+) solutions: (.+)$", printed)
    assert points == 50
    assert gap == pytest.approx(worst, rel=0.1)
    table = [[float(x) for x in line.split()] for line in printed.splitlines()[1:9]]
    for _, nonzero, useful, ours, defined in table:
        assert useful <= min(nonzero, 10)
        assert abs(ours - defined) < 1e-12  # the definition cancels digits, ours does not
    assert table[0][1] == 0
    assert table[-1][1] > 100
    assert table[-1][2] == 10
    (ratio,) = numbers(r"takes ([\d.]+) times as long$", printed)
    assert ratio > 0.0  # how long depends on the machine


def test_one_se_rule(run):
    kept, printed = run("one_se_rule")
    table = [[float(x) for x in re.findall(r"[\d.]+", line[4:])] for line in printed.splitlines()[1:3]]
    (alpha, loss, se, many, tested), (stronger, worse, _, few, simple) = table
    assert kept == (many, few)
    assert few < many / 2
    assert stronger > alpha
    assert loss < worse <= loss + se + 1.0  # printed as whole numbers
    assert simple < 1.15 * tested
    assert len(re.search(r"^kept by 1se: (.+)$", printed, flags=re.MULTILINE)[1].split(", ")) == few
    (gap,) = numbers(r"null loss: (.+)$", printed)
    assert gap < 1e-9


def test_text(run):
    accuracy, printed = run("text")
    texts, words, share = numbers(r"^(\d+) functions, (\d+) words, ([\d.]+)% of", printed)
    assert texts > 500  # other versions of Python have other sources
    assert share < 5.0
    kept, gap = numbers(r"(\d+) words kept, largest relative gap (.+)$", printed)
    assert 10 < kept < words / 3
    assert gap < 1e-6
    right, larger = numbers(r"^test accuracy ([\d.]+), by the larger class alone ([\d.]+)$", printed)
    assert right == pytest.approx(accuracy, abs=1e-3)
    assert right > larger + 0.15
    assert "loop" in re.search(r"asyncio: (.+)$", printed, flags=re.MULTILINE)[1].split(", ")


def test_ablation(run):
    result, printed = run("ablation")
    assert result.status().done == len(result.rows) == 24
    assert repr(result.summary()) in printed
    zeros = {row["alpha"]: row["sparsity"] for row in result.summary()}
    assert zeros[0.0] == 0.0
    assert sorted(zeros.values()) == [zeros[alpha] for alpha in sorted(zeros)]


def test_alpha_for_sparsity(run):
    found, printed = run("alpha_for_sparsity")
    assert found.converged
    assert abs(found.value - 0.9) <= 0.01
    alpha, value = numbers(r"^alpha = ([\d.]+) makes ([\d.]+)% of the weights zero$", printed)
    assert (alpha, value) == (pytest.approx(found.alpha, abs=1e-6), pytest.approx(100.0 * found.value, abs=0.05))
    table = [[float(x) for x in re.findall(r"[\d.]+", line)] for line in printed.splitlines()[1:-1]]
    assert 3 * len(table) == len(found.trials)
    at = {strength: (zeros, right) for strength, zeros, right in table}
    assert [at[strength][0] for strength in sorted(at)] == sorted(zeros for zeros, _ in at.values())
    assert at[min(at)][1] > 0.85


def test_ablation_on_ray(run, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    result, printed = run("ablation_on_ray")
    assert not ray.is_initialized()  # what it started it has ended
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert len(printed.splitlines()) == 13  # its own lines, and none of Ray's
    assert sum(map(int, re.findall(r"\d+", printed.splitlines()[-1]))) == 12
    assert os.getpid() not in {row["pid"] for row in result.rows}
    zeros = {(row["penalty"], row["alpha"], row["seed"]): row["sparsity"] for row in result.rows}
    assert len(zeros) == 12
    for penalty, seed in {(penalty, seed) for penalty, _, seed in zeros}:
        assert zeros[penalty, 3e-3, seed] > zeros[penalty, 1e-4, seed]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_is_short_and_tested(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert f"test_{path.stem}" in globals()
