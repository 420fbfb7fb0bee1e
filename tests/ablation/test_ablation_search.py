"""`search`: the crossing it finds, that no trial runs twice, and what it says where there is none."""

import math

import pytest

from torchreg import L1, L2
from torchreg.ablation import ablate, search
from torchreg.ablation.bisection import MeasuredAlpha, crossing

QUIET = {"progress": False}


def halving(penalty, seed, cell):
    """The sparsity is 0.9 at alpha = 1 / log10(2) on the average over seeds 0 and 1; each run leaves a mark."""
    with (cell.dir / "runs").open("a") as file:
        file.write("x")
    return {"sparsity": 1.0 - 0.5 ** (penalty.alpha) + 0.01 * (seed - 0.5), "test_sparsity": 0.5}


def runs(out):
    return [len(file.read_text()) for file in out.glob("cells/*/runs")]


@pytest.mark.parametrize("alphas", [None, (1e-3, 50.0), (1e-6, 1e6)])
def test_finds_the_strength_whose_mean_is_the_target(tmp_path, alphas):
    found = search(halving, L1(0.01), {"sparsity": 0.9}, seeds=(0, 1), alphas=alphas, tol=1e-3, out=tmp_path, **QUIET)
    assert found.converged
    assert abs(found.value - 0.9) <= 1e-3
    assert abs(1.0 - 0.5**found.alpha - 0.9) <= 1e-3 + 1e-12  # the mean over the seeds, up to its rounding
    assert found.sides == ((found.alpha, found.value),) * 2
    last = [row for row in found.trials if row["alpha"] == found.alpha]
    assert sum(row["sparsity"] for row in last) / 2 == pytest.approx(found.value, rel=1e-15)
    assert [row["seed"] for row in found.trials] == [0, 1] * (len(found.trials) // 2)
    assert len(found.ablation.rows) == len(found.trials)


def test_no_trial_runs_twice(tmp_path):
    first = {"tol": 0.05, "out": tmp_path, **QUIET}
    found = search(halving, L1(0.01), {"sparsity": 0.9}, **first)
    assert search(halving, L1(0.01), {"sparsity": 0.9}, **first).trials == found.trials
    finer = search(halving, L1(0.01), {"sparsity": 0.9}, tol=1e-3, out=tmp_path, **QUIET)
    assert finer.trials[: len(found.trials)] == found.trials
    assert len(finer.trials) > len(found.trials)
    ablate(halving, L1(0.01), [finer.alpha], out=tmp_path, **QUIET)
    assert runs(tmp_path) == [1] * len(finer.trials)


def test_after_an_interruption_it_goes_on(tmp_path):
    stop = tmp_path / "stop"
    stop.touch()

    def run(penalty, cell):
        if penalty.alpha > 1.0 and stop.exists():
            raise KeyboardInterrupt
        return halving(penalty, 0.5, cell)

    with pytest.raises(KeyboardInterrupt) as stopped:
        search(run, L1(0.01), {"sparsity": 0.9}, out=tmp_path / "out", **QUIET)
    assert "run the same line again" in stopped.value.__notes__[0]
    done = len(runs(tmp_path / "out"))
    stop.unlink()
    found = search(run, L1(0.01), {"sparsity": 0.9}, out=tmp_path / "out", **QUIET)
    assert found.converged
    assert 0 < done < len(found.trials)
    assert runs(tmp_path / "out") == [1] * len(found.trials)


def test_processes_serve_all_trials(tmp_path):
    found = search(halving, L1(0.1), {"sparsity": 0.9}, seeds=(0, 1), workers=1, out=tmp_path, **QUIET)
    assert found.converged
    assert len(list((tmp_path / "logs").iterdir())) == 1  # a log for each process


def test_a_falling_metric_and_an_axis(tmp_path):
    def run(penalty, width):
        return {"accuracy": width / (1.0 + penalty.alpha)}

    found = search(
        run, L2(30.0), {"accuracy": 0.5}, grid={"width": [2]}, tol=1e-6, max_trials=40, out=tmp_path, **QUIET
    )
    assert found.alpha == pytest.approx(3.0, rel=1e-5)  # accuracy's slope there is 1/8
    assert {row["width"] for row in found.trials} == {2}


def test_a_jump_over_the_target_is_told_with_both_sides(tmp_path):
    def run(penalty):
        return {"sparsity": 0.95 if penalty.alpha > math.pi else 0.5}

    with pytest.warns(
        RuntimeWarning, match=r"sparsity goes from 0\.5 at alpha=3\.14.* to 0\.95 at alpha=3\.14"
    ) as told:
        found = search(run, L1(1.0), {"sparsity": 0.9}, out=tmp_path, **QUIET)
    assert told[0].filename == __file__
    assert not found.converged
    (low, below), (high, above) = found.sides
    assert low <= math.pi < high < low * 1.001
    assert (below, above) == (0.5, 0.95)
    assert (found.alpha, found.value) == (high, 0.95)


def test_too_few_trials_are_told(tmp_path):
    with pytest.warns(RuntimeWarning, match="raise max_trials"):
        found = search(halving, L1(1.0), {"sparsity": 0.9}, tol=1e-9, max_trials=5, out=tmp_path, **QUIET)
    assert len(found.trials) == 5
    assert found.sides[0].value < 0.9 < found.sides[1].value


@pytest.mark.parametrize(
    ("run", "alphas", "told"),
    [
        (lambda penalty: {"m": 0.2}, None, "0.2 at alpha=.* and 0.2 at alpha=.* of 6 trials"),
        (lambda penalty: {"m": min(penalty.alpha, 0.4)}, None, "of 6 trials the nearest is 0.4"),
        (lambda penalty: {"m": min(penalty.alpha, 0.4)}, (0.1, 1.0), "not between 0.1 at alpha=0.1 and 0.4 at alpha=1"),
        (lambda penalty: {"m": math.exp(-(math.log(penalty.alpha) ** 2))}, (0.1, 10.0), "goes up and down"),
    ],
    ids=["constant", "saturated", "range", "hump"],
)
def test_a_target_out_of_reach_names_the_ends(tmp_path, run, alphas, told):
    with pytest.raises(RuntimeError, match=told):
        search(run, L1(0.1), {"m": 0.9}, alphas=alphas, max_trials=6, out=tmp_path, **QUIET)


def test_what_a_search_cannot_go_on_from(tmp_path):
    def run(penalty):
        if penalty.alpha > 1.0:
            raise OverflowError("weights are gone")
        return {"loss": math.nan if penalty.alpha > 0.1 else 0.0, "note": "x"}

    with pytest.raises(RuntimeError, match=r"failed at alpha=10: OverflowError: weights are gone"):
        search(run, L1(10.0), {"loss": 0.5}, out=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match=r"loss is nan at alpha=1, .* by alphas=\(low, high\)"):
        search(run, L1(1.0), {"loss": 0.5}, out=tmp_path, **QUIET)
    for metric in ("note", "other"):
        with pytest.raises(ValueError, match=f"no number called '{metric}', but loss, note"):
            search(run, L1(0.1), {metric: 0.5}, out=tmp_path, **QUIET)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"target": {"a": 1.0, "b": 2.0}}, "one metric with its value"),
        ({"target": {"sparsity": math.nan}}, "finite number, got nan"),
        ({"target": 0.9}, "one metric with its value"),
        ({"penalty": [L1(1.0), L2(1.0)]}, "of one penalty, got L1, L2"),
        ({"penalty": L1(0.0)}, "own alpha, got 0.0"),
        ({"alphas": (0.0, 1.0)}, "0 < low < high"),
        ({"alphas": (1.0, 0.1)}, "0 < low < high"),
        ({"tol": -1.0}, "tol must be >= 0"),
        ({"max_trials": 1}, "max_trials must be >= 2"),
        ({"grid": {"width": [1, 2]}}, "has 2 values"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_written(tmp_path, changed, told):
    arguments = {"penalty": L1(1.0), "target": {"sparsity": 0.9}, "out": tmp_path / "out"} | changed

    def run(penalty, width=1):
        return {"sparsity": 0.9}

    with pytest.raises(ValueError, match=told):
        search(run, progress=False, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_target_of_test_data_warns(tmp_path):
    with pytest.warns(UserWarning, match="'test_sparsity' is of test data") as told:
        search(halving, L1(1.0), {"test_sparsity": 0.5}, out=tmp_path, **QUIET)
    assert told[0].filename == __file__


def test_crossing_looks_on_both_sides_of_a_plateau():
    """Without a direction at its start, up and down in turn; each look is at a new strength."""
    looked = []

    def measure(alpha):
        looked.append(alpha)
        return 0.0 if alpha < 500.0 else 1.0

    low, high = crossing(measure, 0.5, tol=0.1, alphas=None, start=1.0, most=30)
    assert looked[:7] == [1.0, 10.0, 0.1, 100.0, 0.01, 1000.0, 316.227766017]  # then the middle of neighbours
    assert len(set(looked)) == len(looked)
    assert low.alpha < 500.0 <= high.alpha
    assert crossing(measure, 1.0, tol=0.0, alphas=None, start=600.0, most=1) == (MeasuredAlpha(600.0, 1.0),) * 2
