"""Knowledge prefix against a straight re-creation of the reference's procedure: same weights, same output.

Real dimensions of the paper: Swin-B width 1024 (the vision encoder itself is not timed), scales of 101, 206, 319, 400
and 558 nodes, bank of 6,943 vision tokens, 12-layer Q-Former of width 768, language model width 4096; random weights.

    OMP_NUM_THREADS=1 python benchmarks/prefix.py            # prints JSON; --out FILE also writes it
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from r2genkg.core.config import ModelConfig
from r2genkg.model.fusion import KnowledgePrefix

SIZES = (101, 206, 319, 400, 558)


def reference_prefix(p: KnowledgePrefix, visual: torch.Tensor) -> torch.Tensor:
    """The forward pass of the reference's models/R2GenKG.py, step by step.

    Everything is computed in every call, and the nodes are copied for every image.
    """
    m, batch = p.parts, len(visual)
    queries = m["disease_queries"]
    image = queries.proj(visual)
    asked = queries.qformer(
        queries.tokens.expand(batch, -1, -1),
        encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
    ).last_hidden_state
    r = m["attention_visual"]
    keys, values = r.key_proj(p.bank), r.value_proj(p.bank)
    found = (r.query_proj(asked) @ keys.T / keys.shape[1] ** 0.5).softmax(-1) @ values
    encoded = [m["gcn"](s.x, s.edge_index, s.edge_type) for s in p.scales]
    fused = m["fuser"](torch.cat(encoded), [len(e) for e in encoded])
    nodes = (
        m["gcn_proj"](fused.split([len(e) for e in encoded])[p.config.feed_scale - 1])
        .expand(batch, -1, -1)
        .transpose(0, 1)
    )
    tokens = visual.transpose(0, 1)

    def block(b, q, kv):
        q = (
            q + b.attn(b.ln_1(q), b.ln_1(kv), b.ln_1(kv))[0]
        )  # weights are computed and dropped, as in the reference
        return q + b.mlp["c_proj"](F.gelu(b.mlp["c_fc"](b.ln_2(q))))

    v2kg = block(m["cross_attn_i2g"], tokens, nodes).transpose(0, 1)
    kg2v = block(m["cross_attn_g2i"], nodes, tokens).transpose(0, 1)
    wide = m["llama_proj"](torch.cat([visual, kg2v, v2kg], 1))
    narrow = [m["llama_proj"](m["output_proj"](t)) for t in (asked, found)]
    return m["layer_norm"](torch.cat([wide, *narrow], 1))


def build(edges_per_node: int) -> KnowledgePrefix:
    """The paper's prefix with random weights and random graphs."""
    g = torch.Generator().manual_seed(0)
    scales = [
        SimpleNamespace(
            x=torch.randn(n, 768, generator=g),
            edge_index=torch.randint(n, (2, edges_per_node * n), generator=g),
            edge_type=torch.randint(3, (edges_per_node * n,), generator=g),
        )
        for n in SIZES
    ]
    torch.manual_seed(0)
    return KnowledgePrefix(ModelConfig(), scales, torch.randn(6943, 768, generator=g), dim_llm=4096)


def peak_bytes(step) -> int:
    """Most bytes that PyTorch's CPU allocator held during `step`, above those held before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = [
            e
            for e in json.loads(Path(file.name).read_text())["traceEvents"]
            if e.get("name") == "[memory]"
        ]
    events.sort(key=lambda e: e["ts"])
    start = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in events) - start


def compare(ways: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each way, taken in turns so that other load on the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


@torch.no_grad()
def evaluation_figures(p: KnowledgePrefix, one: torch.Tensor, repeats: int) -> dict:
    """Seconds of both procedures for one study (1, 49, 1024), and the difference of their outputs.

    The node state is made once and handed in, as the evaluation loops do.
    """
    p.eval()
    start = time.perf_counter()
    state = p.node_state()
    ours = p(one, state).tokens
    first = time.perf_counter() - start
    difference = float((ours - reference_prefix(p, one)).abs().max())
    ways = {
        "reference": lambda: reference_prefix(p, one),
        "ours": lambda: p(one, state),
        "ours, as generate() calls it": lambda: p.eval()(one, state),
    }
    times = compare(ways, repeats)
    return {
        "prefix_tokens": ours.shape[1],
        "greatest_difference": difference,
        "evaluation_s": times,
        "evaluation_first_call_s": first,
        "evaluation_speedup": times["reference"] / times["ours"],
        "generation_speedup": times["reference"] / times["ours, as generate() calls it"],
    }


def training_figures(p: KnowledgePrefix, many: torch.Tensor, repeats: int) -> dict:
    """Seconds and peak memory of a training step of both procedures, for a batch (B, 49, 1024)."""
    p.train()
    optimiser = torch.optim.AdamW(p.parameters(), lr=1e-6)

    def step(way):
        way(many).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    ways = {
        "reference": lambda: step(lambda v: reference_prefix(p, v)),
        "ours": lambda: step(lambda v: p(v).tokens),
    }
    times = compare(ways, repeats)
    memory = {name: peak_bytes(run) / 2**20 for name, run in ways.items()}
    return {
        "training_s": times,
        "training_speedup": times["reference"] / times["ours"],
        "training_peak_MiB": memory,
        "training_peak_ratio": memory["ours"] / memory["reference"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=6, help="of the training step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--edges", type=int, default=20, help="edges per node of the random graphs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    p, one, many = build(args.edges), torch.randn(1, 49, 1024), torch.randn(args.batch, 49, 1024)
    result = {
        "what": "prefix of one study in evaluation; training step (forward, backward, AdamW) of the prefix",
        "batch": args.batch,
        "parameters": sum(q.numel() for q in p.parameters()),
        **evaluation_figures(p, one, args.repeats),
        **training_figures(p, many, max(2, args.repeats // 2)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
