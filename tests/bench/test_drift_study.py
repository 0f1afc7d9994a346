"""The detection study's own parts, on a small made-up pool."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tests.bench.drift import pool as pools
from tests.bench.drift.__main__ import fresh_database, read_results
from tests.bench.drift.report import interval, write_report
from tests.bench.drift.traffic import CHANGES, MIXES, STEADY, Traffic
from tests.bench.drift.trials import Study, Terms
from tests.evals.drift_log import COOKING, ENGLISH, GERMAN

WORDS = {"commands": ENGLISH, "project": COOKING, "german": GERMAN}


def made_pool() -> pools.Pool:
    draw, numbers = random.Random(5), np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for source, text in WORDS.items():
        words = text.split()
        for place in range(900 if source == pools.BASE else 200):
            asked, told, more = (" ".join(draw.choices(words, k=k)) for k in (10, 25, 35))
            rows.append(
                {"source": source, "user": f"{source}{place // 2:04d}", "question": asked,
                 "answer": told, "longer": more}
            )  # fmt: skip
    users = {name: number for number, name in enumerate(sorted({row["user"] for row in rows}))}
    for row in rows:
        row["user"] = users[row["user"]]
    questions = [{"source": r["source"], "user": r["user"], "text": r["question"]} for r in rows]
    answers = [{"source": r["source"], "place": i, "text": r["answer"]} for i, r in enumerate(rows)]
    tables, vectors = {}, {}
    for side, texts in (("question", questions), ("answer", answers + pools._changes(rows))):
        table = pools._measured(side, pandas.DataFrame(texts))
        centre = {source: numbers.normal(size=24) for source in WORDS}
        tables[side] = table
        vectors[side] = np.array(
            [centre.get(one, centre["commands"]) / 2 + numbers.normal(size=24) for one in
             table["source"]], dtype="float16",
        )  # fmt: skip
    return pools.Pool(tables["question"], tables["answer"], vectors, [])


@pytest.fixture(scope="module")
def pool() -> pools.Pool:
    return made_pool()


@pytest.fixture(scope="module")
def study(pool: pools.Pool) -> Iterator[Study]:
    terms = Terms(month_reference=300, reference=500, window=300, per_day=400, hours=240)
    with fresh_database() as database:
        yield Study(pool, database, terms)


def test_a_mix_has_its_share_of_whole_users_and_the_rest_is_steady(pool):
    traffic = Traffic(pool, np.random.default_rng(1))
    (change,) = (one for one in MIXES if one.source == "german")
    rows = traffic.draw(500, change)
    assert len(rows) == 500
    sources = pool.questions["source"].to_numpy()[rows.questions]
    assert (sources == "german").sum() == 100
    assert set(sources) == {"german", "commands"}
    answers = pool.answers["source"].to_numpy()[rows.answers]
    assert ((answers == sources) | (answers == pools.REFUSED)).all()
    again = traffic.draw(500, change)
    assert not set(rows.users) & set(again.users)


def test_the_texts_of_a_reference_kept_apart_do_not_come_again(pool):
    traffic = Traffic(pool, np.random.default_rng(1))
    reference = traffic.apart(300)
    assert 300 <= len(reference) <= 304
    assert not set(reference.questions) & set(traffic.draw(2000, STEADY).questions)


def test_a_month_spends_its_budget_and_the_same_seed_is_the_same_month(study):
    one = study.month(7)
    assert (one["looks"], one["left"]) == (3, 0.0)
    assert isinstance(one["alarms"], list)


@pytest.mark.parametrize("change", [one for one in CHANGES if one.source in (None, "german")])
def test_what_changes_plainly_is_found_in_time(study, change):
    found = study.time(3, change)
    assert found["found"], change
    assert found["requests"] == pytest.approx(found["hours"] * 400 / 24)


def test_a_mix_of_another_language_is_found_in_its_first_window(study):
    (change,) = (one for one in MIXES if one.source == "german")
    found = study.power(1, change)
    assert "question_language" in found["found"]
    assert 0 < found["level"] < 0.05


def test_the_report_counts_and_says_what_was_missed(tmp_path: Path):
    months = [{"kind": "month", "change": "steady", "seed": seed, "cpu": 1.0, "looks": 30,
               "alarms": [[3, "cost_usd"]] if seed < 3 else []} for seed in range(100)]  # fmt: skip
    power = [{"kind": "power", "change": MIXES[0].name, "seed": seed, "cpu": 1.0,
              "found": ["question_text"] if seed < 80 else []} for seed in range(100)]  # fmt: skip
    write_report(tmp_path / "study.md", [], [*months, *power])
    text = (tmp_path / "study.md").read_text()
    assert "3 months with an alarm, **3.0%**" in text
    assert "MISSED. Signals that cried: cost_usd 3" in text  # a hundred months prove too little
    assert "| 100 | 80.0% | 70.8% to 87.3% | MISSED | question_text 80% |" in text


def test_a_line_that_was_cut_off_is_no_result(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"kind": "month", "seed": 1}\n{"kind": "mo')
    assert read_results(path) == [{"kind": "month", "seed": 1}]


def test_the_interval_is_clopper_and_pearsons():
    assert interval(0, 100) == pytest.approx((0.0, 0.0362), abs=1e-4)
    assert interval(80, 100) == pytest.approx((0.7082, 0.8733), abs=1e-4)
