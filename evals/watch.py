"""What a look at a subject's traffic works with, whatever the subject answers with."""

import fcntl
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import select

from evals.drift_plan import DriftPlan, Watched
from evals.drift_verdict import JUDGED, UNTIL
from evals.vectors import Embedder
from evals.verdicts import VerdictRow
from evals.windows import Period, Traffic, found_in, tenants_of
from gateway.database import Conflict, Database, now
from gateway.request_log import LogReader
from prompts.library import BadPromptFile, load_library


def _nobody(_alias: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Watch:
    """What a look works with.

    Attributes:
        embedder: None leaves embeddings out.
        moment: when the look is; now by default.
        predicting: aliases that answer with predictions.
        champion: the served name of the version that answers such an alias, if one does.
    """

    home: Path
    reader: LogReader
    database: Database
    plan: DriftPlan
    embedder: Embedder | None = None
    moment: datetime | None = None
    predicting: Collection[str] = ()
    champion: Callable[[str], str | None] = _nobody

    def now(self) -> datetime:
        """The moment of the look."""
        return self.moment or now()

    def period(self, after: int) -> Period:
        """From `after`, or as far back as a window reaches, until now."""
        moment = self.now()
        oldest = micros(moment - timedelta(hours=self.plan.hours))
        return Period(max(oldest, after), micros(moment), self.plan.most_rows)


def traffics(watch: Watch, watched: Watched, tenant: str | None = None) -> list[Traffic]:
    """An entry of the plan taken apart: by tenant if it says so, and by the prompt's versions.
    With `tenant`, its traffic alone."""
    whole = traffic_of(watched, watch.predicting)
    period = watch.period(0)
    parts = [replace(whole, tenant=tenant)]
    if watched.tenants == "each" and tenant is None:
        found = tenants_of(watch.reader, whole, period)
        parts = [replace(whole, tenant=tenant) for tenant in found]
    return [one for part in parts for one in found_in(watch.reader, part, period) or [part]]


def traffic_of(watched: Watched, predicting: Collection[str] = ()) -> Traffic:
    """All of an entry's traffic together. `predicting`: aliases that answer with predictions."""
    if watched.model in predicting:
        return Traffic(model=watched.model, predictions=watched.predictions)
    fields = _fields(watched.prompt)
    return Traffic(
        prompt=watched.prompt,
        model=watched.model,
        question=watched.question or fields.get("user_input"),
        passages=watched.passages or fields.get("retrieved_contexts"),
    )


def looked_until(watch: Watch, subject: str) -> tuple[int, int]:
    """The end of the newest window that was compared, and of the newest whose service levels were
    judged; 0 if there was none."""
    judged = 0
    query = select(VerdictRow.evidence).where(VerdictRow.subject == subject)
    with watch.database.session() as session:
        for evidence in session.scalars(query.order_by(VerdictRow.verdict_id.desc()).limit(1000)):
            judged = judged or int(evidence.get(JUDGED) or 0)
            if evidence.get(UNTIL):
                return int(evidence[UNTIL]), max(int(evidence[UNTIL]), judged)
    return 0, judged


def looked_at(watch: Watch, subject: str) -> int:
    """The moment of the newest look that had something to judge; 0 if there was none."""
    query = select(VerdictRow.evidence, VerdictRow.created_at).where(VerdictRow.subject == subject)
    with watch.database.session() as session:
        rows = session.execute(query.order_by(VerdictRow.verdict_id.desc()).limit(1000))
        looks = (at for evidence, at in rows if evidence.get(UNTIL) or evidence.get(JUDGED))
        last = next(looks, None)
    return 0 if last is None else micros(last)


def _fields(prompt: str | None) -> dict[str, str]:
    """Which variables of a prompt are what, as its file in the library says."""
    if prompt is None:
        return {}
    try:
        found = load_library().get(prompt)
    except (BadPromptFile, OSError):
        return {}
    return dict(found.evaluation.fields) if found is not None else {}


def micros(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return int(moment.timestamp() * 1_000_000)


@contextmanager
def alone(run: Path, subject: str) -> Iterator[None]:
    """Be the one look at `subject`. Raises Conflict."""
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / f"{quote(subject, safe='')}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"a look at {subject} is under way") from None
        yield
