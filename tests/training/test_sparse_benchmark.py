"""The benchmark of sparse training does what its report says: exact counts, a fair search, an honest verdict."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sparse_report
import sparse_training
from sparse_methods import Job, norms, zeros_of
from sparse_peers import cubic
from sparse_report import PEERS
from sparse_tasks import TASKS
from sparse_trial import METHODS, TRIALS, Bench

from torchreg import columns


@pytest.fixture(autouse=True)
def surroundings():
    """The number of threads and the random state as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


def training_of(method, task, *, target, steps=24, setting=None):
    """A method at work on a task at seed 0, and the loss of its steps."""
    problem = TASKS[task].build(0, steps)
    job = Job(problem.model, TASKS[task].penalised(problem.model), TASKS[task].by, steps, 3e-3, target,
              METHODS[method].penalty(TASKS[task].by).with_alpha(1e-3), setting or {})  # fmt: skip
    training = METHODS[method].start(job)

    def step(k):
        training.optimizer.zero_grad()
        (problem.loss(k) + training.extra_loss(k)).backward()
        training.step(k)

    return training, step


def trained(method, task, *, target, steps=24, setting):
    training, step = training_of(method, task, target=target, steps=steps, setting=setting)
    for k in range(steps):
        step(k)
    return training


COUNTED = [
    (method, setting)
    for method in ("gradual", "one-shot", "loss", "rigl", "torchao-count")
    for setting in METHODS[method].settings
]


@pytest.mark.parametrize(("method", "setting"), COUNTED, ids=str)
@pytest.mark.parametrize(("task", "target"), [("digits-mlp", 0.9), ("digits-conv", 0.95), ("teacher", 0.925)])
def test_peers_reach_their_share_exactly(method, setting, task, target):
    if not METHODS[method].available():
        pytest.skip("torchao is not installed")
    found = trained(method, task, target=target, setting=setting).now()
    by = TASKS[task].by
    zeros, units = zeros_of(found, by)
    parts = [units] if setting.get("scope") != "layer" else [norms(w, by).numel() for w in found]
    assert zeros == sum(math.ceil(target * part) for part in parts)


@pytest.mark.parametrize("layers", ["uniform", "erk"])
@pytest.mark.parametrize("task", ["digits-mlp", "teacher"])
def test_rigl_keeps_its_count_and_moves(task, layers):
    training, step = training_of("rigl", task, target=0.9, steps=120, setting={"layers": layers, "drop": 0.3})
    total = sum(mask.numel() for mask in training.masks)
    kept, first = total - math.ceil(0.9 * total), [mask.clone() for mask in training.masks]
    each = [int(mask.sum()) for mask in first]
    for k in range(120):
        step(k)
        assert sum(int(mask.sum()) for mask in training.masks) == kept
        assert [int(mask.sum()) for mask in training.masks] == each  # within each layer too
        assert zeros_of(training.now(), TASKS[task].by)[0] >= total - kept  # nothing lives outside of the mask
    assert any((a != b).any() for a, b in zip(first, training.masks, strict=True))


def test_layers_by_the_erdos_renyi_kernel():
    training, _ = training_of("rigl", "digits-mlp", target=0.9, setting={"layers": "erk", "drop": 0.1})
    weights = list(training.job.weights.values())
    density = [float(mask.float().mean()) for mask in training.masks]
    kernel = [sum(w.shape) / w.numel() for w in weights]
    for w, one, share in zip(weights, density, kernel, strict=True):  # to the rounding of counts
        assert one / share == pytest.approx(density[0] / kernel[0], rel=2 / (one * w.numel()) + 1e-3)
    dense, _ = training_of("rigl", "digits-mlp", target=0.1, setting={"layers": "erk", "drop": 0.1})
    assert dense.masks[2].all()  # a layer has no more than all of its weights


def test_the_gradual_schedule_is_cubic():
    assert [cubic(k, 10, 20) for k in (0, 10, 20, 99)] == [0, 0, 1, 1]
    assert cubic(15, 10, 20) == 1 - 0.5**3


