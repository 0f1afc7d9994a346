"""Orders to the shipper: files that a command leaves for the process that owns the log table.

Only the holder of the spool's lock may rewrite the table. A command takes the lock if it is free
and does the work itself; otherwise it leaves an order and waits for the outcome.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import uuid_utils

from gateway.batches import write_durably

FOLDER = "orders"
DONE = ".done"
ERROR = "error"
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """Work on the table.

    Attributes:
        kind: `compact` merges small files, `retain` applies the configured ages, `erase` forgets
            `user`.
        before: erase what arrived until then, microseconds since the epoch.
        delete_rows: remove the rows; else bodies and identity are cleared and sums stay.
    """

    kind: Literal["compact", "retain", "erase"]
    user: str | None = None
    before: int = 0
    delete_rows: bool = False


Outcome = dict[str, Any]


class OrderFailed(RuntimeError):
    """The shipper could not do it; the message says why."""


class OrderTimeout(TimeoutError):
    """The shipper did not report in time; the order stays and will be carried out."""


def leave(run: Path, order: Order) -> Path:
    """Leave an order for the running shipper; returns its file."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{uuid_utils.uuid7()}.json"
    write_durably(path, orjson.dumps(asdict(order)))
    return path


def await_outcome(path: Path, seconds: float) -> Outcome:
    """What the shipper did. Raises OrderFailed, or OrderTimeout after `seconds`."""
    deadline = time.monotonic() + seconds
    done = path.with_suffix(DONE)
    while not done.exists():
        if time.monotonic() > deadline:
            raise OrderTimeout(f"the shipper has not done {path.name} after {seconds:g} s")
        time.sleep(POLL_SECONDS)
    outcome: Outcome = orjson.loads(done.read_bytes())
    done.unlink()
    if ERROR in outcome:
        raise OrderFailed(str(outcome[ERROR]))
    return outcome


def waiting(run: Path) -> Iterator[tuple[Path, Order]]:
    """Orders not yet carried out, oldest first."""
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            order = Order(**orjson.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            report(path, {ERROR: f"the order cannot be read: {error}"})
            continue
        yield path, order


def report(path: Path, outcome: Outcome) -> None:
    """Tell whoever waits, and take the order off the list."""
    write_durably(path.with_suffix(DONE), orjson.dumps(outcome))
    path.unlink()
