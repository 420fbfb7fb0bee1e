"""fit_path on chunks of rows against fit_path on all rows at once, and against an independent judge."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from catalog import OwnLogSum
from linear_oracle import Blocks, Entries, Judge, certify
from test_fit_path_degenerate import ACCEPTED, DESIGNS, GAP
from test_fit_path_degenerate import BOTH as DEGENERATE
from torch.utils.data import DataLoader, TensorDataset

from torchreg import L1, L1L2, L2, MCP, Group, NonNegative, Weighted, labels, rows
from torchreg.linear import Huber, Logistic, Poisson, RowChunks, fit_cv, fit_path, refit, solve
from torchreg.linear.chunk_frame import framed_chunks
from torchreg.linear.datafits import Quadratic

CLOSE = 1e-10  # coefficients: rounding of moments times the design's condition, relative to the largest
ROUNDING = 1e-13  # objectives, relative to the null model's: sums in another order, and moments instead of rows
GAPS = 1e-12  # relative to the null model's: rounding of correlations times the coefficients' size
DRAWS = np.random.default_rng(3)


def data(n, p, outputs=None):
    X = DRAWS.standard_normal((n, p)) + 2.0 + np.linspace(0, 3, n)[:, None]  # chunks differ in their means
    effect = DRAWS.standard_normal((p, outputs or 1)) * (np.arange(p) < 6)[:, None]
    y = X @ effect + DRAWS.standard_normal((n, outputs or 1)) + 5.0
    return X, y if outputs else y[:, 0]


TALL, WIDE = (151, 20), (30, 48)
DATA = {(shape, outputs): data(*shape, outputs) for shape in (TALL, WIDE) for outputs in (None, 2)}
X, Y = DATA[TALL, None]
WEIGHTS = DRAWS.uniform(0.1, 3.0, len(X))


def factors(p, outputs):
    free = np.ones((p, outputs or 1))
    free[0], free[1], free[2] = 0.0, np.inf, 0.3
    return torch.as_tensor(free if outputs else free[:, 0])


PENALTIES = {
    "L1": lambda p, K: L1(1.0),
    "elastic net": lambda p, K: L1L2(1.0, 0.5),
    "weighted": lambda p, K: Weighted(L1(1.0), factors(p, K)),
    "weighted elastic net": lambda p, K: Weighted(L1L2(1.0, 0.8), factors(p, K)),
    "non-negative": lambda p, K: NonNegative(L1(1.0)),
    "groups": lambda p, K: Group(L1(1.0), labels(torch.arange(p) // 4)),
    "sparse groups": lambda p, K: Group(L1(1.0), labels(torch.arange(p) // 4)) + L1(0.5),
    "rows": lambda p, K: Group(L1(1.0), rows),
}
OPTIONS = [
    pytest.param(intercept, standard, id=f"{'intercept' if intercept else 'none'}-{'scaled' if standard else 'raw'}")
    for intercept in (True, False)
    for standard in (False, True)
]


def assert_same(mine, theirs, close=CLOSE, rounding=ROUNDING):
    """Two paths at the same strengths."""
    null, size = theirs.null_objective, float(theirs.coefs.abs().max())
    assert torch.equal(mine.converged, theirs.converged)
    assert mine.null_objective == pytest.approx(null, rel=ROUNDING)
    assert mine.alpha_max == pytest.approx(theirs.alpha_max, rel=ROUNDING)
    assert (mine.n_samples, mine.n_features) == (theirs.n_samples, theirs.n_features)
    for name, part in {"objectives": rounding, "losses": rounding, "dual_gaps": GAPS}.items():
        found, expected = getattr(mine, name), getattr(theirs, name)
        assert torch.allclose(found, expected, rtol=0.0, atol=part * null, equal_nan=True), name
    assert float((mine.coefs - theirs.coefs).abs().max()) <= close * size
    means = 10.0 * size * theirs.n_features  # of columns: what an intercept adds up
    assert float((mine.intercepts - theirs.intercepts).abs().max()) <= close * max(1.0, means)


def chunked(X, y, penalty, *, size=17, sample_weight=None, **options):
    return fit_path(RowChunks(X, y, sample_weight=sample_weight, size=size), None, penalty, **options)


# --- the same as all rows at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(("intercept", "standard"), OPTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("outputs", [None, 2], ids=["one", "two"])
def test_every_convex_penalty_with_every_option(name, intercept, standard, weighted, outputs):
    for shape in (TALL, WIDE):
        x, y = DATA[shape, outputs]
        weights = WEIGHTS[: len(x)] if weighted else None
        options = {"alphas": 8, "eps": 0.02, "tol": 1e-11, "fit_intercept": intercept, "standardize": standard}
        penalty = PENALTIES[name](shape[1], outputs)
        whole = fit_path(x, y, penalty, sample_weight=weights, **options)
        parts = chunked(x, y, penalty, sample_weight=weights, **options)
        assert_same(parts, whole)


@pytest.mark.parametrize(("intercept", "standard"), OPTIONS)
@pytest.mark.parametrize("outputs", [None, 2])
def test_ridge(intercept, standard, outputs):
    x, y = DATA[TALL, outputs]
    options = {"alphas": [1.0, 0.1, 0.001, 0.0], "fit_intercept": intercept, "standardize": standard}
    assert_same(chunked(x, y, L2(1.0), **options), fit_path(x, y, L2(1.0), **options))


@pytest.mark.parametrize("penalty", [MCP(1.0, gamma=3.0), Group(MCP(1.0, gamma=3.0), rows), OwnLogSum(1.0)], ids=repr)
@pytest.mark.parametrize("intercept", [True, False])
def test_penalties_that_are_not_convex_one_of_them_a_users_own(penalty, intercept):
    x = X - X.mean(0) + 0.1  # far from zero the iteration takes long without an intercept
    options = {"alphas": [2.0, 0.5, 0.1], "tol": 1e-11, "fit_intercept": intercept}
    whole, parts = fit_path(x, Y, penalty, **options), chunked(x, Y, penalty, **options)
    assert bool(whole.converged.all())
    assert_same(parts, whole, 1e-8, 1e-10)  # both stop within the tolerance


@pytest.mark.parametrize("size", [1, 2, 50, 150, 151, 1000])
def test_the_size_and_the_order_of_chunks_do_not_matter(size):
    whole = fit_path(X, Y, L1(1.0), alphas=8)
    assert_same(chunked(X, Y, L1(1.0), alphas=8, size=size), whole)
    assert_same(fit_path(list(RowChunks(X, Y, size=size))[::-1], None, L1(1.0), alphas=8), whole)


def test_a_start_is_in_the_coordinates_of_the_data():
    whole = fit_path(X, Y, L1(1.0), alphas=5, standardize=True)
    start = (whole.coef(3), whole.intercepts[3])
    again = chunked(X, Y, L1(1.0), alphas=whole.alphas[3:4], standardize=True, init=start)
    assert float((again.coef(0) - whole.coef(3)).abs().max()) <= CLOSE


# --- against the judge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_certificates_are_true(intercept, weights):
    judge = Judge(X, Y, weights=weights, fit_intercept=intercept)
    options = {"sample_weight": weights, "fit_intercept": intercept, "alphas": 10, "eps": 1e-4, "tol": 1e-11}
    groups = np.arange(X.shape[1]) // 4
    certify(chunked(X, Y, L1(1.0), **options), judge, Entries)
    certify(chunked(X, Y, NonNegative(L1(1.0)), **options), judge, lambda a: Entries(a, 0.0, 0.0))
    certify(chunked(X, Y, L1L2(1.0, 0.5), **options), judge, lambda a: Entries(a / 2, a / 2))
    path = chunked(X, Y, Group(L1(1.0), labels(torch.tensor(groups)), weights=1.0), **options)
    certify(path, judge, lambda a: Blocks(groups, np.full(5, a)))


def test_a_target_that_is_explained_to_the_last_digit_has_a_true_gap():
    y = X[:, :3].sum(1)  # the loss falls to 1e-9 of the null model's: what is left of it by moments is rounding
    judge = Judge(X, y)
    certify(chunked(X, y, L1(1.0), alphas=10, eps=1e-4), judge, Entries)


@pytest.mark.parametrize("mean", [1e4, 1e7])
def test_means_far_from_zero_cost_no_more_digits_than_the_data_has(mean):
    judge = Judge(X + mean, Y + mean)
    rounding = 1e-12 + 1e-15 * mean  # columns are rounded at 2e-16 of their mean
    certify(chunked(X + mean, Y + mean, L1(1.0), alphas=8, eps=0.01), judge, Entries, rounding=rounding)


# --- degenerate data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DESIGNS))
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("which", ["tall", "wide"])
def test_designs_that_are_degenerate(name, intercept, which):
    x, y = DEGENERATE[which]
    x = DESIGNS[name](x)
    path = chunked(x, y, L1(1.0), size=13, alphas=8, fit_intercept=intercept)
    gap = ACCEPTED if name.startswith("nearly") else GAP  # as of plain data, in test_fit_path_degenerate
    gap = 10 * GAP if name == "means 1e8" and not intercept else gap  # what differs is in the last eight digits
    certify(path, Judge(x, y, fit_intercept=intercept), Entries, gap=gap, rounding=1e-11)
    assert bool(path.converged.all())
    at_the_top = chunked(x, y, L1(1.0), size=13, alphas=[path.alpha_max], fit_intercept=intercept)
    assert not bool(at_the_top.coefs.any())


CONSTANT = np.where(np.arange(X.shape[1]) % 3 == 0, 1e6 / 3, X)
TWICE = np.concatenate([X, X, X[:, :1] + X[:, 1:2]], 1)


@pytest.mark.parametrize("penalty", [L1L2(1.0, 0.5), Group(L1(1.0), rows)], ids=repr)
@pytest.mark.parametrize("x", [CONSTANT, TWICE, 0.0 * X], ids=["constant", "twice", "zero"])
@pytest.mark.parametrize("standard", [False, True])
def test_columns_that_are_constant_or_dependent(penalty, x, standard):
    options = {"alphas": 6, "eps": 0.01, "standardize": standard, "tol": 1e-9}
    whole, parts = fit_path(x, Y, penalty, **options), chunked(x, Y, penalty, **options)
    assert parts.alpha_max == pytest.approx(whole.alpha_max, rel=ROUNDING)
    assert bool(parts.converged.all())
    assert float((parts.objectives - whole.objectives).abs().max()) <= 1e-8 * whole.null_objective  # tol of both
    for found in (whole, parts):
        assert not bool(found.coefs[:, x.std(0) == 0].any())


@pytest.mark.parametrize(("intercept", "standard"), OPTIONS)
def test_targets_that_nothing_explains(intercept, standard):
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(5, 0)
    cases = [(signs, signs.prod(1)), (signs, np.full(20, 7.3)), (signs, np.zeros(20))]
    if intercept:  # of columns and targets whose means are far off
        cases += [(signs + 1e5, np.full(20, 7.3)), (signs + 1e5, signs.prod(1) + 1e5), (signs + 1e5, np.zeros(20))]
    for x, y in cases:
        path = chunked(x, y, L1(1.0), size=3, alphas=4, fit_intercept=intercept, standardize=standard)
        assert path.alpha_max == 0.0
        assert not bool(path.coefs.any())
        assert bool(path.converged.all())


@pytest.mark.parametrize("intercept", [True, False])
def test_one_row_and_one_column(intercept):
    for x, y in ((X[:1], Y[:1]), (X[:, :1], Y), (X[:1, :1], Y[:1]), (X[:2], Y[:2])):
        options = {"alphas": [0.5, 0.1], "fit_intercept": intercept}
        whole, parts = fit_path(x, y, L1(1.0), **options), chunked(x, y, L1(1.0), **options)
        assert float((parts.coefs - whole.coefs).abs().max()) <= CLOSE
        assert float((parts.intercepts - whole.intercepts).abs().max()) <= CLOSE


# --- what chunks may be ----------------------------------------------------------------------------------------------


class Counted:
    """Chunks that are made anew whenever they are iterated, as from a file."""

    def __init__(self, pieces):
        self.pieces, self.reads = pieces, 0

    def __iter__(self):
        for piece in self.pieces:
            self.reads += 1
            yield piece


def pieces(form, target=np.asarray):
    return [(form(X[k : k + 40]), target(Y[k : k + 40])) for k in range(0, len(X), 40)]


CHUNKS = {
    "list": lambda: pieces(np.asarray),
    "columns": lambda: pieces(np.asfortranarray),
    "torch": lambda: pieces(torch.from_numpy, torch.from_numpy),
    "scipy": lambda: pieces(scipy.sparse.csr_array),
    "torch sparse": lambda: pieces(lambda x: torch.from_numpy(x).to_sparse_csr()),
    "lists": lambda: pieces(np.ndarray.tolist, np.ndarray.tolist),
    "mixed": lambda: [*pieces(np.asarray)[:2], *pieces(scipy.sparse.csc_array)[2:]],
    "loader": lambda: DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=40),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_of_any_library(kind):
    assert_same(fit_path(CHUNKS[kind](), None, L1(1.0), alphas=8), fit_path(X, Y, L1(1.0), alphas=8))


def test_float32_is_not_rounded_further():
    x, y = X.astype(np.float32), Y.astype(np.float32)
    assert_same(chunked(x, y, L1(1.0), alphas=8), fit_path(x, y, L1(1.0), alphas=8))


def test_each_chunk_is_read_once_for_the_whole_path():
    chunks = Counted(pieces(np.asarray))
    fit_path(chunks, None, L1(1.0), alphas=30)
    assert chunks.reads == len(chunks.pieces)


def test_memory_maps(tmp_path):
    for name, values in {"X": X, "y": Y}.items():
        np.save(tmp_path / f"{name}.npy", values)
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "Xy")  # read-only
    assert_same(chunked(x, y, L1(1.0), alphas=8), fit_path(X, Y, L1(1.0), alphas=8))


LIMITED = """
import resource, sys
import numpy as np
from torchreg import L1
from torchreg.linear import RowChunks, fit_path

