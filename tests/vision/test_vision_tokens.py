"""Vision tokens across modules: batches against one by one, the graph, phantoms, resuming the classifier."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from r2genkg.vision.classifier import SwinClassifier, build_swin
from r2genkg.vision.classifier_training import train_classifier
from r2genkg.data.study import LABELS
from r2genkg.core.config import ClassifierConfig, TokensConfig, load_config
from r2genkg.core.files import R2GenKGError, read_json
from r2genkg.core.runtime import set_seed
from r2genkg.data.images import ImageCache
from r2genkg.data.study import Study, load_studies, save_studies
from r2genkg.vision.class_maps import CAM_METHODS
from r2genkg.vision.vision_tokens import VisionTokens, extract_tokens
from r2genkg.kg.label_nodes import LABEL_NODES

SMALL = ClassifierConfig(
    backbone="scratch",
    patch_size=4,
    embed_dim=24,
    depths=(1, 1),
    heads=(2, 4),
    epochs=4,
    batch_size=8,
    lr=2e-3,
)


@pytest.fixture(scope="module")
def benchmark_module():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "vision_tokens.py"
    spec = importlib.util.spec_from_file_location("vision_tokens_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_study(folder: Path, i: int, size: int = 56, split: str = "train") -> Study:
    rng, (y, x) = np.random.default_rng(i), np.mgrid[:size, :size]
    labels = {k: 1.0 for k in np.array(LABELS)[rng.random(14) < 0.2]} or {"No Finding": 1.0}
    image = rng.normal(90, 25, (size, size)) + 60 * sum(
        np.hypot(x - 4 * LABELS.index(k), y - rng.uniform(8, size - 8)) < 6 for k in labels
    )
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"s{i}.png")
    return Study(f"s{i}", (str(folder / f"s{i}.png"),), "", split=split, labels=labels)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Thirty small images, a random classifier, an image cache."""
    folder = tmp_path_factory.mktemp("films")
    set_seed(1)
    net = SwinClassifier(build_swin(SMALL, 56), 56).eval()
    return [draw_study(folder, i) for i in range(30)], net, ImageCache(folder / "cache", 56)


@pytest.mark.parametrize("threshold", [0.55, 0.75])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_select_the_patches_of_the_reference(
    small_world, benchmark_module, threshold, batch_size
):
    studies, net, cache = small_world
    config = TokensConfig(patch=8, threshold=threshold, max_per_label=10**6, batch_size=batch_size)
    result = benchmark_module.compare(net, studies, config, cache)
    assert result["patches"] > 20
    assert result["same_patches"]
    assert result["feature_difference"] < 1e-4


@pytest.mark.parametrize("method", ["gradcam", "gradcamelementwise"])
def test_demo_size_selects_the_same_patches(benchmark_module, tmp_path, method):
    config = load_config("demo")
    studies = benchmark_module.phantoms(tmp_path, 10)
    set_seed(0)
    net = SwinClassifier(build_swin(config.classifier, 224), 224).eval()
    tokens = TokensConfig(method=method, max_per_label=10**6)  # all else as in the reference
    result = benchmark_module.compare(net, studies, tokens, ImageCache(tmp_path / "cache"))
    assert result["patches"] > 20
    assert result["same_patches"] and result["feature_difference"] < 1e-4


