"""Tables of the lifecycle: runs, data sets, trainings, model versions, experiments, promotions;
and of what goes on by itself: scheduled runs, and what verdicts have triggered.

The first hold the chain of ids from a piece of feedback to a moved alias:

    feedback, request ◀─ dataset_example ─▶ dataset ◀─ training ◀─ model_version ◀─ experiment
                                                          run ─▶ (each of these)   promotion ─▶ …
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.database import Base, JsonText, Utc

ONE_UNDER_WAY = text("state = 'running'")
OPEN = text("state = 'open'")


class DatasetRow(Base):
    """A frozen data set. Its id is the first 32 hex digits of its manifest's SHA-256."""

    __tablename__ = "dataset"

    dataset_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    manifest: Mapped[dict[str, Any]] = mapped_column(JsonText)
    created_at: Mapped[datetime] = mapped_column(Utc)


class DatasetExampleRow(Base):
    """One row of a data set: the request and the feedback that it was made from."""

    __tablename__ = "dataset_example"
    __table_args__ = (
        Index("ix_dataset_example_request_id", "request_id"),
        Index("ix_dataset_example_feedback_id", "feedback_id"),
    )

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.dataset_id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    part: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str] = mapped_column(String(36))
    feedback_id: Mapped[str] = mapped_column(String(36))


class TrainingRow(Base):
    """A finished training. `training_id` is the MLflow run's id.

    `served_name` is what the candidate is served by, `digest` that of what it learnt, and `path`
    the folder of its files. `base_model` and `base_digest` are empty where it stands alone.
    """

    __tablename__ = "training"
    __table_args__ = (
        Index("ix_training_dataset_id", "dataset_id"),
        Index("ix_training_served_name", "served_name"),
    )

    training_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    kind: Mapped[str] = mapped_column(String(32))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.dataset_id"))
    base_model: Mapped[str] = mapped_column(String(256))
    base_digest: Mapped[str] = mapped_column(String(64))
    served_name: Mapped[str] = mapped_column(String(128))
    digest: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(Text)
    configuration: Mapped[dict[str, Any]] = mapped_column(JsonText)
    metrics: Mapped[dict[str, Any]] = mapped_column(JsonText)
    git_sha: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Utc)


class ModelVersionRow(Base):
    """A version in MLflow's registry, and what it was made of and judged by.

    `served_name` is never another version's content; `path` is the folder that it is served from.
    `verdict_id` is None only for one that was registered with `unjudged` said aloud.
    """

    __tablename__ = "model_version"
    __table_args__ = (Index("ix_model_version_served_name", "served_name"),)

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[str] = mapped_column(String(16), primary_key=True)
    training_id: Mapped[str] = mapped_column(ForeignKey("training.training_id"))
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdict.verdict_id"))
    served_name: Mapped[str] = mapped_column(String(128))
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)


class RunRow(Base):
    """One pass of the train pipeline; one per model is under way at a time.

    `state`: running, finished, failed, interrupted. `stage` is the one it is in, or ended in.
    """

    __tablename__ = "run"
    __table_args__ = (
        Index(
            "uq_run_under_way",
            "name",
            unique=True,
            sqlite_where=ONE_UNDER_WAY,
            postgresql_where=ONE_UNDER_WAY,
        ),
    )

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(32))
    message: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(JsonText)
    dataset_id: Mapped[str | None] = mapped_column(String(32))
    training_id: Mapped[str | None] = mapped_column(String(32))
    verdict_id: Mapped[str | None] = mapped_column(String(36))
    version: Mapped[str | None] = mapped_column(String(16))
    git_sha: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class ExperimentRow(Base):
    """An experiment on live traffic; one per alias is under way at a time.

    `state`: running, promoted, held, rolled_back, stopped, or won: the candidate was to be
    promoted, and a person is asked (`approval` is manual). `arms`, `plan` and `approval` are as it
    began; `version` is the candidate's, None where both arms are the same (A/A).
    """

    __tablename__ = "experiment"
    __table_args__ = (
        Index(
            "uq_experiment_under_way",
            "alias",
            unique=True,
            sqlite_where=ONE_UNDER_WAY,
            postgresql_where=ONE_UNDER_WAY,
        ),
        Index("ix_experiment_model_version", "name", "version"),
    )

    experiment_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    alias: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[str | None] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JsonText)
    plan: Mapped[dict[str, Any]] = mapped_column(JsonText)
    approval: Mapped[str] = mapped_column(String(16), server_default="automatic")
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdict.verdict_id"))
    message: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class PromotionRow(Base):
    """A move of a model's champion, forwards (`promote`) or back (`rollback`).

    The traffic moves in this row's own transaction; `state` is `moving` until MLflow's aliases
    have followed, then `done`. A version of None is the plain base model.
    """

    __tablename__ = "promotion"
    __table_args__ = (Index("ix_promotion_name", "name"),)

    promotion_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    alias: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    from_version: Mapped[str | None] = mapped_column(String(16))
    to_version: Mapped[str | None] = mapped_column(String(16))
    experiment_id: Mapped[str | None] = mapped_column(ForeignKey("experiment.experiment_id"))
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdict.verdict_id"))
    actor: Mapped[str] = mapped_column(String(256))
    reason: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Utc)


