"""Which models and aliases the lineage check looks at: whatever left any trace of itself.

A row that vanished took its name along, so the audit trail and the splits are asked too.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.audit import AuditRow
from gateway.prompt_versions import PromptVersionRow
from gateway.splits import SplitRow, split_of
from gateway.variants import PROMPT_SPLIT
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow, RunRow

NAMED = (ModelVersionRow, RunRow, ExperimentRow, PromotionRow)
MOVES = ("champion.promote", "champion.rollback")
BEGUN = "experiment.start"


@dataclass(frozen=True, slots=True)
class Told:
    """What an audit row tells of: a promotion or an experiment.

    Attributes:
        name: the registered model; None where the row does not say it.
        adapter: what the model was served by, if the row says it.
    """

    audit_id: str
    table: type[Any]
    identifier: str
    alias: str
    name: str | None
    adapter: str | None


def told(session: Session) -> Iterator[Told]:
    """Every promotion and experiment that the audit trail tells of, oldest first."""
    query = select(AuditRow).where(AuditRow.action.in_((*MOVES, BEGUN))).order_by(AuditRow.id)
    for row in session.scalars(query):
        evidence, after = row.evidence or {}, row.after or {}
        subject = row.subject.partition(":")[2]
        if row.action == BEGUN:
            alias, adapter = str(after.get("alias")), evidence.get("adapter")
            yield Told(row.id, ExperimentRow, subject, alias, None, adapter)
        elif evidence.get("promotion_id"):
            name, adapter = evidence.get("name"), after.get("adapter")
            yield Told(row.id, PromotionRow, evidence["promotion_id"], subject, name, adapter)


def names_in(session: Session) -> list[str]:
    """Registered models that anything is known of."""
    found = {name for table in NAMED for name in session.scalars(select(table.name))}
    found |= {one.name for one in told(session) if one.name is not None}
    return sorted(name for name in found if not name.startswith(PROMPT_SPLIT))


def prompts_in(session: Session) -> list[str]:
    """`prompt:NAME` of every prompt that anything is known of."""
    found = {PROMPT_SPLIT + name for name in session.scalars(select(PromptVersionRow.name))}
    for column in (ExperimentRow.alias, SplitRow.alias, AuditRow.subject):
        query = select(column).where(column.startswith(PROMPT_SPLIT, autoescape=True)).distinct()
        found |= set(session.scalars(query))
    found |= {one.alias for one in told(session) if one.alias.startswith(PROMPT_SPLIT)}
    return sorted(found)


def aliases_of(session: Session, names: Collection[str]) -> list[str]:
    """Aliases whose traffic was moved to versions of these models, or tried on them."""
    found: set[str] = set()
    for table in (PromotionRow, ExperimentRow):
        found |= set(session.scalars(select(table.alias).where(table.name.in_(names))))
    query = select(ModelVersionRow.served_name).where(ModelVersionRow.name.in_(names))
    adapters = set(session.scalars(query))
    found |= {one.alias for one in told(session) if one.name in names or one.adapter in adapters}
    found |= {row.alias for row in session.scalars(select(SplitRow)) if _serves(row, adapters)}
    return sorted(found)


def _serves(row: SplitRow, adapters: Collection[str]) -> bool:
    try:
        return any(arm.variant.adapter in adapters for arm in split_of(row).arms)
    except ValueError:
        return True  # damaged: whoever looks at it will say so
