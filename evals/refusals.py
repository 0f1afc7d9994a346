"""Whether an answer declines to answer, in the words of several languages.

A refusal says so where it begins, in the first person or as the model ("I'm sorry, but I can't …",
"As an AI …", "I don't know", "the passages do not say"): only the beginning is looked at, so an
answer that tells what a program refuses is none.
"""

import re
import unicodedata
from collections.abc import Mapping

BEGINNING = 240  # characters that are looked at

# Case, accents' spellings and kinds of apostrophe do not count; see `_plain`.
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "en": (
        r"\bi(?:'m| am) (?:very |so |really )?(?:sorry|afraid)\b.{0,40}"
        r"\b(?:can't|cannot|can not|unable|won't|not able|don't|do not)\b",
        r"\bi (?:can't|cannot|can not|won't|will not|could not|couldn't|must decline to)"
        r" (?:\w+ )?(?:answer|help|assist|provide|comply|do that|fulfil|fulfill|share|find|say"
        r"|tell|engage|give|discuss|determine|verify)\b",
        r"\bi(?:'m| am) (?:not able|unable|not allowed|not in a position) to\b",
        r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b.{0,80}"
        r"\b(?:can't|cannot|unable|don't|do not|not able)\b",
        r"\bi (?:don't|do not) (?:know|have (?:enough|any|access|the) ?(?:information|data)?)\b",
        r"\b(?:passages?|context|documents?|documentation|text|sources?)(?: provided| given)?"
        r" (?:do(?:es)? not|don't|doesn't) (?:say|mention|contain|state|include|provide|answer"
        r"|specify|cover)\b",
        r"\bi must (?:respectfully )?(?:decline|refuse)\b",
        r"^(?:sorry|no answer|not (?:stated|mentioned|answerable|enough information))\b",
    ),
    "de": (
        r"\b(?:tut mir leid|entschuldigung|leider)\b.{0,60}\b(?:kann|darf|konnte|weiß|habe) ich\b"
        r".{0,60}\b(?:nicht|kein\w*)\b",
        r"\bich (?:kann|darf|werde|konnte|möchte)\b.{0,60}\bnicht\b.{0,60}\b(?:beantworten|helfen"
        r"|geben|sagen|bereitstellen|unterstützen|teilen|finden)\b",
        r"\bich weiß (?:es )?(?:leider )?nicht\b",
        r"\bals (?:ki|sprachmodell|künstliche intelligenz)\b.{0,80}\b(?:nicht|kein\w*)\b",
        r"\b(?:abschnitte?|texte?|kontext|dokumente?|quellen?)\b.{0,30}"
        r"\b(?:nicht|keine (?:angabe|information|antwort))\b",
    ),
    "fr": (
        r"\b(?:je suis )?désolée?\b.{0,60}\b(?:ne|n')\b",
        r"\bje ne (?:peux|suis|sais|dispose|souhaite)\b.{0,30}\b(?:pas|aucun)\b",
        r"\ben tant qu(?:e |')(?:ia|intelligence artificielle|modèle)\b",
        r"\b(?:passages?|contexte|documents?|texte|sources?)\b.{0,20}\bne\b.{0,30}\bpas\b",
    ),
    "es": (
        r"\blo siento\b.{0,60}\b(?:no|sin)\b",
        r"\bno (?:puedo|sé|tengo|estoy|dispongo)\b.{0,60}\b(?:ayudar|responder|proporcionar|dar"
        r"|información|respuesta|capaz|autorizad\w*|acceso|decir)",
        r"\bcomo (?:una )?(?:ia|inteligencia artificial|modelo de lenguaje)\b",
        r"\b(?:pasajes?|contexto|documentos?|textos?|fuentes?)\b.{0,20}\bno (?:dice|menciona"
        r"|contiene|indica|especifica)n?\b",
    ),
    "it": (
        r"\bmi (?:dispiace|spiace)\b.{0,60}\bnon\b",
        r"\bnon (?:posso|so|sono in grado|ho)\b.{0,60}\b(?:aiutar\w*|rispond\w*|fornir\w*|dir\w*"
        r"|informazioni|risposta|accesso)",
        r"\bcome (?:ia|intelligenza artificiale|modello linguistico)\b",
    ),
    "pt": (
        r"\b(?:desculpe|sinto muito|lamento)\b.{0,60}\bnão\b",
        r"\b(?:eu )?não (?:posso|sei|consigo|tenho)\b.{0,60}\b(?:ajudar|responder|fornecer|dar"
        r"|informaç\w*|resposta|acesso|dizer)",
        r"\bcomo (?:uma )?(?:ia|inteligência artificial|modelo de linguagem)\b",
    ),
    "nl": (
        r"\b(?:het spijt me|sorry|helaas)\b.{0,60}\b(?:niet|geen)\b",
        r"\bik (?:kan|mag|weet|heb)\b.{0,50}\b(?:niet|geen)\b",
        r"\bals (?:ai|taalmodel)\b",
    ),
    "pl": (
        r"\b(?:przykro mi|przepraszam|niestety)\b.{0,60}\bnie\b",
        r"\bnie (?:mogę|wiem|potrafię|jestem w stanie)\b",
        r"\bjako (?:model językowy|sztuczna inteligencja)\b",
    ),
    "ru": (
        r"(?:извините|к сожалению|простите|прошу прощения).{0,60}\bне\b",  # noqa: RUF001
        r"\bя не (?:могу|знаю|имею|располагаю|в состоянии)\b",
        r"как (?:языковая модель|искусственный интеллект|ии)\b",
    ),
    "zh": (
        r"(?:抱歉|对不起|很遗憾|對不起).{0,30}(?:无法|不能|不可以|沒有|没有|無法|不知道)",
        r"我(?:无法|不能|無法|不知道|没有足够)",
        r"作为(?:一个|一個)?(?:ai|人工智能|语言模型)",
    ),
    "ja": (
        r"(?:申し訳|すみません|残念).{0,40}(?:できません|ません|わかりません)",
        r"(?:お答え|回答|お手伝い)(?:すること(?:が|は)|は|が)?できません",
        r"(?:わかりません|存じません)",
    ),
}


def refusal_language(text: str) -> str | None:
    """The language in which `text` declines to answer; None if it does not."""
    beginning = _plain(text[: 4 * BEGINNING])[:BEGINNING]
    for language, patterns in PATTERNS.items():
        if any(re.search(pattern, beginning) for pattern in patterns):
            return language
    return None


def is_refusal(text: str) -> bool:
    """Whether `text` declines to answer."""
    return refusal_language(text) is not None


def _plain(text: str) -> str:
    straight = re.sub("[\u2018\u2019\u02bc\u00b4`]", "'", unicodedata.normalize("NFKC", text))
    return " ".join(straight.lower().split())
