"""How often `llmops prompts evaluate` fails prompts that are not worse, and finds one that is.

    python -m tests.bench.prompt_changes

Answers are drawn, not asked: each golden case of the library has a probability of being answered
rightly (uniform from 0 to 1, so that most cases flip now and then, as at a high temperature), and
base and head draw from it independently, as they draw latency and tokens. What is drawn goes
through the scorers, the gates of the library and the comparison as answers do.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import orjson

from evals.compare import wilson
from evals.evaluation import Client, Evaluation, measured
from evals.golden_cases import golden_path, load_golden
from evals.metrics import metrics_named
from evals.records import Answer, Case
from pipelines.prompt_change import Change
from pipelines.prompt_comparison import Comparison, conclude, conditions_in
from pipelines.prompt_sync import read_sources
from prompts.library import LIBRARY
from prompts.prompt import Prompt

NOBODY = Client("http://127.0.0.1:9/v1", "none", embeddings=None)
WRONG = "no such answer"
LATENCY_MS, SPREAD = 900.0, 0.5  # of a log-normal distribution
TOKENS = (4, 40)


@dataclass(frozen=True)
class Worse:
    """By how much the head's version is worse: `right` is taken from each case's probability,
    `tokens` and `latency` are multiplied."""

    right: float = 0.0
    tokens: float = 1.0
    latency: float = 1.0


NOTHING = Worse()


@cache
def library() -> Mapping[str, Change]:
    """A change of each prompt of the library, which changes nothing that anybody can see."""
    return {one.prompt.name: _changed(one.prompt) for one in read_sources(LIBRARY)}


def _changed(prompt: Prompt) -> Change:
    from evals.gate import Condition

    after = prompt.model_copy(update={"params": {**prompt.params, "top_p": 0.99}})
    after = Prompt.model_validate(after.model_dump(exclude_none=True))
    assert prompt.evaluation.cases is not None
    cases = tuple(load_golden(golden_path(prompt.evaluation.cases)))
    gate = tuple(Condition.model_validate(one) for one in prompt.evaluation.gate)
    return Change(prompt.name, prompt, after, cases, gate)


def drawn(change: Change, chance: random.Random, worse: Worse) -> tuple[Evaluation, Evaluation]:
    """Base and head with drawn answers, measured."""
    rights = [chance.random() for _ in change.cases]
    sides = []
    for prompt, by in ((change.base, NOTHING), (change.head, worse)):
        assert prompt is not None
        cases = tuple(Case(one.case_id, (), one.expected) for one in change.cases)
        answers = tuple(
            (_answer(case, chance, max(right - by.right, 0.0), by),)
            for case, right in zip(cases, rights, strict=True)
        )
        empty = Evaluation(prompt.name, prompt.content_hash, prompt.model, cases, answers, {}, {})
        sides.append(measured(empty, metrics_named(change.metrics), NOBODY))
    return sides[0], sides[1]


def _answer(case: Case, chance: random.Random, right: float, by: Worse) -> Answer:
    expected = case.expected
    if isinstance(expected, list):
        said = " ".join(map(str, expected))
    else:
        said = expected if isinstance(expected, str) else orjson.dumps(expected).decode()
    tokens = round(chance.randint(*TOKENS) * by.tokens)
    latency = LATENCY_MS * chance.lognormvariate(0, SPREAD) * by.latency
    text = said if chance.random() < right else WRONG
    return Answer(case.case_id, text, latency, 50, tokens, "stop", cost_usd=tokens * 1e-7)


def pull_requests(
    changes: Sequence[Change], count: int, worse: Worse = NOTHING, seed: int = 1
) -> Iterator[list[Comparison]]:
    """What becomes of `count` pull requests with these changes."""
    chance, tests = random.Random(seed), conditions_in(changes)
    for _ in range(count):
        yield [conclude(one, *drawn(one, chance, worse), tests) for one in changes]


def share_failed(found: Iterator[list[Comparison]]) -> tuple[float, float, float]:
    """The share that fails (exit code 100), with its 95 % interval."""
    failed = [any(one.failed for one in each) for each in found]
    low, high = wilson(sum(failed), len(failed), 1.96)
    return sum(failed) / len(failed), low, high


SCENARIOS: Sequence[tuple[str, Worse]] = (
    ("nothing is worse", NOTHING),
    ("right in 5 of 100 cases fewer", Worse(right=0.05)),
    ("right in 10 of 100 cases fewer", Worse(right=0.1)),
    ("right in 20 of 100 cases fewer", Worse(right=0.2)),
    ("three times the latency", Worse(latency=3.0)),
)


def main() -> None:
    """Print the table of docs/prompts.md."""
    names = [*library(), "all four"]
    print(f"| exit code 100 | {' | '.join(names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    for what, worse in SCENARIOS:
        count = 1_000 if worse == NOTHING else 200
        cells = []
        for name in names:
            changes = [*library().values()] if name == "all four" else [library()[name]]
            share, low, high = share_failed(pull_requests(changes, count, worse))
            cells.append(f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        print(f"| {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