@pytest.mark.parametrize("slope", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("start", [1e-5, 1.0])
def test_the_search_finds_every_share_within_its_trials(slope, start, monkeypatch, tmp_path):
    def run(self, alphas, targets, settings, seeds):
        share = 1 / (1 + (alphas[0] / 3e-3) ** -slope)
        return [{"alpha": alphas[0], "zeros": share}]

    monkeypatch.setattr(Bench, "_run", run)
    bench = Bench("linear", "l1", tmp_path, (0,))
    monkeypatch.setitem(vars(bench), "_trial", replace(bench._trial, task=replace(TASKS["linear"], alpha=start)))
    tried = bench._search()
    assert len(tried) <= TRIALS
    for target in (0.9, 0.95):
        alpha = bench._alpha_for(target, tried)
        assert 1 / (1 + (alpha / 3e-3) ** -slope) == pytest.approx(target, abs=0.01)


def rows(method, scores, *, zeros=0.9):
    plain = {"task": "linear", "target": 0.9, "alpha": 0.0, "setting": {}, "val_score": 0.0, "flips": 0.0, "f1": None}
    return [
        {**plain, "method": method, "seed": k, "test_score": score, "zeros": zeros, "seconds": 1.0}
        for k, score in enumerate(scores)
    ]


def judged(tmp_path, *given):
    sparse_training.keep([row for some in given for row in some], tmp_path / "rows")
    return sparse_report.verdicts(sparse_report.load(tmp_path / "rows"))


OURS = rows("target", [0.5, 0.7, 0.6, 0.6, 0.6])
EQUAL = [rows(name, [0.5, 0.7, 0.6, 0.6, 0.6]) for name in PEERS]


def test_the_bar_is_judged_by_paired_differences(tmp_path):
    better = rows("l1", [0.51, 0.72, 0.61, 0.61, 0.61])  # by 0.01, 0.02, 0.01, ...: mean 0.012, standard error 0.002
    (line,) = judged(tmp_path / "a", OURS, better, *EQUAL)
    assert "missed: L1, constant by 0.0120 (standard error 0.0020)" in line
    noisy = rows("l1", [0.8, 0.5, 0.61, 0.6, 0.6])  # by 0.3, -0.2, 0.01, 0, 0: mean 0.022, standard error 0.08
    assert judged(tmp_path / "b", OURS, noisy, *EQUAL) == ["- linear, 90%: holds"]


def test_a_method_that_falls_short_competes_with_nobody(tmp_path):
    assert judged(tmp_path / "a", OURS, rows("l1", [0.9] * 5, zeros=0.88), *EQUAL) == ["- linear, 90%: holds"]
    short = [{**row, "zeros": 0.88} for row in OURS]
    (line,) = judged(tmp_path / "b", short, *EQUAL)
    assert "missed: not reached (0.880 zeros)" in line


def test_the_bar_holds_only_against_every_peer_with_five_seeds(tmp_path):
    (line,) = judged(tmp_path / "a", OURS)
    assert line.startswith("- linear, 90%: not judged: fewer than 5 seeds of ")
    assert all(METHODS[name].about in line for name in PEERS)
    few = [EQUAL[0][:4], *EQUAL[1:]]
    (line,) = judged(tmp_path / "b", OURS, *few)
    assert line == f"- linear, 90%: not judged: fewer than 5 seeds of {METHODS[PEERS[0]].about}"


def test_new_rows_take_the_place_of_old_ones(tmp_path):
    judged(tmp_path, OURS, rows("l1", [0.1, 0.2]))
    sparse_training.keep(rows("l1", [0.3]), tmp_path / "rows")
    kept = [json.loads(line) for line in (tmp_path / "rows" / "linear.jsonl").read_text().splitlines()]
    assert [(row["method"], row["test_score"]) for row in kept] == [
        *(("target", row["test_score"]) for row in OURS), ("l1", 0.3),
    ]  # fmt: skip


def test_one_command_runs_reports_and_does_nothing_twice(tmp_path, capsys):
    asked = ["--quick", "--workers", "0", "--tasks", "linear", "--methods", "dense", "gradual", "l1"]
    asked += ["--ledgers", str(tmp_path / "runs"), "--results", str(tmp_path)]

    def ledgers():
        return {path: path.read_text() for path in (tmp_path / "runs").rglob("*.jsonl")}

    assert sparse_training.main(asked) == 0
    before, report = ledgers(), (tmp_path / "sparse_training.md").read_text()
    assert sparse_training.main(asked) == 0
    assert ledgers() == before
    assert (tmp_path / "sparse_training.md").read_text() == report
    kept = [json.loads(line) for line in (tmp_path / "sparse_training" / "linear.jsonl").read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in kept] == [
        (m, k) for m in ("dense", "l1", "gradual") for k in (0, 1)
    ]
    assert all(row["zeros"] == 0.9 for row in kept if row["method"] == "gradual")
    assert "torch pruning, gradual" in report
    assert (tmp_path / "sparse_training.png").stat().st_size > 1000


def test_our_own_methods_act_on_the_task_s_own_units():
    for name, method in METHODS.items():
        if method.ours and method.available():
            training, step = training_of(name, "teacher", target=0.9)
            step(0)
            assert [w.shape for w in training.now()] == [(64, 200)], name
            if name not in ("dense", "l1-entries"):
                (part,) = training.optimizer.terms[0].parts
                assert part.penalty.groups is not None, name
    for method in ("target", "target-projection", "target-feedback", "target-magnitude"):
        zeros, units = zeros_of(trained(method, "teacher", target=0.9, setting={}).now(), columns)
        assert (zeros, units) == (180, 200)
