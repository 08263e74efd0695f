"""Vision tokens across rooms: batches against the one-by-one procedure, the graph, phantoms, resuming the classifier."""
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from r2genkg.classifier import SwinClassifier, build_swin
from r2genkg.config import LABELS, ClassifierConfig, R2GenKGError, TokensConfig, load_config, set_seed
from r2genkg.images import ImageCache
from r2genkg.records import Study
from r2genkg.vision_tokens import CAM_METHODS, VisionTokens, extract_tokens

SMALL = ClassifierConfig(backbone="scratch", patch_size=4, embed_dim=24, depths=(1, 1), heads=(2, 4), epochs=4, batch_size=8, lr=2e-3)


@pytest.fixture(scope="module")
def benchmark_module():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "vision_tokens.py"
    spec = importlib.util.spec_from_file_location("vision_tokens_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_study(folder: Path, i: int, size: int = 56, split: str = "train") -> Study:
    rng, (y, x) = np.random.default_rng(i), np.mgrid[:size, :size]
    labels = {k: 1.0 for k in np.array(LABELS)[rng.random(14) < 0.2]} or {"No Finding": 1.0}
    image = rng.normal(90, 25, (size, size)) + 60 * sum(np.hypot(x - 4 * LABELS.index(k), y - rng.uniform(8, size - 8)) < 6 for k in labels)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"s{i}.png")
    return Study(f"s{i}", (str(folder / f"s{i}.png"),), "", split=split, labels=labels)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Thirty small films, a random classifier, an image cache."""
    folder = tmp_path_factory.mktemp("films")
    set_seed(1)
    net = SwinClassifier(build_swin(SMALL, 56), 56).eval()
    return [draw_study(folder, i) for i in range(30)], net, ImageCache(folder / "cache", 56)


@pytest.mark.parametrize("threshold", [0.55, 0.75])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_select_the_patches_of_the_reference(small_world, benchmark_module, threshold, batch_size):
    studies, net, cache = small_world
    config = TokensConfig(patch=8, threshold=threshold, max_per_label=10**6, batch_size=batch_size)
    result = benchmark_module.compare(net, studies, config, cache)
    assert result["patches"] > 20
    assert result["same_patches"]
    assert result["feature_difference"] < 1e-4


def test_demo_size_selects_the_same_patches_and_is_faster(benchmark_module, tmp_path):
    config = load_config("demo")
    studies = benchmark_module.phantoms(tmp_path, 10)
    set_seed(0)
    net = SwinClassifier(build_swin(config.classifier, 224), 224).eval()
    tokens = config.tokens.model_copy(update={"max_per_label": 10**6})
    result = benchmark_module.compare(net, studies, tokens, ImageCache(tmp_path / "cache"))
    assert result["same_patches"] and result["feature_difference"] < 1e-4
    assert result["pooled_speedup"] > 2                      # 5 and more on a quiet machine: benchmarks/vision_tokens.py


@pytest.mark.parametrize("method", sorted(CAM_METHODS))
def test_every_named_method_gives_a_bank(small_world, method):
    studies, net, _ = small_world
    bank = extract_tokens(net, studies[:3], TokensConfig(patch=8, threshold=0.5, method=method))
    assert len(bank) > 0 and bank.features.shape == (len(bank), 48) and torch.isfinite(bank.features).all()
    assert (bank.table.cam > 0.5).all() and bank.table.groupby(["study", "label"]).size().max() <= 6


def test_frozen_classifier_gives_the_same_bank(small_world):
    studies, net, _ = small_world
    before = extract_tokens(net, studies, TokensConfig(patch=8))
    net.requires_grad_(False)
    try: after = extract_tokens(net, studies, TokensConfig(patch=8))
    finally: net.requires_grad_(True)
    assert after.table.equals(before.table) and torch.equal(after.features, before.features)


def test_two_views_are_two_sources(small_world):
    studies, net, _ = small_world
    pair = replace(studies[0], images=studies[0].images + studies[1].images)
    table = extract_tokens(net, [pair], TokensConfig(patch=8)).table
    assert set(table.view) == {0, 1} and set(table.image) == set(pair.images)


def test_refusals_name_the_cause(small_world):
    studies, net, _ = small_world
    test = replace(studies[0], split="test")
    with pytest.raises(R2GenKGError, match="s0.*test split"): extract_tokens(net, [studies[1], test])
    assert len(extract_tokens(net, [test], TokensConfig(patch=8), any_split=True)) > 0
    with pytest.raises(R2GenKGError, match="gradcam, hirescam"): extract_tokens(net, studies, TokensConfig(method="grad-cam"))
    with pytest.raises(R2GenKGError, match="patch=16 does not divide"): extract_tokens(net, studies, TokensConfig(patch=16))
    with pytest.raises(R2GenKGError, match="positive label"): extract_tokens(net, [replace(studies[0], labels={"Edema": 0.0})])
    with pytest.raises(R2GenKGError, match="no labels"): extract_tokens(net, [replace(studies[0], labels=None)])


def test_thinning_while_extracting_changes_nothing(small_world, monkeypatch):
    studies, net, _ = small_world
    config = TokensConfig(patch=8, threshold=0.5, max_per_label=3, batch_size=4)
    whole = extract_tokens(net, studies, config)
    monkeypatch.setattr("r2genkg.vision_tokens.SLACK", 1)
    thinned = extract_tokens(net, studies, config)
    assert whole.table.equals(thinned.table) and torch.equal(whole.features, thinned.features)
    assert whole.table.groupby("label").size().max() == 3


def test_bank_goes_to_disk_and_back(small_world, tmp_path):
    studies, net, _ = small_world
    bank = extract_tokens(net, studies, TokensConfig(patch=8))
    bank.save(tmp_path / "bank")
    back = VisionTokens.load(tmp_path / "bank")
    assert torch.equal(back.features, bank.features) and back.meta == bank.meta
    pd.testing.assert_frame_equal(back.table, bank.table)
    (tmp_path / "bank" / "tokens.parquet").unlink()
    with pytest.raises(R2GenKGError, match="not a readable bank"): VisionTokens.load(tmp_path / "bank")
