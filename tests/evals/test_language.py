"""Languages, by the texts that people write, and whatever else comes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.descriptors import OF_ANSWERS, described, length, non_letters, words
from evals.language import FUNCTION_WORDS, SCRIPTS, language_of

SENTENCES = {
    "en": "The file is copied to the folder, and its owner can read it after that.",
    "de": "Die Datei wird in den Ordner kopiert, und der Benutzer kann sie lesen.",
    "fr": "Le fichier est copié dans le dossier et son propriétaire peut le lire.",
    "es": "El archivo se copia en la carpeta y su propietario puede leerlo después.",
    "it": "Il file viene copiato nella cartella e il proprietario può leggerlo.",
    "pt": "O arquivo não é copiado para a pasta, mas seu dono pode ser avisado.",
    "nl": "Het bestand wordt naar de map gekopieerd en de eigenaar kan het lezen.",
    "sv": "Filen är kopierad till mappen och ägaren kan läsa den efter det.",
    "pl": "Plik jest kopiowany do katalogu i nie może być przez to zmieniony.",
    "tr": "Dosya klasöre kopyalanır ve sahibi bu işlem için daha sonra okuyabilir.",  # noqa: RUF001
    "ru": "Файл не может быть изменён, если он уже скопирован в эту папку.",
    "uk": "Файл не може бути змінений, якщо він уже є у цій теці.",  # noqa: RUF001
    "zh": "文件被复制到文件夹中,所有者可以读取它。",
    "ja": "ファイルはフォルダにコピーされ、所有者が読むことができます。",
    "ko": "파일이 폴더에 복사되고 소유자가 읽을 수 있습니다.",
    "el": "Το αρχείο αντιγράφεται στον φάκελο.",  # noqa: RUF001
    "ar": "يتم نسخ الملف إلى المجلد ويمكن لمالكه قراءته.",
    "he": "הקובץ מועתק לתיקייה והבעלים יכול לקרוא אותו.",
    "hi": "फ़ाइल फ़ोल्डर में कॉपी की जाती है।",
}  # fmt: skip


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_have_their_language(language):
    assert language_of(SENTENCES[language]) == language


def test_what_is_no_language_is_other_or_none():
    assert language_of("ls -la /usr/share | wc") == "other"
    assert language_of('{"a": [1, 2, 3]}') == "other"
    assert language_of("42 + 17") == "none"
    assert language_of("") == "none"


@settings(deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_has_one(text):
    known = {*FUNCTION_WORDS, *SCRIPTS.values(), "other", "none"}
    assert language_of(text) in known


@settings(deadline=None)
@given(text=st.text(max_size=300))
def test_descriptors_stand_any_text(text):
    for descriptor in OF_ANSWERS.values():
        descriptor(text)
    assert 0 <= non_letters(text) <= 1
    assert words(text) <= max(length(text), 1)


def test_non_letters_are_digits_and_signs():
    assert non_letters("abc def") == 0
    assert non_letters("a1!") == pytest.approx(2 / 3)
    assert non_letters("   ") == 0


def test_a_text_that_is_missing_has_no_values():
    columns = described(["Where is it?", None], [None, "I'm sorry, but I can't help with that."])
    assert columns["question_words"] == [3.0, None]
    assert columns["answer_refused"] == [None, 1.0]
    assert "question_refused" not in columns
