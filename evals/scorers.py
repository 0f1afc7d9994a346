"""Scorers: what is measured of one answer.

A scorer is a callable on a case and an answer; its `__name__` is its metric. One that crashes
yields a failed score with its reason, and the run goes on. An answer that failed, or is missing,
is wrong: quality metrics give it 0. What it cost is not known: `latency`, `cost` and
`output_tokens` have no value then, nor has `refusal`, and nothing has a value where the case does
not say what is right.
"""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from evals.json_text import read_json, same_json
from evals.records import Answer, Case, Score
from evals.refusals import refusal_language

Scorer = Callable[[Case, Answer], Score]
MISSING = "there is no answer to this case"
NOT_EXPECTED = "the case says no expected answer"
NOT_JSON = "not JSON"
NO_COST = "whoever answered did not say what it cost"
# What goes wrong inside a scorer. Not `Exception`: what is none of these ends the run.
CRASHES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_log = logging.getLogger(__name__)


def exact_match(case: Case, answer: Answer) -> Score:
    """1 if the answer is the expected one, else 0.

    An expected text is compared without white space around it; anything else as JSON, so that white
    space and the order of keys do not count, nor whether 3 is written 3.0.
    """
    if case.expected is None:
        return Score(case.case_id, "exact_match", None, NOT_EXPECTED)
    if answer.error is not None:
        return Score(case.case_id, "exact_match", 0.0, answer.error)
    if isinstance(case.expected, Mapping | list | tuple | bool | int | float):
        return _json_match(case, answer)
    right = answer.text.strip() == str(case.expected).strip()
    return Score(case.case_id, "exact_match", float(right), None if right else _differs(case))


def contains(case: Case, answer: Answer) -> Score:
    """1 if every expected text is in the answer, without regard to case and white space, else 0.

    What is expected is one text, or a list of them.
    """
    if case.expected is None:
        return Score(case.case_id, "contains", None, NOT_EXPECTED)
    if answer.error is not None:
        return Score(case.case_id, "contains", 0.0, answer.error)
    wanted = case.expected if isinstance(case.expected, list | tuple) else [case.expected]
    said = _folded(answer.text)
    missing = [str(one) for one in wanted if _folded(str(one)) not in said]
    reason = f"without {', '.join(map(repr, missing))}" if missing else None
    return Score(case.case_id, "contains", float(not missing), reason)


def valid_json(case: Case, answer: Answer) -> Score:
    """1 if the answer is a JSON text, else 0."""
    if answer.error is not None:
        return Score(case.case_id, "valid_json", 0.0, answer.error)
    try:
        read_json(answer.text)
    except ValueError as error:
        return Score(case.case_id, "valid_json", 0.0, str(error), NOT_JSON)
    return Score(case.case_id, "valid_json", 1.0)


def schema(case: Case, answer: Answer) -> Score:
    """1 if the answer is JSON that keeps to the case's JSON Schema, else 0."""
    if case.schema is None:
        return Score(case.case_id, "schema", None, "neither the case nor the prompt has a schema")
    if answer.error is not None:
        return Score(case.case_id, "schema", 0.0, answer.error)
    try:
        given = read_json(answer.text)
    except ValueError as error:
        return Score(case.case_id, "schema", 0.0, str(error), NOT_JSON)
    wrong = _violation(case.schema, given)
    if wrong is None:
        return Score(case.case_id, "schema", 1.0)
    return Score(case.case_id, "schema", 0.0, _told(wrong), _where(wrong, case.schema))


def first_violation(schema: Mapping[str, Any], value: Any) -> str | None:
    """Where and how `value` breaks a JSON Schema; None if it keeps to it.

    Raises: ValueError where the schema is none. Nothing is fetched that it may refer to.
    """
    wrong = _violation(schema, value)
    return None if wrong is None else _told(wrong)


