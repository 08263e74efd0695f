"""R2GenKG: hierarchical multi-modal knowledge graphs for radiology report generation (arXiv 2508.03426).

A graph from reports, and scores of generated reports, in four lines:

>>> import r2genkg
>>> annotated = r2genkg.annotate(["Small left pleural effusion.", "No pleural effusion."])
>>> [(s.span(e), e.kind, e.polarity) for s in annotated[1] for e in s.entities]
[('pleural', 'anatomy', 'present'), ('effusion', 'disorder', 'absent')]

The chapters, each a sub-package, in the order in which the data flows: `core`, `data`, `phantom`, `text`,
`extraction`, `kg`, `vision`, `model`, `scores`, `training`, `use`. Each module is exported from the notebook of
its name. The names below are the public ones; each is imported when it is first used.
"""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.config import load_config as load_config
    from .core.files import R2GenKGError as R2GenKGError
    from .data.images import read_image as read_image
    from .data.readers import read_studies as read_studies
    from .data.study import LABELS as LABELS, Study as Study
    from .extraction.annotate import annotate as annotate
    from .kg.build import build_graph as build_graph
    from .kg.graph import M3KG as M3KG
    from .kg.scales import ScaleGraph as ScaleGraph, make_scales as make_scales
    from .model.fusion import KnowledgePrefix as KnowledgePrefix
    from .model.model import R2GenKG as R2GenKG
    from .scores.clinical_efficacy import ce_scores as ce_scores
    from .scores.graph_scores import graph_scores as graph_scores
    from .scores.nlg import nlg_scores as nlg_scores
    from .text.labels import label_reports as label_reports
    from .training.pipeline import run_pipeline as run_pipeline
    from .use.report import Reporter as Reporter
    from .vision.classifier import SwinClassifier as SwinClassifier
    from .vision.vision_tokens import VisionTokens as VisionTokens

#: Public name -> the module that defines it.
_HOMES = {
    "LABELS": "data.study",
    "R2GenKGError": "core.files",
    "load_config": "core.config",
    "Study": "data.study",
    "read_studies": "data.readers",
    "read_image": "data.images",
    "annotate": "extraction.annotate",
    "label_reports": "text.labels",
    "M3KG": "kg.graph",
    "build_graph": "kg.build",
    "make_scales": "kg.scales",
    "ScaleGraph": "kg.scales",
    "VisionTokens": "vision.vision_tokens",
    "SwinClassifier": "vision.classifier",
    "KnowledgePrefix": "model.fusion",
    "R2GenKG": "model.model",
    "nlg_scores": "scores.nlg",
    "ce_scores": "scores.clinical_efficacy",
    "graph_scores": "scores.graph_scores",
    "run_pipeline": "training.pipeline",
    "Reporter": "use.report",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r2genkg' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
