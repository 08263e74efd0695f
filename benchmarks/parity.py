"""Outputs of the reference implementation against ours, same weights and inputs: greatest differences, and a figure.

    python benchmarks/parity.py [--shared ../shared/data] [--figures figures]      # skips where the file is not there

The reference's tensors are shared development data (`official/encode.safetensors`): a small random instance of its
modules, run in evaluation mode.
"""

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file

from r2genkg.model.fusion import KnowledgePrefix, fuse
from r2genkg.use.plots import new_figure, save_figure

TITLES = {
    "qformer": "disease queries (Q-Former)",
    "lookup": "retrieved vision tokens",
    "nodes_scale3": "nodes after R-GCN and fusion",
    "v2kg": "V2KG",
    "kg2v": "KG2V",
    "prefix": "prefix",
}


@torch.no_grad()
def outputs(data: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Output -> (reference's, ours)."""
    scales = [
        SimpleNamespace(
            x=data[f"in.node_features{i}"],
            edge_index=data[f"in.edge_index{i}"],
            edge_type=data[f"in.edge_type{i}"],
        )
        for i in range(1, 6)
    ]
    state = {k: v for k, v in data.items() if k.startswith("state.")}
    prefix = KnowledgePrefix.from_official(
        state, scales, data["in.disease_feature"], qformer_heads=4
    ).eval()
    visual = data["in.visual_embeds"]
    answers, _ = prefix.parts["disease_queries"](visual)
    fused = fuse(prefix.parts, visual, prefix.node_state())
    ours = {
        "qformer": answers,
        "lookup": prefix.parts["attention_visual"](answers, prefix.bank)[0],
        "nodes_scale3": prefix.encode_nodes(),
        "v2kg": fused.v2kg_tokens,
        "kg2v": fused.kg2v_tokens,
        "prefix": prefix(visual).tokens,
    }
    return {name: (data[f"out.{name}"], value) for name, value in ours.items()}


def draw(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], greatest: dict[str, float]):
    """Our values over the reference's, and the greatest difference of each output."""
    fig, axes = new_figure(7, 3.6, 2, 3)
    for ax, (name, (theirs, ours)) in zip(axes.flat, pairs.items(), strict=True):
        some = np.random.default_rng(0).permutation(theirs.numel())[:1500]
        ax.plot(
            theirs.flatten()[some],
            ours.flatten()[some],
            ".",
            ms=1.5,
            color="#0072B2",
            rasterized=True,
        )
        ends = [float(theirs.min()), float(theirs.max())]
        ax.plot(ends, ends, lw=0.5, color="k")
        ax.set_title(f"{TITLES[name]}\ngreatest difference {greatest[name]:.1e}", fontsize=7)
        ax.tick_params(labelsize=6)
    axes[1, 0].set_xlabel("reference", fontsize=7)
    axes[1, 0].set_ylabel("r2genkg", fontsize=7)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, default=Path(os.environ.get("R2GENKG_SHARED", "../shared")) / "data"
    )
    parser.add_argument(
        "--figures",
        type=Path,
        help="folder for parity.png, parity.svg and parity.json (the caption)",
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    path = args.shared / "official" / "encode.safetensors"
    if not path.exists():
        return print(json.dumps({"parity": f"not run: {path} is not here"}))
    pairs = outputs(load_file(path))
    greatest = {name: float((theirs - ours).abs().max()) for name, (theirs, ours) in pairs.items()}
    result = {
        "greatest absolute difference": greatest,
        "values compared": sum(t.numel() for t, _ in pairs.values()),
        "bound": 1e-4,
        "all within": max(greatest.values()) <= 1e-4,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.figures:
        worst = max(greatest, key=greatest.get)
        caption = (
            "Outputs of the reference implementation and of this one, same weights and inputs: "
            f"the greatest absolute difference is {greatest[worst]:.1e} ({TITLES[worst]}), "
            f"over {result['values compared']:,} values."
        )
        save_figure(draw(pairs, greatest), "parity", args.figures, caption)


if __name__ == "__main__":
    main()
