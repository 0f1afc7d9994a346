"""The lineage check: is every link there, from a registered version to the first feedback, and
from the promotion to the log?

Rows, files, MLflow and the log are compared with each other; none is believed alone. What was
registered is what any of them knows of, so a row that vanished is missed by the others. Nothing is
changed. What an erasure order covers is a gap that is told and is no fault.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.errors import NotFound
from gateway.variants import PROMPT_SPLIT
from pipelines.champion import champion_of
from pipelines.experiment import title_of
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_findings import Findings, Link, LinkState, Origins, Report, Sources
from pipelines.lineage_heard import check_heard
from pipelines.lineage_moves import (
    Answered,
    answered,
    check_aliases,
    check_audit,
    check_experiment,
    check_log,
    check_promotion,
    check_split,
)
from pipelines.lineage_names import aliases_of, names_in, prompts_in
from pipelines.lineage_origin import check_version
from pipelines.lineage_prompts import check_prompt
from pipelines.tables import ExperimentRow, ModelVersionRow, PromotionRow, RunRow

__all__ = ["Link", "LinkState", "Report", "Sources", "check", "check_champion", "check_one"]


def check(sources: Sources, name: str | None = None) -> Report:
    """Check all versions of `name`, or of every registered model and prompt, and all that moved
    traffic. A prompt's name is `prompt:NAME`.

    Raises:
        NotFound: nothing is known of `name`.
        LogUnavailable: the request log cannot be read.
    """
    checking = _Checking.begun(sources, name)
    with sources.database.session() as session:
        models, prompts = names_in(session), prompts_in(session)
        if name is not None and name not in (*models, *prompts):
            raise NotFound(
                f"no model {name!r} was registered by this installation (there are: "
                f"{', '.join((*models, *prompts)) or 'none'})",
                param="name",
            )
        wanted = [one for one in models if name in (None, one)]
        versions = [(one, v) for one in wanted for v in checking.versions(session, one)]
        if wanted or name is None:
            checking.moves(session, wanted, everything=name is None)
        checking.origins(session, versions)
        asked = [one for one in prompts if name in (None, one)]
        versions += checking.prompts(session, asked)
    return checking.report(versions)


def check_one(sources: Sources, name: str, version: str) -> Report:
    """Check one version, and the experiments and promotions that it had part in."""
    checking = _Checking.begun(sources, name)
    with sources.database.session() as session:
        checking.part(session, name, version)
        checking.origins(session, [(name, version)])
    return checking.report([(name, version)])


def check_champion(sources: Sources, name: str) -> Report:
    """Check the versions of `name` that are champion now, each with what made it champion.

    Raises: NotFound if nothing is known of `name`.
    """
    checking = _Checking.begun(sources, name)
    with sources.database.session() as session:
        if name not in names_in(session):
            raise NotFound(f"no model {name!r} was registered by this installation", param="name")
        aliases = aliases_of(session, [name])
        checking.champions(session, [name], aliases)
        answering = [champion_of(session, alias) for alias in aliases]
        found = {one.version for one in answering if one.version and one.name_or(name) == name}
        versions = [(name, version) for version in sorted(found)]
        for _, version in versions:
            checking.part(session, name, version)
        checking.origins(session, versions)
    return checking.report(versions)


@dataclass(frozen=True, slots=True)
class _Checking:
    """A check under way. `log` was read before the state database, which it refers to."""

    sources: Sources
    findings: Findings
    log: Sequence[Answered]

    @classmethod
    def begun(cls, sources: Sources, name: str | None) -> "_Checking":
        aliases = None
        if name is not None:
            with sources.database.session() as session:
                aliases = [name] if name.startswith(PROMPT_SPLIT) else aliases_of(session, [name])
        return cls(sources, Findings(), answered(sources.reader, aliases))

    def versions(self, session: Session, name: str) -> list[str]:
        """All versions that state database or MLflow know of, oldest first."""
        found: set[str | None] = set()
        for table in (ModelVersionRow, RunRow, ExperimentRow):
            query = select(table.version).where(table.name == name)
            found |= set(session.scalars(query))
        for row in session.scalars(select(PromotionRow).where(PromotionRow.name == name)):
            found |= {row.from_version, row.to_version}
        with self.findings.asking_mlflow():
            found |= set(self.sources.mlflow.versions(name))
        return sorted((one for one in found if one), key=lambda one: (len(one), one))

    def moves(self, session: Session, names: Sequence[str], *, everything: bool) -> None:
        """All promotions and experiments of the models, their aliases, and the log.

        With `everything` also what the audit trail and the log alone know of.
        """
        aliases = aliases_of(session, names)
        self.champions(session, names, aliases)
        check_audit(session, self.findings, None if everything else aliases)
        promotions = select(PromotionRow).where(PromotionRow.name.in_(names))
        experiments = select(ExperimentRow).where(ExperimentRow.name.in_(names))
        newest = PromotionRow.promotion_id.desc()
        self._promotions(session, session.scalars(promotions.order_by(newest)))
        latest = ExperimentRow.experiment_id.desc()
        self._experiments(session, session.scalars(experiments.order_by(latest)))
        check_log(session, self.findings, self.log)

    def champions(self, session: Session, names: Sequence[str], aliases: Sequence[str]) -> None:
        """Who answers now: by the promotions, by the splits, by MLflow."""
        for alias in aliases:
            with self.findings.reading(f"model {alias}"):
                check_split(session, self.findings, alias)
        for name in names:
            check_aliases(self.sources, session, self.findings, name)

    def prompts(self, session: Session, aliases: Sequence[str]) -> list[tuple[str, str]]:
        """All versions of prompts, moves of `production` and experiments; the versions."""
        found: list[tuple[str, str]] = []
        for alias in aliases:
            with self.findings.reading(title_of(alias).place):
                found += check_prompt(self.sources, session, self.findings, alias)
            check_audit(session, self.findings, [alias])
            tried = select(ExperimentRow).where(ExperimentRow.alias == alias)
            newest = ExperimentRow.experiment_id.desc()
            self._experiments(session, session.scalars(tried.order_by(newest)))
        return found

    def part(self, session: Session, name: str, version: str) -> None:
        """What a version had part in."""
        moves = select(PromotionRow).where(
            PromotionRow.name == name,
            (PromotionRow.to_version == version) | (PromotionRow.from_version == version),
        )
        tried = select(ExperimentRow).where(
            ExperimentRow.name == name, ExperimentRow.version == version
        )
        check_audit(session, self.findings, aliases_of(session, [name]))
        self._promotions(session, session.scalars(moves))
        self._experiments(session, session.scalars(tried))

    def origins(self, session: Session, versions: Iterable[tuple[str, str]]) -> None:
        """What the versions rest on."""
        excuses = Excuses.known(session, self.sources.retain_days)
        origins = Origins(self.sources, session, self.findings, excuses)
        for name, version in versions:
            with self.findings.reading(f"model_version {name}/{version}"):
                check_version(origins, name, version)

    def report(self, versions: Iterable[tuple[str, str]]) -> Report:
        """What was found."""
        names = tuple(f"{name}/{version}" for name, version in versions)
        return Report(names, tuple(self.findings.links.values()))

    def _promotions(self, session: Session, rows: Iterable[PromotionRow]) -> None:
        for row in rows:
            with self.findings.reading(f"promotion {row.promotion_id}"):
                check_promotion(session, self.findings, row)

    def _experiments(self, session: Session, rows: Iterable[ExperimentRow]) -> None:
        excuses = Excuses.known(session, self.sources.retain_days)
        for row in rows:
            with self.findings.reading(f"experiment {row.experiment_id}"):
                check_experiment(session, self.findings, row, self.log)
                check_heard(self.sources.reader, session, self.findings, row, excuses)