x, y = (np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in "Xy")
fit_path(RowChunks(x[:100], y[:100]), None, L1(1.0))  # what is made once
used = 1024 * int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**25, resource.RLIM_INFINITY))  # counts no mapped files
path = fit_path(RowChunks(x, y, size=2000), None, L1(1.0), alphas=10)
try:
    x + 0.0
except MemoryError:
    print(bool(path.converged.all()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are the system's")
def test_data_larger_than_the_memory_that_is_left(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", "float64", (200_000, 40))  # 61 MiB
    for start in range(0, len(x), 20_000):
        x[start : start + 20_000] = DRAWS.standard_normal((20_000, 40))
    np.save(tmp_path / "y.npy", x[:, 0] + x[:, 1])
    arguments = [sys.executable, "-c", LIMITED, str(tmp_path)]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"  # it converged, and the limit held


def test_nothing_of_the_callers_is_written_to():
    held = X.copy(), Y.copy(), WEIGHTS.copy()
    for size in (40, 1000):
        for options in ({"standardize": True}, {"fit_intercept": False}):
            for penalty in (L1(1.0), MCP(1.0, gamma=3.0)):
                chunked(held[0], held[1], penalty, sample_weight=held[2], size=size, alphas=[2.0], tol=0.01, **options)
    for now, before in zip(held, (X, Y, WEIGHTS), strict=True):
        assert now.tobytes() == before.tobytes()


# --- what a path can do ----------------------------------------------------------------------------------------------


def test_the_path_predicts_new_rows_and_does_all_else():
    alphas = np.geomspace(2.0, 0.01, 8)
    whole = fit_path(X, Y, L1(1.0), alphas=alphas, standardize=True)
    parts = chunked(X, Y, L1(1.0), alphas=alphas, standardize=True)
    new = X[:7] + 1.0
    alpha = float(whole.alphas[2:4].mean())
    for found, expected in (
        (parts.predict(new), whole.predict(new)),
        (parts.predict(new, alpha), whole.predict(new, alpha)),
        (parts.at(alpha).coef, whole.at(alpha).coef),
        (refit(parts, RowChunks(X, Y, size=40), None).coefs, refit(whole, X, Y).coefs),
        (refit(parts, RowChunks(X, Y, size=40), None).losses, refit(whole, X, Y).losses),
        (parts.criterion("ebic"), whole.criterion("ebic")),
    ):
        assert torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)
    assert parts.to_numpy().keys() == whole.to_numpy().keys()


@pytest.mark.parametrize("case", ["full", "dependent", "wide", "outputs"])
def test_few_rows_stand_for_all(case):
    x, y = {"full": (X, Y), "dependent": (TWICE, Y), "wide": DATA[WIDE, None], "outputs": DATA[TALL, 2]}[case]
    frame = framed_chunks(RowChunks(x, y, size=9), None, Quadratic(), None, None, True, False, None)
    found, problem = frame.moments, frame.problem
    size = float(found.gram.abs().max())
    assert problem.design.n == x.shape[1] + 1
    assert float((problem.design.gram(problem.weights) - found.gram).abs().max()) <= 1e-12 * size
    assert float((problem.gradient(problem.null_eta()) + found.cross).abs().max()) <= 1e-13 * float(
        found.cross.abs().max()
    )
    assert float(problem.null_loss()) == pytest.approx(float(found.energy) / 2.0, rel=1e-12)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datafit", [Logistic(), Poisson(), Huber()], ids=repr)
def test_other_losses_are_refused_before_anything_is_read(datafit):
    chunks = Counted(pieces(np.asarray))
    with pytest.raises(ValueError, match="Quadratic alone, got"):
        fit_path(chunks, None, L1(1.0), datafit=datafit)
    assert chunks.reads == 0


@pytest.mark.parametrize(
    ("X", "y", "options", "error", "message"),
    [
        (RowChunks(X, Y), Y, {}, ValueError, "pass y=None"),
        (RowChunks(X, Y), None, {"sample_weight": WEIGHTS}, ValueError, "come with them"),
        (RowChunks(X, Y), None, {"offset": Y}, ValueError, "take no offset; subtract it"),
        (iter([(X, Y)]), None, {}, TypeError, "read only once"),
        (((X, Y) for _ in range(1)), None, {}, TypeError, "read only once here .generator."),
        ([(X, Y), (X[:, :3], Y)], None, {}, ValueError, "got 20 and 3 columns"),
        ([(X, np.full_like(Y, np.nan))], None, {}, ValueError, "Input y contains NaN"),
        ([(np.full_like(X, np.inf), Y)], None, {}, ValueError, "Input X contains infinity"),
        ([], None, {}, ValueError, "no chunk"),
        ([X], None, {}, TypeError, "pair"),
        (3, None, {}, TypeError, "iterable of pairs"),
        (X, None, {}, ValueError, "y is None"),
        (torch.from_numpy(X), None, {}, ValueError, "y is None"),
    ],
)
def test_refusals(X, y, options, error, message):
    with pytest.raises(error, match=message):
        fit_path(X, y, L1(1.0), **options)


@pytest.mark.parametrize("fit", [fit_cv, solve])
def test_other_fits_need_all_rows(fit):
    for chunks in (RowChunks(X, Y), [(X, Y)]):
        with pytest.raises(ValueError, match="fit_path alone takes chunks of rows"):
            fit(chunks, None, L1(1.0))
    with pytest.raises(ValueError, match="fit_path alone takes chunks of rows"):
        fit(RowChunks(X, Y), Y, L1(1.0))


def test_a_penalty_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\b3\b"):
        chunked(X, Y, Weighted(L1(1.0), torch.ones(3)))
