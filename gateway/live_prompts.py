"""A worker's prompts in memory: picked and rendered without the database, renewed when the version
counter moves. With the database or MLflow away the last good versions go on."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway import wire
from gateway.database import Database, current_version
from gateway.errors import BadRequest, NotFound
from gateway.key_ring import NEVER
from gateway.prompt_versions import PRODUCTION, PromptLabelRow, PromptVersionRow
from prompts.prompt import BadVariables, Prompt
from prompts.template import RenderFailed

NAME_CHARACTERS = 100
_log = logging.getLogger(__name__)

Versions = Mapping[tuple[str, str], Prompt]  # by name and version
Labels = Mapping[tuple[str, str], str]  # version by name and label


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """What a request says of its prompt, checked."""

    name: str
    version: str | None
    label: str | None
    variables: Mapping[str, Any]

    @property
    def follows_production(self) -> bool:
        """Whether it takes what `production` names: only then does an experiment concern it."""
        return self.version is None and self.label in (None, PRODUCTION)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The prompt that a request resolved to."""

    prompt: Prompt
    version: str


class LivePrompts:
    """Every prompt, for one worker. `load` it before it is asked."""

    def __init__(self, database: Database):
        self.seen = NEVER
        self._database = database
        self._versions: Versions = {}
        self._labels: Labels = {}

    def load(self) -> None:
        """Read what changed since the last time; all of it, the first time."""
        with self._database.session() as session:
            version = current_version(session)
            if version < self.seen:  # the database was restored from an older copy
                self._versions, self.seen = {}, NEVER
            fresh = self._fresh(session)
            labels = {
                (row.name, row.label): row.version
                for row in session.scalars(select(PromptLabelRow))
            }
        self._versions = {**self._versions, **fresh}
        self._labels = labels
        self.seen = version

    def resolve(self, asked: PromptRequest, version: str | None = None) -> Resolved:
        """The prompt that a request gets; `version`: an experiment's choice, if there is one.

        Raises:
            NotFound: no such prompt, version or label.
        """
        label = asked.label or PRODUCTION
        wanted = asked.version or version or self._labels.get((asked.name, label))
        found = None if wanted is None else self._versions.get((asked.name, wanted))
        if wanted is not None and found is not None:
            return Resolved(found, wanted)
        if not any(name == asked.name for name, _ in self._versions):
            raise NotFound(
                f"There is no prompt {asked.name!r}.", param="prompt_id", code="prompt_not_found"
            )
        what = f"version {wanted!r}" if asked.version else f"label {label!r}"
        known = ", ".join(label for name, label in self._labels if name == asked.name) or "none"
        raise NotFound(
            f"The prompt {asked.name!r} has no {what} (labels: {known}).",
            param="prompt_version" if asked.version else "prompt_label",
            code="prompt_not_found",
        )

    def _fresh(self, session: Session) -> dict[tuple[str, str], Prompt]:
        fresh: dict[tuple[str, str], Prompt] = {}
        query = select(PromptVersionRow).where(PromptVersionRow.changed > self.seen)
        for row in session.scalars(query):
            try:
                fresh[row.name, row.version] = row.prompt
            except ValueError as error:  # it must not keep the others from being served
                _log.error("prompt %s version %s is damaged: %s", row.name, row.version, error)
        return fresh


def prompt_request(body: Mapping[str, Any]) -> PromptRequest | None:
    """The prompt fields of a body; None if it has none.

    Raises:
        BadRequest: they are not of their types, or exclude each other.
    """
    if not any(body.get(field) is not None for field in wire.PROMPT):
        return None
    name = body.get("prompt_id")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS:
        raise BadRequest("'prompt_id' must be the name of a prompt.", param="prompt_id")
    version, label = body.get("prompt_version"), body.get("prompt_label")
    if type(version) is int:
        version = str(version)
    for field, value in (("prompt_version", version), ("prompt_label", label)):
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= NAME_CHARACTERS):
            raise BadRequest(f"'{field}' must be a short string.", param=field)
    if version is not None and label is not None:
        raise BadRequest(
            "'prompt_version' and 'prompt_label' exclude each other.", param="prompt_label"
        )
    variables = body.get("prompt_variables")
    if not isinstance(variables, dict | None):
        raise BadRequest("'prompt_variables' must be an object.", param="prompt_variables")
    return PromptRequest(name, version, label, variables or {})


async def prompted(
    body: Mapping[str, Any], asked: PromptRequest, resolved: Resolved
) -> dict[str, Any]:
    """The request's body with the prompt in it: its messages before the caller's own, its model and
    parameters where the caller has none. Rendered off the event loop; the time is bounded there.

    Raises:
        BadRequest: variables are missing, unknown or unfit.
    """
    prompt = resolved.prompt
    try:
        rendered = await asyncio.to_thread(prompt.render, asked.variables)
    except (BadVariables, RenderFailed) as error:
        raise BadRequest(
            f"'prompt_variables': {error}.", param="prompt_variables", code="prompt_variables"
        ) from error
    own = body.get("messages")
    messages = [*rendered, *own] if isinstance(own, list) else rendered
    return wire.overlaid({"model": prompt.model, **prompt.params}, {**body, "messages": messages})
