"""Films with labels alone, from a table to a scored run: they borrow reports, and the films' labels are the truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_demo import SIZES

from r2genkg.core.config import load_config
from r2genkg.core.files import R2GenKGError
from r2genkg.data.study import LABELS, load_studies
from r2genkg.kg.graph import M3KG
from r2genkg.phantom.phantoms import write_phantoms
from r2genkg.training.dataset import ReportDataset, check_held_out
from r2genkg.training.pipeline import run_pipeline
from r2genkg.training.preflight import preflight
from r2genkg.training.run import Run
from r2genkg.training.stages import training_data
from r2genkg.use.film_figure import film_figure

SMALL = [c for c in SIZES if not c.startswith("studies.n_")]
#: What NIH's films can state.
STATED = [
    k for k in LABELS if k not in ("Enlarged Cardiomediastinum", "Fracture", "Support Devices")
]


def film_table(folder: Path) -> Path:
    """Drawn films with labels and no report, as a table."""
    studies = write_phantoms(folder, 24, 4, 10, size=56)
    rows = [
        {"id": s.id, "image": s.images[0], "split": s.split, "patient": s.id}
        | {k: int((s.labels or {}).get(k, 0) == 1) for k in STATED}
        for s in studies
    ]
    pd.DataFrame(rows).to_csv(folder / "films.csv", index=False)
    return folder / "films.csv"


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """The folder of a finished pipeline on such films."""
    root = tmp_path_factory.mktemp("paired")
    table = film_table(root / "films")
    changes = [*SMALL, "studies.source=label-paired", f"studies.path={table}", "train.epochs=2"]
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="METEOR is None"):
        patch.setattr("r2genkg.scores.meteor.java_available", lambda: False)
        run_pipeline(load_config("demo", [*changes, "model.prune_kg=8"]), root / "out")
    return root / "out"


def test_films_say_what_they_borrow(paired):
    studies = load_studies(paired / "studies" / "studies.parquet")
    assert all(s.paired and s.findings == s.paired[0].findings for s in studies)
    served: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for s in studies:
        present = {k for k, v in s.labels.items() if v == 1}
        for p in s.paired:
            served[s.split].add(p.id)
            assert set(p.shared) | set(p.film_only) == present
            assert (p.match == "exact") == (not p.film_only and not p.report_only)
    assert (
        not served["train"] & (served["val"] | served["test"])
        and not served["val"] & served["test"]
    )


def test_no_held_out_report_is_in_the_graph(paired):
    studies = load_studies(paired / "studies" / "studies.parquet")
    graph = M3KG.load(paired / "m3kg")
    known = {i for ids in graph.triples.reports for i in ids}
    assert known <= {p.id for s in studies if s.split == "train" for p in s.paired}
    assert int(graph.meta.get("held-out reports", 0)) == 0
    data = training_data(
        {n: paired / n for n in ("studies", "m3kg", "scales", "classifier", "vision_tokens")}
    )
    check_held_out(data)
    swapped = [replace(s, split="test") if s.split == "train" else s for s in data.studies]
    with pytest.raises(R2GenKGError, match="reports outside the training split"):
        check_held_out(replace(data, studies=swapped))


def test_each_epoch_draws_reports_anew(paired):
    run = Run(paired)
    several = [s for s in run.studies if len(s.paired) > 1]
    texts = [s.reports() for s in several]
    rows = ReportDataset([t[0] for t in texts], run.model.tokenizer, 30, borrowed=texts)
    drawn = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch, seed=42)
        drawn.append([list(t) for t in rows.targets])
    assert drawn[0] == drawn[2] != drawn[1]


def test_scores_are_against_the_films(paired):
    metrics = Run(paired).metrics
    film = metrics["film"]
    names = {"model", "shuffled images", "best constant report", "nearest training report"}
    assert set(film) == {"labels", *names, "report picked for the classifier's labels"}
    assert set(film["labels"]) <= set(STATED) and "Support Devices" not in film["labels"]
    for name, row in film.items():
        if name != "labels":
            low, high = row["intervals"]["ce_f1/micro-stated"]
            assert 0 <= low <= row["ce_f1/micro-stated"] <= high <= 1
    gains = film["shuffled images"]["model_gains"]["ce_f1/macro-stated"]
    wanted = film["model"]["ce_f1/macro-stated"] - film["shuffled images"]["ce_f1/macro-stated"]
    assert np.isclose(gains["difference"], wanted)
    assert "borrowed" in metrics["settings"]["references"]
    card = (paired / "run" / "MODEL_CARD.md").read_text()
    assert "reports of other patients with the same labels" in card


def test_a_trained_classifier_is_taken_as_it_is(paired, tmp_path):
    config = load_config(
        "demo",
        [
            *SMALL,
            "studies.source=label-paired",
            f"studies.path={paired.parent / 'films' / 'films.csv'}",
            f"classifier.backbone={paired / 'classifier'}",
            "classifier.epochs=0",
        ],
    )
    run_pipeline(config, tmp_path, upto="classifier")
    weights = [p / "classifier" / "model.safetensors" for p in (paired, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_films_have_to_be_named():
    with pytest.raises(
        R2GenKGError, match="label-paired needs films with labels: set studies.path"
    ):
        preflight(load_config("nih-openi"))


def test_the_figure_of_films(paired, tmp_path):
    figure = film_figure(paired, count=3, source="drawn")
    assert len(figure.axes) == 3 * 7 and figure.get_supxlabel() == "drawn"
    figure.savefig(tmp_path / "films.png")
