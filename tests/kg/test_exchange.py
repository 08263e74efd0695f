"""Exports are read by other readers: networkx for GraphML, the csv module for Neo4j, rdflib for Turtle."""

import csv
import re
from dataclasses import replace

import networkx as nx
import pytest

from r2genkg.extraction.annotate import annotate
from r2genkg.kg.build import build_graph
from r2genkg.kg.exchange import export_graph
from r2genkg.kg.from_pyg import import_pyg, read_pyg
from r2genkg.kg.graph import M3KG
from r2genkg.kg.merging import GraphOptions

TEXT = "Small left pleural effusion. No pneumothorax in the right lung. The heart is enlarged."
#: Endings that break one format or another.
ODD = (
    "\x1e",
    "\r\n",
    "\t",
    "\x0b",
    "\x85",
    "\u2028",
    '"',
    "'",
    "\\",
    "<b>",
    "&amp;",
    ";",
    ",",
    ">.",
    "~-",
    "%20",
)


@pytest.fixture
def graph() -> M3KG:
    options = GraphOptions(min_count=1)
    return build_graph([("report 1", annotate([TEXT])[0])], options)


@pytest.fixture
def odd(graph) -> M3KG:
    """The graph with an odd sign in every key, name, alias and report id."""
    keys = list(graph.nodes.key)
    new = {key: f"{key} {ODD[i % len(ODD)]}x" for i, key in enumerate(keys)}
    nodes = graph.nodes.assign(
        key=graph.nodes.key.map(new),
        name=[f"{name}{ODD[(i + 5) % len(ODD)]}" for i, name in enumerate(graph.nodes.name)],
        aliases=[[f"a{sign}b" for sign in ODD]] * len(keys),
    )
    ends = {end: graph.triples[end].map(new) for end in ("source", "target")}
    triples = graph.triples.assign(reports=[[f"r{s}1" for s in ODD]] * len(graph.triples), **ends)
    return replace(graph, nodes=nodes, triples=triples)


def test_graphml_of_odd_texts_is_read_by_networkx(odd, tmp_path):
    export_graph(odd, "graphml", tmp_path / "g.graphml")
    back = nx.read_graphml(tmp_path / "g.graphml", force_multigraph=True)
    assert back.number_of_nodes() == len(odd.nodes)
    assert back.number_of_edges() == len(odd.triples)
    assert all("name" in facts for _, facts in back.nodes(data=True))  # edges made no new nodes
    texts = [*back.nodes, *(facts["reports"] for *_, facts in back.edges(data=True))]
    assert not any(re.search(r"[\x00-\x1f\x85\u2028]", text) for text in texts)


def test_neo4j_rows_are_lines(odd, tmp_path):
    export_graph(odd, "neo4j", tmp_path / "csv")
    found = {}
    for name in ("nodes", "relationships"):
        text = (tmp_path / "csv" / f"{name}.csv").read_text()
        found[name] = list(csv.DictReader(text.splitlines()))
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x85\u2028]", text)
    assert len(found["nodes"]) == len(odd.nodes)
    assert len(found["relationships"]) == len(odd.triples)
    keys = {row["key:ID"] for row in found["nodes"]}
    assert {row[end] for row in found["relationships"] for end in (":START_ID", ":END_ID")} <= keys


def test_keys_that_differ_in_a_control_character_stay_apart(graph, tmp_path):
    first, second = graph.nodes.key[:2]
    twins = {first: "widget\x1e", second: "widget"}
    nodes = graph.nodes.assign(key=graph.nodes.key.replace(twins))
    triples = graph.triples.assign(
        source=graph.triples.source.replace(twins), target=graph.triples.target.replace(twins)
    )
    export_graph(replace(graph, nodes=nodes, triples=triples), "graphml", tmp_path / "g.graphml")
    back = nx.read_graphml(tmp_path / "g.graphml", force_multigraph=True)
    assert back.number_of_nodes() == len(graph.nodes)
    assert {"widget", "widget 2"} <= set(back.nodes)


@pytest.mark.parametrize("which", ["graph", "odd"])
def test_turtle_is_read_by_rdflib(which, request, tmp_path):
    rdflib = pytest.importorskip("rdflib")
    graph = request.getfixturevalue(which)
    path = export_graph(graph, "ttl", tmp_path / "g.ttl")
    found = rdflib.Graph().parse(path, format="turtle")
    own = rdflib.Namespace("urn:r2genkg:")
    keys = {str(o) for _, _, o in found.triples((None, own.key, None))}
    assert keys == set(graph.nodes.key)  # unescaped, they are the graph's own
    statements = list(found.triples((None, own.relation, None)))
    assert len(statements) == len(graph.triples)
    stated = sum(
        len(list(found.triples((None, own[kind], None)))) for kind in set(graph.triples.type)
    )
    assert stated == (graph.triples["count"] > 0).sum()


def test_turtle_names_do_not_depend_on_the_place_of_a_node(graph, tmp_path):
    text = export_graph(graph, "ttl", tmp_path / "a.ttl").read_text()
    turned = replace(graph, nodes=graph.nodes[::-1], triples=graph.triples[::-1])
    again = export_graph(turned, "ttl", tmp_path / "b.ttl").read_text()
    assert sorted(text.splitlines()) == sorted(again.splitlines())


@pytest.mark.parametrize("which", ["graph", "odd"])
def test_pyg_files_come_back(which, request, tmp_path):
    graph = request.getfixturevalue(which)
    export_graph(graph, "pyg", tmp_path / "pyg")
    data, back = read_pyg(tmp_path / "pyg"), import_pyg(tmp_path / "pyg")
    assert sum(len(data[kind].node_key) for kind in data.node_types) == len(graph.nodes)
    for mine, theirs, columns in (
        (graph.nodes, back.nodes, ["key", "name", "entity_type", "count"]),
        (graph.triples.query("count > 0"), back.triples, ["source", "type", "target", "count"]),
    ):
        assert set(map(tuple, mine[columns].values)) == set(map(tuple, theirs[columns].values))
    back.save(tmp_path / "kg")
    assert M3KG.load(tmp_path / "kg").stats()["nodes"] == len(graph.nodes)
