"""Logged requests as a table that drift is measured on: texts, descriptors, tokens, money.

One row per answered request of a subject's traffic: a prompt's version, or a model's requests
without a prompt, of all tenants or of one. Who asked is kept as a digest, the same that the audit
trail names erased users by.

Who asked is the user; without one the episode; without either nobody knows, and `unit` is the
request itself. `caller` is the key, for `evals.comparison` to decide what such requests count as.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from evals.descriptors import described
from evals.prediction_plan import Predictions
from gateway.request_log import LogReader

Frame = Any  # pandas' tables; their types are not known to the type checker

CHAT, COMPLETIONS = "chat", "completions"
PREDICT, INFER = "predict", "infer"
READ = (
    "request_id", "ts", "user", "episode_id", "key_id", "prompt_version", "tenant", "status",
    "input_tokens", "output_tokens", "cost_usd", "latency_ms", "contexts", "request", "response",
)  # fmt: skip
# What evaluations and judges asked is no traffic; they say so in the request's metadata.
NOT_OURS = "coalesce(json_extract_string(tags, '$.purpose'), '') NOT IN ('evaluation', 'judge')"
FAILURES = frozenset(("upstream_error", "upstream_cut", "timeout", "failed", "interrupted"))
NUMBERS = ("input_tokens", "output_tokens", "cost_usd", "latency_ms")
CHUNK = 5_000  # rows whose bodies are in memory at once


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which requests a subject is.

    Attributes:
        prompt, model: one of both; a model's are its requests without a prompt.
        version: of the prompt, or the served name of a model whose predictions are watched; None
            is every version.
        tenant: None is all tenants together.
        question, passages: variables of the prompt that hold them, if they are known.
        predictions: how predictions are watched; None where answers are texts.
        time: column of a prediction that says what moment it is about.
    """

    prompt: str | None = None
    model: str | None = None
    version: str | None = None
    tenant: str | None = None
    question: str | None = None
    passages: str | None = None
    predictions: Predictions | None = None
    time: str | None = None

    @property
    def key(self) -> str:
        """What its reference is pinned under: every version of a prompt has the same."""
        name = self.prompt if self.prompt is not None else f"model:{self.model}"
        return name if self.tenant is None else f"{name}:{self.tenant}"

    @property
    def subject(self) -> str:
        """Whom verdicts are about, such as `drift:assistant@3` or `drift:model:extractor:acme`."""
        if self.prompt is None or self.version is None:
            return f"drift:{self.key}"
        tenant = "" if self.tenant is None else f":{self.tenant}"
        return f"drift:{self.prompt}@{self.version}{tenant}"

    def condition(self) -> tuple[str, list[Any]]:
        """The same as an SQL condition on the request log, and its parameters."""
        asked = (CHAT, COMPLETIONS) if self.predictions is None else (PREDICT, INFER)
        parts = ["endpoint IN (?, ?)", "status <> 'rejected'", NOT_OURS]
        parameters: list[Any] = [*asked]
        if self.prompt is not None:
            parts.append("prompt_name = ?")
            parameters.append(self.prompt)
        else:
            parts += ["prompt_name IS NULL", "model = ?"]
            parameters.append(self.model)
        versions = "prompt_version" if self.predictions is None else "adapter"
        for column, value in ((versions, self.version), ("tenant", self.tenant)):
            if value is not None:
                parts.append(f"{column} = ?")
                parameters.append(value)
        return " AND ".join(parts), parameters


@dataclass(frozen=True, slots=True)
class Period:
    """Rows after `after` and up to `until` (microseconds since the epoch), the newest `most`."""

    after: int
    until: int
    most: int


def found_in(reader: LogReader, traffic: Traffic, period: Period) -> list[Traffic]:
    """`traffic` taken apart by the prompt's versions that were asked in the period."""
    if traffic.prompt is None or traffic.version is not None:
        return [traffic]
    condition, parameters = within(traffic, period)
    sql = f"SELECT DISTINCT prompt_version FROM requests WHERE {condition}"
    versions = {row[0] for row in reader.select(sql, parameters).rows}
    return [replace(traffic, version=one) for one in sorted(versions - {None})]


def tenants_of(reader: LogReader, traffic: Traffic, period: Period) -> list[str]:
    """Tenants with requests in the period."""
    condition, parameters = within(traffic, period)
    sql = f"SELECT DISTINCT tenant FROM requests WHERE {condition}"
    return sorted({row[0] for row in reader.select(sql, parameters).rows} - {None})


def count_rows(reader: LogReader, traffic: Traffic, period: Period) -> int:
    """How many there are in the period, however many are wanted."""
    condition, parameters = within(traffic, period)
    found = reader.select(f"SELECT count(*) FROM requests WHERE {condition}", parameters)
    return int(found.rows[0][0])


