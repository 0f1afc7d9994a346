import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import ascii_letters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.contents import content_hash, variables_hash
from gateway.database import now
from gateway.feedback import FeedbackRow, NewFeedback
from rlhf.conversation import Unusable, answered_in, asked_in, demonstrated
from rlhf.examples import ROWS_AT_ONCE, Collected, Selection, collect
from tests.rlhf.feedback_log import FeedbackLog, answer, question

SELECTION = Selection(tenant="acme", alias="extractor")
RIGHT = {"name": "Ann", "job": "nurse", "city": "Oslo"}
STREAM = b"".join(
    b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()
    + b"\n\n"
    for choice in (
        {"index": 0, "delta": {"role": "assistant", "content": ""}},
        {"index": 0, "delta": {"content": '{"name": '}},
        {"index": 0, "delta": {"content": '"Ann"}'}, "finish_reason": "stop"},
    )
) + b"data: [DONE]\n\n"  # fmt: skip


@pytest.fixture
def log(tmp_path: Path):
    made = FeedbackLog(tmp_path)
    yield made
    made.database.close()


def collected(log: FeedbackLog, **selection) -> Collected:
    fields = {"tenant": "acme", "alias": "extractor"} | selection
    return collect(log.reader(), log.database, Selection(**fields))


def test_a_demonstration_is_the_answer_to_what_was_asked(log):
    request_id = log.ask("Ann is a nurse in Oslo.", user="ann")
    feedback_id = log.show(request_id, RIGHT)
    (example,) = collected(log).examples
    assert list(example.messages) == question("Ann is a nurse in Oslo.")
    assert example.completion == '{"name": "Ann", "job": "nurse", "city": "Oslo"}'
    assert (example.source, example.user) == ("demonstration", "ann")
    assert (example.request_id, example.feedback_id) == (request_id, feedback_id)
    assert example.content_hash == content_hash(question("Ann is a nurse in Oslo."))


def test_an_approved_answer_is_the_logged_one_streamed_or_not(log):
    whole = log.ask("one", '{"name": "Ann"}')
    streamed = log.ask("two", STREAM, stream=True)
    for request_id in (whole, streamed):
        log.rate(request_id)
    found = collected(log).examples
    assert [one.completion for one in found] == ['{"name": "Ann"}', '{"name": "Ann"}']
    assert {one.source for one in found} == {"approved"}


def test_the_table_gives_what_the_spool_gave(log):
    for number in range(5):
        log.show(log.ask(f"sentence {number}"), RIGHT)
        log.rate(log.ask(f"approved {number}", STREAM, stream=True))
    before = collected(log)
    log.ship()
    assert not list((log.home / "spool").glob("*.seg"))
    assert collected(log) == before
    assert len(before.examples) == 10


def test_a_demonstration_wins_over_ratings_of_any_kind(log):
    for ratings in ([True], [False], [True, False]):
        request_id = log.ask(f"rated {ratings}")
        for rating in ratings:
            log.rate(request_id, rating)
        log.show(request_id, RIGHT)
    found = collected(log)
    assert [one.source for one in found.examples] == ["demonstration"] * 3
    assert not found.dropped


def test_what_is_disapproved_or_contradicted_is_dropped(log):
    log.rate(log.ask("bad"), False)
    both = log.ask("both")
    log.rate(both, True)
    log.rate(both, False)
    found = collected(log)
    assert not found.examples
    assert found.dropped == {"disapproved": 1, "contradicted": 1}


def test_only_requests_of_the_tenant_and_the_alias(log):
    for fields in ({"tenant": "other"}, {"model": "another"}):
        request_id = log.ask("elsewhere", **fields)
        log.rate(request_id)
        log.show(request_id, RIGHT)
        log.give(request_id, "demonstration", "from the other tenant", tenant="other")
    stolen = log.ask("ours", "their opinion")
    log.give(stolen, "helpful", True, tenant="other")
    mine = log.ask("mine")
    log.show(mine, RIGHT)
    found = collected(log)
    assert [one.request_id for one in found.examples] == [mine]
    assert found.dropped == {"not_in_log": 1}  # theirs: for us it is as if it were not there


def test_requests_that_failed_or_are_no_chats_are_dropped(log):
    for fields in ({"status": "upstream_cut"}, {"status": "failed"}, {"endpoint": "completions"}):
        log.show(log.ask(str(fields), **fields), RIGHT)
    log.show("01a20918-d3b7-77e7-87ff-378d2b6f5344", RIGHT)
    assert collected(log).dropped == {"not_in_log": 1, "not_chat": 1, "not_ok": 2}


