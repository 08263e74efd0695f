"""Scores against pycocoevalcap, R2Gen's own cutting and hand-computed values; missing Java; faults of report files."""

import json
import random
import subprocess
import sys
from collections import Counter
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from r2genkg.data.study import LABELS
from r2genkg.scores.clinical_efficacy import ce_all, ce_scores, confusion
from r2genkg.core.files import R2GenKGError
from r2genkg.scores.metrics import evaluate_reports
from r2genkg.scores.nlg import (
    nlg_scores,
    family_references,
    java_available,
    nlg_stats,
    prepare_texts,
)
from r2genkg.scores.significance import bootstrap
from r2genkg.data.cleaning import clean_report
from r2genkg.scores.baselines import best_constant
from r2genkg.scores.report_files import evaluate_files

import numpy as np
import pandas as pd
import pytest


REFS = [
    "The heart is normal in size.  The lungs are clear.",
    "Small left pleural effusion.\nNo pneumothorax.",
    "",
    "Edema ||| and effusion.",
    "Ünclear opacity, 1.5 cm; follow-up?",
    "The lungs are clear.",
]
HYPOS = [
    "The heart is normal.",
    "There is a small left effusion. No pneumothorax.",
    "Clear lungs.",
    "Edema and effusion.",
    "",
    "The lungs are clear.",
]


def direct(refs, hypos, meteor_refs=None):
    """The scores by pycocoevalcap's own classes, called as the R2Gen family calls them."""
    gts, res = ({i: [t] for i, t in enumerate(texts)} for texts in (refs, hypos))
    scores = dict(
        zip(
            ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
            Bleu(4).compute_score(gts, res, verbose=0)[0],
            strict=True,
        )
    )
    scores |= {
        "ROUGE-L": Rouge().compute_score(gts, res)[0],
        "CIDEr": Cider().compute_score(gts, res)[0],
    }
    if java_available():
        scores["METEOR"] = Meteor().compute_score(
            {i: [t] for i, t in enumerate(meteor_refs or refs)}, res
        )[0]
    return scores


@pytest.fixture
def iu_reports(shared_data):
    """Reports of the shared IU-Xray annotation, by split."""
    tree = json.loads(shared_data("iu_xray", "annotation.json").read_text())
    return {split: [item["report"] for item in items] for split, items in tree.items()}


def test_nlg_equals_pycocoevalcap_on_real_reports(iu_reports):
    reports = [r for split in iu_reports.values() for r in split]
    rng = random.Random(0)
    refs, hypos = rng.sample(reports, 300), rng.sample(reports, 300)
    ours, stats = nlg_stats(refs, hypos)
    for key, value in direct(refs, hypos).items():
        assert abs(ours[key] - value) <= 1e-9, key
        assert abs(stats[key].total() - value) <= 1e-9, (
            key
        )  # what significance resamples is the same score


def test_nlg_equals_pycocoevalcap_on_awkward_texts():
    """Empty, broken, accented texts. METEOR's protocol carries no line break or bar, so it is compared without them."""
    ours = nlg_scores(REFS, HYPOS)
    for key, value in direct(
        REFS, HYPOS, [t.replace("\n", " ").replace("|||", "") for t in REFS]
    ).items():
        assert abs(ours[key] - value) <= 1e-9, key


def test_without_java_meteor_is_none_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="METEOR is None: no working Java"):
        scores = nlg_scores(REFS, HYPOS)
    assert scores["METEOR"] is None and scores["BLEU-1"] > 0 and scores["CIDEr"] > 0
    with pytest.raises(R2GenKGError, match="needs Java"):
        prepare_texts(REFS, HYPOS, ptb=True)


def test_a_broken_java_is_no_java(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="METEOR is None"):
        assert nlg_scores(["a b"], ["a b"])["METEOR"] is None


