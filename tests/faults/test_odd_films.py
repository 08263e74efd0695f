"""Images in other forms than the name says, and DICOM elements without sense: read, or refused in one line."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import r2genkg.data.dicom
from r2genkg.core.files import R2GenKGError
from r2genkg.data.images import read_film

from test_reader_faults import PIXELS, picture

pytestmark = pytest.mark.filterwarnings("ignore")
FILM = Image.fromarray(PIXELS)


def saved(form: str, image: Image.Image = FILM, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def described(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("a", text, zip=True)
    return info


IMAGES = {
    "gif": (lambda: saved("GIF"), False),
    "tiff": (lambda: saved("TIFF"), False),
    "bmp": (lambda: saved("BMP"), False),
    "eps, which is a program": (lambda: saved("EPS", FILM.convert("RGB")), False),
    "pdf": (lambda: saved("PDF"), False),
    "ico": (lambda: saved("ICO"), False),
    "svg": (lambda: b"<svg><image href='file:///etc/passwd'/></svg>", False),
    "packed text": (lambda: saved("PNG", pnginfo=described("x" * 3_000_000)), False),
    "one bit": (lambda: saved("PNG", FILM.convert("1")), True),
    "palette": (lambda: saved("PNG", FILM.convert("P"), transparency=0), True),
    "four inks": (lambda: saved("JPEG", FILM.convert("CMYK")), True),
    "16 bits": (lambda: saved("PNG", Image.fromarray(PIXELS.astype("uint16") * 200)), True),
    "several frames": (lambda: saved("PNG", save_all=True, append_images=[FILM]), True),
    "one pixel": (lambda: saved("PNG", Image.new("L", (1, 1))), True),
    "a thread": (lambda: saved("PNG", Image.new("L", (1, 9000))), True),
    "all black": (lambda: saved("PNG", Image.new("L", (60, 60))), True),
    "all clear": (lambda: saved("PNG", Image.new("RGBA", (60, 60), (9, 9, 9, 0))), True),
    "turned": (lambda: saved("JPEG", exif=turned(6)), True),
    "turned beyond reason": (lambda: saved("JPEG", exif=turned(99)), True),
    "an archive behind it": (lambda: saved("PNG") + b"PK\x03\x04" * 99, True),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image(tmp_path, name):
    content, is_read = IMAGES[name]
    (tmp_path / "x.png").write_bytes(content())
    if not is_read:
        with pytest.raises(R2GenKGError, match="x.png: ") as refused:
            read_film(tmp_path / "x.png")
        assert "\n" not in str(refused.value)
        return
    pixels = read_film(tmp_path / "x.png").pixels
    assert pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.size


ELEMENTS = {
    "a window of words": dict(WindowCenter="nan", WindowWidth="1"),
    "a window of nothing": dict(WindowCenter="100", WindowWidth="0"),
    "a window below zero": dict(WindowCenter="100", WindowWidth="-50"),
    "a slope of nothing": dict(RescaleSlope="0", RescaleIntercept="0"),
    "a slope beyond reason": dict(RescaleSlope="1e300", RescaleIntercept="0"),
    "a slope without end": dict(RescaleSlope="inf"),
    "a third sign": dict(PixelRepresentation=2),
    "13 bits": dict(BitsAllocated=13),
    "64 bits": dict(BitsAllocated=64, BitsStored=64, HighBit=63),
    "more bits than there are": dict(BitsStored=17),
    "a high bit below": dict(HighBit=3),
    "four samples": dict(SamplesPerPixel=4),
    "no samples": dict(SamplesPerPixel=0),
    "frames below zero": dict(NumberOfFrames=-1),
    "frames beyond reason": dict(NumberOfFrames=2**31 - 1),
    "colours without colours": dict(PhotometricInterpretation="YBR_FULL"),
    "steering colours": dict(PhotometricInterpretation="\x1b[2J"),
    "one pixel": dict(Rows=1, Columns=1),
    "too wide": dict(Columns=65535),
    "an unknown alphabet": dict(SpecificCharacterSet="NOPE"),
    "no pixels": dict(PixelData=b""),
    "one byte": dict(PixelData=b"x"),
    "a long name": dict(PatientName="x" * 10**6),
    "a steering part": dict(BodyPartExamined="FOOT\x1b[2J"),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_dicom(tmp_path, name):
    (tmp_path / "x.dcm").write_bytes(picture("dcm", **ELEMENTS[name]))
    try:
        assert read_film(tmp_path / "x.dcm").pixels.size
    except R2GenKGError as e:
        assert "x.dcm: " in str(e) and "\n" not in str(e) and len(str(e)) < 500


def deflated(path: Path, filling: int) -> None:
    """A film of the deflated transfer syntax with so many bytes that nobody reads."""
    import pydicom

    ds = pydicom.dcmread(io.BytesIO(picture("dcm")), force=True)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    ds.add_new(0x00420011, "OB", bytes(filling))
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


@pytest.mark.parametrize("filling", [10, 200_000, 3_000_000])
def test_deflated_header(tmp_path, monkeypatch, filling):
    """A few bytes that unpack without end are refused before they are unpacked."""
    monkeypatch.setattr(r2genkg.data.dicom, "_MOST_UNPACKED", 1_000_000, raising=False)
    deflated(tmp_path / "x.dcm", filling)
    if filling < 1_000_000:
        assert read_film(tmp_path / "x.dcm").pixels.shape == PIXELS.shape
        return
    with pytest.raises(R2GenKGError, match="x.dcm: .*stand for more than"):
        read_film(tmp_path / "x.dcm")


@pytest.mark.parametrize("spoilt", ["cut", "flipped", "no stream"])
def test_damaged_deflated_header(tmp_path, spoilt):
    deflated(tmp_path / "x.dcm", 10)
    content = (tmp_path / "x.dcm").read_bytes()
    packed = {
        "cut": content[:-300],
        "flipped": content[:-300] + bytes(b ^ 255 for b in content[-300:]),
        "no stream": content[:400] + zlib.compress(b"x")[:-1],
    }
    (tmp_path / "x.dcm").write_bytes(packed[spoilt])
    with pytest.raises(R2GenKGError, match="x.dcm: "):
        read_film(tmp_path / "x.dcm")
