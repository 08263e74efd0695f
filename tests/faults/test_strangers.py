"""Runs, studies and tables of strangers: program code of models, films of the reader's own, ids, cells, file modes.

And what a new version may do to a finished run: nothing, unless it is told to.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from r2genkg.core.config import load_config
from r2genkg.core.files import R2GenKGError, atomic_path, write_json
from r2genkg.core.weights import load_reason, trusted
from r2genkg.data.study import Study, load_studies, save_studies
from r2genkg.data.tabular import plain_cell, safe_cell, visible
from r2genkg.extraction.encoders import open_encoder
from r2genkg.model.llm import check_reachable
from r2genkg.model.vision_backbone import VisionBackbone
from r2genkg.text.label_files import read_labels, write_labels
from r2genkg.text.labels import label_reports
from r2genkg.training.pipeline import run_pipeline
from r2genkg.training.run import _with_own_films
from r2genkg.training.stages import STAGES
from r2genkg.vision.classifier import build_swin

# --- program code of models -------------------------------------------------------------------------------------------

AUTO = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"]


@pytest.fixture
def own_model(tmp_path) -> Path:
    """A model's folder whose Python file leaves a mark when it is imported."""
    folder = tmp_path / "model"
    folder.mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    maps = {name: "own.Own" for name in AUTO}
    write_json(folder / "config.json", {"model_type": "own", "auto_map": maps})
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    write_json(folder / "tokenizer_config.json", tokenizer)
    return folder


@pytest.mark.parametrize("way", ["encoder", "llm", "vision", "classifier", *AUTO])
@pytest.mark.parametrize("answer", ["y\n", ""])
def test_model_code_never_runs(own_model, tmp_path, monkeypatch, way, answer):
    import io, sys, transformers

    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr("builtins.input", lambda *a: answer.strip())
    ways = {
        "encoder": lambda: open_encoder(str(own_model)),
        "llm": lambda: check_reachable(load_config("demo", [f"llm.name={own_model}"]).llm),
        "vision": lambda: VisionBackbone.from_name(str(own_model)),
        "classifier": lambda: build_swin(
            load_config("demo", [f"classifier.backbone={own_model}"]).classifier, 224
        ),
    }
    for name in AUTO:
        auto = getattr(transformers, name)
        ways[name] = lambda auto=auto: auto.from_pretrained(own_model, **trusted(own_model))
    with pytest.raises((R2GenKGError, ValueError, OSError)) as refused:
        ways[way]()
    assert not (tmp_path / "ran").exists()
    if way not in AUTO:
        assert isinstance(refused.value, R2GenKGError) and "never run here" in str(refused.value)
    elif isinstance(refused.value, ValueError):
        assert "never run here" in load_reason(refused.value)


# --- films of the reader's own ----------------------------------------------------------------------------------------


class Pipeline:
    """As much of a run as the check of films reads."""

    def __init__(self, home: Path, studies: list[Study]):
        self.home, self.studies = home, studies

    def stage(self, name: str) -> Path:
        return self.home / name


@pytest.mark.parametrize(
    "trick", ["full path", "climb", "link", "another study", "own", "outside, own"]
)
def test_films_of_the_bank(tmp_path, trick):
    home, private = tmp_path / "run", tmp_path / "private.png"
    (home / "studies").mkdir(parents=True)
    for file in (private, home / "studies" / "a.png"):
        Image.new("L", (8, 8)).save(file)
    (home / "studies" / "link.png").symlink_to(private)
    named = {
        "full path": private,
        "climb": home / "studies" / ".." / ".." / "private.png",
        "link": home / "studies" / "link.png",
        "another study": private,
        "own": home / "studies" / "a.png",
        "outside, own": private,
    }[trick]
    known = {"another study": "s9", "outside, own": "s1"}.get(trick)
    studies = [Study(known, (str(private),), "Clear.")] if known else []
    table = pd.DataFrame({"study": ["s1"], "image": [str(named)]})
    (shown,) = _with_own_films(table, Pipeline(home, studies))["image"]
    assert bool(shown) == trick.endswith("own")


# --- ids and cells ----------------------------------------------------------------------------------------------------

IDS = [
    "",
    "../a",
    "a/b",
    "a\\b",
    ".a",
    "a\x1b[31m",
    "a\x9b31m",
    "a\x07",
    "a\x00b",
    "x" * 300,
    "\ud800",
]


