import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.checkpoints import FINGERPRINT, SEAL, newest, prepare, seal

FILES = {"adapter.safetensors": b"weights" * 20, "state.json": b"{}", "inner/rng.pth": b"\0\1\2"}


def written(folder: Path, step: int | str, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name, content in FILES.items():
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if sealed:
        seal(checkpoint)
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_the_newest_is_the_one_of_most_steps(tmp_path):
    assert newest(tmp_path) is None
    for step in (9, 100, 10):
        written(tmp_path, step)
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, found.folder) == (100, tmp_path / "checkpoint-100")
    assert len(names(tmp_path)) == 3


def test_what_is_not_sealed_is_passed_over_and_removed(tmp_path):
    written(tmp_path, 3)
    written(tmp_path, 6, sealed=False)
    (written(tmp_path, 7, sealed=False) / SEAL).write_bytes(b'{"state.json": "')
    (written(tmp_path, 8, sealed=False) / SEAL).write_bytes(b"[]")
    (tmp_path / "checkpoint-9").mkdir()
    written(tmp_path, "last")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert names(tmp_path) == ["checkpoint-3"]


@settings(deadline=None)
@given(
    st.sampled_from([*FILES, SEAL]),
    st.sampled_from(["flip", "cut", "longer", "gone", "renamed", "another"]),
    st.integers(0, 10_000),
)
def test_a_checkpoint_that_was_changed_is_passed_over(tmp_path_factory, name, change, place):
    folder = tmp_path_factory.mktemp("checkpoints")
    written(folder, 3)
    path = written(folder, 6) / name
    content = path.read_bytes()
    place %= len(content)
    if change == "flip":
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif change == "cut":
        path.write_bytes(content[:place])
    elif change == "longer":
        path.write_bytes(content + b"x")
    elif change == "gone":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("other"))
    else:
        path.with_name("other").write_bytes(b"x")
    found = newest(folder)
    assert found is not None
    assert found.step == 3
    assert names(folder) == ["checkpoint-3"]


def test_a_copy_is_as_good(tmp_path):
    shutil.copytree(written(tmp_path, 3), tmp_path / "other" / "checkpoint-3")
    assert newest(tmp_path / "other") is not None


@pytest.mark.parametrize("mark", ["another", "", None])
def test_a_folder_of_another_training_is_emptied(tmp_path, mark):
    folder = tmp_path / "a" / "folder"
    prepare(folder, "this")
    written(folder, 3)
    prepare(folder, "this")
    assert names(folder) == ["checkpoint-3", FINGERPRINT]
    if mark is None:
        (folder / FINGERPRINT).unlink()
    else:
        (folder / FINGERPRINT).write_text(mark)
    prepare(folder, "this")
    assert names(folder) == [FINGERPRINT]
    assert (folder / FINGERPRINT).read_text() == "this"
