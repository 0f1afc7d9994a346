"""Simulated users: they see text alone, judge by a rule that was fixed, and can be replayed."""

import ast
import asyncio
import json
from itertools import islice
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from deploy.demo import users
from deploy.demo.desk import Counter, Desk
from deploy.demo.users import Mood, Rule, SimulatedUser, arrivals, judged
from tests.deploy.scripted_loop import gateway_for, served

RECORD = {"name": "Ann", "job": "baker", "city": "Oslo"}
MOODS = st.builds(Mood, silent=st.booleans(), flips=st.booleans(), corrects=st.booleans())


def _first(seed: int, number: int, rule: Rule | None = None) -> list[SimulatedUser]:
    return list(islice(arrivals(seed, rule or Rule()), number))


def test_the_users_module_reaches_for_nothing_but_the_task():
    """Whoever cannot import a client, the gateway or the pipelines cannot look behind the reply."""
    tree = ast.parse(Path(users.__file__).read_text())
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names == {
        "random", "collections.abc", "dataclasses", "itertools", "typing",
        "evals.extraction", "evals.records",
    }  # fmt: skip


class NosyUser(SimulatedUser):
    """Keeps what it was answered."""

    heard: list[object] = []

    async def visit(self, number, ask):
        async def listening(messages):
            reply = await ask(messages)
            self.heard.append(reply)
            return reply

        return await super().visit(number, listening)


def _opinions(disguise: str) -> list[object]:
    """Opinions of the same users where everything but the text is different."""

    async def sit(url: str) -> list[object]:
        async with Desk(Counter(url, "sk", "extractor"), connections=4) as desk:
            nosy = [NosyUser(u.user_id, u.cases, u.rule, u.seed) for u in _first(5, 30)]
            return [
                await desk.visit(user, number) for user in nosy for number in range(len(user.cases))
            ]

    gateway = gateway_for([5], qualities={None: 0.5}, delay=0.0, disguise=disguise)
    with served(gateway):
        found = asyncio.run(sit(gateway.url))
    texts = {gateway.answer(case.messages[-1]["content"], None)
             for user in _first(5, 30) for case in user.cases}  # fmt: skip
    assert NosyUser.heard and {type(heard) for heard in NosyUser.heard} == {str}
    assert set(NosyUser.heard) == texts
    NosyUser.heard.clear()
    return found


def test_a_user_is_given_the_text_and_nothing_else():
    """Headers, model and id of the answer differ; the opinions do not."""
    assert _opinions("champion") == _opinions("extractor-0badc0ffee00")


@given(st.text(), MOODS)
def test_the_rule(text: str, mood: Mood):
    for reply in (text, json.dumps(RECORD)):
        opinion = judged(reply, RECORD, mood)
        assert opinion.right == (reply == json.dumps(RECORD))
        if mood.silent:
            assert opinion.helpful is None and opinion.correction is None
            continue
        assert opinion.helpful == (not opinion.right if mood.flips else opinion.right)
        if opinion.correction is not None:
            assert opinion.helpful is False and json.loads(opinion.correction) == RECORD
        assert (opinion.correction is not None) == (not opinion.helpful and mood.corrects)


def test_what_is_drawn_has_the_shares_that_were_stated():
    rule = Rule()
    coming = _first(3, 4000, rule)
    moods = [user.mood(0) for user in coming]
    for name, wanted in (
        ("silent", rule.silence),
        ("flips", rule.noise),
        ("corrects", rule.corrects),
    ):
        found = sum(getattr(mood, name) for mood in moods) / len(moods)
        assert abs(found - wanted) < 4 * (wanted * (1 - wanted) / len(moods)) ** 0.5
    returned = sum(len(user.cases) == 2 for user in coming) / len(coming)
    assert abs(returned - rule.returns) < 4 * (0.25 / len(coming)) ** 0.5


def test_a_seed_replays_and_another_is_somebody_else():
    assert _first(7, 50) == _first(7, 50)
    one, other = _first(7, 50), _first(8, 50)
    assert one[0].user_id == "demo-7-u001" and one[-1].user_id == "demo-7-u050"
    assert not {user.user_id for user in one} & {user.user_id for user in other}
    assert [user.cases for user in one] != [user.cases for user in other]
    assert [user.mood(0) for user in one] != [user.mood(0) for user in other]
