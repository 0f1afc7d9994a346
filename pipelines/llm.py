"""Language models in the lifecycle: data sets from feedback, LoRA adapters, vLLM replicas."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from pydantic import TypeAdapter
from sqlalchemy import select

from evals.answers import Subject, answer_cases
from evals.cases import load_cases
from evals.contents import content_hash, golden_contents
from evals.gate import Values
from evals.records import Answer, Case
from evals.scorers import SCORERS, score_all
from gateway.configuration import ConfigurationError
from gateway.prompt_versions import PromptVersionRow
from gateway.whole_file import write_whole
from pipelines.champion import BASE
from pipelines.datasets import freeze
from pipelines.engines import engine_of
from pipelines.installation import Installation
from pipelines.kinds import Contest, EvaluationFailed, Facts, Fitted, LogMetrics, ModelKind, Say
from pipelines.llm_spec import LLMSpec, llm_spec, require_scorers
from pipelines.manifest import Manifest
from pipelines.rollout import Replicas
from pipelines.spec import Spec
from rlhf.examples import Collected, Selection, collect

ROLLOUT_SECONDS = 10.0
COLLECTED = "collected.json"
ANSWERS = ("champion.jsonl", "candidate.jsonl")


def check(installation: Installation, spec: Spec) -> None:
    """Whether the alias is answered here and the engine could take what would be trained.

    Raises: ConfigurationError.
    """
    given = llm_spec(spec)
    require_scorers(spec, given.evaluation)
    installation.upstream_of(spec.alias)
    rank, limit = given.finetune.rank, installation.lora_rank
    if rank > limit:
        raise ConfigurationError(
            f"training.rank: {rank} is above the engine's {limit}; train with a lower rank, or "
            "start the engine with a higher one (stack.engine.lora_rank)"
        )


def facts(installation: Installation, spec: Spec) -> Facts:
    """Digests of the held-out cases, which no example may be, and of the base model's weights."""
    from rlhf.adapter import base_digest

    given = llm_spec(spec)
    cases = hashlib.sha256(given.evaluation.path.read_bytes()).hexdigest()
    base = base_digest(installation.model_folder(given.base_model))
    return {
        "preprocess": {"cases": cases},
        "train": {"base_digest": base},
        "evaluate": {"cases": cases},
    }


def preprocess(installation: Installation, spec: Spec, out: Path, say: Say) -> None:
    """Corrected and approved answers to the alias's requests, without any golden case."""
    given = llm_spec(spec)
    say(0, "reading feedback and request log")
    collected = collect(
        installation.reader,
        installation.database,
        Selection(
            tenant=given.dataset.tenant,
            alias=spec.alias,
            since=given.dataset.since,
            positive_metric=given.dataset.positive_metric,
            excluded=_held_out(installation, given),
        ),
    )
    fields = asdict(collected)
    fields["selection"]["excluded"] = sorted(collected.selection.excluded)
    write_whole(out / COLLECTED, orjson.dumps(fields), private=True)
    say(100, f"{len(collected.examples)} examples")


def features(
    installation: Installation, spec: Spec, preprocessed: Path, out: Path, say: Say
) -> Manifest:
    """The examples, split by user."""
    given = llm_spec(spec).dataset
    text = (preprocessed / COLLECTED).read_bytes()
    return freeze(
        TypeAdapter(Collected).validate_json(text),
        spec.name,
        out,
        validation_share=given.validation_share,
        seed=given.seed,
        minimum=given.minimum,
    )


