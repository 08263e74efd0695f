"""Reports with evidence: from files of every kind to text, JSON and a page that is looked at in a browser."""

import json
import os
import warnings
import weakref
from pathlib import Path
from PIL import Image
from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError
from r2genkg.training.run import RUN_FILES, run_folder
from r2genkg.use.pages import write_reports
from r2genkg.use.report import Reporter
from r2genkg.use.image_reports import find_images, report_files, report_images
from browser import open_page

import numpy as np
import pandas as pd
import pytest
import torch


@pytest.fixture
def export(tmp_path) -> Path:
    """Films as an archive exports them: a PNG, a JPEG, a DICOM without suffix, and what is no image."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder = tmp_path / "export"
    (folder / "series").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "series" / "b.jpg")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        "1.2.840.10008.5.1.4.1.1.1.1",
        "1.2.3",
        pydicom.uid.ExplicitVRLittleEndian,
    )
    ds = FileDataset(str(folder / "series" / "IM0001"), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientName = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
        "Secret^Name",
    )
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 90, 60, 1, "MONOCHROME1"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, (255 - pixels).tobytes()
    ds.save_as(folder / "series" / "IM0001", enforce_file_format=True)
    (folder / "series" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_folder_of_images_becomes_a_page(toy, export, tmp_path, caplog):
    texts = report_files([export], toy, tmp_path / "r.html")
    assert set(texts) == {"a.png", "b.jpg", "IM0001"}
    assert "DICOMDIR" in caplog.text and "notes.txt" in caplog.text
    html = (tmp_path / "r.html").read_text()
    assert "not for clinical use" in html and "drawn phantoms" in html and "Secret" not in html
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert html.count("data:image/png;base64,") >= 3 * 2


def test_content_decides_what_is_an_image(export):
    """Archives name DICOM files by UID or .IMA; what is passed over is listed, one line each."""
    series = export / "series"
    (series / "IM0001").rename(series / "1.2.276.0.7230010.3")
    for name in ("a.IMA", "b.jpe"):
        (series / name).write_bytes(
            (series / ("b.jpg" if name == "b.jpe" else "1.2.276.0.7230010.3")).read_bytes()
        )
    (export / "gone.png").symlink_to("nothing")
    (export / "linked").symlink_to(series, target_is_directory=True)
    os.mkfifo(export / "pipe")
    found, skipped = find_images([export])
    assert set(found) == {"a.png", "b.jpg", "b.jpe", "a.IMA", "1.2.276.0.7230010.3"}
    assert {Path(s.split(": ")[0]).name for s in skipped} == {
        "gone.png",
        "linked",
        "pipe",
        "DICOMDIR",
        "notes.txt",
    }


@pytest.mark.parametrize("suffix", ["html", "json", "txt"])
def test_a_name_that_is_not_utf8_loses_nothing(toy, export, tmp_path, suffix, caplog):
    os.symlink(export / "a.png", os.fsencode(export) + b"/bad\xff.png")
    Path(export, "no\x1b[31m\nfilm").write_text("not an image")
    texts = report_files([export], toy, tmp_path / f"r.{suffix}")
    assert set(texts) == {"a.png", "b.jpg", "IM0001", "bad\\xff.png"}
    assert "bad" in (tmp_path / f"r.{suffix}").read_text(encoding="utf-8")
    assert "\x1b" not in caplog.text and "no\ufffd[31m film: not a PNG" in caplog.text


def test_reports_are_not_kept_in_memory(toy, export, tmp_path, monkeypatch):
    """A page, a file or a list of texts is made of any number of export; at most the report before is still there."""
    plain, made = Reporter.__call__, []

    def call(*args, **options):
        assert sum(e() is not None for e in made) <= 1
        e = plain(*args, **options)
        made.append(weakref.ref(e))
        return e

    monkeypatch.setattr(Reporter, "__call__", call)
    for out in ("r.html", "r.json", "r.txt", None):
        report_files([export], toy, out and tmp_path / out)
    assert len(made) == 4 * 3


def test_json_holds_the_evidence(toy, export, tmp_path):
    report_files([export / "a.png"], toy, tmp_path / "r.json")
    (stored,) = json.loads((tmp_path / "r.json").read_text())
    assert {name for name, _ in stored["labels"]} == set(LABELS) and len(stored["patches"]) == 6
    assert [e["sentence"] for e in stored["evidence"]] == stored["sentences"] and stored["evidence"]
    for e in stored["evidence"]:
        region = np.array(e["region"])
        assert (
            region.shape == (7, 7)
            and (region >= 0).all()
            and region.sum() == pytest.approx(1, abs=0.01)
            or region.sum() == 0
        )
        assert 0 < e["probability"] <= 1 and sum(e["attention"].values()) == pytest.approx(
            1, abs=0.01
        )
        assert (
            len(e["vision_tokens"]) == 3
            and e["vision_tokens"][0]["study"] == "s1"
            and len(e["vision_tokens"][0]["box"]) == 4
        )
        assert set(e["gradcam"]) <= set(e["labels"])


def test_dicom_and_png_of_one_image_give_one_report(toy, export):
    texts = report_files([export / "a.png", export / "series" / "IM0001"], toy)
    assert texts["a.png"] == texts["IM0001"]  # MONOCHROME1 is inverted back


def test_views_of_one_study(toy, export, tmp_path):
    texts = report_files(
        [export / "a.png", export / "series" / "b.jpg"], toy, tmp_path / "r.html", one_study=True
    )
    assert (
        list(texts) == ["a.png, b.jpg"]
        and (tmp_path / "r.html").read_text().count('alt="further view"') == 1
    )
    (twice,) = report_images(
        [export / "a.png", export / "series" / "IM0001"], toy, one_study=True
    )  # the mean of equal views is the view
    assert twice.report.text == report_files([export / "a.png"], toy)["a.png"]


def test_text_and_printed_report(toy, export, tmp_path):
    texts = report_files([export / "a.png"], toy, tmp_path / "r.txt")
    written = (tmp_path / "r.txt").read_text()
    assert texts["a.png"].split()[0] in written and "not for clinical use" in written


def test_files_of_one_name_keep_their_folders(toy, export):
    (export / "series" / "a.png").write_bytes((export / "a.png").read_bytes())
    texts = report_files([export / "a.png", export / "series" / "a.png"], toy)
    assert len(texts) == 2 and all(name.endswith("a.png") for name in texts)


@pytest.mark.parametrize(
    "content, fault", [(b"", "empty"), (b"\x89PNG\r\n", "x.png"), (b"<html>", "not a PNG")]
)
def test_a_damaged_file_stops_before_any_report(toy, export, tmp_path, content, fault):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(R2GenKGError, match=fault):
        report_files([export / "a.png", tmp_path / "x.png"], toy, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_unusable_places(toy, export, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "scales").mkdir()
    for paths, run, out, fault in (
        ([export / "a.png"], tmp_path / "none", None, "not a run"),
        ([export / "a.png"], tmp_path / "half", None, "config.yaml is missing.*r2genkg train"),
        ([tmp_path / "none"], toy, None, "no PNG, JPEG or DICOM"),
        ([export / "a.png"], toy, tmp_path / "r.pdf", r"\.html, \.json, \.txt"),
        ([], toy, None, "no image given"),
    ):
        with pytest.raises(R2GenKGError, match=fault):
            report_files(paths, run, out)


def test_a_run_without_one_of_its_files_names_the_command(toy, tmp_path):
    for file in toy.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert run_folder(tmp_path) == tmp_path
    for name in RUN_FILES:
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(R2GenKGError, match=f"{name} is missing.*r2genkg train"):
            run_folder(tmp_path)
        (tmp_path / "away").rename(tmp_path / name)


def test_fewer_nodes_and_back(toy, export):
    reporter, image = Reporter(toy), np.array(Image.open(export / "a.png"))
    before = reporter(image)
    few = reporter(image, nodes=3)
    assert few.maps["kept"].shape == (3,) and "kept" not in before.maps
    names = {name for s in few.sentences for name, _ in s.attended}
    assert names <= {reporter.model.prefix.scales[0].names[int(i)] for i in few.maps["kept"]}
    assert reporter(image).report == before.report
    for bad in (0, 11):
        with pytest.raises(R2GenKGError, match="1 to 10"):
            reporter(image, nodes=bad)


def test_region_is_where_the_sentence_comes_from(toy, export):
    """The probability falls more if the cells that speak for a sentence become average than if others do."""
    from r2genkg.use.evidence import sentence_ranges
    from r2genkg.use.evidence import sentence_influence
    from r2genkg.data.images import to_pixels

    reporter = Reporter(toy)
    model = reporter.model
    pixels = np.random.default_rng(1).integers(0, 60, (1, 56, 56)).astype(np.uint8)
    pixels[:, :, :28] += 150
    with torch.no_grad():
        visual = model.encode(to_pixels(pixels))
    ids, ranges = sentence_ranges(model.tokenizer, "Large left pleural effusion.")
    influence, _ = sentence_influence(model, visual, ids, ranges)
    order = influence[0].argsort(descending=True)

    def logp(cells) -> float:
        moved = visual.clone()
        moved[0, cells] = visual[0].mean(0)
        return float(sentence_influence(model, moved, ids, ranges)[1])

    assert logp(order[:10]) < logp(order[-10:])


def test_zero_kg_run_has_a_page(zero_kg, export, tmp_path):
    (e,) = report_images([export / "a.png"], zero_kg)
    assert (
        not e.report.nodes
        and not e.report.patches
        and all(not s.named and not s.tokens for s in e.sentences)
    )
    write_reports([e], tmp_path / "r.html", "zero")
    assert "Graph nodes named</span>" not in (tmp_path / "r.html").read_text()
    with pytest.raises(R2GenKGError, match="reads no graph"):
        Reporter(zero_kg)(np.zeros((60, 60), np.uint8), nodes=2)


def test_page_in_a_browser(toy, export, tmp_path):
    report_files([export / "a.png"], toy, tmp_path / "r.html")
    with open_page() as page:
        page.goto(f"file://{tmp_path / 'r.html'}")
        assert page.locator(".sentence").count() >= 1 and "not for clinical use" in page.inner_text(
            "body"
        )
        shown = page.locator(".film").first.bounding_box()
        assert shown["height"] == pytest.approx(
            shown["width"] * 90 / 60, rel=0.02
        )  # the image keeps its proportions
        sizes = page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert sizes and min(sizes) > 0 and not page.foreign
        page.set_viewport_size({"width": 400, "height": 900})
        assert (
            page.evaluate("document.documentElement.scrollWidth") <= 420
        )  # narrow screens need no scrolling sideways
        page.screenshot(path=tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 5_000


def test_real_files(toy, shared_data, tmp_path):
    texts = report_files([shared_data("cxr")], toy, tmp_path / "r.html")
    assert len(texts) == 3 and (tmp_path / "r.html").stat().st_size < 3_000_000


def test_run_folder_of_a_pipeline(toy, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "run").symlink_to(toy)
    assert run_folder(tmp_path / "p") == tmp_path / "p" / "run"
    assert isinstance(
        pd.read_parquet(run_folder(tmp_path / "p") / "vision_tokens" / "tokens.parquet"),
        pd.DataFrame,
    )


warnings.filterwarnings("ignore", category=FutureWarning)


@pytest.fixture
def odd_films(export) -> Path:
    """The export with a film that calls itself a CT, and one of two frames."""
    import pydicom

    ds = pydicom.dcmread(export / "series" / "IM0001")
    ds.Modality = "CT"
    ds.save_as(export / "ct.dcm")
    ds.Modality, ds.NumberOfFrames, ds.PixelData = "DX", 2, ds.PixelData * 2
    ds.save_as(export / "frames.dcm")
    return export


@pytest.mark.parametrize("suffix", ["html", "json", "txt"])
def test_doubts_about_a_film_stand_in_its_report(toy, odd_films, tmp_path, caplog, suffix):
    report_files([odd_films / "a.png", odd_films / "ct.dcm"], toy, tmp_path / f"r.{suffix}")
    written = (tmp_path / f"r.{suffix}").read_text()
    assert written.count("no chest radiograph: its modality is CT") == 1
    assert "ct.dcm: no chest radiograph: its modality is CT" in caplog.text  # printed, too
    if suffix == "json":
        notes = {row["image"]: row["notes"] for row in json.loads(written)}
        assert notes == {"a.png": [], "ct.dcm": ["no chest radiograph: its modality is CT"]}


def test_views_of_a_study_keep_their_notes_apart(toy, odd_films):
    files = [odd_films / "ct.dcm", odd_films / "frames.dcm"]
    (found,) = report_images(files, toy, one_study=True)
    assert found.report.notes == [
        "ct.dcm: no chest radiograph: its modality is CT",
        "frames.dcm: 2 frames; the first is read",
    ]


def test_strict_refuses_doubtful_films(toy, odd_films, tmp_path, caplog):
    for name in ("ct.dcm", "frames.dcm"):
        with pytest.raises(R2GenKGError, match=f"{name}: refused, .*without --strict it is read"):
            report_files([odd_films / name], toy, tmp_path / "r.html", strict=True)
    assert not (tmp_path / "r.html").exists()
    texts = report_files([odd_films], toy, strict=True)  # those of a folder are passed over
    assert set(texts) == {"a.png", "b.jpg", "IM0001"}
    assert "ct.dcm: refused" in caplog.text and "frames.dcm: refused" in caplog.text
