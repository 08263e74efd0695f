"""Tables of labels, boxes and outlines from strangers: damaged, packed without end, or without sense.

Each is refused in one line that names the file.
"""

import gzip
import json
from pathlib import Path

import pytest

from r2genkg.core.files import R2GenKGError
from r2genkg.data.nih import nih_counts, read_label_table, read_nih
from r2genkg.data.regions import read_regions
from r2genkg.data.tabular import csv_rows

NIH = "Image Index,Finding Labels,Patient ID\n"
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
TABLE = "id,chexpert,x0,y0,x1,y1\n"
VINDR = "image_id,class_name,x_min,y_min,x_max,y_max,width,height\n"


def refused(call, path: Path, says: str = "") -> None:
    with pytest.raises(R2GenKGError) as told:
        call(path)
    line = str(told.value)
    assert path.name in line and says in line and "\n" not in line and len(line) < 1_000


def rows_of(path: Path) -> list:
    return list(read_nih(path, films_needed=False))


NIH_ROWS = {
    "short row": (NIH + "a.png\n", "none of NIH's"),
    "empty cells": (NIH + ",,\n", "none of NIH's"),
    "unknown name": (NIH + "a.png,Effusion|=cmd(),1\n", "none of NIH's"),
    "no column": ("a,b\n1,2\n", "no column"),
    "nothing": ("", "no column"),
    "huge cell": (NIH + "a.png," + "x" * 10_000_000 + ",1\n", "field"),
    "unclosed quote": (NIH + '"a.png,' + "x" * 200_000, "field"),
    "huge line": (NIH + "x" * 20_000_001, "characters"),
}


@pytest.mark.parametrize("kind", NIH_ROWS)
def test_nih_tables(tmp_path, kind):
    text, says = NIH_ROWS[kind]
    (tmp_path / "Data_Entry.csv").write_text(text)
    refused(rows_of, tmp_path / "Data_Entry.csv", says)


