"""Answers out of the request log: what is traffic, what metrics need of it, what is not kept."""

from datetime import UTC, datetime, timedelta
from functools import partial

import orjson
import pytest
import uuid_utils

from evals.evaluation import Client, Evaluation, measured
from evals.judge import Judge
from evals.logged import NotAnswered, Window, answer_text, evaluation_of, golden_of
from evals.metrics import UNTOLD, metrics_named, unspoken
from evals.records import Answer, Case, Score
from evals.scorers import SCORERS
from gateway.request_log import LogReader
from prompts.library import load_library
from tests.evals.scripted_judge import scripted_judge
from tests.spooled_requests import final, record, write_segment

NOW = datetime.now(UTC)
ASSISTANT = load_library()["assistant"]


class Log:
    """A log in which requests are written as a worker writes them."""

    def __init__(self, folder):
        self.reader = LogReader(folder / "spool", str(folder / "log"))
        self.spool = folder / "spool"
        self.records = []

    def add(self, minutes_ago=1.0, text="An answer.", request_id=None, **fields):
        request_id = request_id or str(uuid_utils.uuid7())
        given = {
            "request_id": request_id,
            "ts": int((NOW - timedelta(minutes=minutes_ago)).timestamp() * 1e6),
            "prompt_name": "assistant", "prompt_version": "1", "latency_ms": 80.0,
            "contexts": {"variables": {"question": "Why?", "passages": ["A passage."]}},
            "cost_nano_usd": 2000,
        } | fields  # fmt: skip
        choice = {"message": {"role": "assistant", "content": text}}
        body = b"" if text is None else orjson.dumps({"choices": [choice]})
        self.records.append(final(record(**given), b"{}", body))
        return request_id

    def write(self):
        write_segment(self.spool, *self.records)
        return self.reader


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


def window(**more):
    return Window(NOW - timedelta(hours=1), **more)


def test_only_answered_requests_of_the_prompt_in_the_window_are_taken_newest_first(log):
    second, first = log.add(3), log.add(2)
    log.add(90)  # too old
    log.add(prompt_name="other")
    log.add(prompt_name=None)  # as of evaluations and judges
    log.add(status="upstream_error")
    log.add(endpoint="embeddings")
    third = log.add(1, prompt_version="2")
    reader = log.write()
    found = evaluation_of(reader, ASSISTANT, window())
    assert [case.case_id for case in found.cases] == [third, first, second]
    assert [case.case_id for case in evaluation_of(reader, ASSISTANT, window(most=1)).cases] == [
        third
    ]
    of_version = evaluation_of(reader, ASSISTANT, window(version="1"))
    assert [case.case_id for case in of_version.cases] == [first, second]
    (answer,) = found.answers[0]
    assert (answer.text, answer.latency_ms, answer.cost_usd) == ("An answer.", 80.0, 2e-06)
    assert answer.request_id == third and answer.target == "vllm/small"


def test_what_metrics_need_comes_from_the_application_else_from_the_variables(log):
    log.add(3)
    log.add(2, contexts={
        "variables": {"question": "Why?", "passages": ["A passage."]},
        "retrieved_contexts": [{"id": "1", "text": "Sent."}], "reference": "Right.",
    })  # fmt: skip
    log.add(1, contexts={"variables": {"town": "of another version"}})
    other, sent, plain = evaluation_of(log.write(), ASSISTANT, window()).cases
    assert (plain.user_input, plain.retrieved_contexts) == ("Why?", ("A passage.",))
    assert plain.reference is None
    assert (sent.retrieved_contexts, sent.reference) == (("Sent.",), "Right.")
    assert (other.user_input, other.retrieved_contexts) == (None, None)


def test_coverage_is_of_all_and_bodies_that_were_not_kept_have_no_value(log):
    for _ in range(8):
        log.add(text=None)
    for _ in range(2):
        log.add(contexts={"reference": "An answer."})
    client = Client("http://127.0.0.1:9/v1", "key", embeddings=None)
    names = ["rouge", "refusal", "latency"]
    found = measured(evaluation_of(log.write(), ASSISTANT, window()), metrics_named(names), client)
    shares = {name: one.share for name, one in found.coverage.items()}
    assert shares == {"rouge": 0.2, "refusal": 0.2, "latency": 1.0}
    assert found.coverage["rouge"].applicable and len(found.known("rouge")) == 2
    assert len(found.lost) == 8 and "no text of the answer" in next(iter(found.lost.values()))
    assert found.known("latency") == [80.0] * 10  # what was booked is known all the same


