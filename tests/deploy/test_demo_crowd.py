"""Crowds: bounded, counted to the last request, and stopped when enough is known."""

import asyncio
import time
from pathlib import Path

import pytest

from deploy.demo.answered import answered
from deploy.demo.crowd import Crowd, Tally
from deploy.demo.desk import Counter
from deploy.demo.stage import Step
from deploy.demo.users import Rule, arrivals
from gateway.database import now, open_database
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader
from tests.deploy.scripted_loop import ScriptedGateway, gateway_for, served
from tests.gateway_process import GatewayProcess, configuration
from tests.scripted_upstream import ScriptedUpstreamProcess


def _crowd(url: str, seed: int, at_once: int = 8) -> Crowd:
    return Crowd(
        Counter(url, "sk", "extractor"), arrivals(seed, Rule()), at_once, poll_seconds=0.05
    )


def _adds_up(tally: Tally) -> bool:
    heard = tally.helpful + tally.unhelpful + tally.silent
    return tally.sent == tally.answered + tally.failed and heard == tally.answered


@pytest.fixture
def gateway():
    with served(gateway_for([1], qualities={None: 0.5})) as gateway:
        yield gateway


def test_every_request_is_counted_and_every_opinion_arrives(gateway: ScriptedGateway):
    steps: list[Step] = []
    tally = asyncio.run(_crowd(gateway.url, 1).gather(40, steps.append))
    asked = _asked(40)
    assert (tally.users, tally.sent, tally.failed) == (40, len(asked), 0)
    assert _adds_up(tally)
    assert len(gateway.rows) == len(asked) > 40
    assert gateway.most_in_flight == 8
    said = [one["helpful"] for one in gateway.opinions.values()]
    assert (said.count(True), said.count(False)) == (tally.helpful, tally.unhelpful)
    corrections = [one for one in gateway.opinions.values() if "demonstration" in one]
    assert len(corrections) == tally.corrected > 0
    assert tally.right == sum("{" in gateway.answer(one, None) for one in asked)
    assert steps[-1].done == steps[-1].total == 40


def _asked(users: int) -> list[str]:
    coming = arrivals(1, Rule())
    return [case.messages[-1]["content"] for _ in range(users) for case in next(coming).cases]


def test_the_next_crowd_goes_on_where_the_last_one_ended(gateway: ScriptedGateway):
    crowd = _crowd(gateway.url, 1)
    asyncio.run(crowd.gather(5, lambda _: None))
    asyncio.run(crowd.gather(5, lambda _: None))
    assert len({row.user for row in gateway.rows}) == 10


def test_a_failure_is_counted_and_kept(gateway: ScriptedGateway):
    gateway.fails = 10
    tally = asyncio.run(_crowd(gateway.url, 1).gather(40, lambda _: None))
    assert tally.failed == tally.sent // 10 > 0 and _adds_up(tally)
    assert "status 500" in tally.reasons[0]


def test_a_gateway_that_is_away_fails_every_request():
    tally = asyncio.run(_crowd("http://127.0.0.1:9", 1).gather(3, lambda _: None))
    assert tally.failed == tally.sent == len(_asked(3))
    whole = Tally()
    for _ in range(3):
        whole.add(tally)
    assert whole.failed == 3 * tally.failed and len(whole.reasons) == 5


def test_a_crowd_ends_once_it_is_decided(gateway: ScriptedGateway):
    async def decided() -> bool:
        return len(gateway.rows) >= 20

    gateway.delay = 0.05
    crowd = _crowd(gateway.url, 1, at_once=4)
    tally = asyncio.run(crowd.until(decided, users=400, show=lambda _: None, patience_seconds=5))
    assert 20 <= tally.answered < 200
    assert tally.sent == len(_asked(tally.users))  # whoever came made all its visits


def test_a_crowd_without_a_decision_ends_with_its_users_and_patience(gateway: ScriptedGateway):
    async def never() -> bool:
        return False

    began = time.monotonic()
    tally = asyncio.run(
        _crowd(gateway.url, 1).until(never, users=10, show=lambda _: None, patience_seconds=0.5)
    )
    assert tally.users == 10
    assert 0.5 <= time.monotonic() - began < 5


def test_a_broken_watch_ends_the_crowd(gateway: ScriptedGateway):
    async def broken() -> bool:
        raise RuntimeError("no database")

    gateway.delay = 0.1
    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(
            _crowd(gateway.url, 1).until(broken, users=400, show=lambda _: None, patience_seconds=5)
        )
    assert len(gateway.rows) < 50


def test_at_a_real_gateway_log_and_feedback_have_what_the_crowd_counted(tmp_path: Path):
    with ScriptedUpstreamProcess() as upstream:
        given = configuration(
            upstream.url, models={"extractor": {"upstream": "up", "model": "chat"}}
        )
        process = GatewayProcess(tmp_path / "home", given).start()
        try:
            began = now()
            counter = Counter(process.url, process.key, "extractor", {"max_tokens": 24})
            crowd = Crowd(counter, arrivals(1, Rule()), 8)
            tally = asyncio.run(crowd.gather(15, lambda _: None))
        finally:
            process.stop()
    assert tally.failed == 0, tally.reasons
    reader = LogReader(process.settings.spool_dir, process.settings.log_table)
    (logged,) = answered(reader, "extractor", "demo-1-u", began)
    assert (logged.requests, logged.failed, logged.users) == (tally.sent, 0, 15)
    assert logged.adapter is None and began <= logged.first_at <= logged.last_at <= now()
    assert answered(reader, "extractor", "demo-2-u", began) == []
    assert answered(reader, "extractor", "demo-1-u", now()) == []
    database = open_database(process.settings.database_url)
    with database.session() as session:
        metrics = [row.metric_name for row in session.query(FeedbackRow)]
    database.close()
    assert metrics.count("helpful") == tally.helpful + tally.unhelpful > 0
    assert metrics.count("demonstration") == tally.corrected > 0
