"""Every csv that the package writes: no cell runs as a formula in a spreadsheet, and what is read back is the same.

The writers are found in the source, so a new one fails here until it is tried.
"""

import csv
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import r2genkg
from r2genkg.data.study import LABELS
from r2genkg.extraction.annotate import annotate
from r2genkg.kg.build import build_graph
from r2genkg.kg.exchange import export_graph, import_m3kg
from r2genkg.kg.graph import M3KG
from r2genkg.kg.merging import GraphOptions
from r2genkg.text.label_files import write_labels

HOSTILE = [
    '=HYPERLINK("http://evil.example";"x")',
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "-x",
]
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?%?$", re.IGNORECASE)
TEXT = "Small left pleural effusion. No pneumothorax in the right lung. The heart is enlarged."
#: Modules that write csv; each is tried below.
WRITERS = {
    "kg/exchange.py",
    "text/label_files.py",
    "training/table_files.py",
    "training/tables.py",
    "use/run_audit.py",
}
#: Makes csv text that is only compared.
NO_FILE = {"vision/classifier_training.py"}


def test_all_writers_are_tried():
    home = Path(r2genkg.__file__).parent
    found = {
        str(path.relative_to(home))
        for path in home.rglob("*.py")
        if re.search(r"\.to_csv\(|csv\.writer\(|DictWriter\(", path.read_text(encoding="utf-8"))
    }
    assert found - NO_FILE == WRITERS


def cells(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row]


def check(folder: Path, cell: str, raw: bool = False) -> None:
    """All csv files of a folder: the hostile cell is there, as text."""
    everything = [c for path in folder.rglob("*.csv") for c in cells(path)]
    assert any(cell.strip() in c for c in everything)
    formulas = [c for c in everything if FORMULA.match(c) and not NUMBER.match(c)]
    assert bool(formulas) == raw, formulas[:3]


def hostile_graph(cell: str) -> M3KG:
    graph = build_graph([("report 1", annotate([TEXT])[0])], GraphOptions(min_count=1))
    new = {key: f"{cell}{i}" for i, key in enumerate(graph.nodes.key)}
    nodes = graph.nodes.assign(key=graph.nodes.key.map(new), name=list(new.values()))
    nodes = nodes.assign(aliases=[[cell, "b"]] * len(nodes))
    ends = {end: graph.triples[end].map(new) for end in ("source", "target")}
    reports = [[cell]] * len(graph.triples)
    return replace(graph, nodes=nodes, triples=graph.triples.assign(reports=reports, **ends))


@pytest.mark.parametrize("cell", HOSTILE)
@pytest.mark.parametrize("form", ["neo4j", "rexkg"])
def test_exports(tmp_path, form, cell):
    graph = hostile_graph(cell)
    export_graph(graph, form, tmp_path / "safe")
    check(tmp_path / "safe", cell)
    export_graph(graph, form, tmp_path / "raw", raw=True)
    if cell.strip() == cell or form == "rexkg":
        check(tmp_path / "raw", cell, raw=True)
    if form == "rexkg" and cell.strip() == cell:
        back = [import_m3kg(tmp_path / n / "kg_relations.csv") for n in ("safe", "raw")]
        assert back[0].nodes.key.tolist() == back[1].nodes.key.tolist()
        assert back[0].nodes.name.tolist() == back[1].nodes.name.tolist()


@pytest.mark.parametrize("cell", HOSTILE)
def test_labels(tmp_path, cell):
    table = pd.DataFrame(0.0, [0], list(LABELS))
    write_labels(tmp_path / "safe" / "l.csv", table, [cell], name=cell)
    check(tmp_path / "safe", cell)


@pytest.mark.parametrize("cell", HOSTILE)
def test_tables_of_the_paper(tmp_path, monkeypatch, cell):
    """The table, and the tests behind it."""
    import r2genkg.training.tables
    from r2genkg.training.grid import load_grid
    from r2genkg.training.table_files import write_table

    table = pd.DataFrame({cell: ["0.1", cell]}, index=["full", cell])
    write_table(table, "t", tmp_path / "one")
    check(tmp_path / "one", cell)
    tests = pd.DataFrame({"p": [0.01], cell: [cell]}, index=[cell])
    monkeypatch.setattr(r2genkg.training.tables, "make_table", lambda *args: (table, tests))
    monkeypatch.setattr(r2genkg.training.tables, "_footnote", lambda *args: "")
    for raw in (False, True):
        folder = tmp_path / f"raw {raw}"
        made = [SimpleNamespace(data="")]
        r2genkg.training.tables.make_tables(load_grid("demo"), made, folder, "", raw=raw)
        assert len(list(folder.glob("*_tests.csv"))) > 0
        check(folder, cell, raw)


@pytest.mark.parametrize("cell", HOSTILE)
def test_audit(tmp_path, monkeypatch, cell):
    import r2genkg.use.run_audit

    picture = SimpleNamespace(savefig=lambda path: None)
    monkeypatch.setattr(r2genkg.use.run_audit, "contact_sheet", lambda *args: picture)
    monkeypatch.setattr(r2genkg.use.run_audit, "audit_form", lambda *args: "")
    run = SimpleNamespace(config=SimpleNamespace(studies=SimpleNamespace(image_size=56)), bank=None)
    rows = pd.MultiIndex.from_tuples([(cell, "a"), ("b", cell)], names=["label", cell])
    table = pd.DataFrame({"x": [0.5, -0.25], cell: [cell, None]}, index=rows)
    r2genkg.use.run_audit._write_audit(tmp_path / "a", {"pointing": table}, [], run)
    check(tmp_path / "a", cell)
