"""What a newcomer types first: names at the wrong place, arguments in the wrong order."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchreg
from torchreg import L1, attach, matching, of_type, release, sparsity, weights


def test_packages_are_attributes_in_a_fresh_process_and_load_nothing_before():
    code = (
        "import sys, torchreg; assert 'torchreg.linear' not in sys.modules;"
        "print(torchreg.linear.fit_path.__name__, torchreg.ablation.ablate.__name__);"
        "assert 'matplotlib' not in sys.modules and 'sklearn' not in sys.modules;"
        "print(torchreg.report.write_report.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fit_path", "ablate", "write_report"]


def test_dir_lists_public_names_and_packages_alone():
    listed = dir(torchreg)
    assert set(torchreg.__all__) <= set(listed)
    assert set(listed) - set(torchreg.__all__) == {"ablation", "linear", "plots", "report"}
    assert all(getattr(torchreg, name) is not None for name in torchreg.__all__)


@pytest.mark.parametrize(
    ("name", "room"),
    [("ElasticNet", "linear"), ("GroupLasso", "linear"), ("fit_path", "linear"), ("search", "ablation")],
)
def test_names_that_live_in_a_package_say_so(name, room):
    remedy = f"from torchreg.{room} import {name}"
    with pytest.raises(ImportError, match=re.escape(remedy)):
        exec(f"from torchreg import {name}")
    with pytest.raises(ImportError, match=re.escape(remedy)):
        getattr(torchreg, name)
    exec(remedy)


def test_unknown_names_are_attribute_errors():
    assert not hasattr(torchreg, "Lassso")
    assert not hasattr(torchreg, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'Lassso'"):
        exec("from torchreg import Lassso")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize("target", [model(), weights(model()), [model()[0]], nn.Parameter(torch.ones(3))], ids=str)
def test_swapped_arguments_of_attach(target):
    with pytest.raises(TypeError, match=r"penalty first, attach\(L1\(0\.1\), model\)"):
        attach(target, L1(0.1))


def test_a_list_of_modules_is_their_weights():
    net = model()
    term = attach(L1(0.1), [net[0], net[2]])
    assert list(term.parameters) == ["0.weight", "1.weight"]
    assert term.parameters["1.weight"] is net[2].weight
    torch.testing.assert_close(term(), attach(L1(0.1), net)())
    torch.testing.assert_close(L1(0.1)([net[0], net[2]]), term())
    assert list(attach(L1(0.1), net.children()).parameters) == ["0.weight", "2.weight"]
    with pytest.raises(TypeError, match=r"got Linear for '1'.*modules alone"):
        attach(L1(0.1), [net[0].weight, net[2]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: of_type(model(), "Conv2d"), r"of_type.*'Conv2d'.*nn\.Conv2d"),
        (lambda: of_type(nn.Linear, model()), r"of_type\(model.*type"),
        (lambda: of_type(model(), nn.Linear(1, 1)), r"of_type.*Linear\("),
        (lambda: matching("*.bias", model()), r"matching\(model, pattern\).*str"),
        (lambda: matching(model(), ["*.bias"]), r"pattern.*list"),
        (lambda: weights([model()]), r"weights\(model\).*list"),
        (lambda: weights(nn.Linear), r"weights\(model\).*type"),
        (lambda: sparsity([model()]), "modules, terms and dicts"),
    ],
)
def test_other_mistakes_say_what_is_allowed(call, words):
    with pytest.raises(TypeError, match=words):
        call()


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch):
    def absent(name):
        raise release.PackageNotFoundError(name)

    assert release.installed_version() == torchreg.__version__
    monkeypatch.setattr(release, "version", absent)
    assert release.installed_version() == "unknown"
