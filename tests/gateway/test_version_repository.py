"""The versions that the model server notes: what it had is loaded again, also after a bad start."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.served_columns import Columns
from gateway.version_repository import VersionRepository
from tests.tabular_home import save_version, served

ONE, TWO, THREE = served("1"), served("2"), served("3")


async def test_what_was_missed_at_a_start_is_loaded_at_the_next(tmp_path: Path) -> None:
    folder, note, away = tmp_path / "tabular", tmp_path / "loaded.json", tmp_path / "away"
    save_version(folder, ONE, metadata={"origin": "made up"})
    for name in (TWO, THREE):
        shutil.copytree(folder / ONE, folder / name)
    with ThreadPoolExecutor(1) as pool:

        def start() -> VersionRepository:
            made = VersionRepository(folder, no_service, pool, note)
            made.load_noted()
            return made

        await start().load(ONE)
        (folder / ONE).rename(away)  # a disk that is not there yet, say
        second = start()
        await second.load(TWO)
        await second.load(THREE)
        second.unload(THREE)
        assert set(second.models) == {TWO}
        assert json.loads(note.read_text()) == [ONE, TWO]
        away.rename(folder / ONE)
        assert set(start().models) == {ONE, TWO}
        second.unload(ONE)
        assert json.loads(note.read_text()) == [TWO]
        with pytest.raises(KeyError):
            second.unload(ONE)


def no_service(name: str) -> Columns:
    raise ValueError(name)
