"""What the demo writes: tables, pictures, a page; all of it from the account."""

import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.demo import grids, report
from deploy.demo.account import Account, Act, Expectation, Point, Trial
from deploy.demo.crowd import Tally
from deploy.demo.plot import AXIS, interval_bar, interval_svg
from deploy.demo.stage import Answered, ArmState, Chain, Champion, Step, Trained, TrialState
from deploy.demo.telling import Teller
from deploy.demo.terms import Terms
from evals.records import Decision, MetricResult, Verdict

AT = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
METRIC = MetricResult("exact_match", 0.0, 0.7833, 0.7833, 0.7194, 0.8345, 240, True)
SHARES = st.floats(-1, 1)
POINTS = st.lists(st.tuples(st.integers(1, 500), SHARES, SHARES, SHARES), max_size=30)


def _state(state: str = "promoted") -> TrialState:
    arms = (
        ArmState("champion", None, None, 12, 0.08),
        ArmState("challenger", "1", "extractor-3f2a90c1d4e5", 13, 0.77),
    )
    return TrialState(
        "0190-e", state, arms, 0.69, 0.31, 0.93, 0.95, "the candidate is better", "0190-v",
        "0190-p", AT, AT + timedelta(seconds=21),
    )  # fmt: skip


def _trial(name: str = "A/B", points: int = 3) -> Trial:
    course = [Point(5 * n, 3.0 * n, 0.6, 0.1 * n - 0.5, 0.9) for n in range(1, points + 1)]
    tally = Tally(users=30, sent=60, answered=60, right=31, helpful=22, unhelpful=20, silent=18)
    champion = Champion("1", "extractor-3f2a90c1d4e5", "1")
    return Trial(name, _state(), course, tally, 1.2, 21.0, 0.8, 0.4, champion)


def _account(**changes: object) -> Account:
    verdict = Verdict(
        "0190-v", "extractor-3f2a90c1d4e5", "base", Decision.PROMOTE, (METRIC,), ("better",), {}, AT
    )
    trained = Trained(
        "0190-r", "d" * 32, "t" * 32, "1", "extractor-3f2a90c1d4e5",
        {"train": 148, "validation": 17, "dropped: cut_short": 9}, METRIC, verdict, [0.0], [1.0],
        (2.1, 0.2), {"train": 40.5},
    )  # fmt: skip
    account = Account(Terms("extractor", 7), AT, {"cores": "2 (a | b)"})
    act = Act(1, "Before", 71.0, [Expectation("every request is answered", "0 failed", True)])
    account.acts = [act]
    account.before = Tally(users=135, sent=270, answered=270)
    account.trained = trained
    account.trials = [_trial(), _trial("A/A")]
    account.chain = Chain("promotion 0190-p\n└── x", frozenset(), True, "whole")
    account.logged = [Answered(None, 300, 0, 150, AT, AT)]
    account.seconds = 432.1
    for name, value in changes.items():
        setattr(account, name, value)
    return account


def test_the_page_has_what_was_measured(tmp_path: Path):
    page = tmp_path / "docs" / "demo.md"
    written = report.write(_account(), page)
    assert {path.name for path in written} == {"demo.md", "demo-ab.svg", "demo-aa.svg"}
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(
        path.name for path in written
    )
    text = page.read_text()
    for fact in (
        "`llmops demo --seed 7` on 2030-01-02 at 03:04 UTC",
        "| exact_match | 0.0 % | 78.3 % | +78.3 [+71.9, +83.5] | 240 | passed |",
        "| | challenger | extractor-3f2a90c1d4e5 | 13 | 77.0 % | +69.0 [+31.0, +93.0] "
        "| promoted | 21.0 s |".replace("| |", "|  |", 1),
        "(demo-ab.svg)",
        "| all | 195 | 390 | 0 |",
        "| everything | 432.1 s |",
        "| base | 300 | 0 | 150 |",
        "| dropped: cut_short | 9 |",
        "└── x",
        "| cores | 2 (a \\| b) |",
        Terms("extractor", 7).digest,
        "All 1 expectations were met.",
    ):
        assert fact in text, fact


def test_what_was_not_as_expected_is_said_first():
    unmet = Act(1, "A/A", 1.0, [Expectation("nothing is promoted", "promoted", False)])
    text = report.markdown(_account(acts=[unmet]), {"A/B": "a.svg", "A/A": "b.svg"})
    assert "Not as expected: nothing is promoted" in text.split("##")[0]
    assert "| ✗ | 1. nothing is promoted | promoted |" in text
    account = _account(ended="the gate is shut")
    assert not account.as_expected
    assert "It ended early: the gate is shut" in report.markdown(account, _names())


def _names() -> dict[str, str]:
    return {"A/B": "a.svg", "A/A": "b.svg"}


def test_an_account_that_ended_early_can_be_shown():
    account = Account(Terms("extractor", 7), AT, {}, ended="MLflow is away")
    assert "MLflow is away" in report.markdown(account, {})
    sink = io.StringIO()
    report.tell(Teller(Console(file=sink)), account)
    assert "MLflow is away" in sink.getvalue()


@given(POINTS)
def test_a_picture_is_well_formed_and_stays_in_its_frame(points):
    course = [
        Point(users, 1.0, at, min(low, high), max(low, high)) for users, at, low, high in points
    ]
    trial = replace(_trial(), course=sorted(course, key=lambda point: point.users))
    root = ET.fromstring(interval_svg(trial))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for pair in element.attrib.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width and 0 <= y <= height


@given(SHARES, SHARES, SHARES)
def test_a_bar_has_the_width_of_its_axis(at, one, other):
    low, high = min(one, other), max(one, other)
    bar = interval_bar(Point(1, 1.0, at, low, high))
    assert len(bar) == len(AXIS)
    assert bar.count("●") == 1
    if low > 0.1:
        assert bar[: len(AXIS) // 2].strip(" ●") == ""


def test_the_course_is_thinned_to_its_ends():
    grid = grids.course(_trial(points=40), 9)
    assert len(grid.rows) == 9
    assert grid.rows[0][0] == "5" and grid.rows[-1][0] == "200"
    assert len(grids.course(_trial(points=4), 9).rows) == 4


def test_the_terms_change_their_digest_with_anything_in_them():
    terms = Terms("extractor", 7)
    assert terms.digest == Terms("extractor", 7).digest
    for other in (
        replace(terms, seed=8),
        replace(terms, rule=replace(terms.rule, noise=0.11)),
        replace(terms, budget=replace(terms.budget, aa_users=99)),
        replace(terms, thresholds={"alpha": "0.06"}),
    ):
        assert other.digest != terms.digest


def test_progress_without_a_terminal_is_a_few_lines():
    sink = io.StringIO()
    with Teller(Console(file=sink)).progress() as show:
        for done in range(1, 101):
            show(Step("evaluate", done, 100, f"[loss] {done}"))
        show(Step("evaluate", 100, 100))
        show(Step("register", 0, None))
    lines = sink.getvalue().splitlines()
    assert lines == ["  evaluate: 1/100  [loss] 1", "  evaluate: 100/100  [loss] 100",
                     "  register: 0"]  # fmt: skip


def test_progress_on_a_terminal_is_a_bar():
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=True, width=120)
    with Teller(console).progress() as show:
        show(Step("train", 1, 20, "[loss] 2.1"))
        show(Step("train", 20, 20, "loss 0.2"))
        show(Step("requests", 5, None, "5 users"))
    assert "20/20" in sink.getvalue() and "5 users" in sink.getvalue()
