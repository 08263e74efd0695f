"""Graphs, banks and runs of strangers whose tables hold values of another kind than the package computes with.

Every command that reads them ends as usual or with one line that names the file, the row and the column.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from r2genkg.core.files import R2GenKGError
from r2genkg.extraction.annotate import annotate
from r2genkg.kg.build import build_graph
from r2genkg.kg.compare import compare_graphs
from r2genkg.kg.exchange import WRITERS, export_graph
from r2genkg.kg.graph import M3KG
from r2genkg.kg.merging import GraphOptions
from r2genkg.kg.tracing import edge_sentences
from r2genkg.kg.view import write_graph_page
from r2genkg.training.run import Run
from r2genkg.use.report import token_table
from r2genkg.vision.vision_tokens import VisionTokens

from toy_run import TEXTS, toy_data

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "g"
    reports = [(f"r{i}", found) for i, found in enumerate(annotate(TEXTS * 2))]
    build_graph(reports, GraphOptions(min_count=1)).save(folder)
    return folder


def changed(home: Path, folder: Path, file: str, **columns) -> Path:
    """A copy of a folder with other columns in one of its tables."""
    copy = folder / "copy"
    shutil.copytree(home, copy)
    table = pd.read_parquet(copy / file)
    values = {k: v(table) if callable(v) else v for k, v in columns.items()}
    table.assign(**values).to_parquet(copy / file, index=False)
    return copy


NODES = {
    "counts are words": {"count": "many"},
    "counts are missing": {"count": np.nan},
    "counts without end": {"count": np.inf},
    "counts below zero": {"absent": -5},
    "halves": {"present": 0.5},
    "keys are numbers": {"key": lambda t: range(len(t))},
    "keys are missing": {"key": None},
    "one key": {"key": "a"},
    "names are missing": {"name": None},
    "names are numbers": {"name": 1.5},
    "types are missing": {"entity_type": None},
    "a path as type": {"entity_type": "../../evil"},
    "control characters": {
        "name": "a\x1b[2J\u202eb",
        "key": lambda t: [f"k\x9b{i}" for i in t.index],
    },
    "links are missing": {"cui": None},
    "links are numbers": {"tui": 3},
    "aliases are missing": {"aliases": None},
    "aliases are a text": {"aliases": "abc"},
    "aliases are numbers": {"aliases": lambda t: [[1, 2]] * len(t)},
    "aliases hold nothing": {"aliases": lambda t: [[]] * len(t)},
    "markup": {"name": "<script>alert(1)</script>"},
    "dollars": {"name": "cost $5^$ and $_{$"},
}
TRIPLES = {
    "counts are words": {"count": "many"},
    "counts are missing": {"count": np.nan},
    "counts without end": {"count": np.inf},
    "counts below zero": {"count": -5},
    "counts beyond reason": {"count": 2**62},
    "ends are numbers": {"source": 7},
    "ends are missing": {"target": None},
    "ends elsewhere": {"source": "nowhere"},
    "unknown relation": {"type": "causes"},
    "no relation": {"type": None},
    "reports are missing": {"reports": None},
    "reports are a text": {"reports": "abc"},
    "reports are numbers": {"reports": lambda t: [[1]] * len(t)},
}
OTHERS = {
    ("drops", "words"): {"n": lambda t: ["many"] * len(t)},
    ("drops", "control characters"): {"what": lambda t: ["a\x1b[2J\u202e"] * len(t)},
    ("subgraphs", "parts missing"): {"parts": lambda t: [None] * len(t)},
    ("subgraphs", "counts are words"): {"count": lambda t: ["x"] * len(t)},
    ("shared", "kept missing"): {"kept": lambda t: [None] * len(t)},
}
GRAPHS = [
    *(("nodes", name, columns) for name, columns in NODES.items()),
    *(("triples", name, columns) for name, columns in TRIPLES.items()),
    *((table, name, columns) for (table, name), columns in OTHERS.items()),
]


@pytest.mark.parametrize(
    "table, name, columns", GRAPHS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_graph(graph, tmp_path, table, name, columns):
    copy = changed(graph, tmp_path, f"{table}.parquet", **columns)
    try:
        found = M3KG.load(copy)
    except R2GenKGError as e:
        assert f"{table}.parquet: " in str(e) and "\n" not in str(e) and len(str(e)) < 400
        return
    found.stats()
    for form in WRITERS:
        export_graph(found, form, tmp_path / form)
    compare_graphs(found, M3KG.load(graph))
    node = str(found.nodes.key.iloc[0])
    try:
        write_graph_page(found, node, tmp_path / "v.html")
        edge_sentences(found, zip("a", annotate(TEXTS[:1])), node)
    except R2GenKGError as e:
        assert "\n" not in str(e)


def test_graph_on_the_terminal(graph, tmp_path, command):
    columns = {"what": lambda t: ["a\x1b[2J\u202e"] * len(t)}
    copy = changed(graph, tmp_path, "drops.parquet", **columns)
    assert command("kg", "stats", copy, cwd=tmp_path).code == 0


@pytest.mark.parametrize("table", ["nodes", "triples", "drops"])
def test_few_bytes_for_many_rows(graph, tmp_path, table):
    shutil.copytree(graph, tmp_path / "g")
    file = tmp_path / "g" / f"{table}.parquet"
    row = pd.read_parquet(file).head(1).drop(columns=["aliases", "reports"], errors="ignore")
    rows = (
        row.loc[row.index.repeat(1_200_000)]
        if len(row)
        else pd.DataFrame({"what": ["a"] * 1_200_000, "reason": "b", "item": "c", "n": 1})
    )
    rows.to_parquet(file, index=False, compression="zstd")
    with pytest.raises(R2GenKGError, match=f"{table}.parquet: .* stand for 1,200,000 rows"):
        M3KG.load(tmp_path / "g")


# --- banks of vision tokens -------------------------------------------------------------------------------------------

BANKS = {
    "labels are missing": {"label": None},
    "labels are numbers": {"label": 3},
    "labels steer": {"label": "\x1b[2JCurse\u202e"},
    "corners are words": {"x0": "left"},
    "corners are missing": {"x0": np.nan},
    "corners without end": {"y1": np.inf},
    "corners below zero": {"x0": -50},
    "studies are missing": {"study": None},
    "studies are numbers": {"study": 7},
    "attention in words": {"cam": "high"},
    "attention missing": {"cam": np.nan},
    "films are missing": {"image": None},
    "films are numbers": {"image": 4},
    "a device as film": {"image": "/dev/zero"},
    "views are words": {"view": "front"},
}


@pytest.fixture(scope="module")
def bank(toy) -> Path:
    folder = toy.parent / "stored-bank"
    if not folder.exists():
        toy_data(toy.parent / "data").tokens.save(folder)
    return folder


@pytest.mark.parametrize("name", BANKS)
def test_bank(bank, tmp_path, name):
    copy = changed(bank, tmp_path, "tokens.parquet", **BANKS[name])
    try:
        found = VisionTokens.load(copy)
    except R2GenKGError as e:
        (column,) = BANKS[name]
        assert "tokens.parquet: row 0" in str(e) and column in str(e) and "\n" not in str(e)
        return
    assert name in ("labels steer", "a device as film") and len(found)


def test_sparse_bank(bank, tmp_path):
    shutil.copytree(bank, tmp_path / "b")
    size = 2**27
    facts = {"features": {"dtype": "F32", "shape": [size // 4, 1], "data_offsets": [0, size]}}
    head = json.dumps(facts).encode()
    with open(tmp_path / "b" / "features.safetensors", "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)
    with pytest.raises(R2GenKGError, match="on the disk"):
        VisionTokens.load(tmp_path / "b")


@pytest.mark.parametrize("meta", ["[1]", "null", "3", '"x"'])
def test_meta_of_a_bank(bank, tmp_path, meta):
    shutil.copytree(bank, tmp_path / "b")
    (tmp_path / "b" / "meta.json").write_text(meta)
    with pytest.raises(R2GenKGError, match="meta.json: expected an object"):
        VisionTokens.load(tmp_path / "b")


# --- settings and stages of a run -------------------------------------------------------------------------------------

CONFIGS = {
    "layers without end": ("model", "qformer_layers", 10**9),
    "fusers without end": ("model", "fuser_layers", 10**9),
    "a language model without end": ("llm", "layers", 10**9),
    "width without end": ("model", "dim_encoder", 10**12),
    "a model of the hub": ("llm", "name", "evil/model"),
    "films of another size": ("studies", "image_size", 4096),
    "a prompt that formats": ("llm", "prompt", "Hello {0.__class__} {nope}"),
    "no scale": ("model", "feed_scale", 0),
    "another adapter": ("llm", "adapter", "lora"),
    "a file of the reader": ("studies", "path", "/etc/passwd"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_a_run(toy, tmp_path, name):
    shutil.copytree(toy, tmp_path / "run")
    section, key, value = CONFIGS[name]
    file = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree[section][key] = value
    file.write_text(yaml.safe_dump(tree))
    try:
        run = Run(tmp_path / "run")
        token_table(run), run.model
    except R2GenKGError as e:
        assert "\n" not in str(e) and "root:" not in str(e)


STAGES = {
    "list": "[1]",
    "number": '{"studies": 5}',
    "null": '{"studies": null}',
    "object": '{"studies": {"a": 1}}',
    "nul": '{"studies": "a\\u0000b"}',
    "climb": '{"studies": "../../../../../../etc"}',
    "long": json.dumps({"studies": "x" * 5000}),
    "surrogate": '{"studies": "\\ud800"}',
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("args", [("audit",), ("evaluate",)])
def test_stages_of_a_run(toy, tmp_path, command, name, args):
    (tmp_path / "run").mkdir()
    shutil.copy(toy / "config.yaml", tmp_path / "run")
    (tmp_path / "run" / "knowledge.safetensors").symlink_to(toy / "knowledge.safetensors")
    (tmp_path / "run" / "stages.json").write_text(STAGES[name])
    command(*args, tmp_path / "run", cwd=tmp_path).in_one_line()
