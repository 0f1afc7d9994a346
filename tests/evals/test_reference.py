"""Pinned references: frozen, checked by their hash, and without users who were erased since."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.drift import look
from evals.drift_verdict import DAMAGED, NONE
from evals.records import Decision
from evals.reference import (
    ERASED,
    POINTER,
    USER,
    NoReference,
    Reference,
    ReferenceDamaged,
    current,
    every,
    find,
    folder_of,
    how_to_pin,
    load,
    told,
    without_erased,
)
from evals.windows import Frame, Traffic, unit_of
from gateway.audit import Change, record
from tests.evals.drift_log import DriftHome, Made

KEY = "assistant"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[DriftHome]:
    made = DriftHome(tmp_path / "home")
    made.add(120)
    yield made
    made.database.close()


def erase(home: DriftHome, user: str) -> None:
    """As `llmops logs erase` tells the audit trail."""
    with home.database.transaction() as session:
        record(session, Change("test", ERASED, f"{USER}{unit_of(user)}", "asked for it"))


def test_it_is_frozen_and_says_what_it_is(home):
    pinned = home.pin()
    home.add(30)
    found = find(home.folder, KEY)
    assert found == pinned
    rows = load(home.folder, found)
    assert (len(rows), found.rows) == (120, 120)
    assert (found.first, found.last) == (rows["ts"].min(), rows["ts"].max())
    assert found.name == f"reference:{found.sha256[:12]}"
    assert told(found).startswith("120 rows from 2026-03-10T12:00+00:00 to 2026-03-10T13:00")
    assert every(home.folder) == [found]
    assert (folder_of(home.folder, KEY) / found.file).stat().st_mode & 0o077 == 0


def test_another_takes_the_place_of_the_one_before(home):
    first = home.pin()
    home.add(30)
    second = home.pin()
    assert second.rows == 150
    assert find(home.folder, KEY) == second
    assert [one.name for one in folder_of(home.folder, KEY).glob("*.parquet")] == [second.file]
    assert first.file != second.file


def test_nothing_is_pinned_where_nothing_is(tmp_path: Path):
    home = DriftHome(tmp_path / "home")
    with pytest.raises(NoReference, match="assistant: no request in that time"):
        home.pin()
    with pytest.raises(NoReference, match="pin one: llmops drift reference pin assistant"):
        find(home.folder, KEY)
    assert every(home.folder) == []
    home.database.close()


def damaged_rows(folder: Path) -> None:
    (rows,) = folder.glob("*.parquet")
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)


def gone_rows(folder: Path) -> None:
    (rows,) = folder.glob("*.parquet")
    rows.unlink()


def damaged_pointer(folder: Path) -> None:
    (folder / POINTER).write_text('{"key": "assistant"')


def foreign_pointer(folder: Path) -> None:
    (folder / POINTER).write_text('{"colour": "red"}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_rows, "its SHA-256 is"),
        (gone_rows, "No such file"),
        (damaged_pointer, "cannot be read"),
        (foreign_pointer, "cannot be read"),
    ],
)
def test_one_that_was_changed_is_refused_and_a_look_says_so(home, damage, said):
    home.pin()
    home.add(600)
    damage(folder_of(home.folder, KEY))
    with pytest.raises(ReferenceDamaged, match=said):
        load(home.folder, find(home.folder, KEY))
    verdict = look(home.watch, home.traffic)
    assert (verdict.decision, verdict.baseline) == (Decision.HOLD, DAMAGED)
    assert said in verdict.reasons[0]
    assert "pin a reference anew" in verdict.reasons[0]
    assert {one.name.partition("_")[0] for one in verdict.metrics} == {"sla"}


def test_erased_users_leave_it_and_their_rows_leave_the_disk(home):
    home.add(40, Made(user="ann"))
    pinned = home.pin()
    rows = load(home.folder, pinned)
    erase(home, "ann")
    with home.database.session() as session:
        fewer, kept = without_erased(home.folder, pinned, rows, session)
        again, _ = without_erased(home.folder, fewer, kept, session)
    assert (fewer.rows, fewer.erased, len(kept)) == (120, 40, 120)
    assert fewer.last == pinned.last
    assert "40 taken out since (erased users)" in told(fewer)
    assert unit_of("ann") not in set(load(home.folder, find(home.folder, KEY))["unit"])
    assert [one.name for one in folder_of(home.folder, KEY).glob("*.parquet")] == [fewer.file]
    assert again == fewer


def test_one_that_is_pinned_while_rows_are_taken_out_stays(home, monkeypatch):
    """The look waits for nobody, who pins waits for the look, and what was pinned is in force."""
    home.add(40, Made(user="ann"))
    home.pin()
    erase(home, "ann")
    home.add(30)
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Reference]] = []

        def load_meanwhile(folder: Path, reference: Reference) -> Frame:
            rows = load(folder, reference)
            waiting.append(pool.submit(home.pin))
            with pytest.raises(TimeoutError):
                waiting[0].result(timeout=1)
            return rows

        monkeypatch.setattr("evals.reference.load", load_meanwhile)
        with home.database.session() as session:
            fewer, _ = current(home.folder, KEY, session)
        pinned = waiting[0].result(timeout=30)
    assert (fewer.rows, pinned.rows) == (120, 190)
    assert find(home.folder, KEY) == pinned
    assert len(load(home.folder, pinned)) == 190


def test_rows_of_a_user_after_the_erasure_stay(home):
    erase(home, "ann")
    home.moment += timedelta(days=365 * 5)  # long after the erasure, which is of today
    home.add(40, Made(user="ann"))
    pinned = home.pin()
    with home.database.session() as session:
        same, rows = without_erased(home.folder, pinned, load(home.folder, pinned), session)
    assert same == pinned
    assert unit_of("ann") in set(rows["unit"])


def test_a_reference_of_erased_users_alone_is_gone(tmp_path: Path):
    home = DriftHome(tmp_path / "home")
    home.add(120, Made(user="ann"))
    home.pin()
    erase(home, "ann")
    verdict = look(home.watch, home.traffic)
    assert verdict.baseline == NONE
    assert "every user of its reference was erased; pin it anew" in verdict.reasons[0]
    assert not folder_of(home.folder, KEY).exists()
    home.database.close()


@given(
    name=st.from_regex(r"[a-z0-9][a-z0-9_.@/-]{0,20}", fullmatch=True),
    model=st.booleans(),
    tenant=st.none() | st.from_regex(r"[a-z0-9_-]{1,12}", fullmatch=True),
)
def test_the_command_that_pins_it_names_the_same_traffic(name, model, tenant):
    traffic = Traffic(model=name, tenant=tenant) if model else Traffic(prompt=name, tenant=tenant)
    words = how_to_pin(traffic.key).split()
    assert words[:4] == ["llmops", "drift", "reference", "pin"]
    assert words[4] == (f"model:{name}" if model else name)
    assert words[5:] == ([] if tenant is None else ["--tenant", tenant])
