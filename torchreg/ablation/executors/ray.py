"""Cells run as tasks of a Ray cluster, of one machine or many."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torchreg.ablation.executors.base import CellExecutor, Function, pass_on
from torchreg.ablation.ledger.lock import shown_as_worker

_AT_ONCE = 1000  # tasks that Ray is given at least: enough for an autoscaler to see what is asked for
_PER_CORE = 2  # tasks given for each core of a large cluster, so that none waits for the driver
_ADDRESS, _USAGE = "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"


class RayExecutor(CellExecutor):
    """Runs cells on Ray: ``ablate(..., executor=RayExecutor())``.

    Each cell is a task of Ray Core. What dies with a worker or a node costs that cell alone, which is given out again
    as often as ``retries`` of `ablate` says. Ray itself retries nothing: only the driver knows from the ledger
    which cells have their row, and how often each was tried.

    A worker that sees the directory ``out`` (one machine, or a shared file system) writes the row itself; the row of
    any other is written by the driver as soon as it arrives. Learning curves, files in ``cell.dir`` and paths need the
    shared directory. What a function holds travels with every cell, so let it load its data.

    A Ray that runs in this process is used as it is and left running. Else Ray is started, or the cluster at
    ``address`` joined, for as long as the ablation runs; cells then print into Ray's log files, and
    Ray reports no usage unless RAY_USAGE_STATS_ENABLED says so.

    Args:
        num_cpus: cores of one cell; it is also torch's number of threads, unless OMP_NUM_THREADS is set.
        num_gpus: GPUs of one cell; with 0.25 four cells share one, and must fit into its memory together.
        resources: what else one cell takes of the cluster's own resources.
        address: of a cluster, "auto" for the one that runs on this machine; None takes RAY_ADDRESS, and without it
            starts one here.
        runtime_env: what workers need, such as ``{"working_dir": "."}`` for modules beside the script.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: for a negative amount; for ``address`` or ``runtime_env`` while Ray runs in this process.

    Warns:
        RuntimeWarning: if no node of the cluster has what a cell takes.
    """

    stops = True

    def __init__(
        self, *, num_cpus: float = 1, num_gpus: float = 0.0, resources: Mapping[str, float] | None = None,
        address: str | None = None, runtime_env: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        _imported()
        self._needs = {"CPU": num_cpus, "GPU": num_gpus, **(resources or {})}
        if bad := [name for name, amount in self._needs.items() if not amount >= 0]:
            raise ValueError(f"A cell takes {bad[0]} >= 0, got {self._needs[bad[0]]!r}.")
        self._address = address
        self._runtime_env = dict(runtime_env) if runtime_env else None
        self.slots = _AT_ONCE
        self._started = False
        self._begun: Any = None
        self._heard: Any = None
        self._numbers = count()
        self._refs: dict[Future[Any], tuple[int, Any]] = {}
        self._times: dict[int, float] = {}

    def open(self, ledger: Path) -> None:
        ray = _imported()
        self._started = not ray.is_initialized()
        if self._started:
            with _no_usage_reports():
                ray.init(
                    self._address or os.environ.get(_ADDRESS, "local"), runtime_env=self._runtime_env,
                    log_to_driver=False, logging_level="ERROR", include_dashboard=False,
                )  # fmt: skip
        elif self._address or self._runtime_env:
            raise ValueError("Ray runs in this process already; give address and runtime_env to your ray.init.")
        self._warn_of_needs(ray.nodes())
        self.slots = max(_AT_ONCE, _PER_CORE * int(ray.cluster_resources().get("CPU", 0)))
        self._ledger = ledger
        self._begun = _begun()
        others = {name: amount for name, amount in self._needs.items() if name not in ("CPU", "GPU")}
        self._remote = ray.remote(_work).options(
            num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], resources=others, max_retries=0,
        )  # fmt: skip

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        ref = self._remote.remote(function, argument, self._ledger, self._begun, number)
        self._refs[future] = number, ref
        ref.future().add_done_callback(partial(_pass_on, future))
        return future

    def settle(self, future: Future[Any]) -> None:
        number, _ = self._refs.pop(future)
        self._times.pop(number, None)

    def lost(self, error: BaseException) -> bool:
        errors = _imported().exceptions
        return isinstance(
            error,
            (
                errors.WorkerCrashedError,
                errors.LocalRayletDiedError,
                errors.NodeDiedError,
                errors.OutOfMemoryError,
                errors.ObjectLostError,
                errors.TaskCancelledError,
            ),
        )

    def began(self, future: Future[Any]) -> float | None:
        self._listen()
        return self._times.get(self._refs[future][0])

    def stop(self, future: Future[Any]) -> None:
        _imported().cancel(self._refs[future][1], force=True)

    def close(self) -> None:
        ray = _imported()
        for _, ref in self._refs.values():
            ray.cancel(ref, force=True)
        self._refs, self._times, self._heard = {}, {}, None
        if self._begun is not None:
            ray.kill(self._begun)
            self._begun = None
        if self._started:
            ray.shutdown()

    def _listen(self) -> None:
        """Take in which tasks have begun, without waiting for it. Clocks differ between nodes: the driver's counts."""
        ray = _imported()
        if self._heard is not None and ray.wait([self._heard], timeout=0)[0]:
            now = time.monotonic()
            self._times.update(dict.fromkeys(ray.get(self._heard), now))
            self._heard = None
        if self._heard is None:
            self._heard = self._begun.take.remote()

    def _warn_of_needs(self, nodes: list[dict[str, Any]]) -> None:
        here = [node["Resources"] for node in nodes if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in self._needs.items()) for node in here):
            needs = {name: amount for name, amount in self._needs.items() if amount}
            shown = [{name: node[name] for name in needs if name in node} for node in here]
            warnings.warn(
                f"A cell takes {needs}, which no node has (nodes: {shown}); cells wait until one joins. Ask for less, "
                "or add a node.",
                RuntimeWarning,
                stacklevel=2,
            )


