"""Golden cases: what a prompt is asked in an evaluation, and what is known of the right answers.

A file in `evals/golden` has one JSON object a line:

    {"case_id", "variables", "expected"?, "reference"?, "retrieved_contexts"?, "schema"?, "tags"?}

It has variables and no messages, so every version of a prompt can be asked it: `case_for` renders
it by the version that is judged. (An older form has `messages`; the last one of the user is then
the prompt's variable for `user_input`.) A broken line is an error that names file and line.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import orjson

from evals.cases import CasesUnreadable
from evals.records import Case
from prompts.prompt import BadVariables, Prompt
from prompts.template import RenderFailed

GOLDEN = Path(__file__).parent / "golden"
Known = Mapping[str, Any]


class CaseRefused(ValueError):
    """A case that does not belong into the file; the message says why."""


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One golden case; see `Case` for what is known of its answer. `where` is its file and line."""

    case_id: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    expected: Any = None
    reference: str | None = None
    retrieved_contexts: tuple[str, ...] | None = None
    schema: Mapping[str, Any] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    def row(self) -> dict[str, Any]:
        """As a line of a file has it; what is not known is left out. No contexts are known."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "where"}
        return {
            name: value
            for name, value in given.items()
            if value is not None and (value or name not in ("variables", "messages", "tags"))
        }


KEYS = frozenset(one.name for one in fields(GoldenCase)) - {"where"}


def load_golden(path: Path) -> list[GoldenCase]:
    """The cases in the file at `path`, in order.

    Raises: CasesUnreadable with the file and the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CasesUnreadable(f"{path}: no file of cases that can be read ({error})") from error
    found: dict[str, GoldenCase] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            case = _golden(line, f"{path}:{number}")
            if case.case_id in found:
                raise CasesUnreadable(f"{case.where}: the id {case.case_id!r} is there twice")
            found[case.case_id] = case
    if not found:
        raise CasesUnreadable(f"{path}: no case in it")
    return list(found.values())


def golden_path(name: str) -> Path:
    """Where a file of cases lies: a name in `evals/golden`, or a path."""
    packaged = GOLDEN / name
    return packaged if packaged.exists() else Path(name)


def add_golden(path: Path, case: GoldenCase, prompt: Prompt) -> GoldenCase:
    """Append a case of the prompt to a file, whole or not at all, in the form of those there; the
    file is made if there is none. Returns the case as it was written.

    Raises: CasesUnreadable where the file has a broken line; CaseRefused where it has the case, or
        one that asks the same, or where all others say what is expected.
    """
    with _alone_in(path.parent):
        return _added(path, case, prompt)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Whoever else adds a case to a file there waits: each writes the whole file anew."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _added(path: Path, case: GoldenCase, prompt: Prompt) -> GoldenCase:
    known = load_golden(path) if path.exists() and path.stat().st_size else []
    case = _as_those(known, case, prompt)
    for one in known:
        if one.case_id == case.case_id:
            raise CaseRefused(f"{one.where}: the case {case.case_id} is there already")
        if (one.variables, one.messages) == (case.variables, case.messages):
            raise CaseRefused(f"{one.where}: {one.case_id} asks the same already")
    if known and case.expected is None and all(one.expected is not None for one in known):
        raise CaseRefused(f"{path}: every case there says what is expected; say it with --expected")
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(before + orjson.dumps(case.row()) + b"\n")
        if path.exists():
            fresh.chmod(path.stat().st_mode)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return case


def case_for(prompt: Prompt, golden: GoldenCase) -> Case:
    """The case as this version of the prompt asks it.

    Raises: BadVariables or RenderFailed where it cannot be rendered by this version.
    """
    variables = golden.variables or _from_messages(prompt, golden)
    known = told(prompt, prompt.complete(variables), golden.row())
    return Case(
        case_id=golden.case_id,
        messages=tuple(prompt.render(variables)),
        expected=golden.expected,
        tags=golden.tags,
        user_input=known.get("user_input"),
        retrieved_contexts=known.get("retrieved_contexts"),
        reference=known.get("reference"),
        schema=golden.schema if golden.schema is not None else schema_of(prompt),
    )


