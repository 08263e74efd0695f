"""A generated campaign of damaged files against every reader behind the studies.

Configurations, annotations, graphs, scales, banks, classifiers, runs, labels, scores, answers, tables, checkpoints.

Each case ends in one of two ways, never in another exception: `R2GenKGError`, one line that names the file or its
folder; or the reader's usual result, where the damage leaves a well-formed file behind (a digit that became another
digit).
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from r2genkg.extraction.replay import Replay
from r2genkg.extraction.annotate import annotate
from r2genkg.extraction.annotation_files import load_annotations, save_annotations
from r2genkg.text.chexbert import read_checkpoint
from r2genkg.vision.classifier import SwinClassifier
from r2genkg.core.files import R2GenKGError, write_json
from r2genkg.core.stamps import is_current, stamp
from r2genkg.core.config import load_config
from r2genkg.training.grid import load_grid
from r2genkg.training.run import Run
from r2genkg.kg.scales import load_scales, save_scales
from r2genkg.kg.graph import M3KG
from r2genkg.kg.exchange import export_graph, import_m3kg
from r2genkg.text.labels import label_reports
from r2genkg.text.label_files import read_labels, write_labels
from r2genkg.text.lexicon import load_lexicon
from r2genkg.kg.linker import TableLinker, derive_table
from r2genkg.extraction.llm_settings import load_llm_settings
from r2genkg.scores.report_files import evaluate_files
from r2genkg.model.model import R2GenKG
from r2genkg.phantom.phantoms import load_masks, write_phantoms
from r2genkg.data.tabular import csv_data_frame
from r2genkg.model.qformer import read_tensors
from r2genkg.use.report import token_table
from r2genkg.training.tables import run_stats
from r2genkg.core.weights import load_tensors
from r2genkg.training.trainer import load_trainable, trainable_state
from r2genkg.vision.vision_tokens import VisionTokens

from toy_run import TEXTS, toy_data

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of odd values before they fail


# --- one sound example per reader -------------------------------------------------------------------------------------


@dataclass
class Reader:
    """A sound file or folder, the files in it to be damaged, and how it is read."""

    path: Path
    files: tuple[str, ...]  # relative to `path`; empty: `path` itself
    read: Callable[[Path], object]


@pytest.fixture(scope="session")
def sound_folder(toy, tmp_path_factory) -> Path:
    """A trained toy run and its stages' artifacts."""
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(toy.parent / "data", folder / "data")
    shutil.copytree(toy, folder / "run")
    data = toy_data(folder / "data")
    data.graph.save(folder / "m3kg")
    data.tokens.save(folder / "bank")
    save_scales(folder / "scales", data.scales[:1])
    write_json(
        folder / "run" / "stages.json",
        {"m3kg": "../m3kg", "vision_tokens": "../bank", "scales": "../scales"},
    )
    rows = [
        {
            "id": f"s{i}",
            "reference": t,
            "hypothesis": t,
            "reference_labels": ["Edema"],
            "hypothesis_labels": [],
        }
        for i, t in enumerate(TEXTS)
    ]
    (folder / "run" / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="session")
