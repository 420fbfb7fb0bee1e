"""What a function does, as a hash: the code that runs, and the values bound to it; neither the file nor the objects."""

import functools
import importlib
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import ablation_runs
import numpy as np
import pytest
import torch

from torchreg import L1
from torchreg.ablation import WorkerError, ablate
from torchreg.ablation.fingerprint import Fingerprint

ablate = partial(ablate, progress=False)


def run(penalty, layers=None):
    return {"layers": layers}


class Trainer:
    """An object that is called."""

    def __init__(self, **settings):
        self.settings = settings

    def __call__(self, penalty):
        return {"a": self.settings.get("width", 0)}

    def train(self, penalty):
        return self(penalty)


def closed(layers):
    return lambda penalty: {"layers": layers}


def with_default(value):
    def inner(penalty, *, layers=value):
        return {"layers": layers}

    return inner


def decorated(layers):
    def around(function):
        @functools.wraps(function)
        def inner(penalty):
            return function(penalty, layers)

        return inner

    return around(run)


BINDINGS = {
    "partial": lambda value: partial(run, layers=value),
    "partial of partial": lambda value: partial(partial(run, layers=value)),
    "closure": closed,
    "closure within a closure": lambda value: closed(closed(value)),
    "default": with_default,
    "wrapper": decorated,
    "object": lambda value: Trainer(width=value),
    "method": lambda value: Trainer(width=value).train,
}
VALUES = {
    "lists": ([64], [128]),
    "an int and a float": (1, 1.0),
    "nested": ({"a": [1, (2, {3})]}, {"a": [1, (2, {4})]}),
    "tensors": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "types of tensors": (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    "arrays": (np.arange(4), np.arange(4).reshape(2, 2)),
    "paths": (Path("a"), Path("b")),
    "penalties": (L1(1.0), L1(2.0)),
    "functions": (lambda x: x + 1, lambda x: x + 2),
    "objects": (Trainer(width=1), Trainer(width=2)),
    "models": tuple(torch.nn.Linear(2, 2) for _ in range(2)),
    "numbers of one hash": (-1, -2),
    "zeros": (0.0, -0.0),
}


@pytest.mark.parametrize("bind", BINDINGS.values(), ids=BINDINGS)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_values_that_are_bound_tell_functions_apart(bind, values):
    one, two = map(bind, values)
    assert Fingerprint(one).sha256 == Fingerprint(bind(values[0])).sha256
    assert Fingerprint(one).sha256 != Fingerprint(two).sha256
    assert Fingerprint(one).unknown == []


def test_rows_of_one_binding_are_not_returned_for_another(out):
    ablate(partial(run, layers=[64]), L1(1.0), [0.1], out=out)
    with pytest.raises(ValueError, match=r"has changed.*Changed: layers, bound by partial\."):
        ablate(partial(run, layers=[128]), L1(1.0), [0.1], out=out)
    (row,) = ablate(partial(run, layers=[128]), L1(1.0), [0.1], out=out, on_change="new").rows
    assert row["layers"] == [128]


HASHED = """
from functools import partial
import sys; sys.path[:0] = {folders!r}
from test_fingerprints import *
values = [{{"b", "a", "c"}}, {{"x": 1, "y": [2.5, None]}}, Trainer(width={{"q", "r"}})]
values.append(torch.nn.Linear(1, 1, bias=False))
values[-1].weight.data.fill_(0.5)
print(*(Fingerprint(partial(run, layers=value)).sha256 for value in values), Fingerprint(quick_of()).sha256)
"""


def quick_of():
    return partial(ablation_runs.quick, log="log")


def test_hashes_are_the_same_in_every_process():
    """Whatever the order of sets and keywords, and wherever objects lie."""
    code = HASHED.format(folders=[str(Path(__file__).parent), str(Path(ablation_runs.__file__).parent)])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE
        )
        for seed in ("1", "2")
    ]
    found = {process.communicate()[0] for process in started}
    assert len(found) == 1
    assert len(set(found.pop().split())) == 5
    one, two = partial(run, a=1, b=2), partial(run, b=2, a=1)
    assert Fingerprint(one).sha256 == Fingerprint(two).sha256


def test_a_state_that_refers_to_itself_is_hashed():
    loop = [1]
    loop.append(loop)
    assert Fingerprint(partial(run, layers=loop)).sha256 == Fingerprint(partial(run, layers=loop)).sha256


