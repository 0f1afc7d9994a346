"""Scorers: what is measured of one answer.

A scorer is a callable on a case and an answer; its `__name__` is its metric. One that crashes
yields a failed score with its reason, and the run goes on. An answer that failed, or is missing,
is wrong: quality metrics give it 0. What it cost is not known: `latency` and `output_tokens` have
no value then.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from evals.json_text import read_json, same_json
from evals.records import Answer, Case, Score

Scorer = Callable[[Case, Answer], Score]
MISSING = "there is no answer to this case"
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

    An expected object or list is compared as JSON, so that white space and the order of keys do
    not count; anything else as text, without white space around it.
    """
    if answer.error is not None:
        return Score(case.case_id, "exact_match", 0.0, answer.error)
    if isinstance(case.expected, Mapping | list | tuple):
        return _json_match(case, answer)
    right = answer.text.strip() == str(case.expected).strip()
    return Score(case.case_id, "exact_match", float(right), None if right else _differs(case))


def valid_json(case: Case, answer: Answer) -> Score:
    """1 if the answer is a JSON text, else 0."""
    if answer.error is not None:
        return Score(case.case_id, "valid_json", 0.0, answer.error)
    try:
        read_json(answer.text)
    except ValueError as error:
        return Score(case.case_id, "valid_json", 0.0, str(error))
    return Score(case.case_id, "valid_json", 1.0)


def latency(case: Case, answer: Answer) -> Score:
    """Milliseconds from the request to the whole answer."""
    return _measured(case, answer, "latency", answer.latency_ms)


def output_tokens(case: Case, answer: Answer) -> Score:
    """Tokens of the answer, as the engine counted them."""
    return _measured(case, answer, "output_tokens", float(answer.output_tokens))


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {scorer.__name__: scorer for scorer in (exact_match, valid_json, latency, output_tokens)}
)


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
        _score(scorer, case, by_case.get(case.case_id) or _missing(case.case_id))
        for case in cases
        for scorer in scorers
    ]


def _score(scorer: Scorer, case: Case, answer: Answer) -> Score:
    try:
        return scorer(case, answer)
    except CRASHES as error:
        name = getattr(scorer, "__name__", type(scorer).__name__)
        _log.exception("scorer %s failed on case %s", name, case.case_id)
        return Score(case.case_id, name, None, f"{type(error).__name__}: {error}")


def _missing(case_id: str) -> Answer:
    return Answer(case_id, "", 0.0, error=MISSING)


def _json_match(case: Case, answer: Answer) -> Score:
    try:
        given = read_json(answer.text)
    except ValueError as error:
        return Score(case.case_id, "exact_match", 0.0, str(error))
    right = same_json(given, _plain(case.expected))
    return Score(case.case_id, "exact_match", float(right), None if right else _differs(case))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _differs(case: Case) -> str:
    return f"expected {case.expected!r}"


def _measured(case: Case, answer: Answer, metric: str, value: float) -> Score:
    if answer.error is not None:
        return Score(case.case_id, metric, None, answer.error)
    return Score(case.case_id, metric, value)
