"""The knowledge prefix against the outputs of the reference implementation (shared development data)."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from r2genkg.core.files import R2GenKGError
from r2genkg.model.fusion import KnowledgePrefix, fuse
from r2genkg.model.qformer import build_qformer, load_qformer, qformer_key


@pytest.fixture
def official(shared_data):
    """Tensors of the reference run, and the prefix built from them."""
    data = load_file(shared_data("official", "encode.safetensors"))
    scales = [
        SimpleNamespace(
            x=data[f"in.node_features{i}"],
            edge_index=data[f"in.edge_index{i}"],
            edge_type=data[f"in.edge_type{i}"],
        )
        for i in range(1, 6)
    ]
    state = {k: v for k, v in data.items() if k.startswith("state.")}
    return (
        data,
        scales,
        state,
        KnowledgePrefix.from_official(
            state, scales, data["in.disease_feature"], qformer_heads=4
        ).eval(),
    )


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-4


@torch.no_grad()
def test_every_stage_equals_the_reference(official):
    data, _, _, prefix = official
    visual = data["in.visual_embeds"]
    answers, _ = prefix.parts["disease_queries"](visual)
    close(answers, data["out.qformer"])
    close(prefix.parts["attention_visual"](answers, prefix.bank)[0], data["out.lookup"])
    close(prefix.encode_nodes(), data["out.nodes_scale3"])
    fused = fuse(prefix.parts, visual, prefix.node_state())
    close(fused.kg2v_tokens, data["out.kg2v"])
    close(fused.v2kg_tokens, data["out.v2kg"])
    close(prefix(visual).tokens, data["out.prefix"])


@torch.no_grad()
def test_handed_in_mapped_and_unprefixed_routes_agree(official):
    data, scales, state, prefix = official
    visual, expected = data["in.visual_embeds"], data["out.prefix"]
    nodes = prefix.node_state()
    for _ in range(2):
        close(prefix(visual, nodes).tokens, expected)  # node state handed in
    close(prefix(visual, return_attention=True).tokens, expected)  # spelled-out attention
    bare = {k.removeprefix("state."): v for k, v in state.items()}
    bank = data["in.disease_feature"]
    again = KnowledgePrefix.from_official(bare, scales, bank, qformer_heads=4).eval()
    close(again(visual).tokens, expected)


def test_same_outputs_with_gradients_enabled(official):
    data, _, _, prefix = official
    close(prefix(data["in.visual_embeds"]).tokens.detach(), data["out.prefix"])


def test_every_tensor_of_the_reference_is_used(official):
    _, _, state, prefix = official
    unused = [k for k in state if "position_ids" not in k]
    assert len(unused) == len(prefix.state_dict())
    assert qformer_key("Qformer.bert.embeddings.position_ids") is None


def test_group_slices_cover_the_prefix(official):
    data, _, _, prefix = official
    sizes = {name: s.stop - s.start for name, s in prefix.groups.items()}
    assert sizes == {"visual": 49, "kg2v": 30, "v2kg": 49, "queries": 14, "retrieved": 14}
    assert prefix.num_tokens == data["out.prefix"].shape[1]


@torch.no_grad()
def test_wrong_heads_do_not_pass(official):
    data, scales, state, _ = official
    other = KnowledgePrefix.from_official(
        state, scales, data["in.disease_feature"], qformer_heads=6
    ).eval()
    tokens = other(data["in.visual_embeds"]).tokens
    assert float((tokens - data["out.prefix"]).abs().max()) > 1e-4


# BLIP-2's own file: names and shapes as LAVIS publishes them for stage one, random values.

DIM, WIDE, FF, LAYERS, HEADS = 24, 40, 48, 4, 4


def blip2_checkpoint(path) -> dict[str, torch.Tensor]:
    """Query branch, text branch, prediction head, vision encoder and the rest, in the published layout."""
    g = torch.Generator().manual_seed(3)
    new = lambda *shape: torch.randn(shape, generator=g) * 0.2
    tensors = {
        "query_tokens": new(1, 32, DIM),
        "temp": new(),
        "visual_encoder.cls_token": new(1, 1, WIDE),
        "visual_encoder.blocks.0.attn.qkv.weight": new(3 * WIDE, WIDE),
        "ln_vision.weight": new(WIDE),
        "ln_vision.bias": new(WIDE),
        "vision_proj.weight": new(8, DIM),
        "itm_head.weight": new(2, DIM),
    }
    linear = lambda name, out, into: {f"{name}.weight": new(out, into), f"{name}.bias": new(out)}
    norm = lambda name: {
        f"{name}.LayerNorm.weight": 1 + new(DIM),
        f"{name}.LayerNorm.bias": new(DIM),
    }
    bert = {
        "embeddings.position_ids": torch.arange(512)[None],
        "embeddings.word_embeddings.weight": new(100, DIM),
        "embeddings.position_embeddings.weight": new(512, DIM),
    }
    bert |= norm("embeddings")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for block, width in [("attention", DIM)] + [("crossattention", WIDE)] * (i % 2 == 0):
            bert |= (
                linear(f"{layer}.{block}.self.query", DIM, DIM)
                | linear(f"{layer}.{block}.self.key", DIM, width)
                | linear(f"{layer}.{block}.self.value", DIM, width)
            )
            bert |= linear(f"{layer}.{block}.output.dense", DIM, DIM) | norm(
                f"{layer}.{block}.output"
            )
        for branch in ("", "_query"):
            bert |= (
                linear(f"{layer}.intermediate{branch}.dense", FF, DIM)
                | linear(f"{layer}.output{branch}.dense", DIM, FF)
                | norm(f"{layer}.output{branch}")
            )
    tensors |= (
        {f"Qformer.bert.{k}": v for k, v in bert.items()}
        | {"Qformer.cls.predictions.bias": new(100)}
        | linear("Qformer.cls.predictions.transform.dense", DIM, DIM)
    )
    torch.save({"model": tensors}, path)
    return {
        k.removeprefix("Qformer.bert."): v
        for k, v in tensors.items()
        if k.startswith("Qformer.bert.")
    }


def plain_qformer(
    t: dict[str, torch.Tensor], queries: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The query branch from the published names alone, in plain matrix products."""
    linear = lambda name, x: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]
    norm = lambda name, x: F.layer_norm(
        x, x.shape[-1:], t[f"{name}.LayerNorm.weight"], t[f"{name}.LayerNorm.bias"], 1e-12
    )
    split = lambda x: x.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)

    def attend(block, x, seen):
        q, k, v = (
            split(linear(f"{block}.self.query", x)),
            split(linear(f"{block}.self.key", seen)),
            split(linear(f"{block}.self.value", seen)),
        )
        mixed = ((q @ k.transpose(-1, -2)) / (DIM // HEADS) ** 0.5).softmax(-1) @ v
        return norm(
            f"{block}.output", linear(f"{block}.output.dense", mixed.transpose(1, 2).flatten(2)) + x
        )

    x = norm("embeddings", queries)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        x = attend(f"{layer}.attention", x, x)
        if i % 2 == 0:
            x = attend(f"{layer}.crossattention", x, image)
        inner = F.gelu(linear(f"{layer}.intermediate_query.dense", x))
        x = norm(f"{layer}.output_query", linear(f"{layer}.output_query.dense", inner) + x)
    return x


@torch.no_grad()
def test_qformer_of_blip2_in_its_published_layout(tmp_path):
    published = blip2_checkpoint(tmp_path / "blip2_pretrained.pth")
    qformer = build_qformer(DIM, WIDE, LAYERS, HEADS, FF).eval()
    load_qformer(qformer, tmp_path / "blip2_pretrained.pth")
    queries, image = torch.randn(1, 14, DIM), torch.randn(3, 49, WIDE)
    ours = qformer(queries.expand(3, -1, -1), encoder_hidden_states=image).last_hidden_state
    assert (
        float((ours - plain_qformer(published, queries.expand(3, -1, -1), image)).abs().max())
        < 1e-5
    )
    used = {qformer_key(f"Qformer.bert.{k}") for k in published} - {None}
    assert used == set(qformer.state_dict())
    text = [k for k in published if qformer_key(f"Qformer.bert.{k}") is None]
    assert len(text) == 3 + LAYERS * 6 and all(
        "embeddings." in k or "intermediate.dense" in k or ".output." in k for k in text
    )
    with pytest.raises(R2GenKGError, match="model.qformer_"):
        load_qformer(
            build_qformer(DIM, WIDE + 8, LAYERS, HEADS, FF), tmp_path / "blip2_pretrained.pth"
        )
