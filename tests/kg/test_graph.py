"""The graph: each fault of ReXKG's pipeline that changes results has a test, named by its place; also provenance,
exchange and the page.

The names `test_fault_FILE_LINES` are places in ReXKG's code as listed in the survey that this project started from.
"""

import json
from collections import Counter
from itertools import pairwise

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from browser import open_page
from r2genkg.extraction.annotate import annotate, iter_annotations
from r2genkg.extraction.repair import answered_sentence
from r2genkg.core.files import R2GenKGError
from r2genkg.kg.scales import embed_texts
from r2genkg.kg.node_orders import ORDERS, induced_edges, pagerank, prefix_edges
from r2genkg.kg.graph import M3KG, find_node
from r2genkg.kg.build import build_graph
from r2genkg.kg.tracing import edge_sentences, stated_triples
from r2genkg.kg.construction import graph_from_counts
from r2genkg.kg.exchange import WRITERS, export_graph, import_m3kg, rexkg_pairs
from r2genkg.kg.compare import compare_graphs
from r2genkg.kg.view import neighbourhood, write_graph_page
from r2genkg.scores.graph_scores import graph_scores
from r2genkg.kg.linker import Concept, TableLinker
from r2genkg.kg.counts import count_reports, normalise
from r2genkg.kg.merging import GraphOptions
from r2genkg.data.annotation import Entity, SentenceAnnotation
from r2genkg.data.readers import read_studies
from r2genkg.text.negation import relate

ALL = {"min_count": 1}


def said(*terms: tuple[str, str], links: tuple = (), uncertain: tuple = ()) -> SentenceAnnotation:
    """A sentence that consists of (term, type) only; links are (head, tail, relation)."""
    tokens, entities = [], []
    for n, (term, kind) in enumerate(terms):
        words = term.split()
        entities.append(
            Entity.from_rexkg(len(tokens), len(tokens) + len(words) - 1, kind, n in uncertain)
        )
        tokens += words
    relations = relate(tokens, entities, links)
    return SentenceAnnotation(" ".join(tokens), tuple(tokens), tuple(entities), relations)


def graph_of(*sentences: SentenceAnnotation, **options) -> M3KG:
    return build_graph(
        ((f"r{n}", [s]) for n, s in enumerate(sentences)), GraphOptions(**ALL | options)
    )


def counts_of(graph: M3KG) -> dict[str, int]:
    return dict(zip(graph.nodes.name, graph.nodes["count"]))


class Linker:
    """Knows some surfaces: surface -> concept."""

    def __init__(self, **known: Concept):
        self.known = {k.replace("_", " "): v for k, v in known.items()}

    def link(self, surfaces, types):
        return [self.known.get(s) for s in surfaces]


# ---- starred rows of the list of faults ----


def test_fault_structure_entities_161_166_linked_words_are_counted_once():
    """ReXKG writes linked one-word terms twice and sums them: 828 of 840 published counts are even."""
    sentences = [said(("effusion", "disorder_present"), ("lung", "anatomy"))] * 7
    linked = graph_of(
        *sentences,
        linker=Linker(effusion=Concept("C0013687", "effusion"), lung=Concept("C0024109", "lung")),
    )
    assert counts_of(linked) == counts_of(graph_of(*sentences)) == {"effusion": 7, "lung": 7}
    assert set(linked.nodes.key) == {"C0013687", "C0024109"}


def test_fault_structure_entities_192_235_269_312_long_terms_are_linked():
    """ReXKG's stale variable never links a term of several words, and adds the last single word again and again."""
    terms = [
        ("pleural effusion", "disorder_present"),
        ("central venous catheter", "devices_present"),
        ("left upper lobe apex", "anatomy"),
        ("tip", "anatomy"),
    ]
    graph = graph_of(
        *[said(t) for t in terms],
        linker=Linker(
            **{t.replace(" ", "_"): Concept(f"C000000{i}", t) for i, (t, _) in enumerate(terms)}
        ),
    )
    assert dict(zip(graph.nodes.name, graph.nodes.cui)) == {
        t: f"C000000{i}" for i, (t, _) in enumerate(terms)
    }
    assert set(graph.nodes["count"]) == {1}


def test_fault_structure_entities_231_every_split_of_a_composed_term_is_found():
    """ReXKG never tests the split 2 + 1, misses four words in 1 + 4 and 4 + 1, and needs terms of two words."""
    words = [
        ("lower lobe", "anatomy"),
        ("consolidation", "disorder_present"),
        ("old", "concept"),
        ("right internal jugular vein", "anatomy"),
        ("catheter", "devices_present"),
    ]
    composed = [
        ("lower lobe consolidation", "disorder_present"),
        ("old lower lobe consolidation", "disorder_present"),
        ("right internal jugular vein catheter", "devices_present"),
        ("old right internal jugular vein", "anatomy"),
    ]
    parts = (
        graph_of(*[said(t) for t in words + composed]).subgraphs.set_index("name").parts.map(list)
    )
    assert parts["lower lobe consolidation"] == ["lower lobe", "consolidation"]  # 2 + 1
    assert len(parts["old lower lobe consolidation"]) == 2  # 1 + the composed 3
    assert parts["right internal jugular vein catheter"] == [
        "right internal jugular vein",
        "catheter",
    ]  # 4 + 1
    assert parts["old right internal jugular vein"] == [
        "old",
        "right internal jugular vein",
    ]  # 1 + 4
    assert graph_of(said(("lung", "anatomy"))).subgraphs.empty  # no term of two words at all


