"""The controller: `python -m pipelines.controller`. Keeps engines and registry to what the state
database says, and decides the experiments that are under way.

Every two seconds it brings the adapters that are wanted onto every replica, tells MLflow of moved
champions and of prompts' labels and the Kubeflow Model Registry of both, and looks at each running
experiment and each open approval. These duties run beside each other, each on a thread of its own;
one that fails is tried again and never holds up another. All they do can be broken off at any point
and done again: what belongs together is one transaction.

It touches `run/controller.alive` while all duties come round. One per LLMOPS_HOME, held by a lock.
"""

import asyncio
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from gateway.configuration import ConfigurationError, load_configuration
from gateway.database import Database
from gateway.errors import GatewayError
from gateway.settings import load_settings
from pipelines.approval_orders import void_overtaken
from pipelines.cluster import kubeflow_of, model_registry
from pipelines.engines import Engine, model_names, services_for, wanted_adapters
from pipelines.experiment import conclude, examine, under_way
from pipelines.findings import Finding
from pipelines.installation import Installation, open_installation
from pipelines.json_server import JsonServer
from pipelines.kubeflow_registry import KubeflowRegistry
from pipelines.observations import Observations
from pipelines.promotion import AliasFollower
from pipelines.prompt_labels import LabelFollower
from pipelines.prompt_registry import PromptRegistry
from pipelines.registry import Registry
from pipelines.registry_recorder import Recorder
from pipelines.rollout import Replicas
from pipelines.tables import ExperimentRow

ALIVE, LOCK = "controller.alive", "controller.lock"
TICK_SECONDS = 2.0
HANGS_SECONDS = 60.0
STOP_SECONDS = 1.0
REPEAT_SECONDS = 60.0
GRACE_SECONDS = 1800.0  # an evaluation asks an adapter that nothing else wants yet
FORESEEN = (ConfigurationError, GatewayError, OSError, RuntimeError, SQLAlchemyError)
_log = logging.getLogger(__name__)

Outcome = str | BaseException
Duty = Callable[[], Awaitable[Sequence[Outcome]]]


class ControllerRuns(RuntimeError):
    """Another controller holds the lock of this home."""


class Watched:
    """The installation, with the configuration as the file says now."""

    def __init__(self, installation: Installation):
        self._path = installation.settings.config_path
        self._stamp = self._look()
        self.installation = installation

    def reload_if_changed(self) -> None:
        """Take a changed file; one that cannot be used is told of once, and not taken."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            fresh = load_configuration(self._path)
        except ConfigurationError as error:
            _log.error("the configuration in force stays as it was: %s", error)
            return
        self.installation = replace(self.installation, configuration=fresh)
        _log.info("configuration %s is in force", fresh.config_hash)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class AdapterKeeper:
    """Keeps the wanted adapters on every replica of every engine."""

    def __init__(self, watched: Watched):
        self._watched = watched
        self._replicas: dict[Engine, tuple[tuple[str, ...], Replicas]] = {}

    async def step(self) -> list[Outcome]:
        """One reconciliation; says what was changed and what failed."""
        done: list[Outcome] = []
        installation = self._watched.installation
        wanted = wanted_adapters(installation)
        names = model_names(installation) if wanted else ()
        for engine, adapters in wanted.items():
            for state in await self._of(engine, names).reconcile(adapters):
                done += [f"loaded {adapter} on {state.url}" for adapter in state.loaded]
                done += [f"unloaded {adapter} from {state.url}" for adapter in state.unloaded]
                done += [RuntimeError(f"{state.url}: {failure}") for failure in state.failures]
        return done

    def _of(self, engine: Engine, names: tuple[str, ...]) -> Replicas:
        """The same object each time: it knows since when an adapter is not wanted."""
        if engine not in self._replicas or self._replicas[engine][0] != names:
            made = engine.replicas(names, GRACE_SECONDS)
            self._replicas[engine] = (names, made)
        return self._replicas[engine][1]


class Follower(Protocol):
    """Brings aliases in MLflow to what the state database says."""

    def names(self) -> list[str]:
        """What MLflow has to be told of."""

    def follow(self, name: str) -> str | None:
        """Tell it; says what was told."""


class AliasKeeper:
    """Lets MLflow's aliases follow: those of models the champions, those of prompts the labels."""

    def __init__(self, watched: Watched, make: Callable[[Database, str], Follower]):
        self._watched = watched
        self._make = make
        self._follower: tuple[str, Follower] | None = None

    async def step(self) -> list[Outcome]:
        """Tell MLflow what it does not know yet; says what was told."""
        uri = self._watched.installation.configuration.mlflow.tracking_uri
        if uri is None:
            return []
        if self._follower is None or self._follower[0] != uri:
            self._follower = (uri, self._make(self._watched.installation.database, uri))
        follower = self._follower[1]
        told = (self._follow(follower, name) for name in follower.names())
        outcomes = await asyncio.gather(*told, return_exceptions=True)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _follow(self, follower: Follower, name: str) -> str | None:
        return follower.follow(name)


def champions(database: Database, tracking_uri: str) -> Follower:
    """Follows the champions of models."""
    return AliasFollower(database, Registry(tracking_uri))


def prompt_labels(database: Database, tracking_uri: str) -> Follower:
    """Follows the labels of prompts."""
    return LabelFollower(database, PromptRegistry(tracking_uri))


