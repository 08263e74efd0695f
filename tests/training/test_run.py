"""A trained run opens by one class: in its pipeline's folder, moved, and alone."""

import shutil

import pytest
import torch
from toy_grid import TINY

from r2genkg.core.config import load_config
from r2genkg.core.files import R2GenKGError
from r2genkg.training.pipeline import evaluate_run
from r2genkg.training.run import RUN_FILES, STAGES_FILE, Run


def test_a_run_gives_everything_that_it_was_made_of(outcomes, root):
    run = Run(root)
    assert run.folder == outcomes[0].run and Run(run.folder).folder == run.folder
    assert run.config.model_dump(exclude={"name"}) == load_config(
        "demo", [*TINY, "train.seed=1"]
    ).model_dump(exclude={"name"})
    assert set(run.stages) == {"studies", "m3kg", "scales", "classifier", "vision_tokens"}
    assert run.metrics["scores"] == outcomes[0].scores
    test = [s.id for s in run.studies if s.split == "test"]
    assert list(run.predictions.index) == test and not run.model.training
    assert run.classifier.num_tokens == run.model.prefix.num_visual
    assert torch.equal(run.model.prefix.bank.cpu(), run.bank.features)


def test_the_graph_carries_its_vision_tokens(outcomes, root):
    run = Run(root)
    tokens = run.graph.nodes.visual_tokens
    assert len(tokens) == len(run.graph.nodes) and tokens.map(len).sum() > 0
    rows = {i for row in tokens for i in row}
    assert rows <= set(range(len(run.bank.table)))


def test_a_moved_pipeline_still_opens(outcomes, root, tmp_path):
    for name in ("studies", "m3kg", "vision_tokens", "run"):
        shutil.copytree(root / name, tmp_path / "moved" / name)
    run = Run(tmp_path / "moved")
    assert run.stage("studies") == (tmp_path / "moved" / "studies").resolve()
    assert len(run.graph.nodes) == len(Run(root).graph.nodes)
    with pytest.raises(R2GenKGError, match="its stage classifier is not at") as e:
        _ = run.classifier
    assert "\n" not in str(e.value)
    with pytest.raises(R2GenKGError, match="its stage scales is not at"):
        evaluate_run(tmp_path / "moved")


def test_a_run_that_stands_alone(outcomes, tmp_path):
    alone = shutil.copytree(outcomes[0].run, tmp_path / "alone")
    (alone / STAGES_FILE).unlink()
    run = Run(alone)
    assert run.stages == {} and run.metrics["test_studies"] == len(run.predictions) == 8
    assert run.model.cfg.train.seed == 1
    for read in (lambda: run.studies, lambda: run.graph, lambda: run.bank):
        with pytest.raises(R2GenKGError, match="named in stages.json; keep the pipeline's folder"):
            read()


def test_faults_of_a_run_are_one_line(outcomes, tmp_path):
    broken = shutil.copytree(outcomes[0].run, tmp_path / "run")
    (broken / STAGES_FILE).write_text("[]")
    (broken / "predictions.jsonl").write_text('{"id": "1", "reference": 2')
    (broken / "metrics.json").unlink()
    run = Run(broken)
    for read in (lambda: run.stages, lambda: run.predictions, lambda: run.metrics):
        with pytest.raises(R2GenKGError, match=str(broken)) as e:
            read()
        assert "\n" not in str(e.value)
    (broken / RUN_FILES[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(R2GenKGError, match=f"not a run folder.*{RUN_FILES[0]}.*r2genkg train"):
        Run(broken)
