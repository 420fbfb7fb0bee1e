"""`RayExecutor` on a real cluster of several raylets, with workers, a node and the driver killed in mid-run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torchreg import L1
from torchreg.ablation import Ablation, LedgerError, RayExecutor, ablate, logspace
from torchreg.ablation.json_values import loads

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 - only where Ray is

pytestmark = pytest.mark.slow

SOON = 60.0  # seconds in which a busy machine does what takes one


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, and this process as a driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))  # workers find this module
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


def until(condition):
    """Wait for what will soon be so."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.05)


def written(out):
    """Rows as the files have them: how many for each cell and status."""
    lines = [line for shard in (out / "rows").glob("*.jsonl") for line in shard.read_text().splitlines()]
    return Counter((row["alpha"], row["seed"], row["status"]) for row in map(loads, lines))


def each_once(out, alphas, seeds=(0,)):
    return written(out) == Counter((alpha, seed, "ok") for alpha in alphas for seed in seeds)


def where(penalty):
    """A function of this module, which workers import."""
    time.sleep(0.3)
    return {"node": ray.get_runtime_context().get_node_id(), "zero": penalty.alpha == 0}


def test_cells_run_on_every_node_and_ray_is_left_running(cluster, tmp_path):
    alphas = logspace(0.01, 1.0, 7, zero=True)
    result = ablate(where, L1(1.0), alphas, out=tmp_path, executor=RayExecutor(), progress=False)
    assert {row["node"] for row in result.rows} == {node["NodeID"] for node in ray.nodes()}
    assert [row["zero"] for row in sorted(result.rows, key=lambda row: row["alpha"])] == [True] + 7 * [False]
    assert each_once(tmp_path, alphas)
    assert ray.is_initialized()


def test_closures_fail_and_resume(cluster, tmp_path):
    runs, trouble = tmp_path / "runs", tmp_path / "trouble"
    runs.mkdir()
    trouble.touch()

    def run(penalty, seed):
        with (runs / f"{penalty.alpha}-{seed}").open("a") as file:
            file.write("x")
        if penalty.alpha == 0.2 and trouble.exists():
            raise OverflowError("too much of it")
        return {"loss": penalty.alpha + seed}

    arguments = {"seeds": range(2), "out": tmp_path / "out", "executor": RayExecutor(), "progress": False}
    with pytest.warns(RuntimeWarning, match="2 of 4 cells failed"):
        result = ablate(run, L1(1.0), [0.1, 0.2], **arguments)
    failed = [row for row in result.rows if row["status"] == "failed"]
    assert all(row["error"].startswith("OverflowError: too much of it") for row in failed)
    trouble.unlink()
    result = ablate(run, L1(1.0), [0.1, 0.2, 0.3], **arguments)
    assert {(row["alpha"], row["seed"]): row["loss"] for row in result.rows} == {
        (alpha, seed): alpha + seed for alpha in (0.1, 0.2, 0.3) for seed in (0, 1)
    }
    times = {file.name: len(file.read_text()) for file in runs.iterdir()}
    assert times == {f"{alpha}-{seed}": 1 + (alpha == 0.2) for alpha in (0.1, 0.2, 0.3) for seed in (0, 1)}


