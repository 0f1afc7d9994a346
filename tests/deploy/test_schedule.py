"""A real schedule under a compressed clock: it fires, catches up, refuses overlaps, and stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.health import probe
from deploy.migrations import upgrade
from deploy.parts import parts_of
from deploy.schedule_plan import Job, SchedulePlan
from deploy.scheduled_runs import Firing, ScheduledRuns, UnderWay
from deploy.stack import Stack
from gateway.configuration import ConfigurationError, owned_section, parse_configuration
from gateway.database import Database, open_database
from gateway.settings import load_settings
from pipelines.tables import ScheduledRunRow

ROOT = Path(__file__).parents[2]
HOUR_A_SECOND = "3600"
MOMENTS = st.datetimes(
    min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1), timezones=st.just(UTC)
)


class Home:
    """An installation without any server, and its schedule as a process."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.environ = {**os.environ, "LLMOPS_HOME": str(folder)}
        self.environ.pop("LLMOPS_CONFIG", None)
        self.settings = load_settings(self.environ)
        upgrade(self.settings.database_url)
        self.database: Database = open_database(self.settings.database_url)
        self.runs = ScheduledRuns(self.database, folder / "run")
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, jobs: dict[str, Any], **sections: Any) -> None:
        """Put a configuration with these jobs, and these sections, in force."""
        given = {
            "upstreams": {"up": {"url": "http://127.0.0.1:9/v1"}},
            "models": {"*": {"upstream": "up"}},
            "schedule": {"jobs": jobs},
            **sections,
        }
        fresh = self.folder / "gateway.new"
        fresh.write_text(yaml.safe_dump(given))
        fresh.replace(self.folder / "gateway.yaml")

    def start(self, speed: str = HOUR_A_SECOND) -> None:
        """Start the schedule."""
        with (self.folder / "schedule.out").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.schedule", "--speed", speed],
                cwd=ROOT, env=self.environ, stdout=output, stderr=output,
            )  # fmt: skip

    def said(self) -> str:
        return (self.folder / "schedule.out").read_text()

    def rows(self, job: str, *states: str) -> list[ScheduledRunRow]:
        """Runs of a job in these states, oldest first."""
        found = [row for row in self.runs.latest(1000, job) if not states or row.state in states]
        return found[::-1]

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self.process = None
        return code


@contextmanager
def home_in(folder: Path) -> Iterator[Home]:
    home = Home(folder)
    try:
        yield home
    finally:
        if home.process is not None:
            home.end(signal.SIGKILL)
            for orphan in children(home):
                orphan.kill()
        home.database.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with home_in(tmp_path / "home") as made:
        yield made


