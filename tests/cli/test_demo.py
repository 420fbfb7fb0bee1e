"""The demo: its table tells the truth, its files say the same, and the command line explains itself."""

import csv
import math
import subprocess
import sys
from dataclasses import astuple, replace

import pytest
import torch

from torchreg import L1, L2, __version__, sparsity, weights

pytest.importorskip("sklearn")
from sklearn.linear_model import Lasso, Ridge

from torchreg.cli import main
from torchreg.cli.demo import data as demo_data
from torchreg.cli.demo import run as demo
from torchreg.cli.demo.choices import DATA, OPTIMIZERS, PENALTIES, Options, recipes
from torchreg.cli.demo.linear import LINEAR_ALPHA, linear_table

PICTURES = ("weights.png", "boundaries.png", "geometry.png", "path.png")
# Where a hidden unit is dead, only the penalty moves its weights, by steps of one size; without momentum to carry
# them over, a few of them land on zero by cancellation. With momentum none stays there.
CARRIED = [name for name in OPTIMIZERS if name not in ("rmsprop", "adagrad", "adadelta")]


def train_all(options):
    data = demo_data.load(options)
    with demo.one_thread():
        return [demo.train(recipe, data, options, say=lambda line: None) for recipe in recipes(options)]


def facts(results):
    return [astuple(replace(r, model=None, seconds=0.0)) for r in results]


@pytest.mark.parametrize("data", DATA)
def test_table_files_and_models_agree(data, tmp_path, capsys):
    results = demo.run(Options(data=data, epochs=8, out=tmp_path))
    printed = capsys.readouterr().out
    none, l2, in_loss, prox, target = results
    assert target.zeros == math.ceil(0.9 * target.total)
    assert target.test_score > prox.test_score - 0.1
    assert none.zeros == l2.zeros == in_loss.zeros == 0
    assert prox.zeros > 0.05 * prox.total
    assert prox.norm < none.norm
    assert abs(prox.test_score - in_loss.test_score) < 0.1
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measure = "R^2" if data == "diabetes" else "accuracy"
    for r, row in zip(results, rows, strict=True):
        assert row["model"] == r.name
        assert float(row[f"test {measure}"]) == r.test_score
        assert (int(row["zeros"]), int(row["weights"])) == (r.zeros, r.total)
        assert sparsity(r.model).zeros == r.zeros
        flat = torch.cat([w.detach().flatten() for w in weights(r.model).values()])
        assert r.norm == pytest.approx(float(flat.norm()), rel=1e-5)
        (line,) = [x for x in printed.splitlines() if x.startswith(r.name + "  ")]
        for cell in (f"{r.train_score:.4f}", f"{r.test_score:.4f}", f"{r.zeros} of {r.total}", f"{r.norm:.2f}"):
            assert cell in line
    assert "epoch 8/8  loss" in printed
    assert "L1 weights" in printed
    assert "L2 weights" in printed
    check_pictures(tmp_path)


def check_pictures(folder):
    from matplotlib import image
    from matplotlib import pyplot as plt

    assert sorted(p.name for p in folder.glob("*.png")) == sorted(PICTURES)
    for name in PICTURES:
        pixels = image.imread(folder / name)
        assert min(pixels.shape[:2]) >= 600
        assert pixels.std() > 0.05, f"{name} is blank"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("data", DATA)
def test_every_penalty_gives_exact_zeros_by_prox_alone(data, penalty):
    none, l2, in_loss, prox, _ = train_all(Options(data=data, penalty=penalty, epochs=10 if data == "digits" else 15))
    assert none.zeros == l2.zeros == in_loss.zeros == 0
    assert prox.zeros > 0
    assert prox.total == in_loss.total


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_gives_exact_zeros_by_prox(optimizer):
    none, l2, in_loss, prox, target = train_all(Options(data="diabetes", optimizer=optimizer, epochs=15))
    assert none.zeros == l2.zeros == 0
    assert in_loss.zeros == 0 if optimizer in CARRIED else in_loss.zeros < 0.02 * in_loss.total
    assert prox.zeros > 0.05 * prox.total
    assert target.zeros == math.ceil(0.9 * target.total)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_at_alpha_zero_all_four_models_are_the_same(penalty):
    results = train_all(Options(data="diabetes", penalty=penalty, alpha=0.0, epochs=3))
    first = weights(results[0].model)
    for r in results[1:4]:
        for name, w in weights(r.model).items():
            assert torch.equal(w, first[name])


