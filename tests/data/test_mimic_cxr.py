"""MIMIC-CXR as PhysioNet gives it, on invented files of the same form: sections, places, counts, refusals."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2genkg.core.files import R2GenKGError
from r2genkg.data.checks import prepare
from r2genkg.data.mimic_cxr import report_text
from r2genkg.data.readers import read_studies
from r2genkg.data.study import load_studies

BEFORE = "findings from the paragraph before the impression"
LAST = "findings from the last paragraph"
HEAD = " " * 33 + "FINAL REPORT\n"


def paragraphs(*parts: str) -> str:
    """A report in PhysioNet's layout: lines begin with a blank, and blank lines hold one."""
    return HEAD + "\n \n".join(" " + part.replace("\n", "\n ") for part in parts) + "\n"


REPORTS = {
    "usual": (
        paragraphs(
            "EXAMINATION:  CHEST (PA AND LAT)",
            "INDICATION:  ___F with cough",
            "FINDINGS: ",
            "The heart is large.\nNo effusion.",
            "IMPRESSION: ",
            "Cardiomegaly.",
        ),
        "The heart is large. No effusion.",
        "Cardiomegaly.",
        (),
    ),
    "heading and text on one line": (
        paragraphs("FINDINGS:  Clear lungs.", "IMPRESSION:  Normal."),
        "Clear lungs.",
        "Normal.",
        (),
    ),
    "several paragraphs": (
        paragraphs("FINDINGS:  Clear lungs.", "Large heart.", "IMPRESSION:  Cardiomegaly."),
        "Clear lungs. Large heart.",
        "Cardiomegaly.",
        (),
    ),
    "conclusion is the impression": (
        paragraphs("HISTORY:  Pain.", "A rib is broken.", "CONCLUSION:  Fracture."),
        "A rib is broken.",
        "Fracture.",
        (BEFORE,),
    ),
    "impression with a typing error": (
        paragraphs("FINDINGS:  Clear lungs.", "IMPRESSON:  Normal."),
        "Clear lungs.",
        "Normal.",
        (),
    ),
    "the view as heading": (
        paragraphs("PORTABLE AP CHEST:  Mild edema.", "IMPRESSION:  Edema."),
        "Mild edema.",
        "Edema.",
        (),
    ),
    "the view as title": (
        paragraphs("CHEST, PA LATERAL:", "INDICATION:  Cough.", "FINDINGS:  Clear lungs."),
        "Clear lungs.",
        "",
        (),
    ),
    "comparison is no finding": (
        paragraphs("COMPARISON:  Film of ___.", "IMPRESSION:  Normal."),
        "",
        "Normal.",
        (),
    ),
    "a notification is no finding": (
        paragraphs("NOTIFICATION:  By phone.", "At noon.", "IMPRESSION:  Normal."),
        "",
        "Normal.",
        (),
    ),
    "only the last paragraph": (
        paragraphs("AP CHEST, 3:42 P.M., ___", "HISTORY:  Edema.", "The edema is gone."),
        "The edema is gone.",
        "",
        (LAST,),
    ),
    "no heading at all": (
        paragraphs("CHEST RADIOGRAPH", "The lungs are clear."),
        "The lungs are clear.",
        "",
        (LAST,),
    ),
    "nothing": (paragraphs("CHEST RADIOGRAPH"), "", "", ()),
    "empty": ("", "", "", ()),
    "empty findings": (
        paragraphs("HISTORY:  Pain.", "Clear lungs.", "FINDINGS:", "IMPRESSION:  Normal."),
        "Clear lungs.",
        "Normal.",
        (BEFORE,),
    ),
    "wet read before": (
        " WET READ:  Effusion?\n ______________________\n"
        + paragraphs("FINDINGS:  No effusion.", "IMPRESSION:  Normal."),
        "No effusion.",
        "Normal.",
        ("with a wet read",),
    ),
    "addendum before": (
        " ADDENDUM:  Seen again.\n ______________________\n"
        + paragraphs("FINDINGS:  No effusion.", "IMPRESSION:  Normal."),
        "No effusion.",
        "Normal.",
        ("with an addendum",),
    ),
    "two reports": (
        paragraphs("FINDINGS:  Edema.", "IMPRESSION:  Edema.")
        + paragraphs("FINDINGS:  No edema.", "IMPRESSION:  Normal."),
        "No edema.",
        "Normal.",
        ("with several reports in one file",),
    ),
}


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", [" ", ""])
def test_sections(kind, line_end, blank):
    text, findings, impression, notes = REPORTS[kind]
    text = text.replace("\n \n", f"\n{blank}\n").replace("\n", line_end)
    found = report_text(text)
    assert (found.findings, found.impression, found.notes) == (findings, impression, notes)