def test_fault_structure_entities_105_116_hyphenated_nodes_meet_their_edges():
    """ReXKG deletes the hyphen in the node and keeps it in the triple: 61 published nodes have no edge."""
    written = [
        said(("gas-filled", "concept"), ("bowel", "anatomy"), links=((0, 1, "modify"),)),
        said(("Gas - filled", "concept"), ("bowel", "anatomy"), links=((0, 1, "modify"),)),
        said(("gas\u2010filled", "concept")),
    ]
    graph = graph_of(*written)
    assert counts_of(graph) == {"gas-filled": 3, "bowel": 2}
    assert graph.triples[["source", "target", "count"]].to_numpy().tolist() == [
        ["gas-filled", "bowel", 2]
    ]


def test_fault_merge_entities_99_118_a_chain_of_likeness_counts_nothing_twice():
    """a ~ b ~ c: ReXKG merges b into a and keeps b as well, so that 70 counts become 90."""
    angle = {"alpha": 0.0, "beta": 0.3, "gamma": 0.6, "delta": 2.0}
    mentions = [
        said((w, "concept"))
        for w, n in (("alpha", 40), ("beta", 20), ("gamma", 10), ("delta", 5))
        for _ in range(n)
    ]
    graph = graph_of(
        *mentions,
        merge_threshold=0.95,
        embed=lambda names: np.array([[np.cos(angle[n]), np.sin(angle[n])] for n in names]),
    )
    assert np.cos(0.3) > 0.95 > np.cos(0.6) and counts_of(graph) == {"alpha": 70, "delta": 5}
    assert sorted(graph.nodes.set_index("name").aliases["alpha"]) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize(
    "a,b",
    [("somewhat", "very"), ("january", "august"), ("left", "right"), ("increased", "decreased")],
)
def test_fault_merge_entities_distinct_words_stay_apart(a, b):
    """Published merges at 0.95: somewhat = very, january = august."""
    graph = graph_of(
        said((a, "concept")),
        said((b, "concept")),
        merge_threshold=0.9,
        embed=lambda names: np.ones((len(names), 2)),
    )
    assert counts_of(graph) == {a: 1, b: 1}


def test_fault_merge_entities_67_72_embeddings_are_cached_by_content(tmp_path, monkeypatch):
    """ReXKG looks up a node's key, so a changed node keeps its old vector. Here the text is the key."""
    monkeypatch.setenv("R2GENKG_CACHE", str(tmp_path))
    first = embed_texts(["effusion", "lung"])
    again = embed_texts(["lung", "pleural effusion", "effusion"])
    assert np.allclose(again[[2, 0]], first, atol=1e-6) and not np.allclose(
        again[1], first[0], atol=1e-3
    )
    counts = count_reports(
        [
            (i, [said((w, "disorder_present"))])
            for i, w in (("a", "effusions"), ("b", "effusion"), ("c", "effusion"))
        ]
    )
    before = counts.mentions.copy(), counts.triples.copy(), counts.spellings.copy()
    merged = graph_from_counts(counts, GraphOptions(**ALL))
    assert (
        counts_of(merged) == {"effusion": 3}
        and (counts.mentions, counts.triples, counts.spellings) == before
    )  # ReXKG's shallow copy changes its input


def test_fault_get_kg_nodes_70_shared_alias_is_resolved_by_type_and_listed():
    """116 published aliases belong to several nodes; the last node gets all the edges."""
    place, geography = (
        Concept("C1", "chest", aliases=("chest", "region")),
        Concept("C2", "geographic locations", aliases=("geographic locations", "region")),
    )
    sentences = [
        said(("chest", "anatomy")),
        said(("geographic locations", "concept")),
        *[said(("small", "concept"), ("region", "anatomy"), links=((0, 1, "modify"),))] * 3,
    ]
    graph = graph_of(*sentences, linker=Linker(chest=place, geographic_locations=geography))
    assert (
        dict(zip(graph.shared.alias, graph.shared.kept))["region"] == "region"
    )  # a node of its own: written for it
    assert graph.triples[["source", "target", "count"]].to_numpy().tolist() == [
        ["small", "region", 3]
    ]
    assert all("region" not in graph.nodes.set_index("key").aliases[k] for k in ("C1", "C2"))
    owners = Counter(a for aliases in graph.nodes.aliases for a in aliases)
    assert max(owners.values()) == 1