def check_golden(prompt: Prompt, golden: Sequence[GoldenCase]) -> None:
    """Raises CasesUnreadable, with file and line, for a case that the prompt cannot be rendered
    with."""
    for one in golden:
        try:
            case_for(prompt, one)
        except (BadVariables, RenderFailed) as error:
            raise CasesUnreadable(f"{one.where}: {error}") from error


def told(prompt: Prompt, variables: Mapping[str, Any], given: Known) -> dict[str, Any]:
    """What metrics need, as far as it is known: what is given for it, else the variable that the
    prompt's `evaluation.fields` name."""
    found: dict[str, Any] = {}
    for name in ("user_input", "retrieved_contexts", "reference"):
        variable = prompt.evaluation.fields.get(name)
        value = given.get(name)
        if value is None and variable is not None:
            value = variables.get(variable)
        if value is not None:
            found[name] = texts_of(value) if name == "retrieved_contexts" else _text(value)
    return found


def texts_of(value: Any) -> tuple[str, ...]:
    """The texts of contexts: a list of texts, or of objects with one, or one text."""
    if not isinstance(value, list | tuple):
        return (_text(value),)
    return tuple(
        _text(one["text"] if isinstance(one, Mapping) and "text" in one else one) for one in value
    )


def schema_of(prompt: Prompt) -> Mapping[str, Any] | None:
    """The JSON Schema that the prompt's parameters hold the model to."""
    for name, way in (
        ("response_format", ("json_schema", "schema")),
        ("structured_outputs", ("json",)),
    ):
        value: Any = prompt.params.get(name)
        for step in way:
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            return value
    return None


def _as_those(known: Sequence[GoldenCase], case: GoldenCase, prompt: Prompt) -> GoldenCase:
    """The case with rendered messages, where the file has no variables."""
    if not known or any(one.variables for one in known):
        return case
    return replace(case, messages=tuple(prompt.render(case.variables)), variables={})


def _from_messages(prompt: Prompt, golden: GoldenCase) -> Mapping[str, Any]:
    variable = prompt.evaluation.fields.get("user_input")
    asked = [one.get("content") for one in golden.messages if one.get("role") == "user"]
    return {variable: asked[-1]} if variable and asked else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _golden(line: bytes, where: str) -> GoldenCase:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CasesUnreadable(f"{where}: not JSON ({error})") from error
    wrong = _wrong(row) if isinstance(row, dict) else "not a JSON object"
    if wrong is not None:
        raise CasesUnreadable(f"{where}: {wrong}")
    contexts = row.get("retrieved_contexts")
    more = {
        "messages": tuple(row.get("messages", ())),
        "retrieved_contexts": None if contexts is None else tuple(contexts),
    }
    return GoldenCase(**{**row, **more}, where=where)


def _wrong(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a line; None if it is a case."""
    if unknown := sorted(row.keys() - KEYS):
        return f"{', '.join(unknown)}: no such key (there are: {', '.join(sorted(KEYS))})"
    if "case_id" not in row:
        return "without case_id"
    if not row.get("variables") and not row.get("messages"):
        return "without variables"
    for name, (fits, wanted) in _FORMS.items():
        if name in row and not fits(row[name]):
            return f"{name}: {wanted} is wanted"
    return None


def _all(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _filled(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and bool(value)


_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "case_id": (_filled(str), "a text that is not empty"),
    "variables": (_filled(dict), "an object that is not empty"),
    "messages": (_all(dict), "a list of objects"),
    "reference": (_filled(str), "a text that is not empty"),
    "retrieved_contexts": (_all(str), "a list of texts"),
    "schema": (_filled(dict), "an object that is not empty"),
    "tags": (lambda value: isinstance(value, dict), "an object"),
}
