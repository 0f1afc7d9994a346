"""`llmops evals` as a person runs it: a real worker, a scripted model behind it, a real MLflow."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from evals.golden_cases import case_for, golden_path, load_golden
from evals.journal import Journal
from evals.records import Decision
from pipelines.mlflow_api import MLflowAPI
from prompts.library import load_library
from tests.deploy.evaluated_home import CASES, EvaluatedHome
from tests.evals.scripted_judge import ScriptedJudge, scripted_judge
from tests.gateway_process import free_port
from tests.pipelines.backstage import Backstage
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.prompt_files import PromptFolder

pytestmark = pytest.mark.timeout(240)  # the first one waits for MLflow


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def right(body: dict[str, Any]) -> Any:
    """The number of the town that is asked for; every fourth is answered wrongly."""
    number = int(asked(body).rstrip("?").split("-")[-1])
    return "I do not know." if number % 4 == 3 else f"It is answer-{number:03}."


class Model:
    """What the scripted model answers; a test may change `answer`."""

    def __init__(self) -> None:
        self.answer: Any = right
        self.seconds = 0.0

    def __call__(self, body: dict[str, Any]) -> Any:
        return self.answer(body)


@pytest.fixture
def model(backstage: Backstage) -> Iterator[tuple[Model, ScriptedJudge]]:
    answers = Model()
    with scripted_judge(backstage, answers) as server:
        yield answers, server


@pytest.fixture
def home(tmp_path: Path, model: tuple[Model, ScriptedJudge]) -> Iterator[EvaluatedHome]:
    made = EvaluatedHome(tmp_path / "made", model[1].url)
    made.gateway.start()
    yield made
    made.gateway.stop()


def test_golden_cases_are_asked_measured_reported_and_stored(home, tmp_path):
    home.sync("1", home.prompt, "production")
    page = tmp_path / "report.html"
    said = home.out("run", "capital", "--out", str(page), "--metrics", "contains,latency,cost")
    (verdict,) = home.verdicts()
    assert verdict.decision is Decision.HOLD
    assert verdict.subject.startswith("evaluation:capital@")  # decides no label
    means = {metric.name: metric.candidate for metric in verdict.metrics}
    assert means["contains"] == 0.75 and means["cost"] > 0 and means["latency"] > 0
    assert "| contains | 0.75 | [0.5981, 0.8581] | 40 | 100 % |" in said
    assert page.read_text() == Path(verdict.evidence["report"]).read_text()
    text = page.read_text()
    assert text.count("<details>") == CASES and "<svg" in text
    assert "http://" not in text and "https://" not in text  # nothing is fetched
    table = orjson.loads(Path(verdict.evidence["report"]).with_name("answers.json").read_bytes())
    assert len(table["data"]) == CASES and "contains" in table["columns"]
    assert not list((home.gateway.home / "evaluations").glob("*.journal"))


def test_a_prompt_that_was_never_synced_is_read_from_its_file(home):
    home.out("run", str(home.prompt))
    assert home.verdicts()[0].evidence["called"] == f"capital ({home.prompt})"


@pytest.fixture
def library(home: EvaluatedHome, monkeypatch: pytest.MonkeyPatch) -> PromptFolder:
    """The home's folder as the library in Git, which has the golden cases, too."""
    monkeypatch.setattr("deploy.commands.asking.LIBRARY", home.folder)
    monkeypatch.setattr("evals.golden_cases.GOLDEN", home.folder)
    repository = PromptFolder(home.folder)
    repository.git("init", "-q")
    repository.git("commit", "-q", "--allow-empty", "-m", "nothing yet")
    return repository


def committed(home: EvaluatedHome, library: PromptFolder) -> None:
    library.git("add", "capital.yaml", "cases.jsonl")
    library.git("commit", "-q", "-m", "a prompt")


