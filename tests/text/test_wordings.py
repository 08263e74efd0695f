"""Everyday report language: each wording has the labels that a radiologist reads.

`wordings.csv` holds kind, text and labels. A label that is not named must be neither positive nor uncertain. Values:
1, 0, - (uncertain), n (not mentioned), alternatives with a slash. They were written down before the rules were run.
"""

import csv
from pathlib import Path

import pytest

from r2genkg.text.labels import label_reports

SHORT = {
    "EC": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LO": "Lung Opacity",
    "LL": "Lung Lesion",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PX": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
    "NF": "No Finding",
}
SIGNS = {1: "1", 0: "0", -1: "-"}


def read_wordings():
    """Kind -> [(text, {short label: allowed signs})]."""
    kinds = {}
    with open(Path(__file__).parent / "wordings.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = dict(pair.split("=") for pair in row["labels"].split())
            kinds.setdefault(row["kind"], []).append((row["text"], wanted))
    return kinds


WORDINGS = read_wordings()


def wrong_labels(row, wanted):
    """The labels of a row that a radiologist would not give, with their signs."""
    signs = {short: SIGNS.get(row[name], "n") for short, name in SHORT.items()}
    unnamed = [s for s in signs if s not in wanted and s != "NF" and signs[s] in "1-"]
    named = [s for s in wanted if signs[s] not in wanted[s].split("/")]
    return {s: signs[s] for s in (*named, *unnamed)}


@pytest.mark.parametrize("kind", WORDINGS)
def test_wordings(kind):
    """All wordings of a kind are read as a radiologist reads them."""
    texts = [text for text, _ in WORDINGS[kind]]
    rows = label_reports(texts).to_dict("records")
    wrong = {}
    for (text, wanted), row in zip(WORDINGS[kind], rows, strict=True):
        found = wrong_labels(row, wanted)
        if found:
            wrong[text] = found
    assert not wrong


def test_there_are_enough():
    """At least 300 wordings."""
    assert sum(map(len, WORDINGS.values())) >= 300
