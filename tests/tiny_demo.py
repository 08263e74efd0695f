"""Options that make the demo small enough for a test: every stage is real, nothing is learnt well."""

#: Sizes of everything, also of the grid in `toy_grid`.
SIZES = (
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
    "train.target_length=30",
    "decode.beams=1",
    "decode.max_new_tokens=24",
)
CHANGES = (*SIZES, "train.epochs=2", "train.batch_size=4", "train.save_steps=2")
#: The same as options of `demo`, `train` and `tables`.
TINY = [arg for change in CHANGES for arg in ("--set", change)]
