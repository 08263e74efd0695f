"""Films of other hospitals: what a run's classifier says of them, and which vision tokens its queries retrieve.

    python benchmarks/other_films.py PIPELINE FOLDER ... --json OUT

Each folder has `index.csv` (id, image). Labels are those of the column `chexpert`; without it, what the rules read in
the column `text` (a case note) where the column `text_is_imaging` is 1. A folder with neither is only counted: how many
films the classifier calls positive, at the thresholds of its own validation films. The first part is that of the
pipeline's own test films. A pipeline that stops before its run has no retrieval to score. Intervals are 95 % bootstrap
intervals, of shares over patients where they are named.
"""

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from r2genkg.core.files import R2GenKGError, write_json
from r2genkg.data.study import LABELS, Study, label_matrix, load_studies
from r2genkg.text.labels import label_reports
from r2genkg.training.run import Run
from r2genkg.use.run_audit import retrieval_weights
from r2genkg.vision.classifier import SwinClassifier, predict_labels
from r2genkg.vision.label_scores import score_labels
from r2genkg.vision.retrieval_audit import purity_table

#: Films of each class from which a label is scored.
FEWEST = 5
RESAMPLES = 1000


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's table. Raises `R2GenKGError` where there is none."""
    path = folder / "index.csv"
    if not path.is_file():
        raise R2GenKGError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def row_labels(rows: Sequence[dict[str, str]]) -> tuple[list[dict[str, float]], str]:
    """Labels of each film, and where they come from: the table, the notes, or nowhere."""
    if "chexpert" in rows[0]:
        named = [set(filter(None, row["chexpert"].split("|"))) for row in rows]
        stated = [k for k in LABELS if any(k in names for names in named)]
        return [{k: float(k in names) for k in stated} for names in named], "the table"
    told = [
        i
        for i, row in enumerate(rows)
        if row.get("text", "").strip() and row.get("text_is_imaging") == "1"
    ]
    labels: list[dict[str, float]] = [{} for _ in rows]
    if not told:
        return labels, "nowhere"
    table = label_reports([rows[i]["text"] for i in told])
    for i, found in zip(told, table.to_dict("records"), strict=True):
        labels[i] = {k: float(v == 1) for k, v in found.items() if v != -1}
    return labels, "the case notes, by the rules"


def read_films(folder: Path) -> tuple[list[Study], list[str], str]:
    """Films as studies, their views, and where their labels come from."""
    rows = read_rows(folder)
    labels, source = row_labels(rows)
    studies = [
        Study(
            r["id"],
            (str(folder / r["image"]),),
            "",
            split="test",
            patient=r.get("patient_id", ""),
            labels=found,
        )
        for r, found in zip(rows, labels, strict=True)
    ]
    return studies, [r.get("view", "") or "unknown" for r in rows], source


def by_patient(
    studies: Sequence[Study], score: Callable[[np.ndarray], float], seed: int = 0
) -> dict[str, float]:
    """A score of rows with its interval, patients drawn anew with replacement."""
    patients = np.array([s.patient or s.id for s in studies])
    groups = [np.flatnonzero(patients == p) for p in np.unique(patients)]
    rng = np.random.default_rng(seed)
    drawn = [
        score(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {
        "value": score(np.arange(len(studies))),
        "low": float(low),
        "high": float(high),
        "patients": len(groups),
    }


def shares(
    classifier: SwinClassifier, studies: Sequence[Study], probs: np.ndarray
) -> dict[str, dict]:
    """Share of films that are called positive for each label, and how often the label is stated."""
    positive, truth = classifier.positive(probs), label_matrix(studies)
    found = {}
    for k, label in enumerate(LABELS):
        if (
            classifier.decisions is not None
            and classifier.decisions.table.loc[label, "slope"] == 1.0
        ):
            continue  # no threshold was fitted: too few films of it in validation
        row: dict = by_patient(studies, lambda i, k=k: float(positive[i, k].mean()))
        known = ~np.isnan(truth[:, k])
        found[label] = row | {
            "stated": float((truth[known, k] == 1).mean()) if known.any() else None
        }
    return found


def purity(run: Run, studies: Sequence[Study], truth: np.ndarray) -> dict[str, dict]:
    """Weight that retrieval puts on tokens of the labels that a film has, see `purity_table`."""
    tokens = run.bank.table.label.tolist()
    share, _ = retrieval_weights(run.model, studies, tokens)
    return purity_table(share, tokens, truth == 1).to_dict("index")


def measured(
    classifier: SwinClassifier,
    run: Run | None,
    studies: Sequence[Study],
    views: Sequence[str],
    source: str,
) -> dict:
    """Everything of one folder."""
    truth, probs = label_matrix(studies), predict_labels(classifier, studies)
    table = score_labels(truth, probs).dropna()
    enough = [(truth[:, LABELS.index(k)] == 1).sum() >= FEWEST for k in table.index]
    found: dict = {
        "films": len(studies),
        "labels from": source,
        "auroc": table[enough].to_dict("index"),
    }
    found["called positive"] = shares(classifier, studies, probs)
    parts = {v: [i for i, view in enumerate(views) if view == v] for v in dict.fromkeys(views)}
    found["called positive by view"] = {
        v: {"films": len(i)} | dict(zip(LABELS, classifier.positive(probs[i]).mean(0).tolist()))
        for v, i in parts.items()
        if len(i) >= FEWEST
    }
    if run is not None and (truth == 1).any():
        found["purity"] = purity(run, studies, truth)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pipeline", type=Path, help="folder with the stages studies and classifier, and a run"
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders of films")
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        classifier = SwinClassifier.load(args.pipeline / "classifier")
        run = Run(args.pipeline) if (args.pipeline / "run" / "config.yaml").is_file() else None
        own = [
            s
            for s in load_studies(args.pipeline / "studies" / "studies.parquet")
            if s.split == "test"
        ]
        found = {"own test films": measured(classifier, run, own, ["all"] * len(own), "the table")}
        for folder in args.folders:
            found[folder.name] = measured(classifier, run, *read_films(folder))
            seconds = time.perf_counter() - start
            print(
                f"{folder.name}: {found[folder.name]['films']} films after {seconds:.0f} s",
                flush=True,
            )
    except R2GenKGError as e:
        print(f"other_films: {e}", flush=True)
        return 1
    write_json(args.json, {"folders": found, "seconds": time.perf_counter() - start})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