def test_another_version_is_compared_with_production_and_the_gate_decides(home, model, library):
    home.sync("1", home.prompt, "production")
    home.sync("2", home.write_prompt("capital", "Say rightly what of"))
    committed(home, library)

    def better(body: dict[str, Any]) -> str:
        number = asked(body).rstrip("?").split("-")[-1]
        return f"answer-{number}" if "rightly" in asked(body) else right(body)

    model[0].answer = better
    said = home.out("run", "capital", "--version", "2")
    assert "**promote**" in said and "baseline" in said
    (verdict,) = home.verdicts()
    assert verdict.subject.startswith("prompt:capital@") and verdict.baseline != verdict.subject
    model[0].answer = lambda body: "no" if "rightly" in asked(body) else right(body)
    assert "**reject**" in home.out("run", "capital", "--version", "2", code=100)
    # On other cases than its own the gate's word is no label's business.
    other = home.cases.with_name("other.jsonl")
    other.write_bytes(home.cases.read_bytes())
    home.out("run", "capital", "--version", "2", "--cases", str(other), code=100)
    assert home.verdicts()[-1].subject.startswith("evaluation:capital@")
    home.out("run", "capital", "--version", "2", "--alone")
    assert home.verdicts()[-1].decision is Decision.HOLD
    label = ("prompts", "label", "capital", "2", "production", "--reason", "a test")
    assert home.llmops(*label).exit_code == 1  # the gate's last word on it was no
    model[0].answer = better
    home.out("run", "capital", "--version", "2")
    assert home.llmops(*label).exit_code == 0


def test_a_gate_that_nobody_agreed_on_decides_no_label(home, model, library, tmp_path):
    home.sync("1", home.prompt, "production")
    home.sync("2", home.write_prompt("capital", "Say rightly what of"))
    run = ("run", "capital", "--version", "2")

    def better(body: dict[str, Any]) -> str:
        number = asked(body).rstrip("?").split("-")[-1]
        return f"answer-{number}" if "rightly" in asked(body) else right(body)

    model[0].answer = better

    def decides_no_label(why: str, *run: str) -> None:
        said = home.out(*run)
        assert "**promote**" in said and "it decides no label: " in said and why in said
        assert home.verdicts()[-1].subject.startswith("evaluation:capital@")

    decides_no_label("is not committed as it is", *run)
    committed(home, library)
    home.out(*run)
    assert home.verdicts()[-1].subject.startswith("prompt:capital@")
    elsewhere = tmp_path / "capital.yaml"
    elsewhere.write_text(home.prompt.read_text().replace("minimum_n: 20", "minimum_n: 2"))
    decides_no_label(f"{elsewhere} says how it is judged", "run", str(elsewhere))
    home.prompt.write_text(home.prompt.read_text().replace("minimum_n: 20", "minimum_n: 2"))
    decides_no_label("is not committed as it is", *run)
    cases = tmp_path / "cases.jsonl"
    cases.write_bytes(home.cases.read_bytes())
    home.prompt.write_text(home.prompt.read_text().replace(str(home.cases), str(cases)))
    committed(home, library)
    decides_no_label(f"its cases, {cases}, are not in", *run)
    home.prompt.write_text(home.prompt.read_text().replace("minimum_n: 2", "confidence: 0.1"))
    refused = home.refused(*run)
    assert f"{home.prompt}): evaluation.gate: " in refused and "at least 0.8" in refused


@pytest.mark.parametrize("broken", ["What of", "Say rightly"])
def test_requests_that_failed_are_no_fault_of_either_version(home, model, library, broken):
    """A third of one version's requests meets a stack that is down: nothing is said of it."""
    home.sync("1", home.prompt, "production")
    home.sync("2", home.write_prompt("capital", "Say rightly what of"))
    committed(home, library)

    def down(body: dict[str, Any]) -> Any:
        number = int(asked(body).rstrip("?").split("-")[-1])
        failing = number % 3 == 0 and asked(body).startswith(broken)
        return (503, {"error": {"message": "away"}}) if failing else right(body)

    model[0].answer = down
    said = home.refused("run", "capital", "--version", "2")
    assert "14 of 40 requests got no answer, so nothing was judged" in said and "503" in said
    model[0].answer = right
    model[1].bodies.clear()
    home.out("run", "capital", "--version", "2")
    assert home.verdicts()[-1].decision is Decision.HOLD
    # What was answered before is not paid for again.
    assert sum(asked(body).startswith(broken) for body in model[1].bodies) == 14


