"""The schedule: `python -m deploy.schedule`. Runs jobs when they are due, and lets stored verdicts
trigger what the rules say.

Moments that went by while nothing ran here are caught up with one run. A job that is due while its
run before is still under way is refused, and the table says so.

It touches `run/schedule.alive` while it comes round. One per LLMOPS_HOME, held by a lock.
"""

import argparse
import asyncio
import fcntl
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from deploy.clock import Clock
from deploy.jobs import Runner
from deploy.schedule_plan import Job, SchedulePlan
from deploy.scheduled_runs import Firing, ScheduledRuns, UnderWay
from evals.records import Verdict
from gateway.configuration import (
    Configuration,
    ConfigurationError,
    load_configuration,
    owned_section,
)
from gateway.database import Database, open_database
from gateway.settings import Settings, load_settings
from pipelines.champion import running_experiment
from pipelines.runs import is_under_way
from pipelines.spec import load_spec
from pipelines.trigger import Trigger
from pipelines.trigger_outbox import MISHAPS
from pipelines.trigger_rules import Rule, Triggers

ALIVE, LOCK = "schedule.alive", "schedule.lock"
ROUND_SECONDS = 1.0
TRIGGERED_SECONDS = 24 * 3600.0  # the longest that a command may take that a verdict started
_log = logging.getLogger(__name__)


class ScheduleRuns(RuntimeError):
    """Another schedule holds the lock of this home."""


class Schedule:
    """Follows the jobs of a plan."""

    def __init__(self, runner: Runner, runs: ScheduledRuns, clock: Clock):
        self._runner = runner
        self._runs = runs
        self._clock = clock
        self._followers: list[asyncio.Task[None]] = []
        self._under_way: dict[asyncio.Task[None], str] = {}  # with their jobs

    def follow(self, plan: SchedulePlan) -> None:
        """Follow these jobs from now on, and no others. Runs under way are not touched."""
        for follower in self._followers:
            follower.cancel()
        self._followers = [
            asyncio.create_task(self._follow(name, job)) for name, job in plan.jobs.items()
        ]

    def fire(self, firing: Firing) -> None:
        """Begin a run beside everything else."""
        task = asyncio.create_task(self._run(firing))
        self._under_way[task] = firing.job
        task.add_done_callback(self._under_way.pop)

    def is_free(self, job: str) -> bool:
        """Whether a run of `job` may begin now."""
        if job in self._under_way.values():
            return False
        try:
            with self._runs.place(job):
                return True
        except UnderWay:  # of a schedule that was killed, say
            return False

    def trouble(self) -> BaseException | None:
        """What ended a follower that should go on."""
        ended = (task for task in self._followers if task.done() and not task.cancelled())
        return next((task.exception() for task in ended), None)

    async def stop(self) -> None:
        """End every run, and wait for their ends."""
        tasks = [*self._followers, *self._under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, job: Job) -> None:
        due = job.moment(self._clock.now())
        before = self._runs.last_due(name) or due
        while True:
            if before > due:
                _log.warning("%s: ran for %s already; the clock was set back", name, before)
                before = due
            if due > before:
                missed = job.missed(before, due)
                if missed:
                    _log.info("%s: %d runs were missed, caught up with one", name, missed)
                self.fire(Firing(name, job.command, due, job.timeout, missed))
                before = due
            await self._clock.wait_until(job.after(before))
            due = job.moment(self._clock.now())

    async def _run(self, firing: Firing) -> None:
        try:
            await self._runner.run(firing)
        except UnderWay as error:
            _log.warning("%s", error)
        except SQLAlchemyError as error:
            _log.error("%s: the state database: %s", firing.job, error)
        except OSError as error:
            _log.error("%s: cannot be started: %s", firing.job, error)