def test_fault_get_kg_nodes_87_92_relation_types_and_directions_stay_apart():
    """a->b 10 located_at, 9 modify, 8 suggestive_of and b->a 12 suggestive_of become "a located_at b 39" in ReXKG."""
    facts = (
        [(0, 1, "located_at")] * 10
        + [(0, 1, "modify")] * 9
        + [(0, 1, "suggestive_of")] * 8
        + [(1, 0, "suggestive_of")] * 12
    )
    graph = graph_of(
        *[said(("a", "disorder_present"), ("b", "disorder_present"), links=(f,)) for f in facts]
    )
    assert {(t.source, t.type, t.target): t.present for t in graph.triples.itertuples()} == {
        ("a", "located_at", "b"): 10,
        ("a", "modify", "b"): 9,
        ("a", "suggestive_of", "b"): 8,
        ("b", "suggestive_of", "a"): 12,
    }
    assert rexkg_pairs(graph.triples).to_numpy().tolist() == [
        ["a", "b", "located_at", 39]
    ]  # its form, as an export only


def test_fault_linking_a_concept_of_another_type_is_refused(tmp_path):
    """Published links: tip -> KAT5 allele, base -> chemical base, nasogastric -> drug route."""
    pd.DataFrame(
        {
            "alias": ["tip", "base", "base", "lung"],
            "cui": ["C1", "C2", "C3", "C4"],
            "name": ["KAT5 wt Allele", "Base", "Lung base", "Lung"],
            "tui": ["T028", "T120", "T023", "T023"],
        }
    ).to_csv(tmp_path / "t.csv", index=False)
    linker = TableLinker(tmp_path / "t.csv")
    graph = graph_of(
        said(("tip", "devices_present"), ("base", "anatomy"), ("lung", "anatomy")), linker=linker
    )
    assert dict(zip(graph.nodes.name, graph.nodes.cui)) == {"tip": "", "base": "C3", "lung": "C4"}
    assert {(s, c) for s, _, c, _ in linker.refused} == {("tip", "C1"), ("base", "C2")}


@pytest.mark.parametrize(
    "text,kept",
    [
        ("2 masses", "masses"),
        ("1 inferior", "inferior"),
        ("3 minimal", "minimal"),
        ("3 mm", None),
        ("2 x 3 cm", None),
        ("1.5cm", None),
    ],
)
def test_fault_get_entities_14_get_size_12_units_end_with_the_word(text, kept):
    """Without a word end "2 masses", "1 inferior", "3 minimal" are sizes in ReXKG."""
    graph = graph_of(said((text, "concept"), ("lung", "anatomy")))
    assert (kept in set(graph.nodes.name)) if kept else set(graph.nodes.name) == {"lung"}
    if not kept:
        assert graph.drops[["what", "reason", "item"]].to_numpy().tolist() == [
            ["surface", "size", normalise(text)]
        ]


def test_fault_get_entities_35_reverse_19_repeats_count_and_views_do_not():
    """A dictionary per sentence loses repeats and lets the last type win; each view of a study counts as a report."""
    twice = said(
        ("effusion", "disorder_notpresent"),
        ("tip", "anatomy"),
        ("effusion", "disorder_present"),
        ("tip", "anatomy"),
        ("tip", "devices_present"),
    )
    counts = count_reports(
        [
            ("p1/study1/view1_frontal.jpg", [twice]),
            ("p1/study1/view2_lateral.jpg", [twice]),
            ("p2/study1/view1_frontal.jpg", [twice]),
        ]
    )
    assert (
        counts.reports == 2
        and counts.repeats.total() == 1
        and counts.mentions["effusion", "disorder", "absent"]
        == counts.mentions["effusion", "disorder", "present"]
        == 2
    )
    graph = build_graph([("a", [twice])], GraphOptions(**ALL)).nodes.set_index("name")
    assert graph.loc["effusion", ["count", "present", "absent"]].tolist() == [1, 1, 1]
    assert graph.loc["tip", "entity_type"] == "anatomy" and graph.loc["tip", "count"] == 2


def test_fault_structure_data_66_71_types_are_repaired_and_lost_terms_leave_no_span():
    """ReXKG leaves `device_present` and `procedure` as they are (a KeyError later).

    It also keeps spans [-1, -1] of terms that are not in the sentence.
    """
    counts = Counter()
    links = [
        {"source_entity": "tube", "target_entity": "spine", "type": "located_at"},
        {"source_entity": "tube", "target_entity": "chest", "type": "located_at"},
    ]
    read = answered_sentence(
        "Chest tube after sternotomy.",
        {
            "tube": "device_present",
            "sternotomy": "procedure",
            "Chest": "anatomy",
            "spine": "anatomy",
        },
        links,
        counts,
    )
    assert [(read.span(e), e.rexkg_type) for e in read.entities] == [
        ("Chest", "anatomy"),
        ("tube", "devices_present"),
        ("sternotomy", "procedures"),
    ]
    assert [
        (read.span(read.entities[r.head]), read.span(read.entities[r.tail])) for r in read.relations
    ] == [("tube", "Chest")]
    assert (
        counts["types repaired"] == 2
        and counts["terms not in the sentence"] == 1
        and counts["relations that fit no entities or type"] == 1
    )


