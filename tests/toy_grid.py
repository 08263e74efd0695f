"""A grid of three variants whose runs take seconds; the second one fails."""

from r2genkg.training.grid import Variant

TINY = [
    "studies.n_train=24",
    "studies.n_val=2",
    "studies.n_test=8",
    "studies.image_size=56",
    "tokens.patch=8",
    "graph.corpora=[studies]",
    "graph.min_count=1",
    "scales.sizes=[10,15,20,25,30]",
    "classifier.patch_size=4",
    "classifier.embed_dim=24",
    "classifier.epochs=1",
    "tokens.threshold=0.3",
    "tokens.max_per_label=6",
    "llm.pretrain_epochs=1",
    "llm.hidden=48",
    "llm.layers=2",
    "llm.ff=96",
    "llm.vocab=400",
    "model.dim=48",
    "model.dim_gcn=24",
    "model.qformer_ff=48",
    "model.fuser_ff=48",
    "train.epochs=1",
    "train.target_length=30",
    "decode.beams=1",
    "decode.max_new_tokens=24",
]
BROKEN = Variant(
    "broken", ("llm.heads=5",)
)  # 48 is no multiple of 5: fails when the model is built
VARIANTS = (Variant("full"), BROKEN, Variant("zero-KG", ("model.use_graph=false",)))
