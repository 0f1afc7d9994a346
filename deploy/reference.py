"""The configuration's reference page, written from the code: `python -m deploy.reference`.

Every key with its type, its default and its meaning, which stands in the section's docstring.
`tests/deploy/test_reference.py` holds the page in `docs/` to what this prints.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from deploy.owned_sections import OWNED
from gateway.configuration import Configuration

HEAD = """# Configuration

One YAML file; secrets come from the environment. An unknown key is refused with its path;
`llmops check FILE` tests a file. Workers take a changed file within a second, without a restart
(addresses, limits, the log and the stack want `llmops down` and `up`); a bad one changes nothing,
and `/health/ready` says what is wrong with it. This page is written by
`python -m deploy.reference > docs/configuration.md`.

## Environment

| variable | meaning |
| --- | --- |
| `LLMOPS_HOME` | folder of all run-time data; `.llmops` |
| `LLMOPS_CONFIG` | this file; `gateway.yaml` in LLMOPS_HOME |
| `LLMOPS_DATABASE_URL` | state database, SQLAlchemy URL; SQLite in LLMOPS_HOME |
| `LLMOPS_KEY_SECRET` | secret under which keys are digested; else a 0600 file, made once |
| `LLMOPS_ADMIN_KEY` | credential of the admin API; else a 0600 file, made once |
| `LLMOPS_ENGINE_PYTHON` | interpreter of vLLM's environment; `.venv-engine/bin/python` |
| what `api_key_env` names | API key of an upstream |
"""
_ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.*?)(?=^    \w[\w, ]*: |\Z)", re.MULTILINE | re.DOTALL)


def page() -> str:
    """The whole page, as Markdown."""
    sections = "\n".join(_section("", Configuration))
    return f"{HEAD}\n{sections}\n" + "\n".join(
        f"## `{name}` ({about})\n" + "\n".join(_section(f"{name}.", kind, heading=False))
        for name, about, kind in OWNED
    )


def _section(prefix: str, model: type[BaseModel], *, heading: bool = True) -> Iterator[str]:
    title = prefix.removesuffix(".") or "the file"
    if heading and prefix:
        yield f"## {f'`{title}`' if prefix else 'The file'}\n"
    if not prefix:
        for name, field in model.model_fields.items():
            child = _model_in(field.annotation)
            if child is not None:
                yield from _section(f"{name}{_step(field.annotation)}.", child)
        return
    about, _, _ = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:")
    yield f"\n{about.strip()}\n"
    meanings = _meanings(model)
    rows, children = [], []
    for name, field in model.model_fields.items():
        child = _model_in(field.annotation)
        if child is not None:
            children.append((f"{prefix}{name}{_step(field.annotation)}.", child))
            continue
        if f"{prefix}{name}" == "stack":  # its keys have a part of their own
            continue
        text = meanings.get(name) or field.description or ""
        is_span = any(isinstance(one, BeforeValidator) for one in field.metadata)
        kind = "time span" if is_span else _type(field.annotation)
        shown = _span(field) if is_span else _default(field)
        rows.append(f"| `{prefix}{name}` | {kind} | {shown} | {text} |")
    if rows:
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
        yield "\n".join(rows) + "\n"
    for path, child in children:
        yield from _section(path, child)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    text = inspect.cleandoc(model.__doc__ or "")
    _, _, listed = text.partition("Attributes:\n")
    found = {}
    for names, meaning in _ATTRIBUTE.findall(listed):
        for name in names.split(", "):
            found[name] = " ".join(meaning.split())
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _step(annotation: Any) -> str:
    return ".NAME" if str(annotation).startswith("dict") else ""


def _type(annotation: Any) -> str:
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    if len(inner) == 1 and type(None) in get_args(annotation):
        return f"{_type(inner[0])} or None"
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    if getattr(annotation, "__origin__", None) is tuple:
        return f"list of {_type(inner[0])}"
    text = str(annotation) if get_args(annotation) else annotation.__name__
    text = re.sub(r"Annotated\[(\w+),.*?\)\]", r"\1", text)
    text = re.sub(r"typing\.|pathlib\.|decimal\.|_local\.", "", text)
    text = re.sub(r"Literal\[(.*?)\]", r"\1", text)
    return text.replace("|", "or").replace("'", "")


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    return f"`{field.default}`" if field.default not in ((), {}) else "empty"


def _span(field: Any) -> str:
    return "required" if field.is_required() else f"`{field.default / 3600:g}h`"


if __name__ == "__main__":
    sys.stdout.write(page())
