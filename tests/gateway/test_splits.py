"""Variants on live traffic: a real worker, a scripted upstream, splits that change under load."""

import asyncio
import time

import aiohttp
import pytest

from gateway.database import Database, open_database
from gateway.errors import BadRequest
from gateway.splits import find_split, put_split
from gateway.variants import Arm, Split, Variant
from tests.gateway_process import GatewayProcess

SALT = "00112233445566778899aabbccddeeff"
IN_FORCE_SECONDS = 1.0
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def database(gateway: GatewayProcess):
    opened = open_database(gateway.settings.database_url)
    yield opened
    opened.close()


def arms(*variants: Variant, weights: tuple[float, ...] | None = None) -> tuple[Arm, ...]:
    shares = weights or (1.0,) * len(variants)
    return tuple(Arm(variant, weight) for variant, weight in zip(variants, shares, strict=True))


def give(database: Database, alias: str, *variants: Variant, **options) -> Split:
    """Write a split and wait as long as it may take to be in force."""
    split = Split(alias, arms(*variants, **options), "experiment-1", SALT)
    with database.transaction() as session:
        put_split(session, split)
    time.sleep(IN_FORCE_SECONDS)
    return split


async def ask(client: aiohttp.ClientSession, alias: str, path: str = "chat/completions", **fields):
    body = {"model": alias, "messages": MESSAGES, **fields}
    async with client.post(f"/v1/{path}", json=body) as answer:
        data = await answer.read()
        return answer, data


async def test_an_arm_is_asked_by_its_adapter_and_told(client, gateway, database, upstream):
    split = give(
        database, "chat", Variant("champion"), Variant("challenger", adapter="chat,tokens=2")
    )
    seen = set()
    for number in range(12):
        user = f"user-{number}"
        wanted = split.choose("default", user)
        answer, _ = await ask(client, "chat", user=user)
        assert answer.status == 200
        assert answer.headers["x-variant"] == wanted.name
        assert answer.headers["x-model"] == f"up/{wanted.adapter or 'chat'}"
        row = gateway.row(answer.headers["x-request-id"]).meta
        assert (row["variant"], row["experiment"]) == (wanted.name, "experiment-1")
        assert (row["adapter"], row["model"]) == (wanted.adapter, "chat")
        assert row["target"] == answer.headers["x-model"]
        assert row["cost_nano_usd"] > 0
        seen.add(wanted.name)
    assert seen == {"champion", "challenger"}


async def test_who_sticks_user_else_episode_else_key(client, gateway, database):
    names = [Variant(f"v{index}") for index in range(8)]
    split = give(database, "sticky", *names)
    for fields, unit in (
        ({"user": "u1", "episode_id": "e1"}, "u1"),
        ({"episode_id": "e1"}, "e1"),
        ({}, gateway.key_record.key_id),
    ):
        answer, _ = await ask(client, "sticky", **fields)
        assert answer.headers["x-variant"] == split.choose("default", unit).name


async def test_a_variants_parameters_win_and_its_target_answers(client, gateway, database):
    give(database, "warm", Variant("hot", target="engine", parameters={"temperature": 0.5}))
    answer, _ = await ask(client, "warm", temperature=1.5)
    assert answer.headers["x-model"] == "vllm/chat"
    row = gateway.row(answer.headers["x-request-id"])
    assert row.meta["model"] == "warm"
    assert row.meta["variant"] == "hot"


async def test_a_target_that_is_not_configured_is_a_503_that_says_so(client, database):
    give(database, "lost", Variant("gone", target="nobody"))
    answer, data = await ask(client, "lost")
    assert answer.status == 503
    assert b"'gone' of 'lost'" in data
    assert b"variant_not_configured" in data


async def test_no_split_no_header(client):
    answer, _ = await ask(client, "chat-without")
    assert "x-variant" not in answer.headers


async def test_no_request_fails_while_a_split_changes(client, database):
    """Unary and streamed requests under way while the split changes ten times."""
    stop = asyncio.Event()
    seen: list[tuple[int, str | None, bytes]] = []

    async def user(number: int) -> None:
        while not stop.is_set():
            answer, data = await ask(
                client, "chat,tokens=3", user=f"u{number}", stream=number % 2 == 0
            )
            seen.append((answer.status, answer.headers.get("x-variant"), data))

    users = [asyncio.create_task(user(number)) for number in range(32)]
    for change in range(10):
        variants = (Variant("a", adapter=f"chat,tokens={change + 1}"), Variant("b"))
        weights = (1.0, 0.0) if change % 2 else (0.3, 0.7)
        await asyncio.to_thread(_put, database, variants, weights)
        await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*users)
    assert len(seen) > 100
    assert {status for status, _, _ in seen} == {200}
    assert not [data for _, _, data in seen if b'"error"' in data]
    assert {"a", "b"} <= {variant for _, variant, _ in seen}


def _put(database: Database, variants: tuple[Variant, ...], weights: tuple[float, ...]) -> None:
    with database.transaction() as session:
        put_split(session, Split("chat,tokens=3", arms(*variants, weights=weights), None, SALT))


@pytest.mark.parametrize(
    ("variants", "weights", "said"),
    [
        ((), (), "every arm needs a name"),
        ((Variant("a"), Variant("a")), (1.0, 1.0), "every arm needs a name"),
        ((Variant("a"), Variant("b")), (-1.0, 2.0), "none below 0"),
        ((Variant("a"),), (0.0,), "one at least above"),
        ((Variant("a", prompt_version="1"),), (1.0,), "no prompt registry"),
    ],
)
def test_what_is_no_split_is_refused(database, variants, weights, said):
    with pytest.raises(BadRequest, match=said), database.transaction() as session:
        put_split(session, Split("bad", arms(*variants, weights=weights), None, SALT))
    with database.session() as session:
        assert find_split(session, "bad") is None
