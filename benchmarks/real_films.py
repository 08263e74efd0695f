"""A classifier of real films: how well it names findings, and whether its maps and tokens lie on them.

    python benchmarks/real_films.py --train DIR --test DIR --json OUT [--encoder NAME] [--size 256] [--epochs 10]
                                    [--seeds 0] [--folds N --fold I] [--other DIR ...] [--save DIR]
    python benchmarks/real_films.py --join FILE ... --json OUT     # several folds as one: means and intervals

Each folder has `index.csv` (id, image, chexpert, patient_id) and, where there are boxes, `boxes.csv` (id, chexpert, x0,
y0, x1, y1 in fractions). The classifier learns the labels of the training films and the boxes on them. The boxes of the
test films are the truth for the pointing game and for the tokens, beside three points that never saw a film.
With several seeds, the classifiers vote (the mean of their probabilities), and each is also scored alone.
With `--folds N --fold I`, the patients of `--train` are cut into N parts by a hash; part I is tested.
`--join` reads the files of the folds. Its intervals are Student's t over the folds.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from r2genkg.core.config import ClassifierConfig, TokensConfig
from r2genkg.core.files import R2GenKGError, read_json, write_json
from r2genkg.data.images import ImageCache
from r2genkg.data.readers import read_studies
from r2genkg.data.regions import Regions, read_regions
from r2genkg.data.splits import hash_share
from r2genkg.data.study import LABELS, label_matrix
from r2genkg.vision.classifier import SwinClassifier
from r2genkg.vision.classifier_training import label_targets, train_classifier
from r2genkg.vision.jury import predict_jury
from r2genkg.vision.label_scores import score_labels
from r2genkg.vision.map_audit import audit_bank
from r2genkg.vision.pointing import (
    location_prior,
    macro_interval,
    pointing_rows,
    pointing_table,
    pointing_with_prior,
)
from r2genkg.vision.vision_tokens import extract_tokens

#: The labels of `macro_auroc_8`; all but the last have boxes.
EIGHT = (
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "No Finding",
)


def say(text: str) -> None:
    """A line of progress with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def read_folder(folder: Path, split: str) -> tuple[list, Regions]:
    """Films of a folder as studies of one split, and their boxes."""
    studies = [replace(s, split=split) for s in read_studies(folder / "index.csv", "labels")]
    boxes = folder / "boxes.csv"
    regions = read_regions(boxes) if boxes.is_file() else Regions({})
    say(f"{folder}: {len(studies):,} films, {len(regions):,} of them with boxes")
    return studies, regions


def read_films(args) -> tuple[list, list, Regions, Regions]:
    """Training films, test films and the boxes of both."""
    train, boxes = read_folder(args.train, "train")
    if args.folds:
        part = {s.id: int(hash_share(f"fold {s.patient or s.id}") * args.folds) for s in train}
        test = [replace(s, split="test") for s in train if part[s.id] == args.fold]
        train = [s for s in train if part[s.id] != args.fold]
        test_boxes = boxes
    else:
        test, test_boxes = read_folder(args.test, "test")
    shared = {s.patient for s in train} & {s.patient for s in test} - {""}
    if shared and not args.folds:
        say(
            f"warning: {len(shared)} patients are in both folders; their training films are left out"
        )
        train = [s for s in train if s.patient not in shared]
    return train, test, boxes.of(train), test_boxes.of(test)


def recipe(args) -> ClassifierConfig:
    """The settings of the training."""
    return ClassifierConfig(
        backbone=args.encoder,
        frozen=args.frozen if args.encoder == "efficientnet-lite0" else 0,
        epochs=args.epochs,
        batch_size=16,
        lr=args.lr,
        weight_decay=0.02,
        augment="affine",
        box_weight=args.box_weight,
    )


def open_or_train(args, seed: int, train: list, boxes: Regions, cache: ImageCache, work: Path):
    """The classifier of one seed: trained, or found where `--save` left it."""
    folder = (args.save or work) / f"classifier-{seed}"
    if not (folder / "model.safetensors").is_file():
        say(f"training on {len(train):,} films, seed {seed}")
        regions = boxes if len(boxes) else None
        train_classifier(
            train, recipe(args), folder, work / f"work-{seed}", args.size, seed, cache, regions
        )
    return SwinClassifier.load(folder)


def auroc(test: list, probs: np.ndarray) -> dict:
    """AUROC of each label with its interval, and the mean over the eight."""
    targets = label_targets(label_matrix(test), ClassifierConfig())
    table = score_labels(targets, probs)
    labels = {
        k: {
            "auroc": r.auroc,
            "low": r.auroc_low,
            "high": r.auroc_high,
            "positives": int(r.positives),
        }
        for k, r in table.dropna().iterrows()
    }
    known = [labels[k]["auroc"] for k in EIGHT if k in labels]
    return {"macro_auroc_8": float(np.mean(known)) if known else None, "auroc": labels}


