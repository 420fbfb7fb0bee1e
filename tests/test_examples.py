"""Each example runs as it stands, and does what its first lines promise."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples"
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


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_is_short_and_tested(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert f"test_{path.stem}" in globals()
