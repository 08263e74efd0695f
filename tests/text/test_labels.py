"""The rules labeler against MeSH and phantoms, CheXbert by name, label files and the command that writes them."""

import json

import numpy as np
import pandas as pd
import pytest

from r2genkg.data.study import LABELS
from r2genkg.core.files import R2GenKGError
from r2genkg.phantom.wording import write_report
from r2genkg.text.labels import RulesLabeler, label_reports
from r2genkg.text.label_files import read_labels, write_labels
from r2genkg.phantom.findings import sample_findings

MESH = {
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumothorax": "Pneumothorax",
    "Atelectasis": "Pulmonary Atelectasis",
    "Edema": "Pulmonary Edema",
    "Pneumonia": "Pneumonia",
    "Consolidation": "Consolidation",
    "Fracture": "Fractures, Bone",
}


def test_mesh(shared_data):
    """Macro F1 over eight labels at least 0.86 on findings and impression; uncertain counts as not positive."""
    table = pd.read_csv(shared_data("iu_xray", "indiana_reports.csv")).fillna("")
    heads = [{h.split("/")[0].strip() for h in row.split(";")} for row in table["MeSH"]]
    labels = label_reports(table["findings"] + " " + table["impression"])
    scores = []
    for label, head in MESH.items():
        gold, mine = np.array([head in h for h in heads]), (labels[label] == 1).to_numpy()
        scores.append(2 * (gold & mine).sum() / (gold.sum() + mine.sum()))
    assert np.mean(scores) >= 0.86, dict(zip(MESH, scores, strict=True))


@pytest.mark.parametrize("style", ["A", "B"])
def test_unseen_phantoms(style):
    """Label F1 (label and value together) at least 0.98 on 300 phantoms."""
    rng = np.random.default_rng(4243)
    reports = [write_report(sample_findings(rng), rng, style) for _ in range(300)]
    rows = label_reports([r.text for r in reports]).to_dict("records")
    mine = {(i, k, v) for i, row in enumerate(rows) for k, v in row.items() if v == v}
    truth = {(i, k, v) for i, r in enumerate(reports) for k, v in r.labels.items()}
    assert 2 * len(mine & truth) / (len(mine) + len(truth)) >= 0.98


def test_sentences_are_remembered(monkeypatch):
    """A sentence is read once, however many reports hold it. The rate itself is measured by benchmarks/annotate.py."""
    texts, read = ["The heart is mildly enlarged. No pneumothorax."] * 50, []
    find = RulesLabeler._find

    def counted(self, sentence):
        read.append(sentence)
        return find(self, sentence)

    monkeypatch.setattr(RulesLabeler, "_find", counted)
    rows = RulesLabeler().label_all(texts)
    assert all(row == {"Cardiomegaly": 1, "Pneumothorax": 0} for row in rows)
    assert len(read) == 2


def test_no_finding_is_what_is_left():
    """No Finding excludes every positive or uncertain finding, and nothing else."""
    rng = np.random.default_rng(3)
    table = label_reports([write_report(sample_findings(rng), rng).text for _ in range(200)])
    found = table[list(LABELS[:12])].isin([1, -1]).any(axis=1)
    assert (table["No Finding"].eq(1) == ~found).all() and found.any() and not found.all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "\x00",
        "\u0645\u0631\u062d\u0628\u0627",
        "normal",
        "heart",
        "no no no",
        "enlarged enlarged heart heart",
        "XXXX",
    ],
)
def test_odd_texts(text):
    """Nothing crashes; values are 1, 0, -1 or empty."""
    table = label_reports([text])
    assert table.shape == (1, 14) and (table.isin([1, 0, -1]) | table.isna()).all(axis=None)


