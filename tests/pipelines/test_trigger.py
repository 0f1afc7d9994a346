"""Verdicts that trigger: what is sent, signed, sent again, held back, resolved, and never twice."""

import hashlib
import hmac
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import uuid_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evals.records import Decision, Verdict
from gateway.lineage import Edge, lineage
from gateway.settings import load_settings
from pipelines.lineage_links import PipelineLinks
from pipelines.spec import load_spec
from pipelines.trigger_messages import HEADER_CHARACTERS, SECTION_CHARACTERS, incident, slack
from pipelines.trigger_outbox import FAILED, HELD_BACK, PENDING, SENT
from pipelines.trigger_rules import Rule, Triggers, When
from tests.pipelines.trigger_office import (
    SUBJECT,
    WEBHOOK,
    alert,
    metric,
    pagerduty_rule,
    undecided,
    verdict,
    well,
)

pytest_plugins = ("tests.state_databases", "tests.pipelines.trigger_fixtures")


def test_an_alert_is_sent_once_in_slacks_shape_and_signed(office, receiver):
    office.rules = [WEBHOOK]
    one = alert(0)
    office.store(one, well(1), alert(2, subject="extractor-abc"))
    office.step(3)
    for _ in range(3):
        office.step(4)
    office.restart()
    office.step(5)
    (received,) = receiver.received
    assert set(received.content) == {"text", "blocks"}
    assert "drift:assistant@3: alert" in received.content["text"]
    (row,) = office.rows()
    assert (row.state, row.verdict_id, row.attempts) == (SENT, one.verdict_id, 1)
    assert row.reason == "drift:assistant@3 is alert"
    assert row.answer == "200 ok"
    assert received.headers["x-llmops-event"] == row.event_id
    secret = office.settings.webhook_secret()
    stamp = received.headers["x-llmops-timestamp"]
    wanted = hmac.new(secret.encode(), f"{stamp}.".encode() + received.body, hashlib.sha256)
    assert received.headers["x-llmops-signature"] == f"v1={wanted.hexdigest()}"
    assert abs(datetime.now(UTC).timestamp() - int(stamp)) < 60


def test_lineage_leads_from_a_verdict_to_what_it_triggered_and_back(office, receiver):
    office.rules = [{"name": "talk", "webhook": {"url": receiver.url}}]
    one = alert(0)
    office.store(one)
    office.step(1)
    (event,) = office.rows()
    for start in (one.verdict_id, event.event_id):
        found = lineage(start, [PipelineLinks(office.database)])
        names = f"trigger_event:{event.event_id}", f"verdict:{one.verdict_id}"
        assert Edge(names[0], "triggered by", names[1]) in found.edges
    details = found.nodes[f"trigger_event:{event.event_id}"].details
    assert (details["rule"], details["state"]) == ("talk", SENT)
    assert "is alert" in details["reason"]


def test_what_fails_for_a_while_is_sent_again_later_and_later(office, receiver):
    office.rules = [WEBHOOK]
    receiver.script.extend([503, "cut", 429, 200])
    office.store(alert(0))
    pauses, last = [], 0.0
    for second in range(60):
        before = len(receiver.received)
        office.step(second / 60)
        if len(receiver.received) > before:
            pauses.append(second - last)
            last = second
    assert pauses == [0, 2, 4, 8]
    (row,) = office.rows()
    assert (row.state, row.attempts) == (SENT, 4)
    assert len({one.headers["x-llmops-event"] for one in receiver.received}) == 1


def test_a_receivers_retry_after_is_heeded(office, receiver):
    office.rules = [WEBHOOK]
    receiver.script.append((503, 60))
    office.store(alert(0))
    office.step(0)
    office.step(0.9)
    assert len(receiver.received) == 1
    office.step(1.1)
    assert office.states() == [("trigger", SENT)]