def test_without_a_body_there_is_no_example(log):
    log.show(log.ask("nothing", request=b"", replied={}), RIGHT)
    log.rate(log.ask("no answer", b""))
    assert collected(log).dropped == {"no_body": 2}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer("  "), "empty"),
        (answer(None), "empty"),
        (answer("half an ans", finish_reason="length"), "cut_short"),
        ({"choices": answer("a")["choices"] * 2}, "not_text"),
        ({"choices": []}, "not_text"),
        ([1], "not_text"),
        (b"data: no end", "not_text"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{"id": "x"}]}}]}, "not_text"),
    ],
)
def test_an_approved_answer_that_is_no_text(log, reply, reason):
    log.rate(log.ask("asked", reply))
    assert collected(log).dropped == {reason: 1}


@pytest.mark.parametrize(
    "request_body",
    [
        {"messages": question("x"), "tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "tool", "content": "42"}]},
        {"messages": [*question("x"), {"role": "assistant", "content": "It begins"}]},
        {"messages": []},
        {"prompt": "no messages"},
        [],
    ],
)
def test_a_request_that_is_not_plain_text(log, request_body):
    log.show(log.ask(request=request_body), RIGHT)
    assert collected(log).dropped == {"not_text": 1}


def test_one_example_for_each_content_the_newest_demonstration_wins(log):
    log.rate(log.ask("Ann  is a NURSE.", "approved, and later"))
    first, second = log.ask("Ann is a nurse."), log.ask("ann is a nurse.")
    log.show(second, "older")
    log.show(first, "newer")
    log.rate(log.ask("Ann is a nurse."), True)
    found = collected(log)
    assert [(one.completion, one.request_id) for one in found.examples] == [("newer", first)]
    assert found.dropped == {"superseded": 3}


def test_two_demonstrations_on_one_request(log):
    request_id = log.ask()
    for value in ("first thought", "second thought", "second thought"):
        log.show(request_id, value)
    found = collected(log)
    assert [one.completion for one in found.examples] == ["second thought"]
    assert found.dropped == {"superseded": 1, "duplicate": 1}


def test_held_out_contents_never_become_examples(log):
    log.show(log.ask("Bo is a baker in Rome."), RIGHT)
    log.show(log.ask(" bo is a\nBAKER in rome. "), RIGHT)
    reworded = {"messages": question("Bo is a baker in Rome.", system="Another prompt.")}
    log.show(log.ask(request=reworded), RIGHT)
    log.show(log.ask("Cy is a cook in Rome."), RIGHT)
    held_out = frozenset({content_hash(question("Bo is a baker in Rome."))})
    found = collected(log, excluded=held_out)
    assert [one.messages[1]["content"] for one in found.examples] == ["Cy is a cook in Rome."]
    assert found.dropped == {"held_out": 3}


def test_golden_variables_are_held_out_whatever_the_prompt_made_of_them(log):
    golden = {"ticket": "The bill is wrong."}
    for ticket in (golden["ticket"], " the BILL\nis wrong. ", "The bill is right."):
        text = f"A version of today says: {ticket}"
        log.show(log.ask(text, contexts={"variables": {"ticket": ticket}}), "billing")
    log.show(log.ask("no prompt", contexts={"reference": "x"}), "billing")
    found = collected(log, excluded=frozenset({variables_hash(golden)}))
    assert found.dropped == {"held_out": 2}
    assert [one.messages[1]["content"] for one in found.examples] == [
        "A version of today says: The bill is right.",
        "no prompt",
    ]


def test_since_bounds_requests_and_until_bounds_feedback(log):
    old = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    log.show(log.ask("long ago", ts=old), RIGHT)
    log.show(log.ask("today"), RIGHT)
    since = now() - timedelta(days=1)
    texts = [one.messages[1]["content"] for one in collected(log, since=since).examples]
    assert texts == ["today"]
    assert not collected(log, until=since).examples
    assert len(collected(log, until=now() + timedelta(days=1)).examples) == 2


def test_a_float_metric_approves_at_its_maximum(log):
    for rating in (5, 4.5):
        log.give(log.ask(f"rated {rating}"), "rating", rating)
    found = collected(log, positive_metric="rating", approved_from=5)
    assert [one.messages[1]["content"] for one in found.examples] == ["rated 5"]
    assert found.dropped == {"disapproved": 1}
    with pytest.raises(ValueError, match=r"'rating' has the value .*approved_from"):
        collected(log, positive_metric="rating")


def test_the_upstreams_own_id_leads_to_the_request(log):
    request_id = log.ask(upstream_id="gen-77")
    log.feedback.add(NewFeedback("acme", "key-1", "demonstration", RIGHT, reference="gen-77"))
    assert [one.request_id for one in collected(log).examples] == [request_id]


def test_the_unit_is_the_user_else_the_episode_else_the_key(log):
    for fields in (
        {"user": "ann", "episode_id": "e1"},
        {"user": None, "episode_id": "e1"},
        {"user": None},
    ):
        log.show(log.ask(str(fields), **fields), RIGHT)
    assert [one.user for one in collected(log).examples] == ["ann", "e1", "key-1"]


def test_every_candidate_is_an_example_or_counted(log):
    rng = random.Random(5)
    candidates = 0
    for _ in range(300):
        status = rng.choice(["ok"] * 5 + ["failed"])
        request_id = log.ask(f"text {rng.randrange(60)}", rng.choice(["a", "b", ""]), status=status)
        shown, rated = rng.choice([0, 0, 1, 2]), rng.choice([0, 1, 2])
        for _ in range(shown):
            log.show(request_id, rng.choice(["a", "b"]))
        for _ in range(rated):
            log.rate(request_id, rng.random() < 0.7)
        candidates += shown or min(1, rated)
    held_out = frozenset(content_hash(question(f"text {n}")) for n in range(6))
    found = collected(log, excluded=held_out)
    assert len(found.examples) + sum(found.dropped.values()) == candidates
    hashes = [one.content_hash for one in found.examples]
    assert len(set(hashes)) == len(hashes) > 20
    assert not held_out & set(hashes)
    ids = [one.request_id for one in found.examples]
    assert ids == sorted(ids)
    log.ship()
    assert collected(log, excluded=held_out) == found


def test_many_rows_take_few_queries(log, monkeypatch):
    size = ROWS_AT_ONCE * 2 + 10
    ids = [log.ask(f"sentence {number}", user=f"u{number % 50}") for number in range(size)]
    _give_to_all(log, ids)
    log.ship()
    reader, queries = log.reader(), []
    plain = reader.rows

    def counted(*given, **named):
        queries.append(given)
        return plain(*given, **named)

    monkeypatch.setattr(reader, "rows", counted)
    found = collect(reader, log.database, SELECTION)
    assert len(found.examples) == size
    assert len(queries) == 6


def _give_to_all(log: FeedbackLog, ids: list[str]) -> None:
    with log.database.transaction() as session:
        session.add_all(
            FeedbackRow(
                feedback_id=request_id, tenant="acme", key_id="key-1", reference=request_id,
                request_id=request_id, metric_name="demonstration", type="demonstration",
                value=RIGHT, tags={}, created_at=now(), state="pending",
            )
            for request_id in ids
        )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  plain text\n", "plain text"),
        ({"role": "assistant", "content": "of a message"}, "of a message"),
        ({"content": "of a message"}, "of a message"),
        ({"role": "assistant", "content": [{"type": "text", "text": "part"}]}, "part"),
        ({"name": "Åse", "job": "nurse"}, '{"name": "Åse", "job": "nurse"}'),
        ({"content": 4}, '{"content": 4}'),
        ({"content": "x", "title": "y"}, '{"content": "x", "title": "y"}'),
        ([1, 2.0, None], "[1, 2.0, null]"),
    ],
)
def test_a_demonstration_as_text(value, text):
    assert demonstrated(value) == text


