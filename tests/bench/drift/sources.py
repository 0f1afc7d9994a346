"""Where the study's texts come from: Debian's manual pages, and this project's documentation.

They are read from the machine and not kept in the repository.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
OWN = "own"
LEAST_WORDS, MOST_WORDS = 12, 150
PROSE = 0.85  # of a paragraph's characters are letters and blanks, at least
# A page is wider than any paragraph, so that each paragraph is one line.
PLAIN = {"MANWIDTH": "5000", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Source:
    """Texts of one kind.

    Attributes:
        name: what the study calls it.
        packages: Debian packages with the manual pages; or the project's own documentation.
        folder: pattern of the folder that the pages lie in.
        pages: so many of them at most, evenly taken.
    """

    name: str
    packages: tuple[str, ...]
    folder: str
    licence: str
    pages: int


SOURCES = (
    Source(
        "commands", ("git-man", "coreutils", "util-linux"), r"/man/man[1578]/",
        "GPL-2 (Git), GPL-3+ (coreutils), GPL-2+ and others (util-linux)", 400,
    ),
    Source("project", (OWN,), "", "Apache-2.0", 100),
    Source("openssl", ("openssl",), r"/man/man[157]/", "Apache-2.0", 60),
    Source(
        "c-library", ("manpages-dev",), r"/man/man3/",
        "GPL-2+, BSD and Linux-man-pages-copyleft, page by page", 350,
    ),
    Source("german", ("manpages-de",), r"/de/man1/", "GPL-3+", 140),
    Source("french", ("manpages-fr",), r"/fr/man1/", "GPL-3+", 60),
)  # fmt: skip


class NoTexts(RuntimeError):
    """A source is not on this machine; the message says how it comes there."""


def versions(source: Source) -> str:
    """The packages with their versions."""
    if source.packages == (OWN,):
        return "README.md and docs/ of this repository"
    said = _run("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *source.packages)
    return said.strip(", ")


def pages(source: Source) -> list[tuple[str, list[str]]]:
    """Each page's name and its paragraphs of prose. Raises NoTexts."""
    files = _own() if source.packages == (OWN,) else _manual(source)
    step = max(len(files) / source.pages, 1)
    chosen = [files[int(step * place)] for place in range(min(len(files), source.pages))]
    found = []
    for file in chosen:
        text = file.read_text() if file.suffix == ".md" else _shown(file)
        kept = list(_prose(text))
        if kept:
            found.append((file.name, kept))
    return found


def _own() -> list[Path]:
    left_out = {"configuration.md", "drift-study.md"}  # a generated table, and this study
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [file for file in files if file.name not in left_out]


def _manual(source: Source) -> list[Path]:
    if shutil.which("dpkg-query") is None or shutil.which("man") is None:
        raise NoTexts("the study reads Debian's manual pages: dpkg-query and man are needed")
    found = []
    for package in source.packages:
        listed = _run("dpkg-query", "-L", package).splitlines()
        found += [Path(line) for line in listed if re.search(source.folder, line)]
    files = sorted(file for file in found if file.is_file() and not file.is_symlink())
    if not files:
        wanted = " ".join(source.packages)
        raise NoTexts(f"{source.name}: no manual page; run: apt-get install {wanted}")
    return files


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _shown(page: Path) -> str:
    command = ["man", "--no-hyphenation", "--no-justification", "-P", "cat", "-l", str(page)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **PLAIN}
    )
    return re.sub(".\b", "", done.stdout)


def _prose(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        letters = sum(one.isalpha() or one == " " for one in paragraph)
        enough = LEAST_WORDS <= len(paragraph.split()) <= MOST_WORDS
        if enough and letters >= PROSE * len(paragraph):
            yield paragraph
