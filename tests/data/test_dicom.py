"""DICOM films of every kind in public bug reports, and all files that pydicom ships: read, or refused in one line."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from r2genkg.core.files import R2GenKGError
from r2genkg.data.dicom import NotAChestRadiograph, read_dicom
from r2genkg.data.images import read_image

#: Python's own words for a failure, which a user must not see.
UNCLEAR = re.compile(
    "has no attribute|NoneType|not subscriptable|unsupported operand|ufunc|invalid literal|Cannot handle this data"
    "|not understood|not supported between|unpack_from|has no len|could not convert string|broken data stream|Traceback"
)


def drawn_chest() -> np.ndarray:
    """Two dark lungs and a bright heart, (96, 80) with values 40 to 220."""
    y, x = np.mgrid[:96, :80]
    chest = np.full((96, 80), 150.0) + y / 8
    for centre in (25, 55):
        chest[((x - centre) / 13) ** 2 + ((y - 45) / 33) ** 2 < 1] = 40
    chest[((x - 43) / 12) ** 2 + ((y - 60) / 16) ** 2 < 1] = 220
    return chest.astype(np.uint8)


CHEST = drawn_chest()
STORED = CHEST.astype(np.uint16) * 16


def film(stored=STORED, photometric="MONOCHROME2", bits=12, **elements) -> Dataset:
    """An uncompressed film; an element given as None is left out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Modality, ds.BodyPartExamined, ds.PhotometricInterpretation = "DX", "CHEST", photometric
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PixelRepresentation = *STORED.shape, 1, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    ds.PixelData = stored.astype("<u2" if bits > 8 else np.uint8).tobytes()
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def lut(entries, bits=16, first=0, count=None) -> Dataset:
    """An item of a sequence of look-up tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count or len(entries), first, bits])
    item.add_new("LUTData", "US", np.rint(entries).astype(int).tolist())
    return item


def written(ds: Dataset, folder: Path, name: str = "film.dcm") -> Path:
    ds.save_as(folder / name, enforce_file_format=True)
    return folder / name


def likeness(picture: np.ndarray) -> float:
    """Correlation with the drawn chest; 0 for another shape or a flat picture."""
    if picture.shape != CHEST.shape or picture.std() < 5:
        return 0.0
    return float(np.corrcoef(picture.ravel(), CHEST.ravel())[0, 1])


# --- windows and tables: the right picture ---

RAMP = np.arange(4096) * 16
WORDS = (np.arange(4096) // 16).reshape(-1, 2) @ (1, 256)  # two 8-bit entries to a word
EMPTY_DATA = lut(np.arange(8))
del EMPTY_DATA.LUTData
SHOWN = {
    "plain": {},
    "inverted": dict(stored=4095 - STORED, photometric="MONOCHROME1"),
    "window": dict(WindowCenter="2000", WindowWidth="4000"),
    "two windows": dict(WindowCenter=["2000", "9"], WindowWidth=["4000", "2"]),
    "window beside the data": dict(WindowCenter="40000", WindowWidth="400"),
    "width 0": dict(WindowCenter="2000", WindowWidth="0"),
    "width 1 of unit range": dict(
        WindowCenter="0.5", WindowWidth="1", RescaleSlope="0.00025", RescaleIntercept="0"
    ),
    "exact window of unit range": dict(
        WindowCenter="0.5",
        WindowWidth="1",
        RescaleSlope="0.00025",
        RescaleIntercept="0",
        VOILUTFunction="LINEAR_EXACT",
    ),
    "empty window": dict(WindowCenter="", WindowWidth=""),
    "centre alone": dict(WindowCenter="2000"),
    "function empty": dict(WindowCenter="2000", WindowWidth="4000", VOILUTFunction=""),
    "function unknown": dict(WindowCenter="2000", WindowWidth="4000", VOILUTFunction="LINEAR2"),
    "function in lower case": dict(
        WindowCenter="2000", WindowWidth="4000", VOILUTFunction="linear"
    ),
    "rescale": dict(RescaleSlope="2", RescaleIntercept="-1024"),
    "rescale empty": dict(RescaleSlope="", RescaleIntercept=""),
    "slope alone": dict(RescaleSlope="2"),
    "slope 0": dict(RescaleSlope="0", RescaleIntercept="0"),
    "VOI LUT": dict(VOILUTSequence=[lut(RAMP)]),
    "VOI LUT without items": dict(VOILUTSequence=[]),
    "VOI LUT with an empty item": dict(VOILUTSequence=[Dataset()]),
    "VOI LUT without data": dict(VOILUTSequence=[EMPTY_DATA]),
    "VOI LUT, second item usable": dict(VOILUTSequence=[Dataset(), lut(RAMP)]),
    "VOI LUT of 8 bits in words": dict(VOILUTSequence=[lut(WORDS, bits=8, count=4096)]),
    "VOI LUT of 12 bits that says 16": dict(VOILUTSequence=[lut(RAMP // 16)]),
    "VOI LUT of a wrong length": dict(VOILUTSequence=[lut(RAMP[:100], count=4096)]),
    "modality LUT": dict(ModalityLUTSequence=[lut(RAMP)]),
    "modality LUT of 12 bits": dict(ModalityLUTSequence=[lut(np.arange(4096), bits=12)]),
    "modality LUT empty": dict(ModalityLUTSequence=[]),
    "upper bits": dict(stored=STORED << 4, HighBit=15),
    "high bit 15, but lower bits": dict(HighBit=15),
    "no high bit": dict(HighBit=None),
    "no bits stored": dict(BitsStored=None),
    "no pixel representation": dict(PixelRepresentation=None),
    "no samples per pixel": dict(SamplesPerPixel=None),
    "photometric in lower case": dict(photometric="monochrome2"),
    "no photometric": dict(PhotometricInterpretation=None),
    "empty photometric": dict(PhotometricInterpretation=""),
    "padding": dict(PixelPaddingValue=0),
    "8 bits": dict(stored=CHEST, bits=8),
    "no modality": dict(Modality=None, BodyPartExamined=None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SHOWN)
def test_right_picture(tmp_path, kind):
    picture = read_image(written(film(**SHOWN[kind]), tmp_path))
    assert picture.dtype == np.uint8 and likeness(picture) > 0.97


SAID = {
    "window beside the data": "its window shows next to nothing of the picture",
    "no photometric": "no Photometric Interpretation; read as MONOCHROME2",
}


@pytest.mark.parametrize("kind", SAID)
def test_mended_with_a_warning(tmp_path, kind):
    path = written(film(**SHOWN[kind]), tmp_path)
    with pytest.warns(UserWarning, match=f"^{re.escape(str(path))}: {SAID[kind]}"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("centre", [b"2000,5", b"A     ", b"nan   ", b"--    "])
def test_window_in_words(tmp_path, centre):
    """The bytes of the file are changed: pydicom writes no such number."""
    path = written(film(WindowCenter="2000.5", WindowWidth="4000"), tmp_path)
    whole = path.read_bytes()
    assert whole.count(b"2000.5") == 1
    path.write_bytes(whole.replace(b"2000.5", centre))
    assert likeness(read_image(path)) > 0.97


def test_decimal_comma_is_a_window(tmp_path):
    plain = written(film(WindowCenter="2000.5", WindowWidth="9000"), tmp_path)
    comma = tmp_path / "comma.dcm"
    comma.write_bytes(plain.read_bytes().replace(b"2000.5", b"2000,5"))
    assert (read_image(comma) == read_image(plain)).all()


# --- files without transfer syntax or meta header ---


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("name", ["film.dcm", "IM0001"])
def test_without_meta_header(tmp_path, syntax, preamble, name):
    ds = film()
    del ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID  # the first element is of group 8
    implicit = syntax == ImplicitVRLittleEndian
    ds.save_as(tmp_path / "bare.dcm", implicit_vr=implicit, little_endian=True)
    head = b"\0" * 128 + b"DICM" if preamble else b""
    path = tmp_path / name
    path.write_bytes(head + (tmp_path / "bare.dcm").read_bytes())
    assert likeness(read_image(path)) > 0.99


def test_meta_header_without_syntax(tmp_path):
    path = written(film(), tmp_path)
    ds = pydicom.dcmread(path)
    del ds.file_meta.TransferSyntaxUID
    ds.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert likeness(read_image(path)) > 0.99


def test_big_endian(tmp_path):
    ds = film()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = STORED.astype(">u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(tmp_path / "big.dcm", implicit_vr=False, little_endian=False)
    assert likeness(read_image(tmp_path / "big.dcm")) > 0.99


# --- compression ---


def recompressed(source: Path, target: Path, kind: str) -> Path:
    """A copy of a film that GDCM has compressed; `kind` is a name in GDCM's list of transfer syntaxes."""
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