@pytest.mark.skipif(not java_available(), reason="needs Java")
def test_no_java_process_is_left_behind(tmp_path):
    """In a fresh interpreter, METEOR leaves no child and the interpreter ends."""
    code = (
        "import warnings; warnings.simplefilter('error')\nfrom r2genkg.scores.nlg import nlg_scores\n"
        "assert nlg_scores(['a b c', 'd e'], ['a b d', 'd e'])['METEOR'] > 0\n"
        "from pathlib import Path; tasks = Path('/proc/self/task')\n"
        "print(tasks.exists() and [(t / 'children').read_text() for t in tasks.iterdir()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "".join(c for c in done.stdout if c.isdigit()) == ""


@pytest.mark.skipif(not java_available(), reason="needs Java")
def test_ptb_tokenizer_is_applied_only_when_asked():
    refs, hypos = prepare_texts(["The heart's size is normal."], ["Normal heart."], ptb=True)
    assert refs == ["the heart 's size is normal"] and hypos == ["normal heart"]
    assert prepare_texts(["The heart's size."], ["x"]) == (["The heart's size."], ["x"])


def r2gen_route(reports, corpus, ids, threshold):
    """R2Gen's tokenizer and decoder, step by step: vocabulary, ids with start and end symbol, cut, decode."""
    words = Counter(w for r in corpus for w in clean_report(r, "iu").split())
    vocabulary = sorted(w for w, n in words.items() if n >= threshold) + ["<unk>"]
    number = {w: i + 1 for i, w in enumerate(vocabulary)}
    decoded = []
    for report in reports:
        sequence = (
            [0] + [number.get(w, number["<unk>"]) for w in clean_report(report, "iu").split()] + [0]
        )[:ids]
        said = []
        for i in sequence[1:]:
            if i == 0:
                break
            said.append(vocabulary[i - 1])
        decoded.append(" ".join(said))
    return decoded


def test_family_mode_cuts_as_r2gen_does(iu_reports):
    corpus = [r for split in iu_reports.values() for r in split]
    refs = iu_reports["train"][:400]
    ours = family_references([clean_report(r, "iu") for r in refs], "iu", corpus=corpus)
    assert ours == r2gen_route(refs, corpus, 60, 3)
    assert max(len(r.split()) for r in ours) == 59 and any("<unk>" in r for r in ours)


def test_family_mode_cuts_as_r2gengpt_does():
    class Tokenizer:
        """Two-letter sub-words."""

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [text[i : i + 2] for i in range(0, len(text), 2)]}

        def decode(self, ids):
            return "".join(ids)

    long = clean_report("Heart size is normal. " * 20, "iu")
    refs, _ = prepare_texts([long], ["x"], "iu", "family", family="r2gengpt", tokenizer=Tokenizer())
    assert refs == [long[:120].strip()]


def table(*rows):
    """A label table from dicts."""
    return pd.DataFrame([{label: row.get(label, np.nan) for label in LABELS} for row in rows])


REF_LABELS = table(
    {"Cardiomegaly": 1, "Edema": 1},
    {"No Finding": 1},
    {"Edema": -1},
    {"Atelectasis": 0, "Fracture": 1},
)
HYPO_LABELS = table(
    {"Cardiomegaly": 1, "Edema": -1}, {"Edema": 1}, {"Edema": 1}, {"Atelectasis": 1, "Fracture": 1}
)


def test_ce_by_hand():
    """Positive labels, reference/hypothesis, u0: {Card, Edema}/{Card}, {NoF}/{Edema}, {}/{Edema}, {Frac}/{Atel, Frac}.

    u1 adds Edema to study 0 (hypothesis) and 2 (reference).
    """
    scores = ce_all(REF_LABELS, HYPO_LABELS)
    want = {  # micro u0: tp Card, Frac; fp Edema x2, Atel; fn Edema, NoF
        "ce_precision/micro-14/u0": 2 / 5,
        "ce_recall/micro-14/u0": 2 / 4,
        "ce_f1/micro-14/u0": 4 / 9,
        "ce_f1/macro-14/u0": (1 + 1) / 14,
        "ce_recall/macro-14/u0": 2 / 14,
        "ce_f1/macro-13/u0": 2 / 13,
        "ce_f1/macro-5/u0": 1 / 5,
        "ce_f1/weighted-14/u0": 2 / 4,
        "ce_precision/example-14/u0": (1 + 0 + 0 + 1 / 2) / 4,
        "ce_recall/example-14/u0": (1 / 2 + 0 + 0 + 1) / 4,
        "ce_f1/example-14/u0": (2 / 3 + 0 + 0 + 2 / 3) / 4,
        # u1: Edema tp 2 fp 1 fn 0
        "ce_precision/micro-14/u1": 4 / 6,
        "ce_recall/micro-14/u1": 4 / 5,
        "ce_f1/micro-14/u1": 8 / 11,
        "ce_precision/macro-14/u1": (1 + 2 / 3 + 1) / 14,
        "ce_f1/macro-14/u1": (1 + 4 / 5 + 1) / 14,
        "ce_f1/example-14/u1": (1 + 0 + 1 + 2 / 3) / 4,
        "ce_f1/example-13/u1": (1 + 0 + 1 + 2 / 3) / 4,
        "ce_f1/macro-5/u1": (1 + 4 / 5) / 5,
    }
    for key, value in want.items():
        assert scores[key] == pytest.approx(value, abs=1e-12), key
    for average in ("micro", "macro", "example"):
        one = ce_scores(REF_LABELS, HYPO_LABELS, average=average)
        assert (
            one["f1"] == scores[f"ce_f1/{average}-14/u0"] and one["variant"] == f"{average}-14/u0"
        )
    assert ce_scores(REF_LABELS, HYPO_LABELS)["variant"] == "macro-14/u0"


def test_confusion_table_by_hand():
    edema = confusion(REF_LABELS, HYPO_LABELS, "Edema")
    assert edema.loc["positive", "uncertain"] == 1 and edema.loc["uncertain", "positive"] == 1
    assert edema.loc["blank"].tolist() == [1, 1, 0, 0] and edema.to_numpy().sum() == 4
    pooled = confusion(REF_LABELS, HYPO_LABELS)
    assert pooled.loc["negative", "positive"] == 1 and pooled.to_numpy().sum() == 56


