"""Readers on the real development files, and one clear line for each malformed input."""

import csv
import io
import json
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError, read_json
from r2genkg.data.images import ImageCache, load_image, read_image, to_pixels
from r2genkg.data.tabular import join_image
from r2genkg.data.splits import SPLITS
from r2genkg.data.study import check_images, load_studies, save_studies
from r2genkg.data.openi import read_openi_package
from r2genkg.data.readers import read_studies
from r2genkg.data.cleaning import clean_report


def sizes(studies) -> dict[str, int]:
    return {split: sum(s.split == split for s in studies) for split in SPLITS}


# --- real files ---


@pytest.fixture(scope="module")
def package():
    return read_openi_package()


def test_r2gen_annotation(shared_data):
    path = shared_data("iu_xray", "annotation.json")
    studies = read_studies(path)
    assert sizes(studies) == {"train": 2069, "val": 296, "test": 90} and not studies.report.dropped
    assert all(len(s.images) == 2 and s.findings for s in studies)
    assert studies[0].images[0] == str(path.parent / "images" / studies[0].id / "0.png")
    with pytest.raises(R2GenKGError, match="4910 of 4910 images are missing"):
        check_images(studies)


def test_openi_tables_say_what_the_annotation_says(shared_data):
    annotation = read_studies(shared_data("iu_xray", "annotation.json"))
    tables = read_studies(
        shared_data("iu_xray", "indiana_reports.csv"),
        splits=shared_data("iu_xray", "r2gen_split_ids.json"),
    )
    by_id = {s.id: s for s in tables}
    assert len(annotation) == 2455
    for study in annotation:
        other = by_id[study.id.split("_")[0]]
        assert (other.findings, other.split) == (study.findings, study.split)
    assert all(s.impression for s in tables[:20]) and all(len(s.images) >= 2 for s in tables)


def test_openi_package_counts(package):
    assert package.report.read == 3955
    assert package.report.dropped == {"without findings": 530} and package.report.noted == {
        "without images": 104
    }
    assert len(package) == 3425 and len({s.id for s in package}) == 3425
    shares = {split: n / len(package) for split, n in sizes(package).items()}
    assert (
        abs(shares["train"] - 0.7) < 0.03
        and abs(shares["val"] - 0.1) < 0.02
        and abs(shares["test"] - 0.2) < 0.03
    )


def test_published_split_on_the_package(package, shared_data):
    studies = read_openi_package(splits=shared_data("iu_xray", "r2gen_split_ids.json"))
    assert (
        sizes(studies) == {"train": 2069, "val": 296, "test": 590}
        and studies.report.dropped["not in the split file"] == 470
    )
    annotation = {
        s.id.split("_")[0]: s.findings
        for s in read_studies(shared_data("iu_xray", "annotation.json"))
    }
    assert sum(annotation.get(s.id) == s.findings for s in studies) == 2455


def test_cleaning_gives_the_measured_statistics(shared_data):
    studies = [
        s for s in read_studies(shared_data("iu_xray", "annotation.json")) if s.split == "train"
    ]
    cleaned = [clean_report(s.findings) for s in studies]
    words = [len(text.split()) for text in cleaned]
    assert round(sum(words) / len(words), 1) == 36.4 and sum(n > 60 for n in words) == 153
    assert (
        sum("xxxx" in text for text in cleaned) == 907 and len(cleaned) - len(set(cleaned)) == 343
    )


def test_package_survives_parquet(package, tmp_path):
    save_studies(package, tmp_path / "studies.parquet")
    loaded = load_studies(tmp_path / "studies.parquet")
    assert [(s.id, s.findings, s.impression, s.split) for s in loaded] == [
        (s.id, s.findings, s.impression, s.split) for s in package
    ]


@pytest.mark.parametrize(
    "name, shape",
    [
        ("00000001_000.png", (512, 512)),
        ("16747_3_1.jpg", (885, 1036)),
        ("1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm", (1024, 1024)),
    ],
)
def test_real_images(shared_data, name, shape):
    path = shared_data("cxr", name)
    gray = read_image(path)
    assert gray.dtype == np.uint8 and gray.shape == shape
    small = load_image(path)
    assert small.shape == (224, 224) and small.std() > 30
    thirds = small[60:150].reshape(90, 8, 28).mean((0, 2))  # bright mediastinum between dark lungs
    assert thirds[3:5].max() > thirds[2] and thirds[3:5].max() > thirds[5]
    pixels = to_pixels(small[None])
    assert pixels.shape == (1, 3, 224, 224) and -2.2 < pixels.min() < pixels.max() < 2.7