def test_an_empty_window_has_nothing_in_it(log):
    log.add(90)
    found = evaluation_of(log.write(), ASSISTANT, window())
    assert found.cases == () and found.answers == ()


def test_a_golden_case_is_of_a_request_of_the_prompt(log):
    there = log.add()
    foreign, bare = log.add(prompt_name="other"), log.add(prompt_name=None)
    erased = log.add(contexts=None)
    reader = log.write()
    case = golden_of(reader, ASSISTANT, there)
    assert case.case_id == f"assistant-{there}"
    assert case.variables == {"question": "Why?", "passages": ["A passage."]}
    assert (case.expected, case.retrieved_contexts) == (None, None)
    for identifier, why in (
        (foreign, "made by the prompt other"),
        (bare, "made without a prompt"),
        (erased, "no variables in the log"),
        ("nothing", "no request 'nothing'"),
    ):
        with pytest.raises(NotAnswered, match=why):
            golden_of(reader, ASSISTANT, identifier)


@pytest.mark.parametrize(
    "body", [None, "", "[]", "{", '{"choices": []}', '{"choices": [{}]}', '{"choices": [1]}',
             '{"choices": [{"message": {"content": null}}]}'],
)  # fmt: skip
def test_a_body_without_a_text_has_none(body):
    assert answer_text(body) is None


LIVE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["name"],
        "additionalProperties": {"type": "integer"}}  # fmt: skip
SECRET = "Anna-Bolena"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{SECRET} is 40", "not JSON"),
        (f'{{"name": 1, "age": "{SECRET}"}}', "$.age: breaks type"),
        (f'{{"name": 1, "{SECRET}": "x"}}', "$.*: breaks type"),
        (f'{{"age": 1, "{SECRET}": 1}}', "$: breaks required"),
        (f'["{SECRET}"]', "$: breaks type"),
    ],
)
def test_no_word_of_a_live_answer_is_in_the_reason_of_its_schema(text, reason):
    assert SECRET not in reason
    assert reasons_of(text, "schema") == [reason]


def same(said, body):
    return said


def test_no_word_of_a_live_answer_is_in_what_a_judge_is_said_to_say(backstage):
    for said, reason in (
        (f"{SECRET}: good", "the judge answers nonsense"),
        (f'{{"score": "{SECRET}"}}', "the judge answers nonsense"),
        ((400, {"error": {"message": f"too long: {SECRET}"}}), "the judge gave no answer"),
    ):
        with scripted_judge(backstage, partial(same, said)) as server:
            judge = Judge(server.url, "m", load_library()["judge"], "key")
            assert reasons_of(SECRET, "judge", judge) == [reason]


def test_a_reason_without_a_fixed_form_is_left_out(monkeypatch):
    def crash(case, answer):
        raise ValueError(f"cannot do {answer.text}")

    monkeypatch.setattr("evals.metrics.SCORERS", {**SCORERS, "refusal": crash})
    assert reasons_of(SECRET, "refusal") == ["it crashed: ValueError"]
    assert unspoken(Score("c", "m", None, f"new: {SECRET}")).reason == UNTOLD
    assert unspoken(Score("c", "m", 0.5, f"new: {SECRET}")).reason is None


def reasons_of(text, metric, judge=None):
    """What is said of one live answer."""
    case = Case("r", (), None, schema=LIVE, retrieved_contexts=("x",), user_input="?")
    live = Evaluation("p", "f", "m", (case,), ((Answer("r", text, 1.0),),), {}, {}, spoken=False)
    client = Client("http://127.0.0.1:9/v1", "key", embeddings=None, judge=judge)
    found = measured(live, metrics_named([metric], judge), client)
    return [score.reason for rows in found.scores.values() for row in rows for score in row]
