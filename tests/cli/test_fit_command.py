"""``torchreg fit``: its numbers are fit_path's, its files say the same, its errors say what to do."""

import csv
import hashlib
import json
import os
import platform
import pty
import re
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch

import torchreg
from torchreg import L1, L1L2, L2, MCP, SCAD, Group, labels, rows
from torchreg.cli import main
from torchreg.cli.fit import command as fit
from torchreg.cli.fit.options import FitOptions
from torchreg.linear.cv import fit_cv
from torchreg.linear.datafits import Logistic, Multinomial, Poisson
from torchreg.linear.path import fit_path

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("sklearn.datasets")

FILES = ("coefficients.csv", "path.png", "cv.png", "fit.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def diabetes(folder):
    bunch = datasets.load_diabetes(scaled=False, as_frame=True)
    bunch.frame.to_csv("diabetes.csv", index=False)
    return bunch.data.to_numpy(), bunch.target.to_numpy()


@pytest.fixture
def cancer(folder):
    bunch = datasets.load_breast_cancer(as_frame=True)
    frame = bunch.data.iloc[:, :8] / bunch.data.iloc[:, :8].std()
    frame.assign(finding=bunch.target_names[bunch.target]).to_csv("cancer.csv", index=False)
    return frame.to_numpy(), (bunch.target == 0).to_numpy().astype(float)  # malignant is 0 in the data


@pytest.fixture
def visits(folder):
    """Counts, two columns of text and one of weights."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(200, 3))
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    frame["region"], frame["sex"] = draw.choice(["north", "south", "east"], 200), draw.choice(["m", "f"], 200)
    frame["w"] = draw.integers(0, 4, 200)
    frame["visits"] = draw.poisson(np.exp(0.3 + 0.5 * X[:, 0] + 0.5 * (frame["region"] == "north")))
    frame.to_csv("visits.csv", index=False)
    return frame


def run(*args):
    """Run the command line, then read back what it wrote: coefficients by name, and the record."""
    assert main(["fit", *map(str, args)]) == 0
    return read()


def read(out="torchreg-fit"):
    with open(f"{out}/coefficients.csv", newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    with open(f"{out}/fit.json", encoding="utf-8") as file:
        record = json.load(file)
    return {name: np.array(values, dtype=float) for name, *values in table[1:]}, record


def refused(capsys, *args):
    """What the command line says before it exits with 2."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *map(str, args)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


# --- numbers


PENALTIES = {
    "l1": ([], L1(1.0)),
    "l2": ([], L2(1.0)),
    "l1l2": (["--l1-ratio", 0.3], L1L2(1.0, l1_ratio=0.3)),
    "mcp": ([], MCP(1.0)),
    "scad": ([], SCAD(1.0)),
    "group": ([], Group(L1(1.0), by=labels(torch.arange(10)))),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_with_alpha_coefficients_are_those_of_fit_path(name, diabetes):
    X, y = diabetes
    options, penalty = PENALTIES[name]
    coefs, record = run("diabetes.csv", "--target", "target", "--standardize", "--alpha", 2.5, "--penalty", name,
                        "--alphas", 6, *options)  # fmt: skip
    path = fit_path(X, y, penalty, alphas=[2.5], standardize=True, tol=1e-10)
    names = list(pandas.read_csv("diabetes.csv").columns[:-1])
    found = np.array([float(coefs[n][0]) for n in names])
    # within the default tolerance: relative gap 1e-6, so about 1e-3 in a coefficient of the standardised features
    assert np.abs((found - path.coefs[0].numpy()) * X.std(0)).max() < 2e-2
    assert record["alpha"] == 2.5
    assert record["converged"]
    assert record["objective"] == pytest.approx(float(path.objectives[0]), rel=2e-6)
    assert record["n_nonzero"] == np.count_nonzero(found)
    assert coefs["(intercept)"][0] == record["intercept"] == pytest.approx(float(path.intercepts[0]), abs=0.5)
    assert record["alpha_max"] == (None if name == "l2" else pytest.approx(path.alpha_max))


@pytest.mark.parametrize("rule", ["min", "1se"])
def test_cross_validation_is_that_of_fit_cv_on_shuffled_folds(rule, diabetes):
    X, y = diabetes
    coefs, record = run("diabetes.csv", "--target", "target", "--cv", 4, "--rule", rule, "--alphas", 20, "--seed", 3)
    order = np.random.default_rng(3).permutation(len(y))
    folds = [(np.delete(order, np.s_[k::4]), order[k::4]) for k in range(4)]
    expected = fit_cv(X, y, L1(1.0), cv=folds, alphas=20, rule=rule)
    assert record["alpha"] == pytest.approx(expected.alpha, rel=1e-12)
    found = record["cross_validation"]
    assert (found["folds"], found["rule"]) == (4, rule)
    for name in ("alpha_min", "alpha_1se"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-12)
    assert found["mean"] == pytest.approx(float(expected.mean[expected.index]), rel=1e-9)
    assert found["se"] == pytest.approx(float(expected.se[expected.index]), rel=1e-9)
    values = [float(coefs[name][0]) for name in pandas.read_csv("diabetes.csv").columns[:-1]]
    assert np.allclose(values, expected.best.coef, rtol=1e-8, atol=1e-10)


def test_five_folds_choose_alpha_unless_it_is_given(diabetes):
    _, record = run("diabetes.csv", "--target", "target", "--alphas", 10)
    assert record["cross_validation"]["folds"] == 5
    _, record = run("diabetes.csv", "--target", "target", "--alphas", 10, "--alpha", 1)
    assert record["cross_validation"] is None


def test_two_classes_are_logistic_in_the_order_of_their_names(cancer, capsys):
    X, y = cancer
    coefs, record = run("cancer.csv", "--target", "finding", "--alpha", 0.05, "--alphas", 4)
    path = fit_path(X, y, L1(1.0), datafit=Logistic(), alphas=[0.05], tol=1e-9)
    found = np.array([float(values[0]) for name, values in coefs.items() if name != "(intercept)"])
    expected = path.coefs[0].numpy()
    assert np.abs(np.sort(found) - np.sort(expected)).max() < 5e-3
    assert (record["task"], record["classes"]) == ("classification", ["benign", "malignant"])
    assert "log odds of malignant against benign" in capsys.readouterr().out


def test_each_fold_has_its_share_of_each_class(cancer):
    options = FitOptions("cancer.csv", "finding", cv=3)
    table = fit.read_table(options)
    task = fit.task_of(None, table.y, "finding")
    folds = fit._Fit(options, table, task).folds()
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(task.y)))
    for train, test in folds:
        assert not set(train) & set(test)
        assert abs((task.y[test] == 1).sum() - (task.y == 1).sum() / 3) < 1


