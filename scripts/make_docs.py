"""The pages of the documentation site, from what is in the repository: README, notebooks, commands, public names.

    python scripts/make_docs.py && mkdocs build --strict && python scripts/make_docs.py --check-links

`make docs` does all three. Sources go to _docs/src, the site to _docs/site. Nothing is fetched.
"""

import argparse
import ast
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SRC, SITE = ROOT / "_docs" / "src", ROOT / "_docs" / "site"
CODE = "https://github.com/r2genkg/r2genkg/blob/main/"
#: Files of the repository that are pages as they are.
PAGES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "benchmarks/README.md",
)


def write(name: str, text: str) -> None:
    path = SRC / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def section(text: str, title: str) -> str:
    """A second-level section of a Markdown text, its title included."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.M | re.S)
    return found[0] if found else ""


def to_repository(text: str) -> str:
    """Links to files that are no pages of the site lead to the repository."""

    def target(match: re.Match) -> str:
        path = match[1].partition("#")[0]
        known = (SRC / path).exists() or path in PAGES or not (ROOT / path).exists()
        return match[0] if known else f"]({CODE}{match[1]})"

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", target, text)


#: Cells that a reader of the site does not need: installation, imports of tests, the name of the module.
HIDDEN = re.compile(r"#\|\s*(hide|default_exp)")
DIRECTIVES = re.compile(r"^#\|.*\n?", re.M)
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
CODE_OR_MATH = re.compile(r"(`+.+?`+)|\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)\$", re.S)


def with_mathml(text: str) -> str:
    """Formulas in the form that browsers draw by themselves."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match) -> str:
        if match[1]:
            return match[0]
        return convert(match[2] or match[3], display="block" if match[2] else "inline")

    return CODE_OR_MATH.sub(drawn, text)


def with_page_links(text: str) -> str:
    """Links to notebooks lead to their pages; a badge, which would be fetched, becomes a link."""
    text = re.sub(r"(\]\((?!https?:)[^)\s\"]+)\.ipynb", r"\1.html", text)
    text = text.replace("benchmarks/README.md)", "benchmarks/index.html)")
    return BADGE.sub(r"[Open in Colab](\1)", text)


def notebook_page(notebook: dict) -> dict:
    """What of a notebook is shown."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append({**cell, "source": with_mathml(with_page_links(source))})
        elif not HIDDEN.match(source):
            cells.append({**cell, "source": DIRECTIVES.sub("", source)})
    return {**notebook, "cells": cells}


def copy_notebooks() -> None:
    """Notebooks as pages, and the figures."""
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.name == "index.ipynb":
            continue
        page = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        write(str(path.relative_to(ROOT)), json.dumps(page))
    shutil.copytree(ROOT / "figures", SRC / "figures", dirs_exist_ok=True)
    write("extra.css", (ROOT / "docs" / "extra.css").read_text(encoding="utf-8"))


def public_names() -> dict[str, str]:
    """Name -> module, as `r2genkg/__init__.py` has them."""
    tree = ast.parse((ROOT / "r2genkg" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return ast.literal_eval(node.value)
    raise SystemExit("r2genkg/__init__.py: no _HOMES")


def api_page() -> str:
    """The public names, with their documentation."""
    parts = [
        "# Public names\n\n`import r2genkg` gives these; each is loaded when it is first used.\n"
    ]
    for name, module in public_names().items():
        parts.append(f"::: r2genkg.{module}.{name}\n")
    return "\n".join(parts)


def command_pages() -> str:
    """Every command with its help, as the program prints it."""
    import typer
    from typer.testing import CliRunner

    from r2genkg.use.commands import app

    def walk(command, path):
        yield path
        for name, part in sorted(getattr(command, "commands", {}).items()):
            yield from walk(part, (*path, name))

    parts = ["# Commands\n"]
    for path in walk(typer.main.get_command(app), ()):
        shown = CliRunner().invoke(app, [*path, "--help"], prog_name="r2genkg").stdout.strip()
        parts.append(f"## `{' '.join(('r2genkg', *path))}`\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def own_data_page(readme: str) -> str:
    title = "Your reports and films, a small model"
    return "# Own data\n\n" + section(readme, title) + "\n" + section(readme, "Your own data")


def make_pages() -> None:
    """All sources of the site, anew."""
    shutil.rmtree(SRC, ignore_errors=True)
    copy_notebooks()
    for name in PAGES:
        write(name, "")  # so that links to them are known
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    whole = section(readme, "The map")
    write("index.md", to_repository(readme.replace(whole, "")))
    write("own-data.md", to_repository(own_data_page(readme)))
    write("map.md", to_repository("# The map\n\n" + whole.partition("\n")[2]))
    write("commands.md", command_pages())
    write("api.md", api_page())
    write("faq.md", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"))
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    write("cite.md", f"# How to cite\n\n{section(readme, 'Citation')}\n```yaml\n{citation}```\n")
    for name in PAGES:
        write(name, to_repository((ROOT / name).read_text(encoding="utf-8")))


class Links(HTMLParser):
    """The targets of a page's links and pictures, and the names in it that a link may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := given.get(key))}
        for key in ("href", "src"):
            if value := given.get(key):
                self.targets.append(value)


def read_links(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def broken_links() -> list[str]:
    """Links of the built site that lead nowhere, and things that would be fetched from elsewhere."""
    faults = []
    for page in sorted(SITE.rglob("*.html")):
        if page.name == "404.html":  # its links begin at the site's address
            continue
        for target in read_links(page).targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            base = SITE if parts.path.startswith("/") else page.parent
            if not (base / unquote(parts.path).lstrip("/")).exists():
                faults.append(f"{page.relative_to(SITE)}: {target}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check-links", action="store_true", help="check the built site")
    if not parser.parse_args().check_links:
        make_pages()
        return 0
    faults = broken_links()
    print(
        "\n".join(faults[:50])
        or f"{len(list(SITE.rglob('*.html')))} pages, every link leads somewhere"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