def test_fault_structure_data_50_55_negation_is_no_part_of_a_term():
    """ReXKG tests without case and replaces with it: "no pleural effusion" is one entity there."""
    read = annotate(["NO PLEURAL EFFUSION. No evidence of pneumothorax."])[0]
    assert [[read_.span(e).lower() for e in read_.entities] for read_ in read] == [
        ["pleural", "effusion"],
        ["pneumothorax"],
    ]
    assert [e.rexkg_type for s in read for e in s.entities] == [
        "anatomy",
        "disorder_notpresent",
        "disorder_notpresent",
    ]


# ---- further rows: nothing is lost without a reason ----


def test_fault_get_kg_nodes_101_128_drops_have_reasons_and_the_table_is_in_order():
    """57 self loops kept, 1,582 rows out of order, unmapped edges silently lost."""
    rare = said(("spur", "disorder_present"), ("rib", "anatomy"), links=((0, 1, "located_at"),))
    loop = said(
        ("effusion", "disorder_present"),
        ("effusions", "disorder_present"),
        links=((0, 1, "suggestive_of"),),
    )
    sized = said(
        ("3 mm", "size"),
        ("nodule", "disorder_present"),
        ("rib", "anatomy"),
        links=((0, 1, "modify"), (1, 2, "located_at")),
    )
    graph = graph_of(rare, loop, loop, sized, sized, sized, min_count=2)
    drops = graph.drops.set_index(["what", "item"])[["reason", "n"]].apply(tuple, axis=1).to_dict()
    assert drops["triple", "spur located_at rib"] == ("an end is no node: fewer than 2 mentions", 1)
    assert drops["triple", "effusion suggestive_of effusions"] == ("both ends are one node", 2)
    assert drops["triple", "3 mm modify nodule"] == ("an end is no node: size", 3) and drops[
        "surface", "3 mm"
    ] == ("size", 3)
    assert drops["node", "spur"] == ("fewer than 2 mentions", 1)
    assert (
        graph.triples["count"].is_monotonic_decreasing
        and not (graph.triples.source == graph.triples.target).any()
    )


def test_fault_structure_entities_480_the_linkers_score_is_stored():
    graph = graph_of(
        said(("lung", "anatomy"), ("rib", "anatomy")),
        linker=Linker(lung=Concept("C0024109", "lung", score=0.83)),
    )
    assert graph.nodes.set_index("name").possibility["lung"] == 0.83 and np.isnan(
        graph.nodes.set_index("name").possibility["rib"]
    )


def test_polarity_is_kept_on_nodes_and_edges():
    """20 % of disorder mentions are negated; in ReXKG they count as evidence."""
    link = ((0, 1, "located_at"),)
    there, gone = (
        said(("effusion", kind), ("pleural", "anatomy"), links=link)
        for kind in ("disorder_present", "disorder_notpresent")
    )
    maybe = said(
        ("effusion", "disorder_present"), ("pleural", "anatomy"), links=link, uncertain=(0,)
    )
    graph = graph_of(there, gone, gone, gone, maybe, maybe)
    edge, node = graph.triples.iloc[0], graph.nodes.set_index("name").loc["effusion"]
    assert (
        edge[["count", "present", "absent", "uncertain"]].tolist()
        == node[["count", "present", "absent", "uncertain"]].tolist()
        == [3, 1, 3, 2]
    )
    assert edge.reports == ["r0", "r4", "r5", "r1", "r2"]  # evidence first


# ---- real reports ----


@pytest.fixture(scope="module")
def real(shared_data):
    """(annotations, graph) of the 2,955 shared IU reports' first 600."""
    path = shared_data("iu_xray", "annotation.json")
    texts = [
        (s.id, s.report("findings")) for s in read_studies(path) if s.report("findings").strip()
    ][:600]
    annotated = list(iter_annotations(texts))
    return annotated, build_graph(annotated)


def test_every_edge_can_be_traced_to_as_many_sentences_as_it_counts(real):
    annotated, graph = real
    stated = Counter(row[1:4] for row in stated_triples(graph, annotated))
    assert {
        (t.source, t.type, t.target): t.present + t.absent + t.uncertain
        for t in graph.triples.itertuples()
    } == {k: n for k, n in stated.items() if k[0] != k[2]}
    rows = edge_sentences(graph, annotated, "Effusions", "pleural", "located_at")
    kept = graph.triples[
        (graph.triples.source == "effusion")
        & (graph.triples.target == "pleural")
        & (graph.triples.type == "located_at")
    ].reports.iloc[0]
    assert (
        set(rows.report) == set(kept) and rows.sentence.str.lower().str.contains("effusion").all()
    )
    with pytest.raises(R2GenKGError, match="no node 'xyzzy'"):
        edge_sentences(graph, annotated, "xyzzy")
    with pytest.raises(R2GenKGError, match="no edge suggestive_of between"):
        edge_sentences(graph, annotated, "effusion", "pleural", "suggestive_of")


