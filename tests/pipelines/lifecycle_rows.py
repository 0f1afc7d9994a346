"""One whole chain, from the first feedback to the promotion and the traffic after it, written into
a real state database, a real request log and, if one is given, a real MLflow.

What the project has code for is done by that code (data set, gate, experiment, decision, promotion,
registry); only the users, the engine and the training itself are made up.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uuid_utils

from deploy.migrations import upgrade
from evals.extraction import answer_text, request_body, training_pool
from evals.gate import Condition, judge
from evals.records import Case, Verdict
from evals.verdicts import add_verdict
from gateway.configuration import Metric
from gateway.database import Database, now, open_database
from gateway.feedback import DEMONSTRATION, RESOLVED, FeedbackRow
from gateway.keys import KeyStore
from gateway.request_log import LogReader
from gateway.splits import find_split
from pipelines import datasets
from pipelines.champion import Services
from pipelines.experiment import Trial, conclude, examine, start
from pipelines.observations import Observations
from pipelines.plan import Plan
from pipelines.promotion import follow_up
from pipelines.registry import Registry
from pipelines.runs import under_way
from pipelines.tables import ExperimentRow, ModelVersionRow, TrainingRow
from pipelines.tracking import Tracking
from rlhf.adapter import CONFIG, DESCRIPTION, WEIGHTS, inspect, served_name
from rlhf.examples import Selection, collect
from tests.spooled_requests import final, record, shipper_of, write_segment

TENANT = "acme"
METRICS = {"helpful": Metric(type="boolean")}
BASE_DIGEST = "b" * 64
SECRET = b"a secret for the keys of a test"


class Engine:
    """Serves every adapter at once."""

    async def load(self, adapter: str, path: Path, within: float = 10.0) -> object:
        return adapter


@dataclass
class Chain:
    """The chain's ids, in the order in which they came to be. `home` is a whole LLMOPS_HOME.

    Attributes:
        requests, feedback: those that the data set is made from, in pairs.
        tried, heard: the experiment's requests, and the feedback on them, in pairs.
        served: requests after the promotion.
    """

    home: Path
    name: str
    database: Database
    reader: LogReader
    key_id: str
    requests: list[str] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)
    dataset_id: str = ""
    run_id: str = ""
    training_id: str = ""
    adapter: str = ""
    verdict_id: str = ""
    version: str = ""
    experiment_id: str = ""
    tried: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    decision_id: str = ""
    promotion_id: str = ""
    served: list[str] = field(default_factory=list)

    @property
    def adapter_path(self) -> Path:
        return self.home / "adapters" / self.adapter

    @property
    def dataset_path(self) -> Path:
        return self.home / "lifecycle" / self.name / "dataset"

    @property
    def ids(self) -> dict[str, str]:
        """An id of every kind of thing in it."""
        return {
            "key": self.key_id,
            "request": self.requests[0],
            "feedback": self.feedback[0],
            "dataset": self.dataset_id,
            "run": self.run_id,
            "training": self.training_id,
            "verdict": self.verdict_id,
            "model_version": f"{self.name}/{self.version}",
            "adapter": self.adapter,
            "experiment": self.experiment_id,
            "promotion": self.promotion_id,
        }


@dataclass(frozen=True)
class Asked:
    """A request that is to be logged, and what is said of it: a demonstration, or helpful."""

    case: Case
    user: str
    value: Any
    fields: dict[str, Any] = field(default_factory=dict)


def write_chain(
    home: Path,
    *,
    name: str = "extractor",
    tracking_uri: str | None = None,
    examples: int = 12,
    ship: bool = False,
) -> Chain:
    """Write the chain under `home`. Where no MLflow is given, its ids are made up.

    Users of the training are `first-N`; those of the experiment and after it `later-N`.
    """
    (home / "spool" / "parts").mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{home / 'state.db'}"
    upgrade(url)
    database = open_database(url)
    reader = LogReader(home / "spool", str(home / "log" / "requests"))
    _, key = KeyStore(database, SECRET).generate(actor="test", tenant=TENANT)
    chain = Chain(home, name, database, reader, key.key_id)
    _first_traffic(chain, examples)
    if ship:
        shipper_of(home).ship()
    with under_way(database, home / "run", name, {"name": name}, None) as run:
        chain.run_id = run.run_id
        _dataset(chain)
        _training(chain, tracking_uri)
        verdict = _verdict(chain, tracking_uri)
        _version(chain, tracking_uri, verdict)
        run.note(
            dataset_id=chain.dataset_id,
            training_id=chain.training_id,
            verdict_id=chain.verdict_id,
            version=chain.version,
        )
    asyncio.run(_experiment(chain))
    if tracking_uri is not None:
        follow_up(database, Registry(tracking_uri))
    later = [Asked(case, f"later-{number}", None) for number, case in enumerate(_pool(4))]
    arm = {"variant": "champion", "adapter": chain.adapter}
    chain.served, _ = log(chain, [Asked(one.case, one.user, None, arm) for one in later])
    if ship:
        shipper_of(home).ship()
    return chain


def log(chain: Chain, asked: Sequence[Asked]) -> tuple[list[str], list[str]]:
    """Put requests into the spool and feedback on them into the database; returns both's ids."""
    records, rows = [], []
    for one in asked:
        right = answer_text(one.case.expected)
        body = request_body(chain.name, one.case.messages)
        answer = {"choices": [{"message": {"role": "assistant", "content": right},
                               "finish_reason": "stop", "index": 0}]}  # fmt: skip
        logged = record(
            user=one.user, tenant=TENANT, key_id=chain.key_id, model=chain.name, **one.fields
        )
        records.append((logged.request_id, final(logged, orjson.dumps(body), orjson.dumps(answer))))
        if one.value is not None:
            rows.append(_feedback(chain, logged.request_id, one.value))
    write_segment(chain.home / "spool", *(bytes_ for _, bytes_ in records))
    with chain.database.transaction() as session:
        session.add_all(rows)
    return [request_id for request_id, _ in records], [row.feedback_id for row in rows]


