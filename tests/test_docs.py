"""The documents show what the compiler prints today."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("graphc", "tests", "docs", "benchmarks", "examples")


@pytest.fixture(scope="module")
def documents():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import refresh

        return refresh.documents()
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("path", ["README.md", "docs/architecture.md", "docs/api.md", "docs/rooms.md"])
def test_what_is_shown_is_what_is_printed(documents, path):
    assert (ROOT / path).read_text(encoding="utf-8") == documents[path], "run: make docs"


def test_every_marker_is_followed_by_a_block(documents):
    for path, text in documents.items():
        markers = text.count("<!-- show ")
        filled = re.findall(r"<!-- show .*? -->\n\n?```\w*\n(?!```)", text)
        assert len(filled) == markers, path


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")))
def test_files_that_are_named_exist(path):
    files = [p.relative_to(ROOT).as_posix() for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")]
    for name in re.findall(r"`([\w/]+\.py)`", (ROOT / path).read_text(encoding="utf-8")):
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name
