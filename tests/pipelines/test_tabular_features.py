"""Which days a tabular model's data set is of."""

from datetime import UTC, date, datetime
from pathlib import Path

import pandas
import pytest

from pipelines.spec import load_spec
from pipelines.tabular_features import Period, build, period
from pipelines.tabular_rows import BadData
from pipelines.tabular_spec import TabularData, sections

TODAY = date(2013, 7, 10)


def data(**changes: object) -> TabularData:
    spec = load_spec(Path("flight-delay"))
    changed = spec.model_copy(update={"dataset": {**spec.dataset, **changes}})
    return sections(changed).dataset


def test_a_spec_with_an_end_is_of_the_same_days_for_ever() -> None:
    first = Period(datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 6, 1, tzinfo=UTC))
    assert period(data(), TODAY) == period(data(), date(2026, 1, 1)) == first


def test_until_today_takes_in_what_came_since_and_no_more_than_there_is() -> None:
    given = data(until="today")
    assert period(given, TODAY).until == datetime(2013, 7, 10, tzinfo=UTC)
    assert period(given, date(2026, 1, 1)).until == datetime(2014, 1, 2, tzinfo=UTC)
    with pytest.raises(BadData, match="2013-01-01 to 2013-01-20 has no day to train on"):
        period(given, date(2013, 1, 20))


def test_a_label_that_is_neither_true_nor_false_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    events = {"scheduled_departure": [TODAY], "distance": [1.5], "late": [True]}
    pandas.DataFrame(events).to_parquet(tmp_path / "flights.parquet")
    wanted = "'distance' is float64; true or false is wanted, as 'late' is"
    with pytest.raises(BadData, match=wanted):
        build("flight-delay", data(label="distance"), tmp_path, "a" * 32, tmp_path)


def test_the_stages_of_a_pass_go_by_the_same_days(tmp_path: Path) -> None:
    asked = period(data(until="today"), TODAY)
    asked.write(tmp_path)
    assert Period.read(tmp_path) == asked
