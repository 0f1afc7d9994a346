"""Language models in the lifecycle: data sets from feedback, LoRA adapters, vLLM replicas."""

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select

from evals.answers import Subject, answer_cases
from evals.cases import load_cases
from evals.contents import content_hash, golden_contents
from evals.records import Answer, Case
from gateway.configuration import ConfigurationError
from gateway.prompt_versions import PromptVersionRow
from pipelines.datasets import freeze
from pipelines.engines import engine_of
from pipelines.installation import Installation
from pipelines.kinds import Fitted, FormerKind, LogMetrics, Say
from pipelines.manifest import Manifest
from pipelines.rollout import Replicas
from pipelines.spec import Spec
from rlhf.examples import Selection, collect
from rlhf.training import FinetuneConfig

ROLLOUT_SECONDS = 10.0


def check(installation: Installation, spec: Spec) -> None:
    """Whether the alias is answered here and the engine could take what would be trained.

    Raises: ConfigurationError.
    """
    installation.upstream_of(spec.alias)
    rank, limit = _config(spec).rank, installation.lora_rank
    if rank > limit:
        raise ConfigurationError(
            f"training.rank: {rank} is above the engine's {limit}; train with a lower rank, or "
            "start the engine with a higher one (stack.engine.lora_rank)"
        )


def build_dataset(installation: Installation, spec: Spec, out: Path) -> Manifest:
    """Corrected and approved answers to the alias's requests, without any golden case."""
    collected = collect(
        installation.reader,
        installation.database,
        Selection(
            tenant=spec.dataset.tenant,
            alias=spec.alias,
            since=spec.dataset.since,
            positive_metric=spec.dataset.positive_metric,
            excluded=_held_out(installation, spec),
        ),
    )
    return freeze(
        collected,
        spec.name,
        out,
        validation_share=spec.dataset.validation_share,
        seed=spec.dataset.seed,
        minimum=spec.dataset.minimum,
    )


def fit(
    installation: Installation, spec: Spec, dataset: Path, out: Path, log: LogMetrics
) -> Fitted:
    """A LoRA adapter on the spec's base model."""
    from rlhf.adapter import base_digest, require_fit, served_name
    from rlhf.finetune import finetune

    base = installation.model_folder(spec.base_model)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = finetune(
        _config(spec),
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
        base_model=spec.base_model,
        base_digest=info.base_digest,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


def serve(installation: Installation, spec: Spec, adapter: str, path: Path) -> None:
    """Load `adapter` on every replica and see it in each one's list of models.

    Raises:
        AdapterUnfit: it does not fit the base model; the engine would not have noticed.
        RolloutFailed: a replica does not serve it.
    """
    from rlhf.adapter import base_digest, require_fit

    base = base_digest(installation.model_folder(spec.base_model))
    require_fit(path, base, installation.lora_rank)
    engine = engine_of(installation, spec.alias)
    replicas = Replicas(engine.urls, engine.credential)
    asyncio.run(replicas.load(adapter, path, within=ROLLOUT_SECONDS))


def answer(
    installation: Installation, spec: Spec, adapter: str | None, cases: Sequence[Case], say: Say
) -> list[Answer]:
    """Ask the engine each case: the adapter, or the plain model."""
    _, plain = installation.upstream_of(spec.alias)
    engine = engine_of(installation, spec.alias)
    subject = Subject(
        url=engine.urls[0],
        model=adapter or plain,
        parameters=spec.evaluation.parameters,
        api_key=engine.credential,
        concurrency=spec.evaluation.concurrency,
    )

    def progress(count: int, total: int) -> None:
        say(100 * count // max(total, 1), f"{count}/{total} answers")

    return asyncio.run(answer_cases(cases, subject, progress, {}))


def _held_out(installation: Installation, spec: Spec) -> frozenset[str]:
    """Contents of all golden cases, and of the evaluation's own where they are elsewhere."""
    with installation.database.session() as session:
        prompts = [row.prompt for row in session.scalars(select(PromptVersionRow))]
    own = {content_hash(case.messages) for case in load_cases(spec.cases_path)}
    return golden_contents(prompts) | own


def _config(spec: Spec) -> FinetuneConfig:
    """The spec's training; ConfigurationError with a line for each mistake."""
    known = [field.name for field in fields(FinetuneConfig)]
    lines = [
        f"training.{name}: no such key (there are: {', '.join(known)})"
        for name in spec.training
        if name not in known
    ]
    try:
        config = TypeAdapter(FinetuneConfig).validate_python(spec.training)
    except ValidationError as error:
        lines += [
            f"{'.'.join(map(str, ('training', *item['loc'])))}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
    if lines:
        raise ConfigurationError("\n".join(lines))
    return config


LLM = FormerKind(check=check, build_dataset=build_dataset, fit=fit, serve=serve, answer=answer)
