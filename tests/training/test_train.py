"""Training: a killed run ends where an undisturbed one does, and every option of the configuration acts."""

import json
import multiprocessing
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_run import run, settings, toy_data
from transformers import TrainerCallback

from r2genkg.training import trainer as trainer_module
from r2genkg.training.dataset import FILLER, Collator, make_dataset
from r2genkg.core.files import R2GenKGError
from r2genkg.core.config import load_config
from r2genkg.core.runtime import set_seed
from r2genkg.model.prefix_losses import label_losses
from r2genkg.model.model import R2GenKG
from r2genkg.core.hf_trainer import last_checkpoint
from r2genkg.training.train import build_model, check_begun, make_trainer, train
from r2genkg.training.trainer import ReportTrainer, generate_all, trainable_state


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "One training step an epoch, for tests of what comes after an epoch."
    return toy_data(tmp_path_factory.mktemp("toy") / "data", 6, 2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer_of(data, work: Path, *changes: str) -> ReportTrainer:
    """A trainer that has not started, with the seed set as `train` does."""
    config = settings(*changes)
    set_seed(config.train.seed)
    return make_trainer(config, data, build_model(config, data), work)


def history(trainer, key: str) -> list[float]:
    return [e[key] for e in trainer.state.log_history if key in e]


# Killed and resumed.


def contents(out: Path) -> dict[str, torch.Tensor]:
    """Everything that a run leaves: the model, and optimiser, scheduler and random state of its last checkpoint."""
    last = Path(last_checkpoint(out.with_name(f"{out.name}-work") / "checkpoints"))
    found = {
        f"{p.relative_to(out)}:{k}": v
        for name in ("knowledge", "llm/model")
        for p in [out / f"{name}.safetensors"]
        for k, v in load_file(p).items()
    }
    optimiser = torch.load(last / "optimizer.pt", weights_only=True)
    found |= {
        f"optimiser:{i}:{k}": v for i, row in optimiser["state"].items() for k, v in row.items()
    }
    schedule = torch.load(last / "scheduler.pt", weights_only=True)
    found |= {"scheduler": torch.tensor([*schedule["_last_lr"], schedule["last_epoch"]])}
    with torch.serialization.safe_globals(
        [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    ):
        states = torch.load(last / "rng_state.pth", weights_only=True)
    return found | {
        "torch state": states["cpu"],
        "numpy state": torch.tensor(states["numpy"][1].astype(np.int64)),
        "step": torch.tensor(int(last.name.split("-")[1])),
    }


def test_killed_run_ends_in_the_same_weights(tmp_path, monkeypatch):
    """Three kills: at a random step, in a checkpoint, at a later step; with dropout, accumulation, uneven batches."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    multiprocessing.set_forkserver_preload(["toy_run"])  # the libraries are imported once
    processes = multiprocessing.get_context("forkserver")
    data, checkpoints = tmp_path / "data", tmp_path / "killed-work" / "checkpoints"
    changes = [
        "train.epochs=4",
        "train.batch_size=3",
        "train.accumulate=2",
        "train.save_steps=3",
        "train.evals_per_epoch=0.5",
        "model.freeze_vision=false",
    ]

    def start(out: str, kill=(-1, False)) -> int:
        process = processes.Process(target=run, args=(data, tmp_path / out, changes, kill))
        process.start()
        process.join(60)
        return process.exitcode

    assert start("whole") == 0
    first = random.randint(4, 7)
    kills = [(first, False), (9, True), (random.randint(10, 15), False)]
    for kill in kills:
        assert start("killed", kill) == -signal.SIGKILL
        if kill[1]:
            assert (
                checkpoints / "checkpoint-9" / "model.safetensors"
            ).exists() and last_checkpoint(checkpoints).endswith("checkpoint-8")
    assert not (tmp_path / "killed").exists()
    assert start("killed") == 0
    begun = [int(step) for step in (tmp_path / "killed-starts").read_text().split()]
    assert begun[:3] == [0, (first - 1) // 3 * 3, 8] and begun[3] >= 9, (
        begun
    )  # each attempt went on from a checkpoint; the kill comes before the save of its step
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys() and int(whole["step"]) == 16
    different = [k for k in whole if not torch.equal(whole[k], killed[k])]
    assert not different, f"killed at {kills}: {different[:3]}"
    scores = [
        [
            e["eval_score"]
            for e in json.loads((tmp_path / out / "history.json").read_text())
            if "eval_score" in e
        ]
        for out in ("whole", "killed")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 2


# Which weights are kept, and when it ends.


def scored(monkeypatch, values: list[float]) -> None:
    """Let successive validations score as given."""
    left = iter(values)

    def scores(refs, hypos, meteor):
        value = next(left)
        return {"BLEU-4": value, "CIDEr": value}

    monkeypatch.setattr(trainer_module, "nlg_scores", scores)


def test_best_checkpoint_is_kept(few, tmp_path, monkeypatch):
    scored(monkeypatch, [0.1, 0.7, 0.3, 0.2])
    seen = []
    save = ReportTrainer._save
    monkeypatch.setattr(
        ReportTrainer,
        "_save",
        lambda self, *a, **k: (
            seen.append({n: t.clone() for n, t in trainable_state(self.model).items()}),
            save(self, *a, **k),
        )[1],
    )
    out = train(settings("train.epochs=4", "train.evals_per_epoch=1"), few, tmp_path / "run")
    kept = R2GenKG.load(out).state_dict()
    assert all(torch.equal(kept[n], t) for n, t in seen[1].items() if n in kept)
    assert any(not torch.equal(kept[n], t) for n, t in seen[3].items() if n in kept)


def test_score_is_half_bleu_and_half_cider(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "nlg_scores", lambda *a, **k: {"BLEU-4": 0.2, "CIDEr": 0.6})
    assert trainer_of(data, tmp_path, "train.evals_per_epoch=1").evaluate()[
        "eval_score"
    ] == pytest.approx(0.4)


@pytest.mark.parametrize("patience,validations", [(0, 6), (1, 3), (2, 4)])
def test_early_stop(few, tmp_path, monkeypatch, patience, validations):
    scored(monkeypatch, [0.1, 0.5, 0.4, 0.4, 0.3, 0.2])
    trainer = trainer_of(
        few, tmp_path, "train.epochs=6", "train.evals_per_epoch=1", f"train.patience={patience}"
    )
    trainer.train()
    assert len(history(trainer, "eval_score")) == validations


def test_patience_without_validations_is_a_warning(data, tmp_path):
    with pytest.warns(UserWarning, match="patience=2 does nothing without validations"):
        trainer_of(data, tmp_path, "train.evals_per_epoch=0", "train.patience=2")


def test_a_run_that_stopped_early_stays_stopped(few, tmp_path, monkeypatch):
    """Killed after training, before its results were whole: the next start keeps the best weights.

    It trains no further.
    """
    scored(monkeypatch, [0.1, 0.5, 0.4])  # a fourth validation would raise StopIteration
    config = settings("train.epochs=6", "train.evals_per_epoch=1", "train.patience=1")
    runs = [
        train(config, few, tmp_path / name, work=tmp_path / "work") for name in ("first", "again")
    ]
    one, two = (
        [e for e in json.loads((run / "history.json").read_text()) if "train_runtime" not in e]
        for run in runs
    )
    assert one == two and [e["eval_score"] for e in one if "eval_score" in e] == [0.1, 0.5, 0.4]
    one, two = (R2GenKG.load(run).state_dict() for run in runs)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_collapse_is_reported_at_the_first_validation(tmp_path, monkeypatch):
    data = toy_data(tmp_path / "data", 6, 12)
    trainer = trainer_of(data, tmp_path, "train.evals_per_epoch=1", "train.epochs=1")
    trainer.references = [f"report number {i} ." for i in range(12)]
    monkeypatch.setattr(
        trainer_module,
        "generate_all",
        lambda model, dataset, decode: ["the lungs are clear ."] * len(dataset),
    )
    with pytest.warns(UserWarning, match="collapse: 1 distinct"):
        trainer.train()
    assert history(trainer, "eval_distinct") == [1 / 12]


# Options that act.


class Gradients(TrainerCallback):
    """Norm of all gradients just before each optimiser step, and the rates of all groups."""

    def __init__(self):
        self.norms, self.rates = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.norms.append(
            float(
                torch.stack(
                    [p.grad.norm() for p in model.parameters() if p.grad is not None]
                ).norm()
            )
        )
        self.rates.append([g["lr"] for g in optimizer.param_groups])


def watched(data, work, *changes) -> tuple[ReportTrainer, Gradients]:
    trainer, seen = trainer_of(data, work, "train.evals_per_epoch=0", *changes), Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return trainer, seen


def test_clipping_bounds_the_gradient(data, tmp_path):
    trainer, seen = watched(data, tmp_path / "a", "train.epochs=1", "train.clip=0.05")
    assert (
        max(seen.norms) <= 0.05 * 1.001 and min(history(trainer, "grad_norm")) > 0.05
    )  # the log has the norm before clipping
    _, free = watched(data, tmp_path / "b", "train.epochs=1", "train.clip=0")
    assert min(free.norms) > 0.05


def test_warm_up_and_cosine(data, tmp_path):
    _, seen = watched(
        data,
        tmp_path,
        "train.epochs=5",
        "train.lr=0.01",
        "train.lr_prefix=null",
        "train.min_lr=0.001",
        "train.warmup_ratio=0.2",
    )
    rates = [r[0] for r in seen.rates]
    assert len(rates) == 20 and rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[12] == pytest.approx(0.001 + 0.009 * 0.5 * (1 + np.cos(np.pi * 8 / 16)))


@pytest.mark.parametrize("prefix", [0.02, None])
def test_two_learning_rates(data, tmp_path, prefix):
    trainer, seen = watched(
        data,
        tmp_path,
        "train.epochs=1",
        "train.lr=0.002",
        f"train.lr_prefix={prefix or 'null'}",
        "train.weight_decay=0.3",
        "train.min_lr=0.001",
        "model.node_gate=true",
    )
    assert sorted(set(np.round(seen.rates[0], 6))) == [0.002, *([prefix] if prefix else [])]
    assert [g["lr"] for g in trainer.optimizer.param_groups] == pytest.approx(
        [0.001] * len(seen.rates[0])
    )  # the least one holds for both
    of = {id(p): g for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in trainer.model.named_parameters():
        if not p.requires_grad:
            continue
        assert of[id(p)]["initial_lr"] == (
            prefix if prefix and not name.startswith("llm.") else 0.002
        ), name
        assert of[id(p)]["weight_decay"] == (0.3 if p.ndim > 1 else 0), (
            name
        )  # no decay of biases, gains and norms


@pytest.mark.parametrize("adapter", ["full", "frozen"])
def test_accumulated_micro_batches_are_one_batch(data, tmp_path, adapter):
    """Reports of different length, so a mean of means would differ."""
    states = [
        watched(
            data,
            tmp_path / str(batch),
            "train.epochs=2",
            "model.dropout=0",
            f"train.batch_size={batch}",
            f"train.accumulate={6 // batch}",
            f"llm.adapter={adapter}",
            "train.lr=0.001",
        )[0].model.state_dict()
        for batch in (6, 2)
    ]
    assert all(
        torch.allclose(a, b, atol=2e-4) for a, b in zip(*(s.values() for s in states), strict=True)
    )


class Reads:
    """The examples that a data set is asked for, in order."""

    def __init__(self, dataset):
        self.dataset, self.order, self.targets = dataset, [], dataset.targets

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        self.order.append(i)
        return self.dataset[i]


def order_of(data, work, *changes) -> list[list[int]]:
    trainer = trainer_of(
        data,
        work,
        "train.evals_per_epoch=0",
        "train.epochs=3",
        "train.lr=0.0001",
        "model.use_graph=false",  # a smaller model: the order of the data does not depend on it
        *changes,
    )
    trainer.train_dataset = reads = Reads(trainer.train_dataset)
    trainer.train()
    return [reads.order[i : i + 24] for i in range(0, 72, 24)]


def test_training_data_are_shuffled_by_seed_and_epoch(data, tmp_path):
    one = order_of(data, tmp_path / "a")
    assert all(sorted(epoch) == list(range(24)) and epoch != list(range(24)) for epoch in one)
    assert len({tuple(epoch) for epoch in one}) == 3
    assert (
        order_of(data, tmp_path / "b") == one
        and order_of(data, tmp_path / "c", "train.seed=7") != one
    )


def test_batches_are_padded_to_their_own_longest(data, tmp_path):
    trainer = trainer_of(
        data, tmp_path, "train.evals_per_epoch=0", "train.epochs=1", "train.target_length=60"
    )
    widths, collate = [], trainer.data_collator
    trainer.data_collator = lambda items: (
        widths.append(
            (max(len(x["input_ids"]) for x in items), collate(items)["input_ids"].shape[1])
        )
        or collate(items)
    )
    trainer.train()
    assert (
        len(widths) == 4
        and all(longest == width < 60 for longest, width in widths)
        and len(set(widths)) > 1
    )


def test_images_are_decoded_once(data, tmp_path, monkeypatch):
    import r2genkg.data.images as images

    decoded, load = [], images.read_film
    monkeypatch.setattr(images, "read_film", lambda path: decoded.append(path) or load(path))
    trainer = trainer_of(
        data, tmp_path, "train.evals_per_epoch=0", "train.epochs=2", "model.freeze_vision=false"
    )
    assert len(decoded) == 24
    trainer.train()
    trainer_of(
        data, tmp_path, "train.evals_per_epoch=0", "model.freeze_vision=false"
    )  # as a resumed run
    assert len(decoded) == 24 and any(
        p.grad is not None or p.requires_grad for p in trainer.model.vision.parameters()
    )


def test_tensorboard(data, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(
        data, tmp_path, "train.evals_per_epoch=1", "train.epochs=2", "train.tensorboard=true"
    )
    trainer.train()
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = log.Tags()["scalars"]
    assert {"train/loss", "eval/score", "eval/primed_disorders", "train/kg2v_entropy"} <= set(
        tags
    ) and len(log.Scalars("train/loss")) == 8
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(R2GenKGError, match="pip install tensorboard"):
        trainer_of(data, tmp_path / "b", "train.evals_per_epoch=0", "train.tensorboard=true")


def test_monitors_are_in_the_log(data, tmp_path):
    trainer = trainer_of(data, tmp_path, "train.evals_per_epoch=1", "train.epochs=2")
    trainer.train()
    assert (
        len(history(trainer, "kg2v_entropy")) == len(history(trainer, "eval_primed_disorders")) == 2
    )
    assert all(
        0 <= v <= 1
        for k in ("kg2v_entropy", "kg2v_spread", "eval_primed_disorders")
        for v in history(trainer, k)
    )
    assert len(history(trainer, "loss")) == 8  # a log between two steps must not swallow the next
    without = trainer_of(
        data, tmp_path / "b", "train.evals_per_epoch=0", "train.epochs=1", "model.use_graph=false"
    )
    without.train()
    assert not history(without, "kg2v_entropy")


# Options of this project that the paper does not have.

ASIDE = ["model.query_labels=1", "model.align_weight=0.5", "model.node_gate=true"]


def test_losses_beside_the_report_fall_and_change_nothing_else(data, tmp_path):
    trainer = trainer_of(data, tmp_path, "train.evals_per_epoch=0", "train.epochs=6", *ASIDE[:2])
    batch = Collator(0)([trainer.train_dataset[i] for i in range(12)])

    @torch.no_grad()
    def aside() -> float:
        output = trainer.model.prefix(batch["visual"])
        return float(label_losses(trainer.model.prefix, output, batch["study_labels"]))

    before = aside()
    trainer.train()
    trainer.model.eval()
    assert np.isfinite(before) and aside() < 0.7 * before
    plain = build_model(settings(), data).eval()
    own = {
        k: v
        for k, v in trainer.model.state_dict().items()
        if ".align." not in k and ".query_labels." not in k
    }
    plain.load_state_dict(own)  # strict: without the options there is nothing else
    ids = batch["input_ids"]
    with torch.no_grad():
        assert torch.equal(
            plain(ids, visual=batch["visual"])["logits"],
            trainer.model(ids, visual=batch["visual"])["logits"],
        )


def test_losses_beside_the_report_are_weighed_by_tokens(data, tmp_path):
    """An accumulated step adds the micro-batches' losses up to one mean, not to their sum."""
    trainer = trainer_of(
        data, tmp_path, "train.evals_per_epoch=0", "model.query_labels=3", "model.dropout=0"
    )
    items = [trainer.train_dataset[i] for i in range(6)]
    whole, parts = Collator(0)(items), [Collator(0)(items[i : i + 3]) for i in (0, 3)]
    total = (whole["labels"] != -100).sum()
    model = trainer.model.eval()
    alone = lambda b: model(
        **{k: v for k, v in b.items() if k != "study_labels"}, num_items_in_batch=total
    )["loss"]
    with torch.no_grad():
        aside = [model(**b, num_items_in_batch=total)["loss"] - alone(b) for b in (whole, *parts)]
        share = [(b["labels"] != -100).sum() / total for b in parts]
        each = [
            (
                model(**b)["loss"]
                - model(**{k: v for k, v in b.items() if k != "study_labels"})["loss"]
            )
            for b in parts
        ]
    assert torch.allclose(aside[1] + aside[2], sum(s * e for s, e in zip(share, each)), atol=1e-5)
    assert abs(aside[1] + aside[2] - aside[0]) < 0.2 * aside[0]


def test_fillers_count_for_nothing(data, tmp_path):
    """What several processes fill their last batch with enters no loss.

    A batch of nothing else still gives every parameter a gradient: 0.
    """
    trainer = trainer_of(
        data,
        tmp_path,
        "train.evals_per_epoch=0",
        "model.dropout=0",
        "model.retrieval_labels=1",
        *ASIDE,
    )
    model, rows = trainer.model.train(), trainer.train_dataset
    items, filler = [rows[i] for i in range(3)], rows[FILLER]
    total = sum(len(x["input_ids"]) for x in items)
    with torch.no_grad():
        alone, filled = (
            model(**Collator(0)(batch), num_items_in_batch=total)["loss"]
            for batch in (items, [*items, filler, filler])
        )
    assert torch.allclose(alone, filled, atol=1e-5)
    nothing = model(**Collator(0)([filler, filler]), num_items_in_batch=torch.tensor(total))["loss"]
    nothing.backward()
    assert nothing == 0 and all(
        p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    "changes",
    [
        ASIDE,
        ["model.node_gate=true", "model.prune_kg=4"],
        ["model.align_weight=1", "model.retrieval_labels=1", "model.use_retrieval=false"],
        ["model.query_labels=1", "model.retrieval_labels=1", "model.use_graph=false"],
    ],
    ids=str,
)
def test_options_train_and_load_again(data, tmp_path, changes):
    config = settings("train.epochs=2", "train.lr=0.003", "train.evals_per_epoch=0", *changes)
    out = train(config, data, tmp_path / "run")
    losses = [e["loss"] for e in json.loads((out / "history.json").read_text()) if "loss" in e]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    model = R2GenKG.load(out)
    assert (
        len(
            generate_all(
                model,
                make_dataset(config, model, data.split("val"), tmp_path / "images"),
                config.decode,
            )
        )
        == 4
    )


def test_doubtful_edges_leave_the_model(data):
    edges = [
        (data.scales[0].keys.index(s), data.scales[0].keys.index(t), n)
        for s, t, n in (("large", "effusion", 9), ("left", "effusion", 1))
    ]
    from dataclasses import replace
    import pandas as pd

    scale = replace(
        data.scales[0],
        edge_index=torch.tensor([[a for a, _, _ in edges], [b for _, b, _ in edges]]),
        edge_type=torch.zeros(2, dtype=torch.long),
    )
    triples = pd.DataFrame(
        [("large", "effusion", "modify", 9), ("left", "effusion", "modify", 1)],
        columns=["source", "target", "type", "count"],
    )
    doubtful = replace(data, scales=[scale] * 5, graph=replace(data.graph, triples=triples))
    assert build_model(settings(), doubtful).prefix.node_edge_index.shape[1] == 10
    assert (
        build_model(settings("model.edge_min_count=2"), doubtful).prefix.node_edge_index.shape[1]
        == 5
    )
    with pytest.raises(R2GenKGError, match="TrainingData.graph"):
        build_model(settings("model.edge_min_count=2"), replace(doubtful, graph=None))


def test_faults_are_reported_before_training(data, tmp_path, monkeypatch):
    from dataclasses import replace

    with pytest.raises(R2GenKGError, match="use_queries"):
        settings("model.use_queries=false", "model.use_retrieval=false", "model.query_labels=1")
    nameless = replace(data, scales=[replace(s, names=()) for s in data.scales])
    with pytest.raises(R2GenKGError, match="align_weight"):
        build_model(settings("model.align_weight=1"), nameless)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(R2GenKGError, match="evals_per_epoch=0"):
        train(settings("train.evals_per_epoch=1"), data, tmp_path / "run")


def test_checkpoints_of_another_training_are_refused(tmp_path):
    data = SimpleNamespace(studies=[], scales=[])
    check_begun(load_config("demo"), data, tmp_path)
    check_begun(
        load_config("demo", ["train.lr=0.5"]), data, tmp_path
    )  # nothing trained yet: the new settings count
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    check_begun(load_config("demo", ["train.lr=0.5"]), data, tmp_path)
    with pytest.raises(R2GenKGError, match="other settings or studies"):
        check_begun(load_config("demo"), data, tmp_path)