def write_adapter(folder: Path, seed: int = 1) -> None:
    """The smallest LoRA adapter: one layer, rank 1, as PEFT writes it."""
    folder.mkdir(parents=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    matrices = {f"{layer}.lora_A.weight": [1, 2], f"{layer}.lora_B.weight": [2, 1]}
    head, data = {}, b""
    for name, shape in matrices.items():
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 8]}
        data += struct.pack("<2f", seed, len(data))
    text = json.dumps(head).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / CONFIG).write_text(json.dumps(config))
    described = {"base_digest": BASE_DIGEST, "base_model": "tiny"}
    (folder / DESCRIPTION).write_text(json.dumps(described))


def _pool(size: int) -> list[Case]:
    return training_pool(7, size)


def _first_traffic(chain: Chain, examples: int) -> None:
    cases = _pool(examples)
    asked = [
        Asked(case, f"first-{number // 2}", case.expected) for number, case in enumerate(cases)
    ]
    chain.requests, chain.feedback = log(chain, asked)


def _feedback(chain: Chain, request_id: str, value: Any) -> FeedbackRow:
    shown = not isinstance(value, bool)
    return FeedbackRow(
        feedback_id=str(uuid_utils.uuid7()),
        tenant=TENANT,
        client_id=None,
        key_id=chain.key_id,
        reference=f"chatcmpl-{request_id}",
        request_id=request_id,
        episode_id=None,
        metric_name=DEMONSTRATION if shown else "helpful",
        type=DEMONSTRATION if shown else "boolean",
        value=value,
        comment=None,
        tags={},
        created_at=now(),
        state=RESOLVED,
    )


def _dataset(chain: Chain) -> None:
    selection = Selection(tenant=TENANT, alias=chain.name)
    collected = collect(chain.reader, chain.database, selection)
    manifest = datasets.freeze(
        collected, chain.name, chain.dataset_path, validation_share=0.2, seed=0, minimum=2
    )
    with chain.database.transaction() as session:
        datasets.record(session, manifest, chain.dataset_path)
    chain.dataset_id = manifest.dataset_id