def test_cache_holds_the_real_images(shared_data, tmp_path, monkeypatch):
    paths = sorted(shared_data("cxr").iterdir())
    images = ImageCache(tmp_path, 96).read(paths)
    assert (images == np.stack([load_image(p, 96) for p in paths])).all()
    monkeypatch.setattr("r2genkg.data.images.load_image", lambda *_: pytest.fail("decoded again"))
    assert (ImageCache(tmp_path, 96).read(paths) == images).all()


# --- malformed inputs: one line that names the file ---


def xml(uid="CXR1", findings="The lungs are clear.", image="CXR1_1", head="") -> str:
    return (
        f'{head}<eCitation><uId id="{uid}"/><AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<parentImage id="{image}"/></eCitation>'
    )


def tgz(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def labels(path="train/p1/s1/v1.jpg", **other) -> str:
    return json.dumps({"path_to_image": path} | dict.fromkeys(LABELS) | other)


def study(**other) -> dict:
    return {"id": "s1", "report": "Clear.", "image_path": ["s1/0.png"]} | other


ENTITIES = '<!DOCTYPE e [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE e [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
PLUS = "path_to_image,deid_patient_id,section_findings\n"
FAULTS = [  # file name, content, what the line must say
    ("r.json", "", "not valid JSON"),
    ("r.json", b"\xff\xfe{", "not UTF-8"),
    ("r.json", '{"train": [', "not valid JSON"),
    ("r.json", "[]", "train, val, test"),
    ("r.json", "{}", "train, val, test"),
    ("r.json", "null", "train, val, test"),
    ("r.json", {"trian": []}, "'trian'"),
    ("r.json", {"train": "x"}, "list of studies"),
    ("r.json", {"train": ["x"]}, r"train\[0\]"),
    ("r.json", {"train": [{"report": "x"}]}, "no key 'id'"),
    ("r.json", {"train": [{"id": "a"}]}, "no key 'report'"),
    ("r.json", {"train": [study(report=["x"])]}, "got list"),
    ("r.json", {"train": [study(id=True)]}, "got bool"),
    ("r.json", {"train": [study(id="")]}, "without an id"),
    ("r.json", {"train": [study(id="../../x")]}, "file name"),
    ("r.json", {"train": [study(), study()]}, "there twice"),
    ("r.json", {"train": [study()], "test": [study()]}, "there twice"),
    ("r.json", {"train": [study(image_path=7)]}, "list of paths"),
    ("r.json", {"train": [study(image_path=[None])]}, "outside"),
    ("r.json", {"train": [study(image_path=["../x.png"])]}, "outside"),
    ("r.json", {"train": [study(image_path=["/etc/passwd"])]}, "outside"),
    ("1.xml", "", "well-formed"),
    ("1.xml", "<eCitation>", "well-formed"),
    ("1.xml", "<other/>", "no uId"),
    ("1.xml", xml(uid="../1"), "no uId like"),
    ("1.xml", xml(head=ENTITIES, findings="&b;"), "DOCTYPE"),
    ("1.xml", xml(head=EXTERNAL, findings="&a;"), "DOCTYPE"),
    ("1.xml", xml(image="../../1"), "outside"),
    ("1.xml", xml(findings="\x01"), "well-formed"),
    ("1.xml", xml(findings="x" * 2_000_000), "larger than"),
    ("a.tgz", b"", "not a readable"),
    ("a.tgz", b"no archive", "not a readable"),
    ("a.tgz", tgz(("1.xml", b"<a>")), "a.tgz: 1.xml"),
    ("a.tgz", tgz(("1.xml", xml().encode()))[:-9], "not a readable"),
    ("a.tgz", tgz(("1.xml", bytes(2_000_000))), "far smaller"),
    ("a.tgz", tgz(("1.xml", xml().encode()), ("2.xml", xml().encode())), "there twice"),
    ("indiana_reports.csv", "uid,findings\n1,x\n", "no column impression"),
    ("indiana_reports.csv", "uid,findings,impression\n1,x\n", "2 fields"),
    ("indiana_reports.csv", "uid,findings,impression\none,x,y\n", "not a number"),
    ("indiana_reports.csv", "uid,findings,impression\n1,x,y\n1,x,y\n", "there twice"),
    ("indiana_reports.csv", 'uid,findings,impression\n1,"x,y\n', "well-formed csv"),
    ("plus.csv", "path_to_image,deid_patient_id\n", "no column section_findings"),
    ("plus.csv", PLUS + ",p1,Clear lungs.\n", "path_to_image is empty"),
    ("plus.csv", PLUS + "../../v.jpg,p1,Clear lungs.\n", "outside"),
    ("plus.csv", PLUS + "/etc/v.jpg,p1,Clear lungs.\n", "outside|file name"),
    ("plus.csv", (PLUS + "t/v.jpg,p1,Clear \u00e9.\n").encode("latin-1"), "not UTF-8"),
    ("own.csv", "", "found: nothing"),
    (
        "own.csv",
        "name,image,findings\n",
        "no column id; found: name, image, findings; id may be called id, studyid",
    ),
    ("own.csv", "id;image;findings\n", "separated by semicolons"),
    (
        "own.csv",
        "id,path,file,findings\na,a.png,b.png,Clear.\n",
        "could all be image; call one image",
    ),
    ("own.csv", "id,image,findings\na,../a.png,Clear.\n", "outside"),
    ("own.csv", "id,image,findings\n,a.png,Clear.\n", "line 2: a study without an id"),
    ("own.csv", "id,image,findings,split\na,a.png,x,best\n", "'best'"),
    ("own.csv", "id,image,findings,Edema\na,a.png,x,9\n", "Edema is 9"),
    ("own.csv", b"\x89PNG\r\n\x1a\n" + bytes(50), "not UTF-8"),
    ("s.parquet", b"", "not a readable parquet"),
    ("s.parquet", b"PAR1" + bytes(40) + b"PAR1", "not a readable parquet"),
    ("notes.doc", "x", "form unknown"),
]


@pytest.mark.parametrize(
    "name, content, fault", FAULTS, ids=[f"{i}-{n}" for i, (n, _, _) in enumerate(FAULTS)]
)
def test_malformed_corpus(tmp_path, name, content, fault):
    path = tmp_path / name
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(R2GenKGError, match=fault) as caught:
        read_studies(path, image_root=tmp_path / "images")
    assert name in str(caught.value) and "\n" not in str(caught.value)


LABEL_FAULTS = [
    ("{", "line 1: not a JSON object"),
    ("[1]", "expected an object"),
    ("{}", "no key 'path_to_image'"),
    (labels(Edema=3), "Edema is '3'"),
    (labels(Edema="1"), "Edema is '1'"),
    (labels(path=7), "got int"),
    (labels() + "\n" + labels()[:-5], "line 2"),
]


@pytest.mark.parametrize("content, fault", LABEL_FAULTS)
def test_malformed_label_lines(tmp_path, content, fault):
    (tmp_path / "plus.csv").write_text(PLUS + "train/p1/s1/v1.jpg,p1,Clear lungs.\n")
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(R2GenKGError, match=fault) as caught:
        read_studies(tmp_path / "plus.csv", labels=tmp_path / "l.json")
    assert "l.json" in str(caught.value)


def test_chexpert_plus_joins_by_path_not_by_row(tmp_path):
    rows = [f"train/p{i}/s1/v1.jpg" for i in range(6)]
    with open(tmp_path / "plus.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                PLUS.strip().split(","),
                *([r, f"p{i}", f"Report number {i}."] for i, r in enumerate(rows)),
            ]
        )
    lines = [labels(r.replace(".jpg", ".png"), Edema=float(i % 2)) for i, r in enumerate(rows)]
    (tmp_path / "l.json").write_text("\n".join(lines[:0:-1]))  # other order, the first one missing
    studies = read_studies(tmp_path / "plus.csv", labels=tmp_path / "l.json")
    assert [s.labels for s in studies] == [None] + [{"Edema": float(i % 2)} for i in range(1, 6)]
    assert studies.report.noted == {"studies without labels": 1} and studies[2].images[0].endswith(
        "PNG/train/p2/s1/v1.png"
    )