def test_the_report_has_its_place_before_anything_is_paid_for(home, model, tmp_path):
    for place in (tmp_path, home.prompt / "report.md"):
        assert str(place) in home.refused("run", str(home.prompt), "--out", str(place))
    assert not model[1].bodies
    place = tmp_path / "new" / "deeper" / "report.md"
    home.out("run", str(home.prompt), "--out", str(place))
    assert "# Evaluation of capital" in place.read_text()


def test_a_broken_requirement_is_an_alert(home):
    assert "contains >= 0.9: 0.75" in home.out(
        "run", str(home.prompt), "--require", "contains>=0.9", code=100
    )
    assert home.verdicts()[-1].decision is Decision.ALERT
    home.out("run", str(home.prompt), "--require", "contains>=0.5")
    assert [one.passed for one in home.verdicts()[-1].metrics if one.name == "contains"] == [True]


def test_an_attempt_that_was_killed_is_gone_on_from_and_nothing_is_paid_twice(home, model):
    answers, server = model
    first: list[str] = []

    def slow(body: dict[str, Any]) -> Any:
        first.append(asked(body))
        return (500, {"error": {"message": "late"}}) if len(first) > 25 else right(body)

    answers.answer = slow
    path = home.gateway.home / "evaluations" / "capital.journal"
    process = home.process("run", str(home.prompt))
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 25:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    with Journal(path) as journal:
        paid = journal.found
    assert paid == 25 and not home.verdicts()
    asked_before = set(first[:25])
    server.bodies.clear()
    answers.answer = right
    done = home.run("run", str(home.prompt))
    assert done.exit_code == 0 and "25 answers are paid for" in done.stderr
    counts = Counter(asked(body) for body in server.bodies)
    assert len(counts) == CASES - 25 and set(counts.values()) == {1}
    assert not asked_before & counts.keys()
    assert not path.exists()
    assert home.verdicts()[0].evidence["cases"] == CASES


def test_what_failed_is_asked_again_and_only_that(home, model):
    answers, server = model
    refused = (400, {"error": {"message": "too long"}})
    answers.answer = lambda body: refused if "-007" in asked(body) else right(body)
    done = home.run("run", str(home.prompt))
    assert done.exit_code == 0 and "kept for 24 hours" in done.stderr
    assert "too long" in done.stdout
    server.bodies.clear()
    answers.answer = right
    home.out("run", str(home.prompt))
    assert [asked(body) for body in server.bodies] == ["What of town-007?"]
    server.bodies.clear()
    home.out("run", str(home.prompt), "--anew")
    assert len(server.bodies) == CASES


def test_mlflow_has_the_run_with_its_table(
    tmp_path, model, mlflow_server: MLflowServer, monkeypatch
):
    home = EvaluatedHome(
        tmp_path / "made", model[1].url, mlflow={"tracking_uri": mlflow_server.url}
    )
    home.gateway.start()
    try:
        home.out("run", str(home.prompt))
    finally:
        home.gateway.stop()
    (verdict,) = home.verdicts()
    run = MLflowAPI(mlflow_server.url).get("runs/get", run_id=verdict.evidence["mlflow_run"])["run"]
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert tags["verdict_id"] == verdict.verdict_id and metrics["contains"] == 0.75
    assert run["info"]["status"] == "FINISHED"
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    info = run["info"]
    table = MlflowClient().load_table(info["experiment_id"], "answers.json", [info["run_id"]])
    assert len(table) == CASES and table["contains"].mean() == 0.75


def test_mlflow_away_is_said_and_changes_nothing(tmp_path, model):
    away = f"http://127.0.0.1:{free_port()}"
    home = EvaluatedHome(tmp_path / "made", model[1].url, mlflow={"tracking_uri": away})
    home.gateway.start()
    try:
        done = home.run("run", str(home.prompt))
    finally:
        home.gateway.stop()
    assert done.exit_code == 0 and "is away" in done.stderr
    (verdict,) = home.verdicts()
    assert "mlflow_run" not in verdict.evidence and Path(verdict.evidence["report"]).exists()