def test_chexbert_by_name(tmp_path):
    """`chexbert:FILE` finds the tokenizer beside the checkpoint and fills the same table."""
    import torch
    from transformers import BertConfig
    from r2genkg.text.chexbert import CheXbertModel

    (tmp_path / "vocab.txt").write_text(
        "\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] heart large . small".split())
    )
    torch.manual_seed(0)
    model = CheXbertModel(
        BertConfig(
            vocab_size=9,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    with torch.no_grad():
        for i, head in enumerate(model.linear_heads):
            head.bias[i % head.out_features] += 50.0  # class i mod 4 wins, whatever the text
    torch.save(
        {"model_state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}},
        tmp_path / "chexbert.pth",
    )
    table = label_reports(["heart large .", "small"], f"chexbert:{tmp_path / 'chexbert.pth'}")
    wanted = [{0: np.nan, 1: 1.0, 2: 0.0, 3: -1.0}[i % (4 if i < 13 else 2)] for i in range(14)]
    np.testing.assert_array_equal(table.to_numpy(), [wanted, wanted])


@pytest.mark.parametrize("name", ["labels.csv", "labels.json", "labels.jsonl"])
def test_files_round_trip(tmp_path, name):
    """What is written is read back, keys with commas, quotes and line ends included."""
    values = np.random.default_rng(0).choice([1.0, 0.0, -1.0, np.nan], size=(50, 14))
    table, keys = (
        pd.DataFrame(values, columns=list(LABELS)),
        [f'a "quoted",\ntext {i}' for i in range(50)],
    )
    write_labels(tmp_path / name, table, keys)
    again = read_labels(tmp_path / name)
    np.testing.assert_array_equal(again.to_numpy(), values)
    assert list(again.index) == keys


def test_published_layouts(tmp_path):
    """CheXpert's csv has its header; CheXpert Plus' JSON Lines have null and floats."""
    table = label_reports(["No edema."])
    write_labels(tmp_path / "a.csv", table, ["No edema."])
    write_labels(tmp_path / "a.json", table, ["train/x.jpg"])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == ",".join(
        ["Report Impression", *LABELS]
    )
    row = json.loads((tmp_path / "a.json").read_text())
    assert (
        list(row) == ["path_to_image", *LABELS] and row["Edema"] == 0.0 and row["Pneumonia"] is None
    )
    with pytest.raises(R2GenKGError, match="no column"):
        write_labels(tmp_path / "b.csv", table.drop(columns="Edema"), ["x"])


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_label_command(tmp_path, suffix):
    """Both layouts by the ending of --out; `--compare` reads each back, the reader of CheXpert Plus the lines."""
    from typer.testing import CliRunner
    from r2genkg.use.commands import app
    from r2genkg.data.chexpert_plus import read_chexbert_labels

    paths, texts = (
        ["train/p1/s1/view1.jpg", "train/p2/s1/view1.jpg"],
        ["Small effusion, no pneumothorax.", "Possible pneumonia."],
    )
    pd.DataFrame({"path_to_image": paths, "section_findings": texts}).to_csv(
        tmp_path / "t.csv", index=False
    )
    out, options = (
        tmp_path / f"l.{suffix}",
        ["--column", "section_findings", "--key", "path_to_image"],
    )
    assert (
        CliRunner()
        .invoke(app, ["label", f"{tmp_path}/t.csv", "--out", str(out), *options])
        .exit_code
        == 0
    )
    table = read_labels(out)
    assert list(table.index) == paths and table.index.name == "path_to_image"
    assert (
        table.loc[paths[0], ["Pleural Effusion", "Pneumothorax"]].tolist() == [1, 0]
        and table.loc[paths[1], "Pneumonia"] == -1
    )
    other = tmp_path / f"again.{'json' if suffix == 'csv' else 'csv'}"
    done = CliRunner().invoke(
        app,
        [
            "label",
            f"{tmp_path}/t.csv",
            "--out",
            str(other),
            *options,
            "--compare",
            str(out),
            "--json",
        ],
    )
    assert done.exit_code == 0 and {
        v for k, v in json.loads(done.stdout).items() if k.endswith("agreement")
    } == {1.0}
    if suffix != "csv":
        assert [
            row["Pneumonia"] for row in read_chexbert_labels(out).values() if "Pneumonia" in row
        ] == [-1]


def test_label_command_refuses(tmp_path):
    """Lines without image paths and unknown endings are refused before anything is written."""
    from typer.testing import CliRunner
    from r2genkg.use.commands import app

    pd.DataFrame({"findings": ["Small effusion."]}).to_csv(tmp_path / "t.csv", index=False)
    for out, said in (
        ("l.json", "--key path_to_image"),
        ("l.txt", "ends in .csv, .json or .jsonl"),
    ):
        done = CliRunner().invoke(app, ["label", f"{tmp_path}/t.csv", "--out", f"{tmp_path}/{out}"])
        assert done.exit_code == 1 and said in str(done.exception) and not (tmp_path / out).exists()
