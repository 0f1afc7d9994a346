"""Lineage over the whole chain: every pair of ids that should reach each other, and large sets."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import NotFound
from gateway.lineage import FOLLOWED, NODES_AT_MOST, Lineage, Links, Node, Relations, lineage
from gateway.lineage_links import GatewayLinks
from pipelines.lineage_links import PipelineLinks
from tests.pipelines.lifecycle_rows import Chain, write_chain

KINDS = ("request", "feedback", "dataset", "run", "training", "verdict", "model_version",
         "adapter", "experiment", "promotion")  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    written = write_chain(tmp_path_factory.mktemp("chain"))
    yield written
    written.database.close()


def links_of(chain: Chain) -> list[Links]:
    return [
        GatewayLinks(chain.database, chain.reader),
        PipelineLinks(chain.database, chain.reader),
    ]


def of(chain: Chain, identifier: str) -> Lineage:
    return lineage(identifier, links_of(chain))


@pytest.mark.parametrize("start", KINDS)
def test_from_any_id_to_every_other(chain: Chain, start: str) -> None:
    found = of(chain, chain.ids[start])
    assert f"{start}:{chain.ids[start]}" in found.starts
    wanted = {f"{kind}:{identifier}" for kind, identifier in chain.ids.items()}
    assert wanted <= found.nodes.keys()


def reached(found: Lineage, start: str, *, causes: bool) -> set[str]:
    """Names on a path of edges in one direction, to be sure that they hang together."""
    names: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        edges = found.causes(name) if causes else found.effects(name)
        others = {edge.cause if causes else edge.effect for edge in edges}
        waiting += others - names
        names |= others
    return names


def test_from_the_first_feedback_down_and_from_the_promotion_up(chain: Chain) -> None:
    first, last = f"feedback:{chain.feedback[0]}", f"promotion:{chain.promotion_id}"
    down = reached(of(chain, chain.feedback[0]), first, causes=False)
    for kind in KINDS[2:]:
        assert f"{kind}:{chain.ids[kind]}" in down
    assert f"verdict:{chain.decision_id}" in down
    up = reached(of(chain, chain.promotion_id), last, causes=True)
    for kind in (*KINDS[:-1], "key"):
        assert f"{kind}:{chain.ids[kind]}" in up
    assert {f"verdict:{chain.decision_id}", f"model:{chain.name}"} <= up


@pytest.mark.parametrize("of_requests", ["tried", "served"])
def test_a_request_leads_to_what_answered_it_and_to_its_data(
    chain: Chain, of_requests: str
) -> None:
    answered = {row["request_id"] for row in chain.reader.rows("adapter = ?", [chain.adapter])}
    with_adapter = next(one for one in getattr(chain, of_requests) if one in answered)
    found = of(chain, with_adapter)
    up = reached(found, f"request:{with_adapter}", causes=True)
    for kind in ("adapter", "model_version", "training", "dataset", "verdict", "feedback"):
        assert f"{kind}:{chain.ids[kind]}" in up
    assert (f"experiment:{chain.experiment_id}" in up) == (of_requests == "tried")


def test_a_request_before_the_training_is_not_led_to_later_moves_as_causes(chain: Chain) -> None:
    found = of(chain, chain.requests[0])
    up = reached(found, f"request:{chain.requests[0]}", causes=True)
    assert up == {
        f"key:{chain.key_id}",
        f"model:{chain.name}",
        "target:vllm/small",
    }


def test_names_of_a_version_an_adapter_and_an_alias(chain: Chain) -> None:
    version = f"model_version:{chain.name}/1"
    for identifier in (f"{chain.name}/1", f"models:/{chain.name}/1"):
        assert of(chain, identifier).starts == (version,)
    assert of(chain, chain.adapter).starts == (f"adapter:{chain.adapter}",)
    alias = of(chain, chain.name)
    assert alias.starts == (f"model:{chain.name}",)
    assert alias.nodes[f"model:{chain.name}"].details["champion"] == f"{chain.name}/1"
    assert f"promotion:{chain.promotion_id}" in alias.nodes
    for unknown in (f"{chain.name}/2", "extractor/", "/", "models:/", "0" * 32, "\x00"):
        with pytest.raises(NotFound):
            of(chain, unknown)


def test_no_edge_is_told_from_one_side_only(chain: Chain) -> None:
    """What the causes of a node name, its effects name too: a walk finds it from either end."""
    part = PipelineLinks(chain.database, chain.reader)
    found = of(chain, chain.promotion_id)
    ours = {edge for edge in found.edges if _ours(edge.effect) and _ours(edge.cause)}
    assert len(ours) > 15
    for edge in ours:
        effect, cause = found.nodes[edge.effect], found.nodes[edge.cause]
        assert (edge.relation, edge.cause) in {
            (relation, node.name) for relation, node in part.causes(part.described(effect))
        }
        assert (edge.relation, edge.effect) in {
            (relation, node.name) for relation, node in part.effects(part.described(cause))
        }


def _ours(name: str) -> bool:
    return name.partition(":")[0] in (*KINDS[2:], "model")


def test_ten_thousand_examples_neither_drown_it_nor_take_long(tmp_path: Path) -> None:
    size = 10_000
    large = write_chain(tmp_path, examples=size, ship=True)
    ours = CountingLinks(large)
    links: list[Links] = [GatewayLinks(large.database, large.reader), ours]
    started = time.monotonic()
    found = lineage(large.promotion_id, links)
    seconds = time.monotonic() - started
    assert found.truncated and len(found.nodes) == NODES_AT_MOST
    bundles = {bundle.kind: bundle for bundle in found.bundles}
    for kind in ("feedback", "request"):
        bundle = bundles[kind]
        assert (bundle.relation, bundle.total) == ("made from", size)
        assert FOLLOWED < bundle.shown < NODES_AT_MOST
    assert abs(bundles["feedback"].shown - bundles["request"].shown) <= FOLLOWED
    for kind in (*KINDS[2:], "key"):
        assert f"{kind}:{large.ids[kind]}" in found.nodes
    assert f"feedback:{large.feedback[0]}" in found.nodes
    assert ours.described_count < 150
    assert seconds < 15
    large.database.close()


class CountingLinks(PipelineLinks):
    """Counts how many nodes were looked at one by one."""

    def __init__(self, chain: Chain):
        super().__init__(chain.database, chain.reader)
        self.described_count = 0

    def described(self, node: Node) -> Node:
        self.described_count += 1
        return super().described(node)


class Fan:
    """A root with `size` causes, each with one of its own."""

    def __init__(self, size: int):
        self.size = size

    def named(self, identifier: str) -> list[Node]:
        return [Node("root", "r")] if identifier == "r" else []

    def described(self, node: Node) -> Node:
        return node

    def causes(self, node: Node) -> Relations:
        if node.kind == "root":
            return [("made from", Node("leaf", str(number))) for number in range(self.size)]
        return [("grown on", Node("branch", node.id))] if node.kind == "leaf" else []

    def effects(self, node: Node) -> Relations:
        return []


@pytest.mark.parametrize(
    ("size", "shown", "truncated"),
    [(0, 0, False), (FOLLOWED, FOLLOWED, False), (FOLLOWED + 1, FOLLOWED + 1, False),
     (5000, NODES_AT_MOST - 1 - FOLLOWED, True)],
)  # fmt: skip
def test_the_bound_of_a_walk(size: int, shown: int, truncated: bool) -> None:
    found = lineage("r", [Fan(size)])
    leaves = [node for node in found.nodes.values() if node.kind == "leaf"]
    branches = [node for node in found.nodes.values() if node.kind == "branch"]
    assert (len(leaves), found.truncated) == (shown, truncated)
    assert len(branches) == min(size, FOLLOWED)
    assert [bundle.total for bundle in found.bundles] == ([size] if size > FOLLOWED else [])
