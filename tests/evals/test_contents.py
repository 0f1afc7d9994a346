"""Golden cases are known again, however they were asked, so that no training set has them."""

from pathlib import Path

import orjson
import pytest

from evals.cases import CasesUnreadable
from evals.contents import GOLDEN, content_hash, golden_contents, variables_hash
from evals.extraction import held_out
from prompts.library import load_library
from prompts.prompt import Prompt


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def rows(name: str) -> list[dict]:
    return [orjson.loads(line) for line in (GOLDEN / name).read_bytes().splitlines()]


def test_every_golden_case_of_the_project_is_held_out():
    library = load_library()
    contents = golden_contents(library.values())
    assert all(content_hash(case.messages) in contents for case in held_out())
    for name in ("assistant", "judge", "ticket-classifier"):
        for row in rows(f"{name}.jsonl"):
            assert content_hash(library[name].render(row["variables"])) in contents
            assert variables_hash(row["variables"]) in contents
    asked = [row for path in GOLDEN.glob("*.jsonl") for row in rows(path.name)]
    asked = [row for row in asked if "messages" in row or "variables" in row]
    assert len(contents) >= len(asked) > 500


def test_case_white_space_and_spelling_do_not_hide_a_case(tmp_path: Path):
    (tmp_path / "tickets.jsonl").write_bytes(
        orjson.dumps({"case_id": "1", "variables": {"ticket": "The \uff22ill is wrong."}})
    )
    prompt = Prompt.model_validate(
        {
            "name": "tickets", "template": "Sort: {{ ticket }}", "model": "m",
            "variables": [{"name": "ticket"}],
        }
    )  # fmt: skip
    contents = golden_contents([prompt], tmp_path)
    assert content_hash(user("sort:  the bill\nIS wrong.")) in contents
    assert content_hash(user("THE BILL is wrong.")) in contents
    assert variables_hash({"ticket": " the bill is\twrong."}) in contents
    assert content_hash(user("The bill is right.")) not in contents
    assert variables_hash({"ticket": "The bill is right."}) not in contents
    assert variables_hash({"other": "the bill is wrong."}) not in contents


def test_a_version_that_takes_other_variables_is_passed_over(tmp_path: Path):
    (tmp_path / "tickets.jsonl").write_bytes(
        orjson.dumps({"case_id": "1", "variables": {"ticket": "x"}})
    )
    other = {"name": "tickets", "template": "{{ text }}", "model": "m",
             "variables": [{"name": "text"}]}  # fmt: skip
    assert len(golden_contents([Prompt.model_validate(other)], tmp_path)) == 2


@pytest.mark.parametrize(("line", "said"), [(b"{", "not JSON"), (b"[1]", "not a JSON object")])
def test_a_broken_line_is_told_with_its_place(tmp_path: Path, line, said):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b'{"messages": []}\n\n' + line)
    with pytest.raises(CasesUnreadable, match=f"cases.jsonl:3: {said}"):
        golden_contents([], tmp_path)


def test_variables_in_another_order_are_the_same():
    one = {"question": "q", "passages": [{"id": "1", "text": "T"}]}
    other = {"passages": [{"text": "t ", "id": "1"}], "question": " Q"}
    assert variables_hash(one) == variables_hash(other)
    assert variables_hash(one) != variables_hash({**one, "passages": []})