@pytest.mark.parametrize("features", ["pooled", "patch"])
def test_one_forward_pass_per_batch(small_world, monkeypatch, features):
    """The encoder runs once per batch of images (or encoded patches), backward once for all labels."""
    studies, net, cache = small_world
    config, passes = (
        TokensConfig(patch=8, threshold=0.5, features=features, batch_size=10, max_per_label=10**6),
        {"hidden": 0, "backward": 0},
    )
    hidden, backward = SwinClassifier.hidden, torch.Tensor.backward

    def counted(name, call):
        return lambda *args, **kwargs: (
            passes.__setitem__(name, passes[name] + 1),
            call(*args, **kwargs),
        )[1]

    monkeypatch.setattr(SwinClassifier, "hidden", counted("hidden", hidden))
    monkeypatch.setattr(torch.Tensor, "backward", counted("backward", backward))
    bank = extract_tokens(net, studies, config, cache=cache)
    batches = -(-len(studies) // 10)
    assert (
        sum(sum(v == 1 for v in s.labels.values()) for s in studies) > 2 * len(studies)
        and len(bank) > 100
    )
    assert passes["backward"] == batches
    if features == "pooled":
        assert passes["hidden"] == batches
    else:
        assert batches + len(bank) / 10 <= passes["hidden"] <= 2 * batches + len(bank) / 10 + 1


@pytest.mark.parametrize("method", sorted(CAM_METHODS))
def test_every_named_method_gives_a_bank(small_world, method):
    studies, net, _ = small_world
    bank = extract_tokens(net, studies[:3], TokensConfig(patch=8, threshold=0.5, method=method))
    assert (
        len(bank) > 0
        and bank.features.shape == (len(bank), 48)
        and torch.isfinite(bank.features).all()
    )
    assert (bank.table.cam > 0.5).all() and bank.table.groupby(["study", "label"]).size().max() <= 6


def test_frozen_classifier_gives_the_same_bank(small_world):
    studies, net, _ = small_world
    before = extract_tokens(net, studies, TokensConfig(patch=8))
    net.requires_grad_(False)
    try:
        after = extract_tokens(net, studies, TokensConfig(patch=8))
    finally:
        net.requires_grad_(True)
    assert after.table.equals(before.table) and torch.equal(after.features, before.features)


def test_two_views_are_two_sources(small_world):
    studies, net, _ = small_world
    pair = replace(studies[0], images=studies[0].images + studies[1].images)
    table = extract_tokens(net, [pair], TokensConfig(patch=8)).table
    assert set(table.view) == {0, 1} and set(table.image) == set(pair.images)


def test_refusals_name_the_cause(small_world):
    studies, net, _ = small_world
    test = replace(studies[0], split="test")
    with pytest.raises(R2GenKGError, match="s0.*test split"):
        extract_tokens(net, [studies[1], test])
    assert len(extract_tokens(net, [test], TokensConfig(patch=8), any_split=True)) > 0
    with pytest.raises(R2GenKGError, match="gradcam, hirescam"):
        extract_tokens(net, studies, TokensConfig(method="grad-cam"))
    with pytest.raises(R2GenKGError, match="patch=16 does not divide"):
        extract_tokens(net, studies, TokensConfig(patch=16))
    with pytest.raises(R2GenKGError, match="positive label"):
        extract_tokens(net, [replace(studies[0], labels={"Edema": 0.0})])
    with pytest.raises(R2GenKGError, match="no labels"):
        extract_tokens(net, [replace(studies[0], labels=None)])


def test_thinning_while_extracting_changes_nothing(small_world, monkeypatch):
    studies, net, _ = small_world
    config = TokensConfig(patch=8, threshold=0.5, max_per_label=3, batch_size=4)
    whole = extract_tokens(net, studies, config)
    monkeypatch.setattr("r2genkg.vision.vision_tokens.SLACK", 1)
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
    with pytest.raises(R2GenKGError, match="tokens.parquet: not readable \\(no such file"):
        VisionTokens.load(tmp_path / "bank")


def test_tokens_hang_on_the_nodes_of_a_built_graph(small_world):
    from r2genkg.extraction.annotate import annotate
    from r2genkg.kg.merging import GraphOptions
    from r2genkg.kg.build import build_graph

    texts = [
        "There is a small left pleural effusion.",
        "Mild cardiomegaly. No pneumothorax.",
        "Pulmonary edema with a left pleural effusion.",
    ]
    graph = build_graph(
        [(str(i), s) for i, s in enumerate(annotate(texts))], GraphOptions(min_count=1)
    )
    studies, net, _ = small_world
    bank = extract_tokens(net, studies, TokensConfig(patch=8, threshold=0.5))
    attached = bank.attach(graph)
    rows = dict(zip(attached.nodes["name"], attached.nodes["visual_tokens"]))
    assert (
        rows["effusion"] == bank.table.index[bank.table.label == "Pleural Effusion"].tolist() != []
    )
    assert (
        rows["cardiomegaly"] == bank.table.index[bank.table.label == "Cardiomegaly"].tolist() != []
    )
    assert rows["small"] == [] and "visual_tokens" not in graph.nodes
    assert set(LABEL_NODES) == set(LABELS)


def test_attached_graph_survives_saving(small_world, tmp_path):
    from r2genkg.extraction.annotate import annotate
    from r2genkg.kg.graph import M3KG
    from r2genkg.kg.build import build_graph
    from r2genkg.kg.merging import GraphOptions

    graph = build_graph([("a", annotate(["Left pleural effusion."])[0])], GraphOptions(min_count=1))
    studies, net, _ = small_world
    attached = extract_tokens(net, studies, TokensConfig(patch=8, threshold=0.5)).attach(graph)
    attached.save(tmp_path / "kg")
    back = M3KG.load(tmp_path / "kg")
    assert [list(rows) for rows in back.nodes["visual_tokens"]] == attached.nodes[
        "visual_tokens"
    ].tolist()


def test_phantom_masks_audit_the_maps(tmp_path):
    from r2genkg.phantom.phantoms import load_masks, write_phantoms
    from r2genkg.vision.map_audit import audit_maps, audit_table

    studies = write_phantoms(tmp_path / "phantoms", 0, 0, 12)
    set_seed(0)
    net = SwinClassifier(build_swin(load_config("demo").classifier, 224), 224).eval()

    def masks(s):
        return {
            k: m for k, m in load_masks(tmp_path / "phantoms", s.id).items() if s.labels.get(k) == 1
        }

    table = audit_table(audit_maps(net, studies, masks, ["gradcam", "hirescam"]))
    macro = table.xs("macro", level="label")
    assert macro.pairs.tolist() == [sum(len(masks(s)) for s in studies)] * 2
    assert (
        macro[["pointing", "near", "energy", "iou"]].stack().between(0, 1).all()
        and (macro.near >= macro.pointing).all()
    )
    assert (macro.chance < 0.3).all()


CUT_OFF = """
import sys
from r2genkg.core.config import ClassifierConfig
from r2genkg.data.study import load_studies
from r2genkg.vision.classifier_training import train_classifier
folder = sys.argv[1]
config = ClassifierConfig.model_validate_json(sys.argv[2])
studies = load_studies(folder + "/studies.parquet")
train_classifier(studies, config, folder + "/out", work=folder + "/work", image_size=56)
"""


def test_killed_training_goes_on_and_ends_the_same(tmp_path):
    studies = [draw_study(tmp_path, i, split=("train", "train", "val")[i % 3]) for i in range(48)]
    save_studies(studies, tmp_path / "studies.parquet")
    config = SMALL.model_copy(update={"epochs": 12})
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CUT_OFF, str(tmp_path), config.model_dump_json()],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.time() + 120
    while (
        process.poll() is None
        and time.time() < deadline
        and not list((tmp_path / "work").glob("*/checkpoint-*/trainer_state.json"))
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()  # nothing that looks finished
    begun = list((tmp_path / "work").glob("classifier-*/checkpoint-*"))
    if not begun:
        pytest.skip("the training was over before it could be killed")
    studies = load_studies(tmp_path / "studies.parquet")  # the same paths as in the killed process
    resumed = train_classifier(
        studies, config, tmp_path / "out", work=tmp_path / "work", image_size=56
    )
    assert not list((tmp_path / "work").glob("classifier-*"))
    whole = train_classifier(
        studies, config, tmp_path / "whole", work=tmp_path / "work2", image_size=56
    )
    assert resumed == whole and resumed["split"] == "val"
    epochs = [h["epoch"] for h in read_json(tmp_path / "out" / "history.json") if "loss" in h]
    assert epochs == list(range(1, 13))
    a, b = (SwinClassifier.load(tmp_path / name).state_dict() for name in ("out", "whole"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones"])
def test_uncertain_policies_train(tmp_path, policy):
    studies = [
        replace(draw_study(tmp_path, i), labels={"Edema": (-1.0, 0.0, 1.0)[i % 3]})
        for i in range(9)
    ]
    config = SMALL.model_copy(update={"epochs": 1, "uncertain": policy, "unmentioned": "ignore"})
    metrics = train_classifier(studies, config, tmp_path / "out", image_size=56)
    edema = metrics["labels"]["Edema"]
    assert (edema["positives"], edema["negatives"]) == {
        "ignore": (3, 3),
        "zeros": (3, 6),
        "ones": (6, 3),
    }[policy]
    assert (
        "Fracture" in metrics["undefined"]
        and json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    )
    assert np.isfinite(metrics["macro_auroc"])


def test_reader_saves_verdicts_in_a_browser(small_world, tmp_path):
    """In headless Chromium: choose verdicts, press the button, and read back what was saved."""
    from browser import open_page
    from r2genkg.vision.audit_form import audit_form, read_verdicts, verdict_table
    from r2genkg.vision.retrieval_audit import draw_pairs, retrievals_of

    studies, net, _ = small_world
    bank = extract_tokens(net, studies, TokensConfig(patch=8, threshold=0.5))
    weights = np.random.default_rng(0).dirichlet(np.ones(len(bank)), (len(studies), 14))
    named = [
        replace(s, id=f'=s"{i}",') for i, s in enumerate(studies)
    ]  # a name that a spreadsheet would compute, with quotes and a comma
    pairs = draw_pairs(len(named), 14, count=50)
    drawn = retrievals_of(named, {pair: weights[pair] for pair in pairs})
    (tmp_path / "audit.html").write_text(audit_form(drawn, bank, 56), encoding="utf-8")
    with open_page() as page:
        page.goto((tmp_path / "audit.html").as_uri())
        choices = page.locator("fieldset")
        assert choices.count() == 300 and page.locator("#state").inner_text() == "0 of 300 given"
        choices.nth(0).get_by_text("on the disease").click()
        page.keyboard.press("j")  # to the second patch
        page.keyboard.press("3")
        choices.nth(299).get_by_text("cannot say").click()
        page.fill("#reader", "Reader, A.")
        page.reload()  # the browser keeps verdicts and name
        assert page.input_value("#reader") == "Reader, A."
        assert page.locator("#state").inner_text() == "3 of 300 given"
        with page.expect_download() as saved:
            page.click("#save")
        saved.value.save_as(tmp_path / "verdicts.csv")
        page.screenshot(
            path=Path(os.environ.get("R2GENKG_SCREENSHOTS", tmp_path)) / "audit-form.png"
        )
        assert saved.value.suggested_filename == "verdicts.csv" and page.foreign == []
    table = read_verdicts([tmp_path / "verdicts.csv"])
    assert table.verdict.tolist() == ["on the disease", "not on it", "cannot say"] and set(
        table.reader
    ) == {"Reader, A."}
    assert (
        table.study.tolist()[0] == "'" + drawn[0].study
        and int(table.row[0]) == drawn[0].rows[0]
        and verdict_table(table).loc["all", "share"] == 0.5
    )
