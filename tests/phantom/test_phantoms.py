"""Phantoms from end to end: findings, drawing, report, labels and files agree."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from r2genkg.phantom import phantoms
from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError
from r2genkg.phantom.findings import DEVICE_KINDS, Finding
from r2genkg.phantom.markup import parse_markup
from r2genkg.phantom.wording import write_report
from r2genkg.phantom.drawing import draw
from r2genkg.phantom.phantoms import (
    draw_for_labels,
    load_masks,
    make_phantom,
    write_phantoms,
)
from r2genkg.phantom.findings import findings_for_labels, random_finding, sample_findings
from r2genkg.data.study import load_studies
from r2genkg.extraction.annotation_files import load_annotations


@pytest.fixture(scope="module", params=["A", "B"])
def reports(request):
    """400 findings with their reports, of one style."""
    found = []
    for k in range(400):
        rng = np.random.default_rng([11, k])
        findings = sample_findings(rng, request.param)
        found.append((findings, write_report(findings, rng, request.param)))
    return found


def test_labels_state_exactly_the_findings(reports):
    for findings, report in reports:
        stated = {k: v for k, v in report.labels.items() if v and k != "No Finding"}
        values = {f.label: [] for f in findings}
        for finding in findings:
            values[finding.label].append(finding.value)
        assert stated == {label: max(found) for label, found in values.items()}, report.text
        assert ("No Finding" in report.labels) == (not set(stated) - {"Support Devices"})
        assert "No Finding" not in report.labels or report.labels["No Finding"] == 1


def test_relations_keep_the_directions_of_the_convention(reports):
    for _, report in reports:
        for s in report.sentences:
            for r in s.relations:
                head, tail = s.entities[r.head].rexkg_type, s.entities[r.tail].rexkg_type
                if r.type == "located_at":
                    assert tail == "anatomy" and head != "concept", (s.text, r)
                elif r.type == "suggestive_of":
                    assert head == "disorder_present" and tail == "disorder_present", (s.text, r)
                else:
                    assert head in ("concept", "devices_present"), (s.text, r)


def test_tokens_and_sentences_are_those_of_the_annotator(reports):
    from r2genkg.text.sentences import split_sentences, tokenize

    for _, report in reports:
        assert split_sentences(report.text) == [s.text for s in report.sentences]
        assert all(tokenize(s.text) == s.tokens for s in report.sentences)


def test_denials_and_hedges_are_typed(reports):
    sentences = [s for _, report in reports for s in report.sentences]
    for s in sentences:
        types = {e.rexkg_type for e in s.entities}
        if s.tokens[0] == "No" or "There is no" in s.text:
            assert "disorder_notpresent" in types and "disorder_present" not in types, s.text
        if "cannot be excluded" in s.text or s.text.startswith(("Possible", "Questionable")):
            assert any(e.polarity == "uncertain" for e in s.entities), s.text
    assert any(e.polarity == "uncertain" for s in sentences for e in s.entities)


def test_reports_have_the_length_and_variety_of_reports(reports):
    lengths = [len(r.text.split()) for _, r in reports]
    assert 25 <= min(lengths) and np.percentile(lengths, 95) <= 62 and max(lengths) < 90
    assert len({r.text for _, r in reports}) > 350
    assert 100 < len({t.lower() for _, r in reports for s in r.sentences for t in s.tokens}) < 400


def test_frequencies_are_long_tailed_with_a_floor(reports):
    share = {k: np.mean([r.labels.get(k) == 1 for _, r in reports]) for k in LABELS}
    assert min(share.values()) > 0.02 and share["Support Devices"] > 3 * share["Pleural Other"]
    assert np.mean([len(r.masks) >= 2 for r in (make_phantom(3, k) for k in range(60))]) > 0.5


def test_text_is_the_same_in_another_process():
    """No hash seed, no clock, no state of the process in a phantom."""
    code = (
        "from r2genkg.phantom.phantoms import make_phantom; p = make_phantom(5, 77); "
        "print(p.report.text); print(int(p.image.astype(int).sum()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, brightness = run.stdout.split("\n")[:2]
    p = make_phantom(5, 77)
    assert text == p.report.text and int(brightness) == int(p.image.astype(int).sum())


def test_a_larger_set_on_all_cores_holds_the_same_phantoms(tmp_path):
    few = write_phantoms(tmp_path / "few", 2, 1, 1, seed=4, size=64)
    many = write_phantoms(tmp_path / "many", 60, 2, 2, seed=4, size=64)
    by_id = {s.id: s for s in many}
    truth = dict(load_annotations(tmp_path / "many" / "truth.jsonl"))
    assert list(dict(load_annotations(tmp_path / "few" / "truth.jsonl")).values()) == [
        truth[s.id] for s in few
    ]
    for s in few:
        assert (
            by_id[s.id].findings == s.findings
            and by_id[s.id].labels == s.labels
            and by_id[s.id].split == s.split
        )
        assert (
            np.asarray(Image.open(by_id[s.id].images[0])) == np.asarray(Image.open(s.images[0]))
        ).all()
    assert len(truth) == len(many) == 64 and [s.split for s in many].count("train") == 60


def test_files_give_back_what_was_made(tmp_path):
    studies = write_phantoms(
        tmp_path / "set", 3, 1, 1, seed=9, size=100, style="B"
    )  # 100: no multiple of 8
    stored = load_studies(tmp_path / "set" / "studies.parquet")
    assert [(s.id, s.findings, s.labels) for s in stored] == [
        (s.id, s.findings, s.labels) for s in studies
    ]
    p = make_phantom(9, 1, 100, "B")
    masks = load_masks(tmp_path / "set", p.id)
    assert masks.keys() == p.masks.keys() and all(
        (masks[k] == p.masks[k]).all() and masks[k].shape == (100, 100) for k in masks
    )
    assert (np.asarray(Image.open(stored[1].images[0])) == p.image).all()
    line = json.loads((tmp_path / "set" / "truth.jsonl").read_text().splitlines()[1])
    assert line["id"] == p.id and [Finding(**f) for f in line["findings"]] == list(p.findings)


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(phantoms, "make_phantom", fail)
    with pytest.raises(RuntimeError):
        write_phantoms(tmp_path / "set", 3, 0, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(R2GenKGError, match="not an empty folder"):
        write_phantoms(tmp_path, 1, 0, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(R2GenKGError, match="no masks"):
        load_masks(tmp_path, "A0-0")
    with pytest.raises(R2GenKGError, match="truth.jsonl"):
        load_annotations(tmp_path / "truth.jsonl")


@pytest.mark.parametrize("label", LABELS[:13])
def test_every_sign_shows_where_its_mask_is(label):
    """The same patient with and without the finding differs mostly inside the mask, and visibly."""
    inside, outside = [], []
    for k in range(8):
        f = random_finding(label, np.random.default_rng(k))
        with_it, masks = draw([f], np.random.default_rng(k), 224)
        again, _ = draw([f], np.random.default_rng(k), 224)
        assert (with_it == again).all() and list(masks) == [label]
        # without noise of its own the plain chest of this generator differs by grain only
        plain, _ = draw([], np.random.default_rng(k), 224)
        change = np.abs(with_it.astype(int) - plain)
        inside.append(change[masks[label]].mean())
        outside.append(change[~masks[label]].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside), (label, np.mean(inside), np.mean(outside))


@pytest.mark.parametrize("size", [64, 224, 320])
def test_any_size_shows_the_same_thing(size):
    image, masks = draw(
        [Finding("Pleural Effusion", "left", "large")], np.random.default_rng(0), size
    )
    assert (
        image.shape == masks["Pleural Effusion"].shape == (size, size) and image.dtype == np.uint8
    )
    assert (
        0.03 < masks["Pleural Effusion"].mean() < 0.25
        and not masks["Pleural Effusion"][:, : size // 2].any()
    )


def test_images_for_labels_show_exactly_the_positive_ones():
    for k in range(60):
        rng = np.random.default_rng(k)
        labels = {label: rng.choice([1.0, 0.0, -1.0, np.nan]) for label in LABELS[:13]}
        _, masks = draw_for_labels(labels, rng, 64)
        assert set(masks) == {k for k, v in labels.items() if v == 1}
        assert {f.certainty for f in findings_for_labels(labels, rng)} <= {"present"}


def test_attributes_are_obeyed():
    for side in ("left", "right"):
        _, masks = draw_for_labels(
            {"Lung Lesion": 1},
            np.random.default_rng(0),
            attributes={"Lung Lesion": {"side": side, "zone": "upper"}},
        )
        y, x = np.nonzero(masks["Lung Lesion"])
        assert (x.mean() > 112) == (side == "left") and y.mean() < 100
    for kind in DEVICE_KINDS:
        _, masks = draw_for_labels(
            {"Support Devices": 1},
            np.random.default_rng(0),
            attributes={"Support Devices": {"kind": kind, "side": "left"}},
        )
        assert masks["Support Devices"].any(), kind
    with pytest.raises(R2GenKGError):
        draw_for_labels(
            {"Edema": 1}, np.random.default_rng(0), attributes={"Edema": {"severity": "huge"}}
        )


def test_severity_grows():
    area = {
        s: np.mean(
            [
                draw([Finding("Pleural Effusion", "right", s)], np.random.default_rng(k), 112)[1][
                    "Pleural Effusion"
                ].mean()
                for k in range(6)
            ]
        )
        for s in ("small", "moderate", "large")
    }
    assert area["small"] < area["moderate"] < area["large"]


def test_a_disease_needs_its_sign():
    pneumonia = Finding("Pneumonia", "left", "small", "lower", "uncertain", shown_by="Lung Opacity")
    with pytest.raises(R2GenKGError, match="shown_by"):
        write_report([pneumonia], np.random.default_rng(0))
    with pytest.raises(R2GenKGError, match="style"):
        write_report([], np.random.default_rng(0), "C")
    with pytest.raises(R2GenKGError):
        parse_markup("[left|c>e] [effusion|d=x].")
