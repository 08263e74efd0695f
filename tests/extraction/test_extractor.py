"""Extraction of a corpus by trained models: kills, clusters, memory, faults and the command line.

The models are random and tiny."""

import importlib.util
import json
import os
import random
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from r2genkg.extraction.annotate import annotate
from r2genkg.extraction.annotation_files import load_annotations, save_annotations
from r2genkg.use.commands import main
from r2genkg.core.files import R2GenKGError
from r2genkg.core.runtime import set_seed
from r2genkg.extraction.model_training import ExtractConfig
from r2genkg.extraction.entity_model import SpanEnsemble, SpanModel
from r2genkg.extraction.word_pieces import WordPieces
from r2genkg.extraction.encoders import open_encoder
from r2genkg.extraction.training_sentences import sentence_key, split_reports
from r2genkg.extraction.extractor import ExtractModel, train_extract
from r2genkg.extraction.corpus import extract_corpus, extract_corpus_ray
from r2genkg.extraction.training_sentences import read_training_reports
from r2genkg.phantom.wording import write_report
from r2genkg.text.sentences import split_sentences
from r2genkg.phantom.findings import sample_findings
from r2genkg.data.annotation import REXKG_TYPES, RELATION_TYPES, SentenceAnnotation
from r2genkg.extraction.relation_model import MarkerModel, possible_pairs


def written(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [write_report(sample_findings(rng), rng) for _ in range(n)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A folder with a tiny random BERT and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    open_encoder("minilm")[1].save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=30_522,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder) -> Path:
    """An untrained model that finds many things."""
    set_seed(0)
    config = ExtractConfig(encoder=str(encoder), hidden=16, max_width=3)
    kinds = ("anatomy", "concept", "disorder_present", "devices_present")
    related = {(a, b): RELATION_TYPES for a in kinds for b in kinds}
    model, tokenizer = open_encoder(str(encoder))
    made = ExtractModel(
        config,
        SpanEnsemble([SpanModel(model, 3, 16)]),
        MarkerModel(open_encoder(str(encoder))[0], 16),
        WordPieces(tokenizer),
        related,
    )
    with torch.no_grad():
        made.entities.members[0].rest[-1].weight.mul_(20)
        made.relations.rest[-1].weight.mul_(20)
    out = tmp_path_factory.mktemp("model") / "m"
    made.save(out)
    return out


def test_a_causal_model_as_encoder(tmp_path):
    """Both models on the first layer of a decoder that reads two ways; saved and loaded they find the same."""
    from transformers import LlamaConfig, LlamaModel

    open_encoder("minilm")[1].save_pretrained(tmp_path / "llama")
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(
            vocab_size=30_522,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(tmp_path / "llama")
    config = ExtractConfig(
        encoder=str(tmp_path / "llama"),
        encoder_layers=1,
        hidden=32,
        max_width=3,
        epochs=10,
        relation_epochs=1,
        lr_encoder=3e-3,
        lr_head=3e-3,
    )
    reports = written(100)
    model = train_extract(
        [(str(n), r.sentences) for n, r in enumerate(reports)], tmp_path / "model", config
    )
    again, texts = (
        ExtractModel.load(tmp_path / "model"),
        [s.text for r in reports[:10] for s in r.sentences],
    )
    assert [(s.entities, s.relations) for s in again.annotate(texts)] == [
        (s.entities, s.relations) for s in model.annotate(texts)
    ]
    assert (
        type(again.entities.members[0].encoder).__name__ == "TwoWay"
        and again.entities.members[0].encoder.config.num_hidden_layers == 1
    )
    assert model.scores["token F1"] > 0.5 and again.key == model.key


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, str]]:
    return [(f"r{n}", f"{r.text} Nodule number {n} of {n} mm.") for n, r in enumerate(written(250))]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, folder, corpus) -> bytes:
    """The output of an undisturbed run."""
    out = tmp_path_factory.mktemp("quiet") / "a.jsonl"
    done = extract_corpus(corpus, folder, out, batch_size=8)
    assert done["reports"] == 250 and done["distinct sentences"] < done["sentences"]
    sentences = [s for _, report in load_annotations(out) for s in report]
    assert (
        sum(len(s.entities) for s in sentences) > 500
        and sum(len(s.relations) for s in sentences) > 100
    )  # the comparison is about something
    return out.read_bytes()


def forked(job) -> int:
    """Run `job` in a copy of this process; its id."""
    if pid := os.fork():
        return pid
    try:
        job()
    finally:
        os._exit(0)