@pytest.mark.parametrize(
    "kind, uid",
    [
        ("JPEGLosslessProcess14", "1.2.840.10008.1.2.4.57"),
        ("JPEGLosslessProcess14_1", "1.2.840.10008.1.2.4.70"),
        ("JPEGLSLossless", "1.2.840.10008.1.2.4.80"),
        ("JPEGLSNearLossless", "1.2.840.10008.1.2.4.81"),
        ("JPEG2000Lossless", "1.2.840.10008.1.2.4.90"),
        ("RLELossless", "1.2.840.10008.1.2.5"),
    ],
)
def test_compressed_as_uncompressed(tmp_path, kind, uid):
    plain = written(film(), tmp_path)
    packed = recompressed(plain, tmp_path / "packed.dcm", kind)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == uid
    assert (read_image(packed) == read_image(plain)).all()


def test_twelve_bit_jpeg():
    """The notebook of `data.dicom` compares the stored values with those of libjpeg-turbo."""
    pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    path = Path(pydicom.__file__).parent / "data/test_files/JPGExtended.dcm"
    with pytest.warns(NotAChestRadiograph, match="its modality is NM"):
        picture = read_dicom(path)
    assert picture.shape == (1024, 256)
    assert picture[420, 143] > picture[230, 120] > picture[0, 0]


