"""The changelog has the form of Keep a Changelog, and the version is the one that it speaks of."""

import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

import mconv

ROOT = Path(__file__).parents[1]
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
HEADING = re.compile(r"\[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d\d-\d\d))?")


def wrong(text):
    """Return what is not of the form, in words."""
    title, *sections = re.split(r"^## ", text, flags=re.M)
    found = [] if title.startswith("# Changelog\n") else ["the title"]
    heads = [HEADING.fullmatch(section.partition("\n")[0]) for section in sections]
    found += [f"heading {s.partition(chr(10))[0]!r}" for s, head in zip(sections, heads, strict=True) if not head]
    names = [head[1] for head in heads if head]
    found += [] if names[:1] == ["Unreleased"] and "Unreleased" not in names[1:] else ["[Unreleased] is not the first"]
    found += [f"date of {head[1]}" for head in heads if head and bool(head[2]) == (head[1] == "Unreleased")]
    dated = [(tuple(map(int, head[1].split("."))), date.fromisoformat(head[2])) for head in heads if head and head[2]]
    found += [
        "the newest release is not the first" for new, old in pairwise(dated) if new[0] <= old[0] or new[1] < old[1]
    ]
    for section, head in zip(sections, heads, strict=True):
        kinds = re.findall(r"^### (.*)$", section, flags=re.M)
        order = [KINDS.index(kind) for kind in kinds if kind in KINDS]
        if len(order) < len(kinds) or order != sorted({*order}):
            found.append(f"kinds of {head and head[1]}: {kinds}")
        found += [f"empty: {part.partition(chr(10))[0]}" for part in section.split("\n### ")[1:] if "\n- " not in part]
        if head and head[1] != "Unreleased" and not kinds:
            found.append(f"nothing in {head[1]}")
    return found


def test_the_changelog_has_its_form():
    assert wrong((ROOT / "CHANGELOG.md").read_text()) == []


GOOD = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-02

### Added

- b

## [0.1.0] - 2026-12-01

### Added

- a
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Changelog", "# Changes"),
        ("## [Unreleased]\n\n", ""),
        ("[0.2.0] - 2027-01-02", "0.2.0 (2027-01-02)"),
        ("[0.2.0] - 2027-01-02", "[0.2.0]"),
        ("[0.2.0]", "[0.0.9]"),
        ("2027-01-02", "2026-11-30"),
        ("### Added\n\n- b", "### New\n\n- b"),
        ("### Added\n\n- b", "### Fixed\n\n- b\n\n### Added\n\n- c"),
        ("### Added\n\n- b", "### Added\n"),
        ("### Added\n\n- b\n", ""),
    ],
)
def test_a_changelog_of_another_form_is_named(old, new):
    assert wrong(GOOD) == [] and wrong(GOOD.replace(old, new, 1)) != []


def test_the_version_is_that_of_the_changelog():
    """Between releases: the next one's, as .dev0. In a release: the newest heading's, and nothing is unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, flags=re.M)
    unreleased = "\n- " in text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    number = re.fullmatch(r"(\d+\.\d+\.\d+)(\.dev0)?", mconv.__version__)
    assert number, mconv.__version__
    if number[2]:
        assert unreleased and number[1] not in released
    else:
        assert not unreleased and released[:1] == [number[1]]