def sound(sound_folder) -> dict[str, Reader]:
    """Every reader with a sound example."""
    toy = sound_folder
    f = toy / "files"
    f.mkdir()
    graph = M3KG.load(toy / "m3kg")
    (f / "preset.yaml").write_text(
        "name: mine\ntrain: {epochs: 3, lr: 0.001}\nscales: {sizes: [10, 20, 30, 40, 50]}\n"
    )
    (f / "grid.yaml").write_text(
        "preset: demo\nseeds: [1, 2]\nvariants:\n  full: []\n  zero-KG: [model.use_graph=false]\n"
    )
    save_annotations(
        f / "a.jsonl", [(f"s{i}", sentences) for i, sentences in enumerate(annotate(TEXTS))]
    )
    answer = {
        "p/1.jpg": {
            "section_findings": "Small effusion.",
            "res": {"Small effusion.": {"small": "concept", "effusion": "disorder_present"}},
            "res_relation": {
                "Small effusion.": [
                    {"source_entity": "small", "target_entity": "effusion", "type": "modify"}
                ]
            },
        }
    }
    (f / "answers.json").write_text(json.dumps(answer))
    (f / "records.json").write_text(
        json.dumps(
            [
                {
                    "doc_key": "p_0",
                    "sentences": "Small effusion.",
                    "entities": {"small": "concept"},
                    "relations": [],
                }
            ]
        )
    )
    export_graph(graph, "rexkg", f / "rexkg")
    triples = pd.read_csv(f / "rexkg" / "kg_relations.csv")
    triples.to_csv(f / "m3kg.csv", index=False)
    (f / "aliases.json").write_text(
        json.dumps({n: t for n, t in zip(graph.nodes.name, graph.nodes.entity_type)})
    )
    labels = label_reports(TEXTS)
    write_labels(f / "labels.csv", labels, ["a", "b", "c"])
    write_labels(f / "labels.json", labels, ["a", "b", "c"])
    for name in ("refs.json", "hypos.json"):
        (f / name).write_text(json.dumps(dict(zip("abc", [[t] for t in TEXTS]))))
    (f / "llm.yaml").write_text(
        "model: m\nbase_url: http://localhost:8000/v1\nprices: {m: {input: 1, output: 2}}\n"
    )
    (f / "lexicon.yaml").write_bytes(
        (resources("r2genkg") / "resources" / "lexicon.yaml").read_bytes()
    )
    (f / "table.csv").write_text('findings,key\nClear lungs.,a\n"Edema, mild.",b\n')
    (f / "names.csv").write_text("alias,cui,name,tui\neffusion,C0013687,Effusion,T046\n")
    (f / "MRCONSO.RRF").write_text("C0013687|ENG|P|L1|PF|S1|Y|A1||||SRC|PT|1|Effusion|0|N||\n")
    pd.DataFrame(
        {"alias": ["effusion"], "cui": ["C0013687"], "name": ["Effusion"], "tui": ["T046"]}
    ).to_parquet(f / "names.parquet")
    phantoms = write_phantoms(f / "phantoms", 2, 0, 0, size=48)
    torch.save(
        {
            "model": {"a": torch.ones(3, 2), "b": torch.zeros(2)},
            "config": {"x": 1},
            "epoch": 1,
            "step": 2,
        },
        f / "reference.pth",
    )
    torch.save(
        {
            "model_state_dict": {
                f"module.linear_heads.{i}.weight": torch.zeros(4, 8) for i in range(14)
            }
        },
        f / "chexbert.pth",
    )
    save_file({"x": torch.ones(4), "y": torch.zeros(2, 2)}, f / "any.safetensors", {"key": "{}"})
    model = R2GenKG.load(toy / "run")
    save_file(
        {k: v.contiguous().clone() for k, v in trainable_state(model).items()},
        f / "checkpoint.safetensors",
    )
    (f / "stage").mkdir()
    stamp(f / "stage", "0123456789abcdef")
    run = (
        "config.yaml",
        "knowledge.safetensors",
        "scales/scales.safetensors",
        "scales/nodes.json",
        "vision_tokens/features.safetensors",
        "vision_tokens/tokens.parquet",
        "vision_tokens/meta.json",
        "vision/config.json",
        "vision/model.safetensors",
        "llm/config.json",
        "llm/model.safetensors",
        "tokenizer/tokenizer.json",
    )
    return {
        "preset": Reader(f / "preset.yaml", (), load_config_of),
        "grid": Reader(f / "grid.yaml", (), lambda p: load_grid(str(p))),
        "annotations": Reader(f / "a.jsonl", (), lambda p: list(load_annotations(p))),
        "replay": Reader(f / "answers.json", (), Replay),
        "records": Reader(f / "records.json", (), Replay),
        "replay of lines": Reader(f / "a.jsonl", (), Replay),
        "graph": Reader(
            toy / "m3kg",
            ("nodes.parquet", "triples.parquet", "subgraphs.parquet", "drops.parquet", "meta.json"),
            lambda p: M3KG.load(p).stats(),
        ),
        "rexkg": Reader(
            f / "rexkg",
            ("kg_nodes.json", "kg_relations.csv"),
            lambda p: M3KG.from_rexkg(p / "kg_nodes.json", p / "kg_relations.csv").stats(),
        ),
        "m3kg": Reader(f / "m3kg.csv", (), lambda p: import_m3kg(p).stats()),
        "aliases": Reader(f / "aliases.json", (), lambda p: import_m3kg(f / "m3kg.csv", p).stats()),
        "labels csv": Reader(f / "labels.csv", (), read_labels),
        "labels json": Reader(f / "labels.json", (), read_labels),
        "scores": Reader(
            f / "refs.json",
            (),
            lambda p: evaluate_files(p, f / "hypos.json", meteor=False, labels=None),
        ),
        "llm settings": Reader(f / "llm.yaml", (), lambda p: load_llm_settings(str(p))),
        "lexicon": Reader(f / "lexicon.yaml", (), lambda p: load_lexicon(str(p))),
        "column": Reader(f / "table.csv", (), lambda p: csv_data_frame(p, "findings", "key")),
        "linker csv": Reader(f / "names.csv", (), link),
        "linker parquet": Reader(f / "names.parquet", (), link),
        "umls": Reader(
            f / "MRCONSO.RRF", (), lambda p: derive_table(p, p.with_name("out.parquet"))
        ),
        "masks": Reader(
            f / "phantoms",
            (f"masks/{phantoms[0].id}.safetensors",),
            lambda p: load_masks(p, phantoms[0].id),
        ),
        "truth": Reader(
            f / "phantoms", ("truth.jsonl",), lambda p: list(load_annotations(p / "truth.jsonl"))
        ),
        "reference": Reader(f / "reference.pth", (), read_tensors),
        "chexbert": Reader(f / "chexbert.pth", (), read_checkpoint),
        "tensors": Reader(f / "any.safetensors", (), lambda p: load_tensors(p, ("x",))),
        "checkpoint": Reader(
            f / "checkpoint.safetensors", (), lambda p: load_trainable(R2GenKG.load(toy / "run"), p)
        ),
        "scales": Reader(toy / "scales", ("scales.safetensors", "nodes.json"), load_scales),
        "bank": Reader(
            toy / "bank", ("features.safetensors", "tokens.parquet", "meta.json"), VisionTokens.load
        ),
        "classifier": Reader(
            toy / "data" / "classifier", ("config.json", "model.safetensors"), SwinClassifier.load
        ),
        "run": Reader(toy / "run", run, lambda p: (token_table(Run(p)), Run(p).model)),
        "predictions": Reader(toy / "run", ("predictions.jsonl",), run_stats),
        "stages": Reader(toy / "run", ("stages.json",), stages_or_missing),
        "stamp": Reader(
            f / "stage", ("made_from.json",), lambda p: is_current(p, "0123456789abcdef")
        ),
    }


