"""Guardrails: what a request says of each, when one is broken, and plans that cannot be."""

from typing import Any

import orjson
import pytest

from evals.records import Decision
from gateway.configuration import ConfigurationError
from gateway.database import now
from gateway.records import Status
from pipelines.findings import find
from pipelines.guardrails import Guardrail
from pipelines.observations import Observed
from pipelines.plan import PLANS, load_plan, parse_plan
from pipelines.tables import ExperimentRow
from tests.pipelines.prompt_trial import METRICS, REFUSAL, plan


def answer(text: str) -> str:
    return orjson.dumps({"choices": [{"message": {"content": text}}]}).decode()


@pytest.mark.parametrize(
    ("guardrail", "request_of", "value"),
    [
        ({"metric": "errors"}, {}, 0.0),
        ({"metric": "errors"}, {"status": Status.UPSTREAM_ERROR}, 1.0),
        ({"metric": "errors"}, {"status": Status.REJECTED}, 1.0),
        ({"metric": "errors"}, {"status": Status.CLIENT_DISCONNECTED}, None),
        ({"metric": "errors"}, {"status": Status.INTERRUPTED}, None),
        ({"metric": "refusals"}, {}, 0.0),
        ({"metric": "refusals"}, {"response": answer(REFUSAL)}, 1.0),
        ({"metric": "refusals"}, {"response": None}, None),
        ({"metric": "refusals"}, {"status": Status.FAILED}, None),
        ({"metric": "latency", "limit": 10}, {}, 0.25),
        ({"metric": "latency", "limit": 2}, {}, 1.0),
        ({"metric": "latency", "limit": 10}, {"status": Status.TIMEOUT}, 0.25),
        ({"metric": "latency", "limit": 10}, {"status": Status.REJECTED}, None),
        ({"metric": "latency", "limit": 10}, {"latency_ms": None}, None),
        ({"metric": "cost", "limit": 0.02}, {}, 0.5),
        ({"metric": "cost", "limit": 0.02}, {"status": Status.UPSTREAM_ERROR}, None),
    ],
)
def test_what_a_request_says(guardrail: Any, request_of: Any, value: float | None) -> None:
    given = {"status": Status.OK, "latency_ms": 2500.0, "cost_usd": 0.01, "response": answer("Hi")}
    assert Guardrail.model_validate(guardrail).scaled(given | request_of) == value


def row(version: str | None = "2", **changes: Any) -> ExperimentRow:
    guardrails = [{"metric": "errors", "margin": 0.05}, {"metric": "latency", "limit": 4}]
    return ExperimentRow(
        experiment_id="0192f0c1-0000-7000-8000-000000000000", alias="prompt:x", name="prompt:x",
        version=version, state="running", arms=[], started_at=now(),
        plan=plan(guardrails=guardrails, **changes).model_dump(mode="json"),
    )  # fmt: skip


def observed(**guarded: tuple[list[float], list[float]]) -> Observed:
    by_arm = {
        metric: dict(zip(("champion", "challenger"), values, strict=True))
        for metric, values in guarded.items()
    }
    return Observed({"champion": [], "challenger": []}, {}, guarded=by_arm)


@pytest.mark.parametrize(
    ("seen", "version", "decision"),
    [
        (observed(), "2", None),
        (observed(errors=([0.0] * 50, [0.0] * 50)), "2", None),
        (observed(errors=([0.0] * 3, [1.0] * 3)), "2", None),  # may be chance
        (observed(errors=([0.0] * 20, [1.0] * 20)), "2", Decision.REJECT),
        (observed(errors=([1.0] * 20, [0.0] * 20)), "2", None),  # better is not broken
        (observed(latency=([0.1] * 90, [0.9] * 90)), "2", Decision.REJECT),
        (observed(errors=([0.0] * 20, [1.0] * 20)), None, Decision.ALERT),
    ],
)
def test_when_one_is_broken(seen: Observed, version: str | None, decision: Decision | None) -> None:
    """However few users were heard, and though nobody gave feedback."""
    finding = find(row(version), seen, now())
    assert finding.decision is decision
    assert [one.passed is False for one in finding.guards].count(True) == (decision is not None)


def test_one_is_told_in_its_own_unit() -> None:
    finding = find(row(), observed(latency=([0.1] * 90, [0.9] * 90)), now())
    said = "guardrail latency is broken: 3.6 against 0.4, difference +3.2"
    assert finding.reason.startswith(said) and "allowed is 0" in finding.reason
    errors, latency = finding.guards
    assert (errors.n, errors.delta, errors.passed) == (0, None, None)
    assert (latency.baseline, latency.candidate) == pytest.approx((0.4, 3.6))


@pytest.mark.parametrize(
    ("guardrails", "said"),
    [
        ([{"metric": "latency"}], "latency needs a limit"),
        ([{"metric": "errors", "limit": 1}], "errors is a share and has no limit"),
        ([{"metric": "cost", "limit": 1, "margin": 1}], "it can never break"),
        ([{"metric": "errors"}, {"metric": "errors"}], "guardrails: each metric once"),
        ([{"metric": "tone"}], "guardrails.0.metric"),
    ],
)
def test_guardrails_that_cannot_be(guardrails, said):
    with pytest.raises(ConfigurationError, match=said):
        parse_plan({"metric": "helpful", "guardrails": guardrails})


def test_the_packaged_plan_is_one():
    packaged = load_plan(PLANS / "prompt.yaml").settled(METRICS)
    assert {one.metric for one in packaged.guardrails} == {"errors", "refusals", "latency"}
    assert packaged.watching("x").weight == pytest.approx(0.9)
