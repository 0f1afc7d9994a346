"""A folder of prompt files, one prompt a file, named as the file is. Git is the truth of it.

Mistakes are named with file and line, all of them at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prompts.prompt import Prompt

LIBRARY = Path(__file__).parent / "library"
LONGEST_FILE = 512 * 1024


class BadPromptFile(ValueError):
    """A prompt file with mistakes; the message has a line `FILE:LINE: what` for each."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that stands twice in one mapping: the first would be lost."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    for key, _ in node.value:
        if keys.count(key.value) > 1:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_library(folder: Path = LIBRARY) -> Mapping[str, Prompt]:
    """Every prompt of the folder by its name. Raises BadPromptFile with all mistakes."""
    files = sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))
    return parse_library((path.name, path.read_bytes()) for path in files)


def parse_library(files: Iterable[tuple[str, bytes]]) -> Mapping[str, Prompt]:
    """The prompts in files given by name and content. Raises BadPromptFile."""
    found: dict[str, Prompt] = {}
    origins: dict[str, str] = {}
    mistakes: list[str] = []
    for name, content in files:
        try:
            prompt = parse_prompt(content, name)
        except BadPromptFile as error:
            mistakes.append(str(error))
            continue
        if prompt.name in found:
            mistakes.append(f"{name}:1: name: {prompt.name} is in {origins[prompt.name]} already")
        found[prompt.name], origins[prompt.name] = prompt, name
    if mistakes:
        raise BadPromptFile("\n".join(mistakes))
    return found


def load_prompt(path: Path) -> Prompt:
    """The prompt in the file at `path`. Raises BadPromptFile; OSError where it is not there."""
    return parse_prompt(path.read_bytes(), str(path))


def parse_prompt(content: bytes, origin: str) -> Prompt:
    """The prompt in a file's bytes; `origin` is what messages call it. Raises BadPromptFile."""
    if len(content) > LONGEST_FILE:
        raise BadPromptFile(f"{origin}:1: longer than {LONGEST_FILE} bytes")
    try:
        text = content.decode()
        tree = yaml.compose(text, Loader=_Loader)
        raw = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise BadPromptFile(f"{origin}:1: not UTF-8: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise BadPromptFile(f"{origin}:{line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadPromptFile(f"{origin}:1: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise BadPromptFile(f"{origin}:1: not a prompt: a mapping with name and messages is wanted")
    try:
        return Prompt.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = ".".join(map(str, item["loc"])) or "prompt"
            said = item["msg"].removeprefix("Value error, ")
            lines.append(f"{origin}:{_line(tree, item['loc'])}: {path}: {said}")
        raise BadPromptFile("\n".join(lines)) from error


def _line(node: Any, place: Sequence[str | int]) -> int:
    """Line of the deepest part of `place` that is in the file, from 1."""
    line = node.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1
