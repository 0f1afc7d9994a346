"""A report as a comment on a pull request, in GitHub's Markdown.

Whatever a model or a branch says is shown as text: no markup of it takes effect, nobody is
mentioned. The first line is a marker by which the comment is found again.
"""

import re
from collections.abc import Iterator

from pipelines.prompt_report import Flip, Flips, Report, Section

MARKER = "<!-- llmops: prompts -->"
MOST_CHARACTERS = 60_000  # GitHub takes 65,536
SHOWN_FLIPS = (10, 5, 2, 0)  # a metric; fewer where the comment gets too long
TEXT_CHARACTERS = 200
CUT = "\n\nThe rest is in the report."
_MARKUP = re.compile(r"[\\`*_{}\[\]#+!|<>&~$:@]")


def comment(report: Report) -> str:
    """The comment."""
    for most in SHOWN_FLIPS:
        text = "\n".join(_report(report, most)) + "\n"
        if len(text) <= MOST_CHARACTERS:
            return text
    return text[: MOST_CHARACTERS - len(CUT)].rsplit("\n", 1)[0] + CUT


def error_comment(message: str) -> str:
    """What is said where nothing could be evaluated."""
    lines = [f"    {line}" for line in message[:MOST_CHARACTERS].splitlines()]
    return "\n".join([MARKER, "## Prompts: could not be evaluated", "", *lines]) + "\n"


def _report(report: Report, most: int) -> Iterator[str]:
    yield from (MARKER, f"## {'❌' if report.failed else '✅'} {report.title}", "")
    yield f"{_plain(report.base)} → {_plain(report.head)}"
    yield from (f"- ⚠️ {_plain(note)}" for note in report.notes)
    for section in report.sections:
        yield from ("", f"### {'❌' if section.failed else '✅'} {section.name}: {section.outcome}")
        yield from _section(section, most)


def _section(section: Section, most: int) -> Iterator[str]:
    yield ""
    yield from (f"- {_plain(reason)}" for reason in section.comparison.reasons)
    yield from (f"- ⚠️ {_plain(note)}" for note in section.comparison.change.notes)
    if section.lines:
        yield from ("", "| metric | base | head | difference | interval | cases | gate |")
        yield "| --- | ---: | ---: | ---: | --- | ---: | --- |"
    for line in section.lines:
        gate = f"{line.met}: {_plain(line.condition)}" if line.condition else ""
        cells = (_plain(line.metric), line.base, line.head, line.delta, line.interval, str(line.n))
        yield f"| {' | '.join((*cells, gate))} |"
    for flips in section.flips:
        yield from _flips(flips, most)
    if section.asked:
        yield from ("", _plain(section.asked))


def _flips(flips: Flips, most: int) -> Iterator[str]:
    said = f"{_plain(flips.metric)}: {flips.worse} cases got worse, {flips.better} got better"
    yield ""
    if not most:
        yield said
        return
    yield from (f"<details><summary>{said}</summary>", "")
    yield "| case | | asked | expected | base said | head said |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for flip in flips.cases[:most]:
        yield f"| {' | '.join(_cells(flip))} |"
    if len(flips.cases) > most:
        yield from ("", f"and {len(flips.cases) - most} more in the report")
    yield from ("", "</details>")


def _cells(flip: Flip) -> Iterator[str]:
    yield _plain(flip.case_id)
    yield "worse" if flip.worse else "better"
    for text in (flip.question, flip.expected, flip.base, flip.head):
        yield f"<code>{_plain(_short(text))}</code>" if text.strip() else "-"


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def _plain(text: str) -> str:
    """Text that stays text: one line, its markup as character references, mentions broken."""
    whole = " ".join(text.split())
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", whole).replace("&#64;", "&#64;&#8203;")