def test_a_seed_decides_everything_and_the_callers_state_stays():
    options = Options(data="breast_cancer", epochs=3)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train_all(options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    assert facts(train_all(options)) == facts(first)
    assert facts(train_all(replace(options, seed=1))) != facts(first)


def test_no_row_is_in_both_sets_and_constant_columns_are_gone():
    X = torch.arange(40.0).reshape(20, 2).double()
    X = torch.cat([X, torch.ones(20, 1).double()], 1)
    data = demo_data.split(X, torch.arange(20), 5, Options())
    assert sorted(torch.cat([data.y, data.y_test]).tolist()) == list(range(20))
    assert data.X.shape == (15, 2)
    assert data.X_test.shape == (5, 2)
    assert torch.allclose(data.X.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(data.X.var(0, correction=0), torch.ones(2))


def test_default_alpha_is_the_data_sets_and_the_penaltys():
    assert Options(data="diabetes").strength == DATA["diabetes"]
    assert Options(penalty="mcp").strength == DATA["digits"] * PENALTIES["mcp"].factor
    assert Options(penalty="mcp", alpha=0.25).strength == 0.25
    assert [r.penalty.alpha for r in recipes(Options(alpha=0.25))] == [0.0, 0.25, 0.25, 0.25, 0.25]


def test_linear_weights_are_scikit_learns():
    problem = demo_data.diabetes()
    X, y = problem.X.double(), problem.y.double()
    lasso = Lasso(LINEAR_ALPHA, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y)
    ridge = Ridge(2 * len(X) * LINEAR_ALPHA, fit_intercept=False).fit(X, y)
    l1, l2 = (problem.fit(p)[:, 0] for p in (L1(LINEAR_ALPHA), L2(LINEAR_ALPHA)))
    assert torch.allclose(l1, torch.as_tensor(lasso.coef_), atol=1e-8)
    assert torch.equal(l1 == 0, torch.as_tensor(lasso.coef_ == 0))
    assert torch.allclose(l2, torch.as_tensor(ridge.coef_), atol=1e-8)


def test_the_path_is_every_fit_at_once():
    problem, alphas = demo_data.diabetes(), torch.tensor([0.01, LINEAR_ALPHA, 1.0])
    path = problem.path(alphas)
    for alpha, coefs in zip(alphas.double(), path, strict=True):
        assert torch.allclose(coefs, problem.fit(L1(float(alpha)))[:, 0], atol=1e-12)
    assert bool((path[2] == 0).all()), "from alpha_max on all is zero"


def test_printed_linear_weights_are_zero_where_they_are_zero():
    problem = demo_data.diabetes()
    l1 = problem.fit(L1(LINEAR_ALPHA))[:, 0]
    rows = [line.split() for line in linear_table(problem).splitlines()[1:]]
    assert [row[0] for row in rows] == list(problem.names)
    assert [row[1] == "0" for row in rows] == (l1 == 0).tolist()
    assert all(row[2] != "0" for row in rows)


# --- the command line


def shell(code, *args):
    return subprocess.run([sys.executable, "-W", "error", *code, *args], capture_output=True, text=True, timeout=300)


def test_a_real_process_runs_the_demo(tmp_path):
    done = shell(["-m", "torchreg"], "demo", "--epochs", "2", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    assert "L1 by ProxOptimizer" in done.stdout
    assert done.stderr == ""
    check_pictures(tmp_path / "new" / "folder")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"torchreg {__version__}\n"


def without(module):
    return ["-c", f"import sys; sys.modules['{module}'] = None; from torchreg.cli import main; sys.exit(main())"]


def test_without_scikit_learn_it_names_the_extra(tmp_path):
    done = shell(without("sklearn"), "demo", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "pip install scikit-learn" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_matplotlib_it_names_the_extra_and_writes_the_numbers(tmp_path):
    done = shell(without("matplotlib"), "demo", "--data", "diabetes", "--epochs", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "No pictures" in done.stdout
    assert "pip install matplotlib" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_without_matplotlib_the_plots_name_the_extra():
    done = shell(["-c", "import sys; sys.modules['matplotlib'] = None; import torchreg; import torchreg.plots"])
    assert done.returncode == 1
    assert "ImportError: torchreg.plots needs matplotlib" in done.stderr
    assert "pip install matplotlib" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--data", "iris"], "choose from"),
        (["demo", "--penalty", "l3"], "choose from"),
        (["demo", "--optimizer", "lion"], "choose from"),
        (["demo", "--alpha", "-1"], "must be a finite number >= 0, got '-1'"),
        (["demo", "--alpha", "nan"], "must be a finite number >= 0, got 'nan'"),
        (["demo", "--alpha", "much"], "must be a finite number >= 0, got 'much'"),
        (["demo", "--lr", "0"], "must be a finite number > 0, got '0'"),
        (["demo", "--epochs", "0"], "must be a whole number >= 1, got '0'"),
        (["demo", "--epochs", "1.5"], "must be a whole number >= 1, got '1.5'"),
        (["demo", "--seed", "-3"], "a whole number from 0"),
        (["demo", "--device", "toaster"], "'toaster' cannot be used here"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", str(tmp_path / "taken")])
    assert stop.value.code == 2
    assert "File exists" in capsys.readouterr().err


def test_divergence_is_an_error_that_names_the_remedy(tmp_path, capsys):
    args = ["demo", "--data", "diabetes", "--optimizer", "sgd", "--lr", "1e6", "--epochs", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert "diverged" in (error := capsys.readouterr().err)
    assert "smaller --lr" in error


def test_on_a_device(tmp_path, accelerator):
    results = demo.run(Options(data="diabetes", epochs=5, device=str(accelerator), out=tmp_path))
    assert results[3].zeros > 0
    check_pictures(tmp_path)