def test_three_classes_have_a_column_each(folder):
    bunch = datasets.load_iris(as_frame=True)
    frame = bunch.data / bunch.data.std()
    frame.assign(kind=bunch.target_names[bunch.target]).to_csv("iris.csv", index=False)
    coefs, record = run("iris.csv", "--target", "kind", "--penalty", "group", "--alpha", 0.1, "--alphas", 3)
    path = fit_path(frame.to_numpy(), bunch.target.to_numpy(), Group(L1(1.0), by=rows), datafit=Multinomial(),
                    alphas=[0.1])  # fmt: skip
    found = np.array([coefs[name] for name in frame.columns])
    assert np.abs(found - path.coefs[0].numpy()).max() < 1e-2
    assert (found == 0).all(1).any()
    assert record["n_nonzero"] == (found != 0).any(1).sum()
    assert len(record["intercept"]) == 3
    with open("torchreg-fit/coefficients.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["feature", "setosa", "versicolor", "virginica"]


def test_counts_text_and_weights(visits):
    coefs, record = run("visits.csv", "--target", "visits", "--task", "count", "--one-hot", "--weights", "w",
                        "--alpha", 0.05, "--alphas", 4)  # fmt: skip
    names = ["a", "b", "c", "region=east", "region=north", "region=south", "sex=m"]
    columns = [visits[n] for n in "abc"]
    columns += [visits["region"] == level for level in ("east", "north", "south")] + [visits["sex"] == "m"]
    X = np.column_stack(columns).astype(float)
    path = fit_path(X, visits["visits"].to_numpy(), L1(1.0), datafit=Poisson(), alphas=[0.05],
                    sample_weight=visits["w"].to_numpy().copy(), tol=1e-9)  # fmt: skip
    assert set(coefs) == {"(intercept)", *names}
    assert np.abs([float(coefs[n][0]) for n in names] - path.coefs[0].numpy()).max() < 5e-3
    assert (record["n"], record["p"]) == (200, 7)


def test_groups_are_what_a_column_became(visits):
    """Levels of a column vanish together, and not each for itself."""
    coefs, _ = run("visits.csv", "--target", "visits", "--drop", "w", "--one-hot", "--penalty", "group", "--alphas", 30)
    region = [float(coefs[f"region={level}"][0]) for level in ("east", "north", "south")]
    assert 0.0 not in region
    assert float(coefs["b"][0]) == 0.0 or float(coefs["c"][0]) == 0.0 or float(coefs["sex=m"][0]) == 0.0
    table = fit.read_table(FitOptions("visits.csv", "visits", drop=("w",), one_hot=True))
    assert table.groups.tolist() == [0, 1, 2, 3, 3, 3, 4]


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.array([1.5, 2.5, 3.5]), "regression"),
        (np.array([1, 2, 3]), "regression"),
        (np.array([1, 2, 1]), "classification"),
        (np.array([True, False, True]), "classification"),
        (np.array(["a", "b", "a", "c", "b", "c"]), "classification"),
    ],
)
def test_the_task_is_told_from_the_target(y, task):
    assert fit.task_of(None, y, "y").name == task


