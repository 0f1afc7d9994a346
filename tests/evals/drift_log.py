"""A home with a request log of made-up traffic, whose parts can be made to drift."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import uuid_utils

from deploy.migrations import upgrade
from evals.drift_plan import DriftPlan, Watched
from evals.reference import Reference, pin
from evals.vectors import Embedder
from evals.watch import Watch, traffic_of
from evals.windows import Period, Traffic, read_window
from gateway.database import Database, open_database
from gateway.request_log import LogReader
from tests.spooled_requests import final, record, write_segment

START = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
ENGLISH = (
    "the file of a user is copied to the folder and its owner can read it after that command has "
    "been given with the name that was printed on the screen before you start another process "
    "which writes to the log when there is no error in the request that the server has to answer"
)
GERMAN = (
    "die Datei wird in den Ordner kopiert und der Benutzer kann sie lesen nachdem der Befehl mit "
    "dem Namen gegeben wurde den das Programm auf dem Bildschirm zeigt bevor ein anderer Prozess "
    "gestartet wird der nicht in das Protokoll schreibt wenn es keinen Fehler bei der Anfrage gibt"
)
COOKING = (
    "stir the soup with a wooden spoon until onions garlic and butter turn golden then add pepper "
    "flour salt to taste and let it simmer in the oven for an hour before you serve bread with "
    "olive oil tomato basil chicken rice lemon sugar cream and a little wine from the cellar"
)


@dataclass(slots=True)
class Made:
    """How requests are made; every share is of requests."""

    german: float = 0.0
    cooking: float = 0.0
    refused: float = 0.02
    empty: float = 0.03
    words: int = 30
    failed: float = 0.0
    silent: float = 0.0  # answers without a text
    user: str | None = "each"  # one user per request, None, or this one
    tenant: str = "acme"
    version: str | None = "3"


@dataclass
class DriftHome:
    """The home. Rows are appended in the order of time, `minutes` apart."""

    folder: Path
    seed: int = 1
    minutes: float = 0.5
    moment: datetime = START
    plan: DriftPlan = field(default_factory=DriftPlan)
    embedder: Embedder | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        url = f"sqlite:///{self.folder / 'state.db'}"
        upgrade(url)
        self.database: Database = open_database(url)
        self.reader = LogReader(self.folder / "spool", str(self.folder / "log" / "requests"))
        self.random = random.Random(self.seed)
        self.written = 0

    @property
    def watch(self) -> Watch:
        """For a look at the present moment of the log."""
        return Watch(self.folder, self.reader, self.database, self.plan, self.embedder, self.moment)

    @property
    def traffic(self) -> Traffic:
        return traffic_of(Watched(prompt="assistant", question="question", passages="passages"))

    def add(self, rows: int, made: Made | None = None) -> None:
        """Append requests."""
        made = made or Made()
        records = [self._request(made) for _ in range(rows)]
        write_segment(self.folder / "spool", *records)

    def pin(self, traffic: Traffic | None = None) -> Reference:
        """Pin everything that is there."""
        traffic = traffic or self.traffic
        period = Period(0, int(self.moment.timestamp() * 1e6), 100_000)
        return pin(self.folder, traffic, read_window(self.reader, traffic, period), "test")

    def _request(self, made: Made) -> bytes:
        self.moment += timedelta(minutes=self.minutes)
        self.written += 1
        question, answer = self._text(made, made.words // 2), self._text(made, made.words)
        if self._chance(made.refused):
            answer = "I'm sorry, but I can't help with that."
        contexts: dict[str, Any] = {
            "variables": {
                "question": question,
                "passages": "" if self._chance(made.empty) else "a passage of the manual",
            }
        }
        user = f"user-{self.written}" if made.user == "each" else made.user
        failed = self._chance(made.failed)
        seconds, rest = divmod(self.moment.timestamp(), 1)
        one = record(
            request_id=str(uuid_utils.uuid7(timestamp=int(seconds), nanos=int(rest * 1e9))),
            ts=int(self.moment.timestamp() * 1e6),
            user=user,
            tenant=made.tenant,
            prompt_name="assistant",
            prompt_version=made.version,
            status="upstream_error" if failed else "ok",
            input_tokens=2 * len(question.split()),
            output_tokens=2 * len(answer.split()),
            cost_nano_usd=1000 * len(answer.split()),
            latency_ms=200.0,
            contexts=contexts,
        )
        said = None if self._chance(made.silent) else answer
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return final(one, orjson.dumps({}), orjson.dumps({"choices": [choice]}))

    def _text(self, made: Made, words: int) -> str:
        chosen = ENGLISH
        if self._chance(made.german):
            chosen = GERMAN
        elif self._chance(made.cooking):
            chosen = COOKING
        count = max(3, int(self.random.gauss(words, words / 5)))
        return " ".join(self.random.choices(chosen.split(), k=count))

    def _chance(self, share: float) -> bool:
        return self.random.random() < share