class ScheduledRunRow(Base):
    """One firing of a job of the schedule; one per job is under way at a time.

    `state`: running, done, failed, interrupted, or refused: the one before was still under way.
    `due_at` is the moment that it was for, `missed` how many moments before it went by unused.
    """

    __tablename__ = "scheduled_run"
    __table_args__ = (
        Index(
            "uq_scheduled_run_under_way",
            "job",
            unique=True,
            sqlite_where=ONE_UNDER_WAY,
            postgresql_where=ONE_UNDER_WAY,
        ),
        Index("ix_scheduled_run_job_due_at", "job", "due_at"),
    )

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    job: Mapped[str] = mapped_column(String(128))
    command: Mapped[list[str]] = mapped_column(JsonText)
    state: Mapped[str] = mapped_column(String(16))
    due_at: Mapped[datetime] = mapped_column(Utc)
    missed: Mapped[int] = mapped_column(Integer)
    exit_code: Mapped[int | None] = mapped_column(Integer)
    message: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class TriggerEventRow(Base):
    """What a rule made of a verdict, and why. A verdict and a rule make one of each action.

    `action`: trigger or resolve. `state`: pending (to be sent, or sent again), sent, failed, or
    held_back by the rule's cool-down. `verdict_at` is when the verdict was made.
    """

    __tablename__ = "trigger_event"
    __table_args__ = (
        UniqueConstraint("verdict_id", "rule", "action", name="uq_trigger_event_once"),
        Index("ix_trigger_event_rule_subject", "rule", "subject"),
        Index("ix_trigger_event_state", "state"),
    )

    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    verdict_id: Mapped[str] = mapped_column(ForeignKey("verdict.verdict_id"))
    rule: Mapped[str] = mapped_column(String(128))
    subject: Mapped[str] = mapped_column(String(256))
    action: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer)
    answer: Mapped[str | None] = mapped_column(Text)
    verdict_at: Mapped[datetime] = mapped_column(Utc)
    created_at: Mapped[datetime] = mapped_column(Utc)
    next_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class ApprovalRow(Base):
    """A person's leave that a version may become champion, asked for where a spec says
    `approval: manual`; one per alias is open at a time.

    `state`: open, granted, refused, or void: what it was asked for is no longer as it was then.
    `seen` is the alias's last promotion at the time; None: there was none. `promotion_id` is the
    move that it became.
    """

    __tablename__ = "approval"
    __table_args__ = (
        Index(
            "uq_approval_open",
            "alias",
            unique=True,
            sqlite_where=OPEN,
            postgresql_where=OPEN,
        ),
        Index("ix_approval_model_version", "name", "version"),
    )

    approval_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    alias: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    asked_by: Mapped[str] = mapped_column(String(256))
    asked_for: Mapped[str] = mapped_column(Text)
    seen: Mapped[str | None] = mapped_column(String(36))
    experiment_id: Mapped[str | None] = mapped_column(ForeignKey("experiment.experiment_id"))
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdict.verdict_id"))
    decided_by: Mapped[str | None] = mapped_column(String(256))
    reason: Mapped[str | None] = mapped_column(Text)
    promotion_id: Mapped[str | None] = mapped_column(ForeignKey("promotion.promotion_id"))
    created_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)


class RegistryRecordRow(Base):
    """What the Kubeflow Model Registry is to be told: a version was registered, or moved to.

    `record_id` is `name/version` of a registration and the promotion's id of a move, so that
    nothing is in it twice. `kind`: register, promote, rollback. `state`: pending, or sent.
    """

    __tablename__ = "registry_record"
    __table_args__ = (Index("ix_registry_record_state", "state"),)

    record_id: Mapped[str] = mapped_column(String(160), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[str | None] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    answer: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Utc)
    next_at: Mapped[datetime] = mapped_column(Utc)
    ended_at: Mapped[datetime | None] = mapped_column(Utc)