def test_features_are_chosen_or_dropped(diabetes):
    coefs, _ = run("diabetes.csv", "--target", "target", "--features", "bmi, s5,bmi", "--alpha", 1, "--alphas", 3)
    assert set(coefs) == {"(intercept)", "bmi", "s5"}
    coefs, record = run("diabetes.csv", "--target", "target", "--drop", "s1,s2", "--alpha", 1, "--alphas", 3)
    assert record["p"] == 8
    assert not {"s1", "s2"} & set(coefs)


def test_alphas_beyond_the_path_and_zero(diabetes):
    X, y = diabetes
    coefs, record = run("diabetes.csv", "--target", "target", "--alpha", 1e6, "--alphas", 3)
    assert record["n_nonzero"] == 0
    assert coefs["(intercept)"][0] == pytest.approx(y.mean())
    coefs, _ = run("diabetes.csv", "--target", "target", "--alpha", 0, "--alphas", 3)
    plain = np.linalg.lstsq(np.c_[np.ones(len(X)), X], y, rcond=None)[0]
    names = list(pandas.read_csv("diabetes.csv").columns[:-1])
    assert np.allclose([float(coefs[n][0]) for n in names], plain[1:], rtol=1e-6)


def test_separators_and_quoted_names(folder):
    frame = pandas.DataFrame({"a, b": [1.0, 2.0, 3.0, 5.0], "c": [1.0, 0.0, 1.0, 1.0], "y": [1.0, 2.0, 3.5, 5.0]})
    for sep, name in (("\t", "tab"), (";", ";")):
        frame.to_csv("t.csv", index=False, sep=sep)
        coefs, _ = run("t.csv", "--target", "y", "--sep", name, "--drop", '"a, b"', "--alpha", 0.1, "--alphas", 2)
        assert set(coefs) == {"(intercept)", "c"}


# --- what is printed and written


def test_files_agree_with_each_other_and_with_what_is_printed(diabetes, capsys):
    coefs, record = run("diabetes.csv", "--target", "target", "--standardize", "--alphas", 20)
    printed = capsys.readouterr().out
    with open("torchreg-fit/fit.json", encoding="utf-8") as file:
        assert record == json.load(file, parse_constant=pytest.fail)
    assert record["versions"] == {
        "python": platform.python_version(), "torch": torch.__version__,
        "torchreg": torchreg.__version__, "numpy": np.__version__,
    }  # fmt: skip
    with open("diabetes.csv", "rb") as file:
        assert record["sha256"] == hashlib.sha256(file.read()).hexdigest()
    assert record["options"]["standardize"] is True
    assert record["options"]["data"] == "diabetes.csv"
    assert (record["n"], record["p"], record["task"]) == (442, 10, "regression")
    assert record["converged"]
    assert 0 <= record["duality_gap"] <= record["gap_allowed"]
    assert record["tolerance"] == 1e-6
    values = [float(v[0]) for name, v in coefs.items() if name != "(intercept)"]
    assert next(iter(coefs)) == "(intercept)"
    assert np.abs(values).tolist() == sorted(np.abs(values), reverse=True)
    zeros = values.count(0.0)
    assert record["n_nonzero"] == 10 - zeros
    assert f"{zeros} of 10 coefficients are exactly zero" in printed
    lines = printed.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("(intercept)")))
    for line, (name, value) in zip(lines[start:], list(coefs.items())[: 11 - zeros], strict=False):
        assert line.split() == [name, f"{float(value[0]):.6g}"]
    assert f"{record['alpha']:.6g}" in printed
    assert "Written to torchreg-fit: coefficients.csv, path.png, cv.png, fit.json" in printed
    assert sorted(os.listdir("torchreg-fit")) == sorted(record["files"]) == sorted(FILES)


