import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.rows import BadRow, Rows, read_rows
from tests.rlhf.tiny_model import TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASKED = [
    {"role": "system", "content": "City as JSON."},
    {"role": "user", "content": "Ann lives in Oslo."},
]
WORDS = st.text([chr(code) for code in range(32, 127)] + ["\n"], max_size=40)


def read(path: Path, *rows: Any, tokenizer: Any = TOKENIZER, max_length: int = 10_000) -> Rows:
    """Write the rows (texts as they are), read them."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_rows(path, tokenizer, max_length)


def row(completion: str = '{"city": "Oslo"}', messages: Any = ASKED) -> dict[str, Any]:
    return {"messages": messages, "completion": completion}


def test_tokens_are_those_of_the_chat_template(tmp_path):
    (found,) = read(tmp_path / "rows", row()).kept
    prompt = TOKENIZER.apply_chat_template(
        ASKED, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(found.tokens[: found.answer_at]) == prompt
    assert TOKENIZER.decode(found.tokens) == (
        "<|im_start|>system\nCity as JSON.<|im_end|>\n"
        "<|im_start|>user\nAnn lives in Oslo.<|im_end|>\n"
        '<|im_start|>assistant\n{"city": "Oslo"}<|im_end|>'
    )
    assert TOKENIZER.decode(found.tokens[found.answer_at :]) == '{"city": "Oslo"}<|im_end|>'


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), WORDS), min_size=1),
    WORDS.filter(str.strip),
)
def test_any_conversation_is_prompt_and_answer(tmp_path_factory, turns, completion):
    messages = [{"role": role, "content": text} for role, text in turns]
    path = tmp_path_factory.mktemp("rows") / "rows"
    (found,) = read(path, row(completion, messages)).kept
    prompt = TOKENIZER.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    answer = TOKENIZER(completion)["input_ids"]
    assert list(found.tokens) == [*prompt, *answer, TOKENIZER.eos_token_id]
    assert found.answer_at == len(prompt)


def test_the_answer_begins_with_a_token_of_its_own(tmp_path):
    """As when the model serves; here the two characters at the seam would be one unknown token."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n\{|[\s\S]"), "isolated"
    )
    assert tokenizer.unk_token_id in tokenizer("\n{")["input_ids"]
    (found,) = read(tmp_path / "rows", row(), tokenizer=tokenizer).kept
    assert tokenizer.unk_token_id not in found.tokens


def test_a_template_that_does_not_end_turns_gets_the_end_token(tmp_path):
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (found,) = read(tmp_path / "rows", row(), tokenizer=tiny_tokenizer(template)).kept
    assert TOKENIZER.decode(found.tokens[found.answer_at :]) == '{"city": "Oslo"}<|im_end|>'


def test_long_rows_are_dropped_and_named(tmp_path):
    rows = [row("x"), "", row("a longer answer"), row("y")]
    length = len(read(tmp_path / "rows", row("x")).kept[0].tokens)
    found = read(tmp_path / "train.jsonl", *rows, max_length=length)
    assert len(found.kept) == 2
    assert found.dropped == (f"train.jsonl:3: {length + 14} tokens, at most {length} are taken",)
    shorter = read(tmp_path / "train.jsonl", *rows, max_length=length - 1)
    assert not shorter.kept
    assert [one.split(":")[1] for one in shorter.dropped] == ["1", "3", "4"]


def test_no_rows(tmp_path):
    assert read(tmp_path / "rows", "", "  ") == Rows((), ())
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "none", TOKENIZER, 10)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object with messages and completion"),
        ({"completion": "x"}, "messages: is not a list with at least one message"),
        (row(messages=[]), "messages: is not a list with at least one message"),
        (row(messages={"role": "user"}), "messages: is not a list with at least one message"),
        (row(messages=["hello"]), "messages: one has no role"),
        (row(messages=[*ASKED, {"content": "x"}]), "messages: one has no role"),
        (row(messages=[{"role": 1, "content": "x"}]), "messages: one has no role"),
        ({"messages": ASKED}, "completion: is not a text, or empty"),
        (row(" \n"), "completion: is not a text, or empty"),
        ({"messages": ASKED, "completion": {"a": 1}}, "completion: is not a text, or empty"),
        (row(messages=[{"role": "user", "content": None}]), "the chat template .* refuses it"),
        (row(messages=[{"role": "user"}]), "the chat template .* refuses it"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, why):
    with pytest.raises(BadRow, match=rf"^train\.jsonl:3: {why}"):
        read(tmp_path / "train.jsonl", row(), row(), bad, row())


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(BadRow, match=r"^train\.jsonl:2: is not JSON"):
        read_rows(path, TOKENIZER, 100)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no system role') }}", "refuses it: no system role"),
        (
            TEMPLATE.replace("{% for", "{% if messages | length > 2 %}long\n{% endif %}{% for", 1),
            "changes the prompt once it is answered",
        ),
        (
            TEMPLATE.replace("in messages %}", "in messages if message['role'] != 'assistant' %}"),
            "changes the prompt once it is answered",
        ),
        (
            TEMPLATE.replace("{% if add_generation_prompt %}", "{% if messages %}").replace(
                "in messages %}", "in messages if message['role'] != 'assistant' %}"
            ),
            "leaves the answer out",
        ),
        (
            "{% for message in messages if message['role'] == 'assistant' %}"
            "{{ message['content'] }}{% endfor %}",
            "leaves the prompt out",
        ),
    ],
    ids=["refuses", "longer prompt", "prompt only at first", "no answer", "no prompt"],
)
def test_a_template_that_cannot_be_trained_on(tmp_path, template, why):
    with pytest.raises(BadRow, match=rf"^rows:1: the chat template .*{re.escape(why)}"):
        read(tmp_path / "rows", row(), tokenizer=tiny_tokenizer(template))