def test_lenient_about_the_blank_key_and_says_so(tmp_path):
    (tmp_path / "annotation.json").write_text(
        json.dumps({"train": [study()], "test    ": [study(id="s2")]})
    )
    with pytest.warns(UserWarning, match="'test    ' is read as 'test'"):
        studies = read_studies(tmp_path)
    assert sizes(studies) == {"train": 1, "val": 0, "test": 1}


def test_an_annotation_file_is_its_own_split_list(tmp_path):
    (tmp_path / "r2.json").write_text(
        json.dumps(
            {
                "train": [study(image_path=["s1.png"])],
                "test": [study(id="s2", image_path=["s2.png"])],
            }
        )
    )
    studies = read_studies(tmp_path / "r2.json", splits=tmp_path / "r2.json")
    assert {s.id: s.split for s in studies} == {"s1": "train", "s2": "test"}


def test_nothing_is_left_out_in_silence(tmp_path, caplog):
    (tmp_path / "own.csv").write_text("id,image,findings\na,a.png,Clear.\nb,b.png,\nc,c.png,NaN\n")
    with caplog.at_level("WARNING", logger="r2genkg"):
        studies = read_studies(tmp_path / "own.csv")
    assert (
        studies.report.dropped == {"without findings": 2}
        and "dropped: 2 without findings" in caplog.text
    )


