"""Does the mechanism learn? Trains the prefix alone, by its own losses, and prints the measures of the audit.

    r2genkg train --preset demo --upto vision_tokens --out demo_out
    python benchmarks/mechanism.py demo_out --steps 300 --set model.use_multi_scale=false

No language model takes part, so a run takes about a minute. What it cannot show is what the report's loss adds.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from r2genkg.core.config import Config, load_config
from r2genkg.data.images import to_pixels
from r2genkg.data.study import LABELS, label_matrix
from r2genkg.kg.statements import Statements
from r2genkg.model.cross_attention import attention_spread
from r2genkg.model.fusion import KnowledgePrefix, PrefixOutput
from r2genkg.model.prefix_losses import grounding_losses, label_losses
from r2genkg.model.label_prompts import LabelPrompts, fit_thresholds
from r2genkg.model.places import label_maps
from r2genkg.model.whitening import whiten_visual
from r2genkg.phantom.phantoms import load_truth
from r2genkg.training.dataset import ReportDataset, TrainingData
from r2genkg.training.grounding_targets import start_from_reports, study_statements
from r2genkg.training.stages import training_data
from r2genkg.vision.classifier import SwinClassifier, read_batch
from r2genkg.vision.mechanism import (
    edge_measures,
    own_measures,
    own_halves,
    own_weights,
    presence_measures,
    row_distances,
    side_measures,
)
from r2genkg.vision.vision_tokens import token_places

STAGES = ("studies", "m3kg", "scales", "classifier", "vision_tokens")


class Split:
    "Visual tokens, labels, statements and maps of the studies of one split."

    def __init__(self, config: Config, data: TrainingData, vision: SwinClassifier, name: str):
        self.studies = data.split(name)
        paths, size = [s.images[0] for s in self.studies], config.studies.image_size
        with torch.no_grad():
            parts = [
                vision.features(to_pixels(read_batch(paths[i : i + 32], size)))
                for i in range(0, len(paths), 32)
            ]
        self.visual = torch.cat(parts)
        self.labels = torch.tensor(label_matrix(self.studies))
        self.maps = label_maps(vision, self.visual)
        scale = data.scales[config.model.feed_scale - 1]
        self.stated: Statements = study_statements(config, data, self.studies, scale)
        rows = [self.stated.row(i) for i in range(len(self.studies))]
        self.nodes, self.edges = (torch.tensor(np.stack(side)) for side in zip(*rows))

    def __len__(self) -> int:
        return len(self.studies)


def new_prefix(config: Config, data: TrainingData, train: Split) -> KnowledgePrefix:
    "A prefix at its start."
    torch.manual_seed(config.train.seed)
    prefix = KnowledgePrefix(
        config.model,
        data.scales,
        data.tokens.features,
        dim_llm=config.llm.hidden,
        dim_visual=train.visual.shape[-1],
        bank_labels=[LABELS.index(k) for k in data.tokens.table.label],
        bank_places=token_places(data.tokens.table, config.studies.image_size),
    )
    whiten_visual(prefix, train.visual)
    start = ReportDataset.__new__(ReportDataset)
    start.labels, start.stated, start.targets = train.labels, train.stated, [[]] * len(train)
    start_from_reports(prefix, start)
    return prefix


def learn(prefix: KnowledgePrefix, config: Config, train: Split, steps: int) -> None:
    "Train the prefix by the losses of labels, retrieval and grounding; warm-up and cosine as in a run."
    rate, draw = config.train.lr, torch.Generator().manual_seed(config.train.seed)
    optimiser = torch.optim.AdamW(
        prefix.parameters(), lr=rate, weight_decay=config.train.weight_decay
    )
    prefix.train()
    for step in range(steps):
        warm = (step + 1) / max(1, config.train.warmup_ratio * steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(warm, 0.5 * (1 + math.cos(math.pi * step / steps)))
        some = torch.randint(len(train), (config.train.batch_size,), generator=draw)
        out = prefix(train.visual[some], labels=train.labels[some])
        maps = None if train.maps is None else train.maps[some]
        loss = label_losses(prefix, out, train.labels[some], maps)
        loss = loss + grounding_losses(prefix, out, train.nodes[some], train.edges[some])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prefix.parameters(), config.train.clip)
        optimiser.step()


@torch.no_grad()
def computed(prefix: KnowledgePrefix, split: Split) -> PrefixOutput:
    "What the prefix computes for all studies of a split."
    prefix.eval()
    state = prefix.node_state()
    outs = [prefix(part, state, return_attention=True) for part in split.visual.split(50)]
    names = ("retrieval", "presence", "edges", "kg2v", "v2kg", "queries", "tokens")
    joined = {}
    for name in names:
        parts = [getattr(out, name) for out in outs]
        joined[name] = None if parts[0] is None else torch.cat(parts)
    return PrefixOutput(**joined)


@torch.no_grad()
def label_f1(prefix: KnowledgePrefix, val: Split, test: Split) -> dict[str, float]:
    "F1 of the labels that label prompts would say, thresholds fitted on the validation images."
    read = prefix.parts["query_labels"]
    held_out, logits = (read(computed(prefix, split).queries) for split in (val, test))
    prompts = LabelPrompts(1)
    fit_thresholds(prompts, held_out, prefix.label_rates)
    said, true = prompts.present(logits), test.labels == 1
    both = (said & true).sum(0).float()
    sides = (said.sum(0) + true.sum(0)).clamp(min=1)
    return {
        "labels/f1_micro": float(2 * both.sum() / sides.sum()),
        "labels/f1_macro": float((2 * both / sides).mean()),
    }


def measures(
    prefix: KnowledgePrefix, data: TrainingData, train: Split, test: Split, home: Path
) -> dict:
    "The measures of the audit."
    out, table = computed(prefix, test), data.tokens.table
    weights, labels = out.retrieval.numpy(), table.label.tolist()
    found, rows = own_measures(
        own_weights(weights, labels), test.labels.numpy(), row_distances(weights)
    )
    print(rows.round(3).to_string())
    opposite, truth = {"left": "right", "right": "left"}, load_truth(home / "studies")
    sides = [
        {f.label: opposite[f.side] for f in truth.get(s.id, ()) if f.side in opposite}
        for s in test.studies
    ]
    halves = own_halves(weights, labels, prefix.bank_places[:, 0].numpy())
    found |= side_measures(halves, sides)
    if out.presence is not None:
        kinds = data.graph.nodes.set_index("key").entity_type
        findings = np.array(
            [kinds[k].startswith(("disorder", "devices")) for k in prefix.fed_scale.keys]
        )
        shares, _ = train.stated.shares()
        found |= presence_measures(out.presence.numpy(), test.nodes.numpy(), findings, shares)
    if out.edges is not None:
        found |= edge_measures(out.edges.numpy(), test.edges.numpy())
    for name in ("kg2v", "v2kg"):
        found[f"attention/{name}_entropy"] = attention_spread(getattr(out, name))[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a pipeline, made up to vision_tokens")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    config = load_config(args.preset, args.set)
    data = training_data({name: args.folder / name for name in STAGES})
    vision = SwinClassifier.load(data.classifier).eval()
    train, val, test = (Split(config, data, vision, name) for name in ("train", "val", "test"))
    prefix = new_prefix(config, data, train)
    learn(prefix, config, train, args.steps)
    found = measures(prefix, data, train, test, args.folder) | label_f1(prefix, val, test)
    print(json.dumps({k: round(float(v), 3) for k, v in found.items()}, indent=1))


if __name__ == "__main__":
    main()
