"""Lineage: from any id, both ways, and open to links of other parts."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import openai
import orjson
import pytest

from gateway.errors import NotFound
from gateway.feedback import FeedbackStore, NewFeedback
from gateway.feedback_check import check_pending
from gateway.keys import Key
from gateway.lineage import Lineage, Links, Node, Relations, lineage
from gateway.lineage_links import GatewayLinks
from gateway.request_log import LogReader
from tests.gateway_process import ROOT, GatewayProcess

UPSTREAM_OWN = "chat"


class Story:
    """A team's key, two requests of one episode, feedback on both levels, and a stranger's."""

    def __init__(self, gateway: GatewayProcess):
        self.gateway = gateway
        self.team = gateway.keys.team_new(actor="test", alias="blue", tenant="acme")
        self.token, self.key = gateway.keys.generate(actor="test", team_id="blue")
        _, stranger = gateway.keys.generate(actor="test", tenant="stranger")
        self.store = FeedbackStore(gateway.keys.database, {})
        self.reader = LogReader(gateway.settings.spool_dir, gateway.settings.log_table)
        self.links = GatewayLinks(gateway.keys.database, self.reader)
        self.answers = [self.ask() for _ in range(2)]
        self.rows = [self.reader.row(answer.id) or {} for answer in self.answers]
        first = self.answers[0].id
        self.comment = self.store.add(self.comment_by(self.key, reference=first))
        self.on_episode = self.store.add(self.comment_by(self.key, episode_id="talk-9"))
        self.foreign = self.store.add(self.comment_by(stranger, reference=first))
        check_pending(self.store, self.reader, older_than=timedelta(hours=1))

    def ask(self) -> Any:
        with openai.OpenAI(
            base_url=f"{self.gateway.url}/v1", api_key=self.token, max_retries=20
        ) as client:
            while True:
                try:
                    return client.chat.completions.create(
                        model=UPSTREAM_OWN,
                        messages=[{"role": "user", "content": "hello"}],
                        extra_body={"episode_id": "talk-9"},
                    )
                except openai.AuthenticationError:  # the worker has not seen the key yet
                    continue

    def comment_by(self, key: Key, **target: Any) -> NewFeedback:
        return NewFeedback(
            tenant=key.tenant, key_id=key.key_id, metric_name="comment", value="good", **target
        )

    def of(self, identifier: str) -> Lineage:
        return lineage(identifier, [self.links])


@pytest.fixture(scope="module")
def story(gateway: GatewayProcess) -> Iterator[Story]:
    yield Story(gateway)


def relations(found: Lineage, effect: str) -> dict[str, str]:
    return {edge.relation: edge.cause for edge in found.causes(effect)}


def test_from_a_request(story: Story) -> None:
    request_id = story.rows[0]["request_id"]
    name = f"request:{request_id}"
    for identifier in (request_id, story.answers[0].id):
        found = story.of(identifier)
        assert found.starts == (name,)
        assert relations(found, name) == {
            "sent with": f"key:{story.key.key_id}",
            "part of": "episode:acme/talk-9",
            "asked for": f"model:{UPSTREAM_OWN}",
            "answered by": f"target:{story.rows[0]['target']}",
        }
        assert relations(found, f"key:{story.key.key_id}") == {
            "belongs to": f"team:{story.team.team_id}"
        }
        assert [edge.effect for edge in found.effects(name)] == [f"feedback:{story.comment}"]
        assert f"request:{story.rows[1]['request_id']}" not in found.nodes


def test_from_feedback(story: Story) -> None:
    found = story.of(story.comment)
    causes = relations(found, f"feedback:{story.comment}")
    assert causes["given on"] == f"request:{story.rows[0]['request_id']}"
    assert f"team:{story.team.team_id}" in found.nodes
    found = story.of(story.on_episode)
    assert relations(found, f"feedback:{story.on_episode}")["given on"] == "episode:acme/talk-9"


def test_feedback_of_another_tenant_is_joined_to_nothing(story: Story) -> None:
    found = story.of(story.foreign)
    target = found.nodes[relations(found, f"feedback:{story.foreign}")["given on"]]
    assert target.details == {"state": "not in the log"}
    assert f"model:{UPSTREAM_OWN}" not in found.nodes
    assert f"feedback:{story.foreign}" not in story.of(story.answers[0].id).nodes


@pytest.mark.parametrize("start", ["key", "team", "episode"])
def test_from_what_many_requests_share(story: Story, start: str) -> None:
    identifier = {"key": story.key.key_id, "team": story.team.team_id, "episode": "talk-9"}[start]
    found = story.of(identifier)
    for row in story.rows:
        assert f"request:{row['request_id']}" in found.nodes
    assert f"feedback:{story.comment}" in found.nodes
    assert f"feedback:{story.foreign}" not in found.nodes


def test_unknown_ids(story: Story) -> None:
    for identifier in ("nothing", "", "\x00", "0192f0c1-2b3c-7def-8123-456789abcdef", "'; --"):
        with pytest.raises(NotFound):
            story.of(identifier)


class DatasetLinks:
    """As a later part brings them: a data set made from feedback."""

    def __init__(self, feedback_id: str):
        self.feedback = Node("feedback", feedback_id)
        self.dataset = Node("dataset", "d1", details={"rows": 10})

    def named(self, identifier: str) -> list[Node]:
        return [self.dataset] if identifier == self.dataset.id else []

    def described(self, node: Node) -> Node:
        return node

    def causes(self, node: Node) -> Relations:
        return [("made from", self.feedback)] if node == self.dataset else []

    def effects(self, node: Node) -> Relations:
        return [("made from", self.dataset)] if node == self.feedback else []


def test_other_parts_add_their_links(story: Story) -> None:
    links: list[Links] = [story.links, DatasetLinks(story.comment)]
    from_request = lineage(story.answers[0].id, links)
    assert from_request.nodes["dataset:d1"].details == {"rows": 10}
    from_dataset = lineage("d1", links)
    assert f"feedback:{story.comment}" in from_dataset.nodes


def test_the_command_draws_it_and_prints_json(story: Story) -> None:
    command = [sys.executable, "-m", "deploy.cli", "lineage"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=story.gateway.environ, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip

    drawn = run(story.comment)
    assert drawn.returncode == 0, drawn.stderr
    for part in ("made with", story.rows[0]["request_id"], story.team.team_id, "value=good"):
        assert part in drawn.stdout
    found = orjson.loads(run(story.comment, "--json").stdout)
    assert found["starts"] == [f"feedback:{story.comment}"]
    missing = run("nothing")
    assert missing.returncode == 1
    assert "nothing is known" in missing.stderr
