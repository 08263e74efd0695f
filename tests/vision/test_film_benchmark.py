"""The benchmark of real films on drawn ones, and classifiers with other encoders than Swin in a run."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from r2genkg.core.config import ClassifierConfig, TokensConfig, load_config
from r2genkg.core.files import R2GenKGError
from r2genkg.core.runtime import set_seed
from r2genkg.data.regions import Regions
from r2genkg.data.study import Study
from r2genkg.vision.classifier import SwinClassifier, build_backbone
from r2genkg.vision.classifier_training import train_classifier
from r2genkg.vision.vision_tokens import extract_tokens

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "real_films.py"
KEYS = ("macro_auroc_8", "macro_pointing", "macro_chance", "macro_prior")
NAMES = ("Cardiomegaly", "Pneumothorax")


def draw_folder(folder: Path, films: range) -> Path:
    """Films with a bright square (Pneumothorax), a dark one (Cardiomegaly) or none, and their boxes."""
    (folder / "images").mkdir(parents=True)
    index, boxes = ["id,image,chexpert,patient_id"], ["id,chexpert,x0,y0,x1,y1"]
    for i in films:
        rng = np.random.default_rng(i)
        image, kind = rng.normal(110, 8, (64, 64)), i % 3
        x, y = (rng.uniform(4, 40, 2)).astype(int)
        if kind:
            image[y : y + 20, x : x + 20] += 90 * (1 if kind == 2 else -1)
            corners = np.array([x, y, x + 20, y + 20]) / 64
            boxes.append(f"f{i},{NAMES[kind - 1]}," + ",".join(f"{c:.4f}" for c in corners))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"f{i}.png")
        index.append(f"f{i},images/f{i}.png,{NAMES[kind - 1] if kind else 'No Finding'},p{i}")
    (folder / "index.csv").write_text("\n".join(index))
    (folder / "boxes.csv").write_text("\n".join(boxes))
    return folder


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("real_films", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_writes_its_figures(benchmark, tmp_path, monkeypatch, capsys):
    train, test = draw_folder(tmp_path / "a", range(48)), draw_folder(tmp_path / "b", range(60, 84))
    out = tmp_path / "out.json"
    options = ["--train", train, "--test", test, "--json", out, "--size", 64, "--epochs", 3]
    options += ["--other", test, "--save", tmp_path / "kept"]
    monkeypatch.setattr(sys, "argv", ["real_films.py", *map(str, options)])
    assert benchmark.main() == 0
    found = json.loads(out.read_text())
    assert all(0 <= found[key] <= 1 for key in KEYS)
    assert set(found["pointing"]) == set(NAMES) and found["train"] == 48 and found["test"] == 24
    assert (
        found["token_area"]["chance"] < 0.15
        and found["elsewhere"]["b"]["No Finding"]["positives"] == 8
    )
    assert "training on 48 films" in capsys.readouterr().out
    assert SwinClassifier.load(tmp_path / "kept" / "classifier-0").num_tokens == 16


def test_benchmark_keeps_patients_apart(benchmark, tmp_path, monkeypatch):
    train, test = draw_folder(tmp_path / "a", range(12)), draw_folder(tmp_path / "b", range(8, 16))
    monkeypatch.setattr(
        sys, "argv", ["x", "--train", str(train), "--test", str(test), "--json", "unused"]
    )
    kept, scored, boxes, _ = benchmark.read_films(benchmark.arguments())
    assert len(kept) == 8 and len(scored) == 8
    assert not {s.patient for s in kept} & {s.patient for s in scored}
    assert set(boxes.shapes) <= {s.id for s in kept}


def films(folder: Path, count: int) -> tuple[list[Study], Regions]:
    """Bright squares (Pneumothorax) on half of the films, as studies with boxes."""
    studies, shapes = [], {}
    for i in range(count):
        rng = np.random.default_rng(i)
        image, there = rng.normal(110, 8, (64, 64)), i % 2
        x, y = (rng.uniform(4, 40, 2)).astype(int)
        if there:
            image[y : y + 20, x : x + 20] += 90
            shapes[f"f{i}"] = {"Pneumothorax": [np.array([[x, y], [x + 20, y + 20]]) / 64]}
        path = folder / f"f{i}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
        labels = {"Pneumothorax": float(there), "No Finding": float(1 - there)}
        studies.append(Study(f"f{i}", (str(path),), "", labels=labels))
    return studies, Regions(shapes)


def test_boxes_teach_the_map(tmp_path):
    """With boxes, a small Swin's map of places lies on the squares; without, less so."""
    studies, regions = films(tmp_path, 96)
    small = ClassifierConfig(
        backbone="scratch",
        patch_size=4,
        embed_dim=24,
        depths=(1, 1),
        heads=(2, 4),
        epochs=8,
        batch_size=16,
        lr=3e-3,
        box_weight=1.0,
    )
    inside = {}
    for name, boxes in (("with", regions), ("without", None)):
        out = tmp_path / name
        train_classifier(studies, small, out, image_size=56, regions=boxes)
        rules = TokensConfig(method="places", patch=8, threshold=0.75)
        bank = extract_tokens(SwinClassifier.load(out), studies, rules)
        rows = bank.table[bank.table.label == "Pneumothorax"]
        masks = [regions.masks(t.study, 56)["Pneumothorax"] for t in rows.itertuples()]
        areas = [m[t.y0 : t.y1, t.x0 : t.x1].mean() for m, t in zip(masks, rows.itertuples())]
        inside[name] = float(np.mean(areas))
    assert inside["with"] > 0.6 and inside["with"] > inside["without"]


def test_frozen_parts_do_not_change(tmp_path):
    studies, regions = films(tmp_path, 16)
    config = ClassifierConfig(
        backbone="efficientnet-lite0", frozen=6, epochs=1, batch_size=8, lr=1e-3, augment="affine"
    )
    set_seed(42)
    before = build_backbone(config, 64).state_dict()
    train_classifier(studies, config, tmp_path / "out", image_size=64, regions=regions)
    after = SwinClassifier.load(tmp_path / "out").backbone.state_dict()
    stem = "trunk.stem.1.running_mean"
    assert torch.equal(before[stem], after[stem])
    assert torch.equal(
        before["trunk.blocks.4._project_conv.weight"], after["trunk.blocks.4._project_conv.weight"]
    )
    assert not torch.equal(before["trunk.top.0.weight"], after["trunk.top.0.weight"])


def test_presets_keep_their_training():
    """New options of the classifier are off unless they are asked for."""
    config = load_config("demo")
    assert config.classifier.augment == "shift" and config.classifier.frozen == 0
    assert config.tokens.source == "maps" and config.studies.boxes == ""


def test_size_that_the_encoder_refuses():
    with pytest.raises(R2GenKGError, match="studies.image_size=250.*cells of 32 pixels"):
        build_backbone(ClassifierConfig(backbone="efficientnet-lite0"), 250)