class RecordKeeper:
    """Tells the Kubeflow Model Registry of versions and moves, if one is configured."""

    def __init__(self, watched: Watched):
        self._watched = watched
        self._recorder: tuple[JsonServer, Recorder] | None = None

    async def step(self) -> list[Outcome]:
        """Send what is due; says what was sent."""
        installation = self._watched.installation
        server = model_registry(kubeflow_of(installation.configuration), installation.settings)
        if server is None:
            return []
        if self._recorder is None or self._recorder[0] != server:
            made = Recorder(installation.database, KubeflowRegistry(server))
            self._recorder = (server, made)
        return await self._recorder[1].step()


class ApprovalKeeper:
    """Ends requests for leave whose moment has passed."""

    def __init__(self, watched: Watched):
        self._watched = watched

    async def step(self) -> list[str]:
        """Look at the open ones; says which are void."""
        return void_overtaken(self._watched.installation.database)


class Decider:
    """Decides the experiments that are under way."""

    def __init__(self, watched: Watched):
        self._watched = watched
        self._observations: dict[str, Observations] = {}
        self._found: dict[str, Finding] = {}

    async def step(self) -> list[Outcome]:
        """Look at each running experiment; says which ones ended, and how."""
        rows = under_way(self._watched.installation.database)
        running = {row.experiment_id for row in rows}
        self._observations = {
            key: kept for key, kept in self._observations.items() if key in running
        }
        self._found = {key: kept for key, kept in self._found.items() if key in running}
        outcomes = await asyncio.gather(
            *(self._decide(row) for row in rows), return_exceptions=True
        )
        return [outcome for outcome in outcomes if outcome is not None]

    async def _decide(self, row: ExperimentRow) -> str | None:
        installation = self._watched.installation
        if row.experiment_id not in self._observations:
            made = Observations(installation.database, installation.reader, row)
            self._observations[row.experiment_id] = made
        before = self._found.get(row.experiment_id)
        finding = examine(row, self._observations[row.experiment_id], before)
        self._found[row.experiment_id] = finding
        if finding.decision is None:
            return None
        services = services_for(installation, row.alias)
        ended = await conclude(services, row.experiment_id, finding)
        return f"experiment {row.experiment_id} on {row.alias} ends {ended.state}: {ended.message}"


class Routine:
    """A duty, done again and again on a thread of its own until `stopped`."""

    def __init__(self, name: str, duty: Duty, stopped: threading.Event):
        self.name = name
        self.came_round = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._duty = duty
        self._stopped = stopped
        self._said: dict[str, float] = {}

    def _run(self) -> None:
        asyncio.run(self._repeat())

    async def _repeat(self) -> None:
        while not self._stopped.is_set():
            (outcome,) = await asyncio.gather(self._duty(), return_exceptions=True)
            for one in [outcome] if isinstance(outcome, BaseException) else outcome:
                self._tell(one)
            self.came_round = time.monotonic()
            self._stopped.wait(TICK_SECONDS)  # nothing else runs on this thread's loop

    def _tell(self, outcome: Outcome) -> None:
        """One line for each thing that was done; a trouble that lasts is told once a minute."""
        if isinstance(outcome, str):
            _log.info("%s: %s", self.name, outcome)
            return
        text = str(outcome) or type(outcome).__name__
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < REPEAT_SECONDS}
        if text not in self._said:
            self._said[text] = now
            unforeseen = None if isinstance(outcome, FORESEEN) else outcome
            _log.error("%s: %s", self.name, text, exc_info=unforeseen)


class Service:
    """The controller as a process: its routines and its sign of life."""

    def __init__(self, installation: Installation):
        self._run = installation.run_dir
        self._watched = Watched(installation)
        self._stopped = threading.Event()
        duties: dict[str, Duty] = {
            "adapters": AdapterKeeper(self._watched).step,
            "aliases": AliasKeeper(self._watched, champions).step,
            "prompt labels": AliasKeeper(self._watched, prompt_labels).step,
            "experiments": Decider(self._watched).step,
            "model registry": RecordKeeper(self._watched).step,
            "approvals": ApprovalKeeper(self._watched).step,
        }
        self._routines = [Routine(name, duty, self._stopped) for name, duty in duties.items()]

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Make `serve` return soon."""
        self._stopped.set()

    def serve(self) -> bool:
        """Work until stopped. True if all routines have ended, False if one hangs."""
        for routine in self._routines:
            routine.thread.start()
        while not self._stopped.is_set():
            self._watched.reload_if_changed()
            self._show_life()
            self._stopped.wait(TICK_SECONDS / 2)
        deadline = time.monotonic() + STOP_SECONDS
        for routine in self._routines:
            routine.thread.join(max(deadline - time.monotonic(), 0))
        return not any(routine.thread.is_alive() for routine in self._routines)

    def _show_life(self) -> None:
        oldest = time.monotonic() - HANGS_SECONDS
        if all(one.came_round > oldest and one.thread.is_alive() for one in self._routines):
            with suppress(OSError):
                (self._run / ALIVE).touch()


@contextmanager
def controller_lock(run: Path) -> Iterator[None]:
    """Be the one controller of a home. Raises ControllerRuns if there is one."""
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControllerRuns(f"{run / LOCK} is held: a controller runs already") from None
        yield


def main() -> None:
    """Work until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings()
    with controller_lock(settings.home / "run"), open_installation(settings) as installation:
        service = Service(installation)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, service.stop)
        _log.info("controlling %s", settings.home)
        if not service.serve():
            _log.warning("ending in the middle of a step; it is done again at the next start")
            logging.shutdown()
            os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except ControllerRuns as runs:
        raise SystemExit(str(runs)) from None
