"""The extraction task: its halves share nothing, its cases are right, its form fits its answers."""

import re
from collections import Counter

import pytest

from evals.cases import save_cases
from evals.extraction import (
    GOLDEN,
    PARAMETERS,
    SHAPE,
    SYSTEM,
    answer_text,
    held_out,
    is_right,
    make_held_out,
    request_body,
    training_pool,
    with_article,
)
from evals.extraction_words import HELD_OUT, MONTHS, TRAINING

HALVES = {"training": TRAINING, "held-out": HELD_OUT}
VALUE = re.compile(r"\{(\w)\}")
# Spoken with a consonant in front ("a unicyclist") or without one ("an hour"): letters mislead.
MISLEADING = ("eu", "hon", "heir", "hour", "one", "uni", "uk", "ur", "us")
MISLEADING_FINE = {"usher"}
# First names that are cities, common words or jobs too.
AMBIGUOUS = frozenset(
    re.findall(
        r"\w+",
        """Austin Baker Charlotte Chester Cooper Dallas Denver Faith Florence Frank Georgia Grace
        Hope Hunter Jordan Leon Lincoln Lourdes Madison Mark Mason Milan Nancy Paris Petra Rose
        Santiago Savannah Sofia Sydney Taylor Tyler Victor Victoria Vienna Will""",
    )
)


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def sentence(case):
    return case.messages[-1]["content"]


def contents(half):
    return (*half.names, *half.jobs, *half.cities)


def wordings(half):
    return (*half.plain, *half.distracting)


@pytest.fixture(scope="module")
def pool():
    return training_pool(1, 5000)


def test_the_golden_file_is_what_the_rule_makes(tmp_path):
    save_cases(tmp_path / "made.jsonl", make_held_out())
    assert GOLDEN.read_bytes() == (tmp_path / "made.jsonl").read_bytes()


def test_there_is_enough_and_nothing_twice():
    for half, (names, jobs, cities, forms) in (
        (TRAINING, (60, 50, 50, 25)),
        (HELD_OUT, (40, 30, 30, 16)),
    ):
        assert len(half.names) >= names
        assert len(half.jobs) >= jobs
        assert len(half.cities) >= cities
        assert len(wordings(half)) >= forms
        for listed in (contents(half), wordings(half)):
            assert not [one for one, count in Counter(listed).items() if count > 1]


def test_the_halves_share_no_word_and_no_wording():
    assert not {one.lower() for one in contents(TRAINING)} & {
        one.lower() for one in contents(HELD_OUT)
    }
    skeletons = [{VALUE.sub("_", one) for one in wordings(half)} for half in HALVES.values()]
    assert not skeletons[0] & skeletons[1]


def test_no_training_row_holds_anything_of_a_held_out_answer(pool):
    told = set().union(*(words(sentence(case)) for case in pool))
    for case in held_out():
        assert not told & {value.lower() for value in case.expected.values()}, case.case_id
    asked = set().union(*(words(sentence(case)) for case in held_out()))
    for case in pool:
        assert not asked & {value.lower() for value in case.expected.values()}, case.case_id


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_no_wording_holds_a_word_of_the_lists(half):
    listed = {one.lower() for each in HALVES.values() for one in contents(each)}
    listed |= {one.lower() for one in MONTHS}
    for wording in wordings(half):
        assert not words(VALUE.sub(" ", wording)) & listed, wording


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_wording_holds_what_is_asked_for_once(half):
    for wording in wordings(half):
        places = Counter(VALUE.findall(wording))
        assert (places["n"], places["c"], places["j"] + places["a"]) == (1, 1, 1), wording
        assert (wording in half.distracting) == bool(places.keys() & set("opyd")), wording


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_words_can_be_read_one_way(half):
    assert not set(half.names) & set(half.cities)
    assert not set(half.names) & AMBIGUOUS
    for name in (*half.names, *half.cities):
        assert re.fullmatch("[A-Z][a-z]+", name)
    for job in half.jobs:
        assert re.fullmatch("[a-z]+", job)
        assert job in MISLEADING_FINE or not job.startswith(MISLEADING), job
        assert with_article(job) == ("an " if job[0] in "aeiou" else "a ") + job


def test_held_out_cases_are_complete_and_even():
    cases = held_out()
    assert len(cases) == 240
    assert len({sentence(case) for case in cases}) == 240
    assert Counter(case.tags["wording"] for case in cases) == {"plain": 156, "distracting": 84}
    for key, listed in (
        ("name", HELD_OUT.names),
        ("job", HELD_OUT.jobs),
        ("city", HELD_OUT.cities),
    ):
        assert {case.expected[key] for case in cases} == set(listed)


def test_every_answer_is_in_its_sentence_and_fits_the_shape(pool):
    for case in (*held_out(), *pool):
        assert {value.lower() for value in case.expected.values()} <= words(sentence(case))
        text = answer_text(case.expected)
        assert re.fullmatch(SHAPE, text)
        assert is_right(text, case.expected)
        # Two letters a token is the worst that the vocabulary does to such words; the tokenizer
        # itself is asked in tests/e2e.
        assert len(text) <= 64
        assert " a a" not in sentence(case)
        assert " a e" not in sentence(case)


def test_the_pool_is_distinct_steady_and_even():
    pool = training_pool(7, 300)
    assert len({sentence(case) for case in pool}) == 300
    assert len({case.case_id for case in pool}) == 300
    assert training_pool(7, 300) == pool
    assert training_pool(7, 120) == pool[:120]
    assert training_pool(8, 300) != pool
    assert Counter(case.tags["wording"] for case in pool) == {"plain": 200, "distracting": 100}
    assert training_pool(7, 0) == []
    with pytest.raises(ValueError, match="size 100001"):
        training_pool(7, 100_001)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"name":"Ada","job":"poet","city":"Rome"}', True),
        ('{ "city": "Rome", "job": "poet", "name": "Ada" }\n', True),
        ('{"name":"Ada","job":"poet","city":"Roma"}', False),
        ('{"name":"Ada","job":"poet"}', False),
        ('{"name":"Ada","job":"poet","city":"Rome","age":36}', False),
        ('{"name":"Ada","job":"poet","city":"Rome"', False),
        ('["Ada","poet","Rome"]', False),
        ("", False),
    ],
)
def test_is_right(text, right):
    assert is_right(text, {"name": "Ada", "job": "poet", "city": "Rome"}) is right


def test_the_request():
    case = training_pool(1, 1)[0]
    body = request_body("extractor", case.messages)
    assert body == {
        "model": "extractor",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": sentence(case)},
        ],
        "temperature": 0,
        "max_tokens": 24,
        "structured_outputs": {"regex": SHAPE},
    }
    assert PARAMETERS["max_tokens"] == 24