def test_a_refusal_is_final_and_too_many_attempts_are(office, receiver):
    office.rules, office.attempts = [WEBHOOK], 2
    receiver.script.extend([400, 500, 500])
    office.store(alert(0))
    office.step(0)
    assert office.rows()[0].answer == "400 ok"
    office.store(alert(24 * 60))
    for minutes in (24 * 60, 24 * 60 + 1, 24 * 60 + 2):
        office.step(minutes)
    assert office.states() == [("trigger", FAILED), ("trigger", FAILED)]
    assert "given up after 2 attempts: 500 ok" in office.rows()[1].answer
    assert len(receiver.received) == 3


def test_redirects_are_not_followed(office, receiver):
    office.rules = [WEBHOOK]
    receiver.script.append(307)
    office.store(alert(0))
    office.step(0)
    assert [one.path for one in receiver.received] == ["/hook"]
    assert office.states() == [("trigger", FAILED)]


def test_a_subject_is_told_of_once_within_the_cooldown(office, receiver):
    office.rules = [WEBHOOK | {"cooldown": "2h"}]
    office.store(alert(0), alert(60), alert(61, subject="drift:other"), alert(119), alert(121))
    office.step(125)
    told = [one.content["text"].split(": ")[0] for one in receiver.received]
    assert Counter(told) == {SUBJECT: 2, "drift:other": 1}  # subjects are told of side by side
    held = [row for row in office.rows() if row.state == HELD_BACK]
    assert len(held) == 2
    assert "held back until 2026-05-04T10:00:00+00:00 (cool-down)" in held[0].reason


def test_an_incident_is_opened_once_and_resolved_when_it_is_well(office, receiver):
    office.rules = [pagerduty_rule(receiver) | {"cooldown": "1h"}]
    office.store(well(0))
    office.step(1)
    assert receiver.received == []
    office.store(alert(2), alert(3), undecided(4))
    office.step(5)
    office.store(well(6), well(7))
    office.step(8)
    sent = [one.content for one in receiver.received]
    assert [one["event_action"] for one in sent] == ["trigger", "resolve"]
    assert {one["dedup_key"] for one in sent} == {incident("page", SUBJECT)}
    assert {one["routing_key"] for one in sent} == {"routing-key"}
    payload = sent[0]["payload"]
    assert payload["severity"] == "error"
    assert payload["source"] == SUBJECT
    assert payload["custom_details"]["failed"][0]["name"] == "answer_refused"
    assert set(sent[1]) == {"routing_key", "event_action", "dedup_key"}
    office.store(alert(120), well(121))
    office.step(122)
    actions = [one.content["event_action"] for one in receiver.received]
    assert actions == ["trigger", "resolve"] * 2


def test_a_resolve_waits_for_its_trigger(office, receiver):
    office.rules = [pagerduty_rule(receiver)]
    receiver.script.append(503)
    office.store(alert(0), well(1))
    office.step(2)
    assert [one.content["event_action"] for one in receiver.received] == ["trigger"]
    office.step(3)
    office.step(4)
    actions = [one.content["event_action"] for one in receiver.received]
    assert actions == ["trigger", "trigger", "resolve"]


def test_a_rule_on_a_metric_goes_by_that_metric(office, receiver):
    office.rules = [pagerduty_rule(receiver) | {"when": {"metric": "sla_*"}}]
    office.store(alert(0, metric("answer_refused", False), metric("sla_failed", True)))
    office.step(1)
    assert receiver.received == []
    office.store(alert(2, metric("answer_refused", False), metric("sla_failed", False)))
    office.step(3)
    assert office.rows()[0].reason == "drift:assistant@3 is alert and sla_failed failed"
    office.store(well(4, metric("answer_refused", True), metric("sla_failed", None)))
    office.step(5)
    assert len(receiver.received) == 1, "a metric that was not measured does not resolve"
    office.store(well(6, metric("answer_refused", True), metric("sla_failed", True)))
    office.step(7)
    assert receiver.received[-1].content["event_action"] == "resolve"


