"""A prompt: what its file says, rendered into messages, and the hash that stands for it.

Invariant: `content_hash` covers all that an answer depends on (messages, variables, model,
parameters) and nothing else: another description or gate is the same prompt, judged otherwise.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from prompts.template import BadTemplate, RenderFailed, Template

NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
HELD_BACK = frozenset(("model", "messages", "stream", "stream_options", "user"))
KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}

PromptName = Annotated[str, Field(pattern=NAME, max_length=100)]


class BadVariables(ValueError):
    """Variables that a prompt cannot be rendered with; the message names each of them."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variable(_Strict):
    """A variable of the template.

    Attributes:
        type: of its value, in JSON's words.
        required: whether the caller must give it; one that is not has a `default`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z_][a-zA-Z0-9_]*$", max_length=64)]
    type: Literal["string", "number", "integer", "boolean", "list", "object"] = "string"
    required: bool = True
    default: Any = None
    description: str = ""

    @model_validator(mode="after")
    def _default_fits(self) -> "Variable":
        if self.required and self.default is not None:
            raise ValueError("default: a required variable has none; say required: false")
        if not self.required and self.default is not None and not self.fits(self.default):
            raise ValueError(f"default: {self.default!r} is no {self.type}")
        return self

    def fits(self, value: Any) -> bool:
        """Whether `value` is of the type."""
        if isinstance(value, bool):
            return self.type == "boolean"
        return isinstance(value, KINDS[self.type])


class Message(_Strict):
    """A message of the conversation; its content is a template."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Evaluation(_Strict):
    """How a prompt is judged.

    Attributes:
        cases: file of golden cases in `evals/golden`.
        metrics: names of scorers.
        gate: conditions, as in a model's spec; checked where they are used.
        fields: which variable is what to a metric, as in `{user_input: question}`.
        seeds: how often each case is asked, with seeds 0, 1, …; the mean counts.
    """

    cases: str | None = None
    metrics: tuple[str, ...] = ()
    gate: tuple[dict[str, Any], ...] = ()
    fields: dict[str, str] = {}
    seeds: int = Field(1, ge=1, le=20)


class Prompt(_Strict):
    """One prompt, as its file says.

    Attributes:
        messages: the conversation; or
        template: one user message.
        model: the alias that answers, unless the caller names another.
        params: fields of the request's body, unless the caller sets them.
    """

    name: PromptName
    description: str = ""
    messages: tuple[Message, ...] = ()
    template: str | None = None
    variables: tuple[Variable, ...] = ()
    model: str
    params: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()

    _templates: tuple[tuple[str, Template], ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _whole(self) -> "Prompt":
        if bool(self.messages) == (self.template is not None):
            raise ValueError("either messages or template, and not both")
        names = [one.name for one in self.variables]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"variables: {', '.join(twice)}: declared twice")
        held = sorted(HELD_BACK & self.params.keys())
        if held:
            raise ValueError(f"params: {', '.join(held)}: not for a prompt to set")
        unknown = sorted(set(self.evaluation.fields.values()) - set(names))
        if unknown:
            raise ValueError(f"evaluation.fields: {', '.join(unknown)}: no such variable")
        self._templates = tuple(self._parsed(set(names)))
        return self

    def _parsed(self, declared: set[str]) -> Any:
        for number, message in enumerate(self._conversation):
            where = "template" if self.template is not None else f"messages.{number}.content"
            try:
                parsed = Template.parse(message.content)
            except BadTemplate as error:
                raise ValueError(f"{where}: line {error.line} of it: {error}") from error
            undeclared = sorted(parsed.names - declared)
            if undeclared:
                raise ValueError(f"{where}: {', '.join(undeclared)}: not among the variables")
            yield message.role, parsed

    @property
    def _conversation(self) -> tuple[Message, ...]:
        if self.template is not None:
            return (Message(role="user", content=self.template),)
        return self.messages

    @cached_property
    def content(self) -> dict[str, Any]:
        """What an answer depends on, as plain values."""
        return {
            "messages": [message.model_dump() for message in self._conversation],
            "variables": [
                one.model_dump(include={"name", "type", "required", "default"})
                for one in self.variables
            ],
            "model": self.model,
            "params": self.params,
        }

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the content, hex."""
        canonical = json.dumps(
            {"name": self.name, **self.content},
            sort_keys=True, separators=(",", ":"), ensure_ascii=False,
        )  # fmt: skip
        return hashlib.sha256(canonical.encode()).hexdigest()

    def render(self, given: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages, with `given` as the variables.

        Raises:
            BadVariables: some are missing, unknown or of another type.
            RenderFailed: the template ends in an error, or is too large with them.
        """
        values = self.complete(given)
        rendered = []
        for role, template in self._templates:
            try:
                rendered.append({"role": role, "content": template.render(values)})
            except RenderFailed as error:
                raise RenderFailed(f"prompt {self.name}, {role} message: {error}") from error
        return rendered

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with defaults filled in. Raises BadVariables."""
        declared = {one.name: one for one in self.variables}
        problems = [f"{name}: unknown" for name in sorted(given.keys() - declared.keys())]
        values: dict[str, Any] = {}
        for name, variable in declared.items():
            if name in given:
                values[name] = given[name]
                if not variable.fits(given[name]):
                    problems.append(f"{name}: must be of type {variable.type}")
            elif variable.required:
                problems.append(f"{name}: missing")
            elif variable.default is not None:
                values[name] = variable.default
        if problems:
            known = ", ".join(declared) or "none"
            raise BadVariables(f"{'; '.join(problems)} (prompt {self.name} has: {known})")
        return values
