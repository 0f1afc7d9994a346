"""The study's report: what is claimed, what was reached, and what it rests on."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scipy import stats  # type: ignore[import-untyped]

from tests.bench.drift.traffic import CHANGES, MIXES
from tests.bench.drift.trials import DAYS, FEW_AXES, LOOKS_AT_MOST, Terms

Result = Mapping[str, Any]
MOST_ALARMS, MOST_BOUND, LEAST_POWER = 0.05, 0.07, 0.9
SHOWN_SIGNALS = 3


def write_report(
    path: Path, sources: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> None:
    """Write it as Markdown."""
    terms = Terms()
    parts = [
        INTRODUCTION.format(
            hours=terms.hours, alarms=terms.plan.alarms, month=terms.month_reference,
            reference=terms.reference, window=terms.window, few=FEW_AXES, per_day=terms.per_day,
        ),
        "## Texts\n\n" + _sources(sources),
        "## False alarms\n\n" + _months([one for one in results if one["kind"] == "month"]),
        "## A first window with drift\n\n" + _power(results, terms),
        "## Time to detection\n\n" + _times(results, terms),
        LIMITS,
        _spent(results),
    ]  # fmt: skip
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")


INTRODUCTION = """
# Drift: the detection study

`python -m tests.bench.drift --report docs/drift-study.md` made this page: simulated traffic, drawn
out of real texts, is looked at by the code that looks at real traffic (`evals/comparison.py`,
`evals/spending.py`, `evals/drift_verdict.py`), under the shipped schedule: a look every {hours:g}
hours, a budget of {alarms:g} false alarms per subject and month. How it works is in
[drift](drift.md).

Every request has a question (at most 14 words) and an answer (at most 36), a user who sends two
requests on average, both out of the same page, tokens (from the length), a price, 2 % refusals and
3 % empty retrievals. Their embeddings are all-MiniLM-L6-v2's. A 20 % mix means that every fifth
request is of users who ask about the other texts. In the simulated months the reference has {month}
rows, each window {window}, and embeddings are cut to their {few} foremost axes, for the sake of
time; in all other trials the reference has {reference} rows, none of whose texts comes again, and
the embeddings are whole.
"""

LIMITS = """
## What this does not say

- The refusals, longer answers, the other model and the worse prompt are made by rule: a preface, a
  list and a closing phrase for another model, answers that break off after 6 to 14 words for the
  worse prompt. A model that errs in the same words is not found by any of this: that is what
  [evaluations](evaluation.md) on a schedule are for.
- Traffic that changes with the hour or the weekday drifts from a reference of one night. Pin a
  reference that covers a whole week.
- Texts are those of manuals. Other texts give other figures for the power; the rate of false alarms
  rests on tests that hold for any.
"""


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = [(one["name"], one["packages"], one["licence"], one["rows"]) for one in sources]
    return (
        _table(("texts", "from", "licence", "pairs"), rows)
        + "\n\nDebian's packages state the licence of each page in `/usr/share/doc/<package>/"
        "copyright`. Nothing of them is in this repository."
    )


def _months(months: Sequence[Result]) -> str:
    if not months:
        return "Not run yet."
    cried = [one for one in months if one["alarms"]]
    low, high = interval(len(cried), len(months))
    bound = float(stats.beta.ppf(0.95, len(cried) + 1, len(months) - len(cried)))
    looks = sum(one["looks"] for one in months)
    signals = Counter(name for one in months for name in {alarm[1] for alarm in one["alarms"]})
    by = ", ".join(f"{name} {count}" for name, count in signals.most_common())
    share = len(cried) / len(months)
    met = share <= MOST_ALARMS and bound <= MOST_BOUND
    return (
        f"{len(months):,} months of {DAYS} days without drift, {looks:,} looks: {len(cried)} "
        f"months with an alarm, **{share:.1%}** (95 % interval {low:.1%} to {high:.1%}; one-sided "
        f"95 % bound {bound:.1%}). Goal: at most {MOST_ALARMS:.0%}, bound at most "
        f"{MOST_BOUND:.0%}: {'met' if met else 'MISSED'}. Signals that cried: {by or 'none'}."
    )


def _power(results: Sequence[Result], terms: Terms) -> str:
    rows = []
    for change in MIXES:
        trials = _of(results, "power", change.name)
        if not trials:
            continue
        found = sum(bool(one["found"]) for one in trials)
        low, high = interval(found, len(trials))
        met = "met" if found / len(trials) >= LEAST_POWER else "MISSED"
        rows.append(
            (change.name, len(trials), f"{found / len(trials):.1%}", f"{low:.1%} to {high:.1%}",
             met, _signals(trials))
        )  # fmt: skip
    head = ("change", "trials", "found", "95 % interval", f"goal {LEAST_POWER:.0%}", "by")
    return (
        f"The first window of {terms.window} rows after the change, at a regular look in the "
        "middle of a month. `by`: the signals that found it most often.\n\n" + _table(head, rows)
    )


def _times(results: Sequence[Result], terms: Terms) -> str:
    rows = []
    for change in CHANGES:
        trials = _of(results, "time", change.name)
        if not trials:
            continue
        ended = [one for one in trials if one["found"]]
        missed = len(trials) - len(ended)
        requests = [one["requests"] if one["found"] else float("inf") for one in trials]
        hours = [one["hours"] if one["found"] else float("inf") for one in trials]
        rows.append(
            (change.name, len(trials), *_middle_and_late(requests), *_middle_and_late(hours),
             missed or "", _signals(trials))
        )  # fmt: skip
    head = (
        "change", "trials", "requests: median", "p95", "hours: median", "p95", "not found", "by"
    )  # fmt: skip
    return (
        f"{terms.per_day:,} requests a day and a look every {terms.hours:g} hours; the change "
        "comes at any moment between two looks, so half an interval is waited for on average "
        f"before anything can be seen. `not found`: in {LOOKS_AT_MOST} looks.\n\n"
        + _table(head, rows)
    )


def _middle_and_late(values: list[float]) -> tuple[str, str]:
    ordered = sorted(values)
    late = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
    return f"{median(ordered):,.0f}", f"{late:,.0f}"


def _signals(trials: Sequence[Result]) -> str:
    counted = Counter(name for one in trials for name in one["found"])
    most = counted.most_common(SHOWN_SIGNALS)
    return ", ".join(f"{name} {count / len(trials):.0%}" for name, count in most)


def _of(results: Iterable[Result], kind: str, change: str) -> list[Result]:
    return [one for one in results if (one["kind"], one["change"]) == (kind, change)]


def interval(count: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Clopper and Pearson)."""
    low = float(stats.beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0
    return low, high


def _spent(results: Sequence[Result]) -> str:
    minutes = sum(one["cpu"] for one in results) / 60
    return f"{len(results):,} trials took {minutes:.0f} minutes of one processor."


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
