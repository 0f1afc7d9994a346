"""The language of a text, by its script and its most frequent short words. Offline, and quick.

A script that one language uses decides alone. Latin and Cyrillic texts are given to the language
whose function words ("the", "und", "des") they hold most of. A text with too few of them, as code
or a list of names has, is `other`; one without letters is `none`. That is coarse for one text and
steady for many, which is what drift needs.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

WORDS_READ = 80
LEAST_WORDS = 2  # function words that it takes to name a language
NONE, OTHER = "none", "other"
_WORD = re.compile(r"[^\W\d_]+")

FUNCTION_WORDS: Mapping[str, str] = {
    "en": "the of and to in is that for it as with be on this are by or an from if you can when "
    "which will not has have was but what how does do your there should may must only",
    "de": "der die das und ist nicht ein eine einer eines den dem des von zu mit für auf als auch "
    "sich werden wird bei oder wenn nach aus im zum zur kann wie sie es dass diese dieser nur sind",
    "fr": "le la les des du de et est une un dans pour que qui sur au aux par avec ne pas ce cette "
    "sont ou si en il elle vous peut plus comme être cela ses son sa aucun",
    "es": "el la los las de del y es una un en para que por con no se como al lo su sus está son "
    "si más puede este esta cuando donde pero o sobre ser",
    "it": "il lo la gli le di del della dei delle e è una un in per che con non si come al alla "
    "sono se più può questo questa quando nel nella da dal ma anche o essere",
    "pt": "o a os as de do da dos das e é uma um em para que por com não se como ao à no na mais "
    "pode este esta quando são foi mas ou ser também seu sua",
    "nl": "de het een van en is niet op te in dat voor met zijn als aan er ook wordt door of bij "
    "naar worden kan deze dit om uit die geen wel u wanneer",
    "sv": "och att det som en ett är av för på med den inte till i om kan eller har från när de "
    "denna detta vid så men ska",
    "pl": "i w na z do nie jest że się o to jak po od dla przez oraz lub który która które są być "
    "może ten ta tego jeśli tylko",
    "tr": "ve bir bu için ile da de olarak olan daha gibi veya en çok ne var değil kadar ise ya "
    "sonra her",
    "ru": "и в не на что с по как это для из к от или если быть при так его но же есть только",  # noqa: RUF001
    "uk": "і в не на що з по як це для до від або якщо бути при так його але та є лише у",  # noqa: RUF001
}
SCRIPTS: Mapping[str, str] = {
    "GREEK": "el", "HEBREW": "he", "ARABIC": "ar", "DEVANAGARI": "hi", "THAI": "th",
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "GEORGIAN": "ka",
    "ARMENIAN": "hy", "BENGALI": "bn", "TAMIL": "ta",
}  # fmt: skip


def _by_word() -> Mapping[str, tuple[str, ...]]:
    languages: dict[str, list[str]] = {}
    for language, words in FUNCTION_WORDS.items():
        for word in words.split():
            if len(word) == 1 and word.isascii():  # as often a name, a unit or a variable
                continue
            languages.setdefault(word, []).append(language)
    return {word: tuple(known) for word, known in languages.items()}


_LANGUAGES_OF = _by_word()


def language_of(text: str) -> str:
    """Two letters (ISO 639-1), `other`, or `none` for a text without letters."""
    words = _WORD.findall(text[: WORDS_READ * 12])[:WORDS_READ]
    if not words:
        return NONE
    script = _script(words)
    if script is not None:
        return script
    votes: Counter[str] = Counter()
    for word in words:
        for language in _LANGUAGES_OF.get(word.lower(), ()):
            votes[language] += 1
    if not votes:
        return OTHER
    (language, most), *_ = votes.most_common(1)
    return language if most >= min(LEAST_WORDS, len(words)) else OTHER


def _script(words: list[str]) -> str | None:
    """The language whose own script most of the words are in."""
    foreign = [word for word in words if word[0] > "\u036f"]
    if 2 * len(foreign) <= len(words):
        return None
    names: Counter[str] = Counter()
    for word in foreign:
        for letter in word[:8]:
            names[unicodedata.name(letter, "?").partition(" ")[0]] += 1
    found = {SCRIPTS[name]: count for name, count in names.items() if name in SCRIPTS}
    if "ja" in found:  # Japanese mixes kana with Chinese characters
        return "ja"
    return max(found, key=lambda name: found[name]) if found else None
