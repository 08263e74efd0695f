"""Grids, tables, probes and figures on runs of seconds: every stage is real, nothing is learnt well."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toy_grid import TINY, VARIANTS

from r2genkg.training import tables
from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError
from r2genkg.core.config import load_config
from r2genkg.training.grid import Grid, Variant, grid_jobs, grid_names, load_grid
from r2genkg.training.grid_runs import RunState, run_grid
from r2genkg.training.table_files import latex
from r2genkg.use.figures import run_figures, study_figures
from r2genkg.training.pipeline import run_pipeline
from r2genkg.training.stages import STAGES, stage_hash
from r2genkg.use.stress_tests import edge_weight, predict_reports, score, weaken
from r2genkg.training.run import Run
from r2genkg.scores.significance import compare
from r2genkg.data.study import load_studies

HERE = Path(__file__).resolve().parents[1]
# Grid files


@pytest.mark.parametrize(
    "text, word",
    [
        ("variants: {}", "no variants"),
        ("variant: {full: []}", "unknown key 'variant'"),
        ("variants: {full: model.use_graph=false}", "variants: write it as"),
        ("variants: {full: []}\ndata: [B]", "data: write it as"),
        ("variants: {a: [model.use_grph=true]}", "a: demo: model.use_grph"),
        ("variants: {a: [model.use_graph]}", "section.key=value"),
        ("variants: {a: [", "not valid YAML"),
    ],
)
def test_faults_of_a_grid_file_are_named(tmp_path, text, word):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(R2GenKGError, match="g.yaml|grid g") as e:
        load_grid(str(tmp_path / "g.yaml"))
    assert word in str(e.value) and "\n" not in str(e.value)


def test_unknown_grid_lists_the_known_ones():
    with pytest.raises(
        R2GenKGError, match="cost, demo, grounding, pairs, paper, pruning, questions, small"
    ):
        load_grid("nothing")


def test_shipped_grids():
    mechanism = {"cost": 4, "grounding": 14, "pairs": 2}
    assert set(grid_names()) == {"demo", "paper", "pruning", "questions", "small", *mechanism}
    for name, variants in mechanism.items():
        assert len(load_grid(name).variants) == variants and len(load_grid(name).seeds) == 3
    demo = load_grid("demo")
    assert (
        {"full", "zero-KG"} < {v.name for v in demo.variants}
        and len(demo.variants) == 4
        and len(demo.seeds) == 3
    )
    for preset in ("iu-xray", "chexpert-plus", "demo"):
        load_grid("paper", preset)
    # one set of shared stages for the demo's twelve runs
    assert len({j.shared for j in grid_jobs(demo.config, demo.variants, "r", demo.seeds)}) == 1


def test_jobs_by_configuration():
    config = load_config("demo", TINY)
    variants = [
        Variant("a"),
        Variant("b"),
        Variant("c", ("scales.rule=ppr",)),
        Variant("d", ("train.lr=0.1",)),
    ]
    jobs = grid_jobs(
        config, variants, "r", [1, 2], [Variant("A"), Variant("B", ("studies.style=B",))]
    )
    by = {(j.variant, j.data, j.seed): j for j in jobs}
    assert len(jobs) == 16 and by["a", "A", 1].folder == by["b", "A", 1].folder == Path("r")
    assert len({j.folder for j in jobs}) == 12  # a and b are the same
    assert by["c", "A", 1].shared == by["c", "A", 2].shared != Path("r") and by[
        "d", "A", 2
    ].shared == Path("r")
    assert by["a", "B", 1].shared != by["c", "B", 1].shared
    other = grid_jobs(config, [Variant("d", ("train.lr=0.2",))], "r", [1])
    assert other[0].folder != by["d", "A", 1].folder  # the same name, another configuration


# Running


def test_a_failed_run_is_marked_and_the_rest_goes_on(outcomes, root):
    full, broken, zero = outcomes
    assert full.run == root / "run" and zero.run.is_dir() and not full.error and not zero.error
    assert broken.run is None and broken.error
    mark = next(root.glob("variants/broken-1-*/failed.json"))
    assert json.loads(mark.read_text())["error"] == broken.error
    states = {r["variant"]: r["state"] for r in json.loads((root / "grid.json").read_text())}
    assert states == {"full": "finished", "broken": "failed", "zero-KG": "finished"}
    reasons = {r["variant"]: r["error"] for r in json.loads((root / "grid.json").read_text())}
    assert reasons == {"full": "", "broken": broken.error, "zero-KG": ""}
    assert [o.state for o in outcomes] == [RunState(s) for s in states.values()]
    assert not list(root.glob("variants/*/classifier")) and not list(
        root.rglob("*.partial-*")
    )  # shared stages are made once


def test_second_call_makes_nothing(outcomes, root):
    before = {o.run: (o.run / "metrics.json").stat().st_mtime_ns for o in outcomes if o.run}
    again = run_grid(load_config("demo", TINY), (VARIANTS[0], VARIANTS[2]), root, [1])
    assert [o.scores for o in again] == [outcomes[0].scores, outcomes[2].scores]
    assert all((run / "metrics.json").stat().st_mtime_ns == t for run, t in before.items())


def test_submitted_run_waits_and_is_collected(outcomes, root, tmp_path):
    config, variant = (
        load_config("demo", TINY),
        [Variant("no retrieval", ("model.use_retrieval=false",))],
    )
    calls = tmp_path / "calls"
    noting = f"""{sys.executable} -c 'open("{calls}", "a").write("x")'"""
    (first,) = run_grid(config, variant, root, [1], submit=noting)
    assert first.state is RunState.PENDING and first.error.startswith("submitted, not finished")
    assert not list(root.glob("variants/no-retrieval-*/failed.json"))
    run_grid(config, variant, root, [1], submit=noting)
    assert calls.read_text() == "x"  # not submitted twice
    path = f"PATH={Path(sys.executable).parent}"
    (done,) = run_grid(
        config, variant, root, [1], submit=f"env '{path}' {{command}}", resubmit=True
    )
    assert not done.error and (done.run / "metrics.json").is_file()
    assert (done.run.parent / "classifier").is_symlink() and run_grid(config, variant, root, [1])[
        0
    ].run == done.run


def test_submission_that_fails(root, outcomes):
    (failed,) = run_grid(
        load_config("demo", TINY),
        [Variant("x", ("train.lr=0.5",))],
        root,
        [1],
        submit=f"{sys.executable} -c 'raise SystemExit(\"no such queue\")'",
    )
    assert "no such queue" in failed.error
    (absent,) = run_grid(
        load_config("demo", TINY),
        [Variant("x", ("train.lr=0.5",))],
        root,
        [1],
        submit="no-such-program {command}",
    )
    assert "no-such-program" in absent.error


# Tables


def test_every_table_is_written(outcomes, root):
    grid = Grid("tiny", "demo", VARIANTS, (1,))
    made = tables.make_tables(
        grid, outcomes, root / "tables", "r2genkg tables --grid tiny", resamples=200
    )
    assert set(made) == set(tables.load_tables())
    for name in made:
        for suffix in ("md", "csv", "tex"):
            assert (root / "tables" / f"{name}.{suffix}").stat().st_size
    main = made["table1_results"]
    assert {"best constant report", "nearest training report", "shuffled images"} <= set(
        main.index
    ) and main.loc["best constant report", "distinct"].startswith("0.1")
    assert (
        "[" in main.loc["full", "BLEU-4"]
        and main.loc["R2Gen", "BLEU-4"] == ""
        and main.loc["R2Gen", "BLEU-4, IU-Xray (reported)"] == "0.165"
    )
    assert (
        main.loc["R2GenGPT", "runs"] == "not run: not in this grid"
        and main.loc["R2GenGPT", "CE F1"] == ""
    )
    costs = made["table_efficiency"]
    assert (
        int(costs.loc["full", "prefix tokens"]) == 49 + 10 + 49 + 28 + 14
        and int(costs.loc["zero-KG", "prefix tokens"]) == 49 + 28 + 14
    )
    assert costs.loc["full", "s/iter, CheXpert Plus (reported)"] == "33.29" and float(
        costs.loc["full", "GFLOPs/iter"]
    ) > float(costs.loc["zero-KG", "GFLOPs/iter"])
    text = (root / "tables" / "table1_results.md").read_text()
    assert (
        "r2genkg tables --grid tiny" in text
        and "commit" in text
        and "seeds 1" in text
        and "Section of the reports: findings.\n" in text
    )


def test_failed_rows_say_why(outcomes):
    spec = tables.TableSpec("t", "t", ("full", "broken", "zero-KG"), "ablation")
    table, tested = tables.make_table(spec, outcomes, resamples=200)
    assert (
        table.loc["broken", "runs"] == f"not run: {outcomes[1].error}"
        and table.loc["broken", "CE F1"] == ""
    )
    assert (
        set(tested.index.get_level_values(0)) == {"zero-KG"} and (tested.p_holm >= tested.p).all()
    )


def test_tables_recompute_what_the_run_measured(outcomes):
    stats = tables.run_stats(outcomes[0].run)
    for key in (
        "BLEU-4",
        "ROUGE-L",
        "CIDEr",
        "ce_f1/macro-14/u0",
        "ce_f1/micro-14/u0",
        "ce_recall/macro-14/u0",
    ):
        assert stats[key].total() == pytest.approx(outcomes[0].scores[key], abs=1e-9), key
    metrics = json.loads((outcomes[0].run / "metrics.json").read_text())["baselines"][
        "shuffled images"
    ]
    assert tables.shuffled_stats(outcomes[0].run, 1)["ce_f1/micro-14/u0"].total() == pytest.approx(
        metrics["ce_f1/micro-14/u0"]
    )


def test_holm_covers_the_whole_table(outcomes):
    rows = tables.measured_rows([*outcomes], ["full", "zero-KG"])
    rows["copy"] = rows["full"]
    tested = tables.paired_tests(rows, "full", ["BLEU-4", "CIDEr"], 500)
    assert (
        len(tested) == 4
        and (tested.loc["copy"].p == 1).all()
        and (tested.loc["copy"].difference == 0).all()
    )
    assert tested.p_holm.min() == pytest.approx(min(1, 4 * tested.p.min()))


def test_reported_numbers_have_sources():
    known = tables.load_reported()
    for name, rows in known.items():
        assert name in tables.load_tables()
        for row, content in rows.items():
            assert content["source"], (name, row)
            assert all(
                isinstance(v, float)
                for data, values in content.items()
                if data != "source"
                for v in values.values()
            )
    full = known["table1_results"]["full"]
    assert full["IU-Xray"] == {"BLEU-4": 0.181} and full["CheXpert Plus"] == {
        "BLEU-4": 0.106,
        "CE F1": 0.292,
    }  # nothing more is known


# Probes and figures on a real run


def test_probes_of_a_run(outcomes, root):
    model = Run(outcomes[0].run).model
    test = [s for s in load_studies(root / "studies" / "studies.parquet") if s.split == "test"]
    plain = predict_reports(model, test)
    stored = pd.read_json(outcomes[0].run / "predictions.jsonl", lines=True)
    assert plain.hypos == list(stored.hypothesis) and plain.refs == list(stored.reference)
    assert score(plain).scores["BLEU-1"] == pytest.approx(outcomes[0].scores["BLEU-1"])
    with edge_weight(model, 1.0):
        assert predict_reports(model, test).kg2v_entropy == pytest.approx(
            plain.kg2v_entropy, abs=1e-6
        )
    with edge_weight(model, 30.0):
        loud = predict_reports(model, test)
    assert (
        abs(loud.kg2v_entropy - plain.kg2v_entropy) > 1e-5
        and predict_reports(model, test).hypos == plain.hypos
    )
    assert abs(predict_reports(model, test, weaken(1.0)).kg2v_entropy - plain.kg2v_entropy) > 1e-6
    zero = Run(outcomes[2].run).model
    with pytest.raises(R2GenKGError, match="use_graph"), edge_weight(zero, 2):
        pass
    assert np.isnan(predict_reports(zero, test[:2]).kg2v_entropy)


def test_figures_of_a_run(outcomes, tmp_path):
    made = study_figures(outcomes[0].run, tmp_path) + run_figures(
        {o.variant: o.run for o in outcomes if o.run}, tmp_path
    )
    assert {p.stem for p in made} == {
        "fig5_attention",
        "fig5_subgraph",
        "fig6_retrieved",
        "fig8_attribution",
        "fig3_gradcam",
        "fig4_curves",
        "fig10_distributions",
        "fig9_calibration",
    }
    for p in made:
        assert p.read_bytes()[:4] == b"\x89PNG" and p.with_suffix(
            ".svg"
        ).read_text().lstrip().startswith("<?xml")
        assert any(c.isdigit() for c in json.loads(p.with_suffix(".json").read_text())["caption"])
    without = study_figures(outcomes[2].run, tmp_path / "zero")
    assert {p.stem for p in without} == {"fig6_retrieved", "fig8_attribution", "fig3_gradcam"}


# The notebooks of the seed experiments


def _reading(cells: list[dict]) -> str:
    """What a notebook says of its numbers: behind the heading, as text or as made by `reading-*` cells."""
    heads = [n for n, c in enumerate(cells) if "".join(c["source"]).startswith("## Reading")]
    text = ""
    for cell in cells[heads[0] :] if heads else []:
        if cell["cell_type"] == "markdown" and cell["id"] != "links":
            text += "".join(cell["source"])
        for output in cell.get("outputs", ()):
            text += "".join(output.get("data", {}).get("text/markdown", ""))
    return text


@pytest.mark.parametrize(
    "path", sorted((HERE.parent / "nbs" / "paper").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_paper_notebooks_were_executed(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and c.get("id") != "colab-install"]
    assert any(c["outputs"] for c in code) and not any(
        o["output_type"] == "error" for c in code for o in c["outputs"]
    )
    assert (
        sum(
            "PRESET" in "".join(c["source"]) and "=" in "".join(c["source"]).splitlines()[0]
            for c in code[:1]
        )
        == 1
    )  # one cell chooses the data
    assert len(_reading(cells)) > 300


def test_labels_of_predictions():
    table = tables.label_rows([["Edema"], [], ["No Finding", "Fracture"]])
    assert list(table.columns) == list(LABELS) and table.sum().sum() == 3


# Choices that only a late stage would refuse


@pytest.mark.parametrize(
    "change, word",
    [
        ("tokens.method=foo", "unknown CAM"),
        ("tokens.patch=17", "does not divide"),
        ("llm.prompt=x", "{image}"),
        ("graph.annotator=foo", "annotator 'foo' is unknown"),
    ],
)
def test_choices_are_checked_before_the_first_stage(tmp_path, change, word):
    config = load_config("demo", [*TINY, change])
    with pytest.raises(R2GenKGError, match=word):
        run_pipeline(config, tmp_path / "r", "studies")
    assert not (tmp_path / "r" / "studies").exists()


@pytest.mark.parametrize(
    "change, word",
    [
        ("classifier.depths=[2]", "1 stages, heads 2"),
        ("model.max_nodes=10", "model.max_nodes is 10"),
    ],
)
def test_configurations_that_contradict_themselves(change, word):
    with pytest.raises(R2GenKGError, match=word):
        load_config("demo", [change])


def test_a_prompt_needs_no_quotes():
    for prompt in ("{image}", "Human: <Img>{image}</Img>"):
        assert load_config("demo", [f"llm.prompt={prompt}"]).llm.prompt == prompt


def test_label_files_beside_the_studies_count(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    config = load_config("own-small", [f"studies.path={tmp_path / 'a.csv'}"])
    before = stage_hash(STAGES[0], config, {})
    (tmp_path / "chexbert_labels").mkdir()
    (tmp_path / "chexbert_labels" / "findings_fixed.json").write_text("{}")
    assert stage_hash(STAGES[0], config, {}) != before


def test_runs_on_other_studies_are_not_tested_against_each_other(outcomes):
    full = next(o.run for o in outcomes if o.variant == "full")
    stats = tables.run_stats(full)
    other = {k: replace(s, ids=tuple(f"other {i}" for i in s.ids)) for k, s in stats.items()}
    rows = {"a": tables.Row({1: stats}), "b": tables.Row({1: other}), "c": tables.Row({1: stats})}
    assert set(tables.paired_tests(rows, "a", ["BLEU-4"], 100).index.get_level_values("row")) == {
        "c"
    }
    with pytest.raises(R2GenKGError, match="different studies"):
        compare(stats, other, ["BLEU-4"])
    assert "\\{x\\} \\$1\\textasciicircum{}2" in latex(pd.DataFrame({"a": ["{x} $1^2"]}))