def _training(chain: Chain, tracking_uri: str | None) -> None:
    fresh = chain.home / "adapters" / ".fresh"
    write_adapter(fresh)
    info = inspect(fresh)
    chain.adapter = served_name(chain.name, info)
    fresh.rename(chain.adapter_path)
    chain.training_id = uuid_utils.uuid4().hex
    if tracking_uri is not None:
        tags = {"dataset_id": chain.dataset_id, "alias": chain.name}
        tracked = Tracking(tracking_uri).start(
            chain.name, tags=tags, params={"rank": 1}, journal=chain.home / "metrics.journal"
        )
        with tracked:
            tracked.log(1, {"loss": 0.5})
            tracked.artifacts(chain.adapter_path)
        chain.training_id = tracked.training_id
    with chain.database.transaction() as session:
        session.add(
            TrainingRow(
                training_id=chain.training_id,
                name=chain.name,
                kind="llm",
                dataset_id=chain.dataset_id,
                base_model="tiny",
                base_digest=BASE_DIGEST,
                served_name=chain.adapter,
                digest=info.digest,
                path=str(chain.adapter_path),
                configuration={"rank": 1},
                metrics={"last_loss": 0.5},
                created_at=now(),
            )
        )


def _verdict(chain: Chain, tracking_uri: str | None) -> Verdict:
    verdict = judge(
        chain.adapter,
        "base",
        {"exact_match": ([0.0] * 40, [1.0] * 30 + [0.0] * 10)},
        [Condition(metric="exact_match", minimum_n=20)],
        evidence={"training_id": chain.training_id, "dataset_id": chain.dataset_id},
    )
    with chain.database.transaction() as session:
        add_verdict(session, verdict)
    if tracking_uri is not None:
        Tracking(tracking_uri).verdict(chain.training_id, verdict)
    chain.verdict_id = verdict.verdict_id
    return verdict


def _version(chain: Chain, tracking_uri: str | None, verdict: Verdict) -> None:
    chain.version = "1"
    if tracking_uri is not None:
        tags = {
            "kind": "llm",
            "served_name": chain.adapter,
            "digest": inspect(chain.adapter_path).digest,
            "base_digest": BASE_DIGEST,
            "dataset_id": chain.dataset_id,
            "training_id": chain.training_id,
            "verdict_id": verdict.verdict_id,
            "git_sha": None,
        }
        registry = Registry(tracking_uri)
        chain.version = registry.register(
            chain.name, chain.training_id, chain.adapter_path, tags, "a test's"
        )
    with chain.database.transaction() as session:
        session.add(
            ModelVersionRow(
                name=chain.name,
                version=chain.version,
                training_id=chain.training_id,
                verdict_id=verdict.verdict_id,
                served_name=chain.adapter,
                path=str(chain.adapter_path),
                created_at=now(),
            )
        )


async def _experiment(chain: Chain) -> None:
    """Users of the base model are dissatisfied, users of the adapter are not."""
    services = Services(chain.database, Engine())
    plan = Plan(metric="helpful", minimum_users=10, maximum_users=400).settled(METRICS)
    trial = Trial(chain.name, chain.name, chain.version, plan, actor="test")
    row = await start(services, trial)
    chain.experiment_id = row.experiment_id
    chain.tried, chain.heard = log(chain, _trial_traffic(chain, row))
    finding = examine(row, Observations(chain.database, chain.reader, row))
    ended = await conclude(services, row.experiment_id, finding)
    assert ended.state == "promoted", finding.reason
    chain.decision_id = str(ended.verdict_id)
    with chain.database.session() as session:
        from pipelines.champion import champion_of

        last = champion_of(session, chain.name).last
    assert last is not None
    chain.promotion_id = last.promotion_id


def _trial_traffic(chain: Chain, row: ExperimentRow) -> list[Asked]:
    with chain.database.session() as session:
        split = find_split(session, chain.name)
    assert split is not None
    asked = []
    for number, case in enumerate(_pool(60)):
        user = f"later-{number}"
        arm = split.choose(TENANT, user)
        fields = {
            "experiment": row.experiment_id,
            "variant": arm.name,
            "adapter": arm.adapter,
            "endpoint": "chat",
        }
        asked.append(Asked(case, user, arm.adapter is not None, fields))
    return asked
