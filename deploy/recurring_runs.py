"""Jobs of the schedule as Kubeflow's recurring runs: one pipeline, whose one task runs a command.

The compiled form (IR) is `pipelines/compiled/scheduled_job.yaml`, under version control;
`python -m deploy.recurring_runs` writes it anew. What the schedule promises on one machine is asked
of Kubeflow for each job: one run of it at a time, and missed runs caught up with one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfp import compiler, dsl

from deploy.schedule_plan import Job, SchedulePlan
from pipelines.code_version import COMPILED as PIPELINES
from pipelines.kubeflow import IMAGE

if TYPE_CHECKING:
    from kfp import Client

COMPILED = PIPELINES / "scheduled_job.yaml"
NAME, DESCRIPTION = "scheduled-job", "A command of llmops, as the schedule runs it"


def run(command: list) -> None:  # type: ignore[type-arg] # Kubeflow knows no list[str]
    """Run a command of llmops. What found something has done its work, too."""
    from deploy.jobs import run_command

    run_command(command)


def scheduled_job(command: list) -> None:  # type: ignore[type-arg]
    """The pipeline; `command` is arguments of `llmops`, such as `["drift", "check"]`."""
    task = dsl.component(run, base_image=IMAGE, install_kfp_package=False)(command=command)
    task.set_cpu_request("0.5").set_cpu_limit("2")
    task.set_memory_request("1G").set_memory_limit("4G")
    task.set_caching_options(False)  # the same command looks at other traffic each time


def compile_to(path: Path) -> None:
    """Write the IR; the same code gives the same bytes."""
    pipeline = dsl.pipeline(scheduled_job, name=NAME, description=DESCRIPTION)
    fresh = path.with_name(f".new-{path.name}")
    compiler.Compiler().compile(pipeline, str(fresh))
    fresh.replace(path)


def recurring_run(name: str, job: Job) -> Mapping[str, Any]:
    """Arguments of `kfp.Client.create_recurring_run` for a job, all but the experiment."""
    return {
        "job_name": name,
        "description": f"llmops {' '.join(job.command)}",
        "interval_second": round(job.every),
        "max_concurrency": 1,
        "no_catchup": True,
        "params": {"command": list(job.command)},
        "pipeline_package_path": str(COMPILED),
        "enable_caching": False,
    }


def submit(client: "Client", plan: SchedulePlan, experiment_id: str) -> None:
    """Make a recurring run of each job. Those that are there already are not looked for."""
    for name, job in plan.jobs.items():
        client.create_recurring_run(experiment_id, **recurring_run(name, job))


if __name__ == "__main__":
    compile_to(COMPILED)
