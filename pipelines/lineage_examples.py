"""The lineage check from a data set's examples to their feedback, requests and keys.

A few queries for a data set, whatever its size; none for an example.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gateway.feedback import FeedbackRow
from gateway.key_tables import KeyRow
from gateway.request_log import LogReader
from pipelines.datasets import PARTS
from pipelines.lineage_erasures import Excuses
from pipelines.lineage_findings import DISAGREE, RESTORE, Findings, Origins
from pipelines.manifest import Manifest
from pipelines.tables import DatasetExampleRow

AT_ONCE = 500
ROWS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class _Example:
    """A row of a data set, with the feedback's tenant, request and key if that is there."""

    position: int
    part: str
    request_id: str
    feedback_id: str
    tenant: str | None
    on_request: str | None
    key_id: str | None


def check_examples(origins: Origins, manifest: Manifest, folder: Path | None) -> None:
    """Every example's row, its feedback, its request in the log, and the keys of both."""
    session, findings, reader = origins.session, origins.findings, origins.sources.reader
    of = f"dataset {manifest.dataset_id}"
    examples = _examples(session, manifest.dataset_id)
    _check_rows(findings, of, manifest, examples, folder)
    logged = requests_in(reader, [one.request_id for one in examples])
    lost = [one.request_id for one in examples if one.tenant is None]
    cleared = _without_bodies(reader, [one for one in lost if one in logged])
    gaps = _Gaps(logged.keys(), cleared, origins.excuses)
    _check_feedback(findings, of, examples, gaps)
    _check_requests(findings, of, examples, logged, origins.excuses)
    _check_names(findings, of, manifest, examples, logged)
    named = [one.key_id for one in examples] + [row["key_id"] for row in logged.values()]
    _check_keys(session, findings, of, sorted({key for key in named if key}))


