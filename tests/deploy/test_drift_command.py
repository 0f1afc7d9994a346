"""`llmops drift` as a person or a schedule calls it: what it says, and its exit codes."""

import fcntl
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.commands import drift
from deploy.schedule_plan import SchedulePlan
from evals.drift_plan import DriftPlan
from evals.reference import find, folder_of, load
from evals.verdicts import verdicts_on
from gateway.audit import AuditFilter, entries
from gateway.configuration import owned_section, parse_configuration
from gateway.database import Database, open_database
from pipelines.trigger_rules import Triggers
from tests.evals.drift_log import DriftHome, Made
from tests.evals.word_vectors import KEY, word_vectors

SUBJECT = "drift:assistant@3"
PAGE = Path(__file__).parents[2] / "docs" / "drift.md"


class Command:
    """A home with the requests of the last three hours, and the command on it."""

    def __init__(self, folder: Path):
        began = datetime.now(UTC) - timedelta(hours=3)
        self.home = DriftHome(folder, minutes=0.1, moment=began)
        self.url = f"sqlite:///{folder / 'state.db'}"
        self.write()

    def write(self, **sections: Any) -> None:
        given: dict[str, Any] = {
            "upstreams": {"up": {"url": "http://127.0.0.1:9/v1"}},
            "models": {"*": {"upstream": "up"}},
            "drift": {"least_rows": 200, "subjects": [{"prompt": "assistant"}]},
        }
        for name, section in sections.items():
            given[name] = {**given.get(name, {}), **section}
        (self.home.folder / "gateway.yaml").write_text(yaml.safe_dump(given))

    def requests(self, rows: int, made: Made | None = None) -> None:
        """So many more, six seconds apart."""
        self.home.add(rows, made)

    def __call__(self, *arguments: str) -> Result:
        env = {"LLMOPS_HOME": str(self.home.folder), "LLMOPS_CONFIG": ""}
        return CliRunner().invoke(drift.app, [*arguments], env=env)

    def verdicts(self, subject: str = SUBJECT) -> list[Any]:
        with self.home.database.session() as session:
            return verdicts_on(session, subject)


@pytest.fixture
def llmops(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path / "home")
    yield made
    made.home.database.close()


@pytest.fixture
def pinned(llmops: Command) -> Command:
    """With a reference of 600 requests."""
    llmops.requests(600)
    done = llmops("reference", "pin", "assistant", "--reason", "before the new version")
    assert done.exit_code == 0, done.output
    return llmops


def test_pin_list_check_and_an_alert(pinned):
    listed = pinned("reference", "list").output
    assert "assistant" in listed
    assert "600 rows from" in listed
    pinned.requests(250)
    quiet = pinned("check", "assistant")
    assert quiet.exit_code == 0
    assert f"{SUBJECT} against reference:" in quiet.output
    assert "nothing found: 15 signals of 250 requests beside 600" in quiet.output
    pinned.requests(250, Made(refused=0.4))
    loud = pinned("check")
    assert loud.exit_code == 100
    assert "answer_refused: share 0." in loud.output
    (report,) = [line[10:] for line in loud.output.splitlines() if line.startswith("  report: ")]
    assert Path(report).stat().st_size > 100_000
    last = pinned.verdicts()[-1]
    assert last.evidence["report"] == report


def test_a_reference_reads_the_same_variables_as_the_looks(llmops):
    """What the plan says of a subject holds for its reference, too."""
    entry = {"prompt": "assistant", "question": "passages", "passages": "question"}
    llmops.write(drift={"subjects": [entry]})
    llmops.requests(210)
    assert llmops("reference", "pin", "assistant").exit_code == 0
    rows = load(llmops.home.folder, find(llmops.home.folder, "assistant"))
    assert set(rows["question"].dropna()) == {"a passage of the manual"}
    llmops.requests(210)
    done = llmops("check")
    assert done.exit_code == 0, done.output