def pointing(rows: pd.DataFrame) -> dict:
    """Hits, chance and baselines per label and over the labels with boxes, for the map of places."""
    table = pointing_table(rows)
    own = rows[rows.method == "places"]
    macro = table.loc[("places", "macro")]
    found = {
        f"macro_{name}": float(macro[name]) for name in ("pointing", "chance", "prior", "centre")
    }
    return found | {
        "pointing": table.loc["places"].drop("macro").to_dict("index"),
        "other_maps": table.drop("places", level="method")
        .xs("macro", level="label")
        .to_dict("index"),
        "pointing_interval": macro_interval(own),
        "pointing_against_prior": macro_interval(own, against="prior"),
    }


def elsewhere(classifier, folders: list[Path], move: int) -> dict:
    """AUROC of the labels that films of other hospitals state, with intervals, by folder."""
    found = {}
    for folder in folders:
        try:
            studies, _ = read_folder(folder, "test")
        except R2GenKGError as e:  # a table without labels: benchmarks/other_films.py reads those
            say(f"{folder}: left out: {e}")
            continue
        targets = label_matrix(studies)  # what a folder does not state is left out
        table = score_labels(targets, predict_jury([classifier], studies, None, move))
        found[folder.name] = table.dropna().to_dict("index")
    return found


def tokens(classifier, test: list, boxes: Regions, cache: ImageCache, rules: dict) -> dict:
    """Share of token area inside the boxes of its label, by rule, on test films."""
    boxed = [s for s in test if boxes.labels(s.id)]
    size, found = classifier.image_size, {}
    for name, rule in rules.items():
        try:
            bank = extract_tokens(classifier, boxed, rule, cache, any_split=True)
            table = audit_bank(bank, lambda study: boxes.masks(study, size))
        except R2GenKGError as e:  # no patch is over the threshold, or none of a label with a box
            found[name] = {
                "tokens": 0,
                "area": None,
                "chance": None,
                "ratio": None,
                "reason": str(e),
            }
            continue
        macro = table.loc["macro"]
        found[name] = {
            "tokens": int(macro.tokens),
            "area": macro.area,
            "chance": macro.chance,
            "ratio": macro.area / macro.chance,
            "labels": table.drop("macro").to_dict("index"),
        }
    return found


def token_rules(methods: list[str]) -> dict[str, TokensConfig]:
    """Rules that choose tokens from a map."""
    every = {"max_per_label": 10**6, "patch": 16}
    rules = {f"{m} over 0.75": TokensConfig(method=m, threshold=0.75, **every) for m in methods}
    return rules | {"places over 0.9": TokensConfig(method="places", threshold=0.9, **every)}


#: What is averaged over folds: the name, and where a result file has it.
JOINED = {
    "macro_auroc_8": ("macro_auroc_8",),
    "macro_pointing": ("macro_pointing",),
    "macro_chance": ("macro_chance",),
    "macro_prior": ("macro_prior",),
    "macro_centre": ("macro_centre",),
    "macro_pointing_with_prior": ("macro_pointing_with_prior",),
    "token_area_ratio": ("token_area", "ratio"),
}


def over_folds(values: list[float]) -> dict[str, object]:
    """Mean over folds, its 95 % interval by Student's t, and the folds; no interval for a single fold."""
    from scipy.stats import t

    count, mean = len(values), float(np.mean(values))
    found: dict[str, object] = {"mean": mean, "folds": values}
    if count > 1:
        half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
        found |= {"low": mean - half, "high": mean + half}
    return found


def rule_rows(results: list[dict]) -> dict[str, dict]:
    """Maps by pointing and token rules by area, means over the folds, the best first."""
    maps = {"places": [r["macro_pointing"] for r in results]}
    for name in results[0].get("other_maps", {}):
        maps[name] = [r["other_maps"][name]["pointing"] for r in results]
    if all("macro_pointing_with_prior" in r for r in results):
        maps["places, with the prior"] = [r["macro_pointing_with_prior"] for r in results]
    maps["the prior alone"] = [r["macro_prior"] for r in results]
    maps["chance"] = [r["macro_chance"] for r in results]
    rules = {
        name: [r["tokens"][name]["ratio"] for r in results if r["tokens"][name].get("ratio")]
        for name in results[0].get("tokens", {})
    }
    parts = {"maps": maps, "token_rules": {k: v for k, v in rules.items() if v}}
    best = lambda item: -np.mean(item[1])
    return {
        part: {k: over_folds(v) for k, v in sorted(rows.items(), key=best)}
        for part, rows in parts.items()
    }