def test_what_is_wrong_is_said_before_anything_is_asked(home, model):
    run = ("run", str(home.prompt))
    assert "no metric 'charm'" in home.refused(*run, "--metrics", "charm")
    text = home.prompt.read_text()
    home.prompt.write_text(text.replace("metrics: [contains,", "metrics: [contian,"))
    where = f"capital ({home.prompt}) ({home.prompt})"
    assert f"{where}: evaluation.metrics: no metric 'contian'" in home.refused(*run)
    home.prompt.write_text(text)
    assert "--judge PROMPT@MODEL" in home.refused(*run, "--metrics", "faithfulness")
    assert "METRIC>=NUMBER" in home.refused(*run, "--require", "contains")
    assert "--version and --label" in home.refused("run", "capital", "--version", "1",
                                                   "--label", "x")  # fmt: skip
    assert "there is no prompt" in home.refused("run", "nobody")
    assert "No such file" in home.refused("run", "nobody.yaml")
    assert "no key of the gateway" in home.refused(*run, "--api-key-env", "NOT_THERE")
    judged = ("--judge", "judge@m", "--require", "judge>=0.8")
    assert "never calibrated" in home.refused(*run, *judged)
    lines = home.cases.read_bytes().splitlines()
    lines[2] = b'{"case_id": "x"'
    home.cases.write_bytes(b"\n".join(lines))
    assert f"{home.cases}:3: not JSON" in home.refused(*run)
    lines[2] = b'{"case_id": "x", "variables": {"town": "y"}}'
    home.cases.write_bytes(b"\n".join(lines))
    assert f"{home.cases}:3: " in home.refused(*run)
    assert not model[1].bodies


def test_a_gateway_that_is_away_is_an_error(home):
    home.gateway.stop()
    started = time.monotonic()
    assert "no gateway answers at" in home.refused("run", str(home.prompt))
    assert time.monotonic() - started < 5  # before any request is tried again and again
    home.out("run", "--window", "1h", str(home.prompt))  # asks nobody


def test_two_evaluations_of_one_prompt_do_not_pay_for_the_same(home):
    with Journal(home.gateway.home / "evaluations" / "capital.journal"):
        assert "an evaluation is under way" in home.refused("run", str(home.prompt))


def traffic(home: EvaluatedHome, number: int, **more: Any) -> str:
    """One live request; its id."""
    body = {
        "prompt_id": "capital",
        "prompt_variables": {"city": f"town-{number:03}"},
        **more,
    }
    request = urllib.request.Request(
        f"{home.gateway.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {home.gateway.key}", "content-type": "application/json"},
    )
    deadline = time.monotonic() + 5
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return str(answer.headers["x-request-id"])
        except urllib.error.HTTPError as error:
            assert error.code == 404 and time.monotonic() < deadline  # it was synced just now
            time.sleep(0.1)


def test_a_window_of_the_log_is_measured_and_its_coverage_told(home, model):
    home.sync("1", home.prompt, "production")
    said = home.out("run", "capital", "--window", "1h")
    assert "0 logged requests" in said
    for number in range(24):
        traffic(home, number, **({"reference": "It is answer-000."} if number < 2 else {}))
    asked_before = len(model[1].bodies)
    said = home.out("run", "capital", "--window", "1h", "--metrics", "refusal,rouge,latency")
    assert len(model[1].bodies) == asked_before  # nothing is asked again
    verdict = home.verdicts()[-1]
    assert verdict.subject == "evaluation:capital/log"
    assert verdict.evidence["not_applicable"] == ["rouge"]
    assert any("rouge: not_applicable: 2 of 24" in reason for reason in verdict.reasons)
    assert {one.name: one.n for one in verdict.metrics} == {"refusal": 24, "rouge": 0,
                                                            "latency": 24}  # fmt: skip
    page = Path(verdict.evidence["report"])
    kept = page.read_text() + page.with_name("answers.json").read_text() + said
    assert "town-0" not in kept and "answer-0" not in kept  # texts stay in the log
    home.out("run", "capital", "--window", "1h", "--require", "refusal<=0.01", code=100)