def test_no_count_is_doubled_or_lost_by_merging(real):
    annotated, graph = real
    counts = count_reports(annotated)
    in_graph, dropped = (
        int(graph.nodes[["present", "absent", "uncertain", "minority"]].to_numpy().sum()),
        int(graph.drops[graph.drops.what.isin(["surface", "node"])].n.sum()),
    )
    assert in_graph + dropped == counts.mentions.total()
    edges, lost = (
        int(graph.triples[["present", "absent", "uncertain"]].to_numpy().sum()),
        int(graph.drops[graph.drops.what == "triple"].n.sum()),
    )
    assert edges + lost == counts.triples.total()


def test_export_and_import(real, tmp_path):
    """All forms are written; GraphML and ReXKG's files come back whole."""
    _, graph = real
    for form in WRITERS:
        export_graph(graph, form, tmp_path / form)
    back = nx.read_graphml(tmp_path / "graphml", force_multigraph=True)
    assert (back.number_of_nodes(), back.number_of_edges()) == (
        len(graph.nodes),
        len(graph.triples),
    )
    assert len({key for *_, key in back.edges(keys=True)}) == len(
        graph.triples
    )  # ids that Gephi and yEd want but once
    neo4j = pd.read_csv(tmp_path / "neo4j" / "relationships.csv", keep_default_na=False)
    assert len(neo4j) == len(graph.triples) and set(neo4j[":START_ID"]) <= set(
        pd.read_csv(tmp_path / "neo4j" / "nodes.csv", keep_default_na=False)["key:ID"]
    )
    again = M3KG.from_rexkg(
        tmp_path / "rexkg" / "kg_nodes.json", tmp_path / "rexkg" / "kg_relations.csv"
    )
    assert (
        again.nodes["count"].tolist() == graph.nodes["count"].tolist()
        and again.triples["count"].sum() == graph.triples["count"].sum()
    )
    graph.save(tmp_path / "kg")
    assert M3KG.load(tmp_path / "kg").stats() == graph.stats()


def test_composed_ends_are_reported_and_left_out(shared_data, tmp_path, caplog):
    """ReXKG's "et tube" is an end of 162 triples and no node: other programs would stop at it."""
    rexkg = M3KG.from_rexkg(
        shared_data("rexkg", "kg_nodes.json"), shared_data("rexkg", "kg_relations.csv")
    )
    assert "et tube" in rexkg.subgraphs.name.tolist() and len(rexkg.subgraphs) == 4
    for form in ("neo4j", "graphml", "ttl", "rexkg"):
        export_graph(rexkg, form, tmp_path / form)
    assert len(caplog.messages) == 3 and all(
        m.startswith("162 triples end at a composed entity") for m in caplog.messages
    )
    ends, nodes = (
        pd.read_csv(tmp_path / "neo4j" / f"{name}.csv", keep_default_na=False)
        for name in ("relationships", "nodes")
    )
    assert len(ends) == 21624 - 162 and {*ends[":START_ID"], *ends[":END_ID"]} <= set(
        nodes["key:ID"]
    )
    fused = pd.read_csv(tmp_path / "rexkg" / "kg_relations.csv", keep_default_na=False)
    assert (
        fused["count"].sum() == rexkg.triples["count"].sum()
        and (fused.source_entity != "").all()
        and "et tube" in set(fused.source_entity)
    )


def test_what_was_only_negated_is_not_stated(tmp_path):
    """Turtle asserts no triple, and components hold no edge, that every report denied."""
    graph = graph_of(*annotate(["No effusion in the lung. Opacity in the lung."])[0])
    assert graph.stats()["triples only negated"] == 1 and graph.stats()["nodes without edge"] == 1
    text = export_graph(graph, "ttl", tmp_path / "g.ttl").read_text()
    assert text.count("r:located_at n:") == 1 and text.count("r:relation r:located_at") == 2


def test_a_rare_node_keeps_no_alias():
    """A linker's alias belongs to a node that stays, whatever is dropped as rare."""
    chest = Concept("C1", "Chest", aliases=("upper",))
    said_twice = [said(("chest", "anatomy"))] * 3
    graph = build_graph(
        ((f"r{n}", [s]) for n, s in enumerate([*said_twice, said(("upper", "concept"))])),
        GraphOptions(min_count=2, linker=Linker(chest=chest)),
    )
    assert (
        graph.nodes.key.tolist() == ["C1"]
        and find_node(graph, "upper") == "C1"
        and graph.shared.empty
    )