def test_pictures_load_and_are_not_blank(diabetes):
    image = pytest.importorskip("matplotlib.image")
    from matplotlib import pyplot as plt

    run("diabetes.csv", "--target", "target", "--alphas", 15, "--out", "torchreg-fit")
    for name in ("path.png", "cv.png"):
        pixels = image.imread(f"torchreg-fit/{name}")
        assert min(pixels.shape[:2]) >= 600
        assert pixels.std() > 0.05
    assert plt.get_fignums() == []


def test_long_tables_are_cut_in_print_and_whole_in_the_file(folder, capsys):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(60, 50))
    frame = pandas.DataFrame(X, columns=[f"f{k}" for k in range(50)])
    frame.assign(y=X.sum(1)).to_csv("wide.csv", index=False)
    coefs, record = run("wide.csv", "--target", "y", "--alpha", 0.05, "--alphas", 4)
    printed = capsys.readouterr().out
    assert record["n_nonzero"] > 40
    assert len(re.findall(r"^f\d+ ", printed, flags=re.MULTILINE)) == 30
    assert f"... and {record['n_nonzero'] - 30} more, in coefficients.csv" in printed
    assert len(coefs) == 51


def test_only_its_own_files_are_overwritten_and_no_old_picture_stays(diabetes, capsys):
    os.mkdir("out")
    with open("out/notes.txt", "w", encoding="utf-8") as file:
        file.write("mine")
    main(["fit", "diabetes.csv", "--target", "target", "--alphas", "5", "--out", "out"])
    assert os.path.exists("out/cv.png")
    main(["fit", "diabetes.csv", "--target", "target", "--alphas", "5", "--out", "out", "--alpha", "3"])
    assert sorted(os.listdir("out")) == ["coefficients.csv", "fit.json", "notes.txt", "path.png"]
    assert "Removed out/cv.png, which was of an earlier run" in capsys.readouterr().out
    with open("out/notes.txt", encoding="utf-8") as file:
        assert file.read() == "mine"
    with open("out/cv.png", "w", encoding="utf-8") as file:
        file.write("not of a run that left a record")
    os.remove("out/fit.json")
    for _ in range(2):  # the second time there is a record, in which it does not stand
        main(["fit", "diabetes.csv", "--target", "target", "--alphas", "5", "--out", "out", "--alpha", "3"])
        assert os.path.exists("out/cv.png")
        assert "out/cv.png is not of this run" in capsys.readouterr().out


def test_a_seed_decides_everything_and_the_callers_state_stays(diabetes):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = run("diabetes.csv", "--target", "target", "--alphas", 10)
    again = run("diabetes.csv", "--target", "target", "--alphas", 10)
    assert first[1] == again[1]
    assert {k: v.tolist() for k, v in first[0].items()} == {k: v.tolist() for k, v in again[0].items()}
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], other)  # noqa: NPY002
    changed = run("diabetes.csv", "--target", "target", "--alphas", 10, "--seed", 1)
    assert changed[1]["cross_validation"] != first[1]["cross_validation"]


def test_units_that_differ_are_worth_a_note(cancer, visits, capsys):
    run("visits.csv", "--target", "visits", "--features", "a,b,c", "--alpha", 0.1, "--alphas", 2)
    assert "--standardize" not in capsys.readouterr().out
    pandas.read_csv("visits.csv").assign(a=lambda f: 100 * f.a).to_csv("units.csv", index=False)
    run("units.csv", "--target", "visits", "--features", "a,b,c", "--alpha", 0.1, "--alphas", 2)
    assert "--standardize makes the penalty treat them alike" in capsys.readouterr().out


