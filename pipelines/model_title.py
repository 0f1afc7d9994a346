"""The title of a model's alias: its champion. Promotions are its record, the split its traffic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.database import Conflict
from gateway.variants import Variant
from pipelines.candidate import lineage_of, require_candidate
from pipelines.champion import (
    BASE,
    CHALLENGER,
    CHAMPION,
    Move,
    champion_of,
    find_version,
    give_all_traffic,
    move_champion,
    served_name_of,
)
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow
from pipelines.title import Entrants


class ModelTitle:
    """See `pipelines.title.Title`."""

    column = "adapter"

    def __init__(self, alias: str):
        self.alias = alias
        self.place = f"model {alias}"

    def holder(self, session: Session) -> str | None:
        """The champion's version."""
        return champion_of(session, self.alias).version

    def previous(self, session: Session) -> str | None:
        """The champion before."""
        return champion_of(session, self.alias).previous

    def entrants(
        self, session: Session, name: str, version: str | None, unjudged: str | None
    ) -> Entrants:
        """The champion, and a version whose lineage is complete."""
        champion = champion_of(session, self.alias)
        champion.require_name(name)
        if version is not None and version == champion.version:
            raise Conflict(f"{name} version {version} is the champion of {self.alias} already")
        baseline = find_version(session, name, champion.version)
        candidate = baseline
        if version is not None:
            candidate = require_candidate(session, name, version, unjudged)
        known = {} if candidate is None else lineage_of(session, candidate)
        return Entrants(
            holder=champion.version,
            version=version,
            champion=Variant(CHAMPION, adapter=_served(baseline)),
            challenger=Variant(CHALLENGER, adapter=_served(candidate)),
            adapters={one.served_name: Path(one.path) for one in (baseline, candidate) if one},
            evidence={**known, "champion_version": champion.version},
        )

    def subjects(self, session: Session, row: ExperimentRow) -> Mapping[str, str]:
        """The arms' adapters; an adapter's name is made of its content."""
        return {arm["variant"]["name"]: arm["variant"]["adapter"] or BASE for arm in row.arms}

    def served(self, session: Session, name: str, version: str | None) -> str | None:
        """The version's adapter."""
        return served_name_of(session, name, version)

    def called(self, name: str, version: str) -> str:
        """As MLflow's registry has it."""
        return f"model_version {name}/{version}"

    def moves_of(self, session: Session, experiment_id: str) -> Sequence[str]:
        """Promotions and rollbacks."""
        query = select(PromotionRow.promotion_id)
        return session.scalars(query.where(PromotionRow.experiment_id == experiment_id)).all()

    def give_all_traffic(self, session: Session) -> None:
        """One arm with the champion's adapter."""
        champion = champion_of(session, self.alias)
        adapter = served_name_of(session, champion.name_or(self.alias), champion.version)
        give_all_traffic(session, self.alias, adapter)

    def move(self, session: Session, move: Move) -> None:
        """A promotion or rollback; MLflow's aliases follow."""
        move_champion(session, move)


def _served(row: ModelVersionRow | None) -> str | None:
    return None if row is None else row.served_name
