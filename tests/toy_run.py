"""A training run of seconds: drawn squares, an untrained Swin, a graph of ten nodes. Also a program, for launchers.

python tests/toy_run.py DATA OUT [section.key=value ...]        # DATA: from `toy_data`; TOY_KILL=7 ends it at step 7
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from PIL import Image
from transformers import TrainerCallback
from r2genkg.training import train as train_module
from r2genkg.extraction.annotate import annotate
from r2genkg.training.dataset import TrainingData
from r2genkg.vision.classifier import SwinClassifier, build_swin
from r2genkg.core.config import ClassifierConfig, load_config
from r2genkg.kg.scales import ScaleGraph
from r2genkg.kg.build import build_graph
from r2genkg.data.study import Study
from r2genkg.text.labels import with_labels
from r2genkg.vision.vision_tokens import TOKEN_COLUMNS, VisionTokens

import numpy as np
import pandas as pd
import torch


TEXTS = (
    "The lungs are clear. No effusion.",
    "Large left pleural effusion.",
    "The heart is enlarged, with pulmonary edema and a small nodule in the right upper lobe.",
)
NAMES = (
    "effusion",
    "cardiomegaly",
    "edema",
    "nodule",
    "left",
    "pleural",
    "large",
    "clear",
    "node 8",
    "node 9",
)
SMALL = [
    "studies.image_size=56",
    "llm.hidden=32",
    "llm.layers=2",
    "llm.heads=2",
    "llm.ff=64",
    "llm.vocab=300",
    "llm.pretrain_epochs=0",
    "model.dim=32",
    "model.dim_node=24",
    "model.dim_gcn=12",
    "model.dim_encoder=24",
    "model.qformer_layers=2",
    "model.qformer_heads=2",
    "model.qformer_ff=32",
    "model.fuser_heads=2",
    "model.fuser_ff=32",
    "train.batch_size=6",
    "train.lr=0.01",
    "train.target_length=30",
    "train.warmup_ratio=0",
    "decode.beams=1",
    "decode.min_new_tokens=1",
    "decode.max_new_tokens=16",
    "model.dropout=0.1",
    "model.query_labels=0",
    "model.retrieval_labels=0.2",
    "model.whiten_visual=false",
    "model.grounding=0",
    "model.node_prototypes=false",
    "model.visual_places=false",
    "model.retrieve_nothing=false",
    "model.retrieval_places=false",
    "model.label_prompts=false",
]  # not what the demo happens to set


def settings(*changes: str):
    """The toy configuration with changes."""
    return load_config("demo-paper", [*SMALL, *changes])


def toy_data(folder: Path, train: int = 24, val: int = 4) -> TrainingData:
    """Squares that are dark, bright on the left or bright below, with a sentence for each kind.

    The same folder gives the same data again.
    """
    rng, studies = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for i in range(train + val):
        pixels = rng.integers(0, 60, (56, 56))
        if i % 3 == 1:
            pixels[:, :28] += 150
        if i % 3 == 2:
            pixels[28:] += 150
        if not (folder / f"{i}.png").exists():
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        studies.append(
            Study(
                f"s{i}",
                (str(folder / f"{i}.png"),),
                TEXTS[i % 3],
                split="train" if i < train else "val",
            )
        )
    torch.manual_seed(0)
    if not (folder / "classifier").exists():
        SwinClassifier(
            build_swin(
                ClassifierConfig(
                    backbone="scratch", patch_size=4, embed_dim=16, depths=(1, 1), heads=(2, 2)
                ),
                56,
            ),
            56,
        ).save(folder / "classifier")
    graph = build_graph(zip("abcdef", annotate([s.findings for s in studies[:6]])))
    torch.manual_seed(1)
    ends, kinds = torch.randint(10, (2, 30)), torch.randint(3, (30,))
    scale = ScaleGraph(torch.randn(10, 24), ends, kinds, NAMES, NAMES, [(n,) for n in NAMES])
    table = pd.DataFrame(
        [("s1", 0, studies[1].images[0], "Pleural Effusion", 0, 0, 16, 16, 0.9)] * 8,
        columns=list(TOKEN_COLUMNS),
    )
    bank = VisionTokens(torch.randn(8, 24), table)
    return TrainingData(with_labels(studies), [scale] * 5, bank, folder / "classifier", graph)


annotate([" ".join(TEXTS)])  # vocabulary and tokenizer are read once, before processes fork


class Killer(TrainerCallback):
    """Ends the process as `kill -9` does, after a step; or, with `saving`, in the middle of that step's checkpoint.

    Notes where training began.
    """

    def __init__(self, notes: Path, step: int = -1, saving: bool = False):
        self.notes, self.step, self.saving = notes, step, saving

    def on_train_begin(self, args, state, control, **kwargs):
        with self.notes.open("a") as file:
            file.write(f"{state.global_step}\n")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.saving:
            os.kill(os.getpid(), signal.SIGKILL)
        if state.global_step == self.step:
            torch.save = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)


def run(data: Path, out: Path, changes: list[str], kill: tuple[int, bool] = (-1, False)) -> None:
    """Train the toy, alone in a process.

    `OUT-work` keeps checkpoints, `OUT-starts` the step at which each attempt began.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    make = train_module.make_trainer

    def with_killer(*args):
        trainer = make(*args)
        trainer.add_callback(Killer(out.with_name(f"{out.name}-starts"), *kill))
        return trainer

    train_module.make_trainer = with_killer
    train_module.train(
        settings(*changes), toy_data(data), out, work=out.with_name(f"{out.name}-work")
    )


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3:],
        (int(os.environ.get("TOY_KILL", -1)), False),
    )