def test_ten_kills_leave_no_trace(tmp_path, folder, corpus, quiet):
    torch.set_num_threads(1)
    out, model, rng, kills, held = (
        tmp_path / "a.jsonl",
        ExtractModel.load(folder),
        random.Random(0),
        0,
        [],
    )
    start = time.monotonic()
    os.waitpid(
        forked(lambda: extract_corpus(corpus, model, tmp_path / "first.jsonl", batch_size=8)), 0
    )
    whole = time.monotonic() - start
    assert (tmp_path / "first.jsonl").read_bytes() == quiet
    while kills < 10:
        pid = forked(lambda: extract_corpus(corpus, model, out, batch_size=8))
        time.sleep(rng.uniform(0.02, 0.4) * whole)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        if out.exists():  # it was quicker: what it wrote is right, and the next round begins anew
            assert out.read_bytes() == quiet
            out.unlink()
        held.append(out.with_name("a.jsonl.progress").exists())
    assert any(held)
    extract_corpus(corpus, model, out, batch_size=8)
    assert out.read_bytes() == quiet
    assert not [p.name for p in tmp_path.glob("a.jsonl.progress*")]


def test_ray_gives_the_same(tmp_path, folder, corpus, quiet):
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    import ray

    ray.init(
        num_cpus=2,
        log_to_driver=False,
        include_dashboard=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    try:
        done = extract_corpus_ray(corpus, folder, tmp_path / "ray.jsonl", workers=2, batch_size=8)
    finally:
        ray.shutdown()
    assert done["reports"] == 250 and (tmp_path / "ray.jsonl").read_bytes() == quiet


def test_without_ray(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(R2GenKGError, match=r"pip install 'r2genkg\[ray\]'"):
        extract_corpus_ray([("a", "b")], folder, tmp_path / "a.jsonl")


class Echo(ExtractModel):
    """Answers without a model."""

    def annotate(self, texts):
        return [SentenceAnnotation(t, tuple(t.split())) for t in texts]


def test_memory_does_not_grow_with_the_corpus(tmp_path, folder):
    echo = Echo(**vars(ExtractModel.load(folder)))

    def peak(n):
        stream = (
            (
                f"r{i}",
                f"Lungs are clear. Nodule of {i} mm in the right upper lobe. Heart is normal.",
            )
            for i in range(n)
        )
        tracemalloc.start()
        extract_corpus(stream, echo, tmp_path / f"{n}.jsonl")
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)
    few, many = peak(1_000), peak(12_000)
    assert many < 1.3 * few + 300_000, (few, many)
    assert sum(1 for _ in open(tmp_path / "12000.jsonl")) == 12_000


def test_every_distinct_sentence_is_asked_once(tmp_path, folder):
    asked = []

    class Asked(Echo):
        def annotate(self, texts):
            asked.append([len(t) for t in texts])
            return super().annotate(texts)

    texts = [
        (str(i), "Clear lungs. Heart is normal. " + "No large effusion is seen here. " * (i % 3))
        for i in range(50)
    ]
    done = extract_corpus(
        texts, Asked(**vars(ExtractModel.load(folder))), tmp_path / "a.jsonl", batch_size=2
    )
    lengths = [n for batch in asked for n in batch]
    assert len(lengths) == done["distinct sentences"] == 3 and lengths == sorted(lengths)


def test_only_possible_pairs_are_scored(folder, monkeypatch):
    model, seen = ExtractModel.load(folder), []
    forward = model.relations.forward
    monkeypatch.setattr(
        model.relations,
        "forward",
        lambda **batch: (seen.append(len(batch["pairs"])), forward(**batch))[1],
    )
    sentences = [s for r in written(10) for s in r.sentences]
    model.annotate_tokens(sentences, keep_entities=True)
    possible = sum(len(possible_pairs(s.entities, model.related)) for s in sentences)
    assert sum(seen) == possible < sum(len(s.entities) * (len(s.entities) - 1) for s in sentences)
    model.related, before = {}, len(seen)
    assert (
        all(not s.relations for s in model.annotate_tokens(sentences, keep_entities=True))
        and len(seen) == before
    )


def test_typed_markers_do_not_depend_on_what_is_read_first(folder):
    """ReXKG's relation script saves its markers before it makes them; inference numbers them by order of appearance."""
    model = ExtractModel.load(folder)
    sentences = [s for r in written(20) for s in r.sentences if s.entities]
    forwards = model.annotate_tokens(sentences, keep_entities=True)
    assert (
        ExtractModel.load(folder).annotate_tokens(sentences[::-1], keep_entities=True)[::-1]
        == forwards
    )
    devices = REXKG_TYPES.index("devices_present")
    with torch.no_grad():
        model.relations.marker.weight[[devices, len(REXKG_TYPES) + devices]] *= -30
    changed = [
        s
        for s, a, b in zip(
            sentences, forwards, model.annotate_tokens(sentences, keep_entities=True)
        )
        if a != b
    ]
    assert changed and all("devices_present" in {e.rexkg_type for e in s.entities} for s in changed)


def test_batches_do_not_change_what_is_found(folder, corpus):
    from dataclasses import replace

    model, sentences = (
        ExtractModel.load(folder),
        sorted({s for _, t in corpus[:40] for s in split_sentences(t)}),
    )
    assert replace(model, batch_size=1).annotate(sentences) == replace(
        model, batch_size=50
    ).annotate(sentences)


def test_no_sentence_is_shared_between_parts(shared_data):
    parts = split_reports(read_training_reports(shared_data("rexkg", "gpt4o_entities_500.json")))
    keys = {name: {sentence_key(s.text) for s in sentences} for name, sentences in parts.items()}
    assert (
        not keys["train"] & keys["dev"]
        and not keys["train"] & keys["test"]
        and not keys["dev"] & keys["test"]
    )
    assert min(map(len, keys.values())) > 200


def damaged(folder: Path, out: Path, **files) -> Path:
    """A copy of the folder with other contents of some files."""
    import shutil

    shutil.copytree(folder, out)
    for name, data in files.items():
        (out / name.replace("__", ".")).write_bytes(data)
    return out


def test_folders_that_are_no_model(tmp_path, folder):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            R2GenKGError, match=r"no extraction model here \(extract.json is missing\)"
        ):
            ExtractModel.load(path)
    for n, files in enumerate(
        (
            {"entity__safetensors": b"x"},
            {"entity__safetensors": (folder / "entity.safetensors").read_bytes()[:5000]},
            {"entity__safetensors": (folder / "relation.safetensors").read_bytes()},
            {"extract__json": b"{}"},
        )
    ):
        with pytest.raises(R2GenKGError, match="the extraction model is damaged"):
            ExtractModel.load(damaged(folder, tmp_path / str(n), **files))
    with pytest.raises(R2GenKGError, match="extract.json:1: not valid JSON"):
        ExtractModel.load(damaged(folder, tmp_path / "cut", extract__json=b'{"for'))
    old = json.loads((folder / "extract.json").read_text()) | {"entity_types": ["thing"]}
    with pytest.raises(R2GenKGError, match="other entity or relation types"):
        ExtractModel.load(damaged(folder, tmp_path / "old", extract__json=json.dumps(old).encode()))
    (damaged(folder, tmp_path / "lost") / "encoder" / "config.json").unlink()
    with pytest.raises(R2GenKGError, match="damaged"):
        ExtractModel.load(tmp_path / "lost")