def test_a_part_of_a_graph_is_covered_whole(shared_data):
    """Neighbours that the other graph lacks count against it, and against it alone."""
    rexkg = M3KG.from_rexkg(
        shared_data("rexkg", "kg_nodes.json"), shared_data("rexkg", "kg_relations.csv")
    )
    keys = rexkg.nodes.sort_values("count", ascending=False).key[:100]
    part = M3KG(
        rexkg.nodes[rexkg.nodes.key.isin(keys)],
        rexkg.triples[rexkg.triples.source.isin(keys) & rexkg.triples.target.isin(keys)],
    )
    found = compare_graphs(part, rexkg)
    assert all(found[f"{k} coverage of A by B"] == 1 for k in ("node", "edge", "subgraph"))
    assert all(found[f"{k} coverage of B by A"] < 0.9 for k in ("node", "edge", "subgraph"))


def test_page_in_a_browser(real, tmp_path):
    """The page sends no request; a node can be dragged and chosen, and an edge shows its sentences."""
    annotated, graph = real
    path = write_graph_page(graph, "effusion", tmp_path / "page.html", size=12, annotated=annotated)
    with open_page() as page:
        errors = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        nodes = page.locator("#nodes .node")
        assert nodes.count() == 13 and page.locator("#edges path").count() >= 12
        box, place = (
            nodes.nth(2).locator("circle").bounding_box(),
            nodes.nth(2).get_attribute("transform"),
        )
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.click(x, y)
        assert (
            page.locator("#facts h2").inner_text() == nodes.nth(2).get_attribute("aria-label")
            and "count " in page.locator("#facts").inner_text()
        )
        page.locator("#facts li button").first.click()
        assert page.locator("#facts .say").count() >= 1
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 50, y + 30, steps=4)
        page.mouse.up()
        assert nodes.nth(2).get_attribute("transform") != place
        view = page.locator("#map").get_attribute("viewBox")
        page.mouse.wheel(0, -300)
        page.wait_for_function(
            "view => document.getElementById('map').getAttribute('viewBox') !== view", arg=view
        )
        page.locator("[data-relation=modify]").uncheck()
        assert page.evaluate(
            "[...document.querySelectorAll('#edges path:not(.gone) title')]"
            ".every(t => !t.textContent.includes(' modify '))"
        )
        assert not errors and not page.foreign


def test_page_escapes_what_reports_say(tmp_path):
    """Names, sentences and ids of reports are text, never markup."""
    evil = said(
        ("</script><img src=x onerror=alert(1)>", "disorder_present"),
        ("small", "concept"),
        links=((1, 0, "modify"),),
    )
    graph = build_graph([("<svg/onload=alert(2)>", [evil])], GraphOptions(**ALL))
    page = write_graph_page(
        graph, "small", tmp_path / "p.html", annotated=[("<svg/onload=alert(2)>", [evil])]
    ).read_text(encoding="utf-8")
    assert "<img" not in page and "<svg/onload" not in page and page.lower().count("</script>") == 2


# ---- published graphs ----


@pytest.fixture
def m3kg(shared_data) -> M3KG:
    return import_m3kg(
        shared_data("m3kg", "m3kg_relations.csv"), shared_data("m3kg", "m3kg_aliases.json")
    )


def test_published_graphs_have_their_sizes(shared_data, m3kg):
    rexkg = M3KG.from_rexkg(
        shared_data("rexkg", "kg_nodes.json"), shared_data("rexkg", "kg_relations.csv")
    )
    stats = rexkg.stats()
    assert (stats["nodes"], stats["triples"]) == (1396, 21624) and [
        stats[f"triples {k}"] for k in ("modify", "located_at", "suggestive_of")
    ] == [13048, 7503, 1073]
    assert [
        stats[f"nodes {k}"] for k in ("concept", "anatomy", "disorder", "devices", "procedures")
    ] == [708, 297, 206, 100, 85]
    assert stats["shared aliases"] == 116 and stats["count modify"] == 440_706
    assert (
        len(m3kg.triples) == 37424
        and len(m3kg.nodes) == 2418
        and m3kg.triples["count"].sum() == 1_271_865
    )


def test_comparison_with_the_published_graph(shared_data, real):
    """Three similarities in 0..1, symmetric, 1 with itself."""
    rexkg = M3KG.from_rexkg(
        shared_data("rexkg", "kg_nodes.json"), shared_data("rexkg", "kg_relations.csv")
    )
    found, back = compare_graphs(real[1], rexkg), compare_graphs(rexkg, real[1])
    names = [f"{k} similarity" for k in ("node", "edge", "subgraph")]
    assert all(0 < found[k] < 1 and found[k] == pytest.approx(back[k], abs=0.02) for k in names)
    assert found["node similarity"] > found["edge similarity"]
    assert all(compare_graphs(rexkg, rexkg)[k] == 1 for k in names)