@pytest.mark.parametrize("id", IDS)
def test_ids_of_parquet(tmp_path, id):
    save_studies([Study("good", ("a.png",), "Clear.")], tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    try:
        ids = pa.array([id])
    except (UnicodeEncodeError, pa.ArrowInvalid):
        return  # parquet cannot hold it
    table = table.set_column(table.column_names.index("id"), "id", ids)
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(R2GenKGError, match="row 0") as refused:
        load_studies(tmp_path / "s.parquet")
    assert "\x1b" not in str(refused.value) and "\x9b" not in str(refused.value)


def test_id_twice_in_parquet(tmp_path):
    study = Study("a", ("a.png",), "Clear.")
    save_studies([study, replace(study, findings="Edema.")], tmp_path / "s.parquet")
    with pytest.raises(R2GenKGError, match="'a' is there twice"):
        load_studies(tmp_path / "s.parquet")


@pytest.mark.parametrize(
    "code", [*range(0x00, 0x09), 0x0B, 0x1B, 0x7F, *range(0x80, 0xA0, 3), 0x9B]
)
def test_control_characters_stay_out_of_the_terminal(code):
    assert chr(code) not in visible(f"effusion{chr(code)}[2J")


CELLS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "=cmd|'/c calc'!A0",
    "\t=1",
    "\r=1",
    "- no effusion.",
    "=é",
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("raw", [False, True])
def test_formulas_in_csv(tmp_path, cell, raw):
    write_labels(tmp_path / "l.csv", label_reports([cell]), [cell], raw=raw)
    text = (tmp_path / "l.csv").read_text().splitlines()[1].lstrip('"')
    assert text.startswith(
        cell[:1] if raw and cell[:1] not in "\t\r" else ("'" if not raw else text[:1])
    )
    if not raw:
        assert plain_cell(safe_cell(cell)) == cell.replace("\r", " ")
        assert read_labels(tmp_path / "l.csv").index[0].strip() == cell.strip()


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
@pytest.mark.parametrize("private", [False, True])
def test_modes_follow_the_umask(tmp_path, mask, private):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "out", private) as tmp:
            tmp.mkdir()
            for name, mode in (("weights", 0o600), ("texts", 0o644), ("open", 0o666)):
                (tmp / name).touch()
                (tmp / name).chmod(mode)
    finally:
        os.umask(before)
    wanted = 0o666 & ~(mask | (0o077 if private else 0))
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {wanted}


# --- a new version and a finished run ---------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A pipeline whose stages write a word, made once; gives its folder and a function that makes it again."""
    import r2genkg.training.pipeline as pipeline
    import r2genkg.training.stages as stages

    made = []

    def make(config, paths, out, work):
        made.append(out)
        (out / "knowledge.safetensors").write_text("w")
        return ""

    fake = tuple(replace(stage, make=make) for stage in STAGES)
    for module in (pipeline, stages):
        monkeypatch.setattr(module, "STAGES", fake)
    monkeypatch.setattr(pipeline, "preflight", lambda *a: None)
    monkeypatch.setattr(pipeline, "_check_made", lambda *a: None)

    def again(*changes: str, formats: dict[str, int] = {}, remake: bool = False) -> int:
        stages_now = tuple(replace(s, format=formats.get(s.name, 1)) for s in fake)
        for module in (pipeline, stages):
            monkeypatch.setattr(module, "STAGES", stages_now)
        before = len(made)
        run_pipeline(load_config("demo", changes), tmp_path / "p", remake=remake)
        return len(made) - before

    assert again() == 6
    return tmp_path / "p", again


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "1.0.0"])
def test_new_version_trains_nothing(finished, monkeypatch, version):
    monkeypatch.setattr("r2genkg.__version__", version)
    assert finished[1]() == 0


@pytest.mark.parametrize("name", [s.name for s in STAGES])
def test_new_format_does_not_replace_a_trained_run(finished, name):
    folder, again = finished
    with pytest.raises(R2GenKGError, match=rf"{name} \(format 1, now 2\).*--remake"):
        again(formats={name: 2})
    assert again(formats={name: 2}, remake=True) > 0
    assert again(formats={name: 2}) == 0


@pytest.mark.parametrize("name", [s.name for s in STAGES])
def test_key_of_a_new_version(finished, name):
    """A stamp of a version that did not know a key is up to date while the key has its default."""
    folder, again = finished
    file = folder / name / "made_from.json"
    stored = json.loads(file.read_text())
    section = next(iter(stored["settings"]))
    keys = stored["settings"][section]
    default = json.loads(json.dumps(getattr(load_config("demo"), section).decisive()))
    same = [
        k
        for k in keys
        if getattr(type(getattr(load_config("demo"), section))(), k, None) == default[k]
    ]
    keys.pop(same[0])
    stored["hash"] = "0" * 16 if name == "run" else stored["hash"]
    file.write_text(json.dumps(stored))
    assert again() == 0


def test_changed_setting_still_makes_the_stage_again(finished):
    assert finished[1]("decode.candidates=3") == 1
    assert finished[1]("decode.candidates=3") == 0
