import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from deploy.migrations import upgrade
from gateway.database import Database, open_database
from pipelines.datasets import (
    TRAIN,
    VALIDATION,
    DatasetOneSided,
    DatasetTooSmall,
    freeze,
    record,
)
from pipelines.manifest import MANIFEST, DatasetChanged, read_manifest, verify
from pipelines.tables import DatasetExampleRow, DatasetRow
from rlhf.examples import Collected, Example, Selection
from tests.state_databases import database, database_url, empty_url, postgres  # noqa: F401

SELECTION = Selection("acme", "extractor", excluded=frozenset({"b", "a"}))


def example(number: int, user: str, completion: str | None = None) -> Example:
    return Example(
        messages=({"role": "user", "content": f"Åse no. {number}"},),
        completion=completion or f'{{"n": {number}}}',
        source="demonstration" if number % 3 else "approved",
        user=user,
        request_id=f"request-{number:04}",
        feedback_id=f"feedback-{number:04}",
        content_hash=f"hash-{number:04}",
    )


def collected(users: dict[str, int], **dropped: int) -> Collected:
    names = [user for user, count in users.items() for _ in range(count)]
    return Collected(
        tuple(example(number, user) for number, user in enumerate(names)), dropped, SELECTION
    )


def frozen(what: Collected, out: Path, share: float = 0.1, seed: int = 0, minimum: int = 2):
    return freeze(what, "extractor", out, validation_share=share, seed=seed, minimum=minimum)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TWENTY = {f"user-{number}@example.org": 5 for number in range(20)}


def test_rows_have_what_training_and_lineage_need_and_no_user(tmp_path):
    manifest = frozen(collected(TWENTY, disapproved=3), tmp_path / "out")
    train, validation = rows(tmp_path / "out" / TRAIN), rows(tmp_path / "out" / VALIDATION)
    assert train[0] == {
        "messages": [{"role": "user", "content": "Åse no. 0"}],
        "completion": '{"n": 0}',
        "request_id": "request-0000",
        "feedback_id": "feedback-0000",
        "content_hash": "hash-0000",
        "source": "approved",
    }
    assert (len(train), len(validation)) == (90, 10)
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "user-" not in written
    assert manifest.rows == 100
    assert manifest.about["sources"] == {"approved": 34, "demonstration": 66}
    assert manifest.files[VALIDATION].users == 2
    assert manifest.about["dropped"] == {"disapproved": 3}
    assert manifest.about["selection"]["excluded"] == 2
    assert read_manifest(tmp_path / "out") == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_no_text_breaks_a_line(tmp_path):
    odd = "a\x85b\u2028c\u2029d\r\ne\x1cf\\"
    told = tuple(example(number, f"u{number}", odd + str(number)) for number in range(9))
    frozen(Collected(told, {}, SELECTION), tmp_path / "out")
    lines = (tmp_path / "out" / TRAIN).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["completion"][:-1] for line in lines] == [odd] * 8


def test_the_same_examples_are_the_same_data_set(tmp_path):
    first = frozen(collected(TWENTY, disapproved=3), tmp_path / "first")
    again = frozen(collected(TWENTY, disapproved=4), tmp_path / "again")
    assert first.dataset_id == again.dataset_id
    assert len(first.dataset_id) == 32
    for name in (TRAIN, VALIDATION):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    more = frozen(collected(TWENTY | {"new": 1}), tmp_path / "more")
    other_split = frozen(collected(TWENTY), tmp_path / "split", seed=1)
    renamed = freeze(
        collected(TWENTY), "another", tmp_path / "name", validation_share=0.1, seed=0, minimum=2
    )
    ids = {one.dataset_id for one in (first, more, other_split, renamed)}
    assert len(ids) == 4