def test_annotations_that_teach_nothing(tmp_path, encoder):
    save_annotations(
        tmp_path / "bare.jsonl", [("r", [SentenceAnnotation("Clear.", ("Clear", "."))])]
    )
    with pytest.raises(R2GenKGError, match="bare.jsonl: no annotated entity in it"):
        read_training_reports(tmp_path / "bare.jsonl")
    few = list(zip("ab", annotate(["Large heart.", "No effusion."])))
    with pytest.raises(R2GenKGError, match="different reports are too few"):
        train_extract(few, tmp_path / "m", ExtractConfig(encoder=str(encoder)))
    reports = [(str(n), r.sentences) for n, r in enumerate(written(30))]
    with pytest.raises(R2GenKGError, match="encoder /no/encoder: cannot be loaded"):
        train_extract(reports, tmp_path / "m", ExtractConfig(encoder="/no/encoder"))
    assert not (tmp_path / "m").exists()


def test_a_run_of_another_corpus_or_model_is_refused(tmp_path, folder, corpus):
    class Broken(Echo):
        def annotate(self, texts):
            raise KeyboardInterrupt

    fields = vars(ExtractModel.load(folder))
    with pytest.raises(KeyboardInterrupt):
        extract_corpus(corpus[:20], Broken(**fields), tmp_path / "a.jsonl")
    for changed in (corpus[:19], corpus[:21], corpus[1:21], [*corpus[:19], ("r19", "Other.")]):
        with pytest.raises(R2GenKGError, match="not those of the run that was cut off"):
            extract_corpus(changed, Echo(**fields), tmp_path / "a.jsonl")
    with pytest.raises(R2GenKGError, match="another model or other settings"):
        extract_corpus(corpus[:20], Echo(**fields), tmp_path / "a.jsonl", batch_size=7)
    with pytest.raises(R2GenKGError, match="another model or other settings"):
        extract_corpus(
            corpus[:20], Echo(**fields | {"relation_source": "none"}), tmp_path / "a.jsonl"
        )
    assert extract_corpus(corpus[:20], Echo(**fields), tmp_path / "a.jsonl")["reports"] == 20