def test_a_killed_worker_costs_its_cell_one_more_try(cluster, tmp_path):
    def run(penalty, cell):
        tries = cell.dir / "tries"
        with tries.open("a") as file:
            file.write("x")
        if penalty.alpha == 0.2 and len(tries.read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if penalty.alpha == 0.3:
            os._exit(7)
        return {"tries": len(tries.read_text())}

    with pytest.warns(RuntimeWarning, match="1 of 3 cells failed"):
        result = ablate(run, L1(1.0), [0.1, 0.2, 0.3], out=tmp_path, executor=RayExecutor(), progress=False, retries=1)
    assert [row.get("tries") for row in sorted(result.rows, key=lambda row: row["alpha"])] == [1, 2, None]
    (error,) = [row["error"] for row in result.rows if row["status"] == "failed"]
    assert error.startswith("its process died (WorkerCrashedError")


def test_timeouts_count_from_the_beginning_of_the_cell(cluster, tmp_path):
    """Two nodes run three rounds of cells: the last waits longer than the limit, and is not late."""
    child = tmp_path / "child"

    def run(penalty):
        if penalty.alpha == 0.0:
            child.write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
            time.sleep(1000.0)
        time.sleep(1.5)
        return {"alpha2": penalty.alpha}

    alphas = logspace(0.1, 1.0, 5, zero=True)
    with pytest.warns(RuntimeWarning, match="1 of 6 cells failed"):
        result = ablate(run, L1(1.0), alphas, out=tmp_path / "out", executor=RayExecutor(), progress=False, timeout=4.0)
    (late,) = [row for row in result.rows if row["status"] == "failed"]
    assert late["alpha"] == 0.0
    assert late["error"].startswith("TimeoutError")
    until(lambda: not alive(int(child.read_text())))


def alive(pid):
    """Whether it runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_row_that_cannot_be_written_is_the_driver_s_error(cluster, tmp_path):
    def run(penalty, cell):
        (cell.dir.parents[1] / "rows").rmdir()
        return {"alpha2": penalty.alpha}

    with pytest.raises(LedgerError, match="could not be written") as raised:
        ablate(run, L1(1.0), [0.1], out=tmp_path / "out", executor=RayExecutor(), progress=False)
    assert type(raised.value) is LedgerError


def test_a_module_that_workers_lack_is_named_with_the_remedy(cluster, tmp_path, monkeypatch):
    module = type(sys)("only_here")
    exec("def run(penalty): return {'loss': 1.0}", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(ray.exceptions.RaySystemError, match="only_here") as raised:
        ablate(module.run, L1(1.0), [0.1], out=tmp_path, executor=RayExecutor(), progress=False)
    assert "working_dir" in raised.value.__notes__[0]


def test_cells_wait_for_a_node_that_can_take_them(cluster, tmp_path):
    def waiting():
        with pytest.warns(RuntimeWarning, match="'gold': 1}, which no node has"):
            return ablate(where, L1(1.0), [0.1], out=tmp_path, executor=scarce, progress=False)

    scarce = RayExecutor(resources={"gold": 1})
    with ThreadPoolExecutor(1) as beside:
        result = beside.submit(waiting)
        until(lambda: (tmp_path / "manifest.json").exists())
        node = cluster.add_node(num_cpus=1, resources={"gold": 1})
    assert [row["node"] for row in result.result().rows] == [node.node_id]


@pytest.fixture
def hidden(cluster, tmp_path):
    """A directory that a further node, which has ``far``, does not see: another file system is mounted there."""
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*hide, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs Linux and root")
    far = json.dumps({"far": 1})
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
    node = subprocess.Popen([*hide, *start, f"--resources={far}", "--block"], stdout=subprocess.DEVNULL)
    until(lambda: any(n["Alive"] and "far" in n["Resources"] for n in ray.nodes()))
    yield tmp_path
    node.terminate()
    node.wait(SOON)


def test_rows_of_a_node_that_does_not_see_the_ledger_are_the_driver_s(hidden):
    def run(penalty, seed):
        return {"far": not hidden.joinpath("out", "manifest.json").exists(), "pid": os.getpid()}

    alphas, out = [0.1, 0.2], hidden / "out"
    result = ablate(run, L1(1.0), alphas, out=out, executor=RayExecutor(resources={"far": 0.1}), progress=False)
    assert {row["far"] for row in result.rows} == {True}
    assert each_once(out, alphas)
    (shard,) = (out / "rows").iterdir()
    assert f"-{os.getpid()}-" in shard.name


def test_a_killed_node_costs_nothing_but_time(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    begun = tmp_path / "begun"
    doomed = node.node_id

    def run(penalty, seed):
        if ray.get_runtime_context().get_node_id() == doomed:
            begun.touch()
            time.sleep(1000.0)
        until(begun.exists)
        return {"loss": penalty.alpha + seed}

    def kill():
        until(begun.exists)
        cluster.remove_node(node, allow_graceful=False)

    alphas, out = logspace(0.01, 1.0, 6), tmp_path / "out"
    killer = threading.Thread(target=kill)
    killer.start()
    result = ablate(run, L1(1.0), alphas, seeds=range(2), out=out, executor=RayExecutor(), progress=False)
    killer.join()
    assert begun.exists()
    assert {row["status"] for row in result.rows} == {"ok"}
    assert each_once(out, alphas, (0, 1))


DRIVER = """
import time
from torchreg import L1
from torchreg.ablation import RayExecutor, ablate

def run(penalty):
    time.sleep(0.5)
    return {"loss": penalty.alpha}

def main(out, address=None):
    return ablate(run, L1(1.0), [k / 8 for k in range(8)], out=out, executor=RayExecutor(address=address))
"""


def test_after_a_killed_driver_the_same_line_goes_on(cluster, tmp_path):
    """Workers of the dead driver may still be at a cell: the next one waits for them."""
    (tmp_path / "driver.py").write_text(DRIVER)
    out = tmp_path / "out"
    line = [sys.executable, "-c", f"import driver; driver.main({str(out)!r}, {cluster.address!r})"]
    driver = subprocess.Popen(line, cwd=tmp_path)
    until(lambda: len(written(out)) >= 3)
    driver.kill()
    driver.wait()
    assert len(written(out)) < 8
    subprocess.run(line, cwd=tmp_path, check=True)
    assert each_once(out, [k / 8 for k in range(8)])


def test_what_ray_was_told_before_cannot_be_told_again(cluster, tmp_path):
    for extra in ({"address": cluster.address}, {"runtime_env": {"env_vars": {"A": "1"}}}):
        with pytest.raises(ValueError, match=r"to your ray\.init"):
            ablate(where, L1(1.0), [0.1], out=tmp_path, executor=RayExecutor(**extra), progress=False)
    assert Ablation.load(tmp_path).rows == ()


TWICE = """
import sys, time
from pathlib import Path
from torchreg import L1
from torchreg.ablation import RayExecutor, ablate

def run(penalty):
    time.sleep(1000.0 if penalty.alpha == 1 else 0.1)
    return {"loss": 0.0}

executor = RayExecutor()
for out, alphas in (("one", [0.5]), ("two", [0.5, 1.0])):
    result = ablate(run, L1(1.0), alphas, out=Path(sys.argv[1], out), executor=executor, timeout=3.0)
    print([row["status"] for row in sorted(result.rows, key=lambda row: row["alpha"])])
"""


def test_an_executor_starts_its_own_ray_twice_and_without_a_word(tmp_path):
    line = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", TWICE, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["['ok']", "['ok', 'failed']"]
    assert done.stderr == ""


def test_amounts_are_checked():
    with pytest.raises(ValueError, match="A cell takes GPU >= 0, got -1"):
        RayExecutor(num_gpus=-1)
