"""Answers from a real server on a socket: all of them, in order, whatever the server does."""

import asyncio
import time

import orjson
import pytest

from evals.answers import ATTEMPTS, Subject, answer_cases, request_body
from evals.records import Answer, Case
from tests.scripted_upstream import ScriptedUpstream


@pytest.fixture
async def upstream():
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("evals.answers.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("evals.answers.LONGEST_PAUSE_SECONDS", 0.02)


def cases(count):
    return [
        Case(f"c{index}", ({"role": "user", "content": f"word{index} and more"},), None)
        for index in range(count)
    ]


def quiet(count, total):
    pass


async def answers(upstream, script, asked, **fields):
    subject = Subject(upstream.url, script, **fields)
    return await answer_cases(asked, subject, quiet, {})


async def test_every_case_is_answered_in_its_place(upstream):
    seen = []
    subject = Subject(upstream.url, "echo", {"max_tokens": 24, "temperature": 0}, concurrency=4)
    found = await answer_cases(cases(50), subject, lambda *at: seen.append(at), {})
    assert [answer.case_id for answer in found] == [f"c{index}" for index in range(50)]
    assert [answer.text for answer in found] == [f"word{index} and more" for index in range(50)]
    assert seen == [(count, 50) for count in range(51)]
    first = found[0]
    assert (first.input_tokens, first.output_tokens, first.finish_reason) == (3, 3, "stop")
    assert first.error is None
    assert 0 < first.latency_ms < 5000
    assert len(upstream.calls) == 50


async def test_the_body_is_the_cases_messages_and_the_subjects_parameters(upstream):
    await answers(upstream, "chat", cases(1), parameters={"max_tokens": 24, "temperature": 0})
    assert upstream.calls[0].body == {
        "model": "chat",
        "messages": [{"role": "user", "content": "word0 and more"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    subject = Subject("http://nowhere/v1", "m", {"seed": 1, "n": 1})
    assert request_body(subject, cases(1)[0]) == request_body(subject, cases(1)[0])
    assert orjson.loads(request_body(subject, cases(1)[0]))["seed"] == 1


async def test_no_more_at_once_than_allowed(upstream):
    await answers(upstream, "chat,slow-ms=30", cases(20), concurrency=5)
    spans = [(call.started, call.ended) for call in upstream.calls]
    at_once = [sum(start <= begun < (end or begun) for start, end in spans) for begun, _ in spans]
    assert max(at_once) == 5
    assert upstream.counts["connections"] <= 5


async def test_the_key_is_sent_and_not_shown(upstream):
    subject = Subject(upstream.url, "chat", api_key="sk-very-secret")
    await answer_cases(cases(1), subject, quiet, {})
    assert upstream.calls[0].header("authorization") == "Bearer sk-very-secret"
    assert "secret" not in repr(subject)
    await answer_cases(cases(1), Subject(upstream.url, "chat"), quiet, {})
    assert upstream.calls[1].header("authorization") is None


@pytest.mark.parametrize(
    ("script", "error", "attempts"),
    [
        ("status=500", "answered 500: scripted 500", ATTEMPTS),
        ("status=429", "answered 429: scripted 429", ATTEMPTS),
        ("status=503", "answered 503: scripted 503", ATTEMPTS),
        ("status=400", "answered 400: scripted 400", 1),
        ("no-such-script", "answered 404: The model `no-such-script` does not exist", 1),
        ("redirect", "answered 307", 1),
        ("not-json", "not a chat completion: <", 1),
        ("refuse", "ServerDisconnectedError", ATTEMPTS),
        ("reset", "Error", ATTEMPTS),
        ("cut-bytes=20", "ClientPayloadError", ATTEMPTS),
        ("not-http", "Error", ATTEMPTS),
    ],
)
async def test_what_fails_is_an_answer_with_its_error(upstream, script, error, attempts):
    found = await answers(upstream, script, cases(2), concurrency=1)
    assert [answer.case_id for answer in found] == ["c0", "c1"]
    for answer in found:
        assert answer.text == ""
        assert answer.error is not None
        assert error in answer.error
        assert upstream.url in answer.error
    assert upstream.counts["/v1/chat/completions"] == 2 * attempts


async def test_a_server_that_is_away_is_an_error_too(upstream):
    await upstream.close()
    found = await answers(upstream, "chat", cases(3))
    assert all("ClientConnectorError" in (answer.error or "") for answer in found)


async def test_a_server_that_comes_back_is_asked_again(upstream, monkeypatch):
    monkeypatch.setattr("evals.answers.PAUSE_SECONDS", 0.3)
    port = upstream.port
    await upstream.close()
    run = asyncio.create_task(answers(upstream, "echo", cases(8)))
    await asyncio.sleep(0.1)
    async with ScriptedUpstream(port):
        found = await run
    assert [answer.error for answer in found] == [None] * 8


async def test_a_slow_answer_is_given_up_once(upstream):
    started = time.monotonic()
    found = await answers(upstream, "chat,slow-ms=60000", cases(2), timeout_seconds=0.2)
    assert time.monotonic() - started < 3
    assert found[0].error == f"no answer from {upstream.url} within 0.2 s"
    assert 150 < found[0].latency_ms < 3000
    assert len(upstream.calls) == 2


async def test_an_answer_without_text_or_usage_is_one(upstream):
    tools = [{"type": "function", "function": {"name": "look"}}]
    found = await answers(upstream, "tool-call,no-usage", cases(1), parameters={"tools": tools})
    assert found == [Answer("c0", "", found[0].latency_ms, 0, 0, "tool_calls", None)]


async def test_a_run_goes_on_where_another_ended(upstream):
    kept: dict[str, Answer] = {}

    def stop_at_ten(count, total):
        if count == 10:
            raise OSError("the disk is full")

    def keep(answer):
        kept[answer.case_id] = answer

    subject = Subject(upstream.url, "echo", concurrency=1)
    with pytest.raises(OSError, match="the disk is full"):
        await answer_cases(cases(20), subject, stop_at_ten, {}, keep=keep)
    assert len(kept) == 10
    counts = []
    found = await answer_cases(cases(20), subject, lambda *at: counts.append(at), kept)
    assert counts[0] == (10, 20)
    assert counts[-1] == (20, 20)
    assert [answer.text for answer in found] == [f"word{index} and more" for index in range(20)]
    assert len(upstream.calls) == 20
    assert found[:10] == list(kept.values())


async def test_failed_answers_are_asked_again_and_strange_ones_ignored(upstream):
    done = {
        "c0": Answer("c0", "", 1.0, error="engine answered 500"),
        "c1": Answer("c1", "known", 1.0),
        "other": Answer("other", "of another set", 1.0),
    }
    subject = Subject(upstream.url, "echo")
    found = await answer_cases(cases(2), subject, quiet, done)
    assert [answer.text for answer in found] == ["word0 and more", "known"]


async def test_nothing_to_ask_asks_nothing(upstream):
    seen = []
    subject = Subject(upstream.url, "echo")
    assert await answer_cases([], subject, lambda *at: seen.append(at), {}) == []
    assert seen == [(0, 0)]
    assert not upstream.calls


async def test_a_cancelled_run_leaves_nothing_behind(upstream):
    before = asyncio.all_tasks()
    run = asyncio.create_task(answers(upstream, "chat,slow-ms=60000", cases(30), concurrency=6))
    while len(upstream.calls) < 6:
        await asyncio.sleep(0.01)
    run.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert time.monotonic() - started < 1
    for _ in range(100):
        if upstream.counts["aborted"] == 6:
            break
        await asyncio.sleep(0.01)
    assert upstream.counts["aborted"] == 6
    assert len(upstream.calls) == 6
    left = asyncio.all_tasks() - before
    assert not [task for task in left if "scripted_connection" not in repr(task)]


async def test_what_the_progress_raises_ends_the_run(upstream):
    def broken(count, total):
        if count:
            raise OSError("the terminal is gone")

    subject = Subject(upstream.url, "chat,slow-ms=20", concurrency=4)
    with pytest.raises(OSError, match="the terminal is gone"):
        await answer_cases(cases(40), subject, broken, {})
    assert len(upstream.calls) <= 8


@pytest.mark.parametrize(
    ("asked", "fields", "message"),
    [
        (cases(1) * 2, {}, "two cases have the id 'c0'"),
        (cases(1), {"concurrency": 0}, "concurrency 0"),
        (cases(1), {"parameters": {"model": "other"}}, "parameters: model"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    upstream, asked, fields, message
):
    with pytest.raises(ValueError, match=message):
        await answers(upstream, "chat", asked, **fields)
    assert not upstream.calls
