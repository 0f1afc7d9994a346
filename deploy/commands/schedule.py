"""`llmops schedule`: jobs that run by themselves, and what verdicts have triggered."""

import asyncio
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deploy.commands.listing import print_table
from deploy.commands.state import failed, open_state
from deploy.schedule_plan import Job, SchedulePlan
from gateway.configuration import load_configuration, owned_section
from gateway.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Jobs that run by themselves.")


@app.command()
def run(
    speed: Annotated[float, typer.Option(min=0.001, help="how fast its clock runs")] = 1.0,
) -> None:
    """Follow the jobs and the rules, as the part `schedule` of the stack does."""
    from deploy.migrations import upgrade
    from deploy.schedule import ScheduleRuns
    from deploy.schedule import run as run_schedule

    settings = load_settings()
    upgrade(settings.database_url)
    try:
        run_schedule(settings, speed)
    except ScheduleRuns as error:
        raise failed(str(error)) from error


@app.command()
def status(
    number: Annotated[int, typer.Option("-n", min=1, max=1000, help="runs and events")] = 10,
) -> None:
    """The jobs with their next moment, the latest runs, and what verdicts have triggered."""
    from deploy.clock import Clock
    from deploy.scheduled_runs import ScheduledRuns
    from pipelines.trigger import events

    with open_state() as state:
        configuration = load_configuration(state.settings.config_path)
        plan = owned_section(configuration, "schedule", SchedulePlan)
        runs = ScheduledRuns(state.database, state.settings.home / "run")
        moment = Clock().now()
        jobs = Table("job", "command", "every", "last due", "next due")
        for name, job in plan.jobs.items():
            last = runs.last_due(name)
            jobs.add_row(
                name,
                escape(" ".join(job.command)),
                f"{job.every:g} s",
                last.isoformat(timespec="seconds") if last else "",
                job.after(moment).isoformat(timespec="seconds"),
            )
        print_table(jobs)
        latest = Table("run", "state", "due", "missed", "took", "exit", "message")
        for row in runs.latest(number):
            latest.add_row(
                row.job,
                row.state,
                row.due_at.isoformat(timespec="seconds"),
                str(row.missed or ""),
                f"{(row.ended_at - row.started_at).total_seconds():.1f} s" if row.ended_at else "",
                "" if row.exit_code is None else str(row.exit_code),
                escape((row.message or "").splitlines()[-1] if row.message else ""),
            )
        print_table(latest)
        triggered = Table("rule", "action", "state", "attempts", "why", "answer")
        for event in events(state.database, number):
            triggered.add_row(
                event.rule,
                event.action,
                event.state,
                str(event.attempts),
                escape(event.reason),
                escape(event.answer or ""),
            )
        print_table(triggered)


@app.command()
def once(
    job: Annotated[str, typer.Argument(help="name of a job of the schedule")],
) -> None:
    """Run a job now, as it runs when it is due. Exit code: the job's."""
    from deploy.clock import Clock
    from deploy.jobs import Runner, output_of, tail
    from deploy.scheduled_runs import Firing, ScheduledRuns, UnderWay

    with open_state() as state:
        found = _job(job)
        runs = ScheduledRuns(state.database, state.settings.home / "run")
        clock = Clock()
        firing = Firing(job, found.command, clock.now(), found.timeout)
        try:
            code = asyncio.run(Runner(state.settings, runs, clock).run(firing))
        except UnderWay as error:
            raise failed(str(error)) from error
        output = output_of(state.settings.home, job)
    typer.echo(tail(output))
    typer.echo(f"{job}: exit code {code}; its output is in {output}")
    raise typer.Exit(1 if code is None else code)


def _job(name: str) -> Job:
    configuration = load_configuration(load_settings().config_path)
    plan = owned_section(configuration, "schedule", SchedulePlan)
    if name not in plan.jobs:
        known = ", ".join(plan.jobs) or "none"
        raise ValueError(f"schedule.jobs: no job is called {name!r} (there are: {known})")
    return plan.jobs[name]