def wait_for(condition: Callable[[], Any], home: Home, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert home.process is None or home.process.poll() is None, home.said()
        time.sleep(0.05)
    raise AssertionError(f"nothing came of it within {seconds} s: {home.said()}")


def check_command(home: Home) -> list[str]:
    """A quick command of llmops that works."""
    return ["check", str(home.folder / "gateway.yaml")]


def endless(home: Home) -> list[str]:
    """A command of llmops that does not end by itself."""
    return ["logs", "tail", "-f"]


def children(home: Home) -> list[psutil.Process]:
    """Processes of jobs of this home."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environ, command = process.info["environ"] or {}, process.info["cmdline"] or []
        if environ.get("LLMOPS_HOME") == str(home.folder) and "deploy.cli" in command:
            found.append(process)
    return found


@settings(deadline=None)
@given(at=MOMENTS, seconds=st.integers(1, 10 * 86_400))
def test_moments_are_whole_multiples_and_none_is_left_out(at, seconds):
    job = Job.model_validate({"every": f"{seconds}s", "command": ["check"]})
    moment, after = job.moment(at), job.after(job.moment(at))
    assert moment <= at < after
    assert moment.timestamp() % seconds == 0
    assert (after - moment).total_seconds() == seconds
    assert job.moment(after) == after
    assert job.missed(moment, after) == 0


@settings(deadline=None)
@given(at=MOMENTS, seconds=st.integers(1, 86_400), gone=st.integers(0, 500))
def test_missed_moments_are_counted(at, seconds, gone):
    job = Job.model_validate({"every": f"{seconds}s", "command": ["check"]})
    due = job.moment(at)
    assert job.missed(due - timedelta(seconds=seconds * (gone + 1)), due) == gone


def test_it_fires_at_every_moment_under_a_compressed_clock(home):
    home.write({"look": {"every": "8h", "command": check_command(home)}})
    home.start()
    done = wait_for(lambda: (found := home.rows("look", "done"))[2:] and found, home)
    alive = (home.folder / "run" / "schedule.alive").as_uri()
    assert probe(alive) is None
    assert home.end() == 0
    moments = [row.due_at for row in done]
    assert all(moment.timestamp() % (8 * 3600) == 0 for moment in moments)
    assert moments[0] > datetime.now(UTC) - timedelta(hours=1)
    assert all(one < other for one, other in pairwise(moments))
    every = home.rows("look")
    gaps = [
        (other.due_at - one.due_at).total_seconds() / 3600 - 8 * other.missed
        for one, other in pairwise(every)
    ]
    assert set(gaps) == {8}, "a moment was neither used nor counted as missed"
    assert all(row.exit_code == 0 and "gateway.yaml" in (row.message or "") for row in done)


def test_missed_moments_are_caught_up_with_one_run(home):
    home.write({"look": {"every": "1h", "command": check_command(home)}})
    job = Job.model_validate({"every": "1h", "command": ["check"]})
    due = job.moment(datetime.now(UTC))
    before = Firing("look", ["check"], due - timedelta(hours=5), 60)
    home.runs.end(home.runs.begin(before), "done", 0, None)
    home.start(speed="1")
    wait_for(lambda: home.rows("look", "done")[1:], home)
    time.sleep(1.5)
    assert home.end() == 0
    rows = home.rows("look")
    assert len(rows) in (2, 3)  # 3: the hour has changed meanwhile
    assert rows[1].missed in (4, 5)
    assert rows[1].due_at in (due, due + timedelta(hours=1))
    assert "were missed, caught up with one" in home.said()


def test_a_run_that_is_due_while_its_last_is_under_way_is_refused(home):
    home.write({"watch": {"every": "2h", "command": endless(home), "timeout": "12h"}})
    home.start()
    wait_for(lambda: home.rows("watch", "refused")[1:], home)
    assert len(home.rows("watch", "running")) == 1
    assert "under way" in home.rows("watch", "refused")[0].message
    ended = wait_for(lambda: home.rows("watch", "failed"), home)
    assert "timeout of 43200 s" in ended[0].message
    wait_for(lambda: home.rows("watch", "running"), home)  # and the next one has its place
    assert home.end() == 0
    assert home.rows("watch")[-1].state in ("interrupted", "refused")
    assert not home.rows("watch", "running")
    assert not children(home)


def test_a_run_that_outlives_a_killed_schedule_keeps_its_place(home):
    home.write({"watch": {"every": "2h", "command": endless(home)}})
    home.start()
    wait_for(lambda: children(home), home)
    home.end(signal.SIGKILL)
    (orphan,) = children(home)
    with pytest.raises(UnderWay), home.runs.place("watch"):
        pass
    orphan.kill()
    psutil.wait_procs([orphan], timeout=10)
    with home.runs.place("watch"):
        home.runs.begin(Firing("watch", ["check"], datetime.now(UTC), 60))
    assert [row.state for row in home.rows("watch")][-2:] == ["interrupted", "running"]


def test_a_changed_file_is_followed_and_a_broken_one_is_not(home):
    home.write({"look": {"every": "4h", "command": check_command(home)}})
    home.start()
    wait_for(lambda: home.rows("look", "done"), home)
    (home.folder / "gateway.yaml").write_text("schedule: {jobs: {look: {every: soon}}}")
    wait_for(lambda: "stays as it was" in home.said(), home)
    seen = len(home.rows("look"))
    wait_for(lambda: len(home.rows("look")) > seen, home)
    home.write({"other": {"every": "4h", "command": check_command(home)}})
    wait_for(lambda: home.rows("other", "done"), home)
    assert home.end() == 0


def test_jobs_have_the_lowest_priority(home):
    home.write({"watch": {"every": "2h", "command": endless(home)}})
    home.start()
    (job,) = wait_for(lambda: children(home), home)
    wait_for(lambda: job.nice() == 19, home)  # it may still be `nice` that runs
    group = Path(f"/proc/{job.pid}/autogroup")
    if group.exists():  # else the kernel shares processors by processes alone
        wait_for(lambda: "nice 19" in group.read_text(), home)
    assert job.environ()["OMP_NUM_THREADS"] == "1"
    assert home.end() == 0


def test_a_second_schedule_of_a_home_is_refused(home):
    home.write({})
    home.start()
    wait_for(lambda: (home.folder / "run" / "schedule.alive").exists(), home)
    second = subprocess.run(
        [sys.executable, "-m", "deploy.schedule"],
        cwd=ROOT, env=home.environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 1
    assert "a schedule runs already" in second.stderr
    assert home.end() == 0


def test_once_runs_a_job_and_says_how_it_ended(home):
    home.write(
        {
            "look": {"every": "1h", "command": check_command(home)},
            "wrong": {"every": "1h", "command": ["check", str(home.folder / "none.yaml")]},
        }
    )

    def once(job: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.cli", "schedule", "once", job]
        return subprocess.run(
            command, cwd=ROOT, env=home.environ, capture_output=True, text=True, timeout=60
        )

    good, bad, unknown = once("look"), once("wrong"), once("nothing")
    assert (good.returncode, bad.returncode, unknown.returncode) == (0, 1, 1)
    assert "exit code 0" in good.stdout
    assert "none.yaml" in bad.stdout
    assert "no job is called 'nothing' (there are: look, wrong)" in unknown.stderr
    assert [row.state for row in home.rows("look")] == ["done"]
    assert [row.state for row in home.rows("wrong")] == ["failed"]


def test_the_section_is_checked_with_paths():
    text = "upstreams: {}\nmodels: {}\nschedule: {jobs: {look: {every: 5, command: [], nope: 1}}}"
    with pytest.raises(ConfigurationError) as refused:
        owned_section(parse_configuration(text), "schedule", SchedulePlan)
    said = str(refused.value)
    assert "schedule.jobs.look.every: a time span such as 30s" in said
    assert "schedule.jobs.look.command" in said
    assert "schedule.jobs.look.nope: unknown key" in said


def test_the_part_is_there_only_if_something_is_configured(home):
    base = "upstreams: {}\nmodels: {}\n"
    for text, wanted in (
        ("", False),
        ("schedule: {jobs: {}}", True),
        ("triggers: {rules: []}", True),
        ("schedule: {jobs: {}}\nstack: {schedule: {enabled: false}}", False),
    ):
        configuration = parse_configuration(base + text)
        stack = owned_section(configuration, "stack", Stack)
        names = [part.name for part in parts_of(configuration, stack, home.settings)]
        assert ("schedule" in names) is wanted, text
