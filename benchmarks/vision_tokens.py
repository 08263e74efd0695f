"""Vision tokens in batches against the reference's procedure of one image and one label at a time.

    OMP_NUM_THREADS=2 python benchmarks/vision_tokens.py [--images 64] [--method gradcam] [--threshold 0.75]
                                                         [--classifier DIR --studies FILE] [--out FILE.json]

The defaults are the reference's: Grad-CAM, patches of 16 pixels with a mean over 0.75, at most six of each label.
Without a trained classifier, phantoms are drawn and a Swin of the demo preset's size with random weights is used: its
speed is that of a trained one, and random weights give rougher maps, so more patches compete around the threshold.
Both procedures use the same CAM, classifier and decoded images, in one run. Exit status 1 if their patches differ.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from r2genkg.core.config import TokensConfig, load_config
from r2genkg.core.files import write_json
from r2genkg.core.runtime import set_seed
from r2genkg.data.images import ImageCache, to_pixels
from r2genkg.data.study import LABELS, label_matrix, load_studies
from r2genkg.vision.class_maps import cam_class, token_grid
from r2genkg.vision.classifier import SwinClassifier, build_swin
from r2genkg.vision.patches import MAX_PATCHES
from r2genkg.vision.vision_tokens import extract_tokens


def enlarged(patch: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    """A patch at the size of the image (1, H, W), by bicubic interpolation, uint8."""
    cut = torch.tensor(patch)[None, None].float()
    large = F.interpolate(cut, size=shape, mode="bicubic", align_corners=False)[:, 0]
    return large.round().clamp(0, 255).to(torch.uint8)


def one_by_one(
    classifier, images: np.ndarray, positive: np.ndarray, config
) -> tuple[list[tuple], torch.Tensor]:
    """The reference's cam.py (AM_MRG): per image and label a forward and a backward pass, per patch a forward pass."""
    patch, kept, features = config.patch, [], []
    with cam_class(config.method)(
        classifier, [classifier.backbone.layernorm], reshape_transform=token_grid
    ) as cam:
        for item, image in enumerate(images):
            pixels = to_pixels(image[None])
            for k in np.flatnonzero(positive[item]):
                heat = cam(pixels, [ClassifierOutputTarget(int(k))])[0]
                side = len(heat) // patch
                means = heat.reshape(side, patch, side, patch).mean((1, 3)).ravel()
                for cell in np.argsort(-means, kind="stable")[:MAX_PATCHES]:
                    if means[cell] <= config.threshold:
                        break
                    y, x = int(cell) // side * patch, int(cell) % side * patch
                    large = enlarged(image[y : y + patch, x : x + patch], image.shape)
                    with torch.no_grad():
                        features.append(classifier.features(to_pixels(large)).mean(1)[0])
                    kept.append((item, LABELS[k], x, y))
    classifier.zero_grad(set_to_none=True)
    if not features:
        return kept, torch.zeros(0, classifier.backbone.num_features)
    return kept, torch.stack(features)


def compare(classifier, studies, config, cache) -> dict:
    """Time both procedures on the same studies (one view each), and compare their patches and features."""
    images, positive = cache.read([s.images[0] for s in studies]), label_matrix(studies) == 1
    ours = {"pooled": config, "patch": config.model_copy(update={"features": "patch"})}
    one_by_one(classifier, images[:1], positive[:1], config)  # warm up
    extract_tokens(classifier, studies[: config.batch_size], config, cache=cache)
    start = time.perf_counter()
    kept, features = one_by_one(classifier, images, positive, config)
    result = {
        "images": len(images),
        "pairs": int(positive.sum()),
        "patches": len(kept),
        "one_by_one_s": time.perf_counter() - start,
    }
    for name, settings in ours.items():
        start = time.perf_counter()
        bank = extract_tokens(classifier, studies, settings, cache=cache)
        result[f"{name}_s"] = time.perf_counter() - start
        result[f"{name}_speedup"] = result["one_by_one_s"] / result[f"{name}_s"]
    index = {s.id: i for i, s in enumerate(studies)}
    mine = [(index[t.study], t.label, t.x0, t.y0) for t in bank.table.itertuples()]
    rows = {key: i for i, key in enumerate(mine)}
    same = set(mine) == set(kept) and len(mine) == len(kept)
    result["same_patches"] = same
    result["feature_difference"] = (
        float((bank.features[[rows[key] for key in kept]] - features).abs().max())
        if same and kept
        else None
    )
    return result


def phantoms(folder: Path, count: int) -> list:
    """The first `count` training phantoms of the demo."""
    from r2genkg.phantom.phantoms import write_phantoms

    return write_phantoms(folder / "phantoms", count, 0, 0)


def open_classifier(folder: str | None, config) -> SwinClassifier:
    """The classifier of a folder, or one with random weights."""
    if folder:
        return SwinClassifier.load(folder)
    size = config.studies.image_size
    return SwinClassifier(build_swin(config.classifier, size), size)


def arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--classifier", help="folder of a trained SwinClassifier")
    parser.add_argument("--studies", help="studies.parquet; its first training studies are used")
    parser.add_argument("--method", default=TokensConfig().method, help="CAM of both procedures")
    parser.add_argument(
        "--threshold", type=float, default=TokensConfig().threshold, help="mean CAM of a kept patch"
    )
    parser.add_argument("--out", help="write the figures to this JSON file")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    config = load_config("demo")
    every = 10**6  # keep every patch found
    tokens = TokensConfig(method=args.method, threshold=args.threshold, max_per_label=every)
    with tempfile.TemporaryDirectory() as folder:
        if args.studies:
            studies = [s for s in load_studies(args.studies) if s.split == "train"]
        else:
            studies = phantoms(Path(folder), args.images)
        set_seed(0)
        classifier = open_classifier(args.classifier, config).eval()
        cache = ImageCache(Path(folder) / "cache", classifier.image_size)
        result = compare(classifier, studies[: args.images], tokens, cache)
    result |= {
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "method": tokens.method,
        "threshold": tokens.threshold,
        "machine": platform.machine(),
        "classifier": "trained" if args.classifier else "random weights",
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)
    return 0 if result["same_patches"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
