"""A generated campaign of damaged inputs against every reader.

Each case ends in one of two ways, never in another exception: `R2GenKGError`, one line that names the file; or studies
that are sound, everything left out being counted in `.report`. The second way is the documented one for damage that
leaves well-formed input behind: reports without findings, control characters and HTML inside a text, csv tables cut
between two rows, images whose pixel data is whole though the file's end is missing.
"""

import gzip
import io
import json
import math
import random
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError
from r2genkg.data.images import ImageCache, read_image
from r2genkg.data.splits import SPLITS
from r2genkg.data.study import Study, save_studies
from r2genkg.data.readers import read_studies

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


# --- one sound file per reader --------------------------------------------------------------------------------------


def xml(n: int = 1, findings: str = "The lungs are clear. No effusion.") -> bytes:
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{n}"/><Abstract>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">Normal.</AbstractText></Abstract>'
        f'<parentImage id="CXR{n}_1"/></eCitation>'
    ).encode()


def tgz(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def study(n: int, **other) -> dict:
    return {
        "id": f"CXR{n}_IM-1",
        "report": "The lungs are clear. No effusion.",
        "image_path": [f"CXR{n}_IM-1/0.png"],
    } | other


def parquet(folder: Path) -> bytes:
    save_studies(
        [
            Study(f"s{i}", (str(folder / "a.png"),), "Clear lungs.", labels={"Edema": 0.0})
            for i in range(5)
        ],
        folder / "base.parquet",
    )
    return (folder / "base.parquet").read_bytes()


R2GEN = json.dumps({"train": [study(1), study(2)], "val": [study(3)], "test": [study(4)]}).encode()
OPENI = (
    b'uid,findings,impression\n1,"The lungs are clear, both.",Normal.\n'
    b'2,Large heart.,Cardiomegaly.\n3,"Small ""left"" effusion.",x\n'
)
VIEWS = b"uid,filename,projection\n1,1_a.png,Lateral\n1,1_b.png,Frontal\n2,2_a.png,Frontal\n"
PLUS = (
    b"path_to_image,deid_patient_id,section_findings,split\ntrain/p1/s1/v1.jpg,p1,Lungs are clear.,train\n"
    b'train/p1/s1/v2.jpg,p1,Lungs are clear.,train\ntrain/p2/s1/v1.jpg,p2,"Edema, mild.",valid\n'
)
LINES = "\n".join(
    json.dumps({"path_to_image": f"train/p{i}/s1/v1.jpg"} | dict.fromkeys(LABELS, 1.0))
    for i in (1, 2)
).encode()
OWN = b'id,image,findings,split,Edema\na,a.png;b.png,Lungs are clear.,train,1\nb,c.png,"Edema, mild.",test,\n'
IDS = b'{"train": ["CXR1_IM-1"], "val": ["CXR2_IM-1"], "test": ["CXR3_IM-1"]}'
BASES = {
    "annotation.json": R2GEN,
    "1.xml": xml(),
    "reports.tgz": tgz({f"e/{i}.xml": xml(i) for i in range(1, 4)}),
    "indiana_reports.csv": OPENI,
    "indiana_projections.csv": VIEWS,
    "plus.csv": PLUS,
    "labels.json": LINES,
    "own.csv": OWN,
    "ids.json": IDS,
    "studies.parquet": parquet,
}


def read(folder: Path, name: str):
    """Read the corpus to which the file `name` belongs."""
    if name == "indiana_projections.csv":
        (folder / "indiana_reports.csv").write_bytes(OPENI)
        name = "indiana_reports.csv"
    if name == "labels.json":
        (folder / "plus.csv").write_bytes(PLUS)
        return read_studies(folder / "plus.csv", labels=folder / name)
    if name == "ids.json":
        (folder / "annotation.json").write_bytes(R2GEN)
        return read_studies(folder / "annotation.json", splits=folder / name)
    return read_studies(folder / name)


def sound(studies, folder: Path) -> None:
    """What holds for studies from any reader, whatever it was fed."""
    assert studies.report.read - studies.report.dropped.total() == len(studies)
    assert len({s.id for s in studies}) == len(studies)
    for s in studies:
        assert (
            s.findings.strip()
            and s.split in SPLITS
            and isinstance(s.id, str)
            and s.id
            and "/" not in s.id
        )
        for text in (s.id, s.findings, s.impression, s.patient, *s.images):
            assert isinstance(text, str) and not CONTROL.search(text)
            text.encode("utf-8")
        for image in s.images:
            assert Path(image).is_relative_to(folder) and ".." not in Path(image).parts
        for value in (s.labels or {}).values():
            assert value in (0, 1, -1) and not math.isnan(value)
    save_studies(studies, folder / "out.parquet")  # what was read can be kept


def attempt(folder: Path, name: str, content: bytes) -> str:
    """Write the damaged file, read it; "refused" or "read"."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content)
    try:
        studies = read(folder, name)
    except R2GenKGError as e:
        assert name in str(e) and "\n" not in str(e) and len(str(e)) < 700, str(e)
        return "refused"
    sound(studies, folder)
    return "read"


def base(folder: Path, name: str) -> bytes:
    folder.mkdir(exist_ok=True, parents=True)
    content = BASES[name]
    return content(folder) if callable(content) else content


# --- generated damage -------------------------------------------------------------------------------------------------

TEXTS = [name for name in BASES if name not in ("reports.tgz", "studies.parquet")]
REFUSED_WHEN_CUT = (
    "annotation.json",
    "1.xml",
    "reports.tgz",
    "ids.json",
    "studies.parquet",
)  # no proper beginning of these is whole


@pytest.mark.parametrize("name", BASES)
def test_whole_file_is_read(tmp_path, name):
    assert attempt(tmp_path, name, base(tmp_path / "base", name)) == "read"


@pytest.mark.parametrize("part", range(12))
@pytest.mark.parametrize("name", BASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated(tmp_path, name, part):
    content = base(tmp_path / "base", name)
    length = len(content) * part // 12 - (part % 3)  # not always at a line's end
    message = attempt(tmp_path, name, content[: max(length, 0)])
    if name in REFUSED_WHEN_CUT:
        assert message == "refused"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", BASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes(tmp_path, name, seed):
    rng, content = random.Random(f"{name}{seed}"), bytearray(base(tmp_path / "base", name))
    for _ in range(rng.choice((1, 3, 10))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    attempt(tmp_path, name, bytes(content))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp500", "utf-8-sig"])
@pytest.mark.parametrize("name", TEXTS)
def test_other_encodings(tmp_path, name, encoding):
    message = attempt(tmp_path, name, base(tmp_path / "base", name).decode().encode(encoding))
    if name.endswith(".csv"):
        assert message == ("read" if encoding == "utf-8-sig" else "refused")


@pytest.mark.parametrize(
    "fill",
    [
        b"",
        b"\x00" * 300,
        b"\xff" * 300,
        b"\n\n\n",
        b"<html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"[" * 20_000,
    ],
    ids=["empty", "nul", "ff", "lines", "html", "lfs", "deep"],
)
@pytest.mark.parametrize("name", BASES)
def test_something_else_altogether(tmp_path, name, fill):
    message = attempt(tmp_path, name, fill)
    assert message == "refused" or (
        name == "labels.json" and not fill.strip()
    )  # no label line at all is read as no labels


VALUES = {
    "null": None,
    "number": 3,
    "fraction": 0.5,
    "NaN": math.nan,
    "true": True,
    "list": ["x"],
    "object": {"x": 1},
    "blank": "  ",
}
FIELDS = ("id", "report", "image_path", "impression", "subject_id", "image_path[0]")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", FIELDS)
def test_wrong_types_in_json(tmp_path, field, value):
    broken = (
        study(1, **{field: VALUES[value]})
        if "[" not in field
        else study(1, image_path=[VALUES[value]])
    )
    message = attempt(
        tmp_path, "annotation.json", json.dumps({"train": [broken, study(2)]}).encode()
    )
    if value == "object" or (value == "fraction" and field != "image_path[0]"):
        assert message == "refused"
    if field == "report" and value in ("null", "NaN", "blank"):
        assert message == "read"  # dropped and counted


@pytest.mark.parametrize(
    "tree",
    [
        {"a\nb": []},
        {"train": [{"id": "a", "x\ny\ud800": 1}]},
        {"train": [study(1)], "train ": [study(1)]},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_keys_in_json(tmp_path, tree):
    assert attempt(tmp_path, "annotation.json", json.dumps(tree).encode()) == "refused"


def test_number_beyond_limits(tmp_path):
    assert (
        attempt(tmp_path, "annotation.json", b'{"train": [{"id": ' + b"9" * 5000 + b"}]}")
        == "refused"
    )
    assert attempt(tmp_path, "own.csv", b'id,image,"fin\ndinks"\na,b,c\n') == "refused"


def test_deeply_nested_json(tmp_path):
    assert (
        attempt(tmp_path, "annotation.json", b'{"train": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
        == "refused"
    )


HOSTILE = {
    "control": "Clear\x00 lungs\x07.",
    "surrogate": "Clear \ud800 lungs.",
    "html": "<script>alert(1)</script> Clear & dry.",
    "tab": "Clear\tlungs.\r\nNo effusion.",
    "rtl": "Clear \u202elungs.",
    "long": "effusion " * 20_000,
    "formula": '=HYPERLINK("http://x")',
    "one": "x",
    "nan": "nan",
    "format": "{0} %s ${HOME}",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    "name",
    ["annotation.json", "1.xml", "own.csv", "plus.csv", "indiana_reports.csv", "reports.tgz"],
)
def test_hostile_text(tmp_path, name, kind):
    text = HOSTILE[kind]
    quoted = '"' + text.replace('"', '""') + '"'
    content = {
        "annotation.json": lambda: json.dumps({"train": [study(1, report=text)]}),
        "1.xml": lambda: (
            xml(1, text if kind == "html" else text.replace("&", "&amp;")).decode()
            if kind != "surrogate"
            else text
        ),
        "own.csv": lambda: f"id,image,findings\na,a.png,{quoted}\n",
        "plus.csv": lambda: (
            f"path_to_image,deid_patient_id,section_findings\nt/p/v.jpg,p,{quoted}\n"
        ),
        "indiana_reports.csv": lambda: f"uid,findings,impression\n1,{quoted},x\n",
        "reports.tgz": lambda: "",
    }[name]().encode("utf-8", "surrogatepass")
    if name == "reports.tgz":
        content = tgz({"1.xml": xml(1, "" if kind == "surrogate" else text.replace("&", "&amp;"))})
    message = attempt(tmp_path, name, content)
    if kind in ("html", "rtl", "formula", "format") and "xml" not in name and name != "reports.tgz":
        assert message == "read"


CLIMBING = [
    "../x.png",
    "a/../../x.png",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\x00b.png",
    "../images2/x.png",
    "images/../../x.png",
]


@pytest.mark.parametrize("path", CLIMBING)
@pytest.mark.parametrize(
    "name",
    [
        "annotation.json",
        "own.csv",
        "indiana_projections.csv",
        "plus.csv",
        "studies.parquet",
        "1.xml",
    ],
)
def test_paths_that_leave_the_folder(tmp_path, name, path):
    if name == "studies.parquet" and path.startswith("/"):
        pytest.skip("an own studies.parquet may name images by their full path")
    if name == "studies.parquet":
        row = dict(
            id="a",
            images=[path],
            findings="Clear.",
            impression="",
            split="train",
            source="",
            patient="",
            labels=None,
        )
        pq.write_table(
            pa.Table.from_pylist([row], schema=pq.read_schema(io.BytesIO(parquet(tmp_path)))),
            tmp_path / "p.parquet",
        )
        content = (tmp_path / "p.parquet").read_bytes()
    else:
        content = {
            "annotation.json": json.dumps({"train": [study(1, image_path=[path])]}),
            "own.csv": f'id,image,findings\na,"{path}",Clear.\n',
            "indiana_projections.csv": f"uid,filename,projection\n1,{path},Frontal\n",
            "plus.csv": f"path_to_image,deid_patient_id,section_findings\n{path},p,Lungs are clear.\n",
            "1.xml": xml().decode().replace("CXR1_1", path.removesuffix(".png")),
        }[name].encode()
    message = attempt(tmp_path, name, content)
    if ".." in path and (name, path) not in {("1.xml", ".."), ("plus.csv", "..")}:
        assert message == "refused"


ARCHIVES = {
    "bomb": lambda: tgz({"1.xml": bytes(30_000_000)}),
    "bomb of another name": lambda: tgz({"data.bin": bytes(30_000_000)}),
    "many": lambda: tgz({f"{i}.xml": xml(i) for i in range(1, 300)})[:-20],
    "members climb": lambda: tgz({"../../1.xml": xml(1), "/etc/2.xml": xml(2)}),
    "no report": lambda: tgz({"readme.txt": b"x"}),
    "plain gzip": lambda: gzip.compress(b"text" * 200),
    "gzip of nothing": lambda: gzip.compress(b""),
    "doctype": lambda: tgz({"1.xml": b'<!DOCTYPE a [<!ENTITY b "c">]>' + xml(1)[39:]}),
    "twice": lambda: tgz({"a/1.xml": xml(1), "b/1.xml": xml(1)}),
    "overlong": lambda: gzip.compress(bytes(130_000_000), 1),
    "damaged header": lambda: damaged_header(),
}


def damaged_header() -> bytes:
    """The second member's header is spoilt: a plain reader would stop there without a word."""
    data = bytearray(gzip.decompress(tgz({"1.xml": xml(1), "2.xml": xml(2)})))
    data[1024:1200] = b"\xaa" * 176
    return gzip.compress(bytes(data))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(tmp_path, kind):
    message = attempt(tmp_path, "reports.tgz", ARCHIVES[kind]())
    if kind == "members climb":
        assert (
            message == "read" and not (tmp_path.parent / "1.xml").exists()
        )  # nothing is unpacked to disk
    elif kind not in ("no report", "gzip of nothing"):
        assert message == "refused"


# --- images -----------------------------------------------------------------------------------------------------------

PIXELS = (
    np.add.outer(np.arange(60), np.arange(80)) * 1.8
    + np.random.default_rng(0).integers(0, 4, (60, 80))
).astype(np.uint8)


def picture(kind: str, **tags) -> bytes:
    out = io.BytesIO()
    if kind == "dcm":
        from pydicom.dataset import Dataset, FileMetaDataset

        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.1.2.1",
            "1.2.840.10008.5.1.4.1.1.7",
        )
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
        ds.SOPClassUID, ds.PhotometricInterpretation, ds.Rows, ds.Columns = (
            "1.2.840.10008.5.1.4.1.1.7",
            "MONOCHROME2",
            60,
            80,
        )
        ds.SamplesPerPixel, ds.PixelRepresentation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = (
            1,
            0,
            16,
            12,
            11,
        )
        ds.PixelData = (PIXELS.astype("<u2") * 16).tobytes()
        for name, value in tags.items():
            setattr(ds, name, value)
        ds.save_as(out, enforce_file_format=True)
    else:
        Image.fromarray(PIXELS).save(out, {"png": "PNG", "jpg": "JPEG"}[kind])
    return out.getvalue()