def _violation(schema: Mapping[str, Any], value: Any) -> Any:
    """The first one, as jsonschema has it."""
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
        wrong = next(Draft202012Validator(schema, registry=Registry()).iter_errors(value), None)
    except SchemaError as error:
        raise ValueError(f"the schema is none: {error.message}") from error
    except Unresolvable as error:
        raise ValueError(f"the schema cannot be used: {error}") from error
    return wrong


def _told(wrong: Any) -> str:
    return f"{wrong.json_path}: {wrong.message}"


def _where(wrong: Any, schema: Mapping[str, Any]) -> str:
    """The place, by keys that the schema names, and what the schema asks for there: no word of the
    answer."""
    known = set(_keys(schema))
    steps = (
        f"[{step}]" if isinstance(step, int) else f".{step if step in known else '*'}"
        for step in wrong.absolute_path
    )
    return f"${''.join(steps)}: breaks {wrong.validator}"


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _keys(one)


def refusal(case: Case, answer: Answer) -> Score:
    """1 if the answer declines to answer, else 0."""
    if answer.error is not None:
        return Score(case.case_id, "refusal", None, answer.error)
    language = refusal_language(answer.text)
    reason = None if language is None else f"declines, in the words of {language!r}"
    return Score(case.case_id, "refusal", float(language is not None), reason, reason)


def latency(case: Case, answer: Answer) -> Score:
    """Milliseconds from the request to the whole answer."""
    return _measured(case, answer, "latency", answer.latency_ms)


def output_tokens(case: Case, answer: Answer) -> Score:
    """Tokens of the answer, as the engine counted them."""
    return _measured(case, answer, "output_tokens", float(answer.output_tokens))


def cost(case: Case, answer: Answer) -> Score:
    """USD, as the gateway charged."""
    if answer.cost_usd is None and answer.error is None:
        return Score(case.case_id, "cost", None, NO_COST, NO_COST)
    return _measured(case, answer, "cost", answer.cost_usd or 0.0)


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        scorer.__name__: scorer
        for scorer in (
            exact_match, contains, valid_json, schema, refusal, latency, cost, output_tokens,
        )
    }
)  # fmt: skip


def score_all(
    cases: Sequence[Case], answers: Iterable[Answer], scorers: Sequence[Scorer]
) -> list[Score]:
    """Every scorer's score of every case: for each case, in order, one score per scorer.

    Raises: ValueError for two answers to one case, or an answer to a case that is not there.
    """
    by_case: dict[str, Answer] = {}
    known = {case.case_id for case in cases}
    for answer in answers:
        if answer.case_id not in known:
            raise ValueError(f"an answer to {answer.case_id!r}: there is no such case")
        if answer.case_id in by_case:
            raise ValueError(f"two answers to the case {answer.case_id!r}")
        by_case[answer.case_id] = answer
    return [
        score_one(scorer, case, by_case.get(case.case_id) or _missing(case.case_id))
        for case in cases
        for scorer in scorers
    ]


def score_one(scorer: Scorer, case: Case, answer: Answer) -> Score:
    """The score; a failed one if the scorer crashes."""
    try:
        return scorer(case, answer)
    except CRASHES as error:
        name = getattr(scorer, "__name__", type(scorer).__name__)
        _log.exception("scorer %s failed on case %s", name, case.case_id)
        quiet = f"it crashed: {type(error).__name__}"
        return Score(case.case_id, name, None, f"{type(error).__name__}: {error}", quiet)


def _missing(case_id: str) -> Answer:
    return Answer(case_id, "", 0.0, error=MISSING)


def _json_match(case: Case, answer: Answer) -> Score:
    try:
        given = read_json(answer.text)
    except ValueError as error:
        return Score(case.case_id, "exact_match", 0.0, str(error))
    right = same_json(given, _plain(case.expected))
    return Score(case.case_id, "exact_match", float(right), None if right else _differs(case))


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _differs(case: Case) -> str:
    return f"expected {case.expected!r}"


def _measured(case: Case, answer: Answer, metric: str, value: float) -> Score:
    if answer.error is not None:
        return Score(case.case_id, metric, None, answer.error)
    return Score(case.case_id, metric, value)
