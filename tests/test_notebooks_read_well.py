"""Notebooks as pages: prose first, code no wider than the page, figures that can be read."""

import re
from pathlib import Path

import nbformat
import pytest

#: Without those of `paper`, which train for an hour: they follow when they are run anew.
NOTEBOOKS = sorted(
    path
    for path in (Path(__file__).parents[1] / "nbs").rglob("*.ipynb")
    if path.parent.name != "paper"
)
WIDTH = 120  #: characters of a code cell on a page of 1,200 pixels
HIDDEN = re.compile(r"\s*#\|\s*(hide|default_exp|exporti?\b)")
SIZE = re.compile(
    r"\b(?:font|label|title_font)size\s*=\s*(\d+(?:\.\d+)?)|set_fontsize\((\d+(?:\.\d+)?)\)"
)
DPI = re.compile(r"\bdpi\s*=\s*(\d+)|set_dpi\((\d+)\)")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(params=NOTEBOOKS, ids=name)
def cells(request) -> list:
    return nbformat.read(request.param, 4).cells


def test_the_first_visible_cells_are_prose(cells):
    visible = [c for c in cells if c.cell_type == "markdown" or not HIDDEN.match(c.source)]
    assert visible[0].cell_type == "markdown" and visible[0].source.startswith("# ")
    first_code = next((i for i, c in enumerate(visible) if c.cell_type == "code"), len(visible))
    prose = [c.source for c in visible[1:first_code] if not c.source.startswith("[![")]
    assert prose or re.search(r"^[^#>\s[]", visible[0].source, re.M) is not None


def test_code_is_not_wider_than_the_page(cells):
    code = [c for c in cells if c.cell_type == "code"]
    wide = [(c.id, line) for c in code for line in c.source.splitlines() if len(line) > WIDTH]
    assert not wide


def test_figures_are_shown_at_100_dpi(cells):
    """Saved pictures have 150; a smaller number makes letters unreadable."""
    found = [m for c in cells if c.cell_type == "code" for m in DPI.findall(c.source)]
    assert {int(a or b) for a, b in found} <= {100, 150}


def test_figures_are_drawn_and_not_only_named(cells):
    """Without this line a cell that ends in a figure prints `<Figure size ...>`."""
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    ends_in_figure = re.search(r"^(fig|figure|ax)$", code, re.M)
    assert not ends_in_figure or "%matplotlib inline" in code or "import matplotlib.pyplot" in code


def test_no_letter_of_a_figure_is_below_8_points(cells):
    found = [m for c in cells if c.cell_type == "code" for m in SIZE.findall(c.source)]
    assert all(float(a or b) >= 8 for a, b in found)