def join(files: list[Path]) -> dict:
    """The results of several folds as one. Raises `R2GenKGError` for folds that do not belong together."""
    results = [read_json(path, dict) for path in files]
    kept = [
        {
            k: v
            for k, v in r["settings"].items()
            if k not in ("fold", "json", "save", "other", "join")
        }
        for r in results
    ]
    if any(other != kept[0] for other in kept[1:]):
        raise R2GenKGError(
            f"{files[0]} and others: folds of other settings; join those of one command"
        )
    folds = [r["settings"]["fold"] for r in results]
    if len(set(folds)) < len(folds):
        raise R2GenKGError(f"a fold stands twice: {folds}")
    found: dict = {}
    for name, keys in JOINED.items():
        values = [r for r in results]
        for key in keys:
            values = [v.get(key) if isinstance(v, dict) else None for v in values]
        if all(isinstance(v, float) for v in values):
            found[name] = over_folds(values)
    gains = [r["macro_pointing"] - r["macro_prior"] for r in results if "macro_prior" in r]
    found |= {"pointing_over_prior": over_folds(gains)} if gains else {}
    found |= rule_rows(results) if all("tokens" in r for r in results) else {}
    found["auroc"] = {
        label: over_folds([r["auroc"][label]["auroc"] for r in results if label in r["auroc"]])
        for label in results[0]["auroc"]
    }
    # a classifier that was found in its folder took no time to train
    timed = [r["seconds"] for r in results if r.get("seconds_until_trained", 0) > 60]
    others = {name for r in results for name in r.get("elsewhere", {})}
    found["elsewhere"] = {
        name: [r["elsewhere"][name] for r in results if name in r.get("elsewhere", {})]
        for name in others
    }
    return found | {
        "joined": folds,
        "settings": {k: v for k, v in kept[0].items() if k != "train"},
        "test": sum(r["test"] for r in results),
        "boxed": sum(r["boxed"] for r in results),
        "seconds": float(np.mean(timed)) if timed else None,
        "memory_mib": max(r["memory_mib"] for r in results),
        "threads": results[0]["threads"],
    }


def arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, help="folder of the training films")
    parser.add_argument("--join", type=Path, nargs="+", help="result files of folds to summarise")
    parser.add_argument("--test", type=Path, help="folder of the test films")
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="see vision.encoders")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--frozen", type=int, default=6, help="parts of EfficientNet that stay")
    parser.add_argument("--move", type=int, default=8, help="pixels; copies of test films, 0: none")
    parser.add_argument("--box-weight", type=float, default=1.0, help="0: boxes teach nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, default=0, help="test a part of --train instead")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument(
        "--other", type=Path, nargs="*", default=[], help="folders of other hospitals"
    )
    parser.add_argument("--save", type=Path, help="keep the classifiers in this folder")
    parser.add_argument(
        "--methods", nargs="*", default=["gradcamelementwise"], help="further maps to score"
    )
    args = parser.parse_args()
    if args.join:
        return args
    if args.train is None:
        parser.error("give --train DIR, or --join FILE ...")
    if not args.folds and args.test is None:
        parser.error("give --test DIR, or --folds N")
    return args


def measure(args, work: Path) -> dict:
    """Train and score."""
    train, test, train_boxes, test_boxes = read_films(args)
    cache = ImageCache(work / "films", args.size)
    prior = location_prior(train_boxes)
    start, alone, probs, rows = time.perf_counter(), [], [], []
    for seed in args.seeds:
        classifier = open_or_train(args, seed, train, train_boxes, cache, work)
        trained = time.perf_counter() - start
        say(f"scoring {len(test):,} films, seed {seed}")
        probs.append(predict_jury([classifier], test, cache, args.move))
        one = auroc(test, probs[-1]) | {"seconds_until_trained": trained}
        if len(test_boxes):
            rows.append(
                pointing_rows(classifier, test, test_boxes, prior, ("places", *args.methods), cache)
            )
            rules = token_rules(["places", *args.methods])
            one |= pointing(rows[-1])
            one["tokens"] = tokens(classifier, test, test_boxes, cache, rules)
            both = pointing_with_prior(classifier, test, test_boxes, prior, cache)
            hits = both.groupby("label").pointing.mean()
            one |= {"macro_pointing_with_prior": hits.mean(), "with_prior": hits.to_dict()}
        alone.append(one)
        say(f"macro_auroc_8 {one['macro_auroc_8']:.3f}, pointing {one.get('macro_pointing')}")
    result = dict(alone[0]) if len(alone) == 1 else auroc(test, np.mean(probs, axis=0))
    if len(alone) > 1:
        result |= pointing(pd.concat(rows)) if rows else {}
        result["alone"] = alone
    result["elsewhere"] = elsewhere(classifier, args.other, args.move)
    result["token_area"] = alone[0].get("tokens", {}).get("places over 0.75")
    return result | {"train": len(train), "test": len(test), "boxed": len(test_boxes)}


def write_joined(args) -> int:
    """Write what `join` gives, and print the means."""
    try:
        result = join(args.join)
    except R2GenKGError as e:
        print(f"real_films: {e}", flush=True)
        return 1
    write_json(args.json, result)
    for name in JOINED:
        if name in result:
            row = result[name]
            interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
            print(f"{name:26} {row['mean']:.3f}{interval}")
    return 0


def main() -> int:
    args = arguments()
    if args.join:
        return write_joined(args)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(args, Path(folder))
        except R2GenKGError as e:
            print(f"real_films: {e}", flush=True)
            return 1
    result |= {
        "seconds": round(time.perf_counter() - start, 1),
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "settings": json.loads(json.dumps(vars(args), default=str)),
        "labels": list(LABELS),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    write_json(args.json, result)
    keys = (
        "macro_auroc_8",
        "macro_pointing",
        "macro_chance",
        "macro_prior",
        "seconds",
        "memory_mib",
    )
    print(json.dumps({k: result.get(k) for k in keys}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