class Service:
    """The schedule as a process: jobs, triggers, and its sign of life."""

    def __init__(self, settings: Settings, database: Database, clock: Clock):
        self._settings = settings
        self._database = database
        self._clock = clock
        runs = ScheduledRuns(database, settings.home / "run")
        self._schedule = Schedule(Runner(settings, runs, clock), runs, clock)
        self._trigger: Trigger | None = None
        self._looking: asyncio.Task[None] | None = None
        self._stamp: object = None
        self._said = ""

    async def serve(self, stopped: asyncio.Event) -> None:
        """Work until `stopped`. Raises what ended a follower."""
        self._stamp = _look(self._settings.config_path)  # before it is read: later changes count
        self._adopt(load_configuration(self._settings.config_path))
        try:
            while not stopped.is_set():
                self._adopt_changed()
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._look_at_verdicts())
                trouble = self._schedule.trouble()
                if trouble is not None:
                    raise trouble
                with suppress(OSError):
                    (self._settings.home / "run" / ALIVE).touch()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), ROUND_SECONDS)
        finally:
            if self._looking is not None:
                self._looking.cancel()
            await self._schedule.stop()

    def _adopt(self, configuration: Configuration) -> None:
        plan = owned_section(configuration, "schedule", SchedulePlan)
        triggers = owned_section(configuration, "triggers", Triggers)
        self._schedule.follow(plan)
        for name in triggers.variables:
            if self._settings.secret_value(name) is None:
                _log.warning("triggers: the environment variable %s is not set", name)
        self._trigger = Trigger(
            self._database, self._settings, triggers, self._start, self._is_free
        )
        _log.info("following %s", ", ".join(plan.jobs) or "no job")

    def _adopt_changed(self) -> None:
        """Take a changed file; one that cannot be used is told of once, and not taken."""
        stamp = _look(self._settings.config_path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._adopt(load_configuration(self._settings.config_path))
        except ConfigurationError as error:
            _log.error("the schedule in force stays as it was: %s", error)

    async def _look_at_verdicts(self) -> None:
        assert self._trigger is not None
        try:
            for done in await self._trigger.step():
                _log.info("trigger %s", done)
            self._said = ""
        except SQLAlchemyError as error:  # it is looked at again a second later
            if str(error) != self._said:
                self._said = str(error)
                _log.error("triggers: the state database: %s", error)
        except MISHAPS as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.exception("triggers")

    def _start(self, rule: Rule, verdict: Verdict) -> None:
        """Begin a rule's command as a run of its own."""
        command = tuple(rule.command_for(verdict))
        self._schedule.fire(Firing(_job(rule), command, self._clock.now(), TRIGGERED_SECONDS))

    def _is_free(self, rule: Rule) -> bool:
        if not self._schedule.is_free(_job(rule)):
            return False
        if rule.pipeline is None:
            return True
        spec = load_spec(Path(rule.pipeline))
        if is_under_way(self._settings.home / "run", spec.name):  # by hand, say
            return False
        with self._database.session() as session:
            return running_experiment(session, spec.alias) is None


def _job(rule: Rule) -> str:
    """The name that the runs of a rule's command go by; there is one place for them."""
    return f"trigger:{rule.name}" if rule.pipeline is None else f"train:{rule.pipeline}"


@contextmanager
def schedule_lock(run: Path) -> Iterator[None]:
    """Be the one schedule of a home. Raises ScheduleRuns if there is one."""
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScheduleRuns(f"{run / LOCK} is held: a schedule runs already") from None
        yield


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


async def serve(settings: Settings, speed: float) -> None:
    """Work until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    database = open_database(settings.database_url)
    try:
        await Service(settings, database, Clock(speed)).serve(stopped)
    finally:
        database.close()


def run(settings: Settings, speed: float) -> None:
    """Be the schedule of this home. Raises ScheduleRuns if there is one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with schedule_lock(settings.home / "run"):
        asyncio.run(serve(settings, speed))


def main() -> None:
    """Read the command line, and work."""
    parser = argparse.ArgumentParser(prog="python -m deploy.schedule", description=__doc__)
    parser.add_argument("--speed", type=float, default=1.0, help="how fast the clock runs")
    run(load_settings(), parser.parse_args().speed)


if __name__ == "__main__":
    try:
        main()
    except ScheduleRuns as runs:
        raise SystemExit(str(runs)) from None