def load_config_of(path: Path):
    return load_config(str(path))


def link(path: Path):
    return TableLinker(path).link(["effusion"], ["disorder"])


def stages_or_missing(path: Path):
    """The stages of a copied run are not beside it: that is reported in one line as well."""
    try:
        run = Run(path)
        return {name: run.stage(name) for name in ("m3kg", "vision_tokens", "scales")}
    except R2GenKGError as e:
        if "is not at" in str(e):
            return None
        raise


NAMES = [
    "preset",
    "grid",
    "annotations",
    "replay",
    "records",
    "replay of lines",
    "graph",
    "rexkg",
    "m3kg",
    "aliases",
    "labels csv",
    "labels json",
    "scores",
    "llm settings",
    "lexicon",
    "column",
    "linker csv",
    "linker parquet",
    "umls",
    "masks",
    "truth",
    "reference",
    "chexbert",
    "tensors",
    "checkpoint",
    "scales",
    "bank",
    "classifier",
    "run",
    "predictions",
    "stages",
    "stamp",
]
BINARY = {"linker parquet", "masks", "reference", "chexbert", "tensors", "checkpoint"}


def copies(reader: Reader, tmp_path: Path):
    """For each file of a reader: (a copy of all, the file in it)."""
    for n, name in enumerate(reader.files or ("",)):
        home = tmp_path / str(n)
        home.mkdir(parents=True)
        copy = home / reader.path.name
        if reader.path.is_dir():
            shutil.copytree(reader.path, copy)
        else:
            shutil.copyfile(reader.path, copy)
        yield copy, copy / name if name else copy


