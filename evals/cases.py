"""Files of cases: JSON lines, each an object with `case_id`, `messages`, `expected` and `tags`.

A case's id is unique in its file; the order of the lines is the order of the cases. A file is
written whole or not at all.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from evals.records import Case
from gateway.whole_file import write_whole

REQUIRED = ("case_id", "messages", "expected")


class CasesUnreadable(ValueError):
    """A file of cases is missing or has a line that is no case; says which and why."""


def load_cases(path: Path) -> list[Case]:
    """The cases in the file at `path`.

    Raises: CasesUnreadable with the file and the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CasesUnreadable(f"{path}: no file of cases that can be read ({error})") from error
    cases: dict[str, Case] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            case = _case(line, f"{path}:{number}")
            if case.case_id in cases:
                raise CasesUnreadable(f"{path}:{number}: the id {case.case_id!r} is there twice")
            cases[case.case_id] = case
    if not cases:
        raise CasesUnreadable(f"{path}: no case in it")
    return list(cases.values())


def save_cases(path: Path, cases: Iterable[Case]) -> None:
    """Write `cases` to `path`; the same cases give the same bytes."""
    write_whole(path, b"".join(orjson.dumps(_row(case)) + b"\n" for case in cases))


def _row(case: Case) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "messages": list(case.messages),
        "expected": case.expected,
        "tags": dict(case.tags),
    }


def _case(line: bytes, where: str) -> Case:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CasesUnreadable(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise CasesUnreadable(f"{where}: not a JSON object")
    if missing := [name for name in REQUIRED if name not in row]:
        raise CasesUnreadable(f"{where}: without {', '.join(missing)}")
    case_id, messages, tags = row["case_id"], row["messages"], row.get("tags", {})
    if not isinstance(case_id, str) or not case_id:
        raise CasesUnreadable(f"{where}: case_id: a text that is not empty is wanted")
    if not _is_list_of_messages(messages):
        raise CasesUnreadable(f"{where}: messages: a list of objects, at least one, is wanted")
    if not isinstance(tags, dict):
        raise CasesUnreadable(f"{where}: tags: an object is wanted")
    return Case(case_id, tuple(messages), row["expected"], tags)


def _is_list_of_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
