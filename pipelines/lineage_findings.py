"""What the lineage check looks at and what it finds: links, each ok, erased or broken."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from gateway.database import Database
from gateway.errors import NotFound
from gateway.request_log import LogReader
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_mlflow import MLflowFacts
from pipelines.mlflow_api import MLflowAway

BROKEN_SHOWN = 50
RESTORE = "restore the state database from a copy"
DISAGREE = "find out which of the two was changed, and put it back"


class LinkState(StrEnum):
    """`erased`: it is gone because a person was forgotten, or by the configured age: no fault."""

    OK = "ok"
    ERASED = "erased"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the chain.

    Attributes:
        of: the thing that it is a link of, such as `model_version extractor/3`.
        to: what it leads to, such as `training 4f2a…`.
        found: what was found; where it is broken, what is wrong and what to do.
    """

    of: str
    to: str
    state: LinkState
    found: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All links of the chains that were asked for, in the order of the chain, last things first.

    `versions` are the model versions whose chains these are.
    """

    versions: tuple[str, ...]
    links: tuple[Link, ...]

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that do not hold."""
        return tuple(link for link in self.links if link.state is LinkState.BROKEN)

    @property
    def whole(self) -> bool:
        """Whether all hold."""
        return not self.broken

    @property
    def summary(self) -> str:
        """One line for people."""
        chains = ", ".join(self.versions) or "no model version"
        erased = sum(link.state is LinkState.ERASED for link in self.links)
        gaps = f", {erased} erased by order" if erased else ""
        if self.whole:
            return f"{chains}: {len(self.links)} links, all there{gaps}"
        return f"{chains}: {len(self.broken)} of {len(self.links)} links are broken{gaps}"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the check looks.

    Attributes:
        fetch: fetches a data set's files, given model name and data set id, into a folder; raises
            RuntimeError where they are gone. None: files are not looked at.
        retain_days: age at which the log forgets requests, if it does.
    """

    database: Database
    reader: LogReader
    mlflow: MLflowFacts
    fetch: Callable[[str, str], Path] | None = None
    retain_days: int | None = None


@dataclass(slots=True)
class Findings:
    """Links as they are found; the same link is told once."""

    links: dict[tuple[str, str], Link] = field(default_factory=dict)

    def ok(self, of: str, to: str, found: str = "") -> None:
        """It holds."""
        self._add(Link(of, to, LinkState.OK, found))

    def erased(self, of: str, to: str, found: str) -> None:
        """It was cut by order."""
        self._add(Link(of, to, LinkState.ERASED, found))

    def broken(self, of: str, to: str, found: str) -> None:
        """It does not hold."""
        self._add(Link(of, to, LinkState.BROKEN, found))

    def judged(
        self, of: str, to: str, problems: Sequence[str], found: str = "", cure: str = RESTORE
    ) -> None:
        """Broken if there is a problem, with what to do; else ok."""
        if problems:
            self.broken(of, to, "; ".join([*problems, cure]))
        else:
            self.ok(of, to, found)

    def several(self, of: str, to: str, missing: Sequence[str], found: str) -> None:
        """Many links of one kind: one line if all hold, else a line for each that does not."""
        for one in missing[:BROKEN_SHOWN]:
            self.broken(of, f"{to} {one}", found)
        if len(missing) > BROKEN_SHOWN:
            rest = len(missing) - BROKEN_SHOWN
            self.broken(of, f"{to} …", f"{rest} more like these")

    def seen(self, of: str, to: str) -> bool:
        """Whether this link was looked at before."""
        return (of, to) in self.links

    def has_erased(self, of: str) -> bool:
        """Whether anything of it was cut by order."""
        links = self.links.values()
        return any(link.of == of and link.state is LinkState.ERASED for link in links)

    @contextmanager
    def asking_mlflow(self) -> Iterator[None]:
        """MLflow being away is one broken link, and ends the block."""
        try:
            yield
        except MLflowAway as error:
            found = f"cannot be checked: {error}; bring MLflow back, then check again"
            self.broken("registry", "MLflow", found)

    @contextmanager
    def reading(self, of: str) -> Iterator[None]:
        """A row that cannot be understood is one broken link, and ends the block."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, NotFound) as error:
            self.broken(of, "its row", f"cannot be read ({error!r}); {RESTORE}")

    def _add(self, link: Link) -> None:
        self.links.setdefault((link.of, link.to), link)


@dataclass(frozen=True, slots=True)
class Origins:
    """What the check of a version's origins works with."""

    sources: Sources
    session: Session
    findings: Findings
    excuses: Excuses


def differences(expected: Mapping[str, str | None], found: Mapping[str, Any]) -> list[str]:
    """A sentence for each name whose value is not what was expected; None and empty are equal."""
    return [
        f"{name} is {found.get(name) or 'missing'} there, {wanted or 'none'} here"
        for name, wanted in expected.items()
        if (found.get(name) or None) != (wanted or None)
    ]
