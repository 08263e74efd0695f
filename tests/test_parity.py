"""The knowledge prefix against the outputs of the reference implementation (shared development data)."""
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from r2genkg.fusion import KnowledgePrefix, encode_nodes, fuse
from r2genkg.qformer import qformer_key


@pytest.fixture
def official(shared_data):
    """Tensors of the reference run, and the prefix built from them."""
    data = load_file(shared_data("official", "encode.safetensors"))
    scales = [SimpleNamespace(x=data[f"in.node_features{i}"], edge_index=data[f"in.edge_index{i}"], edge_type=data[f"in.edge_type{i}"])
              for i in range(1, 6)]
    state = {k: v for k, v in data.items() if k.startswith("state.")}
    return data, scales, state, KnowledgePrefix.from_official(state, scales, data["in.disease_feature"], qformer_heads=4).eval()


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
    close(encode_nodes(prefix), data["out.nodes_scale3"])
    kg2v, v2kg = fuse(prefix, visual, {})
    close(kg2v, data["out.kg2v"])
    close(v2kg, data["out.v2kg"])
    close(prefix(visual), data["out.prefix"])


@torch.no_grad()
def test_cached_mapped_and_unprefixed_routes_agree(official):
    data, scales, state, prefix = official
    visual, expected = data["in.visual_embeds"], data["out.prefix"]
    prefix(visual)
    close(prefix(visual), expected)                                 # node state from the cache
    close(prefix(visual, return_attention=True)[0], expected)       # spelled-out attention
    bare = {k.removeprefix("state."): v for k, v in state.items()}
    close(KnowledgePrefix.from_official(bare, scales, data["in.disease_feature"], qformer_heads=4).eval()(visual), expected)


def test_same_outputs_with_gradients_enabled(official):
    data, _, _, prefix = official
    close(prefix(data["in.visual_embeds"]).detach(), data["out.prefix"])


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
    other = KnowledgePrefix.from_official(state, scales, data["in.disease_feature"], qformer_heads=6).eval()
    assert float((other(data["in.visual_embeds"]) - data["out.prefix"]).abs().max()) > 1e-4
