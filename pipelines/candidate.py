"""A candidate: a model version that may get traffic, because it is known where it came from."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from evals.records import Decision
from evals.verdicts import find_verdict
from gateway.database import Conflict
from gateway.errors import NotFound
from pipelines.champion import find_version
from pipelines.tables import DatasetRow, ModelVersionRow, TrainingRow


def require_candidate(
    session: Session, name: str, version: str, unjudged: str | None
) -> ModelVersionRow:
    """The row of a version whose lineage is complete.

    Args:
        unjudged: why one without a passing verdict may have traffic all the same.

    Raises:
        NotFound: there is no such version.
        Conflict: something is missing; the message lists it.
    """
    row = find_version(session, name, version)
    if row is None:
        raise NotFound(
            f"{name} has no version {version!r} that was registered by this installation",
            param="version",
        )
    gaps = _gaps(session, row, (unjudged or "").strip())
    if gaps:
        raise Conflict(f"{name} version {version} gets no traffic: {'; '.join(gaps)}")
    return row


def lineage_of(session: Session, row: ModelVersionRow) -> Mapping[str, Any]:
    """The ids that a version rests on, for the audit trail."""
    training = session.get(TrainingRow, row.training_id)
    return {
        "version": row.version,
        "adapter": row.served_name,
        "training_id": row.training_id,
        "dataset_id": None if training is None else training.dataset_id,
    }


def _gaps(session: Session, row: ModelVersionRow, unjudged: str) -> list[str]:
    gaps = []
    training = session.get(TrainingRow, row.training_id)
    if training is None:
        gaps.append(f"its training {row.training_id} is not recorded")
    elif session.get(DatasetRow, training.dataset_id) is None:
        gaps.append(f"its data set {training.dataset_id} is not recorded")
    verdict = None if row.verdict_id is None else find_verdict(session, row.verdict_id)
    if not unjudged and verdict is None:
        gaps.append("no verdict on it; evaluate it, or say why it goes unjudged")
    elif not unjudged and verdict is not None and verdict.decision is not Decision.PROMOTE:
        gaps.append(f"the verdict on it is {verdict.decision}: {verdict.reasons[0]}")
    return gaps
