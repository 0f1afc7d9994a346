"""Refusals are found in several languages, and answers that speak of refusals are none."""

import re
from pathlib import Path

import pytest

from evals.refusals import is_refusal, refusal_language
from evals.sentences import sentences

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I'm sorry, but I can't help with that.", "en"),
        ("I\u2019m sorry, but as an AI language model I don\u2019t have opinions.", "en"),
        ("I cannot provide medical advice.", "en"),
        ("As an AI, I am unable to browse the internet.", "en"),
        ("I don't know.", "en"),
        ("The passages do not say which port it uses.", "en"),
        ("The provided context doesn't mention it.", "en"),
        ("Sorry, I have no answer to that.", "en"),
        ("Es tut mir leid, aber das kann ich nicht beantworten.", "de"),
        ("Leider weiß ich das nicht.", "de"),
        ("Als KI-Sprachmodell habe ich keine Meinung.", "de"),
        ("Die Abschnitte enthalten keine Angabe dazu.", "de"),
        ("Je suis désolé, mais je ne peux pas répondre.", "fr"),
        ("En tant qu'IA, je n'ai pas d'opinion.", "fr"),
        ("Lo siento, pero no puedo ayudar con eso.", "es"),
        ("Mi dispiace, ma non posso rispondere a questa domanda.", "it"),
        ("Desculpe, mas não posso ajudar com isso.", "pt"),
        ("Het spijt me, daar kan ik niet bij helpen.", "nl"),
        ("Niestety nie mogę na to odpowiedzieć.", "pl"),
        ("К сожалению, я не могу ответить на этот вопрос.", "ru"),  # noqa: RUF001
        ("抱歉，我无法回答这个问题。", "zh"),  # noqa: RUF001
        ("申し訳ありませんが、お答えできません。", "ja"),
    ],
)
def test_refusals(text, language):
    assert refusal_language(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The gateway refuses bodies that it cannot parse.",
        "A deleted key cannot be restored.",
        "You can't use a key after it has expired.",
        "It does not retry a call that failed.",
        "Ich habe den Schlüssel erneuert.",
        "Das Gateway kann die Anfrage nicht wiederholen, also bricht es ab.",
        "La clave no se guarda en la base de datos.",
        "Le serveur ne répond pas dans ce cas.",
        '{"name": "Ada", "job": "poet"}',
    ],
)
def test_answers(text):
    assert not is_refusal(text)


def test_no_sentence_of_the_documentation_is_a_refusal():
    found = [
        sentence
        for page in sorted(DOCS.glob("*.md"))
        for sentence in sentences(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        if is_refusal(sentence)
    ]
    assert found == []


def test_only_the_beginning_counts_and_length_does_not_hurt():
    assert not is_refusal("The answer is 4000. " * 30 + "I cannot help with more.")
    assert is_refusal("I cannot answer that. " * 200_000)
