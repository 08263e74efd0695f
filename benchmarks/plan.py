"""Plan of a training run on one card of each size: memory by part, trained parameters, steps, hours (computed).

    python benchmarks/plan.py                                        # Llama-2-7B on CheXpert Plus, 24 GB and 80 GB
    python benchmarks/plan.py --preset iu-xray --set llm.adapter=lora --cards 48 --out plan.json

What the plan leaves out is counted here: the operations of the knowledge prefix, by PyTorch's counter on the real
widths (101, 206, 319, 400 and 558 nodes, bank of 6,943), beside those of the language model.
"""

import argparse
import json
from pathlib import Path

import torch
from prefix import build
from torch.utils.flop_counter import FlopCounterMode

from r2genkg.core.config import load_config
from r2genkg.training.memory_plan import llm_shape, study_tokens
from r2genkg.training.training_plan import plan_rows


def prefix_share(config) -> dict:
    """Operations of the prefix for one study, nodes included, against the language model's forward pass."""
    prefix = build(edges_per_node=20).train()  # training: nothing comes from a cache
    prefix.parts["disease_queries"].qformer.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        prefix(torch.randn(1, 49, 1024))
    llm = llm_shape(config.llm).flops(study_tokens(config, 319), 0)
    return {
        "counted operations of the prefix, one study": counted.get_total_flops(),
        "computed operations of the language model, forward": llm,
        "share": round(counted.get_total_flops() / llm, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="chexpert-plus")
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument(
        "--studies", type=int, default=0, help="training studies; default: the data set's"
    )
    parser.add_argument("--cards", type=int, nargs="+", default=[24, 80], help="GB")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.35,
        help="assumed share of the card's data-sheet rate",
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = load_config(args.preset, args.set)
    result = {
        "preset": args.preset,
        "changes": args.set,
        "plans": {
            f"{card} GB": plan_rows(config, args.studies, card, args.utilisation)
            for card in args.cards
        },
        "prefix": prefix_share(config),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
