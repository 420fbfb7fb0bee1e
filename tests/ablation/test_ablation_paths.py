"""Warm starts along alphas: in order, resumed where they stopped, never mixed with other rows."""

from functools import partial

import pytest
import torch
from ablation_runs import noted, quick, warm

from torchreg import L1
from torchreg.ablation import Ablation, ablate

ablate = partial(ablate, progress=False)
ALPHAS = [0.1, 0.4, 0.2, 0.3]


def trails(found):
    return {row["alpha"]: row["trail"] for row in found.rows if row["mode"] == "path"}


@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_each_strength_starts_where_the_one_before_ended(direction, out, log):
    found = ablate(partial(warm, log=log), L1(1.0), ALPHAS, seeds=[0, 1], path=direction, out=out)
    order = sorted(ALPHAS, reverse=direction == "descending")
    assert noted(log) == [f"{alpha} {seed}" for seed in (0, 1) for alpha in order]
    assert trails(found) == {alpha: order[: k + 1] for k, alpha in enumerate(order)}
    assert {row["mode"] for row in found.rows} == {"path"}


def test_a_path_that_stops_goes_on_from_what_was_saved(out, log, tmp_path):
    def run(cell):
        if cell.alpha == 0.3 and not (tmp_path / "mended").exists():
            raise RuntimeError("stop")
        return warm(cell, log)

    with pytest.warns(RuntimeWarning, match="stop"):
        first = ablate(run, L1(1.0), ALPHAS, path="ascending", out=out)
    assert [(row["alpha"], row["status"]) for row in first.rows] == [(0.1, "ok"), (0.2, "ok"), (0.3, "failed")]
    (tmp_path / "mended").touch()
    whole = ablate(run, L1(1.0), ALPHAS, path="ascending", out=out)
    assert noted(log) == ["0.1 0", "0.2 0", "0.3 0", "0.4 0"]
    assert trails(whole)[0.4] == [0.1, 0.2, 0.3, 0.4]


def test_an_extension_at_the_end_runs_the_new_alone_and_an_insertion_what_follows(out, log):
    run = partial(warm, log=log)
    ablate(run, L1(1.0), [0.1, 0.3], path="ascending", out=out)
    longer = ablate(run, L1(1.0), [0.1, 0.3, 0.4], path="ascending", out=out)
    assert noted(log) == ["0.1 0", "0.3 0", "0.4 0"]
    assert trails(longer)[0.4] == [0.1, 0.3, 0.4]
    denser = ablate(run, L1(1.0), [0.1, 0.2, 0.3, 0.4], path="ascending", out=out)
    assert noted(log)[3:] == ["0.2 0", "0.3 0", "0.4 0"]
    assert trails(denser) == {0.1: [0.1], 0.2: [0.1, 0.2], 0.3: [0.1, 0.2, 0.3], 0.4: [0.1, 0.2, 0.3, 0.4]}
    assert len(denser.rows) == 4, "each strength once, as the last grid wants it"
    again = ablate(run, L1(1.0), [0.1, 0.2, 0.3, 0.4], path="ascending", out=out)
    assert len(noted(log)) == 6
    assert again.rows == denser.rows


def test_modes_live_side_by_side(out, log):
    def run(cell, penalty, seed):
        return warm(cell, log) | quick(penalty, seed, log)

    ablate(run, L1(1.0), [0.1, 0.2], out=out)
    ablate(run, L1(1.0), [0.1, 0.2], path="descending", out=out)
    found = ablate(run, L1(1.0), [0.1, 0.2], out=out)
    assert len(noted(log)) == 2 * (2 + 2)
    modes = {(row["mode"], row["alpha"]): row["trail"] for row in found.rows}
    assert modes == {
        ("independent", 0.1): [0.1], ("independent", 0.2): [0.2], ("path", 0.2): [0.2], ("path", 0.1): [0.2, 0.1],
    }  # fmt: skip


def test_a_run_that_saves_nothing_has_failed(out, tmp_path):
    def run(cell):
        if not (tmp_path / "forgets").exists():
            cell.save({"w": torch.ones(1)})
            (tmp_path / "forgets").touch()
            raise RuntimeError("after it has saved")
        return {"a": 1}

    for told in ("after it has saved", r"must call cell.save\(state\)"):  # an earlier try's state does not count
        with pytest.warns(RuntimeWarning, match=told):
            (row,) = ablate(run, L1(1.0), [0.1, 0.2], path="ascending", out=out).rows
        assert (row["alpha"], row["status"]) == (0.1, "failed")


def test_a_state_that_is_gone_says_so(out, log):
    run = partial(warm, log=log)
    ablate(run, L1(1.0), [0.1], path="ascending", out=out)
    next(out.rglob("state.pt")).unlink()
    with pytest.warns(RuntimeWarning, match=r"from which this cell starts, is gone"):
        ablate(run, L1(1.0), [0.1, 0.2], path="ascending", out=out)
    assert len(Ablation.load(out).rows) == 2