def test_a_golden_case_is_made_of_a_logged_request(home):
    home.sync("1", home.prompt, "production")
    request_id = traffic(home, 77, retrieved_contexts=[{"id": "a", "text": "It is 77."}])
    add = ("add", request_id, "--prompt", "capital")
    assert "say it with --expected" in home.refused(*add)
    before = home.cases.read_bytes()
    said = home.out(*add, "--expected", '"answer-077"')
    after = home.cases.read_bytes()
    assert after.startswith(before) and after.count(b"\n") == CASES + 1
    row = orjson.loads(after.splitlines()[-1])
    assert row["case_id"] in said and row["expected"] == "answer-077"
    assert row["variables"] == {"city": "town-077"}
    assert row["retrieved_contexts"] == ["It is 77."]
    assert "there already" in home.refused(*add, "--expected", '"answer-077"')
    same = traffic(home, 77)
    assert "asks the same already" in home.refused("add", same, "--prompt", "capital",
                                                   "--expected", '"x"')  # fmt: skip
    assert "is not JSON" in home.refused(*add, "--expected", "answer")
    assert "no request" in home.refused("add", "nothing", "--prompt", "capital")
    assert home.cases.read_bytes() == after
    home.out("run", "capital")
    assert home.verdicts()[-1].evidence["cases"] == CASES + 1


def judged(body: dict[str, Any]) -> str:
    """A scripted judge that looks whether the number of the answer is in the text."""
    text, _, answer = asked(body).rpartition("Answer: ")
    number = answer.split("\n")[0].strip()
    return '{"score": 1}' if number in text else '{"score": 0}'


def people(body: dict[str, Any], wrong: int = 0) -> str:
    """A scripted judge that says what people say of the judge's golden cases; of every `wrong`-th
    the contrary."""
    place, label = labels()[asked(body)]
    return f'{{"score": {1 - label if wrong and place % wrong == 0 else label}}}'


@cache
def labels() -> dict[str, tuple[int, int]]:
    """Each golden case of the judge by what is asked of it: its place and its label."""
    judge = load_library()["judge"]
    golden = enumerate(load_golden(golden_path("judge.jsonl")))
    return {
        str(case_for(judge, case).messages[-1]["content"]): (place, case.expected["score"])
        for place, case in golden
    }


def labelled(home: EvaluatedHome) -> str:
    """A file of labelled answers."""
    rows = []
    for number in range(40):
        supported = number % 2 == 0
        answer = f"value-{number}" if supported else "value-none"
        variables = {"answer": answer, "contexts": [f"Text with value-{number}."]}
        rows.append(
            {
                "case_id": f"j-{number}",
                "variables": variables,
                "expected": {"score": int(supported)},
            }
        )
    path = home.folder / "labelled.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def test_a_scripted_judge_is_calibrated_and_believed_only_if_it_agrees(home, model):
    model[0].answer = judged
    calibrate = ("calibrate", "--judge", "judge", "--model", "scripted-judge")
    said = home.out(*calibrate, "--cases", labelled(home))
    assert "accepted" in said and "kappa 1.000" in said and "a trial, which no gate" in said
    assert home.verdicts()[-1].subject.startswith("trial:judge:judge:scripted-judge@")
    trusted = ("run", str(home.prompt), "--judge", "judge@scripted-judge", "--require", "judge>=0")
    assert "never calibrated" in home.refused(*trusted)
    model[0].answer = people
    said = home.out(*calibrate)
    assert "accepted" in said and "kappa 1.000" in said
    verdict = home.verdicts()[-1]
    assert verdict.subject.startswith("judge:judge:scripted-judge@")
    assert verdict.decision is Decision.PROMOTE
    model[0].answer = lambda body: judged(body) if "Is the answer" in asked(body) else right(body)
    require: tuple[str, ...] = ("run", str(home.prompt), "--judge", "judge@scripted-judge")
    require += ("--require", "judge>=0.9")
    assert "judge is judged by scripted-judge: kappa 1.000" in home.out(*require, code=100)
    # Another model is another judge.
    assert "never calibrated" in home.refused(*require[:3], "judge@other", *require[4:])
    model[0].answer = lambda body: people(body, wrong=3)
    said = home.out(*calibrate, code=100)
    assert "refused" in said
    assert "no gate believes it" in home.refused(*require)


def test_a_judge_that_was_never_there_is_no_bad_judge(home, model):
    model[0].answer = lambda body: (400, {"error": {"message": "no"}})
    said = home.refused("calibrate", "--cases", labelled(home))
    assert "could not judge one answer" in said
    home.gateway.stop()
    assert "no gateway answers at" in home.refused("calibrate", "--cases", labelled(home))
    assert "nothing to calibrate" in home.refused("calibrate", "--metric", "rouge")