def fit(
    installation: Installation, spec: Spec, dataset: Path, out: Path, log: LogMetrics
) -> Fitted:
    """A LoRA adapter on the spec's base model."""
    from rlhf.adapter import base_digest, require_fit, served_name
    from rlhf.finetune import finetune

    given = llm_spec(spec)
    base = installation.model_folder(given.base_model)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = finetune(
        given.finetune,
        base,
        dataset / "train.jsonl",
        dataset / "validation.jsonl",
        out,
        log,
    )
    info = require_fit(result.adapter, base_digest(base), installation.lora_rank)
    metrics = {
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "validation_loss": result.validation_loss,
        "train_steps": float(result.steps),
        "train_seconds": result.seconds,
    }
    return Fitted(
        served_name=served_name(spec.name, info),
        digest=info.digest,
        path=result.adapter,
        base_model=given.base_model,
        base_digest=info.base_digest,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


def folder(installation: Installation) -> Path:
    """Where the engine loads adapters from."""
    return installation.adapters_dir


def digest(path: Path) -> str:
    """Of the weights of the adapter at `path`; raises what `rlhf.adapter.inspect` raises."""
    from rlhf.adapter import inspect

    return inspect(path).digest


def serve(installation: Installation, spec: Spec, adapter: str, path: Path) -> None:
    """Load `adapter` on every replica and see it in each one's list of models.

    Raises:
        AdapterUnfit: it does not fit the base model; the engine would not have noticed.
        RolloutFailed: a replica does not serve it.
    """
    from rlhf.adapter import base_digest, require_fit

    base = base_digest(installation.model_folder(llm_spec(spec).base_model))
    require_fit(path, base, installation.lora_rank)
    engine = engine_of(installation, spec.alias)
    replicas = Replicas(engine.urls, engine.credential)
    asyncio.run(replicas.load(adapter, path, within=ROLLOUT_SECONDS))


def compare(
    installation: Installation, spec: Spec, _dataset: Path, contest: Contest, out: Path, say: Say
) -> Mapping[str, tuple[Values, Values]]:
    """Ask both every held-out case through the engine; their answers stay in `out`.

    Raises: EvaluationFailed where one got no answer: an engine's trouble is no model's fault, and
        would make a champion look worse than it is.
    """
    given = llm_spec(spec)
    cases = load_cases(given.evaluation.path)[: given.evaluation.limit]
    scorers = [SCORERS[name] for name in given.evaluation.scorers]
    results: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for side, who in enumerate((contest.champion, contest.candidate)):
        part = _part(say, 50 * side, who or BASE)
        answers = _answers(installation, spec, given, who, cases, part)
        lines = (orjson.dumps(asdict(answer)) for answer in answers)
        (out / ANSWERS[side]).write_bytes(b"\n".join(lines) + b"\n")
        for score in score_all(cases, answers, scorers):
            results.setdefault(score.metric, ([], []))[side].append(score.value)
    return results


def _answers(
    installation: Installation,
    spec: Spec,
    given: LLMSpec,
    adapter: str | None,
    cases: Sequence[Case],
    say: Say,
) -> list[Answer]:
    """What the adapter, or the plain model, answers to every case."""
    _, plain = installation.upstream_of(spec.alias)
    engine = engine_of(installation, spec.alias)
    subject = Subject(
        url=engine.urls[0],
        model=adapter or plain,
        parameters=given.evaluation.parameters,
        api_key=engine.credential,
        concurrency=given.evaluation.concurrency,
    )

    def progress(count: int, total: int) -> None:
        say(100 * count // max(total, 1), f"{count}/{total} answers")

    answers = asyncio.run(answer_cases(cases, subject, progress, {}))
    failed = [one for one in answers if one.error is not None]
    if failed:
        raise EvaluationFailed(
            f"{len(failed)} of {len(cases)} cases got no answer from {adapter or BASE}, so nothing "
            f"was judged: {failed[0].error}"
        )
    return answers


def _part(say: Say, start: int, who: str) -> Say:
    """Half of a stage's progress."""
    return lambda percent, what: say(start + percent // 2, f"{who}: {what}")


def _held_out(installation: Installation, given: LLMSpec) -> frozenset[str]:
    """Contents of all golden cases, and of the evaluation's own where they are elsewhere."""
    with installation.database.session() as session:
        prompts = [row.prompt for row in session.scalars(select(PromptVersionRow))]
    own = {content_hash(case.messages) for case in load_cases(given.evaluation.path)}
    return golden_contents(prompts) | own


def accept(_installation: Installation, _manifest: Manifest) -> None:
    """Nothing: what it was made of stays in the request log."""


LLM = ModelKind(
    check=check,
    facts=facts,
    preprocess=preprocess,
    features=features,
    fit=fit,
    folder=folder,
    digest=digest,
    serve=serve,
    compare=compare,
    accept=accept,
    plain=True,
)
