"""Ask a subject every case, many at once, over the OpenAI chat endpoint.

Every case gets exactly one answer, in the order of the cases: what failed is an answer with its
error, never a gap. A request that got no answer for a reason that may pass (connection lost, 429,
5xx) is sent again, at most `ATTEMPTS` times. Whoever cancels leaves nothing behind: requests in
flight are aborted and their connections closed before the cancellation goes on.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import aiohttp
import orjson

from evals.records import Answer, Case

ATTEMPTS = 3
PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before each further one
LONGEST_PAUSE_SECONDS = 10.0  # that a server's retry-after is heeded for
ERROR_CHARACTERS = 300
OWN_FIELDS = frozenset(("model", "messages"))
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked, and how.

    Attributes:
        url: address of the server up to and with `/v1`.
        model: name of the model or adapter.
        parameters: further fields of every request's body, such as `max_tokens`.
        api_key: bearer token, or None.
        concurrency: requests at once, at least 1.
        timeout_seconds: for one attempt, from connecting to the last byte.
    """

    url: str
    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout_seconds: float = 60


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request's outcome; `wait`: seconds to wait at least before the next one, if it failed for
    a reason that may pass, else None."""

    answer: Answer
    wait: float | None = None


def request_body(subject: Subject, case: Case) -> bytes:
    """The body that asks `subject` the case; the same bytes for the same arguments."""
    content = {"model": subject.model, "messages": list(case.messages), **subject.parameters}
    return orjson.dumps(content)


async def answer_cases(
    cases: Sequence[Case],
    subject: Subject,
    progress: Progress,
    done: Mapping[str, Answer],
    *,
    keep: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """Answers to `cases`, in their order.

    Args:
        progress: called with the number of answered cases and of all cases, at the start and after
            every answer.
        done: answers by case id from an earlier run; those without an error are not asked again.
        keep: called with every new answer as it comes, so that a later run can be given it as
            `done`.

    Raises: ValueError for two cases of one id, a concurrency below 1, or parameters that set the
        model or the messages. What `progress` and `keep` raise ends the run.
    """
    _check(cases, subject)
    found = {
        case.case_id: done[case.case_id]
        for case in cases
        if case.case_id in done and done[case.case_id].error is None
    }
    waiting = deque(case for case in cases if case.case_id not in found)
    progress(len(found), len(cases))

    async def work(session: aiohttp.ClientSession) -> None:
        while waiting:
            answer = await _ask(session, subject, waiting.popleft())
            found[answer.case_id] = answer
            if keep is not None:
                keep(answer)
            progress(len(found), len(cases))

    async with _session(subject) as session:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(subject.concurrency, len(waiting))):
                    group.create_task(work(session))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return [found[case.case_id] for case in cases]


def _check(cases: Sequence[Case], subject: Subject) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.case_id in seen:
            raise ValueError(f"two cases have the id {case.case_id!r}")
        seen.add(case.case_id)
    if subject.concurrency < 1:
        raise ValueError(f"concurrency {subject.concurrency}: at least 1 is wanted")
    if taken := sorted(OWN_FIELDS & subject.parameters.keys()):
        raise ValueError(f"parameters: {', '.join(taken)}: set by the subject and the case")


def _session(subject: Subject) -> aiohttp.ClientSession:
    headers = {"content-type": "application/json"}
    if subject.api_key is not None:
        headers["authorization"] = f"Bearer {subject.api_key}"
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=subject.concurrency),
        timeout=aiohttp.ClientTimeout(total=subject.timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _ask(session: aiohttp.ClientSession, subject: Subject, case: Case) -> Answer:
    body, pause = request_body(subject, case), PAUSE_SECONDS
    for _ in range(ATTEMPTS - 1):
        attempt = await _attempt(session, subject.url, case.case_id, body)
        if attempt.wait is None:
            return attempt.answer
        await asyncio.sleep(max(pause, attempt.wait))
        pause *= 2
    return (await _attempt(session, subject.url, case.case_id, body)).answer


async def _attempt(session: aiohttp.ClientSession, url: str, case_id: str, body: bytes) -> Attempt:
    """Send one request. Its time is its own: neither waiting for a turn nor pauses count."""
    started = perf_counter()

    def failed(error: str, wait: float | None = None) -> Attempt:
        return Attempt(Answer(case_id, "", _since(started), error=error), wait)

    try:
        async with session.post(
            f"{url.rstrip('/')}/chat/completions", data=body, allow_redirects=False
        ) as response:
            raw, headers = await response.read(), response.headers
    except TimeoutError:
        return failed(f"no answer from {url} within {session.timeout.total:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return failed(f"{url}: {type(error).__name__}: {error}", wait=0.0)
    if response.status != 200:
        return failed(f"{url} answered {response.status}: {_said(raw)}", _wait(response))
    answer = _read(case_id, raw, _since(started))
    if answer is None:
        return failed(f"{url}: not a chat completion: {_said(raw)}")
    return Attempt(_told(answer, headers))


def _wait(response: aiohttp.ClientResponse) -> float | None:
    if response.status != 429 and response.status < 500:
        return None
    asked = response.headers.get("retry-after", "")
    return min(float(asked), LONGEST_PAUSE_SECONDS) if asked.isdecimal() else 0.0


def _since(started: float) -> float:
    return 1000 * (perf_counter() - started)


def _read(case_id: str, raw: bytes, latency_ms: float) -> Answer | None:
    """The answer in a body; None if the body is no chat completion."""
    try:
        content = orjson.loads(raw)
        choice, usage = content["choices"][0], content.get("usage") or {}
        return Answer(
            case_id,
            text=str(choice["message"].get("content") or ""),
            latency_ms=latency_ms,
            input_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            finish_reason=choice.get("finish_reason"),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _told(answer: Answer, headers: Mapping[str, str]) -> Answer:
    """The answer with what a gateway says of it in its headers; an engine says nothing."""
    try:
        cost = float(headers["x-response-cost"])
    except (KeyError, ValueError):
        cost = None
    target, request_id = headers.get("x-model"), headers.get("x-request-id")
    return replace(answer, cost_usd=cost, target=target, request_id=request_id)


def _said(raw: bytes) -> str:
    """What a body says of an error, short."""
    try:
        text = str(orjson.loads(raw)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = raw.decode(errors="replace")
    short = " ".join(text.split())
    return short if len(short) <= ERROR_CHARACTERS else short[: ERROR_CHARACTERS - 1] + "…"