def test_no_decoder_for_a_damaged_stream(tmp_path):
    for uid, name in (
        (JPEGLSLossless, "JPEG-LS"),
        (JPEG2000Lossless, "JPEG 2000"),
        (RLELossless, ""),
    ):
        ds = film(PixelData=encapsulate([b"no decoder reads this"]))
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = uid
        with pytest.raises(R2GenKGError) as fault:
            read_image(written(ds, tmp_path))
        assert name in str(fault.value) and one_line(fault.value)


# --- refused, and the element is named ---


def one_line(fault: Exception) -> bool:
    return "\n" not in str(fault) and not UNCLEAR.search(str(fault))


FALLING = lut(RAMP[::-1])
REFUSED = {
    "no rows": (dict(Rows=None), "Rows is missing"),
    "no columns": (dict(Columns=None), "Columns is missing"),
    "rows 0": (dict(Rows=0), "Rows is 0"),
    "no bits allocated": (dict(BitsAllocated=None), "BitsAllocated is missing"),
    "no pixels": (dict(PixelData=None), "no pixel data"),
    "empty pixels": (dict(PixelData=b""), "no pixel data"),
    "too few pixels": (dict(PixelData=b"\0" * 100), "bytes of pixel data is less than expected"),
    "falling modality LUT": (dict(ModalityLUTSequence=[FALLING]), "Modality LUT falls"),
    "huge": (dict(Rows=60000, Columns=60000), "60000 x 60000 pixels"),
    "photometric of no kind": (dict(photometric="HOUSE"), "HOUSE is unknown|HOUSE"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(tmp_path, kind):
    elements, words = REFUSED[kind]
    path = written(film(**elements), tmp_path)
    with pytest.raises(R2GenKGError, match=words) as fault:
        read_image(path)
    assert one_line(fault.value) and str(fault.value).startswith(str(path))


def test_compressed_without_syntax(tmp_path):
    ds = film(PixelData=encapsulate([b"some stream"]))
    del ds.file_meta
    ds.save_as(tmp_path / "bare.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(R2GenKGError, match="transfer syntax UID is missing"):
        read_image(tmp_path / "bare.dcm")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_never_give_python_words(tmp_path, seed):
    """Random bytes of the header are changed: a picture, or one line."""
    random = np.random.default_rng(seed)
    path = written(film(WindowCenter="2000.5", WindowWidth="4000", RescaleSlope="1"), tmp_path)
    whole = bytearray(path.read_bytes())
    header = len(whole) - STORED.nbytes
    for place in random.integers(132, header, 1 + seed % 5):
        whole[place] = random.integers(256)
    path.write_bytes(bytes(whole))
    try:
        assert read_image(path).ndim == 2
    except R2GenKGError as fault:
        assert one_line(fault), fault


# --- several frames, colour, other modalities, other contents ---


@pytest.mark.parametrize("said", ["3", "1"])
def test_first_of_several_frames(tmp_path, said):
    several = np.stack([STORED, 4095 - STORED, STORED])
    path = written(film(several, NumberOfFrames=said), tmp_path)
    with pytest.warns(UserWarning, match="3 frames; the first is read"):
        assert likeness(read_image(path)) > 0.99


@pytest.mark.parametrize("bits", [8, 16])
def test_colour(tmp_path, bits):
    scan = np.dstack([CHEST.astype(np.uint16) * (257 if bits == 16 else 1)] * 3)
    path = written(film(scan, "RGB", bits, SamplesPerPixel=3, PlanarConfiguration=0), tmp_path)
    assert likeness(read_image(path)) > 0.99


@pytest.mark.parametrize(
    "elements, why",
    [
        (dict(Modality="CT"), "its modality is CT"),
        (dict(Modality="SEG"), "its modality is SEG"),
        (dict(BodyPartExamined="FOOT"), "its body part is FOOT"),
        (dict(BodyPartExamined="ABDOMEN"), "its body part is ABDOMEN"),
    ],
)
def test_no_chest_radiograph(tmp_path, elements, why):
    path = written(film(**elements), tmp_path)
    with pytest.warns(NotAChestRadiograph, match=f"no chest radiograph: {why}"):
        assert likeness(read_image(path)) > 0.99


@pytest.mark.parametrize("modality", ["CR", "DX", "dx", "RG", "SC", "OT", ""])
@pytest.mark.parametrize("part", ["CHEST", "Thorax", "TORAX", "PORT CHEST", "LUNG", "UNKNOWN", ""])
def test_chest_radiographs_give_no_warning(tmp_path, modality, part):
    path = written(film(Modality=modality, BodyPartExamined=part), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(CHEST).save(tmp_path / "a.png")
    Image.fromarray(CHEST).save(tmp_path / "a.jpg", quality=95)
    for source, name in (("a.png", "b.dcm"), ("a.jpg", "c.dicom")):
        shutil.copy(tmp_path / source, tmp_path / name)
        assert likeness(read_image(tmp_path / name)) > 0.99
    film_as_png = written(film(), tmp_path, "film.png")
    assert likeness(read_image(film_as_png)) > 0.99


# --- all files that pydicom ships ---

#: Those that hold a picture but are refused, and why.
SHIPPED_REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": r"pixels \(JPEG 2000 .*cannot be decoded",
    "MR_truncated.dcm": "bytes of pixel data is less than expected",
    "badVR.dcm": "NumberOfFrames is no whole number: '1A'",
    "meta_missing_tsyntax.dcm": "Rows is missing",
    "nested_priv_SQ.dcm": "Rows is missing",
}


def shipped() -> list[Path]:
    """All .dcm files inside the package pydicom. (`get_testdata_files` would fetch more.)"""
    return sorted((Path(pydicom.__file__).parent / "data").rglob("*.dcm"))


def test_files_that_pydicom_ships():
    pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    read, refused, foreign = {}, {}, set()
    for path in shipped():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                read[path.name] = read_image(path)
            except R2GenKGError as fault:
                assert one_line(fault) and path.name in str(fault)
                refused[path.name] = str(fault)
        foreign |= {path.name for w in said if w.category is NotAChestRadiograph}
    pictures = {name: why for name, why in refused.items() if "no pixel data" not in why}
    assert pictures.keys() == SHIPPED_REFUSED.keys()
    assert all(re.search(SHIPPED_REFUSED[name], why) for name, why in pictures.items())
    assert len(read) > 70 and all(p.ndim == 2 and p.std() > 0 for p in read.values())
    assert {"CT_small.dcm", "MR_small.dcm", "liver_1frame.dcm", "rtdose.dcm"} <= foreign
    gray = read["SC_rgb_dcmtk_+eb+cr.dcm"].astype(int)  # one picture in many transfer syntaxes
    same = [p for name, p in read.items() if name.startswith("SC_") and p.shape == gray.shape]
    assert len(same) > 15 and all(np.abs(p - gray).max() <= 8 for p in same)
