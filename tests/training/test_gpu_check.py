"""`r2genkg doctor --gpu` at small sizes: every part on a CPU, and two processes of DDP."""

import json
from pathlib import Path

import pytest

from r2genkg.core.config import load_config, override
from r2genkg.training.gpu_check import CheckSizes, check_gpu, measure_processes, paper_sizes
from r2genkg.training.memory_plan import llm_shape, memory_plan

CHANGES = (
    *("llm.name=scratch", "llm.hidden=64", "llm.layers=2", "llm.heads=2", "llm.ff=128"),
    *("llm.vocab=400", "model.dim=64", "model.heads=2", "model.dim_node=32", "model.dim_gcn=16"),
    *("model.dim_encoder=32", "model.qformer_layers=2", "model.qformer_heads=2"),
    *("model.qformer_ff=32", "model.fuser_heads=2", "model.fuser_ff=32"),
    *("scales.sizes=[5,6,7,8,9]", "studies.image_size=56", "train.batch_size=2"),
    *("train.target_length=12", "decode.batch_size=2"),
)
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7, "patch_size": 4}


def small(*changes: str) -> CheckSizes:
    config = override(load_config("chexpert-plus"), (*CHANGES, *changes))
    return CheckSizes(config, SWIN, bank=28, edges_per_node=2, steps=2, new_tokens=4)


@pytest.fixture(scope="module")
def found() -> dict:
    return check_gpu(small())


def test_every_part_is_measured(found):
    for name in ("without checkpointing", "with checkpointing"):
        part = found[name]
        assert part["seconds a step"] > 0 and part["planned GiB"] > 0, part
        assert part["loss"][-1] < part["loss"][0]
    assert found["beam search"]["tokens/s"] > 0 and found["beam search"]["beams"] == 3
    first, again = found["resumed step"]["losses"]
    assert first == again and not found["resumed step"]["greatest difference of weights"]
    assert "two are needed" in found["two cards"]["not measured"]


def test_the_paper_is_what_is_measured():
    sizes = paper_sizes()
    shape, config = llm_shape(sizes.config.llm), sizes.config
    assert (shape.hidden, shape.layers, shape.ff, shape.vocab) == (4096, 32, 11008, 32000)
    assert config.llm.adapter == "qlora" and config.train.batch_size == 6
    assert sum(sizes.swin["depths"]) == 24 and memory_plan(config).total > 20


def test_two_processes_end_with_the_same_weights():
    found = measure_processes(small(), 2, "cpu")
    assert found["processes"] == 2 and found["same weights"]


def test_a_part_that_fails_says_why():
    found = check_gpu(small("decode.beams=1"), minutes=0)
    assert {part["not measured"] for part in found.values() if isinstance(part, dict)} == {
        "no time was left"
    }


def test_the_table_reads_what_was_measured(found, tmp_path):
    import runpy

    table = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "table.py"))
    row = json.loads(json.dumps(found))
    words = table["gpu"](row)
    assert "s a step" in words and "tokens/s" in words and "resumed" in words
    row["beam search"] = {"not measured": "out of memory"}
    assert "beam search not measured (out of memory)" in table["gpu"](row)
