"""What a scripted judge answers to Ragas' prompts: it parts at full stops and looks for words."""

import json
import re
from typing import Any

DECLINES = "I do not know."


def answer(body: dict[str, Any]) -> str:
    """A right answer to one of Ragas' prompts, in the form that it asks for."""
    system, user = (one["content"] for one in body["messages"][:2])
    title = re.findall(r'"title": "(\w+)"', system)[-1]
    asked = json.loads(user.rpartition("input: ")[2].partition("\nOutput:")[0])
    return json.dumps(_FORMS[title](asked))


def _sentences(text: str) -> list[str]:
    return [one.strip().rstrip(".") + "." for one in text.split(". ") if one.strip()]


def _said(statements: list[str], text: str, verdict: str) -> list[dict[str, Any]]:
    return [
        {"statement": one, "reason": "scripted", verdict: int(one in text)} for one in statements
    ]


_FORMS = {
    "StatementGeneratorOutput": lambda asked: {"statements": _sentences(asked["answer"])},
    "NLIStatementOutput": lambda asked: {
        "statements": _said(asked["statements"], asked["context"], "verdict")
    },
    "AnswerRelevanceOutput": lambda asked: {
        "question": asked["response"], "noncommittal": int(asked["response"] == DECLINES)
    },
    "ContextPrecisionOutput": lambda asked: {
        "reason": "scripted", "verdict": int(asked["answer"] in asked["context"])
    },
    "ContextRecallOutput": lambda asked: {
        "classifications": _said(_sentences(asked["answer"]), asked["context"], "attributed")
    },
    "ClaimDecompositionOutput": lambda asked: {"claims": _sentences(asked["response"])},
}  # fmt: skip
