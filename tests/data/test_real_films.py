"""Films with labels alone: official NIH tables, the folders of films, boxes, and `data prepare nih`."""

from pathlib import Path

import shutil
import numpy as np
import pytest
import torchxrayvision
from PIL import Image

from r2genkg.core.files import R2GenKGError
from r2genkg.data.catalog import read_data_set
from r2genkg.data.checks import prepare
from r2genkg.data.collecting import leaking_patients
from r2genkg.data.nih import read_nih
from r2genkg.data.readers import read_studies
from r2genkg.data.regions import read_regions

PACKAGED = Path(torchxrayvision.__file__).parent / "data"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)


def test_packaged_nih_tables_have_the_known_counts():
    records = list(read_nih(PACKAGED / "Data_Entry_2017_v2020.csv.gz", films_needed=False))
    regions = read_regions(PACKAGED / "BBox_List_2017.csv.gz")
    table = regions.table()
    assert len(records) == 112_120 and len({r["patient"] for r in records}) == 30_805
    assert len(table) == 984 and len(regions) == 880 and table.label.nunique() == 7
    assert {r["id"] for r in records} >= set(regions.shapes)


def test_films_of_the_shared_folder(shared_data):
    folder = shared_data("nih_cxr")
    studies = read_studies(folder)
    assert studies.report.source == "labels" and len(studies) == 1264
    assert len({s.patient for s in studies}) == 756 and not leaking_patients(studies)
    assert sum(s.labels["Pleural Effusion"] for s in studies) == 223
    regions = read_regions(folder / "boxes.csv")
    assert len(regions.table()) == 680 and len(regions) == 617


def test_boxes_of_both_forms_agree(shared_data):
    ours = read_regions(shared_data("nih_cxr") / "boxes.csv")
    official = read_regions(PACKAGED / "BBox_List_2017.csv.gz")
    for study in list(ours.shapes)[:50]:
        assert ours.labels(study) == official.labels(study)
        for label, mask in ours.masks(study, 64).items():
            assert np.mean(mask != official.masks(study, 64)[label]) < 0.01


@pytest.fixture
def nih_folder(tmp_path):
    """Twelve films of six patients as the NIH gives them."""
    root = tmp_path / "nih"
    films = root / "images_001" / "images"
    films.mkdir(parents=True)
    lines = [HEADER]
    for i in range(12):
        name = f"{i // 2:08d}_{i % 2:03d}.png"
        lines.append(
            f"{name},{'No Finding' if i % 3 else 'Mass|Effusion'},{i % 2},{i // 2},60,F,PA"
        )
        Image.fromarray(np.full((32, 32), 8 * i, np.uint8)).save(films / name)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines))
    (root / "train_val_list.txt").write_text("\n".join(x.split(",")[0] for x in lines[1:9]))
    (root / "test_list.txt").write_text("\n".join(x.split(",")[0] for x in lines[9:]))
    return root


def test_prepare_nih(nih_folder, tmp_path):
    counts = prepare("nih", nih_folder, tmp_path / "studies.parquet")
    assert (
        counts["kept"] == 12 and counts["test"] == 4 and counts["patients in several splits"] == 0
    )
    assert counts["films in the tables"] == "12 of 112,120" and counts["repeated reports"] == 0
    studies = read_studies(tmp_path / "studies.parquet")
    assert studies[0].labels["Lung Lesion"] == 1 and "Fracture" not in studies[0].labels


def test_prepare_nih_says_what_is_missing(nih_folder, tmp_path):
    with pytest.raises(R2GenKGError, match="ChestX-ray14.*not complete.*nihcc.app.box.com"):
        read_data_set("nih", tmp_path)
    for film in (nih_folder / "images_001" / "images").iterdir():
        film.unlink()
    with pytest.raises(R2GenKGError, match="no .png in the folder"):
        read_data_set("nih", nih_folder)
    shutil.rmtree(nih_folder / "images_001")
    (nih_folder / "images_001.tar.gz").write_bytes(b"")
    with pytest.raises(R2GenKGError, match="images_001.tar.gz"):
        read_data_set("nih", nih_folder)