def pieces(graph: M3KG, keys: list[str], edges: pd.DataFrame) -> tuple:
    """(modify, located_at, suggestive_of, components, largest, share of count mass)."""
    g = nx.Graph()
    g.add_nodes_from(keys)
    g.add_edges_from(zip(edges.source, edges.target))
    sizes = sorted(map(len, nx.connected_components(g)), reverse=True)
    kinds = edges.type.value_counts()
    return (
        *(int(kinds.get(k, 0)) for k in ("modify", "located_at", "suggestive_of")),
        len(sizes),
        sizes[0],
        round(edges["count"].sum() / graph.triples["count"].sum(), 2),
    )


@pytest.mark.parametrize(
    "size,expected",
    [
        (102, (72, 33, 2, 11, 68, 0.40)),
        (206, (235, 101, 7, 10, 183, 0.60)),
        (319, (421, 187, 13, 9, 302, 0.70)),
        (400, (599, 280, 22, 7, 388, 0.75)),
        (558, (903, 453, 33, 15, 528, 0.80)),
    ],
)
def test_triples_until_size(m3kg, size, expected):
    """The rule `triples` keeps the prefix of triples only: the survey's table, row by row."""
    keys = ORDERS["triples"](m3kg)[:size]
    assert pieces(m3kg, keys, prefix_edges(m3kg, keys)) == expected


def test_top_nodes_induced(m3kg):
    keys = ORDERS["frequency"](m3kg)
    assert pieces(m3kg, keys[:101], induced_edges(m3kg, keys[:101])) == (
        1265,
        908,
        96,
        1,
        101,
        0.56,
    )
    assert pieces(m3kg, keys[:319], induced_edges(m3kg, keys[:319])) == (
        6069,
        4273,
        491,
        1,
        319,
        0.85,
    )
    assert pieces(m3kg, keys[:558], induced_edges(m3kg, keys[:558]))[:2] == pytest.approx(
        (10761, 6703), rel=0.002
    )  # ties at the last place


def test_pagerank_and_backbone(m3kg):
    """Three best edges per node of PageRank's 319: about 811 in one component, 75 % of the induced mass.

    With shares of types, 96 of the nodes are disorders.
    """
    plain = list(pagerank(m3kg).sort_values(ascending=False, kind="stable").index)[:319]
    whole, best, five = (induced_edges(m3kg, plain, k) for k in (0, 3, 5))
    assert (
        abs(len(best) - 811) <= 5
        and pieces(m3kg, plain, best)[3:5] == (1, 319)
        and abs(len(five) - 1313) <= 10
    )
    assert best["count"].sum() / whole["count"].sum() == pytest.approx(0.75, abs=0.02)
    stratified = ORDERS["ppr"](m3kg)[:319]
    kinds = m3kg.nodes.set_index("key").entity_type[stratified].value_counts()
    assert kinds["disorder"] == 96 and kinds["anatomy"] == 86 and "unknown" not in kinds
    backbone = induced_edges(m3kg, stratified, 3)
    assert 790 <= len(backbone) <= 840 and pieces(m3kg, stratified, backbone)[3:5] == (1, 319)
    assert all(
        set(ORDERS["ppr"](m3kg)[:a]) < set(ORDERS["ppr"](m3kg)[:b])
        for a, b in pairwise((100, 200, 300, 400, 500))
    )


def test_graph_of_the_shared_reports_in_a_minute(shared_data, tmp_path):
    """2,455 studies; `kg build` and `kg stats` as a user calls them."""
    import time

    from typer.testing import CliRunner

    from r2genkg.use.kg_commands import kg

    start = time.process_time()
    built = CliRunner().invoke(
        kg,
        [
            "build",
            "--studies",
            str(shared_data("iu_xray", "annotation.json")),
            "--out",
            str(tmp_path / "kg_iu"),
            "--json",
        ],
    )
    assert built.exit_code == 0 and time.process_time() - start < 60
    stats = json.loads(CliRunner().invoke(kg, ["stats", str(tmp_path / "kg_iu"), "--json"]).stdout)
    assert stats["reports"] == 2455 and stats["nodes"] > 300 and stats["triples"] > 1000


