"""The versions of tabular models that the model server answers for, loaded by name while it runs.

A version lies in LLMOPS_HOME/tabular, in a folder of its name. What is loaded is noted in a file,
and loaded again when the server starts: a restart answers before anybody asks for it. What could
not be loaded then stays noted for the next start, until it is unloaded.

Invariant: what is listed is ready. A folder that cannot be used is never listed, and changes
nothing for the others.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from feast.errors import FeastObjectNotFoundException
from kserve import ModelRepository

from gateway.served_columns import Columns, signature_columns
from gateway.served_version import ServedVersion
from gateway.tabular_model import ModelUnusable, TabularModel, load_model
from gateway.whole_file import write_whole

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SERVICE = "feature_service"
EXAMPLE = "input_example.json"
_log = logging.getLogger(__name__)


class VersionRepository(ModelRepository):  # type: ignore[misc]  # kserve's classes are not typed
    """KServe's model repository over the folders in `folder`.

    Args:
        features: the columns of a feature service; raises ValueError if there is none.
        pool: the threads of all versions.
        note: the file that keeps what is loaded.
    """

    def __init__(
        self, folder: Path, features: Callable[[str], Columns], pool: Executor, note: Path
    ):
        super().__init__(str(folder))
        self._folder, self._features, self._pool, self._note = folder, features, pool, note
        self._turn = asyncio.Lock()
        self._missed: set[str] = set()  # noted, but not loaded
        self.closing = False

    def load_noted(self) -> None:
        """Load what was loaded before; what cannot be is logged, and tried at the next start."""
        for name in self._noted():
            try:
                self.update(self._open(name))
            except (ModelUnusable, OSError) as error:
                self._missed.add(name)
                _log.error("%s is not loaded again: %s", name, error)

    async def load(self, name: str) -> bool:
        """Load a version, unless it is there. The server's other work goes on meanwhile.

        Raises: ModelUnusable, which the server answers 503 with.
        """
        async with self._turn:
            if name not in self.models:
                self.update(await asyncio.to_thread(self._open, name))
                self._missed.discard(name)
                self._write_note()
        return True

    def unload(self, name: str) -> None:
        """Forget a version; requests under way go on with it. KeyError if it is not there."""
        if name in self._missed:
            self._missed.remove(name)
        else:
            super().unload(name)
        if not self.closing:
            self._write_note()

    def _open(self, name: str) -> ServedVersion:
        if not NAME.fullmatch(name):
            raise ModelUnusable(f"{name[:64]!r} is no version's name")
        folder = self._folder / name
        if not folder.is_dir():
            raise ModelUnusable(f"{folder}: there is no such folder")
        model = load_model(folder)
        version = ServedVersion(model, self._columns(model, folder), self._pool)
        _try_out(version, folder / EXAMPLE)
        return version

    def _columns(self, model: TabularModel, folder: Path) -> Columns:
        service = model.metadata.get(SERVICE)
        if service is None:
            return signature_columns(folder)
        try:
            return self._features(str(service))
        except (ValueError, FeastObjectNotFoundException) as error:
            raise ModelUnusable(f"{model.name}: {error}") from error

    def _noted(self) -> list[str]:
        try:
            return [str(name) for name in json.loads(self._note.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            _log.error("%s: cannot be read, so nothing is loaded again: %s", self._note, error)
            return []

    def _write_note(self) -> None:
        write_whole(self._note, json.dumps(sorted(self.models.keys() | self._missed)))


def _try_out(version: ServedVersion, example: Path) -> None:
    """Ask a version the rows that it was saved with: what does not answer is not served."""
    if not example.exists():
        return
    try:
        rows = json.loads(example.read_text())
        columns = dict(zip(rows["columns"], zip(*rows["data"], strict=True), strict=True))
        answers = version.probabilities(columns)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelUnusable(f"{example}: the model does not answer it: {error}") from error
    if not all(0 <= answer <= 1 for answer in answers):
        raise ModelUnusable(f"{example}: the model's answers are no probabilities")
