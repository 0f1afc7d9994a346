"""Looks at a made-up request log: what is found, what is not, what is said, what is kept."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evals.drift import look
from evals.drift_plan import DriftPlan, Watched
from evals.drift_verdict import NONE
from evals.records import Decision, Verdict
from evals.reference import pin
from evals.slas import SLAS
from evals.spending import LEVEL, come_in
from evals.vectors import Embedder
from evals.verdicts import verdicts_on
from evals.watch import traffics
from evals.windows import Period, Traffic, read_window
from gateway.database import Conflict
from tests.evals.drift_log import DriftHome, Made
from tests.evals.word_vectors import KEY, word_vectors

PLAN = DriftPlan(least_rows=200, hours=24 * 30)
WATCHED = Watched(prompt="assistant", question="question", passages="passages")


@contextmanager
def home_in(folder: Path, **given: Any) -> Iterator[DriftHome]:
    home = DriftHome(folder / "home", **{"plan": PLAN, **given})
    try:
        yield home
    finally:
        home.database.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[DriftHome]:
    """A home with a reference, and nothing after it."""
    with home_in(tmp_path) as made:
        made.add(600)
        made.pin()
        yield made


def looked(home: DriftHome) -> Verdict:
    """A look at the one version that is there."""
    (traffic,) = traffics(home.watch, WATCHED)
    return look(home.watch, traffic)


def failed(verdict: Verdict) -> set[str]:
    return {metric.name for metric in verdict.metrics if metric.passed is False}


def test_steady_traffic_is_held_with_a_report_and_its_numbers(home):
    home.add(250)
    verdict = looked(home)
    assert (verdict.subject, verdict.decision) == ("drift:assistant@3", Decision.HOLD)
    assert not failed(verdict)
    assert verdict.reasons[0].startswith("nothing found: 15 signals of 250 requests beside 600 of")
    assert any("embeddings not compared" in reason for reason in verdict.reasons)
    evidence = verdict.evidence
    assert evidence["window_rows"] == 250
    assert evidence["reference_rows"] == 600
    # A classifier is judged on one half of all users, whichever side they are on.
    assert 90 < evidence["scores"]["question_text"]["window_rows"] < 160
    assert evidence["scores"]["cost_usd"]["reference_rows"] == 600
    report = Path(evidence["report"])
    text = report.read_text()
    assert report.stat().st_mode & 0o077 == 0
    assert "question_language" in text
    assert f"<h1>drift:assistant@3: hold</h1><p>{verdict.created_at:%Y-%m-%d}" in text
    assert "<li>nothing found: 15 signals" in text
    with home.database.session() as session:
        assert verdicts_on(session, verdict.subject) == [verdict]


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (Made(german=0.3), {"question_language", "answer_language"}),
        (Made(refused=0.2), {"answer_refused"}),
        (Made(empty=0.4), {"retrieval_empty"}),
        (Made(words=60), {"answer_words", "answer_length", "output_tokens", "cost_usd"}),
        (Made(german=1.0), {"question_text", "answer_text"}),
        (Made(failed=0.3), {"sla_failed"}),
    ],
    ids=["language", "refusals", "retrieval", "length", "text", "failures"],
)
def test_what_drifts_is_found_by_its_signal(home, made, found):
    home.add(300, made)
    verdict = looked(home)
    assert verdict.decision is Decision.ALERT
    assert found <= failed(verdict)
    named = {reason.partition(":")[0] for reason in verdict.reasons}
    assert failed(verdict) <= named
    metrics = {metric.name: metric for metric in verdict.metrics}
    for name in found - {"sla_failed"}:
        assert (metrics[name].ci_low or 0) > 0
        assert verdict.evidence["scores"][name]["chance"] < verdict.evidence[LEVEL]
    assert Path(verdict.evidence["report"]).name.endswith("-alert.html")


def test_a_report_has_words_that_tell_and_no_text_of_anybody(home):
    home.add(300, Made(german=1.0))
    text = Path(looked(home).evidence["report"]).read_text()
    assert "characteristic words" in text
    assert "protokoll" in text
    assert "characteristic examples" not in text
    rows = read_window(home.reader, home.traffic, Period(0, 2**52, 2000))
    texts = [*rows["question"], *rows["answer"]]
    assert len(texts) == 1800
    assert not [one for one in texts if one in text and len(one.split()) > 3]


def test_a_new_topic_is_found_by_embeddings_that_the_gateway_gives(tmp_path):
    with word_vectors() as server, home_in(tmp_path) as home:
        home.embedder = Embedder(server.url, "vectors", KEY)
        home.add(600)
        home.pin()
        home.add(300)
        steady = looked(home)
        assert steady.decision is Decision.HOLD, steady.reasons
        assert {"question_unlike", "answer_embedding"} <= {one.name for one in steady.metrics}
        home.add(300, Made(cooking=0.2))
        drifted = looked(home)
        assert drifted.decision is Decision.ALERT
        assert {"question_unlike", "answer_unlike"} & failed(drifted)
        assert {"question_embedding", "answer_embedding"} & failed(drifted)
        server.status = 503
        home.add(300)
        without = looked(home)
        for damage in ("short", "ragged", "nan"):
            server.status, server.damage = 200, damage
            home.add(300)
            assert any(one.startswith("embeddings not compared") for one in looked(home).reasons)
        assert any("answers 503: " in reason for reason in without.reasons)
        assert "question_unlike" not in {one.name for one in without.metrics}
        assert "question_words" in {one.name for one in without.metrics}


def test_too_few_requests_are_said_and_cost_nothing(home):
    home.add(120)
    verdict = looked(home)
    assert verdict.decision is Decision.HOLD
    assert "too few requests: 120 since" in verdict.reasons[0]
    assert "needs 200" in verdict.reasons[0]
    assert {one.name for one in verdict.metrics} == {one.name for one in SLAS}
    assert LEVEL not in verdict.evidence
    home.add(100)
    assert looked(home).evidence["window_rows"] == 220


def test_the_window_is_what_came_in_and_reaches_back_for_the_rest(home):
    home.add(300)
    first = looked(home)
    assert first.evidence["window_rows"] == 300
    assert looked(home).reasons == ("no request came in since the look before",)
    home.add(50)
    second = looked(home)
    assert second.evidence["window_rows"] == 200
    assert second.evidence["since"] < first.evidence["until"] < second.evidence["until"]
    home.add(260)
    third = looked(home)
    assert third.evidence["window_rows"] == 260
    assert third.evidence["since"] > second.evidence["until"]


def test_looks_share_the_months_budget(home):
    levels = []
    for _ in range(3):
        home.add(210)
        levels.append(looked(home).evidence[LEVEL])
    assert sum(levels) == pytest.approx(come_in(PLAN.alarms, home.moment))
    assert levels[0] > levels[1] > 0


def test_without_a_reference_it_is_said(tmp_path):
    with home_in(tmp_path) as home:
        home.add(250)
        verdict = looked(home)
        assert verdict.decision is Decision.HOLD
        assert "no reference is pinned; pin one: llmops drift reference pin" in verdict.reasons[0]


def test_versions_and_tenants_are_told_apart(home):
    each = Watched(prompt="assistant", tenants="each", question="question")
    home.add(210, Made(version="4", tenant="acme"))
    home.add(205, Made(version="4", tenant="umbrella"))
    home.pin(replace(home.traffic, tenant="umbrella"))
    home.add(220, Made(version="4", tenant="umbrella", refused=0.4))
    found = {one.subject: one for one in traffics(home.watch, each)}
    assert set(found) == {
        "drift:assistant@3:acme", "drift:assistant@4:acme", "drift:assistant@4:umbrella"
    }  # fmt: skip
    together = {one.subject for one in traffics(home.watch, WATCHED)}
    assert together == {"drift:assistant@3", "drift:assistant@4"}
    verdict = look(home.watch, found["drift:assistant@4:umbrella"])
    assert verdict.evidence["window_rows"] == 220
    assert "answer_refused" in failed(verdict)
    assert verdict.evidence["tenant"] == "umbrella"
    missing = look(home.watch, found["drift:assistant@4:acme"])
    assert missing.reasons[0].startswith("assistant:acme: no reference is pinned")


def test_a_model_is_watched_by_its_requests_without_a_prompt(home):
    traffic = Traffic(model="small")
    assert traffic.subject == "drift:model:small"
    assert look(home.watch, traffic).reasons[0].startswith("model:small: no reference")


@pytest.mark.parametrize("user", ["robot", None], ids=["one user", "nobody named any more"])
def test_too_few_users_are_said_and_service_levels_are_judged(home, user):
    """300 requests of one user are no 300 users, and what they are alike in is no drift."""
    home.add(300, Made(user=user, words=60))
    verdict = looked(home)
    assert verdict.decision is Decision.HOLD
    assert verdict.reasons[0] == "signals not measured: too few users: 1, needs 30"
    assert verdict.evidence[LEVEL] == 0
    assert {one.name for one in verdict.metrics} == {one.name for one in SLAS}
    home.add(300, Made(user=user, failed=0.3))
    assert looked(home).decision is Decision.ALERT


def test_where_nobody_was_ever_named_requests_are_compared(tmp_path):
    with home_in(tmp_path) as home:
        home.add(600, Made(user=None))
        home.pin()
        home.add(250, Made(user=None))
        steady = looked(home)
        assert steady.reasons[0].startswith("nothing found: 15 signals of 250 requests")
        home.add(250, Made(user=None, refused=0.4))
        assert "answer_refused" in failed(looked(home))


def test_a_model_that_answers_nothing_is_an_alert_and_what_is_missing_is_said(home):
    home.add(300, Made(silent=1.0))
    verdict = looked(home)
    assert verdict.decision is Decision.ALERT
    assert "sla_no_answer: broken: 1, needs < 0.05" in verdict.reasons
    (missing,) = [one for one in verdict.reasons if "could not be measured" in one]
    assert missing.startswith("answer_text, answer_language, answer_length")
    assert missing.endswith("0 values beside 600 of the reference, needs 100")
    metrics = {one.name: one.passed for one in verdict.metrics}
    assert metrics["answer_text"] is None
    assert metrics["sla_answer_words"] is None
    assert any(one.startswith("sla_answer_words: not judged: 0 val") for one in verdict.reasons)


def test_failures_are_told_of_without_a_reference_and_on_few_rows(tmp_path):
    with home_in(tmp_path) as home:
        home.add(60, Made(failed=1.0))
        alone = looked(home)
        assert (alone.decision, alone.baseline) == (Decision.ALERT, NONE)
        assert alone.reasons[0] == "sla_failed: broken: 1, needs < 0.05"
        assert "no reference is pinned" in alone.reasons[1]
        again = looked(home)  # nothing new, so nothing to be told of twice
        assert (again.decision, again.metrics) == (Decision.HOLD, ())
        home.pin()
        home.add(60, Made(failed=1.0))
        few = looked(home)
        assert few.decision is Decision.ALERT
        assert "too few requests: 60 since" in few.reasons[1]
        assert looked(home).reasons == ("no request came in since the look before",)


def test_a_reference_from_before_a_column_existed_is_compared_in_the_others(tmp_path):
    with home_in(tmp_path) as home:
        home.add(600)
        rows = read_window(home.reader, home.traffic, Period(0, 2**52, 2000))
        new = ["caller", "no_answer", "answer_refused", "answer_language"]
        pin(home.folder, home.traffic, rows.drop(columns=new), "test")
        home.add(250)
        verdict = looked(home)
    assert verdict.reasons[0].startswith("nothing found: 13 signals")
    said = "answer_language, answer_refused: could not be measured: 250 values beside 0 of"
    assert any(one.startswith(said) for one in verdict.reasons)
    assert Path(verdict.evidence["report"]).exists()
    assert {one.name for one in verdict.metrics if one.passed} >= {one.name for one in SLAS}


def test_a_level_that_cannot_be_measured_takes_no_other_along(home, monkeypatch):
    def broken(*_arguments: object) -> None:
        raise ValueError("no words in it")

    monkeypatch.setattr("evidently.legacy.utils.data_drift_utils.roc_auc_domain_classifier", broken)
    home.add(300, Made(refused=0.3))
    verdict = looked(home)
    assert "answer_refused" in failed(verdict)
    metrics = {metric.name: metric for metric in verdict.metrics}
    assert metrics["question_text"].passed is None
    assert any(
        "question_text, answer_text: could not be measured: Val" in one for one in verdict.reasons
    )


def test_a_look_leaves_nothing_behind_in_evidently(home):
    from evidently.legacy.calculations.stattests import registry

    home.add(250)
    before = len(registry._impls)
    assert "report" in looked(home).evidence
    assert "calibrated" not in registry._registered_stat_tests
    assert len(registry._impls) == before


def test_two_looks_at_one_subject_at_once_are_refused(home):
    run = home.folder / "run"
    run.mkdir(exist_ok=True)
    with (run / "drift%3Aassistant%403.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="a look at drift:assistant@3 is under way"):
            look(home.watch, replace(home.traffic, version="3"))


def test_of_uneventful_looks_only_the_newest_report_is_kept(home):
    home.plan = PLAN.model_copy(update={"alarms": 1e-6})  # no alarm by chance, of ids drawn anew
    home.add(250)
    first = Path(looked(home).evidence["report"])
    home.add(250, Made(refused=0.4))
    alert = Path(looked(home).evidence["report"])
    assert not first.exists()
    home.moment += timedelta(minutes=1)
    home.add(250)
    last = Path(looked(home).evidence["report"])
    assert alert.exists()
    assert last.exists()