def test_a_fit_that_did_not_converge_says_so(diabetes, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        return fit_path(*args, **kwargs, max_iter=1, tol=1e-18)  # below what rounding leaves

    monkeypatch.setattr(fit, "fit_path", stopped)
    _, record = run("diabetes.csv", "--target", "target", "--penalty", "group", "--alpha", 0.5, "--alphas", 3)
    assert not record["converged"]
    assert "NOT CONVERGED" in capsys.readouterr().out


@pytest.mark.parametrize("penalty", ["group", "mcp"])
def test_folds_that_did_not_converge_are_named(penalty, diabetes, monkeypatch, capsys):
    found = []

    def stopped(*args, **kwargs):
        found.append(fit_cv(*args, **kwargs, max_iter=1, tol=1e-18))  # below what rounding leaves
        return found[0]

    monkeypatch.setattr(fit, "fit_cv", stopped)
    _, record = run("diabetes.csv", "--target", "target", "--penalty", penalty, "--alphas", 5)
    lost = (~found[0].converged).nonzero().tolist()
    listed = record["cross_validation"]["not_converged"]
    alphas = found[0].alphas.tolist()
    assert 0 < len(lost) <= record["cross_validation"]["fits"] == 25
    assert [[each["fold"] - 1, alphas.index(each["alpha"])] for each in listed] == lost
    reached = "duality_gap" if penalty == "group" else "violation"
    assert all(each[reached] > each["allowed"] > 0 for each in listed)
    assert all((each["duality_gap"] is None) == (penalty == "mcp") for each in listed)
    printed = capsys.readouterr().out
    assert f"folds      {len(lost)} of 25 fits to training rows NOT CONVERGED" in printed
    assert f"{'duality gap' if penalty == 'group' else 'optimality violation'} " in printed
    assert "allowed; try --standardize, or a larger --alpha" in printed


def test_folds_that_converged_are_not_worth_a_line(diabetes, capsys):
    _, record = run("diabetes.csv", "--target", "target", "--alphas", 5)
    assert record["cross_validation"]["not_converged"] == []
    assert "NOT CONVERGED" not in capsys.readouterr().out


# --- errors


def frame(**columns):
    table = {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "y": [1.0, 2.0, 2.5, 4.0, 5.5, 6.0], **columns}
    pandas.DataFrame(table).to_csv("t.csv", index=False)


CITIES = ["Bern", "Bonn", "Bern", "Rome", "Bonn", "Rome"]
ERRORS = {
    "no target": ({}, ["--target", "z"], "--target 'z' is not a column; The columns are a,y."),
    "near": ({"income": range(6)}, ["--target", "incme"], "did you mean 'income'?"),
    "no feature": ({}, ["--target", "y", "--features", "a,b"], "--features 'b' is not a column"),
    "no drop": ({}, ["--target", "y", "--drop", "b"], "--drop 'b' is not a column"),
    "no weights": ({}, ["--target", "y", "--weights", "b"], "--weights 'b' is not a column"),
    "target twice": ({}, ["--target", "y", "--features", "a,y"], "'y' is the target or the weights"),
    "weights are the target": ({}, ["--target", "y", "--weights", "y"], "are the same column"),
    "text": (
        {"city": CITIES, "b": ["1", "2", "?", "4", "5", "6"]}, ["--target", "y"],
        "Not numeric: city (such as 'Bern'), b (such as '?'); say --one-hot to encode them, or --drop city,b.",
    ),
    "identifier": (
        {"id": list("uvwxyz")}, ["--target", "y", "--one-hot"],
        "Each of the 6 rows has its own value of 'id', such as 'u': an identifier explains nothing; --drop id.",
    ),
    "missing": (
        {"b": [1, None, None, 4, 5, 6], "c": [None, 1, 1, 1, 1, 1]}, ["--target", "y"],
        "Missing values, of 6 rows: b (2), c (1); fill them in, leave out their rows, or --drop the columns.",
    ),
    "missing target": ({"y": [1, 2, 3, 4, 5, None]}, ["--target", "y"], "Missing values, of 6 rows: y (1)"),
    "infinite": ({"b": [1, 2, 3, 4, 5, np.inf]}, ["--target", "y"], "Infinite values in b; correct them, or --drop"),
    "infinite target": ({"y": [1, 2, 3, 4, 5, np.inf]}, ["--target", "y"], "Infinite values in y"),
    "constant": ({"y": [3.5] * 6}, ["--target", "y"], "The target 'y' is constant, 3.5: there is nothing to explain."),
    "one class": ({"y": ["no"] * 6}, ["--target", "y"], "The target 'y' has one class, no"),
    "one number": ({"y": [1] * 6}, ["--target", "y", "--task", "classification"], "has one class, 1"),
    "text regression": (
        {"y": ["1", "2", "3", "4", "5", "six"]}, ["--target", "y", "--task", "regression"],
        "--task regression needs a numeric target, but 'y' is text, such as 'six'; use --task classification.",
    ),
    "negative count": (
        {"y": [1, 2, 3, 4, 5, -6]}, ["--target", "y", "--task", "count"], "Counts are >= 0, but 'y' has -6",
    ),
    "too many classes": (
        {}, ["--target", "y", "--task", "classification"], "6 distinct values in 6 rows, too many for classes",
    ),
    "negative weight": ({"w": [1, 1, 1, 1, 1, -1]}, ["--target", "y", "--weights", "w"], "must be finite, >= 0"),
    "no weight": ({"w": [0] * 6}, ["--target", "y", "--weights", "w"], "must be finite, >= 0 and not all 0"),
    "text weight": ({"w": CITIES}, ["--target", "y", "--weights", "w"], "--weights 'w' is not numeric, such as 'Bern'"),
    "folds": ({}, ["--target", "y", "--cv", "7"], "--cv must be between 2 and the number of rows, 6, got 7."),
    "separator": ({}, ["--target", "y", "--sep", ";"], "has one column, 'a,y'; is --sep ';' right?"),
    "nothing left": ({}, ["--target", "y", "--drop", "a"], "has no features left"),
    "share": (
        {}, ["--target", "y", "--l1-ratio", "0.5"], "--l1-ratio is for --penalty l1l2, but the penalty is l1.",
    ),
    "rule": ({}, ["--target", "y", "--rule", "1se", "--alpha", "1"], "leave out --alpha or --rule"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_data_that_cannot_be_fitted_says_why_and_what_to_do(case, folder, capsys):
    columns, args, message = case
    frame(**columns)
    assert message in refused(capsys, "t.csv", *args)
    assert not os.path.exists("torchreg-fit"), "nothing is written"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "cannot be read: No columns to parse"),
        (b"a,y\n", "has no rows"),
        (b"a,y\n1,2\n1,2,3,4\n", "cannot be read: "),
        (b"a,y\n\xff\xfe,2\n", "not a text file in UTF-8"),
        (b",a,y\n0,1,2\n1,2,3\n2,4,4\n", "A column has no name; row numbers? Say --drop 'Unnamed: 0'"),
    ],
    ids=["empty", "header", "ragged", "binary", "row numbers"],
)
def test_files_that_are_no_table(text, message, folder, capsys):
    with open("t.csv", "wb") as file:
        file.write(text)
    assert message in refused(capsys, "t.csv", "--target", "y")


