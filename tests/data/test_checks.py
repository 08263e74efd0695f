"""Public data sets as on a user's disk: prepared with R2Gen's, the official and a listed split, or refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from PIL import Image
from r2genkg.core.files import R2GenKGError
from r2genkg.core.config import load_config
from r2genkg.data.catalog import data_set, data_sets, read_data_set
from r2genkg.data.collecting import leaking_patients
from r2genkg.data.checks import prepare
from r2genkg.data.splits import SPLITS, read_split_ids
from r2genkg.data.study import check_section, load_studies
from r2genkg.data.openi import read_openi_package
from r2genkg.training.stages import StageResult

import numpy as np
import pytest


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48), dtype=np.uint8)).save(
        path
    )


def r2gen(folder: Path, counts: tuple[int, int, int], name: str = "CXR{}_IM-1") -> Path:
    """An R2Gen folder: annotation.json and images."""
    tree, n = {}, 0
    for split, count in zip(SPLITS, counts, strict=True):
        tree[split] = []
        for _ in range(count):
            n += 1
            id = name.format(n)
            picture(folder / "images" / id / "0.png", n)
            tree[split].append(
                {
                    "id": id,
                    "report": f"The lungs are clear in study {n}.",
                    "image_path": [f"{id}/0.png"],
                    "split": split,
                }
            )
    (folder / "annotation.json").write_text(json.dumps(tree))
    return folder


def plus(folder: Path, patients: int = 60, lines: bool = True) -> Path:
    """A CheXpert Plus: two studies of each patient, the views of a study far apart in the table."""
    rows, labels = [], []
    for view in (1, 2):
        for p in range(patients):
            for s in (1, 2):
                split = "valid" if p % 6 == 5 else "train"
                path = f"{split}/patient{p}/study{s}/view{view}_frontal.jpg"
                rows.append(
                    f'{path},p{p},"Effusion on the left, study {s} of {p}.",Impression {p}.,{split}'
                )
                picture((folder / "PNG" / path).with_suffix(".png"), p * 10 + s * 3 + view)
                labels.append(
                    {"path_to_image": path}
                    | dict.fromkeys(load_labels(), None)
                    | {"Pleural Effusion": 1.0}
                )
    (folder / "df_chexpert_plus_240401.csv").write_text(
        "path_to_image,deid_patient_id,section_findings,section_impression,split\n"
        + "\n".join(rows)
        + "\n"
    )
    if lines:
        (folder / "chexbert_labels").mkdir()
        (folder / "chexbert_labels" / "findings_fixed.json").write_text(
            "\n".join(map(json.dumps, reversed(labels)))
        )  # another order than the table
    return folder


def load_labels() -> tuple[str, ...]:
    from r2genkg.data.study import LABELS

    return LABELS


def test_iu_xray_of_r2gen(tmp_path):
    found = prepare("iu-xray", r2gen(tmp_path / "iu", (6, 2, 3)), tmp_path / "studies.parquet")
    assert (found["train"], found["val"], found["test"]) == (6, 2, 3) and found["known"].startswith(
        "published: 2,069 / 296 / 590; here: 6 (-2,063)"
    )
    assert load_studies(tmp_path / "studies.parquet").meta == {
        "data_set": "iu-xray",
        "splits": "file",
        "section": "findings",
        "counts": {"train": 6, "val": 2, "test": 3},
    }


def test_shipped_split_is_r2gens(shared_data):
    from importlib.resources import files

    shipped = json.loads((files("r2genkg") / "resources" / "iu_xray_splits.json").read_text())
    assert {k: len(v) for k, v in shipped.items()} == data_set("iu-xray").known
    published = read_split_ids(shared_data("iu_xray", "r2gen_split_ids.json"))
    assert all(published[uid] == split for split, ids in shipped.items() for uid in ids)


def test_three_forms_of_iu_xray_agree(tmp_path, shared_data):
    (tmp_path / "images").mkdir()
    forms = [
        read_data_set("iu-xray", shared_data("iu_xray", name), tmp_path / "images")
        for name in ("annotation.json", "indiana_reports.csv")
    ]
    texts = [{s.id.split("_")[0]: (s.split, s.findings) for s in studies} for studies in forms]
    assert len(forms[0]) > 2000 and texts[0] == texts[1]
    assert [s.meta["splits"] for s in forms] == ["file", "r2gen"]


def test_reports_of_the_package_have_r2gens_counts(tmp_path):
    import torchxrayvision

    archive = Path(torchxrayvision.__file__).parent / "data" / "NLMCXR_reports.tgz"
    (tmp_path / "images").mkdir()
    studies = read_data_set("iu-xray", archive, tmp_path / "images")
    found = {k: sum(s.split == k for s in studies) for k in SPLITS}
    assert found == data_set("iu-xray").known, studies.report
    assert (
        hashlib.sha256(archive.read_bytes()).hexdigest()
        == data_set("iu-xray").archives[0]["sha256"]
    )


def test_chexpert_plus_official(tmp_path):
    found = prepare(
        "chexpert-plus",
        plus(tmp_path / "plus"),
        tmp_path / "studies.parquet",
        section="findings+impression",
    )
    studies = load_studies(tmp_path / "studies.parquet")
    assert (
        found["kept"] == 120
        and found["test"] == 20
        and found["train"] + found["val"] == 100
        and found["val"] > 0
    )
    assert all(
        len(s.images) == 2 and s.labels == {"Pleural Effusion": 1.0} for s in studies
    )  # joined by path
    assert (
        all(f"of {s.patient[1:]}." in s.findings for s in studies)
        and leaking_patients(studies) == []
    )
    assert found["patients in several splits"] == 0 and found["duplicate images"] == 0
    with pytest.raises(R2GenKGError, match="prepared with section 'findings.impression'"):
        check_section(studies, "findings")


def test_chexpert_plus_by_a_list_of_ids(tmp_path):
    folder = plus(tmp_path / "plus", patients=12, lines=False)
    paths = [
        f"{'valid' if p % 6 == 5 else 'train'}/patient{p}/study{s}/view1_frontal.jpg"
        for p in range(12)
        for s in (1, 2)
    ]
    (tmp_path / "ids.json").write_text(
        json.dumps(
            {
                "train": paths[:13],
                "val": [{"id": "x", "image_path": [p]} for p in paths[13:16]],
                "test": paths[16:20],
            }
        )
    )
    found = prepare(
        "chexpert-plus", folder, tmp_path / "studies.parquet", splits=tmp_path / "ids.json"
    )
    assert (
        found["train"],
        found["val"],
        found["test"],
        found["dropped, not in the split file"],
    ) == (
        13,
        3,
        4,
        4,
    )
    assert (
        found["leaking patients"] == ["p6"]
        and "published: 40,463 / 5,780 / 11,562" in found["known"]
    )
    with pytest.raises(R2GenKGError, match="1 patients are in several splits"):
        prepare(
            "chexpert-plus",
            folder,
            tmp_path / "s.parquet",
            splits=tmp_path / "ids.json",
            refuse_leaks=True,
        )


def test_mimic_cxr(tmp_path):
    folder = r2gen(tmp_path / "mimic", (3, 1, 1), "02aa804e-{}")
    assert prepare("mimic-cxr", folder, tmp_path / "studies.parquet")["kept"] == 5
    (folder / "images" / "02aa804e-2" / "0.png").unlink()
    (folder / "images" / "02aa804e-3" / "0.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(R2GenKGError, match="1 images missing, 1 unreadable.*--drop-broken"):
        prepare("mimic-cxr", folder, tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists() and not (tmp_path / "s.json").exists()
    found = prepare("mimic-cxr", folder, tmp_path / "s.parquet", drop_broken=True)
    assert found["kept"] == 3 and found["dropped, without a usable image"] == 2


def test_a_second_run_reads_the_source_again(tmp_path):
    """A study dropped for a broken image comes back with the image, although the first output lies beside it."""
    folder = r2gen(tmp_path / "iu", (3, 1, 1))
    (folder / "images" / "CXR1_IM-1" / "0.png").unlink()
    assert prepare("iu-xray", folder, folder / "studies.parquet", drop_broken=True)["kept"] == 4
    picture(folder / "images" / "CXR1_IM-1" / "0.png", 1)
    assert prepare("iu-xray", folder, folder / "studies.parquet")["kept"] == 5


def test_counts_overwrite_no_source(tmp_path):
    folder = r2gen(tmp_path / "mimic", (2, 1, 1))
    source = (folder / "annotation.json").read_text()
    with pytest.raises(
        R2GenKGError, match="annotation.json: the counts of annotation.parquet go there"
    ):
        prepare("mimic-cxr", folder, folder / "annotation.parquet")
    with pytest.raises(R2GenKGError, match="ends in .parquet"):
        prepare("mimic-cxr", folder, folder / "annotation.json")
    assert (folder / "annotation.json").read_text() == source and not (
        folder / "annotation.parquet"
    ).exists()
    for _ in range(2):
        prepare("mimic-cxr", folder, tmp_path / "s.parquet")  # its own counts are written anew


def test_patients_of_chexpert_plus_without_ids(tmp_path):
    """Rows that leave the patient empty are split, and checked for leaks, by the patient in their path."""
    folder = plus(tmp_path / "plus", patients=24, lines=False)
    table = folder / "df_chexpert_plus_240401.csv"
    table.write_text(
        "\n".join(
            ",".join(
                [
                    "" if i == 1 and line.startswith(("train", "valid")) else cell
                    for i, cell in enumerate(line.split(","))
                ]
            )
            for line in table.read_text().splitlines()
        )
        + "\n"
    )
    for splits in ("lab", "official"):
        found = prepare(
            "chexpert-plus",
            folder,
            tmp_path / "s.parquet",
            splits=splits,
            quick=True,
            refuse_leaks=True,
        )
        assert (
            found["noted, studies whose patient is read from their path"] == found["kept"] == 48
            and found["val"] % 2 == 0
        )
    (tmp_path / "ids.json").write_text(
        json.dumps(
            {
                "train": ["train/patient1/study1/v.jpg"],
                "test": ["train/patient1/study2/v.jpg"],
                "val": [],
            }
        )
    )
    with pytest.raises(R2GenKGError, match="'patient1'"):
        prepare(
            "chexpert-plus",
            folder,
            tmp_path / "s.parquet",
            splits=tmp_path / "ids.json",
            quick=True,
            refuse_leaks=True,
        )


def test_one_image_file_in_two_splits(tmp_path):
    folder = r2gen(tmp_path / "iu", (2, 1, 1))
    tree = json.loads((folder / "annotation.json").read_text())
    tree["test"][0]["image_path"] = tree["train"][0]["image_path"]
    (folder / "annotation.json").write_text(json.dumps(tree))
    for quick in (False, True):
        found = prepare("iu-xray", folder, tmp_path / "s.parquet", quick=quick)
        assert (found["duplicate images"], found["pictures in several splits"]) == (1, 1)
    assert json.loads((tmp_path / "s.json").read_text())["duplicate files"] == [
        str(folder / "images" / "CXR1_IM-1" / "0.png")
    ]


@pytest.mark.parametrize("name", data_sets())
@pytest.mark.parametrize("state", ["no folder", "empty folder", "no images"])
def test_what_is_missing_is_named_with_its_source(tmp_path, name, state):
    root = tmp_path / "root"
    if state != "no folder":
        root.mkdir()
    if state == "no images":
        (root / data_set(name).tables[0].replace("*", "_240401")).touch()
    with pytest.raises(R2GenKGError) as caught:
        prepare(name, root, tmp_path / "out.parquet")
    found = str(caught.value)
    assert (
        "\n" not in found
        and data_set(name).link in found
        and "licence" in found
        and str(root) in found
    )
    assert ("table of reports" in found) == (state == "empty folder") and (
        "images" in found.split("Get it")[0]
    ) == (state != "no folder")
    assert (data_set(name).command in found) and not (tmp_path / "out.parquet").exists()


def test_sections_and_names(tmp_path):
    with pytest.raises(R2GenKGError, match="section 'impression'"):
        prepare("iu-xray", tmp_path, tmp_path / "o.parquet", section="impression")
    with pytest.raises(R2GenKGError, match="'iu' is none of"):
        prepare("iu", tmp_path, tmp_path / "o.parquet")
    with pytest.raises(R2GenKGError, match="'official' is of chexpert-plus"):
        prepare(
            "iu-xray", r2gen(tmp_path / "iu", (1, 0, 0)), tmp_path / "o.parquet", splits="official"
        )


@pytest.mark.parametrize(
    "preset", ["demo", "iu-xray", "chexpert-plus", "mimic-cxr"]
)  # the last three say where and in what form the raw files are
def test_prepared_studies_feed_the_pipeline(tmp_path, preset):
    from r2genkg.training.pipeline import run_pipeline

    prepare("iu-xray", r2gen(tmp_path / "iu", (4, 1, 1)), tmp_path / "p" / "studies.parquet")
    config = load_config(
        preset,
        [
            "studies.source=files",
            f"studies.path={tmp_path}/p/studies.parquet",
            "studies.n_train=0",
            "studies.n_val=0",
            "studies.n_test=0",
        ],
    )
    assert (
        "4 train, 1 val, 1 test"
        in run_pipeline(config, tmp_path / "run", upto="studies")["studies"].note
    )


# --- what was made from held-out studies does not reach training ---


def test_graph_and_bank_of_held_out_studies_are_refused(tmp_path, caplog):
    from r2genkg.kg.graph import M3KG
    from r2genkg.kg.build import build_from_file
    from r2genkg.training.train import train
    from toy_run import settings, toy_data

    data = toy_data(tmp_path / "data")
    rows = "".join(
        f'{s.id},{Path(s.images[0]).name},"{s.findings}",{s.split}\n' for s in data.studies
    )
    (tmp_path / "data" / "t.csv").write_text("id,image,findings,split\n" + rows)
    found = build_from_file(tmp_path / "data" / "t.csv", tmp_path / "all")
    assert (
        found["held-out reports"] == 4
        and "4 of 28 reports are of validation or test studies" in caplog.text
    )
    assert (
        build_from_file(tmp_path / "data" / "t.csv", tmp_path / "own", split="train")[
            "held-out reports"
        ]
        == 0
    )
    leaky = replace(data, graph=M3KG.load(tmp_path / "all"))
    with pytest.raises(
        R2GenKGError,
        match="graph holds 4 reports outside the training split.*--split train.*train.allow_held_out",
    ):
        train(settings(), leaky, tmp_path / "run")
    bank = replace(data.tokens, table=data.tokens.table.assign(study="s25"))
    with pytest.raises(
        R2GenKGError, match="1 studies outside the training split are in the bank.*'s25'"
    ):
        train(settings(), replace(data, tokens=bank), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    few = ["train.epochs=0.1", "train.evals_per_epoch=0"]
    train(settings(*few), replace(data, graph=M3KG.load(tmp_path / "own")), tmp_path / "run")
    train(settings(*few, "train.allow_held_out=true"), leaky, tmp_path / "run2")


def test_packaged_reports_of_held_out_studies_stay_out_of_the_graph():
    from r2genkg.training.stages import graph_corpus

    openi = [s for s in read_openi_package() if s.findings][:6]
    studies = [
        replace(s, id=f"{s.id}_IM-0001-1001", split=split)
        for s, split in zip(openi, ("train", "train", "val", "test", "test"))
    ]  # as R2Gen names them
    texts = graph_corpus(load_config("demo"), studies)
    assert {s.id for s in studies[:2]} <= texts.keys() and openi[5].id in texts
    assert not texts.keys() & {
        i for s in studies[2:] for i in (s.id, s.id.partition("_")[0])
    } and not texts.keys() & {s.id for s in openi[:2]}


@pytest.mark.parametrize("split, change", [("test", []), ("val", ["train.evals_per_epoch=1"])])
def test_a_split_that_the_run_will_miss_is_reported_at_once(tmp_path, split, change):
    from r2genkg.training.pipeline import run_pipeline

    counts = [f"studies.n_{k}={int(k != split)}" for k in ("train", "val", "test")]
    with pytest.raises(R2GenKGError, match=f"no study with findings in the split '{split}'"):
        run_pipeline(load_config("demo", [*counts, *change]), tmp_path / "run")
    assert not (tmp_path / "run" / "classifier").exists()


def test_an_edited_table_makes_its_stage_again(tmp_path):
    from r2genkg.training.stages import STAGES, stage_hash

    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    stage = next(s for s in STAGES if s.name == "m3kg")
    config = load_config("demo", [f"graph.annotator=replay:{answers}"])
    studies = {"studies": StageResult("studies", tmp_path, "1", "", None)}
    before = stage_hash(stage, config, studies)
    answers.write_text("{}\n{}\n")
    assert stage_hash(stage, config, studies) != before


def test_section_of_prepared_studies_is_held_to(tmp_path):
    from r2genkg.training.pipeline import run_pipeline

    folder = r2gen(tmp_path / "iu", (4, 1, 1))
    with pytest.raises(R2GenKGError, match="no study has an impression"):
        prepare(
            "iu-xray", folder, tmp_path / "p" / "studies.parquet", section="findings+impression"
        )
    (folder / "annotation.json").write_text(
        (folder / "annotation.json")
        .read_text()
        .replace('"report"', '"impression": "Clear.", "report"')
    )
    assert (
        prepare(
            "iu-xray", folder, tmp_path / "p" / "studies.parquet", section="findings+impression"
        )["without impression"]
        == 0
    )
    given = [
        "studies.source=files",
        f"studies.path={tmp_path}/p/studies.parquet",
        "studies.n_train=0",
        "studies.n_val=0",
        "studies.n_test=0",
    ]
    with pytest.raises(
        R2GenKGError,
        match="prepared with section 'findings.impression', but 'findings' is asked for",
    ):
        run_pipeline(load_config("demo", given), tmp_path / "run", "studies")
    run_pipeline(
        load_config("demo", [*given, "studies.section=findings+impression"]),
        tmp_path / "run",
        "studies",
    )


def test_chexpert_plus_by_the_rule_of_the_papers_authors(tmp_path):
    found = prepare(
        "chexpert-plus",
        plus(tmp_path / "plus", lines=False),
        tmp_path / "studies.parquet",
        splits="lab",
    )
    assert (
        found["kept"] == 120
        and 60 < found["train"] < 105
        and found["test"] > found["val"] > 0
        and found["patients in several splits"] == 0
    )
    assert "not public" in found["splits, note"] and found["known"].startswith(
        "published: 40,463 / 5,780 / 11,562; here:"
    )
    assert load_studies(tmp_path / "studies.parquet").meta["splits"] == "lab"
    with pytest.raises(R2GenKGError, match="'lab' is of chexpert-plus"):
        prepare("iu-xray", r2gen(tmp_path / "iu", (1, 0, 0)), tmp_path / "o.parquet", splits="lab")


def test_a_missing_file_names_the_command_that_makes_it():
    from r2genkg.data.readers import read_studies

    with pytest.raises(
        R2GenKGError, match="s.parquet: no such file or folder; `r2genkg data prepare` makes it"
    ):
        read_studies("nowhere/s.parquet")
