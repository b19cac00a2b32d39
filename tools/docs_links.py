"""MkDocs hook that adds the repository's files that pages link to, and points the links to these copies.

On a code host `../sp_fast/ops/mask_nms.py` opens the file, but the site contains only `docs/`. Source files
are added as pages of code, markdown files and images unchanged.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")
LANGUAGES = {".py": "python", ".yml": "yaml", ".toml": "toml", ".ipynb": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add every linked file, and the files that these link to."""
    pages = [("docs/" + file.src_uri, file.content_string) for file in files.documentation_pages()]
    seen = {path for path, _ in pages}
    while pages:
        page, text = pages.pop()
        for _, link, _ in LINK.findall(text):
            path = _in_repository(page, link)
            if path is None or path in seen or path.startswith("docs/"):
                continue
            seen.add(path)
            files.append(_added(path, config))
            if path.endswith(".md"):
                pages.append((path, (ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to the site's copies."""
    source = page.file.src_uri
    origin = source.removeprefix("source/") if source.startswith("source/") else "docs/" + source

    def changed(match: re.Match[str]) -> str:
        path = _in_repository(origin if origin.endswith(".md") else origin.removesuffix(".md"), match[2])
        if path is None:
            return match[0]
        return match[1] + posixpath.relpath(_site_path(path), posixpath.dirname(source) or ".") + match[3]

    return LINK.sub(changed, markdown)


def _in_repository(page: str, link: str) -> str | None:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if "://" not in link and (ROOT / path).is_file() else None


def _site_path(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    text = Path(path).suffix in LANGUAGES or "." not in Path(path).name
    return f"source/{path}.md" if text else f"source/{path}"


def _added(path: str, config: Any) -> File:
    target = _site_path(path)
    if not target.endswith(".md") or path.endswith(".md"):
        return File.generated(config, target, abs_src_path=str(ROOT / path))
    language = LANGUAGES.get(Path(path).suffix, "text")
    code = f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}\n````\n"
    return File.generated(config, target, content=code)