def attempt_image(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        gray = read_image(path)
    except R2GenKGError as e:
        assert path.name in str(e) and "\n" not in str(e)
        return "refused"
    assert gray.dtype == np.uint8 and gray.ndim == 2 and gray.size
    return "read"


@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_truncated_image(tmp_path, kind, part):
    content = picture(kind)
    assert (
        attempt_image(tmp_path / f"cut.{kind}", content[: len(content) * part // 10]) == "refused"
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
@pytest.mark.filterwarnings("ignore")  # pydicom warns of odd values before it fails
def test_flipped_bytes_in_image(tmp_path, kind, seed):
    rng, content = random.Random(f"{kind}{seed}"), bytearray(picture(kind))
    for _ in range(rng.choice((1, 4, 20))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    attempt_image(tmp_path / f"flip.{kind}", bytes(content))


def test_png_whose_pixels_unpack_to_far_more(tmp_path):
    header = b"IHDR" + (7000).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    data = b"IDAT" + zlib.compress(bytes(200_000_000), 1)

    def chunk(body):
        return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(data) + chunk(b"IEND")
    assert attempt_image(tmp_path / "bomb.png", bomb) in (
        "refused",
        "read",
    )  # 49 million pixels at most are decoded


@pytest.mark.parametrize(
    "tags, message",
    [
        (dict(Rows=60_000, Columns=60_000), "3,?600,?000,?000|60000 x 60000"),
        (dict(NumberOfFrames=5), "less than expected"),
        (dict(PhotometricInterpretation="PALETTE COLOR"), "Palette Color Lookup Table"),
        (dict(Rows=0), "dcm"),
        (dict(BitsStored=40), "dcm"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_dicom(tmp_path, tags, message):
    (tmp_path / "odd.dcm").write_bytes(picture("dcm", **tags))
    with pytest.raises(R2GenKGError, match=message) as caught:
        read_image(tmp_path / "odd.dcm")
    assert "odd.dcm" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_rescale_that_is_no_number_is_left_out(tmp_path):
    (tmp_path / "plain.dcm").write_bytes(picture("dcm"))
    (tmp_path / "odd.dcm").write_bytes(picture("dcm", RescaleSlope="nan", RescaleIntercept="0"))
    assert (read_image(tmp_path / "odd.dcm") == read_image(tmp_path / "plain.dcm")).all()


@pytest.mark.parametrize("part", range(8))
def test_cache_after_a_kill(tmp_path, part):
    paths = []
    for i in range(9):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.roll(PIXELS, i)).save(paths[-1])
    want = ImageCache(tmp_path / "cache", 32).read(paths)
    cache = ImageCache(tmp_path / "cache", 32)
    for file, share in ((cache.pixel_file, part), (cache.index_file, 7 - part)):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * share // 7])
    for _ in range(2):  # the second time everything is there
        cache = ImageCache(tmp_path / "cache", 32)
        assert (cache.read(paths) == want).all() and len(cache.pixels) == 9
    assert (
        cache.index_file.stat().st_size == 9 * 17 and cache.pixel_file.stat().st_size == 9 * 32**2
    )