def test_a_command_is_started_once_even_if_its_start_fails(office):
    office.rules = [
        {"name": "again", "pipeline": "extractor", "when": {"decision": ["reject"]}},
        {"name": "judge", "evaluation": ["evals", "run", "assistant"]},
    ]
    office.store(alert(0), verdict(Decision.REJECT, 1, subject="extractor-1"))
    office.step(2)
    office.step(3)
    assert sorted(name for name, _ in office.started) == ["again", "judge", "judge"]
    answers = {row.rule: row.answer for row in office.rows()}
    assert answers["again"] == "started: llmops train llm extractor"
    assert answers["judge"] == "started: llmops evals run assistant"

    class Killed(BaseException):
        pass

    def broken(_rule: Rule, _verdict: Verdict) -> None:
        raise Killed

    office.store(verdict(Decision.REJECT, 24 * 60, subject="extractor-2"))
    office.start = broken
    office.restart()
    with pytest.raises(Killed):
        office.step(24 * 60 + 1)
    del office.start
    office.restart()
    office.step(24 * 60 + 2)
    names = [row.rule for row in office.rows() if row.subject == "extractor-2"]
    assert names == ["again", "judge"]
    assert len([name for name, _ in office.started if name == "again"]) == 1


TRAIN = {"name": "drifted", "pipeline": "extractor", "when": {"subject": "drift:model:*"}}


def on(tenant: int, minutes: float) -> Verdict:
    return alert(minutes, subject=f"drift:model:extractor:tenant-{tenant}")


def test_a_hundred_failing_verdicts_start_one_training(office):
    office.rules = [TRAIN, {**TRAIN, "name": "worse", "when": {"metric": "answer_*"}}]
    office.store(*(on(index, index / 100) for index in range(100)))
    office.step(1)
    office.restart()
    office.store(on(7, 300))
    office.step(301)
    assert len(office.started) == 1
    states = Counter(row.state for row in office.rows())
    assert states == {SENT: 1, HELD_BACK: 201}
    (held, *_) = [row for row in office.rows() if row.state == HELD_BACK]
    assert "held back until 2026-05-04T14:00:00" in held.reason
    office.store(on(7, 361))
    office.step(362)
    assert len(office.started) == 2


def test_while_a_model_is_trained_or_tried_no_training_waits_for_it(office):
    office.rules = [TRAIN | {"cooldown": "1s"}]
    office.busy.add("drifted")
    office.store(on(1, 0))
    office.step(1)
    assert office.states() == [("trigger", HELD_BACK)]
    assert office.rows()[0].answer == "a run or an experiment of extractor is under way"
    office.busy.clear()
    office.step(2)
    assert office.started == []
    office.store(on(1, 3))
    office.step(4)
    assert [name for name, _ in office.started] == ["drifted"]


def test_a_training_is_of_the_specs_kind(tmp_path):
    path = tmp_path / "flights.yaml"
    path.write_text(load_spec(Path("extractor")).text().replace("kind: llm", "kind: tabular"))
    rule = Rule.model_validate(TRAIN | {"pipeline": str(path)})
    assert list(rule.command_for(alert(0))) == ["train", "tabular", str(path)]
    with pytest.raises(ValueError, match="not a spec that can be read"):
        Rule.model_validate(TRAIN | {"pipeline": "no-such"}).command_for(alert(0))


def test_nothing_goes_to_a_host_that_is_not_named(office, receiver):
    office.hosts = ["hooks.example.com"]
    office.rules = [WEBHOOK]
    office.store(alert(0))
    office.step(1)
    assert receiver.received == []
    assert office.states() == [("trigger", FAILED)]
    assert office.rows()[0].answer == "HOOK: its host is not among triggers.hosts"


def test_a_missing_secret_is_waited_for(office, receiver, tmp_path):
    office.rules = [WEBHOOK]
    whole = office.settings
    office.settings = load_settings({"LLMOPS_HOME": str(tmp_path)})
    office.store(alert(0))
    office.step(0)
    assert office.states() == [("trigger", PENDING)]
    assert office.rows()[0].answer == "the environment variable HOOK is not set"
    office.settings = whole
    office.restart()
    office.step(1)
    assert len(receiver.received) == 1


