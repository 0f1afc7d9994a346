"""Prompts on live requests: a real worker, a scripted upstream, labels that move."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.database import Database, now, open_database
from gateway.prompt_versions import PromptVersionRow, put_version, set_label
from gateway.splits import put_split
from gateway.variants import Arm, Split, Variant
from prompts.prompt import Prompt
from tests.gateway_process import GatewayProcess, configuration
from tests.scripted_upstream import ScriptedUpstreamProcess

SALT = "00112233445566778899aabbccddeeff"
IN_FORCE_SECONDS = 2.0
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def gateway(
    upstream: ScriptedUpstreamProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        tmp_path_factory.mktemp("prompted") / "home", configuration(upstream.url)
    ).start()
    yield process
    process.stop()


@pytest.fixture
def database(gateway: GatewayProcess) -> Iterator[Database]:
    opened = open_database(gateway.settings.database_url)
    yield opened
    opened.close()


def prompt(name: str = "greeter", said: str = "Greet {{ who }}.", **fields: Any) -> Prompt:
    given = {
        "name": name,
        "messages": [{"role": "system", "content": said}],
        "variables": [{"name": "who"}, {"name": "tone", "required": False, "default": "kind"}],
        "model": "chat",
        "params": {"temperature": 0.5, "max_tokens": 24},
    }
    return Prompt.model_validate(given | fields)


def put(database: Database, version: str, given: Prompt, *labels: str) -> None:
    with database.transaction() as session:
        row = PromptVersionRow(
            name=given.name, version=version, content_hash=given.content_hash,
            content=given.content, git_sha="abc", path=f"{given.name}.yaml", created_at=now(),
        )  # fmt: skip
        put_version(session, row)
        for label in labels:
            set_label(session, given.name, label, version)


async def ask(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any, Any]:
    async with client.post(CHAT, json=fields) as answer:
        return answer.status, answer.headers, await answer.json()


async def eventually(client: aiohttp.ClientSession, version: str, **fields: Any) -> float:
    """Seconds until a request gets `version`."""
    began = time.monotonic()
    while time.monotonic() < began + IN_FORCE_SECONDS:
        status, headers, _ = await ask(client, **fields)
        if status == 200 and headers["x-prompt-version"] == version:
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    raise AssertionError(f"version {version} is not in force after {IN_FORCE_SECONDS} s")


async def test_a_prompt_is_rendered_sent_and_logged(client, gateway, database, upstream):
    given = prompt()
    put(database, "1", given, "production")
    asked = {"prompt_id": "greeter", "prompt_variables": {"who": "Ann"}}
    await eventually(client, "1", **asked)
    upstream.reset()
    own = [{"role": "user", "content": "Now."}]
    status, headers, _ = await ask(client, **asked, messages=own, temperature=0.1)
    assert status == 200
    sent = upstream.calls()[0]["body"]
    assert sent["messages"] == [{"role": "system", "content": "Greet Ann."}, *own]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("chat", 0.1, 24)
    assert not [name for name in sent if name.startswith("prompt")]
    row = gateway.row(headers["x-request-id"])
    assert (row.meta["prompt_name"], row.meta["prompt_version"]) == ("greeter", "1")
    assert row.meta["prompt_sha"] == given.content_hash
    assert row.meta["contexts"] == {"variables": {"who": "Ann"}}
    logged = orjson.loads(row.request)
    assert logged["messages"] == sent["messages"] and logged["prompt_id"] == "greeter"


async def test_the_callers_limit_takes_the_prompts_place_by_either_name(client, database, upstream):
    put(database, "1", prompt("limited"), "production")
    asked = {"prompt_id": "limited", "prompt_variables": {"who": "Ann"}}
    await eventually(client, "1", **asked)
    upstream.reset()
    await ask(client, **asked, max_completion_tokens=7)
    sent = upstream.calls()[0]["body"]
    assert sent["max_completion_tokens"] == 7 and "max_tokens" not in sent


async def test_labels_versions_and_their_move(client, database):
    put(database, "1", prompt("mover", "one {{ who }}"), "production")
    put(database, "2", prompt("mover", "two {{ who }}"), "staging")
    asked: dict[str, Any] = {"prompt_id": "mover", "prompt_variables": {"who": "x"}}
    await eventually(client, "1", **asked)
    await eventually(client, "2", **asked, prompt_label="staging")
    await eventually(client, "1", **asked, prompt_version=1)
    with database.transaction() as session:
        assert set_label(session, "mover", "production", "2") == "1"
    assert await eventually(client, "2", **asked) <= IN_FORCE_SECONDS
    await eventually(client, "1", **asked, prompt_version="1")


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"prompt_id": "none"}, 404, "prompt_id", "There is no prompt 'none'"),
        ({"prompt_label": "gone"}, 404, "prompt_label", "has no label 'gone'"),
        ({"prompt_version": "9"}, 404, "prompt_version", "has no version '9'"),
        ({"prompt_version": "1", "prompt_label": "production"}, 400, "prompt_label", "exclude"),
        ({"prompt_variables": {}}, 400, "prompt_variables", "who: missing"),
        ({"prompt_variables": {"who": "a", "b": 1}}, 400, "prompt_variables", "b: unknown"),
        ({"prompt_variables": {"who": 3}}, 400, "prompt_variables", "who: must be of type string"),
        ({"prompt_variables": [1]}, 400, "prompt_variables", "must be an object"),
        ({"prompt_id": 7}, 400, "prompt_id", "must be the name"),
        ({"prompt_version": {}}, 400, "prompt_version", "must be a short string"),
        ({"prompt_id": None}, 400, "prompt_id", "must be the name"),
    ],
)
async def test_what_is_refused_names_the_field(client, database, fields, status, param, said):
    put(database, "1", prompt("strict"), "production")
    asked = {"prompt_id": "strict", "prompt_variables": {"who": "Ann"}}
    await eventually(client, "1", **asked)
    found, _, body = await ask(client, **(asked | fields))
    assert (found, body["error"]["param"]) == (status, param)
    assert said in body["error"]["message"]


async def test_only_chat_takes_prompts(client):
    async with client.post("/v1/completions", json={"model": "chat", "prompt_id": "x"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "prompt_id"


async def test_an_experiment_of_two_versions_is_sticky_by_user(client, gateway, database):
    put(database, "1", prompt("tried", "one {{ who }}"), "production")
    put(database, "2", prompt("tried", "two {{ who }}"))
    arms = (Arm(Variant("champion", prompt_version="1"), 1.0),
            Arm(Variant("challenger", prompt_version="2"), 1.0))  # fmt: skip
    split = Split("prompt:tried", arms, "experiment-1", SALT)
    with database.transaction() as session:
        put_split(session, split)
    await asyncio.sleep(1.0)
    asked: dict[str, Any] = {"prompt_id": "tried", "prompt_variables": {"who": "x"}}
    seen = set()
    for number in range(12):
        user = f"user-{number}"
        wanted = split.choose("default", user)
        for _ in range(2):
            _, headers, _ = await ask(client, **asked, user=user)
            assert headers["x-prompt-version"] == wanted.prompt_version
            assert headers["x-variant"] == wanted.name
        row = gateway.row(headers["x-request-id"]).meta
        assert (row["experiment"], row["variant"]) == ("experiment-1", wanted.name)
        seen.add(wanted.name)
    assert seen == {"champion", "challenger"}
    _, headers, _ = await ask(client, **asked, prompt_version="1", user="user-0")
    assert "x-variant" not in headers


async def test_with_the_database_away_the_last_good_versions_go_on(gateway, database, tmp_path):
    put(database, "1", prompt("kept"), "production")
    headers = {"authorization": f"Bearer {gateway.key}"}
    asked = {"prompt_id": "kept", "prompt_variables": {"who": "x"}}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as client:
        await eventually(client, "1", **asked)
        database.close()
        home = gateway.settings.home
        moved = [(path, tmp_path / path.name) for path in home.glob("state.db*")]
        for path, aside in moved:
            path.rename(aside)
        try:
            await asyncio.sleep(1)
            status, found, _ = await ask(client, **asked)
            assert (status, found["x-prompt-version"]) == (200, "1")
        finally:
            for path, aside in moved:
                path.unlink(missing_ok=True)
                aside.rename(path)
