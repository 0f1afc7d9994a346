"""Real flights of some days of 2013, with their feature tables, for tests."""

from datetime import UTC, datetime
from pathlib import Path

from pipelines import flights

SINCE, UNTIL = datetime(2013, 2, 10, tzinfo=UTC), datetime(2013, 2, 17, tzinfo=UTC)


def write_week(folder: Path) -> Path:
    """A week in February with a snow storm in it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    flights.write(folder, SINCE, UNTIL)
    return folder