def test_old_verdicts_trigger_nothing(office, receiver):
    office.rules = [WEBHOOK]
    office.store(alert(0))
    office.step(25 * 60)
    assert office.rows() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rules": [{"name": "a"}]}, "give one of webhook"),
        ({"rules": [WEBHOOK | {"pipeline": "x"}]}, "give one of webhook"),
        ({"rules": [WEBHOOK, WEBHOOK]}, "tell: a name that is there twice"),
        ({"rules": [WEBHOOK | {"webhook": {}}]}, "either url or url_env"),
        (
            {"rules": [{"name": "a", "webhook": {"url": "https://evil.example/x"}}]},
            "a: evil.example is not among hosts",
        ),
        ({"rules": [WEBHOOK | {"cooldown": 5}]}, "a time span such as"),
        ({"rules": [WEBHOOK | {"when": {"decision": ["maybe"]}}]}, "'promote', 'hold'"),
    ],
)
def test_rules_that_cannot_be_are_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Triggers.model_validate(given)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://hooks.example.com/a", True),
        ("https://hooks.example.com:8443/a", False),
        ("https://pager.example.com:8443/a", True),
        ("https://pager.example.com/a", False),
        ("https://hooks.example.com.evil.org/a", False),
        ("https://hooks.example.com@evil.org/a", False),
        ("https://[hooks.example.com/a", False),
        ("https://hooks.example.com:eighty/a", False),
        ("file:///etc/passwd", False),
    ],
)
def test_hosts_are_taken_by_the_word(url, allowed):
    hosts = ("hooks.example.com", "pager.example.com:8443")
    assert Triggers(hosts=hosts).allows(url) is allowed


TEXT = st.text(max_size=400)


@settings(deadline=None)
@given(subject=st.text(min_size=1, max_size=256), reasons=st.lists(TEXT, max_size=8), why=TEXT)
def test_messages_keep_to_slacks_limits_and_mention_nobody(subject, reasons, why):
    one = replace(alert(0), subject=subject, reasons=tuple(reasons))
    message = slack(one, "rule", why)
    header, section, context = message["blocks"]
    assert len(header["text"]["text"]) <= HEADER_CHARACTERS
    assert len(section["text"]["text"]) <= SECTION_CHARACTERS
    shown = [message["text"], section["text"]["text"], context["elements"][0]["text"]]
    assert not [text for text in shown if "<" in text or ">" in text]


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kinds=st.lists(st.sampled_from(["alert", "well", "undecided"]), min_size=1, max_size=12))
def test_an_incident_is_open_exactly_while_it_is_not_well(kinds, office, receiver):
    """Whatever comes: triggers and resolves take turns, and the last one fits."""
    receiver.received.clear()
    subject = f"drift:{uuid_utils.uuid7()}"
    office.rules = [pagerduty_rule(receiver) | {"cooldown": "1s"}]
    office.restart()
    make = {"alert": alert, "well": well, "undecided": undecided}
    for minute, kind in enumerate(kinds):
        office.store(replace(make[kind](minute), subject=subject))
        office.step(minute)
    sent = [one.content for one in receiver.received]
    mine = [one["event_action"] for one in sent if one["dedup_key"] == incident("page", subject)]
    decided = [kind for kind in kinds if kind != "undecided"]
    opened = "alert" in decided
    resolves = sum(one == "alert" and other == "well" for one, other in pairwise(decided))
    assert mine.count("trigger") == decided.count("alert")
    assert mine.count("resolve") == resolves
    if opened:
        assert mine[-1] == ("trigger" if decided[-1] == "alert" else "resolve")


def test_a_rule_fits_by_subject_and_decision():
    assert When(subject="drift:*@3").fits(alert(0)) == "drift:assistant@3 is alert"
    assert When(subject="drift:*@4").fits(alert(0)) is None
    assert When(decision=("promote",)).fits(alert(0)) is None
