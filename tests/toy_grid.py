"""A grid of three variants whose runs take seconds; the second one fails."""

from tiny_demo import SIZES

from r2genkg.training.grid import Variant

TINY = [*SIZES, "train.epochs=1"]
BROKEN = Variant(
    "broken", ("llm.heads=5",)
)  # 48 is no multiple of 5: fails when the model is built
VARIANTS = (Variant("full"), BROKEN, Variant("zero-KG", ("model.use_graph=false",)))