@given(
    st.dictionaries(st.text(), st.integers(1, 30), min_size=2, max_size=15),
    st.floats(0.01, 0.99),
    st.integers(),
)
def test_no_user_is_in_both_parts_and_neither_is_empty(tmp_path_factory, users, share, seed):
    if max(users.values()) > 0.9 * sum(users.values()):
        return
    out = tmp_path_factory.mktemp("data") / "out"
    manifest = frozen(collected(users), out, share=share, seed=seed)
    owner = {one.request_id: one.user for one in collected(users).examples}
    parts = [{owner[row["request_id"]] for row in rows(out / name)} for name in (TRAIN, VALIDATION)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == len(users)
    assert manifest.rows == sum(users.values())


def test_the_share_is_kept_and_the_seed_decides_who(tmp_path):
    users = {f"u{number}": 1 + number % 7 for number in range(200)}
    chosen = []
    for seed in range(3):
        manifest = frozen(collected(users), tmp_path / str(seed), share=0.2, seed=seed)
        assert manifest.files[VALIDATION].rows == round(0.2 * manifest.rows)
        chosen.append({row["request_id"] for row in rows(tmp_path / str(seed) / VALIDATION)})
    assert chosen[0] != chosen[1] != chosen[2]


def test_too_small_says_how_many_there_are_and_why(tmp_path):
    few = collected({"ann": 2, "bob": 1}, disapproved=5, no_body=2)
    with pytest.raises(DatasetTooSmall, match=r"3 examples of 2 users; at least 40 of 2") as caught:
        frozen(few, tmp_path / "out", minimum=40)
    assert "5 disapproved" in str(caught.value)
    assert "2 whose bodies are not in the log" in str(caught.value)
    with pytest.raises(DatasetTooSmall, match="50 examples of 1 users"):
        frozen(collected({"ann": 50}), tmp_path / "out")
    with pytest.raises(DatasetTooSmall, match="0 examples of 0 users"):
        frozen(collected({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_sided(tmp_path):
    with pytest.raises(DatasetOneSided, match="one user makes up 91 of 100"):
        frozen(collected({"ann": 91, "bob": 9}), tmp_path / "out")
    frozen(collected({"ann": 90, "bob": 10}), tmp_path / "fair")
    for same in (100, 96):
        same_answer = tuple(
            example(number, f"u{number % 9}", "yes" if number < same else None)
            for number in range(100)
        )
        with pytest.raises(DatasetOneSided, match=f"one answer makes up {same} of 100"):
            frozen(Collected(same_answer, {}, SELECTION), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_named(tmp_path):
    manifest = frozen(collected(TWENTY), tmp_path / "out")
    verify(tmp_path / "out", manifest)
    path = tmp_path / "out" / VALIDATION
    path.write_text(path.read_text().replace("Åse", "Ase", 1))
    with pytest.raises(DatasetChanged, match=r"validation\.jsonl: its SHA-256"):
        verify(tmp_path / "out", manifest)
    path.unlink()
    with pytest.raises(DatasetChanged, match=r"validation\.jsonl: is not there"):
        verify(tmp_path / "out", manifest)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset_id": "x", "files": {"a": {}}}'])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DatasetChanged, match=r"manifest\.json: not a data set's manifest"):
        read_manifest(tmp_path)


def test_a_manifest_that_was_edited(tmp_path):
    manifest = frozen(collected(TWENTY), tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    path.write_text(path.read_text().replace('"rows": 90', '"rows": 91'))
    with pytest.raises(DatasetChanged, match=f"says {manifest.dataset_id}"):
        read_manifest(tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    frozen(collected(TWENTY), tmp_path / "out")
    with pytest.raises(OSError, match="not empty"):
        frozen(collected({"ann": 3, "bob": 3}), tmp_path / "out")
    assert read_manifest(tmp_path / "out").rows == 100


def test_the_record_says_where_each_example_came_from(tmp_path, database: Database):  # noqa: F811
    manifest = frozen(collected(TWENTY), tmp_path / "out")
    for _ in range(2):
        with database.transaction() as session:
            record(session, manifest, tmp_path / "out")
    with database.session() as session:
        kept = session.get_one(DatasetRow, manifest.dataset_id)
        found = list(session.scalars(select(DatasetExampleRow)))
    assert kept.manifest["dataset_id"] == manifest.dataset_id
    assert Counter(row.part for row in found) == {"train": 90, "validation": 10}
    assert len({row.request_id for row in found}) == 100
    assert {row.feedback_id[-4:] == row.request_id[-4:] for row in found} == {True}


def test_nothing_is_recorded_of_a_changed_folder(tmp_path):
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    state = open_database(url)
    manifest = frozen(collected(TWENTY), tmp_path / "out")
    (tmp_path / "out" / TRAIN).write_text("")
    with pytest.raises(DatasetChanged), state.transaction() as session:
        record(session, manifest, tmp_path / "out")
    with state.session() as session:
        assert session.scalar(select(func.count()).select_from(DatasetRow)) == 0
    state.close()
