"""A folder of prompt files, one prompt a file, named as the file is. Git is the truth of it.

Mistakes are named with file and line, all of them at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prompts.prompt import BadPrompt, Mistake, Prompt

Check = Callable[[Prompt], Iterable[Mistake]]
LIBRARY = Path(__file__).parent / "library"
LONGEST_FILE = 256 * 1024


class BadPromptFile(ValueError):
    """A prompt file with mistakes; the message has a line `FILE:LINE: what` for each."""


class _Loader(yaml.SafeLoader):
    """YAML without anchors, which can make a small file a huge value, and that refuses a key that
    stands twice in one mapping: the first would be lost. A date is text, as in JSON."""

    yaml_implicit_resolvers = {
        letter: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not taken", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_library(folder: Path = LIBRARY, check: Check | None = None) -> Mapping[str, Prompt]:
    """Every prompt of the folder by its name; `check` may find further mistakes.

    Raises: BadPromptFile with all mistakes; OSError where the folder or a file cannot be read.
    """
    names = (path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    return parse_library(((str(path), path.read_bytes()) for path in sorted(names)), check)


def parse_library(
    files: Iterable[tuple[str, bytes]], check: Check | None = None
) -> Mapping[str, Prompt]:
    """The prompts in files given by path and content. Raises BadPromptFile."""
    found: dict[str, Prompt] = {}
    origins: dict[str, str] = {}
    mistakes: list[str] = []
    for path, content in files:
        try:
            prompt, tree = _parsed(content, path)
        except BadPromptFile as error:
            mistakes.append(str(error))
            continue
        found_here = () if check is None else check(prompt)
        mistakes += [f"{path}:{line}" for line in _placed(found_here, tree)]
        where = f"{path}:{_line(tree, ('name',))}: name: {prompt.name}"
        if prompt.name in found:
            mistakes.append(f"{where} is in {origins[prompt.name]} already")
        elif PurePath(path).stem != prompt.name:
            mistakes.append(f"{where}: the file of a prompt has its name, {prompt.name}.yaml")
        found[prompt.name], origins[prompt.name] = prompt, path
    if mistakes:
        raise BadPromptFile("\n".join(mistakes))
    return found


def load_prompt(path: Path) -> Prompt:
    """The prompt in the file at `path`. Raises BadPromptFile; OSError where it is not there."""
    return parse_prompt(path.read_bytes(), str(path))


def parse_prompt(content: bytes, origin: str) -> Prompt:
    """The prompt in a file's bytes; `origin` is what messages call it. Raises BadPromptFile."""
    return _parsed(content, origin)[0]


def _parsed(content: bytes, origin: str) -> tuple[Prompt, yaml.Node]:
    tree, raw = _read(content, origin)
    if tree is None or not isinstance(raw, dict):
        raise BadPromptFile(f"{origin}:1: not a prompt: a mapping with name and messages is wanted")
    try:
        return Prompt.model_validate(raw), tree
    except ValidationError as error:
        said = [line for item in error.errors() for line in _said(item, tree)]
        raise BadPromptFile("\n".join(f"{origin}:{line}" for line in said)) from error


def _read(content: bytes, origin: str) -> tuple[yaml.Node | None, Any]:
    """A file as YAML: its nodes, which know their lines, and its value."""
    if len(content) > LONGEST_FILE:
        raise BadPromptFile(f"{origin}:1: longer than {LONGEST_FILE} bytes")
    try:
        text = content.decode()
        loader = _Loader(text)
        tree = loader.get_single_node()
        return tree, None if tree is None else loader.construct_document(tree)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadPromptFile(f"{origin}:{line}: not UTF-8: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadPromptFile(f"{origin}:{mark.line + 1 if mark else 1}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadPromptFile(f"{origin}:{line}: not YAML: {error.reason}") from error
    except RecursionError as error:
        raise BadPromptFile(f"{origin}:1: nests too deeply") from error
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        raise BadPromptFile(f"{origin}:1: not YAML: {error}") from error


def _said(item: ErrorDetails, tree: yaml.Node) -> Iterator[str]:
    """What a mistake that pydantic found is called, after its line."""
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, BadPrompt):
        yield from _placed(cause.mistakes, tree)
        return
    path = ".".join(map(str, item["loc"])) or "prompt"
    yield f"{_line(tree, item['loc'])}: {path}: {item['msg'].removeprefix('Value error, ')}"


def _placed(mistakes: Iterable[Mistake], tree: yaml.Node) -> Iterator[str]:
    for mistake in mistakes:
        path = ".".join(map(str, mistake.place)) or "prompt"
        yield f"{_line(tree, mistake.place, mistake.line)}: {path}: {mistake.what}"


def _line(tree: yaml.Node, place: Sequence[str | int], within: int = 0) -> int:
    """Line of the deepest part of `place` that is in the file, from 1.

    `within` is a line in the text that stands there: exact where the text keeps its lines.
    """
    node, line = tree, tree.start_mark.line
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
    if within and isinstance(node, yaml.ScalarNode):
        line = node.start_mark.line + (within if node.style == "|" else 0)
    return int(line) + 1