def attempt(reader: Reader, copy: Path, what: str) -> str:
    """Read; "refused" or "read"."""
    try:
        reader.read(copy)
    except R2GenKGError as e:
        message = str(e)
        assert "\n" not in message and len(message) < 900, message
        assert copy.name in message or copy.parent.name in message or str(copy) in message, (
            f"{what}: the fault names no file: {message}"
        )
        return "refused"
    return "read"


@pytest.mark.parametrize("name", NAMES)
def test_sound_files_are_read(sound, tmp_path, name):
    assert set(NAMES) == set(sound)
    for copy, _ in copies(sound[name], tmp_path):
        assert attempt(sound[name], copy, name) == "read"


@pytest.mark.parametrize("part", [1, 4, 7, 11])
@pytest.mark.parametrize("name", NAMES)
def test_truncated(sound, tmp_path, name, part):
    for copy, file in copies(sound[name], tmp_path):
        content = file.read_bytes()
        file.write_bytes(content[: max(len(content) * part // 12 - part % 3, 0)])
        message = attempt(sound[name], copy, file.name)
        if file.suffix in (".parquet", ".safetensors", ".pth", ".json") and file.name not in (
            "labels.json",
            "made_from.json",
        ):
            assert message == "refused", file.name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes(sound, tmp_path, name, seed):
    for copy, file in copies(sound[name], tmp_path):
        rng, content = random.Random(f"{name}{file.name}{seed}"), bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 3, 10))):
            content[rng.randrange(min(len(content), 3000))] = rng.randrange(
                256
            )  # where the structure is
        file.write_bytes(bytes(content))
        attempt(sound[name], copy, file.name)


FILLS = {
    "empty": b"",
    "nul": b"\x00" * 300,
    "ff": b"\xff" * 300,
    "lines": b"\n\n\n",
    "html": b"<html><body>404 Not Found</body></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "deep": b"[" * 20_000,
    "number": b"9" * 5000,
    "null": b"null",
    "list": b"[1, 2]",
    "text": b'"x"',
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", NAMES)
def test_something_else_altogether(sound, tmp_path, name, fill):
    for copy, file in copies(sound[name], tmp_path):
        file.write_bytes(FILLS[fill])
        attempt(sound[name], copy, f"{file.name} {fill}")


@pytest.mark.parametrize("encoding", ["utf-16", "cp500"])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in BINARY])
def test_other_encodings(sound, tmp_path, name, encoding):
    for copy, file in copies(sound[name], tmp_path):
        if file.suffix in (".parquet", ".safetensors", ".pth"):
            continue
        file.write_bytes(file.read_bytes().decode().encode(encoding, "replace"))
        attempt(sound[name], copy, f"{file.name} {encoding}")


@pytest.mark.parametrize("state", ["missing", "a folder"])
@pytest.mark.parametrize("name", NAMES)
def test_missing_and_folder(sound, tmp_path, name, state):
    for copy, file in copies(sound[name], tmp_path):
        file.unlink()
        if state == "a folder":
            file.mkdir()
        message = attempt(sound[name], copy, f"{file.name} {state}")
        if name not in ("stamp",):
            assert message == "refused", file.name
