"""Rows of a training file as tokens: what was asked, then the answer that is learnt.

A row is `{"messages": [...], "completion": "..."}`. The prompt is what the model's own chat
template makes of the messages, and the answer what the template adds for the completion, up to and
including the token that ends the turn: a model that is not taught to stop goes on talking. Prompt
and answer are tokenised apart, as when the model serves: there the answer begins with a new token.

Nothing is cut: a row of more tokens than are allowed is left out and named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

# Templates are programs: beside the errors of their language they raise Python's own.
OF_TEMPLATES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class BadRow(ValueError):
    """A row cannot be trained on; the message names file and line, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one conversation. `answer_at` is where the answer begins; it ends the row."""

    tokens: tuple[int, ...]
    answer_at: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file. `dropped` names each that was left out, and why."""

    kept: tuple[Row, ...]
    dropped: tuple[str, ...]


def read_rows(path: Path, tokenizer: Any, max_length: int) -> Rows:
    """Read and tokenise `path`; rows of more than `max_length` tokens are dropped by name.

    Raises:
        BadRow: a line is not such a row, or the chat template cannot render it.
        FileNotFoundError: there is no such file.
    """
    kept, dropped = [], []
    for where, messages, completion in _lines(path):
        row = _tokens(where, messages, completion, tokenizer)
        if len(row.tokens) > max_length:
            dropped.append(f"{where}: {len(row.tokens)} tokens, at most {max_length} are taken")
        else:
            kept.append(row)
    return Rows(tuple(kept), tuple(dropped))


def _lines(path: Path) -> Iterator[tuple[str, Sequence[Mapping[str, Any]], str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise BadRow(f"{where}: is not JSON: {error}") from error
            yield where, *_parts(where, content)


def _parts(where: str, content: Any) -> tuple[Sequence[Mapping[str, Any]], str]:
    if not isinstance(content, dict):
        raise BadRow(f"{where}: is not a JSON object with messages and completion")
    messages, completion = content.get("messages"), content.get("completion")
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where}: messages: is not a list with at least one message")
    if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
        raise BadRow(f"{where}: messages: one has no role")
    if not isinstance(completion, str) or not completion.strip():
        raise BadRow(f"{where}: completion: is not a text, or empty")
    return messages, completion


def _tokens(
    where: str, messages: Sequence[Mapping[str, Any]], completion: str, tokenizer: Any
) -> Row:
    from jinja2 import TemplateError

    answered = [*messages, {"role": "assistant", "content": completion}]
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
    except (TemplateError, *OF_TEMPLATES) as error:
        raise BadRow(f"{where}: the chat template of the base model refuses it: {error}") from error
    if not whole.startswith(prompt):
        raise BadRow(
            f"{where}: the chat template of the base model changes the prompt once it is answered; "
            "such a model cannot be trained on the answer alone"
        )
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(prompt) :].rstrip(), add_special_tokens=False)["input_ids"]
    if not asked or not answer:
        left_out = "answer" if asked else "prompt"
        raise BadRow(f"{where}: the chat template of the base model leaves the {left_out} out")
    if answer[-1] not in tokenizer.all_special_ids:  # the template does not end turns
        answer = [*answer, tokenizer.eos_token_id]
    return Row((*asked, *answer), len(asked))
