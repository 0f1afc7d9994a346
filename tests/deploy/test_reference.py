"""The configuration's reference page is what the code says."""

from pathlib import Path

from deploy.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run: python -m deploy.reference > docs/configuration.md"


def test_every_key_has_a_meaning():
    rows = [line for line in page().splitlines() if line.startswith("| `") and line.count("|") == 5]
    assert rows
    assert not [row for row in rows if row.rstrip("| ").count("|") < 4]