def test_a_pinned_reference_is_in_the_audit_trail(pinned):
    database: Database = open_database(pinned.url)
    with database.session() as session:
        change = entries(session, AuditFilter(action="drift.pin"))[0].change
    database.close()
    assert (change.subject, change.reason) == ("drift:assistant", "before the new version")
    assert (change.after or {})["rows"] == 600
    assert change.actor.startswith("cli:")


def test_without_a_reference_it_says_how_to_pin_one(llmops):
    llmops.requests(250)
    done = llmops("check", "assistant")
    assert done.exit_code == 1
    assert "no reference is pinned; pin one: llmops drift reference pin assistant" in done.output


def test_a_damaged_reference_is_told_of(pinned):
    pinned.requests(250)
    (rows,) = folder_of(pinned.home.folder, "assistant").glob("*.parquet")
    rows.write_bytes(b"nothing of a table")
    done = pinned("check")
    assert done.exit_code == 1
    assert "its SHA-256 is" in done.output
    assert "pin a reference anew" in done.output
    (folder_of(pinned.home.folder, "assistant") / "reference.json").write_text("{")
    for again in (pinned("check"), pinned("reference", "list")):
        assert again.exit_code == 1
        assert "reference.json: cannot be read" in again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "assistent"), "assistent: nobody has asked it in the last 168 hours"),
        (("check", "model:none"), "a subject is a prompt's name, or model:ALIAS"),
        (("check", "model:"), "model:: nobody has asked it"),
        (("reference", "pin", "assistent"), "assistent: no request in that time"),
        (("reference", "pin", "assistant", "--since", "soon"), "soon"),
    ],
)
def test_names_and_times_that_do_not_exist(pinned, arguments, said):
    done = pinned(*arguments)
    assert done.exit_code == 1
    assert said in done.output


def test_nothing_is_watched_until_something_is_named(llmops):
    llmops.write(drift={"subjects": []})
    done = llmops("check")
    assert done.exit_code == 1
    assert "drift.subjects: nothing is watched; name a subject, or configure one" in done.output


def test_an_empty_log(llmops):
    assert "no request in that time" in llmops("reference", "pin", "assistant").output
    done = llmops("check")
    assert done.exit_code == 1
    assert "no reference is pinned" in done.output


def test_too_few_requests_are_no_error(pinned):
    pinned.requests(120)
    done = pinned("check")
    assert done.exit_code == 0
    assert "too few requests: 120 since" in done.output


def test_one_tenant_alone_and_each_for_itself(pinned):
    pinned.requests(210, Made(tenant="umbrella"))
    done = pinned("check", "assistant", "--tenant", "umbrella")
    assert done.exit_code == 1
    assert "pin one: llmops drift reference pin assistant --tenant umbrella" in done.output
    assert pinned("reference", "pin", "assistant", "--tenant", "umbrella").exit_code == 0
    pinned.requests(210, Made(tenant="umbrella", refused=0.4))
    assert pinned("check", "assistant", "--tenant", "umbrella").exit_code == 100
    pinned.write(drift={"subjects": [{"prompt": "assistant", "tenants": "each"}]})
    both = pinned("check")
    assert both.exit_code == 0  # acme has no reference of its own; umbrella has nothing new
    assert "assistant:acme: no reference is pinned" in both.output
    assert "no request came in since the look before" in both.output
    assert "drift:assistant: no request" in _nothing_lately(pinned)


def _nothing_lately(command: Command) -> str:
    command.write(drift={"subjects": [{"prompt": "assistant", "tenants": "each"}], "hours": 0.0001})
    return command("check").output


