"""Hooks of mkdocs: Markdown links hold in the repository as they do in the site.

A page may link to a file outside of docs/, which the site lacks. Those files that may be read there (PUBLISHED) become part of
it under repository/, the README as its first page, and links are rewritten to where a file lies in the site. What is linked
and in neither place stays as it is, so mkdocs warns of it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HOME = "README.md"
PUBLISHED = (
    HOME,
    "CONTRIBUTING.md",
    "LICENSE",
    "examples/*/README.md",
    "examples/*/images/*.png",
    "benchmarks/results/*",
    "docs/notebooks/*",
    "runtime/mote_runtime/profile/trace/vocabulary.py",
)
LINK = re.compile(r"(\]\()([^)\s#]+)")


def site_path(path: str) -> str:
    """Of a file by its path in the repository."""
    if path == HOME:
        return "index.md"
    is_page = path.startswith("docs/") and not path.startswith("docs/notebooks/")
    return path.removeprefix("docs/") if is_page else f"repository/{path}"


def on_files(files: Files, config: Any) -> Files:
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, site_path(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    in_repository = {site_path(name): name for name in _names(files)}
    place = in_repository[page.file.src_uri]

    def rewrite(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target:
            return match[0]
        found = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(place), target)))
        if files.get_file_from_path(found) is None:
            return match[0]
        return match[1] + posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(rewrite, markdown)


def _names(files: Files) -> list[str]:
    """Paths in the repository of all files of the site."""
    names = []
    for file in files:
        path = file.abs_src_path
        if path is not None and Path(path).is_relative_to(ROOT):
            names.append(Path(path).relative_to(ROOT).as_posix())
    return names