def test_graph_from_annotations(real, tmp_path, capsys):
    """`kg build --annotations` gives the graph of `--studies`; other uses of the options are refused."""
    from r2genkg.extraction.annotation_files import save_annotations
    from r2genkg.use.commands import main

    save_annotations(tmp_path / "a.jsonl", real[0])
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "kg",
                "build",
                "--annotations",
                str(tmp_path / "a.jsonl"),
                "--out",
                str(tmp_path / "kg"),
            ]
        )
    pd.testing.assert_frame_equal(M3KG.load(tmp_path / "kg").nodes, build_graph(real[0]).nodes)
    capsys.readouterr()
    for args, said in (
        (["kg", "build", "--out", "x"], "give --studies or --annotations"),
        (
            [
                "kg",
                "build",
                "--annotations",
                str(tmp_path / "a.jsonl"),
                "--out",
                "x",
                "--annotator",
                "magic",
            ],
            "--annotator is for reports that are not annotated yet",
        ),
        (
            ["kg", "build", "--studies", "s.csv", "--out", str(tmp_path)],
            "holds 'a.jsonl'",
        ),  # before s.csv is missed
        (
            ["annotate", "s.csv", "--out", "x.jsonl", "--dry-run"],
            "--dry-run is for --annotator llm:MODEL, not for rules",
        ),
    ):
        with pytest.raises(SystemExit, match="1"):
            main(args)
        assert said in capsys.readouterr().err


def test_the_neighbourhood_of_a_hub_takes_no_time():
    """Thousands of neighbours are looked up in one set."""
    import time

    keys = ["hub", *(f"n{i:05}" for i in range(20_000))]
    nodes = pd.DataFrame(
        {"key": keys, "name": keys, "entity_type": "concept", "aliases": [[k] for k in keys]}
    )
    triples = pd.DataFrame(
        {"source": "hub", "target": keys[1:], "type": "modify", "count": 1, "absent": 0}
    )
    start = time.process_time()
    near, degree = neighbourhood(M3KG(nodes, triples), "hub", size=3)
    assert (
        degree == 20_000 and near.nodes.key.tolist() == keys[:4] and time.process_time() - start < 5
    )


HEADER = "source_index,target_index,source_entity,target_entity,type,count\n"


@pytest.mark.parametrize(
    "rows, said",
    [
        ("a,b,a,b,modify,nan\n", "line 2: count 'nan' is no number"),
        ("a,b,a,b,modify,-3\n", "count '-3' is no number"),
        ("a,b,a,b,modify\n", "5 fields"),
        ("a,b,a,b,modify,1,2\n", "7 fields"),
        ("", "no triple in it"),
        ("a,b,a,b,causes,1\n", "unknown relation 'causes'"),
        ("a,b,a,b,modify,1e23\n", "count '1e23' is no number"),
    ],
)
def test_triples_are_read_strictly(tmp_path, rows, said):
    (tmp_path / "r.csv").write_text(HEADER + rows)
    with pytest.raises(R2GenKGError, match=f"r.csv.*{said}"):
        import_m3kg(tmp_path / "r.csv")


def test_an_empty_graph_has_numbers_and_is_not_imported(tmp_path):
    graph = graph_of(said(("edema", "disorder_present")), **ALL)
    empty = M3KG(graph.nodes[:0], graph.triples[:0])
    assert empty.stats()["nodes"] == empty.stats()["components"] == empty.stats()["degree max"] == 0
    (tmp_path / "n.json").write_text("{}")
    (tmp_path / "r.csv").write_text(
        "source_index,target_index,type,count,source_entity,target_entity\na,b,modify,3.0,a,b\n"
    )
    with pytest.raises(R2GenKGError, match="n.json: no node in it"):
        M3KG.from_rexkg(tmp_path / "n.json", tmp_path / "r.csv")
    one = {"entity_type": "disorder", "count": 3, "TUI": "T047", "Aliases": "edema"}
    (tmp_path / "n.json").write_text(
        json.dumps(
            {"a": one | {"Name": "edema"}, "b": one | {"Name": "oedema", "Aliases": ["oedema"]}}
        )
    )
    found = M3KG.from_rexkg(tmp_path / "n.json", tmp_path / "r.csv")
    assert (
        list(found.nodes.tui) == ["T047"] * 2
        and list(found.nodes.aliases[0]) == ["edema"]
        and list(found.triples["count"]) == [3]
    )


def test_a_graph_needs_its_nodes_and_triples_only(tmp_path):
    graph = graph_of(said(("edema", "disorder_present")), **ALL)
    graph.save(tmp_path / "g")
    for name in ("subgraphs", "merges", "drops", "stages", "shared"):
        (tmp_path / "g" / f"{name}.parquet").unlink()
    with pytest.raises(R2GenKGError, match="subgraphs.parquet: not readable"):
        M3KG.load(tmp_path / "g")  # it was there
    (tmp_path / "g" / "meta.json").write_text("{}")  # made elsewhere
    assert list(M3KG.load(tmp_path / "g").nodes.key) == ["edema"]


def test_hyphenated_nodes_are_found_in_reports():
    for device in ("Port-A-Cath", "Pacemaker"):
        graph = build_graph(
            [("r", annotate([f"{device} in the superior vena cava."])[0])], GraphOptions(**ALL)
        )
        scores = graph_scores(
            annotate([f"{device} is present."]),
            annotate([f"{device} in the superior vena cava."]),
            graph,
        )
        assert scores["graph/hallucinated_triples"] > 0, device