def test_files_that_are_not_there_and_folders_that_cannot_be(folder, capsys):
    assert "No such file" in refused(capsys, "none.csv", "--target", "y")
    frame()
    open("taken", "w").close()
    assert "File exists" in refused(capsys, "t.csv", "--target", "y", "--out", "taken")


def test_the_data_is_never_overwritten(folder, capsys):
    frame()
    os.rename("t.csv", "coefficients.csv")
    error = refused(capsys, "coefficients.csv", "--target", "y", "--out", ".")
    assert "coefficients.csv would overwrite the data" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: DATA.csv, --target"),
        (["--alpha", "1", "--cv", "5"], "not allowed with argument"),
        (["--features", "a", "--drop", "b"], "not allowed with argument"),
        (["--penalty", "l7"], "choose from"),
        (["--task", "ranking"], "choose from"),
        (["--alpha", "-1"], "must be a finite number >= 0, got '-1'"),
        (["--cv", "1"], "must be a whole number >= 2, got '1'"),
        (["--l1-ratio", "2"], "must be a number from 0 to 1, got '2'"),
        (["--sep", "::"], "must be one character, or tab, got '::'"),
        (["--features", "a,,b"], "must be names with a comma between"),
        (["--features", ""], "must be names with a comma between"),
        (["--device", "toaster"], "'toaster' cannot be used here"),
        (["--alphas", "0"], "must be a whole number >= 1"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(args, message, capsys):
    assert message in refused(capsys, *(["t.csv", "--target", "y", *args] if args else []))


# --- in a process of its own


def shell(code, *args):
    return subprocess.run([sys.executable, "-W", "error", *code, *args], capture_output=True, text=True, timeout=300)


def without(*modules):
    gone = "; ".join(f"sys.modules['{module}'] = None" for module in modules)
    return ["-c", f"import sys; {gone}; from torchreg.cli import main; sys.exit(main())"]


def test_a_real_process_needs_no_scikit_learn_and_is_quiet(diabetes):
    args = ["fit", "diabetes.csv", "--target", "target", "--alphas", "10"]
    done = shell(without("sklearn"), *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "coefficients are exactly zero" in done.stdout
    assert sorted(os.listdir("torchreg-fit")) == sorted(FILES)


def test_on_a_terminal_it_shows_its_progress(diabetes):
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    args = ["-m", "torchreg", "fit", "diabetes.csv", "--target", "target", "--alphas", "10"]
    done = subprocess.run([sys.executable, *args], stdout=subprocess.PIPE, stderr=inner, timeout=300, check=True)
    os.close(inner)
    shown = os.read(outer, 1 << 16).decode()
    os.close(outer)
    assert "folds" in shown
    assert "fold" not in done.stdout.decode().replace("5-fold", "")


def test_without_pandas_it_names_the_extra(folder):
    frame()
    done = shell(without("pandas"), "fit", "t.csv", "--target", "y")
    assert done.returncode == 2
    assert "pip install pandas" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_matplotlib_it_names_the_extra_and_writes_the_numbers(folder):
    frame()
    done = shell(without("matplotlib"), "fit", "t.csv", "--target", "y", "--alpha", "0.1")
    assert done.returncode == 0, done.stderr
    assert "No pictures" in done.stdout
    assert "pip install matplotlib" in done.stdout
    assert sorted(os.listdir("torchreg-fit")) == ["coefficients.csv", "fit.json"]


def test_without_matplotlib_no_picture_of_an_earlier_run_stays_beside_new_numbers(folder):
    frame()
    main(["fit", "t.csv", "--target", "y", "--alphas", "5"])
    done = shell(without("matplotlib"), "fit", "t.csv", "--target", "y", "--alpha", "0.1")
    assert done.returncode == 0, done.stderr
    for name in ("path.png", "cv.png"):
        assert f"Removed {os.path.join('torchreg-fit', name)}, which was of an earlier run" in done.stdout
    assert sorted(os.listdir("torchreg-fit")) == ["coefficients.csv", "fit.json"]
    with open("torchreg-fit/path.png", "w", encoding="utf-8") as file:
        file.write("mine")
    done = shell(without("matplotlib"), "fit", "t.csv", "--target", "y", "--alpha", "0.1")
    assert f"{os.path.join('torchreg-fit', 'path.png')} is not of this run" in done.stdout
    with open("torchreg-fit/path.png", encoding="utf-8") as file:
        assert file.read() == "mine"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}'])
def test_a_record_that_cannot_be_read_claims_nothing(folder, text):
    frame()
    os.mkdir("torchreg-fit")
    for name, content in (("fit.json", text), ("cv.png", "mine")):
        with open(f"torchreg-fit/{name}", "w", encoding="utf-8") as file:
            file.write(content)
    run("t.csv", "--target", "y", "--alpha", 0.1, "--out", "torchreg-fit")
    assert os.path.exists("torchreg-fit/cv.png")


def test_help_shows_examples_files_and_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "torchreg fit diabetes.csv --target progression --standardize" in shown
    for name in (*FILES, "--one-hot", "--weights", "alpha sum |w|", "--penalty {l1,l2,l1l2,mcp,scad,group}"):
        assert name in shown
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "torchreg fit data.csv --target y" in capsys.readouterr().out


def test_on_a_device(diabetes, accelerator):
    coefs, record = run("diabetes.csv", "--target", "target", "--alpha", 1, "--alphas", 5)
    other, _ = run("diabetes.csv", "--target", "target", "--alpha", 1, "--alphas", 5, "--device", str(accelerator))
    assert record["converged"]
    for name, value in coefs.items():
        assert np.allclose(value, other[name], rtol=1e-6, atol=1e-8)
