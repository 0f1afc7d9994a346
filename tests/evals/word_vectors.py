"""An embeddings endpoint on a real socket whose vectors say which words a text has."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson

DIMENSIONS = 64
KEY = "sk-vectors"


def vector_of(text: str) -> Any:
    """Of unit length; texts with the same words have the same."""
    total = np.zeros(DIMENSIONS)
    for word in text.lower().split():
        total += _of_word(word)
    return (total / max(float(np.linalg.norm(total)), 1e-9)).astype("<f4")


@cache
def _of_word(word: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
    return np.random.default_rng(seed).normal(size=DIMENSIONS)


class WordVectors(ThreadingHTTPServer):
    """Remembers how many texts it was asked; answers `status` if that is set,
    and vectors with a `damage`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.texts = 0
        self.status = 200
        self.damage = ""  # `short`: a vector is missing; `ragged`: one is shorter; `nan`

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: WordVectors

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.headers["authorization"] == f"Bearer {KEY}"
        status = self.server.status if known else 401
        texts = body["input"] if self.path == "/v1/embeddings" else []
        self.server.texts += len(texts)
        vectors = [vector_of(text) for text in texts]
        if self.server.damage == "ragged":
            vectors[0] = vectors[0][:-1]
        if self.server.damage == "nan":
            vectors[0][0] = np.nan
        rows = [
            {"index": place, "embedding": base64.b64encode(one.tobytes()).decode()}
            for place, one in enumerate(vectors)
        ][self.server.damage == "short" :]
        said = {"data": rows[::-1]} if status == 200 else {"error": {"message": "no vectors"}}
        answer = orjson.dumps(said)
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def word_vectors() -> Iterator[WordVectors]:
    """The endpoint, for as long as the block lasts."""
    with WordVectors() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