def requests_in(reader: LogReader, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of the log by request id: tenant, alias, key."""
    found: dict[str, dict[str, Any]] = {}
    for wanted in _parts(sorted(set(ids)), ROWS_AT_ONCE):
        rows = reader.rows(
            "request_id BETWEEN ? AND ? AND request_id IN (SELECT unnest(?::VARCHAR[]))",
            [wanted[0], wanted[-1], wanted],
            columns=("request_id", "tenant", "model", "key_id"),
            order="request_id",
        )
        found |= {row["request_id"]: row for row in rows}
    return found


def _examples(session: Session, dataset_id: str) -> list[_Example]:
    example, feedback = DatasetExampleRow, FeedbackRow
    query = (
        select(
            example.position, example.part, example.request_id, example.feedback_id,
            feedback.tenant, feedback.request_id, feedback.key_id,
        )
        .outerjoin(feedback, feedback.feedback_id == example.feedback_id)
        .where(example.dataset_id == dataset_id)
        .order_by(example.position)
    )  # fmt: skip
    return [_Example(*row) for row in session.execute(query)]


def _check_rows(
    findings: Findings,
    of: str,
    manifest: Manifest,
    examples: Sequence[_Example],
    folder: Path | None,
) -> None:
    """That there is a row for every example of the manifest, and that rows and files agree."""
    there = {one.position for one in examples}
    missing = [str(position) for position in range(manifest.rows) if position not in there]
    gone = f"not in the state database: whose feedback it was made from is not known; {RESTORE}"
    findings.several(of, "example", missing, gone)
    problems = [
        f"{part} has {found} examples, its manifest says {facts.rows}"
        for name, part in PARTS.items()
        if (facts := manifest.files.get(name)) is not None
        and (found := sum(one.part == part for one in examples)) != facts.rows
    ]
    if folder is not None and not problems:
        told = {(one.part, one.request_id, one.feedback_id) for one in examples}
        if told != set(_lines(folder)):
            problems.append("its files name other requests or feedback than the state database")
    findings.judged(of, "examples", problems, f"{len(examples)} rows", DISAGREE)


def _lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    for name, part in PARTS.items():
        with (folder / name).open("rb") as file:
            for line in file:
                row = json.loads(line)
                yield part, row["request_id"], row["feedback_id"]


@dataclass(frozen=True, slots=True)
class _Gaps:
    """What tells erased feedback from lost: requests in the log, and which have no bodies."""

    logged: Iterable[str]
    cleared: frozenset[str]
    excuses: Excuses

    def explain(self, request_id: str) -> str | None:
        """Why feedback on this request is gone, if an order says so."""
        if request_id in self.logged and request_id not in self.cleared:
            return None
        return self.excuses.feedback(request_id, logged=request_id in self.logged)


def _check_feedback(findings: Findings, of: str, examples: Sequence[_Example], gaps: _Gaps) -> None:
    missing, there = [], 0
    for one in examples:
        why = None if one.tenant is not None else gaps.explain(one.request_id)
        if one.tenant is not None:
            there += 1
        elif why is not None:
            findings.erased(of, f"feedback {one.feedback_id}", why)
        else:
            missing.append(one.feedback_id)
    gone = f"not in the state database, and no erasure order covers it; {RESTORE}"
    findings.several(of, "feedback", missing, gone)
    findings.ok(of, "feedback", f"{there} of {len(examples)}")


def _check_requests(
    findings: Findings,
    of: str,
    examples: Sequence[_Example],
    logged: Mapping[str, Any],
    excuses: Excuses,
) -> None:
    missing = []
    wanted = sorted({one.request_id for one in examples})
    for request_id in (one for one in wanted if one not in logged):
        why = excuses.request(request_id)
        if why is None:
            missing.append(request_id)
        else:
            findings.erased(of, f"request {request_id}", why)
    gone = "not in the request log, and neither an erasure order nor log.retain_days covers it"
    findings.several(of, "request", missing, f"{gone}; restore the log from a copy")
    findings.ok(of, "requests", f"{len(logged)} of {len(wanted)}")


def _check_names(
    findings: Findings,
    of: str,
    manifest: Manifest,
    examples: Sequence[_Example],
    logged: Mapping[str, Mapping[str, Any]],
) -> None:
    """That feedback and requests are of the tenant and the alias that were looked at."""
    selection = manifest.about.get("selection") or {}
    wanted = selection.get("tenant"), selection.get("alias")
    problems = [
        f"request {request_id} is one of {row['tenant']} on {row['model']}, not of {wanted[0]} on "
        f"{wanted[1]}"
        for request_id, row in logged.items()
        if (row["tenant"], row["model"]) != wanted
    ]
    problems += [
        f"feedback {one.feedback_id} is of tenant {one.tenant}, on request {one.on_request}"
        for one in examples
        if one.tenant is not None
        and (one.tenant != wanted[0] or one.on_request not in (one.request_id, None))
    ]
    found = f"{wanted[1]} of tenant {wanted[0]}"
    findings.judged(of, "selection", problems[:5], found, DISAGREE)


def _check_keys(session: Session, findings: Findings, of: str, keys: Sequence[str]) -> None:
    known: set[str] = set()
    for wanted in _parts(keys, AT_ONCE):
        known |= set(session.scalars(select(KeyRow.key_id).where(KeyRow.key_id.in_(wanted))))
    gone = f"not in the state database: whose requests these were is not known; {RESTORE}"
    findings.several(of, "key", [one for one in keys if one not in known], gone)
    findings.ok(of, "keys", f"{len(known)} of {len(keys)}")


def _without_bodies(reader: LogReader, ids: Sequence[str]) -> frozenset[str]:
    """Those of the requests that have neither user nor bodies, as an erasure leaves them."""
    found: set[str] = set()
    for wanted in _parts(sorted(set(ids)), ROWS_AT_ONCE):
        result = reader.select(
            "SELECT request_id FROM requests WHERE request_id BETWEEN ? AND ?"
            " AND request_id IN (SELECT unnest(?::VARCHAR[]))"
            ' AND "user" IS NULL AND request IS NULL AND response IS NULL',
            [wanted[0], wanted[-1], wanted],
            bodies=True,
        )
        found |= {request_id for (request_id,) in result.rows}
    return frozenset(found)


def _parts(values: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])
