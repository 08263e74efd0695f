"""Do the maps behind a sentence lie on the finding? A run's own sentences against the masks of its test phantoms.

    r2genkg demo --out demo_out
    python benchmarks/evidence.py --run demo_out --studies 60 --out evidence.json

Every generated sentence counts that the rules labeler calls positive for a finding which was really drawn. For each
kind of map the result has the share of the map inside the finding's mask, the share of maps whose peak lies in it, and
the mask's area (which is what an even map gives for both).
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from r2genkg.core.config import load_config
from r2genkg.core.files import write_json
from r2genkg.data.images import load_image, to_pixels
from r2genkg.data.study import LABELS, load_studies
from r2genkg.phantom.phantoms import load_masks
from r2genkg.training.run import Run, run_folder
from r2genkg.use.evidence import (
    group_attention,
    label_class_maps,
    labels_of_sentences,
    sentence_influence,
    sentence_ranges,
)


def scored(heat: np.ndarray, mask: np.ndarray) -> tuple[float, bool, float]:
    """Share of the map inside the mask, whether its peak is, and the mask's area."""
    heat = torch.as_tensor(np.clip(heat, 0, None), dtype=torch.float32)
    side = int(round(heat.numel() ** 0.5))
    grid = heat.reshape(1, 1, side, side)
    large = F.interpolate(grid, size=mask.shape, mode="bilinear")[0, 0].numpy()
    y, x = np.unravel_index(large.argmax(), large.shape)
    return float(large[mask].sum() / max(large.sum(), 1e-12)), bool(mask[y, x]), float(mask.mean())


@torch.no_grad()
def occlusion(model, visual, ids, a, b) -> np.ndarray:
    """Loss of a sentence's log-probability when one cell after the other becomes the mean token.

    This is the exact form of `sentence_influence`.
    """
    cells, x = visual.shape[1], visual[0]
    moved = x.repeat(cells + 1, 1, 1)
    moved[torch.arange(cells), torch.arange(cells)] = x.mean(0)
    prompt, _ = model.prompt(moved)
    report = model.llm.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([prompt, report.expand(cells + 1, -1, -1)], 1)
    logits = model.llm(inputs_embeds=embeds, use_cache=False).logits
    logp = logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1)
    total = logp[:, torch.arange(len(ids)), torch.tensor(ids)][:, a:b].sum(1)
    return (total[-1] - total[:-1]).numpy()


def maps_of(model, pixels, text: str, drawn: set[str]):
    """(label, kind, map) for every sentence that states something drawn."""
    ids, ranges = sentence_ranges(model.tokenizer, text)
    stated = [
        {k for k, v in row.items() if v == 1} & drawn
        for row in labels_of_sentences([r[0] for r in ranges])
    ]
    if not any(stated):
        return
    with torch.no_grad():
        visual = model.encode(pixels)
        embeds, output = model.prompt(visual, True)
    influence, _ = sentence_influence(model, visual, ids, ranges)
    groups = group_attention(model, embeds, ids, ranges)
    cams = label_class_maps(model.vision, pixels, sorted(set.union(*stated), key=LABELS.index))
    no_v2kg = [0] * len(groups["visual"])
    for s, labels in enumerate(stated):
        for label in labels:
            region = influence[s].numpy()
            yield label, "region: gradient x deviation from the mean token", region
            occluded = occlusion(model, visual, ids, *ranges[s][1:])
            yield label, "the same by occlusion, cell by cell", occluded
            attended = groups["visual"][s] + groups.get("v2kg", no_v2kg)[s]
            yield label, "attention on image and V2KG tokens", attended
            if output.kg2v is not None:
                rolled = groups["visual"][s] + groups["kg2v"][s] @ output.kg2v[0].numpy()
                yield label, "attention rolled out through KG2V", rolled
            cam = F.adaptive_avg_pool2d(torch.as_tensor(cams[label])[None], 7).numpy()
            yield label, "Grad-CAM of the label, by the classifier", cam


def scores_by_kind(folder: Path, studies: list) -> dict[str, list[tuple]]:
    """Kind of map -> `scored` of every sentence of the studies."""
    model, run = Run(folder).model, run_folder(folder)
    size = load_config(str(run / "config.yaml")).studies.image_size
    lines = (run / "predictions.jsonl").read_text().splitlines()
    written = {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}
    found = defaultdict(list)
    for study in studies:
        masks = load_masks(folder / "studies", study.id)
        pixels = to_pixels(load_image(study.images[0], size)[None])
        for label, kind, heat in maps_of(model, pixels, written[study.id], set(masks)):
            found[kind].append(scored(heat, masks[label]))
    return found


def mean_row(values: list[tuple]) -> dict:
    """Number of sentences and the means over them."""
    names = ("share inside", "peak inside", "mask area")
    columns = np.array(values, dtype=float).T
    shares = {name: round(float(c.mean()), 3) for name, c in zip(names, columns, strict=True)}
    return {"sentences": len(values)} | shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("demo_out"), help="folder of a pipeline on phantoms"
    )
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    studies = load_studies(args.run / "studies" / "studies.parquet")
    test = [s for s in studies if s.split == "test"][: args.studies]
    rows = {kind: mean_row(values) for kind, values in scores_by_kind(args.run, test).items()}
    for kind, row in rows.items():
        print(f"{kind:52}", row)
    if args.out:
        write_json(args.out, {"run": args.run.name, "studies": len(test), "maps": rows})


if __name__ == "__main__":
    main()
