"""A first fit in a new process loads no more than it needs, and leaves nothing running."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")

HEAVY = ("sympy", "torch._dynamo", "torch._inductor", "sklearn", "scipy", "pandas", "matplotlib")
SETTING = """
import json, sys, threading, torch
X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
y = X[:, 0] - X[:, 1]
weights = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, float("inf")], dtype=torch.float64)
"""
FITS = {
    "L1": "fit_path(X, y, torchreg.L1(1.0))",
    "Weighted": "fit_path(X, y, torchreg.Weighted(torchreg.L1(1.0), weights), alphas=5)",
    "L2": "fit_path(X, y, torchreg.L2(1.0), alphas=[1.0, 0.1])",
    "Group": "fit_path(X, y, torchreg.Group(torchreg.L1(1.0), torchreg.labels(torch.arange(6) // 2)), alphas=5)",
    "MCP": "fit_path(X, y, torchreg.MCP(1.0), alphas=5)",
    "Logistic": "fit_path(X, y > 0.0, torchreg.L1(1.0), datafit=torchreg.linear.Logistic(), alphas=5)",
}
REPORT = "\nprint(json.dumps([sorted(sys.modules), threading.active_count()]))"


def after(code):
    """The modules and the number of threads of a new process after ``code``."""
    done = subprocess.run([sys.executable, "-c", SETTING + code + REPORT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_first_path_loads_nothing_heavy_and_starts_no_thread(fit):
    modules, threads = after("import torchreg, torchreg.linear\nfrom torchreg.linear import fit_path\n" + fit)
    assert [name for name in HEAVY if name in modules] == []
    assert threads == 1


def test_a_first_estimator_loads_scikit_learn_and_no_compiler():
    modules, threads = after("from torchreg.linear import Lasso\nLasso().fit(X, y)")
    assert "sklearn" in modules
    assert [name for name in ("sympy", "torch._dynamo", "torch._inductor", "matplotlib") if name in modules] == []
    assert threads == 1


def test_a_first_sparse_tensor_is_fitted_without_torchs_note_on_its_layout():
    after("""
import warnings
warnings.simplefilter("error")  # torch says it once in a process
from torchreg.linear import Lasso
features = X.to_sparse()
assert Lasso(0.1).fit(features, y).predict(features).shape == (40,)
""")
