"""The engines behind the aliases: where their replicas are, and which adapters each must serve.

Wanted is what answers now (the arms of every split), what is on trial, and the champion before this
one, so that a rollback finds it loaded.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.configuration import ConfigurationError
from gateway.database import Conflict
from gateway.splits import all_splits
from gateway.variants import PROMPT_SPLIT
from pipelines.champion import Services, champion_of, running_experiments, served_name_of
from pipelines.installation import Installation
from pipelines.model_server_replica import ModelServerReplica
from pipelines.replica import Replica
from pipelines.rollout import GRACE_SECONDS, Replicas
from pipelines.tables import ModelVersionRow, RunRow, TrainingRow


@dataclass(frozen=True, slots=True)
class Engine:
    """One upstream's replicas: addresses as the configuration has them, and the key they want."""

    upstream: str
    urls: tuple[str, ...]
    credential: str | None = None
    kind: str = "openai"

    def replicas(
        self, prefixes: Collection[str] = (), grace_seconds: float = GRACE_SECONDS
    ) -> Replicas:
        """What loads on all of them; see `Replicas`."""
        return Replicas(
            self.urls,
            self.credential,
            prefixes=prefixes,
            grace_seconds=grace_seconds,
            replica=ModelServerReplica if self.kind == "kserve" else Replica,
        )


class NothingToLoad:
    """Stands for the engines where a prompt's versions are tried: they serve any prompt."""

    async def load(self, adapter: str, path: Path, within: float = 0) -> None:
        """Never asked."""
        raise AssertionError(f"{adapter}: a prompt has no adapter")


def engine_of(installation: Installation, alias: str) -> Engine:
    """The engine that answers `alias`; ConfigurationError if no such model is configured."""
    upstream, _ = installation.upstream_of(alias)
    secret = upstream.api_key_env and installation.settings.secret_value(upstream.api_key_env)
    name = installation.configuration.models[alias].upstream
    urls = upstream.replicas or (upstream.url,)
    return Engine(name, urls, secret or None, upstream.kind)


def services_for(installation: Installation, alias: str) -> Services:
    """What moves the traffic of `alias`. Raises what `engine_of` raises."""
    if alias.startswith(PROMPT_SPLIT):
        return Services(installation.database, NothingToLoad())
    engine = engine_of(installation, alias)
    return Services(installation.database, engine.replicas(), plain=engine.kind != "kserve")


def wanted_adapters(installation: Installation) -> dict[Engine, dict[str, Path]]:
    """Folders of the adapters that each engine must serve, by their names.

    Only engines that have answered with adapters, if only in an evaluation, are in it; nothing
    wanted is an empty entry. Aliases that are not configured any more are left out: nothing is sent
    to them.
    """
    wanted: dict[Engine, dict[str, Path]] = {}
    with installation.database.session() as session:
        for alias, adapters in _by_alias(session).items():
            if alias in installation.configuration.models:
                folders = wanted.setdefault(engine_of(installation, alias), {})
                folders |= {name: _folder(session, installation, name) for name in adapters}
    for alias, model in installation.configuration.models.items():
        if model.model is not None and installation.upstream_of(alias)[0].kind == "kserve":
            folders = wanted.setdefault(engine_of(installation, alias), {})
            folders[model.model] = installation.settings.tabular_dir / model.model
    return wanted


def model_names(installation: Installation) -> tuple[str, ...]:
    """Models that were trained here: only adapters named for one of them are ever unloaded."""
    with installation.database.session() as session:
        found = {*session.scalars(select(ModelVersionRow.name).distinct())}
        return tuple(sorted(found | {*session.scalars(select(TrainingRow.name).distinct())}))


def require_base(installation: Installation, alias: str, name: str, version: str) -> None:
    """Conflict if a version was trained on another base model than the one that answers `alias`.

    Where the base model's files are not on this machine, nothing is known and nothing refused; a
    version that there is not is somebody else's business.
    """
    from rlhf.adapter import base_digest

    _, model = installation.upstream_of(alias)
    try:
        base = installation.model_folder(model)
    except ConfigurationError:
        return
    with installation.database.session() as session:
        row = session.get(ModelVersionRow, (name, version))
        training = None if row is None else session.get(TrainingRow, row.training_id)
    if training is not None and training.base_digest != base_digest(base):
        raise Conflict(
            f"{name} version {version} was trained on another base: {training.base_model} "
            f"({training.base_digest[:12]}), and {alias} is answered by {model}; the engine would "
            "answer with it, wrongly"
        )


def _by_alias(session: Session) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for spec in session.scalars(select(RunRow.spec)):
        if spec.get("alias"):  # a candidate that was evaluated and not let through is unloaded
            _want(wanted, str(spec["alias"]), [])
    for alias, split in all_splits(session).items():
        champion = champion_of(session, alias)
        before = served_name_of(session, champion.name_or(alias), champion.previous)
        _want(wanted, alias, [*(arm.variant.adapter for arm in split.arms), before])
    for row in running_experiments(session):
        _want(wanted, row.alias, [arm["variant"]["adapter"] for arm in row.arms])
    return wanted


def _want(wanted: dict[str, list[str]], alias: str, adapters: Sequence[str | None]) -> None:
    found = wanted.setdefault(alias, [])
    found += [name for name in adapters if name is not None and name not in found]


def _folder(session: Session, installation: Installation, adapter: str) -> Path:
    rows = session.scalars(select(ModelVersionRow).where(ModelVersionRow.served_name == adapter))
    row = rows.first()
    return installation.adapters_dir / adapter if row is None else Path(row.path)
