"""Every DICOM file that pydicom ships: its transfer syntax, and whether `read_image` reads or refuses it.

    python benchmarks/films.py --out benchmarks/results/films.json

A file without pixels is "no picture". A refusal is one line that names the file; anything else counts as a fault.
"""

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path

import pydicom

from r2genkg.core.files import R2GenKGError, write_json
from r2genkg.data.images import read_film

#: Words that belong to Python, not to a user.
PYTHON_WORDS = ("Traceback", "NoneType", "has no attribute", "object is not", "invalid literal")


def shipped() -> list[Path]:
    """All files inside the package pydicom that may be DICOM."""
    folder = Path(pydicom.__file__).parent / "data"
    return sorted(p for p in folder.rglob("*.dcm") if p.is_file())


def header(path: Path) -> dict:
    """Transfer syntax and kind of picture, as far as the file tells."""
    ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    meta = getattr(ds, "file_meta", None) or {}
    uid = meta.get("TransferSyntaxUID", "")
    raw = ds.get_item("NumberOfFrames")
    frames = str(raw.value if raw is not None else "1").strip("b'\\ ")
    return {
        "syntax": getattr(uid, "name", "") or "not named",
        "modality": str(ds.get("Modality", "")),
        "picture": str(ds.get("PhotometricInterpretation", "")),
        "frames": frames or "1",
    }


def outcome(path: Path) -> tuple[str, str]:
    """(read | refused | no picture | fault, what was said)."""
    try:
        film = read_film(path)
    except R2GenKGError as e:
        line = str(e)
        if "\n" in line or path.name not in line or any(w in line for w in PYTHON_WORDS):
            return "fault", line
        why = line.partition(f"{path.name}: ")[2].removeprefix("image cannot be decoded: ")
        return ("no picture" if "no pixel data" in why else "refused"), why
    except Exception as e:  # what must not be
        return "fault", f"{type(e).__name__}: {e}"
    return "read", "; ".join(film.notes)


def rows() -> list[dict]:
    """A row for each file."""
    found = []
    for path in shipped():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's own remarks
            result, said = outcome(path)
            found.append({"file": path.name, **header(path), "result": result, "said": said})
    return found


def is_gray_film(row: dict) -> bool:
    """Whether a file holds one gray frame."""
    return row["picture"].startswith("MONOCHROME") and row["frames"] == "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="write the table to this file")
    args = parser.parse_args()
    table = rows()
    gray = Counter(row["result"] for row in table if is_gray_film(row))
    result = {
        "what": "files that pydicom ships",
        "pydicom": pydicom.__version__,
        "files": len(table),
        "results": dict(Counter(row["result"] for row in table)),
        "gray films of one frame": dict(gray),
        "table": table,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "table"}, indent=2))
    for row in table:
        print(
            f"{row['file'][:44]:44} {row['syntax'][:34]:34} {row['result']:10} {row['said'][:90]}"
        )
    if args.out:
        write_json(Path(args.out), result)


if __name__ == "__main__":
    main()