PACKED = {
    "cut": lambda good: gzip.compress(good)[:-12],
    "damaged": lambda good: gzip.compress(good)[:-8] + b"\0" * 8,
    "not packed": lambda good: good,
    "not UTF-8": lambda good: gzip.compress(good + b"\xff\xfe"),
    "bomb": lambda good: gzip.compress(good + b"x" * 200_000_000, 1),
    "bomb of zeros": lambda good: gzip.compress(good + b"\0" * 200_000_000, 1),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("reader", ["nih", "boxes"])
def test_packed_tables(tmp_path, kind, reader):
    good = {"nih": NIH + "a.png,Effusion,1\n", "boxes": BOXES + "a.png,Mass,1,1,9,9\n"}[reader]
    path = tmp_path / "table.csv.gz"
    path.write_bytes(PACKED[kind](good.encode()))
    refused({"nih": rows_of, "boxes": read_regions}[reader], path)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a.png\n\x80"])
def test_split_lists_that_are_no_text(tmp_path, text):
    (tmp_path / "Data_Entry.csv").write_text(NIH + "a.png,Effusion,1\n")
    (tmp_path / "train_val_list.txt").write_bytes(text)
    (tmp_path / "test_list.txt").write_text("b.png\n")
    with pytest.raises(R2GenKGError, match="train_val_list.txt: not UTF-8"):
        rows_of(tmp_path / "Data_Entry.csv")


BOX_FILES = {
    "nan": TABLE + "a,Edema,nan,0,1,1\n",
    "infinite": TABLE + "a,Edema,0,0,inf,1\n",
    "inverted": TABLE + "a,Edema,0.9,0,0.1,1\n",
    "no area": TABLE + "a,Edema,0.5,0.5,0.5,0.9\n",
    "outside": TABLE + "a,Edema,2,2,3,3\n",
    "words": TABLE + "a,Edema,left,0,1,1\n",
    "empty": TABLE + "a,Edema,,,,\n",
    "nih nan": BOXES + "a.png,Mass,nan,1,2,2\n",
    "nih inverted": BOXES + "a.png,Mass,500,1,-100,2\n",
    "nih short": BOXES + "a.png,Mass\n",
    "nih unknown": BOXES + "a.png,Curse,1,1,2,2\n",
    "nih huge cell": BOXES + "a.png,Mass,1,1,2," + "2" * 10_000_000 + "\n",
    "vindr no width": VINDR + "a,Lung Opacity,1,1,2,2,0,10\n",
    "vindr negative": VINDR + "a,Lung Opacity,1,1,2,2,-5,10\n",
    "vindr nan": VINDR + "a,Lung Opacity,1,1,2,2,nan,10\n",
}


@pytest.mark.parametrize("kind", BOX_FILES)
def test_boxes(tmp_path, kind):
    (tmp_path / "b.csv").write_text(BOX_FILES[kind])
    refused(read_regions, tmp_path / "b.csv")


OUTLINES = {
    "a list": [1, 2],
    "no size": {"a": {"Edema": []}},
    "size of words": {"a": {"img_size": ["x", "y"], "Edema": []}},
    "size of zero": {"a": {"img_size": [0, 10], "Edema": []}},
    "size a number": {"a": {"img_size": 10}},
    "size NaN": {"a": {"img_size": [float("nan"), 10], "Edema": [[[0, 0], [1, 1], [2, 0]]]}},
    "no list": {"a": {"img_size": [10, 10], "Edema": 3}},
    "a number": {"a": {"img_size": [10, 10], "Edema": [3]}},
    "words": {"a": {"img_size": [10, 10], "Edema": ["abc"]}},
    "NaN": {"a": {"img_size": [10, 10], "Edema": [[[0, 0], [1, float("nan")], [2, 0]]]}},
    "three numbers": {"a": {"img_size": [10, 10], "Edema": [[[0, 0, 1], [1, 1, 1], [2, 0, 1]]]}},
    "ragged": {"a": {"img_size": [10, 10], "Edema": [[[0, 0], [1], [2, 0]]]}},
    "film a word": {"a": "img_size"},
}


@pytest.mark.parametrize("kind", OUTLINES)
def test_outlines(tmp_path, kind):
    (tmp_path / "o.json").write_text(json.dumps(OUTLINES[kind]))
    refused(read_regions, tmp_path / "o.json")


LABEL_TABLES = {
    "other number": "id,image,Edema\na,a.png,2\n",
    "word": "id,image,Edema\na,a.png,yes\n",
    "formula": "id,image,Edema\na,a.png,=1\n",
    "NaN": "id,image,Edema\na,a.png,inf\n",
    "unknown name": "id,image,chexpert\na,a.png,Curse\n",
    "no labels": "id,image\na,a.png\n",
    "no rows": "id,image,Edema\n",
    "other folder": "id,image,Edema\na,../../a.png,1\n",
    "split": "id,image,Edema,split\na,a.png,1,everything\n",
}


@pytest.mark.parametrize("kind", LABEL_TABLES)
def test_label_tables(tmp_path, kind):
    (tmp_path / "labels.csv").write_text(LABEL_TABLES[kind])
    refused(lambda path: list(read_label_table(path)), tmp_path / "labels.csv")


@pytest.mark.parametrize("text", ["id,findings\na," + "x" * 10_000_000, "id\n" + "x" * 20_000_001])
def test_huge_cells(tmp_path, text):
    (tmp_path / "r.csv").write_text(text)
    refused(lambda path: list(csv_rows(path)), tmp_path / "r.csv")


def test_blank_lines_are_no_fault(tmp_path):
    (tmp_path / "BBox_List_2017.csv").write_text(BOXES + "a.png,Mass,1,1,9,9\n\n")
    assert len(read_regions(tmp_path / "BBox_List_2017.csv")) == 1
    assert nih_counts(tmp_path)["boxes in the tables"] == "1 of 984"
