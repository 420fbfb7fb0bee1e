"""One thread for torch, which is faster on small tensors and the same on every machine; no compiler for skglm.

An accelerator is pretended, so that code for devices is run and its waits are seen where there is none.
"""

import os
import signal

import pytest
import torch
from fake_device import PRETENDS, accelerator, device, fake, install  # noqa: F401

os.environ["NUMBA_DISABLE_JIT"] = "1"  # read once, at import: to compile a class of skglm takes a quarter of a minute
torch.set_num_threads(1)
if PRETENDS:
    install()  # torch makes a thread for each device at the first backward pass of the process: before it

# A shell's background job ignores Ctrl-C, and so would every process that it starts; the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m chooses among them
def pytest_collection_modifyitems(items):
    """Where there is a GPU, `pytest -m gpu` runs what is tested on any accelerator, too."""
    for item in items if torch.cuda.is_available() else ():
        chosen = item.callspec.params.get("device") if hasattr(item, "callspec") else None
        if chosen == "accelerator" or "accelerator" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def out(tmp_path):
    """Where an ablation goes; it is not there yet."""
    return tmp_path / "results"


@pytest.fixture
def log(tmp_path):
    """Where runs of an ablation note by themselves that they ran."""
    return tmp_path / "log of runs"


@pytest.fixture(params=["prox", "dual_averaging", "dense copies"])
def every_control(request, monkeypatch):
    """Each way to decide on zeros, as the default of optimizers and terms."""
    from controls import LargerHalf

    from torchreg import ProxOptimizer, Term, attach_to

    if request.param == "dense copies":
        made = Term.__init__

        def controlled(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self.control = LargerHalf()

        monkeypatch.setattr(Term, "__init__", controlled)
    else:
        for function in (ProxOptimizer.__init__, attach_to):
            monkeypatch.setitem(function.__kwdefaults__, "mode", request.param)
    return request.param
