"""What was asked, as a hash: so that a golden case is known again in the log, however it was asked.

Golden cases judge models and prompts; one that is trained on judges nothing any more. So every
training set leaves out what `golden_contents` names: the cases of all files in `golden/`, whichever
evaluation they belong to.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from evals.cases import CasesUnreadable
from prompts.prompt import BadVariables, Prompt
from prompts.template import RenderFailed

GOLDEN = Path(__file__).parent / "golden"
INSTRUCTIONS = frozenset({"system", "developer"})


def content_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of what was asked, without regard to case, white space and Unicode's spellings.

    Instructions (system messages) are left out where there is anything else: the same question
    under a reworded prompt is the same question, for evaluations above all.
    """
    asked = [one for one in messages if one.get("role") not in INSTRUCTIONS] or list(messages)
    told = [[one.get("role"), _normal(text_of(one.get("content")) or "")] for one in asked]
    return _sha256(told)


def variables_hash(variables: Mapping[str, Any]) -> str:
    """The same of a prompt's variables: whichever version of the prompt they are put into."""
    return _sha256({"variables": _normalized(variables)})


def golden_contents(prompts: Iterable[Prompt], folder: Path = GOLDEN) -> frozenset[str]:
    """Hashes of all golden cases: their messages, or their variables, alone and in `prompts`.

    Args:
        prompts: every version of prompts that may have been asked; a file's cases go into those of
            its name.

    Raises:
        CasesUnreadable: a line is no case; says which.
    """
    versions: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        versions.setdefault(prompt.name, []).append(prompt)
    return frozenset(
        found
        for path in sorted(folder.glob("*.jsonl"))
        for row in _rows(path)
        for found in _hashes(row, versions.get(path.stem, []))
    )


def text_of(content: Any) -> str | None:
    """A text, or text parts joined as engines join them; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    whole = len(parts) == len(content) and all(isinstance(part, str) for part in parts)
    return "\n".join(part for part in parts if part) if whole else None


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise CasesUnreadable(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise CasesUnreadable(f"{path}:{number}: not a JSON object")
            yield row


def _hashes(row: Mapping[str, Any], versions: Sequence[Prompt]) -> Iterator[str]:
    messages, variables = row.get("messages"), row.get("variables")
    if isinstance(messages, list):
        yield content_hash(messages)
    if not isinstance(variables, dict):
        return
    yield variables_hash(variables)
    for value in variables.values():
        if isinstance(value, str):  # the same text, asked without a prompt of the registry
            yield content_hash([{"role": "user", "content": value}])
    for prompt in versions:
        try:
            yield content_hash(prompt.render(variables))
        except (BadVariables, RenderFailed):
            pass  # a version that took other variables was never asked this


def _normalized(value: Any) -> Any:
    if isinstance(value, str):
        return _normal(value)
    if isinstance(value, list):
        return [_normalized(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _normalized(one) for key, one in value.items()}
    return value


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
