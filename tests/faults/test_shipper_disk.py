"""The shipper on a disk that is full, and on spools that were damaged: nothing lost, none twice."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.batches import segment_paths
from gateway.log_table import TableError
from gateway.request_log import LogReader
from tests.spooled_requests import (
    file_size_limit,
    final,
    intent,
    record,
    shipper_of,
    write_segment,
)


def shipped(home: Path) -> list[str]:
    reader = LogReader(home / "nothing", str(home / "log" / "requests"))
    return [row["request_id"] for row in reader.rows(columns=["request_id"], order="ts")]


@pytest.mark.parametrize("limit", [0, 100, 1000, 3000, 8000])
def test_a_full_disk_delays_and_repeats_nothing(tmp_path: Path, limit: int) -> None:
    records = [record() for _ in range(300)]
    rng = random.Random(limit)
    write_segment(tmp_path / "spool", *(final(one, rng.randbytes(40)) for one in records))
    shipper = shipper_of(tmp_path)
    with file_size_limit(limit):
        for _ in range(3):
            with pytest.raises(TableError):
                shipper.ship()
    assert len(segment_paths(tmp_path / "spool")) == 1
    shipper_of(tmp_path).ship()
    assert sorted(shipped(tmp_path)) == sorted(one.request_id for one in records)
    assert segment_paths(tmp_path / "spool") == []


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.integers(0, 10**6))
def test_damage_anywhere_costs_at_most_its_own_records(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int, cut: int
) -> None:
    home = tmp_path_factory.mktemp("damage")
    records = [record() for _ in range(6)]
    path = write_segment(home / "spool", *(final(one, b"q" * 30, b"r" * 30) for one in records))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content[: len(content) - cut % 200])
    shipper = shipper_of(home)
    shipper.ship()
    found = shipped(home)
    assert len(found) == len(set(found))
    assert len(found) >= len(records) - 2
    assert set(found) <= {one.request_id for one in records}
    total = shipper.total
    assert len(found) == len(records) or total.damaged + total.torn > 0
    assert segment_paths(home / "spool") == []


def test_a_tail_torn_at_any_byte_leaves_the_request_interrupted(tmp_path: Path) -> None:
    shipper = shipper_of(tmp_path)
    for end in range(0, len(final(record(), b"q" * 20, b"r" * 20)), 23):
        done, begun = record(), record()
        tail = final(begun, b"q" * 20, b"r" * 20)[: max(1, end)]
        write_segment(tmp_path / "spool", final(done), intent(begun), tail)
        assert shipper.ship() == 2
        row = LogReader(tmp_path / "spool", str(tmp_path / "log" / "requests")).row(
            begun.request_id
        )
        assert row is not None
        assert row["status"] == "interrupted"