def test_empty_and_repeated_reports_do_not_break_scores():
    scores = evaluate_reports(REFS, [""] * len(REFS), meteor=False).flat()
    assert scores["BLEU-4"] == 0 and scores["empty"] == 1 and scores["ce_recall/micro-13/u0"] == 0
    assert scores["distinct"] == 1 / len(REFS) and all(
        v is None or isinstance(v, str) or np.isfinite(v) for v in scores.values()
    )


def test_constant_report_rivals_published_models(iu_reports):
    """Why every main table carries it: one report, chosen on the training split, for every study of the others."""
    train, held = ([clean_report(r, "iu") for r in iu_reports[split]] for split in ("train", "val"))
    constant, _ = best_constant(train, train)
    scores = nlg_scores(held, [constant] * len(held), meteor=False)
    assert scores["BLEU-4"] > 0.15 and best_constant(train, held)[1] >= scores["BLEU-4"]


def test_thousand_resamples_of_a_test_split_hold_the_scores(iu_reports):
    train = iu_reports["train"]
    found = evaluate_reports(train[:590], train[590:1180], meteor=False)
    intervals = bootstrap(found.stats, resamples=1000)
    assert (
        set(intervals.index) == set(found.stats)
        and ((intervals.low <= intervals.score) & (intervals.score <= intervals.high)).mean() > 0.9
    )


def write(path, tree):
    """A file of JSON, or of the text as it is."""
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


GOOD = {"CXR1_IM-0001": ["The lungs are clear."], "CXR2_IM-0652": ["Small effusion."]}


@pytest.mark.parametrize(
    "refs, hypos, message",
    [
        (
            GOOD,
            {"CXR1_IM-0001": ["x"]},
            r"hypos.json: 1 of the ids in .*refs.json are missing, first 'CXR2_IM-0652'",
        ),
        (
            {"CXR1_IM-0001": ["x"]},
            GOOD,
            r"refs.json: 1 of the ids in .*hypos.json are missing, first 'CXR2_IM-0652'",
        ),
        (GOOD, [["x"], ["y"]], r"hypos.json: expected \{id: \[text\]\}"),
        (GOOD, {}, r"hypos.json: expected \{id: \[text\]\}"),
        (
            GOOD,
            GOOD | {"CXR2_IM-0652": ["a", "b"]},
            r"hypos.json: id 'CXR2_IM-0652': expected a list of one text",
        ),
        (GOOD, GOOD | {"CXR2_IM-0652": []}, "expected a list of one text"),
        (GOOD, GOOD | {"CXR2_IM-0652": [3]}, "expected a list of one text"),
        (GOOD, GOOD | {"CXR2_IM-0652": None}, "expected a list of one text"),
        ({key: [" "] for key in GOOD}, GOOD, "no reference has any words"),
        (GOOD, '{"CXR1_IM-0001": ["x"],\n', r"hypos.json:\d+: not valid JSON"),
    ],
)
def test_faults_of_report_files_are_named(tmp_path, refs, hypos, message):
    with pytest.raises(R2GenKGError, match=message) as caught:
        evaluate_files(
            write(tmp_path / "refs.json", refs), write(tmp_path / "hypos.json", hypos), meteor=False
        )
    assert "\n" not in str(caught.value)


def test_half_a_character_is_scored(tmp_path):
    """A lone surrogate, which JSON can hold, reaches spaCy and Java as a question mark."""
    (tmp_path / "r.json").write_text('{"a": ["small effusion \\ud800 ."], "b": ["edema ."]}')
    scores = evaluate_files(tmp_path / "r.json", tmp_path / "r.json", meteor=False).flat()
    assert scores["BLEU-1"] == pytest.approx(1) and scores["ce_f1/micro-14/u0"] == 1


def test_missing_report_file_is_named(tmp_path):
    with pytest.raises(R2GenKGError, match="none.json: no such file"):
        evaluate_files(tmp_path / "none.json", tmp_path / "none.json")


def test_report_files_of_the_family_are_scored(tmp_path):
    refs = write(tmp_path / "refs.json", GOOD)
    hypos = write(
        tmp_path / "hypos.json", {key: text[0] for key, text in reversed(GOOD.items())}
    )  # other order, plain text
    scores = evaluate_files(refs, hypos, meteor=False).flat()
    assert (
        scores["BLEU-2"] == pytest.approx(1)
        and scores["ce_f1/micro-14/u0"] == 1
        and scores["graph/entity_f1"] == 1
    )
    assert "disputed" in scores["settings/ce_warning"]  # the ids are those of IU-Xray
    json.dumps(scores)


def test_public_names():
    """The contract: nlg_scores and ce_scores with these keys."""
    assert set(ce_scores(REF_LABELS, HYPO_LABELS)) == {"precision", "recall", "f1", "variant"}
    assert set(nlg_scores(["a b c d"], ["a b c d"], meteor=False)) == {
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "METEOR",
        "ROUGE-L",
        "CIDEr",
    }
