"""The schedule where something is amiss: clocks that are wrong, stubborn children, full disks."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from deploy import jobs
from deploy.clock import Clock
from deploy.jobs import Runner, _emptied, _end, _keep_small
from deploy.schedule import Schedule
from deploy.schedule_plan import Job
from deploy.scheduled_runs import Firing, ScheduledRuns
from tests.deploy.test_schedule import Home, check_command, home_in, wait_for


@pytest.fixture
def home(tmp_path) -> Iterator[Home]:
    with home_in(tmp_path / "home") as made:
        yield made


class SetClock(Clock):
    """A clock that shows these moments, one at each look; then the last."""

    def __init__(self, *moments: datetime):
        super().__init__()
        self.moments = list(moments)

    def now(self) -> datetime:
        return self.moments.pop(0) if self.moments[1:] else self.moments[0]


def test_a_moment_in_the_future_does_not_stop_a_job(home):
    home.write({"look": {"every": "1s", "command": check_command(home)}})
    ahead = datetime.now(UTC) + timedelta(days=10)
    home.runs.end(home.runs.begin(Firing("look", ["check"], ahead, 60)), "done", 0, None)
    home.start(speed="1")
    wait_for(lambda: [row for row in home.rows("look", "done") if row.due_at < ahead], home)
    assert "the clock was set back" in home.said()
    assert home.end() == 0


def test_waiting_ends_when_the_clock_is_set_back_but_not_when_it_is_corrected(monkeypatch):
    monkeypatch.setattr("deploy.clock.LOOK_SECONDS", 0.01)
    start = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
    hour = timedelta(hours=1)
    clock = SetClock(start, start, start - timedelta(seconds=5), start - hour, start + hour)
    asyncio.run(asyncio.wait_for(clock.wait_until(start + hour), 5))
    assert clock.now() == start + hour
    assert len(clock.moments) == 1, "it went on after 5 s, and returned after an hour back"


def test_waiting_for_what_is_past_lets_others_go_on():
    async def turns() -> int:
        clock, past, done = Clock(), datetime(2020, 1, 1, tzinfo=UTC), 0

        async def other() -> None:
            nonlocal done
            done += 1

        task = asyncio.create_task(other())
        await clock.wait_until(past)
        await task if task.done() else task.cancel()
        return done

    assert asyncio.run(turns()) == 1


@pytest.mark.parametrize("every", ["1.1s", "0.5s", "0.0001h"])
def test_an_interval_is_whole_seconds(every):
    with pytest.raises(ValidationError, match="whole seconds are wanted"):
        Job.model_validate({"every": every, "command": ["check"]})


def test_a_grandchild_that_ignores_sigterm_is_ended(monkeypatch):
    monkeypatch.setattr(jobs, "STOP_SECONDS", 2.0)

    async def run() -> bytes:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "(trap '' TERM; echo; sleep 300) & wait",
            start_new_session=True, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()  # the trap is set
        await _end(process)
        return await asyncio.wait_for(process.stdout.read(), 5)  # until nobody holds it

    assert asyncio.run(run()) == b""


def test_a_runs_output_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "OUTPUT_BYTES", 10_000)
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.01)
    output = tmp_path / "out"
    output.write_text("of the run before")

    async def run() -> None:
        keeping = asyncio.create_task(_keep_small(output))
        for number in range(100):
            file.write(f"line {number}\n".encode() * 200)
            file.flush()
            await asyncio.sleep(0.02)
        keeping.cancel()

    with _emptied(output) as file:
        asyncio.run(run())
    assert output.stat().st_size < 20_000
    assert output.read_text().endswith("line 99\n")


def test_a_run_whose_output_cannot_be_written_has_a_row_that_says_so(home):
    home.write({})
    (home.folder / "logs").write_text("a file, no folder")
    firing = Firing("look", ["check"], datetime.now(UTC), 60)
    asyncio.run(Runner(home.settings, home.runs, Clock()).run(firing))
    (row,) = home.rows("look")
    assert row.state == "failed"
    assert "cannot be started" in row.message


def test_a_job_has_no_place_while_a_run_holds_it(home):
    schedule = Schedule(Runner(home.settings, home.runs, Clock()), home.runs, Clock())
    assert schedule.is_free("trigger:judge")
    with ScheduledRuns(home.database, home.folder / "run").place("trigger:judge"):
        assert not schedule.is_free("trigger:judge")
    assert schedule.is_free("trigger:judge")

    async def fired() -> bool:
        home.write({})
        schedule.fire(Firing("trigger:judge", check_command(home), datetime.now(UTC), 60))
        free = schedule.is_free("trigger:judge")
        await schedule.stop()
        return free

    assert not asyncio.run(fired())


def test_a_variable_that_is_not_set_is_told_of_at_once(home):
    rules = [{"name": "tell", "webhook": {"url_env": "NO_SUCH_HOOK"}}]
    home.write({}, triggers={"rules": rules})
    home.start()
    wait_for(lambda: "the environment variable NO_SUCH_HOOK is not set" in home.said(), home)
    assert home.end() == 0