def test_a_look_that_is_under_way_is_no_reason_to_leave_out_the_others(pinned):
    pinned.requests(210, Made(version="4"))
    pinned.requests(210)
    run = pinned.home.folder / "run"
    run.mkdir(exist_ok=True)
    with (run / "drift%3Aassistant%403.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = pinned("check")
    assert done.exit_code == 1
    assert "a look at drift:assistant@3 is under way" in done.output
    assert "drift:assistant@4 against reference" in done.output


def test_a_look_that_fails_is_named_and_the_others_are_looked_at(pinned):
    pinned.requests(210, Made(version="4"))
    pinned.requests(210)
    (pinned.home.folder / "run" / "drift%3Aassistant%403.lock").mkdir(parents=True)
    done = pinned("check")
    assert done.exit_code == 1
    assert "error: drift:assistant@3: IsADirectoryError" in done.output
    assert "drift:assistant@4 against reference" in done.output


def test_embeddings_that_cannot_be_had_are_told_of_and_the_rest_is_compared(pinned):
    server = {"host": "127.0.0.1", "port": 9}
    pinned.write(drift={"vector_model": "all-MiniLM-L6-v2"}, server=server)
    pinned.requests(250)
    done = pinned("check")
    assert done.exit_code == 0
    assert "embeddings not compared: http://127.0.0.1:9/v1/embeddings: Cannot" in done.output
    assert "nothing found: 15 signals" in done.output


def test_embeddings_are_asked_for_with_the_key_that_is_named(pinned):
    with word_vectors() as server:
        port = int(server.url.split(":")[2].split("/")[0])
        pinned.write(
            drift={"vector_model": "all-MiniLM-L6-v2", "api_key_env": "DRIFT_KEY"},
            server={"host": "127.0.0.1", "port": port},
        )
        pinned.requests(250)
        refused = pinned("check")
        assert "answers 401" in refused.output
        pinned.requests(250)
        (pinned.home.folder / "secrets" / "dev.key").write_text("sk-another")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRIFT_KEY", KEY)
            done = pinned("check")
    assert "nothing found: 19 signals" in done.output
    assert server.texts > 1000


def test_mlflow_away_is_a_warning_and_the_verdict_is_there(pinned):
    pinned.write(mlflow={"tracking_uri": "http://127.0.0.1:9"})
    pinned.requests(250, Made(refused=0.4))
    done = pinned("check")
    assert done.exit_code == 100
    assert f"verdict {pinned.verdicts()[-1].verdict_id} is not in MLflow" in done.output


def test_a_section_that_is_wrong_is_refused_with_its_path(llmops):
    llmops.write(drift={"slas": {"sla_colour": 1}, "least": {"question_smell": 0.1}, "hours": -1})
    done = llmops("check")
    assert done.exit_code == 1
    assert "drift.hours" in done.output
    llmops.write(drift={"slas": {"sla_colour": 1}})
    assert "sla_colour: unknown (there are: sla_answer_words" in llmops("check").output


def test_the_plans_defaults_are_those_of_the_shipped_file():
    """So that the detection study speaks of what is shipped."""
    shipped = yaml.safe_load((Path(drift.__file__).parents[1] / "llmops.yaml").read_text())
    plan = DriftPlan.model_validate(shipped["drift"])
    standard = DriftPlan()
    for name in ("least_rows", "hours", "alarms", "least", "slas"):
        assert getattr(plan, name) == getattr(standard, name)
    assert shipped["schedule"]["jobs"]["drift"]["command"] == ["drift", "check"]
    assert shipped["schedule"]["jobs"]["drift"]["every"] == "24h"


def test_the_examples_of_the_page_can_be_used_as_they_are():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    base = "upstreams: {up: {url: 'http://127.0.0.1:9/v1'}}\nmodels: {'*': {upstream: up}}\n"
    commands: list[Sequence[str]] = []
    for block in blocks:
        configuration = parse_configuration(base + block)
        owned_section(configuration, "drift", DriftPlan)
        plan = owned_section(configuration, "schedule", SchedulePlan)
        triggers = owned_section(configuration, "triggers", Triggers)
        commands += [job.command for job in plan.jobs.values()]
        starting = [rule for rule in triggers.rules if rule.starts]
        commands += [rule.evaluation or ("train", "llm", str(rule.pipeline)) for rule in starting]
    assert len(commands) == 5
    root: Any = get_command(app)
    for group, name, *words in commands:
        command = root.get_command(None, group).commands[name]
        command.make_parser(click.Context(command)).parse_args(args=list(words))
