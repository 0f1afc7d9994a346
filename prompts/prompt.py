"""A prompt: what its file says, rendered into messages, and the hash that stands for it.

Invariant: `content_hash` covers all that an answer depends on (messages, variables, model,
parameters) and nothing else: another description or gate is the same prompt, judged otherwise.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, model_validator

from prompts.template import BadTemplate, Budget, RenderFailed, Template

NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
HELD_BACK = frozenset(("model", "messages", "stream", "stream_options", "user"))
MESSAGES, VARIABLES = 64, 100  # the most that a prompt has of them
NAMED = 10  # problems that a message names
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
    """Variables that a prompt cannot be rendered with; the message names them."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong in a prompt.

    Attributes:
        place: the way to it: keys and positions.
        line: in the text that is there, from 1; 0 where the place is a key.
    """

    place: tuple[str | int, ...]
    what: str
    line: int = 0

    def __str__(self) -> str:
        line = f"line {self.line} of it: " if self.line else ""
        return f"{'.'.join(map(str, self.place)) or 'prompt'}: {line}{self.what}"


class BadPrompt(ValueError):
    """What is wrong between the parts of a prompt."""

    def __init__(self, mistakes: Sequence[Mistake]):
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(map(str, mistakes)))


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
    default: JsonValue = None
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
    messages: tuple[Message, ...] = Field((), max_length=MESSAGES)
    template: str | None = None
    variables: tuple[Variable, ...] = Field((), max_length=VARIABLES)
    model: str = Field(min_length=1, max_length=256)
    params: dict[str, JsonValue] = {}
    evaluation: Evaluation = Evaluation()

    _templates: tuple[tuple[str, Template], ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _whole(self) -> "Prompt":
        mistakes = list(self._mistakes())
        templates = []
        for number, message in enumerate(self._conversation):
            text = ("messages", number, "content") if self.template is None else ("template",)
            try:
                parsed = Template.parse(message.content)
            except BadTemplate as error:
                mistakes.append(Mistake(text, str(error), error.line))
                continue
            templates.append((message.role, parsed))
            mistakes += self._undeclared(text, parsed)
        if mistakes:
            raise BadPrompt(mistakes)
        self._templates = tuple(templates)
        return self

    def _mistakes(self) -> Iterator[Mistake]:
        if bool(self.messages) == (self.template is not None):
            yield Mistake((), "either messages or template, and not both")
        names = [one.name for one in self.variables]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield Mistake(("variables", number, "name"), f"{name}: declared twice")
        for name in sorted(HELD_BACK & self.params.keys()):
            yield Mistake(("params", name), "not for a prompt to set")
        for field, name in self.evaluation.fields.items():
            if name not in names:
                yield Mistake(("evaluation", "fields", field), f"{name}: no such variable")
        defaults: list[tuple[str | int, ...]]
        defaults = [("variables", number, "default") for number in range(len(names))]
        values = [self.params, *(one.default for one in self.variables)]
        for place, value in zip([("params",), *defaults], values, strict=True):
            try:
                _canonical(value)
            except ValueError as error:
                yield Mistake(place, str(error))

    def _undeclared(self, place: tuple[str | int, ...], parsed: Template) -> Iterator[Mistake]:
        declared = {one.name for one in self.variables}
        for name, line in parsed.names.items():
            if name not in declared:
                yield Mistake(place, f"{name}: not among the variables", line)

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
                for one in sorted(self.variables, key=lambda one: one.name)
            ],
            "model": self.model,
            "params": self.params,
        }

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the content, hex."""
        return hashlib.sha256(_canonical({"name": self.name, **self.content})).hexdigest()

    def render(self, given: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages, with `given` as the variables.

        Raises:
            BadVariables: some are missing, unknown or of another type.
            RenderFailed: the template ends in an error, or is too large with them.
        """
        values, budget = self.complete(given), Budget()
        rendered = []
        for role, template in self._templates:
            try:
                rendered.append({"role": role, "content": template.render(values, budget)})
            except RenderFailed as error:
                raise RenderFailed(f"prompt {self.name}, {role} message: {error}") from error
        return rendered

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with defaults filled in. Raises BadVariables."""
        declared = {one.name: one for one in self.variables}
        problems = [f"{name[:64]}: unknown" for name in sorted(given.keys() - declared.keys())]
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
            known, more = ", ".join(declared) or "none", len(problems) - NAMED
            said = "; ".join(problems[:NAMED]) + (f"; and {more} more" if more > 0 else "")
            raise BadVariables(f"{said} (prompt {self.name} has: {known})")
        return values


def _canonical(value: Any) -> bytes:
    """JSON of `value`, the same bytes for equal values. ValueError where it has none."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
