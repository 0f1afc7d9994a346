"""Frozen data sets of language models: examples in files, split by user.

A data set is a folder: `train.jsonl`, `validation.jsonl` and its manifest. Invariants: no user
is in both files; no user's name is in any; the same examples give the same bytes and the same id;
a folder is there whole or not at all.
"""

import hashlib
import hmac
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from gateway.database import now
from pipelines.manifest import MANIFEST, FileFacts, Manifest, canonical, verify
from pipelines.tables import DatasetExampleRow, DatasetRow
from rlhf.examples import REASONS, Collected, Example, Selection

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
PARTS = {TRAIN: "train", VALIDATION: "validation"}
MINIMUM_USERS = 2
ONE_USER_SHARE = 0.9
ONE_ANSWER_SHARE = 0.95
LINE_ENDS = "\x85\u2028\u2029"  # to some readers of lines; JSON would leave them as they are


class DatasetRefused(ValueError):
    """No data set is made of these examples; the message says why, and what to do."""


class DatasetTooSmall(DatasetRefused):
    """There are too few examples, or too few users to keep some apart for validation."""


class DatasetOneSided(DatasetRefused):
    """One answer or one user makes up nearly all of it."""


def freeze(
    collected: Collected,
    name: str,
    out: Path,
    *,
    validation_share: float,
    seed: int,
    minimum: int,
) -> Manifest:
    """Write a data set of `collected` into the folder `out`, which is empty or not there.

    `validation_share` is the share of the examples that is aimed at; whole users are put aside for
    it, in an order that only `seed` decides, and at least one.

    Raises:
        DatasetTooSmall: fewer than `minimum` examples, or fewer than two users.
        DatasetOneSided: one user gave more than 90 % of them, or one answer is 95 %.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share: {validation_share} is not between 0 and 1")
    _check_size(collected, name, minimum)
    _check_sides(collected.examples, name)
    aside = _set_aside(collected.examples, validation_share, seed)
    parts = {
        TRAIN: [one for one in collected.examples if one.user not in aside],
        VALIDATION: [one for one in collected.examples if one.user in aside],
    }
    texts = {file: "".join(map(_line, part)) for file, part in parts.items()}
    manifest = Manifest(
        name=name,
        files={file: _facts(texts[file], part) for file, part in parts.items()},
        about={
            "sources": dict(sorted(Counter(one.source for one in collected.examples).items())),
            "dropped": dict(collected.dropped),
            "selection": _shown(collected.selection),
            "split": {"validation_share": validation_share, "seed": seed},
        },
    )
    _write(out, texts | {MANIFEST: manifest.text()})
    return manifest


def record(session: Session, manifest: Manifest, out: Path) -> None:
    """Put a data set into the state database; twice is once.

    Where it was made from feedback (it has one of `PARTS`), also the origin of each example.
    """
    if session.get(DatasetRow, manifest.dataset_id) is not None:
        return
    verify(out, manifest)
    session.add(
        DatasetRow(
            dataset_id=manifest.dataset_id,
            name=manifest.name,
            manifest=manifest.as_dict(),
            created_at=now(),
        )
    )
    session.flush()
    lines = [
        (part, json.loads(line))
        for file, part in PARTS.items()
        if file in manifest.files
        for line in (out / file).read_bytes().splitlines()
    ]
    rows = [
        {
            "dataset_id": manifest.dataset_id,
            "position": position,
            "part": part,
            "request_id": line["request_id"],
            "feedback_id": line["feedback_id"],
        }
        for position, (part, line) in enumerate(lines)
    ]
    if rows:
        session.execute(insert(DatasetExampleRow), rows)


def _check_size(collected: Collected, name: str, minimum: int) -> None:
    examples = len(collected.examples)
    users = len({one.user for one in collected.examples})
    if examples >= minimum and users >= MINIMUM_USERS:
        return
    lost = [f"{count} {REASONS[reason]}" for reason, count in collected.dropped.items()]
    raise DatasetTooSmall(
        f"data set {name}: {examples} examples of {users} users; at least {minimum} of"
        f" {MINIMUM_USERS} are needed. Dropped: {'; '.join(lost) or 'none'}."
        f" Collect more feedback on {collected.selection.alias}: demonstrations teach most"
    )


def _check_sides(examples: Sequence[Example], name: str) -> None:
    """A model learns nothing from one answer, and one person's taste from one user.

    Approved answers alone are no reason to refuse: they may be a stronger model's, behind the same
    alias; whether they taught anything is for the gate to say.
    """
    for what, share, kept in (
        ("user", ONE_USER_SHARE, Counter(one.user for one in examples)),
        ("answer", ONE_ANSWER_SHARE, Counter(one.completion for one in examples)),
    ):
        (_, most), *_ = kept.most_common(1)
        if len(kept) == 1 or most > share * len(examples):
            raise DatasetOneSided(
                f"data set {name}: one {what} makes up {most} of {len(examples)} examples; at most"
                f" {share:.0%} are allowed. Collect feedback on more {what}s"
            )


def _set_aside(examples: Iterable[Example], share: float, seed: int) -> frozenset[str]:
    """Users for validation: in the order of their hashes, those who still fit into the share.

    If nobody fits, the one who gave least is taken: there is always somebody, and never everybody.
    """
    given = Counter(one.user for one in examples)
    order = sorted(given, key=lambda user: _digest(user, seed))
    room = math.floor(share * given.total() + 0.5)
    aside: set[str] = set()
    for user in order:
        if given[user] <= room and len(aside) < len(given) - 1:
            aside.add(user)
            room -= given[user]
    return frozenset(aside or {min(order, key=lambda user: given[user])})


def _digest(user: str, seed: int) -> bytes:
    return hmac.digest(str(seed).encode(), user.encode(), hashlib.sha256)


def _line(example: Example) -> str:
    row = {
        "messages": [dict(message) for message in example.messages],
        "completion": example.completion,
        "request_id": example.request_id,
        "feedback_id": example.feedback_id,
        "content_hash": example.content_hash,
        "source": example.source,
    }
    line = json.dumps(row, ensure_ascii=False)
    for odd in LINE_ENDS:
        line = line.replace(odd, f"\\u{ord(odd):04x}")
    return line + "\n"


def _facts(text: str, part: Sequence[Example]) -> FileFacts:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FileFacts(digest, len(part), len({one.user for one in part}))


def _shown(selection: Selection) -> dict[str, Any]:
    """A selection as JSON; of the held-out contents their number and one digest."""
    fields = asdict(selection)
    held_out = sorted(fields.pop("excluded"))
    shown = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
    return shown | {
        "excluded": len(held_out),
        "excluded_sha256": hashlib.sha256(canonical(held_out).encode()).hexdigest(),
    }


def _write(out: Path, texts: Mapping[str, str]) -> None:
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, text in texts.items():
        (fresh / name).write_bytes(text.encode())
    if out.exists():
        out.rmdir()  # empty, or the caller is about to lose something: OSError then
    fresh.rename(out)