def read_window(reader: LogReader, traffic: Traffic, period: Period) -> Frame:
    """The rows, oldest first."""
    import pandas

    condition, parameters = within(traffic, period)
    ids = reader.select(
        f"SELECT request_id FROM requests WHERE {condition} "
        f"ORDER BY request_id DESC LIMIT {period.most:d}",
        parameters,
    ).rows
    names = sorted(row[0] for row in ids)
    parts = []
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        in_chunk = f"({condition}) AND request_id BETWEEN ? AND ?"
        bounds = [*parameters, chunk[0], chunk[-1]]
        rows = reader.rows(in_chunk, bounds, columns=READ, order="request_id")
        parts.append(pandas.DataFrame(_columns(rows, traffic)))
    if not parts:
        return pandas.DataFrame(_columns([], traffic))
    return pandas.concat(parts, ignore_index=True)


def within(traffic: Traffic, period: Period) -> tuple[str, list[Any]]:
    """Traffic and period as an SQL condition on the request log, and its parameters."""
    condition, parameters = traffic.condition()
    # A bound on ts lets Parquet files be left out; make_timestamptz takes microseconds.
    limits = "ts > make_timestamptz(?) AND ts <= make_timestamptz(?)"
    return f"{condition} AND {limits}", [*parameters, period.after, period.until]


def _columns(rows: Sequence[Mapping[str, Any]], traffic: Traffic) -> dict[str, Any]:
    import numpy as np

    contexts = [object_of(row["contexts"]) for row in rows]
    questions = [
        _question(row["request"], context, traffic.question)
        for row, context in zip(rows, contexts, strict=True)
    ]
    answers = [_answer(row["response"]) if row["status"] == "ok" else None for row in rows]
    columns: dict[str, Any] = {
        "request_id": [row["request_id"] for row in rows],
        "ts": np.array([_micros(row["ts"]) for row in rows], dtype="int64"),
        "unit": [asker_of(row) for row in rows],
        "caller": [unit_of(f"key {row['key_id']}") for row in rows],
        "question": np.array(questions, dtype=object),
        "answer": np.array(answers, dtype=object),
        "failed": [float(row["status"] in FAILURES) for row in rows],
        "no_answer": _floats(
            _has_none(row["response"]) if row["status"] == "ok" else None for row in rows
        ),
        "retrieval_empty": _floats(_is_empty(one, traffic.passages) for one in contexts),
    }
    for name in NUMBERS:
        columns[name] = _floats(row[name] for row in rows)
    for name, values in described(questions, answers).items():
        columns[name] = values if name.endswith("language") else _floats(values)
    return columns


def _floats(values: Any) -> Any:
    import numpy as np

    return np.array([np.nan if one is None else float(one) for one in values], dtype=float)


def _micros(moment: Any) -> int:
    return int(moment.timestamp() * 1_000_000)


def unit_of(user: str) -> str:
    """A user's digest, as the audit trail writes it."""
    return hashlib.sha256(user.encode()).hexdigest()[:16]


def asker_of(row: Mapping[str, Any]) -> str:
    """Digest of who asked: the user, else the episode, else the request itself."""
    if row["user"] is not None:
        return unit_of(row["user"])
    if row["episode_id"] is not None:
        return unit_of(f"episode {row['tenant']} {row['episode_id']}")
    return str(row["request_id"])


def object_of(text: str | None) -> Mapping[str, Any]:
    """A logged JSON body; empty if it is none, or no object."""
    try:
        value = orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {}


def _question(request: str | None, contexts: Mapping[str, Any], variable: str | None) -> str | None:
    """What was asked: the prompt's variable, the last message of the user, or the whole prompt."""
    variables = contexts.get("variables")
    if isinstance(variables, dict):
        if variable is not None:
            return _filled(variables.get(variable))
        texts = [one for one in variables.values() if isinstance(one, str)]
        return _filled("\n".join(texts))
    body = object_of(request)
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _filled(body.get("prompt"))
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _filled(_text(message.get("content")))
    return None


def _answer(response: str | None) -> str | None:
    """The text of the first choice. A call of a tool is no text."""
    choice = _choice(response)
    message = choice.get("message")
    if isinstance(message, dict):
        return _text(message.get("content"))
    return _text(choice.get("text"))


def _has_none(response: str | None) -> float | None:
    """1 where the model said nothing: no text, no refusal, no call of a tool. None where the
    response was not kept."""
    if response is None:
        return None
    message = _choice(response).get("message")
    said = message if isinstance(message, dict) else {}
    called = said.get("tool_calls") or said.get("function_call") or said.get("refusal")
    return float(not called and _filled(_answer(response)) is None)


def _choice(response: str | None) -> Mapping[str, Any]:
    choices = object_of(response).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return None


def _filled(text: Any) -> str | None:
    return text if isinstance(text, str) and text.strip() else None


def _is_empty(contexts: Mapping[str, Any], variable: str | None) -> float | None:
    """1 if nothing was retrieved, 0 if something was, None where nothing is said of it."""
    variables = contexts.get("variables")
    passages = contexts.get("retrieved_contexts")
    if passages is None and variable is not None and isinstance(variables, dict):
        passages = variables.get(variable)
    if passages is None:
        return None
    return float(not passages if not isinstance(passages, str) else not passages.strip())
