"""Reports: what stands in them, what must not, and that nothing in a text breaks them."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from evals.evaluation_page import BINS, binned, page
from evals.evaluation_report import (
    EvaluationReport,
    figure,
    markdown,
    rows_of,
    table_of,
)
from evals.evaluation_run import keep
from evals.evaluation_verdict import beside, by_itself
from tests.evals.evaluated import evaluation

VOID = {"meta", "rect", "line", "circle"}
OPEN = {"html", "thead", "tbody", "tr", "th", "td", "li", "dt", "dd", "p"}  # need no end


class Balanced(HTMLParser):
    """Sees whether tags end as they began, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID | OPEN:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID | OPEN:
            assert self.inside.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.texts.append(data)


def report(values=None, *, compared=False, **more):
    found = evaluation(values or {"contains": [1.0, 0.0] * 15, "latency": [5.0] * 30}, **more)
    verdict = by_itself(found, "evaluation:asker", [], {})
    base = None
    if compared:
        base = ("asker version 1", evaluation({"contains": [1.0] * 30, "latency": [4.0] * 30}))
        verdict = beside(("a", found), ("b", base[1]), [], {})
    return EvaluationReport("asker version 2", "30 cases", found, verdict, base)


@given(st.lists(st.text(max_size=60), min_size=30, max_size=30))
@settings(max_examples=30, deadline=None)
def test_no_text_breaks_the_page(texts):
    parser = Balanced()
    parser.feed(page(report(texts=texts)))
    assert parser.inside == []


def test_texts_are_texts_and_no_markup():
    shown = page(report(texts=["<script>alert(1)</script> & more"] * 30))
    assert (
        "<script>alert" not in shown and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in shown
    )
    assert shown.count("<details>") == 30 and shown.count("<svg") == 2


def test_a_comparison_shows_both_answers_and_what_changed():
    made = report(compared=True, texts=["newer"] * 30)
    shown = page(made)
    assert shown.count('class="whisker"') == 2
    assert "1 → 0" in shown and "answer of the baseline" in shown and "newer" in shown
    text = markdown(made)
    assert "Compared with asker version 1." in text and "| baseline | difference |" in text
    assert "| contains | 0.5 | [0.3315, 0.6685] | 1 | -0.5 [" in text


def test_live_texts_are_nowhere_in_it():
    secret = "Anna's secret"
    made = report({"judge": [1.0] * 15 + [None] * 15}, spoken=False, texts=[secret] * 30)
    columns, rows = table_of(made)
    for shown in (page(made), markdown(made), str(rows)):
        assert secret not in shown and "Anna" not in shown and "a question" not in shown
        assert "right c" not in shown
    assert columns == ["case_id", "judge", "reasons", "error", "request_id", "target"]
    assert "r-c0" in page(made)  # the log has them, by their ids


def test_every_answer_is_a_row_of_the_table():
    made = report()
    columns, rows = table_of(made)
    assert len(rows) == 30 and all(len(row) == len(columns) for row in rows)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["contains"] == 1.0 and first["answer"] == "text 0"
    assert (first["question"], first["expected"]) == ("a question", "right c0")
    assert [row.values["latency"] for row in rows_of(made)] == [5.0] * 30


def test_what_went_wrong_is_counted():
    text = markdown(report({"judge": [1.0] * 20 + [None] * 10}, reason="the judge: late"))
    assert "- 10 times: judge: the judge: late" in text


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.booleans())
def test_every_value_is_in_one_part_of_the_plot(values, share):
    if share:
        values = [min(one, 1.0) for one in values]
    counts, low, high = binned(values, share=share)
    assert sum(counts) == len(values) and low <= high and len(counts) in (2, BINS)


def test_figures_are_as_people_read_them():
    assert [figure(one) for one in (None, 0.0, 0.12345, 12345.6, 1.543e-05)] == [
        "-", "0", "0.1235", "12346", "0.0000154"
    ]  # fmt: skip
    assert figure(0.5, signed=True) == "+0.5"


def test_the_oldest_reports_of_a_prompt_go(tmp_path, monkeypatch):
    monkeypatch.setattr("evals.evaluation_run.KEPT_REPORTS", 3)
    folders = [keep(tmp_path, report()) for _ in range(5)]
    assert sorted((tmp_path / "evaluations" / "asker").iterdir()) == sorted(folders)[-3:]
    assert {one.name for one in folders[-1].iterdir()} == {
        "report.html", "report.md", "answers.json"
    }  # fmt: skip
