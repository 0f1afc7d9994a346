"""Answers out of the request log, as samples to be measured: nothing is asked again.

A row has what metrics need as far as the application sent it (`retrieved_contexts`, `reference`) or
the prompt's `evaluation.fields` say which of the logged variables it is. Only answered requests of
the prompt are taken, the newest first; those that evaluations and judges made are not traffic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from evals.evaluation import Evaluation
from evals.golden_cases import GoldenCase, schema_of, told
from evals.records import Answer, Case
from gateway.request_log import LogReader
from prompts.prompt import BadVariables, Prompt

MOST = 1_000
READ = (
    "request_id", "ts", "prompt_version", "target", "finish_reason", "latency_ms", "input_tokens",
    "output_tokens", "cost_usd", "contexts", "request", "response",
)  # fmt: skip
Row = Mapping[str, Any]


class NotAnswered(LookupError):
    """There is no such request, or nothing that a case can be made of."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which of a prompt's requests are measured: all after `since`, at most the `most` newest."""

    since: datetime
    version: str | None = None
    most: int = MOST


def evaluation_of(reader: LogReader, prompt: Prompt, window: Window) -> Evaluation:
    """The window's answers, not measured yet. What metrics need is read by `prompt`'s fields."""
    rows = _rows(reader, prompt.name, window)
    schema = schema_of(prompt)
    samples = [(_case(prompt, row, schema), _answer(row)) for row in rows]
    unknown = [row["request_id"] for row in rows if answer_text(row["response"]) is None]
    return Evaluation(
        name=prompt.name,
        content_hash=prompt.content_hash,
        model=prompt.model,
        cases=tuple(case for case, _ in samples),
        answers=tuple((answer,) for _, answer in samples),
        scores={},
        coverage={},
        lost=dict.fromkeys(unknown, "the log has no text of the answer"),
        spoken=False,
    )


def golden_of(reader: LogReader, prompt: Prompt, identifier: str) -> GoldenCase:
    """A golden case of a logged request of the prompt; what is expected is for a person to say.

    Raises: NotAnswered where there is no such request, or it is none of the prompt's.
    """
    row = reader.row(identifier)
    if row is None:
        raise NotAnswered(
            f"no request {identifier!r} in the log; llmops logs tail shows the newest"
        )
    if row["prompt_name"] != prompt.name:
        made = f"by the prompt {row['prompt_name']}" if row["prompt_name"] else "without a prompt"
        raise NotAnswered(f"request {row['request_id']} was made {made}, not by {prompt.name}")
    contexts = _object(row["contexts"])
    variables = contexts.get("variables")
    if not isinstance(variables, dict) or not variables:
        raise NotAnswered(
            f"request {row['request_id']} has no variables in the log: its key keeps no bodies, or "
            "its user was erased"
        )
    known = told(prompt, {}, contexts)
    return GoldenCase(
        case_id=f"{prompt.name}-{row['request_id']}",
        variables=variables,
        reference=known.get("reference"),
        retrieved_contexts=known.get("retrieved_contexts"),
        tags={"from": "log"},
    )


def _rows(reader: LogReader, name: str, window: Window) -> Sequence[Row]:
    condition = (
        "endpoint = 'chat' AND status = 'ok' AND prompt_name = ? AND ts >= make_timestamptz(?)"
    )
    parameters: list[Any] = [name, int(window.since.timestamp() * 1_000_000)]
    if window.version is not None:
        condition += " AND prompt_version = ?"
        parameters.append(window.version)
    return reader.rows(condition, parameters, columns=READ, order="ts DESC", limit=window.most)


def _case(prompt: Prompt, row: Row, schema: Mapping[str, Any] | None) -> Case:
    contexts = _object(row["contexts"])
    variables = contexts.get("variables")
    given: Mapping[str, Any] = variables if isinstance(variables, dict) else {}
    try:
        given = prompt.complete(given)
    except BadVariables:
        pass  # of another version of the prompt: what it has is what there is
    known = told(prompt, given, contexts)
    return Case(
        case_id=row["request_id"],
        messages=(),
        expected=None,
        tags={"version": row["prompt_version"] or ""},
        user_input=known.get("user_input"),
        retrieved_contexts=known.get("retrieved_contexts"),
        reference=known.get("reference"),
        schema=schema,
    )


def _answer(row: Row) -> Answer:
    return Answer(
        case_id=row["request_id"],
        text=answer_text(row["response"]) or "",
        latency_ms=float(row["latency_ms"] or 0.0),
        input_tokens=row["input_tokens"] or 0,
        output_tokens=row["output_tokens"] or 0,
        finish_reason=row["finish_reason"],
        cost_usd=None if row["cost_usd"] is None else float(row["cost_usd"]),
        target=row["target"],
        request_id=row["request_id"],
    )


def answer_text(response: str | None) -> str | None:
    """The text of the first choice of a logged answer; None where its body was not kept."""
    choices = _object(response).get("choices")
    first = choices[0] if isinstance(choices, Sequence) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        value = orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {}
