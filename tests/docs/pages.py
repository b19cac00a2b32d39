"""The pages of the documentation and their code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def block(page: Path, part: str) -> str:
    """The only code block of a page that contains `part`."""
    blocks = re.findall(r"^```(?:python)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    found = [text for text in blocks if part in text]
    assert len(found) == 1, f"{page.name}: {len(found)} blocks with {part!r}"
    return found[0]
