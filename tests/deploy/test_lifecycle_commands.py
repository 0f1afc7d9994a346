"""`llmops train`, `experiment`, `promote` and `rollback`, as a person calls them."""

import re
import shlex
import time

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from deploy.cli import app
from gateway.audit import AuditFilter, entries
from gateway.splits import find_split
from pipelines.drill import register_ruined
from pipelines.runs import under_way
from pipelines.tables import ModelVersionRow, TrainingRow
from tests.pipelines.train_home import NAME, TrainHome

WHY = ("--reason", "a test")
WITHIN = 5.0
pytestmark = pytest.mark.timeout(400)  # with what is made once: MLflow, a whole pass


def llmops(home: TrainHome, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env=home.environ)


def out(home: TrainHome, *arguments: str) -> str:
    """What a command that succeeds says."""
    done = llmops(home, *arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return done.stdout


def refusal(home: TrainHome, *arguments: str) -> str:
    """What a command that is refused says: one line, on standard error."""
    done = llmops(home, *arguments)
    assert done.exit_code == 1, done.output
    assert done.stdout == "" and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def registered(home: TrainHome) -> ModelVersionRow:
    """The version that was trained."""
    with home.open() as installation, installation.database.session() as session:
        return next(iter(session.scalars(select(ModelVersionRow))))


def ruined(home: TrainHome) -> tuple[str, str]:
    """Version and adapter of a spoilt copy, which nobody judged."""
    with home.open() as installation:
        return register_ruined(installation, home.spec(), registered(home).version, "a drill")


def arms(home: TrainHome) -> dict[str, str | None] | None:
    """Adapters by the arms that the gateway's workers give traffic to."""
    with home.open() as installation, installation.database.session() as session:
        split = find_split(session, NAME)
    return None if split is None else {one.variant.name: one.variant.adapter for one in split.arms}


def actions(home: TrainHome) -> list[str]:
    """What the audit trail has, oldest first, each with a reason."""
    with home.open() as installation, installation.database.session() as session:
        found = list(reversed(entries(session, AuditFilter())))
    assert all(one.change.actor.startswith("cli:") for one in found)
    return [f"{one.change.action}: {one.change.reason}" for one in found]


def spec_of(home: TrainHome) -> tuple[str, str]:
    return "--spec", str(home.spec_path)


def test_training_tells_each_stage_the_verdict_and_what_comes_next(trained: TrainHome):
    version = registered(trained)
    assert trained.first is not None and trained.first.stderr == ""
    said = trained.first.stdout
    for stage in ("preprocess", "features", "train", "evaluate", "gate", "register"):
        assert f"{stage} 0 %\n" in said and f"{stage} 100 %\n" in said
    assert f"{version.served_name} against base: promote" in said
    assert re.search(
        r"exact_match +│ 0.000 +│ 1.000 +│ 1.000 +│ \[\+0.805, \+1.000\] │ 24 │ pass", said
    )
    assert (
        f"registered: cities version {version.version}, served as {version.served_name}\n" in said
    )
    following = f"next: llmops experiment start cities {version.version} --spec"
    assert said.splitlines()[-1] == f"{following} {trained.spec_path}"
    shown = out(trained, "train", "status", NAME)
    assert re.search(rf"finished +│ register │ [0-9a-f]{{12}} +│ {version.version} ", shown)


@pytest.mark.slow
def test_a_candidate_that_the_gate_holds_ends_the_command_with_100(copied: TrainHome):
    gate = [{"metric": "exact_match", "minimum_n": 1000}]
    copied.spec(gate=gate)
    done = copied.llmops("train", "llm", str(copied.spec_path))
    assert done.returncode == 100, done.stderr
    why = "exact_match: 24 pairs of values, needs 1000: not enough"
    assert "against base: hold" in done.stdout and f"\n  {why}\n" in done.stdout
    assert "not registered" in done.stdout and done.stderr == ""
    shown = out(copied, "train", "status", NAME)
    assert f"hold: {why}" in shown and shown.count("finished") == 2
    assert arms(copied) is None


def test_one_pass_at_a_time(copied: TrainHome):
    with (
        copied.open() as installation,
        under_way(installation.database, installation.run_dir, NAME, {}, None),
    ):
        said = refusal(copied, "train", "llm", str(copied.spec_path))
        assert "a run of cities is under way (see: llmops train status cities)" in said
        assert "running" in out(copied, "train", "status", NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train llm nothing", "nothing: not a spec that can be read"),
        ("experiment start nobody 1", "no pass of nobody was run here; see --spec"),
        ("experiment start cities 99 --spec SPEC", "cities has no version '99' that was"),
        ("experiment status nobody", "no model 'nobody' (there are: cities)"),
        ("experiment stop nothing --reason r", "there is no experiment 'nothing'"),
        ("promote nobody 1 --reason r", "no model 'nobody' (there are: cities)"),
        ("promote cities 99 --reason r", "cities has no version '99' that was"),
        ("promote cities 1 --name towns --reason r", "towns has no version '1' that was"),
        ("promote cities VERSION --reason ''", "reason: say why"),
        ("experiment stop x --reason ''", "reason: say why"),
        ("rollback nobody --reason r", "no model 'nobody' (there are: cities)"),
        ("rollback cities --reason r", "cities is at its first champion (the base model)"),
        ("rollback cities --reason ''", "reason: say why"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(trained: TrainHome, arguments, message):
    words = shlex.split(arguments)
    known = {"SPEC": str(trained.spec_path), "VERSION": registered(trained).version}
    assert message in refusal(trained, *(known.get(word, word) for word in words))
    assert (arms(trained), actions(trained)) == (None, [])


@pytest.mark.parametrize(
    "arguments", ["experiment stop x", "promote cities 1", "rollback cities", "experiment start"]
)
def test_what_is_left_out_is_named(trained: TrainHome, arguments: str):
    done = llmops(trained, *arguments.split())
    assert done.exit_code == 2
    assert re.search(r"(?i)missing (option '--reason'|argument '\{?alias)", done.stderr)


def test_without_a_run_or_an_experiment_there_is_a_sentence(trained: TrainHome):
    assert out(trained, "train", "status", "towns") == "there was no run of towns here\n"
    assert out(trained, "experiment", "status", NAME) == "there was no experiment on cities here\n"


def test_an_experiment_from_start_to_stop(copied: TrainHome):
    version, spec = registered(copied), spec_of(copied)
    begun = out(copied, "experiment", "start", NAME, version.version, *spec)
    (identifier,) = re.findall(r"^experiment (\S+) is under way on cities$", begun, re.M)
    assert arms(copied) == {"champion": None, "challenger": version.served_name}
    assert list(copied.engine.adapters) == [version.served_name]
    shown = out(copied, "experiment", "status", NAME)
    assert re.search(rf"{identifier} │ {version.version} +│ running", shown)
    assert shown.splitlines()[-1].startswith("not decided yet: helpful: an arm without any")

    copied.engine.adapters.clear()
    shown = out(copied, "experiment", "status", NAME)
    assert f"/v1 does not serve {version.served_name}; why: llmops" in shown

    under = f"experiment {identifier} is under way"
    assert under in refusal(copied, "experiment", "start", NAME, version.version, *spec)
    assert under in refusal(copied, "promote", NAME, version.version, *WHY)
    for _ in range(2):
        said = out(copied, "experiment", "stop", identifier, *WHY)
        assert said == f"experiment {identifier} is stopped\n"
    assert arms(copied) == {"champion": None}
    assert re.search(r"stopped +│ \S+ +│ a test", out(copied, "experiment", "status", NAME))
    assert actions(copied) == ["experiment.start: None", "experiment.stopped: a test"]


def test_what_nobody_judged_needs_a_reason(copied: TrainHome):
    version, adapter = ruined(copied)
    gap = f"cities version {version} gets no traffic: no verdict on it; evaluate it, or say why"
    for unjudged in ((), ("--unjudged", " ")):
        assert gap in refusal(copied, "promote", NAME, version, *WHY, *unjudged)
        start = ("experiment", "start", NAME, version, *spec_of(copied))
        assert gap in refusal(copied, *start, *unjudged)
    assert arms(copied) is None and copied.engine.loads() == []
    out(copied, *start, "--unjudged", "a drill")
    assert arms(copied) == {"champion": None, "challenger": adapter}
    assert actions(copied) == ["experiment.start: a drill"]


def test_a_version_of_another_base_is_refused(copied: TrainHome):
    version = registered(copied)
    copied.configure(models={NAME: {"upstream": "engine", "model": "tiny"}})
    with copied.open() as installation, installation.database.transaction() as session:
        training = session.get_one(TrainingRow, version.training_id)
        base, training.base_digest = training.base_digest, "f" * 64
    said = refusal(copied, "promote", NAME, version.version, *WHY)
    assert f"cities version {version.version} was trained on another base: tiny (ffff" in said
    assert (arms(copied), copied.engine.loads()) == (None, [])
    with copied.open() as installation, installation.database.transaction() as session:
        session.get_one(TrainingRow, version.training_id).base_digest = base
    out(copied, "promote", NAME, version.version, *WHY)
    assert arms(copied) == {"champion": version.served_name}


def test_without_the_engine_nothing_moves(copied: TrainHome):
    version = registered(copied)
    copied.backstage.run(copied.engine.go_away())
    for order in (
        ("promote", NAME, version.version, *WHY),
        ("experiment", "start", NAME, version.version, *spec_of(copied)),
    ):
        said = refusal(copied, *order)
        assert f"{version.served_name} (in {version.path}) is not rolled out" in said
        assert f"{copied.engine.url}: is away" in said
    assert (arms(copied), actions(copied)) == (None, [])
    copied.backstage.run(copied.engine.come_back())


def test_back_and_forth_with_mlflow_away(copied: TrainHome):
    version, (bad, spoilt) = registered(copied), ruined(copied)
    copied.shut()
    said = out(copied, "promote", NAME, version.version, *WHY)
    assert said.startswith(f"cities is answered by {version.served_name}\npromote ")
    assert said.endswith(": MLflow's aliases follow\n")
    again = out(copied, "promote", NAME, version.version, *WHY)
    assert again.startswith(f"nothing changed: cities is answered by {version.served_name}\n")
    out(copied, "promote", NAME, bad, *WHY, "--unjudged", "a drill")
    assert arms(copied) == {"champion": spoilt}
    copied.backstage.run(copied.engine.restart())

    began = time.monotonic()
    said = out(copied, "rollback", NAME, *WHY, "--from-version", bad)
    assert time.monotonic() - began < WITHIN
    assert said.startswith(f"cities is answered by {version.served_name}\nrollback ")
    assert arms(copied) == {"champion": version.served_name}
    assert list(copied.engine.adapters) == [version.served_name]
    again = out(copied, "rollback", NAME, *WHY, "--from-version", bad)
    assert again.startswith(f"nothing changed: cities is answered by {version.served_name}\n")

    copied.backstage.run(copied.engine.go_away())
    said = out(copied, "rollback", NAME, *WHY)  # the base model needs no engine's consent
    assert said.startswith("cities is answered by the base model\nrollback ")
    copied.backstage.run(copied.engine.come_back())
    assert actions(copied) == [
        f"champion.{kind}: a test" for kind in ("promote", "promote", "rollback", "rollback")
    ]


def test_a_champion_before_that_cannot_be_loaded(copied: TrainHome):
    version, (bad, spoilt) = registered(copied), ruined(copied)
    out(copied, "promote", NAME, version.version, *WHY)
    out(copied, "promote", NAME, bad, *WHY, "--unjudged", "a drill")
    copied.backstage.run(copied.engine.restart())
    copied.engine.refusal = (500, "out of memory")
    began = time.monotonic()
    assert "out of memory" in refusal(copied, "rollback", NAME, *WHY)
    assert arms(copied) == {"champion": spoilt}
    said = out(copied, "rollback", NAME, *WHY, "--accept-base")
    assert time.monotonic() - began < WITHIN
    assert said.startswith("cities is answered by the base model\nrollback ")
    assert f"{version.served_name} cannot be loaded" in said
    assert arms(copied) == {"champion": None}