def test_two_runs_into_one_file(tmp_path, folder):
    class Second(Echo):
        def annotate(self, texts):
            with pytest.raises(R2GenKGError, match="another run is writing it"):
                extract_corpus([("a", "No edema.")], Echo(**fields), tmp_path / "a.jsonl")
            return super().annotate(texts)

    fields = vars(ExtractModel.load(folder))
    assert (
        extract_corpus([("a", "No edema.")], Second(**fields), tmp_path / "a.jsonl")["sentences"]
        == 1
    )


def test_odd_texts(tmp_path, folder):
    odd = [
        "",
        "   ",
        "...",
        "\u200b\u200b x",
        "A" * 5000 + ".",
        "caf\u00e9 \U0001f600 opacity.",
        "lone \ud800 surrogate.",
        "nodule " * 2000,
        "3.5 x 2 cm\n\nlesion",
    ]
    done = extract_corpus(
        [(f"\u00fc{i}", t) for i, t in enumerate(odd)], folder, tmp_path / "a.jsonl"
    )
    rows = dict(load_annotations(tmp_path / "a.jsonl"))
    assert (
        done["reports"] == len(odd) == len(rows)
        and rows["\u00fc0"] == rows["\u00fc2"] == []
        and sum(len(sentence.tokens) for sentence in rows["\u00fc7"]) == 2000
    )


def refused(capsys, *args) -> str:
    """The one line that a command is refused with, in this process."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_command_line(tmp_path, encoder, capsys, run):
    reports = written(100)
    save_annotations(
        tmp_path / "sample.jsonl", ((str(n), r.sentences) for n, r in enumerate(reports))
    )
    rows = [
        {"id": f"CXR{n}_IM", "report": r.text, "image_path": [f"CXR{n}_IM/0.png"], "split": "train"}
        for n, r in enumerate(reports[:20])
    ]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": rows, "val": [], "test": []}))
    scores = json.loads(
        run(
            "extract",
            "train",
            "--annotations",
            "sample.jsonl",
            "--out",
            "m",
            "--encoder",
            encoder,
            "--epochs",
            1,
            "--relation-epochs",
            1,
            "--json",
            cwd=tmp_path,
        ).stdout
    )
    assert {"token F1", "span F1", "relation F1", "relation F1, given entities", "per type"} <= set(
        scores
    ) and scores["relations from"] == "model"
    assert (
        json.loads(
            run(
                "extract",
                "run",
                "--model",
                "m",
                "--studies",
                "annotation.json",
                "--out",
                "run.jsonl",
                "--json",
                cwd=tmp_path,
            ).stdout
        )["reports"]
        == 20
    )
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "annotate",
                str(tmp_path / "annotation.json"),
                "--annotator",
                f"model:{tmp_path / 'm'}",
                "--out",
                str(tmp_path / "plain.jsonl"),
            ]
        )
    assert stop.value.code == 0
    assert dict(load_annotations(tmp_path / "run.jsonl")) == dict(
        load_annotations(tmp_path / "plain.jsonl")
    )
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == [
        "annotation.json",
        "m",
        "plain.jsonl",
        "run.jsonl",
        "sample.jsonl",
    ]
    wrong = (
        "extract",
        "run",
        "--studies",
        tmp_path / "annotation.json",
        "--out",
        tmp_path / "x.jsonl",
        "--model",
    )
    capsys.readouterr()
    assert "no extraction model here" in refused(capsys, *wrong, tmp_path)
    assert "cannot be loaded" in refused(
        capsys,
        "extract",
        "train",
        "--annotations",
        tmp_path / "sample.jsonl",
        "--out",
        tmp_path / "n",
        "--encoder",
        "/no/encoder",
    )
    if importlib.util.find_spec("ray") is None:
        assert "r2genkg[ray]" in refused(capsys, *wrong, tmp_path / "m", "--ray", 2)
    for sub in ((), ("train",), ("run",)):
        with pytest.raises(SystemExit) as stop:
            main(["extract", *sub, "--help"])
        assert stop.value.code == 0 and "Usage" in capsys.readouterr().out


def test_a_graph_from_a_model(tmp_path, folder, corpus):
    from r2genkg.kg.build import build_from_file

    rows = [
        {"id": id, "report": text, "image_path": [f"{id}/0.png"], "split": "train"}
        for id, text in corpus[:30]
    ]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": rows, "val": [], "test": []}))
    stats = build_from_file(
        tmp_path / "annotation.json", tmp_path / "kg", annotator=f"model:{folder}"
    )
    assert stats["nodes"] > 10 and stats["triples"] > 10
