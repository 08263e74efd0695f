"""Put an Open-in-Colab badge and an install cell into every numbered, paper and tutorial notebook, or refresh them.

    python scripts/badges.py            # user, repo, branch come from settings.ini; a second run changes nothing
    python scripts/badges.py --check    # change nothing, exit with 1 if a notebook lacks them or has old ones

The badge follows the title (nbdev reads the title cell first), the install cell follows the badge. It does something in
Colab only, is hidden in the documentation and never exported.
"""

import argparse
import configparser
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/{path})"
INSTALL = """#| hide
import sys

if "google.colab" in sys.modules:
    %pip install -q "{repo}{extra} @ git+https://github.com/{user}/{repo}@{branch}\""""

#: Id of the cell, how to know an old one that lost its id, and how to make it.
PARTS: tuple[tuple[str, Callable[[str], bool], Callable], ...] = (
    (
        "colab-badge",
        lambda source: source.startswith("[![Open in Colab]"),
        nbformat.v4.new_markdown_cell,
    ),
    (
        "colab-install",
        lambda source: '"google.colab" in sys.modules' in source and "%pip install" in source,
        nbformat.v4.new_code_cell,
    ),
)

#: Extras that a notebook needs: models, unless a longer beginning of its path says more.
EXTRAS = {
    "nbs/": "[train]",
    "nbs/04_extraction/": "[train,llm]",
    "nbs/10_use/11_app": "[train,app]",
    "nbs/tutorials/own_graph_with_local_llm": "[train,llm]",
}


def extra(path: str) -> str:
    """The extras of the notebook at this path."""
    return EXTRAS[max((start for start in EXTRAS if path.startswith(start)), key=len)]


def notebooks(root: Path) -> list[Path]:
    """Numbered notebooks, and all of `paper` and `tutorials`."""
    return sorted(
        [
            *root.glob("nbs/[0-9]*/*.ipynb"),
            *root.glob("nbs/paper/*.ipynb"),
            *root.glob("nbs/tutorials/*.ipynb"),
        ]
    )


def with_cells(notebook: nbformat.NotebookNode, wanted: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with both cells right behind its title, whatever it had of them before."""
    known = {
        name: [c for c in notebook.cells if c.get("id") == name or is_it(c.source)]
        for name, is_it, _ in PARTS
    }
    gone = {id(c) for cells in known.values() for c in cells}
    rest = [c for c in notebook.cells if id(c) not in gone]
    made = []
    for name, _, new in PARTS:
        cell = known[name][0] if known[name] else new()
        cell["id"], cell["source"] = name, wanted[name]
        made.append(cell)
    notebook.cells = [*rest[:1], *made, *rest[1:]]
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(args.root / "settings.ini")
    place = {key: settings["DEFAULT"][key] for key in ("user", "repo", "branch")}
    stale = []
    for path in notebooks(args.root):
        before, name = path.read_text(encoding="utf-8"), path.relative_to(args.root).as_posix()
        wanted = {
            "colab-badge": BADGE.format(**place, path=name),
            "colab-install": INSTALL.format(**place, extra=extra(name)),
        }
        after = nbformat.writes(with_cells(nbformat.reads(before, as_version=4), wanted)) + "\n"
        if after == before:
            continue
        stale.append(name)
        if not args.check:
            path.write_text(after, encoding="utf-8")
    print(
        f"{len(stale)} notebooks {'lack current cells' if args.check else 'written'}"
        + "".join(f"\n  {name}" for name in stale)
    )
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
