"""MkDocs hook that adds the repository's files that pages link to, and points the links to these copies.

On a code host `../sp_fast/ops/mask_nms.py` opens the file, but the site contains only `docs/`. Source files
are added as pages of code, folders as lists of their files, markdown files and images unchanged.
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
    seen = set()
    for page, text in pages:  # which grow
        for match in LINK.finditer(text):
            path = _in_repository(page, match[2])
            if path is None or path in seen or path.startswith("docs/"):
                continue
            seen.add(path)
            source, target = ROOT / path, _site_path(path)
            if source.is_dir():
                text = _list_of_files(path)
                pages.append((f"{path}/index.md", text))
                files.append(File.generated(config, target, content=text))
                continue
            if path.endswith(".md"):
                pages.append((path, source.read_text()))
            if target == f"source/{path}":
                files.append(File.generated(config, target, abs_src_path=str(source)))
            else:
                language = LANGUAGES.get(source.suffix, "text")
                code = f"# {path}\n\n````{language}\n{source.read_text()}\n````\n"
                files.append(File.generated(config, target, content=code))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to the site's copies."""
    here = page.file.src_uri
    origin = here.removeprefix("source/") if here.startswith("source/") else "docs/" + here

    def changed(match: re.Match[str]) -> str:
        path = _in_repository(origin, match[2])
        if path is None:
            return match[0]
        return match[1] + posixpath.relpath(_site_path(path), posixpath.dirname(here) or ".") + match[3]

    return LINK.sub(changed, markdown)


def _in_repository(page: str, link: str) -> str | None:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if "://" not in link and (ROOT / path).exists() else None


def _list_of_files(folder: str) -> str:
    names = sorted(one.name for one in (ROOT / folder).iterdir() if one.is_file())
    return f"# {folder}\n\n" + "\n".join(f"- [{name}]({name})" for name in names) + "\n"


def _site_path(path: str) -> str:
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    code = Path(path).suffix in LANGUAGES or "." not in Path(path).name
    return f"source/{path}.md" if code else f"source/{path}"