def _work(function: Function, argument: Any, ledger: Path, begun: Any, number: int) -> Any:
    """Runs in the worker."""
    begun.add.remote(number)
    with shown_as_worker(ledger), _mortal():
        return function(argument)


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Ray ends workers by SIGTERM, which it turns into SystemExit: that would read as an error of the cell's own."""
    of_ray = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, of_ray)


def _begun() -> Any:
    """An actor beside the driver, to which tasks say that they run; Ray tells only when a task was given to it."""
    ray = _imported()

    class Begun:  # made here, so that it travels by value: its process needs no torch
        def __init__(self) -> None:
            self.numbers: list[int] = []

        def add(self, number: int) -> None:
            self.numbers.append(number)

        def take(self) -> list[int]:
            taken, self.numbers = self.numbers, []
            return taken

    here = ray.get_runtime_context().get_node_id()
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Begun).options(num_cpus=0, scheduling_strategy=place).remote()


def _pass_on(ours: Future[Any], theirs: Future[Any]) -> None:
    """What Ray's future has, with the error that was raised in place of Ray's report of it."""
    errors = _imported().exceptions
    error = theirs.exception()
    if not isinstance(error, errors.RayTaskError):
        pass_on(ours, theirs)
        return
    if isinstance(error.cause, errors.RaySystemError):
        error.cause.add_note("If workers lack a module, send it: RayExecutor(runtime_env={'working_dir': '.'}).")
    ours.set_exception(error.cause)


@contextlib.contextmanager
def _no_usage_reports() -> Iterator[None]:
    """Ray reports usage where nothing is said; a library must not begin that on its user's behalf."""
    said = _USAGE in os.environ
    os.environ.setdefault(_USAGE, "0")
    try:
        yield
    finally:
        if not said:
            del os.environ[_USAGE]


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError("RayExecutor needs Ray, which is not installed; pip install ray.") from error
    return ray