def png(width=64, height=48) -> bytes:
    out = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    ).save(out, "PNG")
    return out.getvalue()


IMAGE_FAULTS = {
    "empty.png": b"",
    "text.png": b"this is text, no picture",
    "half.png": png()[:1500],
    "head.png": png()[:20],
    "half.jpg": b"\xff\xd8\xff\xe0" + bytes(20),
    "gif.png": b"GIF89a" + bytes(30),
    "text.dcm": b"text" * 60,
    "preamble.dcm": bytes(128) + b"DICM",
    "zeros.dcm": bytes(500),
}


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_malformed_image(tmp_path, name):
    (tmp_path / name).write_bytes(IMAGE_FAULTS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(R2GenKGError, match=name) as caught:
            read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [9_000, 14_000, 60_000])
def test_huge_image_is_refused_before_decoding(tmp_path, side):
    data = bytearray(png())
    data[16:24] = side.to_bytes(4, "big") * 2  # the header alone claims the size
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(data)
    with pytest.raises(R2GenKGError, match="huge.png.*pixels"):
        read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("name", ["missing.png", ".", "nul\0.png"])
def test_image_that_is_none(tmp_path, name):
    with pytest.raises(R2GenKGError):
        read_image(tmp_path / name)
    if name == "missing.png":
        with pytest.raises(R2GenKGError, match="missing.png"):
            ImageCache(tmp_path / "cache").read([tmp_path / name])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode(tmp_path, mode):
    gray = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    image = (
        Image.fromarray(gray.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(gray).convert(mode)
    )
    image.save(tmp_path / "x.png")
    got = read_image(tmp_path / "x.png")
    assert got.shape == (48, 64) and got.dtype == np.uint8
    assert (
        np.abs(got.astype(int) - gray).max() <= (255 if mode == "1" else 1)
        and got[-8:].mean() > got[:8].mean()
    )


def test_path_names_are_kept(tmp_path):
    (tmp_path / "own.csv").write_text("id,image,findings,patient\na,sub dir/\u00e9.png,Clear.,p\n")
    assert (
        Path(read_studies(tmp_path / "own.csv")[0].images[0]) == tmp_path / "sub dir" / "\u00e9.png"
    )


def test_absolute_paths_in_a_table_with_a_relative_name(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.csv").write_text(
        f"id,image,findings\n1,{tmp_path / 'c' / 'x.png'},Clear.\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        [s.images for s in read_studies("c/a.csv")]
        == [s.images for s in read_studies(tmp_path / "c" / "a.csv")]
        == [(str(tmp_path / "c" / "x.png"),)]
    )
    with pytest.raises(R2GenKGError, match="outside the image folder"):
        join_image("c", "../y.png", "here")


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}
