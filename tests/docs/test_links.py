"""Relative links in the documentation and its site point to files, their anchors to headings."""

import html
import re
import subprocess
import sys
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_are_not_broken(page):
    broken = []
    for link, anchor in LINK.findall(page.read_text()):
        target = (page.parent / link).resolve() if link else page
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(f"{link}#{anchor}" if anchor else link)
    assert not broken


def test_links_of_the_site_are_not_broken(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    broken = []
    for page in tmp_path.rglob("*.html"):
        if page.name == "404.html":  # its links begin at the address of the site
            continue
        for link in re.findall(r"""(?:href|src)=["']?([^"'\s>]+)""", page.read_text()):
            target = unquote(html.unescape(link).partition("#")[0].partition("?")[0])
            if target and ":" not in target and not (page.parent / target).is_file():
                broken.append(f"{page.relative_to(tmp_path)}: {link}")
    assert not broken
