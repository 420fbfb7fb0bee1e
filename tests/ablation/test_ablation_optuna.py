"""`search_study` with a real Optuna study: what the study knows is what the ledger has."""

import math
from collections import Counter

import pytest

from torchreg import L1, L2
from torchreg.ablation import ablate, logspace, search_study

optuna = pytest.importorskip("optuna")
State = optuna.trial.TrialState

ALPHAS = (1e-4, 10.0)
GOALS = {"objectives": ("accuracy", "sparsity"), "alphas": ALPHAS, "progress": False}


def new_study(seed=0):
    return optuna.create_study(
        directions=["maximize", "maximize"], sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    )


def run(penalty, seed, cell):
    with (cell.dir / "runs").open("a") as file:
        file.write("x")
    sparsity = penalty.alpha / (1.0 + penalty.alpha)
    return {"accuracy": 1.0 - sparsity**2 + 0.01 * seed, "sparsity": sparsity, "test_accuracy": 0.5}


def runs(out):
    return [len(file.read_text()) for file in out.glob("cells/*/runs")]


def means(ablation):
    """Of both objectives by penalty and alpha."""
    found = {}
    for row in ablation.rows:
        found.setdefault((row["penalty"], row["alpha"]), []).append((row["accuracy"], row["sparsity"]))
    return {
        key: [math.fsum(column) / len(values) for column in zip(*values, strict=True)] for key, values in found.items()
    }


def told(study):
    """The same as the study has it."""
    return {(t.params["penalty"], float(f"{t.params['alpha']:.12g}")): t.values for t in study.trials if t.values}


def test_the_study_has_the_means_of_the_ledger(tmp_path):
    study = new_study()
    result = search_study(run, [L1(1.0), L2(1.0)], study, n_trials=12, seeds=range(3), out=tmp_path, **GOALS)
    assert {t.state for t in study.trials} == {State.COMPLETE}
    assert len(study.trials) == 12
    assert told(study) == means(result)
    assert all(ALPHAS[0] <= row["alpha"] <= ALPHAS[1] for row in result.rows)
    assert {row["penalty"] for row in result.rows} == {"L1", "L2"}
    assert runs(tmp_path) == [1] * 36
    best = {(t.params["penalty"], t.values[1]) for t in study.best_trials}
    assert len(best) >= 2  # accuracy falls as sparsity rises: a front, not a point


def test_a_study_in_memory_goes_on_from_the_ledger(tmp_path):
    """The sampler of the new study begins with the same numbers: what is known is not run again."""
    search_study(run, L1(1.0), new_study(), n_trials=5, out=tmp_path, **GOALS)
    study = new_study()
    result = search_study(run, L1(1.0), study, n_trials=9, out=tmp_path, **GOALS)
    assert len(result.rows) == 9
    assert told(study) == means(result)
    assert runs(tmp_path) == [1] * 9
    search_study(run, L1(1.0), study, n_trials=9, out=tmp_path, **GOALS)
    assert runs(tmp_path) == [1] * 9


def test_a_grid_feeds_it(tmp_path):
    """Rows of every seed and within the range; not those of other penalties, seeds, ranges or axes."""
    grid = ablate(
        run, [L1(1.0), L2(1.0)], logspace(1e-5, 1.0, 6, zero=True), seeds=range(2), out=tmp_path, progress=False
    )
    ablate(run, L1(1.0), [5.0], seeds=[0], out=tmp_path, progress=False)
    study = new_study()
    search_study(run, L1(1.0), study, n_trials=6, seeds=range(2), out=tmp_path, **GOALS)
    inside = {key: values for key, values in means(grid).items() if key[0] == "L1" and key[1] >= 1e-4}
    assert len(inside) == 5
    assert inside.items() <= told(study).items()
    assert len(study.trials) == 6


def test_trials_at_once_share_the_workers(tmp_path):
    study = new_study()
    result = search_study(run, L1(1.0), study, n_trials=7, at_once=3, workers=2, out=tmp_path, **GOALS)
    assert told(study) == means(result)
    assert len(study.trials) == 7
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_failed_cells_and_nan_are_failed_trials(tmp_path):
    def sometimes(penalty, seed, cell):
        if penalty.alpha > 1.0 and seed == 1:
            raise OverflowError("too much of it")
        return run(penalty, seed, cell) | ({"accuracy": math.nan} if penalty.alpha < 1e-3 else {})

    study = new_study()
    result = search_study(sometimes, L1(1.0), study, n_trials=20, seeds=range(2), out=tmp_path, **GOALS)
    states = Counter(t.state for t in study.trials)
    assert sum(states.values()) == 20
    assert states[State.FAIL] > 0
    assert states[State.FAIL] == sum(not 1e-3 <= t.params["alpha"] <= 1.0 for t in study.trials)
    assert {row["status"] for row in result.rows} == {"ok", "failed"}


def test_an_interruption_leaves_no_trial_running(tmp_path):
    def stopped(penalty):
        raise KeyboardInterrupt

    study = new_study()
    with pytest.raises(KeyboardInterrupt):
        search_study(stopped, L1(1.0), study, n_trials=4, at_once=2, out=tmp_path, **GOALS)
    assert [t.state for t in study.trials] == [State.FAIL] * 2


def test_bad_arguments(tmp_path):
    one = optuna.create_study(direction="maximize")
    with pytest.raises(ValueError, match=r"1 directions for the objectives \('accuracy', 'sparsity'\)"):
        search_study(run, L1(1.0), one, out=tmp_path / "out", **GOALS)
    with pytest.raises(ValueError, match="n_trials and at_once"):
        search_study(run, L1(1.0), new_study(), n_trials=0, out=tmp_path / "out", **GOALS)
    with pytest.raises(ValueError, match="0 < low < high"):
        search_study(run, L1(1.0), new_study(), out=tmp_path / "out", **(GOALS | {"alphas": (0.0, 1.0)}))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no number called 'speed'"):
        search_study(run, L1(1.0), one, out=tmp_path / "out", **(GOALS | {"objectives": ["speed"]}))
    assert [t.state for t in one.trials] == [State.FAIL]
    with pytest.warns(UserWarning, match="'test_accuracy' is of test data"):
        search_study(run, L1(1.0), one, n_trials=1, out=tmp_path / "out", **(GOALS | {"objectives": ["test_accuracy"]}))
