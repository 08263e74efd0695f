"""Draw the paper's Figure 1 as figures/architecture.svg: every box names its module and the shape of what it gives.

    python scripts/draw_architecture.py            # writes the drawing
    python scripts/draw_architecture.py --check    # exit status 1 if it is out of date, or names a missing module

The shapes are those of the paper's model: 224 x 224 pixels, scale 3 with 319 nodes, 6,943 vision tokens, Llama-2-7B.
"""

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "figures" / "architecture.svg"
WIDTH, HEIGHT = 1180, 620
BOX_W, BOX_H = 172, 74
COLOURS = {
    "data": ("#f3f0e8", "#8a7f66"),
    "graph": ("#e6f1ea", "#2f7d4f"),
    "vision": ("#e7eef8", "#33619d"),
    "fusion": ("#f6eaf3", "#93437d"),
    "language": ("#fbeee3", "#b3611f"),
}


@dataclass(frozen=True)
class Box:
    """A step: what it does, the module that does it, the shape of what it gives, its corner and its colour."""

    title: str
    module: str
    shape: str
    x: int
    y: int
    kind: str

    @property
    def left(self) -> tuple[int, int]:
        return self.x, self.y + BOX_H // 2

    @property
    def right(self) -> tuple[int, int]:
        return self.x + BOX_W, self.y + BOX_H // 2

    @property
    def top(self) -> tuple[int, int]:
        return self.x + BOX_W // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        return self.x + BOX_W // 2, self.y + BOX_H


COLUMN = [20, 252, 484, 716, 948]
ROW = [60, 180, 300, 420, 530]
BOXES = {
    "reports": Box("Reports", "data.readers", "text", COLUMN[0], ROW[0], "data"),
    "annotate": Box(
        "Entities, relations",
        "extraction.annotate",
        "typed spans, polarity",
        COLUMN[1],
        ROW[0],
        "graph",
    ),
    "graph": Box("M3KG", "kg.graph", "2,477 nodes, 37,424 triples", COLUMN[2], ROW[0], "graph"),
    "scales": Box(
        "Five scales", "kg.scales", "5 x (N, 768), N = 101 ... 558", COLUMN[3], ROW[0], "graph"
    ),
    "rgcn": Box("R-GCN", "model.rgcn", "5 x (N, 768)", COLUMN[4], ROW[0], "graph"),
    "fuser": Box(
        "Multi-scale self-attention",
        "model.scale_fusion",
        "scale 3: (319, 1024)",
        COLUMN[3],
        ROW[1],
        "graph",
    ),
    "image": Box("Image", "data.images", "(B, 3, 224, 224)", COLUMN[0], ROW[2], "data"),
    "swin": Box("Swin-B", "vision.classifier", "visual (B, 49, 1024)", COLUMN[1], ROW[2], "vision"),
    "cross": Box(
        "KG2V and V2KG",
        "model.cross_attention",
        "(B, 319 and 49, 1024)",
        COLUMN[3],
        ROW[2],
        "fusion",
    ),
    "qformer": Box(
        "Q-Former, 14 queries", "model.qformer", "queries (B, 14, 768)", COLUMN[2], ROW[3], "vision"
    ),
    "retrieval": Box(
        "Retrieval", "model.retrieval", "retrieved (B, 14, 768)", COLUMN[3], ROW[3], "fusion"
    ),
    "tokens": Box(
        "Vision tokens (Grad-CAM)",
        "vision.vision_tokens",
        "bank (6943, 768)",
        COLUMN[2],
        ROW[4],
        "vision",
    ),
    "prefix": Box(
        "Knowledge prefix", "model.fusion", "(B, 445, 4096)", COLUMN[4], ROW[2], "fusion"
    ),
    "llm": Box("Llama-2-7B", "model.llm", "logits (B, T, 32000)", COLUMN[4], ROW[3], "language"),
    "report": Box("Report", "model.decode", "3 beams -> text", COLUMN[4], ROW[4], "language"),
}
#: From, side, to, side.
ARROWS = [
    ("reports", "right", "annotate", "left"),
    ("annotate", "right", "graph", "left"),
    ("graph", "right", "scales", "left"),
    ("scales", "right", "rgcn", "left"),
    ("rgcn", "bottom", "fuser", "right"),
    ("fuser", "bottom", "cross", "top"),
    ("image", "right", "swin", "left"),
    ("swin", "right", "cross", "left"),
    ("swin", "right", "qformer", "left"),
    ("swin", "bottom", "tokens", "left"),
    ("qformer", "right", "retrieval", "left"),
    ("tokens", "right", "retrieval", "bottom"),
    ("cross", "right", "prefix", "left"),
    ("retrieval", "right", "prefix", "left"),
    ("prefix", "bottom", "llm", "top"),
    ("llm", "bottom", "report", "top"),
]
#: Where an arrow goes when it leaves a side.
OUTWARD = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
TITLE = "R2GenKG (paper Figure 1): each box names its module and the shape of what it gives"
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
MARKER = 'refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse"'
HEAD = f"""{SVG} font-family="Helvetica, Arial, sans-serif">
<title>R2GenKG: from reports and an image to a report</title>
<defs><marker id="tip" viewBox="0 0 10 10" {MARKER}>
<path d="M 0 0 L 10 5 L 0 10 z" fill="#555"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<text x="20" y="32" font-size="17" font-weight="bold">{TITLE}</text>"""


def text(x: float, y: float, words: str, size: int, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" {style}>{escape(words)}</text>'


def draw_box(box: Box) -> str:
    fill, line = COLOURS[box.kind]
    middle = box.x + BOX_W / 2
    return "\n".join(
        [
            f'<rect x="{box.x}" y="{box.y}" width="{BOX_W}" height="{BOX_H}" rx="7" fill="{fill}" stroke="{line}"/>',
            text(middle, box.y + 22, box.title, 13, 'font-weight="bold"'),
            text(middle, box.y + 42, box.module, 12, 'font-family="monospace" fill="#333"'),
            text(middle, box.y + 62, box.shape, 12, 'fill="#333"'),
        ]
    )


def draw_arrow(source: str, out: str, target: str, into: str) -> str:
    (x0, y0), (x1, y1) = getattr(BOXES[source], out), getattr(BOXES[target], into)
    (dx0, dy0), (dx1, dy1) = OUTWARD[out], OUTWARD[into]
    bend_x, bend_y = abs(x1 - x0) / 2, abs(y1 - y0) / 2
    bend0 = f"{x0 + dx0 * bend_x:g} {y0 + dy0 * bend_y:g}"
    bend1 = f"{x1 + dx1 * bend_x:g} {y1 + dy1 * bend_y:g}"
    return (
        f'<path d="M {x0} {y0} C {bend0}, {bend1}, {x1} {y1}" '
        'fill="none" stroke="#555" stroke-width="1.4" marker-end="url(#tip)"/>'
    )


def drawing() -> str:
    arrows = [draw_arrow(*arrow) for arrow in ARROWS]
    boxes = [draw_box(box) for box in BOXES.values()]
    return "\n".join([HEAD, *arrows, *boxes, "</svg>"]) + "\n"


def missing_modules() -> list[str]:
    """Modules that the drawing names and the package does not have."""
    names = {box.module for box in BOXES.values()}
    return sorted(
        n for n in names if not (ROOT / "r2genkg" / f"{n.replace('.', '/')}.py").is_file()
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if missing := missing_modules():
        print(f"the drawing names modules that are not there: {', '.join(missing)}")
        return 1
    if not args.check:
        OUT.write_text(drawing(), encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != drawing():
        print(f"{OUT.relative_to(ROOT)} is out of date: run `make map`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
