"""The `drift` section: what cannot be meant is refused, and the message names the key."""

import pytest
from pydantic import ValidationError

from evals.drift_plan import DriftPlan


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"hours": float("inf")}, "hours"),
        ({"hours": 8761}, "hours"),
        ({"alarms": float("nan")}, "alarms"),
        ({"least": {"question_text": float("nan")}}, "least.question_text"),
        ({"least": {"question_text": 0.5}}, "least.question_text"),
        ({"least": {"answer_refused": 1}}, "least.answer_refused"),
        ({"least": {"answer_embedding": -0.1}}, "least.answer_embedding"),
        ({"slas": {"sla_failed": 1.5}}, "slas.sla_failed"),
        ({"slas": {"sla_failed": -0.1}}, "slas.sla_failed"),
        ({"slas": {"sla_latency_p95": float("inf")}}, "slas.sla_latency_p95"),
        ({"least_rows": 500, "most_rows": 200}, "least_rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, key):
    with pytest.raises(ValidationError) as error:
        DriftPlan.model_validate(given)
    (found,) = error.value.errors()
    assert key in f"{'.'.join(map(str, found['loc']))} {found['msg']}"


def test_what_can_be_meant_is_taken():
    DriftPlan.model_validate(
        {
            "hours": 8760,
            "least": {"question_text": 0.49, "answer_embedding": 2, "answer_refused": 0},
            "slas": {"sla_failed": 1, "sla_latency_p95": 90_000, "sla_refused": None},
            "least_rows": 200,
            "most_rows": 200,
        }
    )