def test_words_in_capitals_and_colons_are_no_heading():
    text = paragraphs(
        "FINDINGS:  Lines: none.\nET TUBE is high. Note:\n3 cm.", "IMPRESSION:  High tube."
    )
    assert report_text(text).findings == "Lines: none. ET TUBE is high. Note: 3 cm."


# --- places and files ---

#: (patient, study, split, {film: view}, kind of report or None)
STUDIES = [
    ("10000032", "50000001", "train", {"a1": "LATERAL", "a2": "PA"}, "usual"),
    ("10000032", "50000002", "train", {"b1": "AP"}, "conclusion is the impression"),
    ("10000099", "50000003", "validate", {"c1": "", "c2": "LL", "c3": "AP"}, "two reports"),
    ("19000001", "50000004", "test", {"d1": "PA"}, "no heading at all"),
    ("19000001", "50000005", "test", {"e1": "PA"}, "comparison is no finding"),
    ("19000001", "50000006", "test", {"f1": "PA"}, None),
]


def table(path: Path, columns: str, rows: list[str], packed: bool) -> None:
    text = "\n".join([columns, *rows]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def physionet(
    texts: Path,  # folder above p10
    films: Path,  # folder above p10
    tables: Path,
    suffix: str = ".jpg",
    packed: bool = True,
    metadata: bool = True,
) -> None:
    """Write MIMIC-CXR as PhysioNet gives it."""
    split, views, shade = [], [], 0
    for patient, study, part, views_of, kind in STUDIES:
        home = f"p{patient[:2]}/p{patient}"
        (films / home / f"s{study}").mkdir(parents=True)
        (texts / home).mkdir(parents=True, exist_ok=True)
        if kind:
            (texts / home / f"s{study}.txt").write_text(REPORTS[kind][0])
        for film, view in views_of.items():
            shade += 20
            picture = Image.fromarray(np.full((8, 8), shade, np.uint8))
            picture.save(films / home / f"s{study}/{film}{suffix}")
            split.append(f"{film},{study},{patient},{part}")
            views.append(f"{film},{patient},{study},{view},8,8")
    table(tables / "mimic-cxr-2.0.0-split.csv", "dicom_id,study_id,subject_id,split", split, packed)
    if metadata:
        columns = "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns"
        table(tables / "mimic-cxr-2.0.0-metadata.csv", columns, views, packed)


#: Name of a layout -> (texts, films, tables) below one folder.
LAYOUTS = {
    "one folder": ("files", "files", "."),
    "beside each other": ("mimic-cxr/files", "mimic-cxr-jpg/files", "mimic-cxr-jpg"),
    "wget": (
        "physionet.org/files/mimic-cxr/2.0.0/files",
        "physionet.org/files/mimic-cxr-jpg/2.0.0/files",
        "physionet.org/files/mimic-cxr-jpg/2.0.0",
    ),
    "reports unpacked elsewhere": ("mimic-cxr-reports/files", "files", "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", [True, False])
def test_prepared_from_any_layout(tmp_path, layout, packed):
    physionet(*(tmp_path / place for place in LAYOUTS[layout]), packed=packed)
    found = prepare("mimic-cxr", tmp_path, tmp_path / "studies.parquet", refuse_leaks=True)
    assert (found["read"], found["kept"]) == (6, 4)
    assert (found["train"], found["val"], found["test"]) == (2, 1, 1)
    assert found["dropped, without a report"] == found["dropped, without findings"] == 1
    assert found[f"noted, {BEFORE}"] == found[f"noted, {LAST}"] == 1
    assert found["noted, with several reports in one file"] == 1
    studies = {s.id: s for s in load_studies(tmp_path / "studies.parquet")}
    assert studies["s50000001"].findings == "The heart is large. No effusion."
    assert studies["s50000001"].patient == "10000032" and studies["s50000003"].split == "val"
    views = [[Path(image).stem for image in s.images] for s in studies.values()]
    assert views == [["a2", "a1"], ["b1"], ["c3", "c2", "c1"], ["d1"]]  # frontal films first


def test_without_metadata_films_keep_their_order(tmp_path):
    physionet(tmp_path / "files", tmp_path / "files", tmp_path, metadata=False)
    assert [Path(i).stem for i in read_studies(tmp_path)[0].images] == ["a1", "a2"]


def test_films_elsewhere(tmp_path):
    physionet(tmp_path / "home/files", tmp_path / "films/files", tmp_path / "home", suffix=".png")
    with pytest.raises(R2GenKGError, match="the images .*--images"):
        prepare("mimic-cxr", tmp_path / "home", tmp_path / "s.parquet")
    for images in (tmp_path / "films", tmp_path / "films/files"):
        found = prepare("mimic-cxr", tmp_path / "home", tmp_path / "s.parquet", images)
        assert found["kept"] == 4 and found["missing images"] == 0


def test_sections_from_the_csv(tmp_path):
    """The csv that MIT-LCP's script writes stands in for the files, and for one that is missing."""
    physionet(tmp_path / "texts", tmp_path / "files", tmp_path)
    (tmp_path / "mimic_cxr_sectioned.csv").write_text(
        "study,impression,findings,last_paragraph,comparison\n"
        's50000001,Cardiomegaly.,"The heart\nis  large. No effusion.",,\n'
        "s50000002,Fracture.,Two ribs are broken.,,\n"
        "s50000006,,,Clear lungs.,\n"
    )
    both = read_studies(tmp_path)
    assert both.report.noted["findings unlike the csv of sections"] == 1  # of study 2
    assert both.report.noted["text from the csv of sections"] == 1  # of study 6
    assert both[1].findings == "A rib is broken." and both[4].findings == "Clear lungs."
    shutil.rmtree(tmp_path / "texts")
    alone = read_studies(tmp_path, "mimic-cxr")
    assert [s.findings for s in alone] == [
        "The heart is large. No effusion.",
        "Two ribs are broken.",
        "Clear lungs.",
    ]
    assert alone.report.dropped == {"without a report": 3}


def test_impression_counts_where_it_is_asked_for(tmp_path):
    physionet(tmp_path / "files", tmp_path / "files", tmp_path)
    studies = read_studies(tmp_path, section="findings+impression")
    assert [s.id for s in studies][-1] == "s50000005"
    assert studies[-1].report("findings+impression") == "Normal."


# --- refusals ---


def test_annotation_json_is_not_at_physionet(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(R2GenKGError) as fault:
        prepare("mimic-cxr", tmp_path / "empty", tmp_path / "s.parquet")
    assert "annotation.json, which R2Gen's authors give, not PhysioNet" in str(fault.value)
    assert "mimic-cxr-2.0.0-split.csv" in str(fault.value) and "\n" not in str(fault.value)


def test_reports_missing_or_still_packed(tmp_path):
    physionet(tmp_path / "texts", tmp_path / "files", tmp_path)
    shutil.rmtree(tmp_path / "texts")
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(b"PK")
    with pytest.raises(R2GenKGError, match="the reports .*unpack .*mimic-cxr-reports.zip"):
        prepare("mimic-cxr", tmp_path, tmp_path / "s.parquet")


@pytest.mark.parametrize(
    "rows, fault",
    [
        (["a1,50000001,10000032,train", "a2,50000001,10000032,test"], "line 3: study 50000001 has"),
        (["a1,50000001,10000032,train", "a2,50000001,10000033,train"], "line 3: study 50000001"),
        (["a1,../x,10000032,train"], "line 2: .*expected numbers"),
        (["a1,50000001,10000032,holdout"], "line 2: split 'holdout' is none of"),
        (["../../a1,50000001,10000032,train"], "line 2: dicom_id .* is no name of a file"),
        (["a1,50000001,10000032"], "line 2: 3 fields"),
    ],
)
def test_odd_rows_are_named(tmp_path, rows, fault):
    table(tmp_path / "mimic-cxr-2.0.0-split.csv", "dicom_id,study_id,subject_id,split", rows, False)
    (tmp_path / "files/p10").mkdir(parents=True)
    with pytest.raises(R2GenKGError, match=f"mimic-cxr-2.0.0-split.csv: {fault}"):
        list(read_studies(tmp_path))


def test_cut_table(tmp_path):
    physionet(tmp_path / "files", tmp_path / "files", tmp_path)
    packed = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(R2GenKGError, match="split.csv.gz: cannot be read"):
        read_studies(tmp_path)


def test_the_split_table_itself_may_be_named(tmp_path):
    physionet(tmp_path / "files", tmp_path / "files", tmp_path, packed=False)
    assert len(read_studies(tmp_path / "mimic-cxr-2.0.0-split.csv")) == 4