def test_what_cannot_be_compared_is_said_and_counts_by_its_type(out):
    held = {"lock": threading.Lock(), "width": 3}
    with pytest.warns(RuntimeWarning, match=r"1 values that cannot be compared.*layers, bound by partial \(lock\)"):
        ablate(partial(with_lock, layers=held), L1(1.0), [0.1], out=out)
    other = {"lock": threading.Lock(), "width": 4}
    hashes = [Fingerprint(partial(with_lock, layers=value)).sha256 for value in (held, held | {}, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def with_lock(penalty, layers):
    return {"a": 1}


class Run(dict):
    """A class that is called: what it makes are the metrics."""

    def __init__(self, penalty):
        super().__init__(loss=penalty.alpha)


class SameButForItsName(dict):
    def __init__(self, penalty):
        super().__init__(loss=-penalty.alpha)


def test_a_class_is_told_by_what_it_does():
    parts = [Fingerprint(kind).parts for kind in (Run, SameButForItsName, dict)]
    assert [name for name in parts[0] if name.startswith("code")] == ["code of Run.__init__"]
    assert len({Fingerprint(kind).sha256 for kind in (Run, SameButForItsName, dict, list)}) == 4


# -------------------------------------------------------------------------------------------------- code


BEFORE = '''
from functools import cached_property
import {other}
EPOCHS = 3
def helper(x, factor=2):
    """Helps."""
    return x * factor  # more
class Net:
    @property
    def size(self):
        return 1
    @staticmethod
    def make():
        return [k + 1 for k in range(3)]
def run(penalty, seed):
    """Trains."""
    return {{"a": helper(1), "b": {other}.deep(2), "c": Net().size}}
'''
OTHER = "def deep(x):\n    return x\ndef unrelated():\n    return 1\n"
EDITS = {
    "its own text": ('helper(1), "b"', 'helper(2), "b"'),
    "a helper": ("x * factor", "x + factor"),
    "a helper's default": ("factor=2", "factor=3"),
    "a property": ("return 1\n    @static", "return 2\n    @static"),
    "a static method's inner loop": ("k + 1", "k + 2"),
}
NO_EDITS = {
    "a comment": ("# more", "# less"),
    "a docstring": ('"""Helps."""', '"""Helps much."""'),
    "a line more": ("def run(", "\n\ndef run("),
    "what is not reached": ("EPOCHS = 3", "EPOCHS = 3\ndef nobody():\n    return 0"),
}


@pytest.fixture(autouse=True)
def _no_stale_byte_code(monkeypatch):
    """An edit within a second, of the same length, would be imported as it was before."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of these names and imports it afresh."""
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{name}_{abs(hash(request.node.name))}" for name in ("mine", "other")]

    def imported(old="", new="", other=OTHER):
        (tmp_path / f"{names[1]}.py").write_text(other)
        (tmp_path / f"{names[0]}.py").write_text(BEFORE.format(other=names[1]).replace(old, new))
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(names[0])

    yield imported
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_code_that_is_reached_counts(edit, module):
    before = Fingerprint(module().run)
    after = Fingerprint(module(*edit).run)
    assert before.sha256 != after.sha256
    assert before.code != after.code
    assert len(before.parts) == len(after.parts) == 5, "run, helper, deep, size, make"


def test_code_of_another_module_counts_as_far_as_it_is_reached(module):
    before = Fingerprint(module().run).sha256
    assert Fingerprint(module(other=OTHER.replace("return x", "return -x")).run).sha256 != before
    assert Fingerprint(module(other=OTHER.replace("return 1", "return 2")).run).sha256 == before


@pytest.mark.parametrize("edit", NO_EDITS.values(), ids=NO_EDITS)
def test_what_changes_nothing_does_not_count(edit, module):
    assert Fingerprint(module().run).sha256 == Fingerprint(module(*edit).run).sha256


WRAP = """
import functools, torch
def twice(function):
    @functools.wraps(function)
    def inner(*given):
        return 2 * function(*given)
    return inner
class Odd:
    def __getattr__(self, name):
        raise RuntimeError("asked for " + name)
odd = Odd()
class Net:
    @torch.no_grad()
    def evaluate(self, sizes=[64]):
        return 1
net = Net()
@functools.lru_cache
def load():
    return 10
@twice
def step(x):
    return x - 1
def model():
    return 7
fit, models = functools.partial(lambda x: x + 3, 1), {"a": model}
def run(penalty, seed):
    return {"a": (net.evaluate(), load(), step(1), fit(), models["a"](), odd is None)}
"""
WRAPPED = {
    "a method that a library's decorator wraps": ("return 1\n", "return 2\n"),
    "a method's default that can change": ("[64]", "[128]"),
    "a cached function": ("return 10", "return 20"),
    "a decorated function": ("x - 1", "x - 2"),
    "its decorator": ("2 * function", "3 * function"),
    "a partial": ("x + 3", "x + 4"),
    "a function in a dict": ("return 7", "return 8"),
    "an object's class": ("asked for ", "has no "),
}


def _compiled(text):
    space: dict = {"__name__": "mine"}
    exec(compile(text, "mine.py", "exec"), space)
    return Fingerprint(space["run"]).sha256


@pytest.mark.parametrize("edit", WRAPPED.values(), ids=WRAPPED)
def test_code_counts_that_is_reached_through_what_wraps_or_holds_it(edit):
    assert _compiled(WRAP) == _compiled(WRAP), "the objects are others, the code is not"
    assert _compiled(WRAP) != _compiled(WRAP.replace(*edit))


@pytest.mark.parametrize("with_init", [True, False])
def test_modules_of_packages_are_followed(with_init, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "mypackage" / "inner"
    folder.mkdir(parents=True)
    if with_init:
        (tmp_path / "mypackage" / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
    hashes = []
    for factor in (2, 3):
        (folder / "deep.py").write_text(f"def fit(x):\n    return {factor} * x\n")
        for name in [name for name in sys.modules if name.startswith("mypackage")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        importlib.import_module("mypackage.inner.deep")
        space: dict = {}
        exec("import mypackage\ndef run(penalty):\n    return {'a': mypackage.inner.deep.fit(1)}\n", space)
        hashes.append(Fingerprint(space["run"]).code)
    assert hashes[0] != hashes[1]


def test_a_file_that_was_edited_after_its_import_does_not_count_and_the_next_run_is_told(module, out):
    old = module()
    ablate(old.run, L1(1.0), [0.1], out=out)
    new = module('"a": helper(1)', '"a": -helper(1)')  # on the disk now, while `old` still is what it was
    assert ablate(old.run, L1(1.0), [0.1, 0.2], out=out).rows[1]["a"] == 2
    with pytest.raises(ValueError, match="Changed: code of run"):
        ablate(new.run, L1(1.0), [0.1], out=out)
    assert {row["a"] for row in ablate(new.run, L1(1.0), [0.1, 0.2], out=out, on_change="new").rows} == {-2}


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {folder!r})
import trains
from torchreg import L1
from torchreg.ablation import ablate
if __name__ == "__main__":
    pathlib.Path(trains.__file__).write_text({after!r})
    ablate(trains.run, L1(1.0), [0.1, 0.2], out={out!r}, workers=1, progress=False)
"""


def test_a_worker_that_imports_other_code_than_its_driver_ends_it_with_both_hashes(tmp_path, out):
    """The file is edited between the driver's import and its first worker's."""
    text = "def half(x):\n    return x / 2\ndef run(penalty, seed):\n    return {'a': half(penalty.alpha)}\n"
    (tmp_path / "trains.py").write_text(text)
    after = text.replace("/ 2", "/ 3")
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(folder=str(tmp_path), after=after, out=str(out)))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert "WorkerError: A worker has other code of run than its driver, sha256 " in done.stderr
    told = done.stderr.rpartition("WorkerError")[2]
    hashes = {word.strip(",") for word in told.split() if len(word) == 64}
    assert len(hashes) == 2
    assert not list((out / "rows").iterdir())


def test_functions_of_the_tests_are_the_same_in_workers(out):
    """Values at the top of a module may be a process's own; code may not."""
    found = ablate(ablation_runs.process, L1(1.0), [0.1], out=out, workers=1)
    assert [row["status"] for row in found.rows] == ["ok"]


# ------------------------------------------------------------------------------------------------ directories


def test_another_source_has_cells_directories_of_its_own(out):
    def first(cell):
        (cell.dir / "of the first").touch()
        cell.report(0, which=1.0)
        return {"files": len(list(cell.dir.iterdir()))}

    def second(cell):
        cell.report(0, which=2.0)
        return {"files": len(list(cell.dir.iterdir()))}

    one = ablate(first, L1(1.0), [0.1], out=out)
    two = ablate(second, L1(1.0), [0.1], out=out, on_change="new")
    assert two.rows[0]["files"] == 1
    assert [point["which"] for point in two.curves()] == [2.0]
    back = ablate(first, L1(1.0), [0.1], out=out, on_change="new")
    assert back.rows == one.rows
    assert [point["which"] for point in back.curves()] == [1.0]
    assert len(list((out / "cells").rglob("of the first"))) == 1


def test_a_path_of_another_source_starts_afresh(out):
    def of(width):
        def run(cell):
            trail = [*(cell.start() or []), width]
            cell.save(trail)
            return {"trail": trail}

        return run

    ablate(of(1), L1(1.0), [0.2, 0.1], path="descending", out=out)
    rows = ablate(of(2), L1(1.0), [0.2, 0.1], path="descending", out=out, on_change="new").rows
    assert [row["trail"] for row in rows] == [[2], [2, 2]]


def test_worker_errors_are_no_loss_of_a_borrowed_executor(out, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from torchreg.ablation import execute

    monkeypatch.setattr(execute, "_seen", set())
    monkeypatch.setattr(execute, "Fingerprint", lambda run: Fingerprint(lambda penalty: 0))
    with ThreadPoolExecutor(1) as pool, pytest.raises(WorkerError, match="other code"):
        ablate(run, L1(1.0), [0.1], out=out, executor=pool)
