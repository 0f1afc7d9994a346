"""Windows of the request log: whose requests are in them, and what is read of each."""

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import uuid_utils

from evals.windows import (
    Period,
    Traffic,
    count_rows,
    found_in,
    read_window,
    tenants_of,
    unit_of,
)
from gateway.request_log import LogReader
from tests.evals.drift_log import START
from tests.spooled_requests import final, record, shipper_of, write_segment

PROMPTED = Traffic(prompt="assistant", question="question", passages="passages")
ALL = Period(0, 2**52, 1000)


class Log:
    """A request log in a folder; rows are seconds apart."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reader = LogReader(folder / "spool", str(folder / "log" / "requests"))
        self.moment = START

    def add(
        self, request: Any = None, response: Any = None, keep: bool = True, **fields: Any
    ) -> str:
        """One more request; its id."""
        self.moment += timedelta(seconds=1)
        stamp = self.moment.timestamp()
        identifier = str(uuid_utils.uuid7(timestamp=int(stamp), nanos=0))
        given = {"ts": int(stamp * 1e6), "request_id": identifier, "prompt_name": "assistant",
                 "prompt_version": "3", **fields}  # fmt: skip
        bodies = [one if isinstance(one, bytes) else orjson.dumps(one) for one in
                  (request or {}, (response or {}) if keep else b"")]  # fmt: skip
        write_segment(self.folder / "spool", final(record(**given), *bodies))
        return identifier

    def ids(self, traffic: Traffic, period: Period = ALL) -> list[str]:
        return list(read_window(self.reader, traffic, period)["request_id"])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    yield Log(tmp_path)


def said(text: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_only_a_subjects_own_traffic_is_in_its_window(log):
    mine = log.add()
    other = log.add(prompt_version="4", tenant="umbrella")
    plain = log.add(prompt_name=None, prompt_version=None, model="small")
    log.add(prompt_name="extractor")
    log.add(prompt_name=None, prompt_version=None, model="large")
    log.add(status="rejected")
    log.add(endpoint="embeddings")
    log.add(tags={"purpose": "evaluation"})
    log.add(tags={"purpose": "judge", "metric": "faithfulness"})
    tagged = log.add(tags={"app": "quiz"})
    assert log.ids(PROMPTED) == [mine, other, tagged]
    assert log.ids(Traffic(prompt="assistant", version="4")) == [other]
    assert log.ids(Traffic(prompt="assistant", tenant="umbrella")) == [other]
    assert log.ids(Traffic(model="small")) == [plain]
    assert [one.version for one in found_in(log.reader, PROMPTED, ALL)] == ["3", "4"]
    assert tenants_of(log.reader, PROMPTED, ALL) == ["acme", "umbrella"]


def test_it_is_the_newest_rows_oldest_first_from_table_and_spool(log):
    first = [log.add() for _ in range(4)]
    assert shipper_of(log.folder).ship() == 4
    last = [log.add() for _ in range(3)]
    moments = read_window(log.reader, PROMPTED, ALL)["ts"]
    assert log.ids(PROMPTED) == [*first, *last]
    assert list(moments) == sorted(moments)
    assert log.ids(PROMPTED, Period(0, 2**52, 5)) == [*first[2:], *last]
    period = Period(int(moments[1]), int(moments[4]), 1000)
    assert log.ids(PROMPTED, period) == [*first[2:], last[0]]
    assert count_rows(log.reader, PROMPTED, Period(0, 2**52, 5)) == 7


def test_an_empty_log_is_an_empty_window_with_every_column(log):
    window = read_window(log.reader, PROMPTED, ALL)
    assert len(window) == 0
    assert {"question", "answer", "unit", "question_language", "answer_refused"} <= set(window)
    assert count_rows(log.reader, PROMPTED, ALL) == 0


@pytest.mark.parametrize(
    ("contexts", "request_body", "question", "empty"),
    [
        ({"variables": {"question": "How?", "passages": ["p"]}}, {}, "How?", 0.0),
        ({"variables": {"question": "How?", "passages": []}}, {}, "How?", 1.0),
        ({"variables": {"question": "How?", "passages": "  "}}, {}, "How?", 1.0),
        ({"variables": {"question": " "}, "retrieved_contexts": []}, {}, None, 1.0),
        ({"variables": {"question": 5}}, {}, None, None),
        ({}, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                           {"role": "assistant", "content": "a"}]}, "q", None),
        ({}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "part"},
                                                        {"type": "image_url"}]}]}, "part", None),
        ({}, {"prompt": "to be completed"}, "to be completed", None),
        ({}, {"messages": "nonsense"}, None, None),
        ({}, b"not json", None, None),
        (None, b"[1]", None, None),
    ],
)  # fmt: skip
def test_the_question_and_whether_something_was_found(log, contexts, request_body, question, empty):
    log.add(request_body, contexts=contexts or {})
    (row,) = read_window(log.reader, PROMPTED, ALL).to_dict("records")
    assert row["question"] == question
    assert row["retrieval_empty"] == empty or (empty is None and math.isnan(row["retrieval_empty"]))
    assert row["question_words"] == len(question.split()) if question else True


@pytest.mark.parametrize(
    ("status", "response", "answer", "failed"),
    [
        ("ok", said("The answer."), "The answer.", 0.0),
        ("ok", {"choices": [{"text": "completed"}]}, "completed", 0.0),
        ("ok", said(None), None, 0.0),
        ("ok", {"choices": []}, None, 0.0),
        ("ok", {"choices": [7]}, None, 0.0),
        ("ok", b"cut of", None, 0.0),
        ("client_gone", said("half an ans"), None, 0.0),
        ("upstream_error", {"error": "no"}, None, 1.0),
        ("timeout", {}, None, 1.0),
    ],
)
def test_the_answer_is_read_of_what_was_answered(log, status, response, answer, failed):
    log.add(response=response, status=status)
    (row,) = read_window(log.reader, PROMPTED, ALL).to_dict("records")
    assert (row["answer"], row["failed"]) == (answer, failed)
    assert math.isnan(row["answer_words"]) == (answer is None)


def test_users_are_digests_and_a_request_without_one_is_its_own(log):
    log.add(user="ann", episode_id="e1")
    alone = log.add(user=None)
    window = read_window(log.reader, PROMPTED, ALL)
    units = list(window["unit"])
    assert units == [unit_of("ann"), alone]
    assert "ann" not in units[0]
    assert window["caller"].nunique() == 1


def test_without_a_user_it_is_the_tenants_episode_that_asks(log):
    for tenant, episode in (("acme", "e1"), ("acme", "e1"), ("acme", "e2"), ("umbrella", "e1")):
        log.add(user=None, episode_id=episode, tenant=tenant)
    log.add(user="e1")
    units = list(read_window(log.reader, PROMPTED, ALL)["unit"])
    assert units[0] == units[1]
    assert len(set(units)) == 4


@pytest.mark.parametrize(
    ("status", "response", "none"),
    [
        ("ok", said("The answer."), 0.0),
        ("ok", said(None), 1.0),
        ("ok", said("  "), 1.0),
        ("ok", {"choices": []}, 1.0),
        ("ok", {"choices": [{"text": "completed"}]}, 0.0),
        ("ok", {"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]}, 0.0),
        ("ok", {"choices": [{"message": {"content": None, "tool_calls": []}}]}, 1.0),
        ("ok", {"choices": [{"message": {"content": None, "refusal": "No."}}]}, 0.0),
        ("ok", b"", None),  # no bodies are kept
        ("timeout", {}, None),
    ],
)
def test_an_answer_that_is_none(log, status, response, none):
    log.add(response=response, status=status, keep=response != b"")
    (row,) = read_window(log.reader, PROMPTED, ALL).to_dict("records")
    assert row["no_answer"] == none or (none is None and math.isnan(row["no_answer"]))