@pytest.mark.parametrize(
    "value",
    [" ", {"content": ""}, {"role": "assistant", "content": "x", "tool_calls": [{"id": "x"}]}],
)
def test_a_demonstration_without_text(value):
    with pytest.raises(Unusable):
        demonstrated(value)


@given(st.lists(st.text()), st.sampled_from(["\t", "\n", "  "]))
def test_white_space_does_not_change_the_content(words, space):
    text = " ".join(words)
    assert content_hash(question(text)) == content_hash(question(text.replace(" ", space) + space))
    assert content_hash(question(text)) != content_hash(question(text + " more"))


@given(st.text(ascii_letters + "éß "))
def test_case_does_not_change_the_content(text):
    assert content_hash(question(text)) == content_hash(question(text.upper()))


def test_turns_are_part_of_the_content():
    one = [{"role": "user", "content": "a b"}]
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert content_hash(one) != content_hash(two)
    assert content_hash([{"role": "system", "content": "a"}]) != content_hash(one)
    assert content_hash([{"role": "system", "content": "S"}, *one]) == content_hash(one)


NAMES = st.sampled_from(["messages", "choices", "message", "content", "role", "tools", "text"])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    )
)
def test_any_body_is_read_or_refused(body):
    for read in (asked_in, answered_in):
        try:
            assert read(json.dumps(body))
        except Unusable as error:
            assert error.reason in {"no_body", "not_text", "cut_short", "empty"}
