"""From a drifting log to an incident and back: a real schedule, real jobs, a real receiver."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evals.records import Decision
from evals.verdicts import verdicts_on
from tests.deploy.test_schedule import Home, wait_for
from tests.evals.drift_log import DriftHome, Made
from tests.pipelines.webhook_receiver import webhook_receiver

SUBJECT = "drift:assistant@3"
PATIENCE = 120  # seconds; jobs have the lowest priority, and the machine may have other work


def decisions(home: Home) -> list[Decision]:
    """Of looks that had something to judge, oldest first: service levels are judged on few rows."""
    with home.database.session() as session:
        return [one.decision for one in verdicts_on(session, SUBJECT) if one.metrics]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_drift_is_found_told_of_and_resolved(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PAGERDUTY_KEY", "routing-key")
    began = datetime.now(UTC) - timedelta(hours=5)
    log = DriftHome(tmp_path / "home", minutes=0.05, moment=began)
    home = Home(log.folder)
    log.add(600)
    log.pin()
    with webhook_receiver() as receiver:
        home.write(
            {"drift": {"every": "4h", "command": ["drift", "check"], "timeout": "1000h"}},
            drift={"least_rows": 200, "subjects": [{"prompt": "assistant"}],
                   "slas": {"sla_refused": 0.3}},
            triggers={
                "hosts": [receiver.host],
                "rules": [
                    {"name": "talk", "webhook": {"url": receiver.url}},
                    {"name": "page", "when": {"metric": "sla_refused"},
                     "pagerduty": {"routing_key_env": "PAGERDUTY_KEY", "url": receiver.url}},
                ],
            },
        )  # fmt: skip
        home.start()
        try:
            log.add(50)
            first = wait_for(lambda: home.rows("drift", "done"), home, PATIENCE)[0]
            assert first.exit_code == 0
            assert "too few requests: 50 since" in first.message
            log.add(250, Made(refused=0.5))
            wait_for(lambda: Decision.ALERT in decisions(home), home, PATIENCE)
            wait_for(lambda: len(receiver.received) == 2, home, PATIENCE)
            log.add(250)
            wait_for(lambda: decisions(home)[-1] is Decision.HOLD, home, PATIENCE)
            wait_for(lambda: len(receiver.received) == 3, home, PATIENCE)
            found = wait_for(lambda: [one for one in home.rows("drift", "done")
                                      if one.exit_code == 100], home, PATIENCE)  # fmt: skip
        finally:
            assert home.end() == 0
            home.database.close()
            log.database.close()
    assert "report: " in found[0].message
    first_two = [one.content for one in receiver.received[:2]]
    talk, page = sorted(first_two, key=lambda one: "text" not in one)
    assert talk["text"].startswith(f"{SUBJECT}: alert: answer_")
    assert (page["event_action"], page["payload"]["source"]) == ("trigger", SUBJECT)
    resolved = receiver.received[2].content
    assert (resolved["event_action"], resolved["dedup_key"]) == ("resolve", page["dedup_key"])
    assert "drift: done (exit code 100)" in home.said()
