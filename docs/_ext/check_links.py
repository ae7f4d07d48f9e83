"""Every internal link of a built site leads somewhere: ``python docs/_ext/check_links.py site``.

Checks files and anchors of every page, counts pages, links and words defined, and ends with status 1 when a link is dead or
a page would load something from outside.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links, anchors and loaded resources of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        values = {name: value or "" for name, value in attrs}
        for name in ("id", "name"):
            if name in values:
                self.anchors.add(values[name])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe") and "src" in values:
            self.loads.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(values.get("href", ""))


def main(site: Path) -> int:
    """Check the site, print the counts."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    dead, links, outside = [], 0, []
    for path, page in pages.items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    outside.append(f"{path.name}: {target}")
                continue
            links += 1
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if there.is_dir():
                there = there / "index.html"
            if not there.is_file():
                dead.append(f"{path.relative_to(site.resolve())}: {target}")
            elif (
                parts.fragment
                and there in pages
                and unquote(parts.fragment) not in pages[there].anchors
            ):
                dead.append(
                    f"{path.relative_to(site.resolve())}: {target} (no such place on that page)"
                )
    terms = pages.get((site / "glossary.html").resolve())
    words = sum(anchor.startswith("term-") for anchor in terms.anchors) if terms else 0
    print(
        f"{len(pages)} pages, {links} internal links, {len(dead)} dead, {words} words defined, {len(outside)} loads from outside"
    )
    for line in [*dead[:40], *outside[:10]]:
        print("  " + line)
    return 1 if dead or outside else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
