"""Write the map of chapters into nbs/index.ipynb, and the links at the end of every notebook.

    python scripts/house_map.py            # a second run changes nothing
    python scripts/house_map.py --check    # change nothing, exit with 1 if something is out of date

What goes into a chapter and comes out is the docstring of its sub-package; what a notebook is for is the line
that begins with `>` under its title; who uses it is read from the imports of the exported modules.
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SHOWN_USERS = 3  # notebooks named as users of another one


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook: its place, title, blurb and the module that it exports."""

    path: Path
    title: str
    blurb: str
    module: str  # chapter.name, empty where nothing is exported

    @property
    def chapter(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return re.sub(r"^\d+_", "", self.path.stem)


def read(path: Path) -> Notebook:
    cells = nbformat.read(path, as_version=4).cells
    lines = cells[0].source.splitlines()
    blurb = next((line[1:].strip() for line in lines if line.startswith(">")), "")
    exports = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in cells), re.M)
    return Notebook(path, lines[0].lstrip("# "), blurb, exports[1] if exports else "")


def chapter_line(chapter: str) -> str:
    """What goes in and what comes out: the docstring of the sub-package."""
    package = ROOT / "r2genkg" / re.sub(r"^\d+_", "", chapter) / "__init__.py"
    return (ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or "").split("\n")[0]


def imported_modules(path: Path) -> set[str]:
    """`chapter.name` of every module of this package that a module imports, at any depth."""
    own = path.parent.name
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.level == 1:
            found.add(f"{own}.{node.module}")
        elif node.level == 2:
            found.add(node.module)
        elif node.module.startswith("r2genkg."):
            found.add(node.module.removeprefix("r2genkg."))
    return found


def users_of(books: list[Notebook]) -> dict[str, list[Notebook]]:
    """Module -> the notebooks whose modules import it, in order."""
    users: dict[str, list[Notebook]] = {}
    for book in books:
        if not book.module:
            continue
        source = ROOT / "r2genkg" / (book.module.replace(".", "/") + ".py")
        for module in imported_modules(source) - {book.module}:
            users.setdefault(module, []).append(book)
    return users


def map_text(books: list[Notebook]) -> str:
    """The table of chapters, with links that hold from `nbs/index.ipynb` and from README.md."""
    rows = ["| chapter, notebook | what goes in -> what comes out, what it is for |", "|---|---|"]
    for chapter in dict.fromkeys(book.chapter for book in books):
        name = re.sub(r"^\d+_", "", chapter)
        rows.append(f"| **`{name}`** | **{chapter_line(chapter)}** |")
        for book in (b for b in books if b.chapter == chapter):
            link = f"[`{book.name}`](../nbs/{chapter}/{book.path.name})"
            rows.append(f"| {link} | {book.blurb} |")
    return "## The map\n\n" + "\n".join(rows)


def link(source: Notebook, target: Notebook) -> str:
    place = Path("..") / target.chapter if target.chapter != source.chapter else Path()
    return f"[{target.title}]({(place / target.path.name).as_posix()})"


def links_text(book: Notebook, following: Notebook | None, users: list[Notebook]) -> str:
    """The last cell of a notebook."""
    lines = []
    if following is not None:
        lines.append(f"**Next:** {link(book, following)}.")
    if users:
        named = ", ".join(link(book, user) for user in users[:SHOWN_USERS])
        more = f" and {len(users) - SHOWN_USERS} more" if len(users) > SHOWN_USERS else ""
        lines.append(f"**Used by:** {named}{more}.")
    return "  \n".join(lines)


def with_cell(path: Path, id: str, text: str, at_end: bool) -> str:
    """The notebook as text, its markdown cell `id` holding `text`."""
    notebook = nbformat.read(path, as_version=4)
    kept = [cell for cell in notebook.cells if cell["id"] != id]
    place = next((n for n, c in enumerate(notebook.cells) if c["id"] == id), len(kept))
    cell = nbformat.v4.new_markdown_cell(text, id=id)
    kept.insert(len(kept) if at_end else place, cell)
    notebook.cells = kept
    return nbformat.writes(notebook) + "\n"


def wanted_texts() -> dict[Path, str]:
    """Every notebook with a generated cell -> its content as it should be."""
    books = [read(p) for p in sorted(ROOT.glob("nbs/[0-9][0-9]_*/*.ipynb"))]
    users = users_of(books)
    index = ROOT / "nbs" / "index.ipynb"
    texts = {index: with_cell(index, "map", map_text(books), at_end=False)}
    for n, book in enumerate(books):
        following = books[n + 1] if n + 1 < len(books) else None
        text = links_text(book, following, users.get(book.module, []))
        texts[book.path] = with_cell(book.path, "links", text, at_end=True)
    for folder in ("paper", "tutorials"):
        extra = [read(p) for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))]
        for book, following in zip(extra, extra[1:]):
            text = links_text(book, following, [])
            texts[book.path] = with_cell(book.path, "links", text, at_end=True)
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = {
        path: text
        for path, text in wanted_texts().items()
        if path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if args.check else 'written'}")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    if args.check and stale:
        print("run `make map`")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
