"""benchmarks/README.md from the result files in benchmarks/results: what was measured, against what, by which command.

python benchmarks/prefix.py --out benchmarks/results/prefix.json     # each benchmark writes its own file
python benchmarks/table.py                                           # then the table; what has no file is "not run"
"""

from collections.abc import Callable
from pathlib import Path

from r2genkg.core.files import atomic_path, read_json

HOME = Path(__file__).parent
CE_F1 = "ce_f1/micro-14/u0"
HEAD = """# Benchmarks

"Against" another procedure means a straight re-creation of it, with the same weights, input and output, in one run.
Each file says how. `python benchmarks/table.py` makes the table from the files in `results/`. The commands wrote them
on a machine with two CPU cores, with one thread unless the row says otherwise. *Computed* figures were not measured.

| what | result | command |
|---|---|---|
"""


def with_interval(values: list[float], digits: int = 3) -> str:
    """A score with its 95 % interval: 0.698 [0.657, 0.734]."""
    score, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{score} [{low}, {high}]"


def prefix(r: dict) -> str:
    """Speed, memory and difference of the knowledge prefix."""
    seconds = r["evaluation_s"]
    evaluation = (
        f"{r['evaluation_speedup']:.2f} times faster in evaluation "
        f"({seconds['reference']:.2f} s, {seconds['ours']:.2f} s), "
        f"greatest difference {r['greatest_difference']:.0e}"
    )
    training = (
        f"a training step of batch {r['batch']} {r['training_speedup']:.2f} times, "
        f"peak memory {r['training_peak_ratio']:.2f} of the reference's"
    )
    return f"{evaluation}; {training}"


def beams(r: dict) -> str:
    """Speed of beam search, for each number of studies at once."""
    parts = []
    for row in r["rows"]:
        apart, once = row["seconds"].values()
        speed = f"{row['speedup']:.2f} times ({apart:.1f} s, {once:.1f} s)"
        parts.append(f"{row['studies']} at once {speed}")
    return "; ".join([*parts, "identical tokens"])


def parity(r: dict) -> str:
    """The greatest difference over all outputs."""
    greatest = max(r["greatest absolute difference"].values())
    return f"{greatest:.1e} over {r['values compared']:,} values"


def plan(r: dict) -> str:
    """Memory and hours on each card."""
    parts = []
    for name, found in r["plans"].items():
        settings = found["settings"].split(", ", 1)[1]
        parts.append(f"{name}: {found['memory GiB']} GiB ({settings}), {found['hours']} h")
    return "; ".join(parts)


def pruning(r: dict) -> str:
    """Prefix length, operations and CE F1 at each number of nodes."""
    parts = []
    for k, row in r["k"].items():
        score = row["scores"]  # a text where the run is missing
        if not isinstance(score, str):
            score = f"CE F1 {with_interval(score[CE_F1])}"
        tokens, share = row["prefix tokens"], row["llama-2-7b: share of all nodes"]
        parts.append(
            f"{k} nodes: {tokens} tokens, {share:.2f} of the operations (computed), {score}"
        )
    return "; ".join(parts)


def annotation(r: dict) -> str:
    """Speed of the rules, and their agreement with GPT-4o, phantoms and MeSH."""
    speed = r["speed"]["annotated sentences/s, all distinct"]
    answers, exact, mesh = r["GPT-4o answers"], r["phantoms, style A"], r["MeSH"]
    return (
        f"{speed:,.0f} distinct sentences/s; "
        f"typed token F1 {answers['typed token F1']:.3f} on 500 answers of GPT-4o; "
        f"phantoms {exact['entity F1']:.3f} (entities), {exact['relation F1']:.3f} (relations); "
        f"labels against MeSH macro F1 {mesh['macro F1']:.3f}"
    )


def loops(rows: list) -> str:
    """How many times faster than loops, at each size."""
    parts = []
    for row in rows:
        note = f" ({row['note']})" if row["note"] else ""
        parts.append(f"{row['size']}: {row['whole_ratio']:,.0f} times{note}")
    return "; ".join(parts)


def growth(rows: list) -> str:
    """Rate and memory at each number of reports."""
    parts = []
    for row in rows:
        rate, memory = f"{row['reports_per_cpu_s']:,} reports/s", f"{row['peak_MiB']:,} MiB"
        relative = f"time per report {row['time_per_report_to_first']:.2f} of the first"
        parts.append(f"{row['reports']:,}: {rate}, {memory}, {relative}")
    return "; ".join(parts)


def qlora(r: dict) -> str:
    """Loss, time and CE F1 of the QLoRA run, and the baselines."""
    loss, minutes = list(r["loss by step"].values()), r["training seconds"] / 60
    score = with_interval(r["intervals"][CE_F1], digits=2)
    beat = r["CE F1 micro of what it has to beat"].items()
    return (
        f"loss {loss[0]:.2f} to {loss[-1]:.2f} in {minutes:.0f} minutes; "
        f"CE F1 micro {score} on {r['test studies']} studies; "
        + ", ".join(f"{name} {value:.2f}" for name, value in beat)
    )


def difference(found: dict) -> str:
    """A difference from the first row, with its interval and corrected p."""
    interval = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
    return f", difference {found['difference']:+.3f} {interval}, p {found['p_holm']:.2f}"


def questions(rows: dict) -> str:
    """CE F1 of each variant, and its difference from the first."""
    parts = []
    for name, row in rows.items():
        seeds = f" ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else ""
        more = difference(row["difference"]) if "difference" in row else ""
        parts.append(f"{name}{seeds}: CE F1 {with_interval(row[CE_F1])}{more}")
    return "; ".join(parts)


def entities(r: dict) -> str:
    """F1 of the entity model, of the rules, and of the annotator with itself."""
    found = r["entities"]
    model, rules = found["test, model"], found["test, rules"]
    return (
        f"token F1 {model['token F1']:.4f}, span F1 {model['span F1']:.4f} "
        f"on {found['sentences']['test']} sentences of reports that were not trained on; "
        f"the rules {rules['token F1']:.4f}, the annotator on copies of a sentence "
        f"{found['annotator with itself']['token F1']:.3f}"
    )


def gpu_steps(name: str, part: dict) -> str:
    """Time and memory of training steps, or why there are none."""
    if "not measured" in part:
        return f"{name} not measured ({part['not measured']})"
    peak = part["peak GiB"]
    memory = "" if peak is None else f", peak {peak:.1f} GiB (planned {part['planned GiB']:.1f})"
    return f"{name} {part['seconds a step']:.2f} s a step{memory}"


def gpu(r: dict) -> str:
    """What `r2genkg doctor --gpu` measured on one card."""
    parts = [f"{r['device']}, batch {r['batch']}"]
    parts += [gpu_steps(n, r[n]) for n in ("without checkpointing", "with checkpointing")]
    beam, resumed, cards = r["beam search"], r["resumed step"], r["two cards"]
    if "not measured" in beam:
        parts.append(f"beam search not measured ({beam['not measured']})")
    else:
        parts.append(f"beam search {beam['tokens/s']:.0f} tokens/s ({beam['beams']} beams)")
    apart = resumed.get("greatest difference of weights")
    parts.append(
        "a resumed step " + ("not measured" if apart is None else f"differs by {apart:.0e}")
    )
    if "same weights" in cards:
        parts.append("two cards " + ("agree" if cards["same weights"] else "differ"))
    return "; ".join(parts)


#: What was measured, the result file, the function that words it, the command.
def films(r: dict) -> str:
    """What became of the files that pydicom ships."""
    counts, gray = r["results"], r["gray films of one frame"]
    return (
        f"{r['files']} files: {counts['read']} read, {counts.get('refused', 0)} refused in one line, "
        f"{counts.get('no picture', 0)} without a picture, {counts.get('fault', 0)} with a traceback; "
        f"of the gray films of one frame {gray['read']} read, {gray.get('refused', 0)} refused"
    )


def local_llm(r: dict) -> str:
    """A small model's terms against GPT-4o's, beside the rules'."""
    scores, run = r["scores"], r["run"]
    model, rules = (scores[name]["typed token F1"] for name in ("model", "rules"))
    return (
        f"typed token F1 {model:.3f} against GPT-4o's answers, the rules {rules:.3f}, on the same "
        f"{scores['sentences']} sentences of {run['finished']} reports"
    )


def faults(rows: dict) -> str:
    """Tries and held ones in all."""
    total = [sum(row[name] for row in rows.values()) for name in ("held", "tried")]
    return f"{total[0]:,} of {total[1]:,} held in {len(rows)} areas, see below"


FAULTS = """
## Faults, by area (`faults.py`)

A try is an input, a request or an end from outside. It held if nothing was lost or leaked, and if what is wrong was
said in one line. *Before* is the count of the same tries against the version before their faults were mended
(`faults.py --before TREE`), where it was taken; the other areas were mended before they were counted.

| area | tried | held before | held |
|---|---|---|---|
"""


def fault_areas() -> str:
    """A row for each area of the campaign of faults; empty before it has run."""
    file = HOME / "results" / "faults.json"
    rows = read_json(file) if file.exists() else {}
    names = ("tried", "held_before", "held")
    lines = [
        f"| {area} | {' | '.join(str(row.get(name, '')) for name in names)} |"
        for area, row in rows.items()
    ]
    return FAULTS + "\n".join(lines) + "\n" if rows else ""


def scale(rows: list) -> str:
    """Rate and memory of each command, and how many times faster with more processes."""
    parts = []
    for row in rows:
        n, speed = row["workers"], ""
        if n > 1:
            equal = "same result" if row["equal_to_first"] else "another result"
            speed = f", {row['speed_to_first']:.2f} times one process, {equal}"
        rate = f"{row['reports_per_s']:,} reports/s, {row['peak_MiB']:,} MiB"
        parts.append(f"{row['command']} {row['reports']:,} ({n}): {rate}{speed}")
    return "; ".join(parts)


def scoring(r: dict) -> str:
    """Time and memory of `score` against pycocoevalcap and the labels."""
    ours, alone = r["r2genkg score"], r["pycocoevalcap alone plus the labels"]
    return (
        f"{r['time ratio']:.2f} of the time ({ours['seconds']:.0f} s, {alone['seconds']:.0f} s), "
        f"{r['processor time ratio']:.2f} of the processor time, {ours['peak_MiB']:,} MiB against "
        f"{alone['peak_MiB']:,}, greatest difference {r['greatest difference of scores']:.0e}"
    )


def folds(row: dict, digits: int = 3) -> str:
    """A mean over folds with its interval, where there is one."""
    if "low" not in row:
        return f"{row['mean']:.{digits}f} (one fold)"
    return with_interval([row["mean"], row["low"], row["high"]], digits)


def real_films(r: dict) -> str:
    """AUROC, pointing and token area of the classifier of real films, over folds of patients."""
    parts = [f"macro AUROC of eight labels {folds(r['macro_auroc_8'])}"]
    parts.append(
        f"pointing {folds(r['macro_pointing'])}, chance {r['macro_chance']['mean']:.3f}, "
        f"the place without a film {folds(r['macro_prior'])}"
    )
    if "token_area_ratio" in r:
        parts.append(f"token area in boxes {folds(r['token_area_ratio'], 1)} times chance")
    time = "" if r["seconds"] is None else f"{r['seconds'] / 60:.0f} min and "
    parts.append(f"{time}{r['memory_mib']:,} MiB a fold, {r['threads']} thread")
    settings = r["settings"]
    parts.append(f"{settings['size']} pixels, {settings['epochs']} epochs")
    return (
        f"folds {', '.join(map(str, r['joined']))} of {settings['folds']}, "
        f"{r['test']:,} films, {r['boxed']} with boxes: " + "; ".join(parts)
    )


def ranked(rows: dict, digits: int = 3) -> str:
    """Names with their means over folds, the best first."""
    return "; ".join(f"{name} {folds(row, digits)}" for name, row in rows.items())


def nih_reports(r: dict) -> str:
    """CE F1 of reports for real films against the films' labels, beside the baselines."""
    parts, film = [], r["film"]
    for name, row in film.items():
        if name == "labels":
            continue
        scores = [
            f"{average} {with_interval([row[key], *row['intervals'][key]])}"
            for average, key in (("micro", "ce_f1/micro-stated"), ("macro", "ce_f1/macro-stated"))
        ]
        parts.append(f"{name} {', '.join(scores)}")
    return f"{r['test_studies']} test films, {len(film['labels'])} labels: " + "; ".join(parts)


ROWS: tuple[tuple[str, str, Callable, str], ...] = (
    (
        "Knowledge prefix of one study, the paper's sizes, against the reference's procedure",
        "prefix",
        prefix,
        "prefix.py",
    ),
    (
        "Beam search, SmolLM2-135M, 3 beams, 445 prefix tokens, 100 new ones, "
        "against computing the input for every beam",
        "beam_search",
        beams,
        "beam_search.py",
    ),
    (
        "Outputs of the reference's modules against ours, same weights",
        "parity",
        parity,
        "parity.py --shared FOLDER",
    ),
    (
        "Llama-2-7B with the paper's settings on CheXpert Plus, ten epochs, on one card (computed)",
        "plan",
        plan,
        "plan.py",
    ),
    (
        "Llama-2-7B's shape in NF4 with random weights, Swin-B, the paper's prefix, on one card",
        "gpu",
        gpu,
        "r2genkg doctor --gpu --out benchmarks/results/gpu.json",
    ),
    (
        "Nodes that the language model sees (`prune_kg`)",
        "pruning",
        pruning,
        "pruning.py --runs ...",
    ),
    (
        "Graphs of 300 and of 500 nodes, one scale alone; 500 also with denoising",
        "questions",
        lambda r: questions(r["table_denoising"]),
        "questions.py ROOT ...",
    ),
    (
        "Disease queries tied to labels, or to the graph nodes of their labels",
        "questions",
        lambda r: questions(r["table_alignment"]),
        "questions.py ROOT ...",
    ),
    (
        "QLoRA on pretrained weights, SmolLM2-135M in NF4, 600 drawn studies, two passes, two threads",
        "qlora",
        qlora,
        "qlora.py RUN",
    ),
    ("Rules annotator and labeler", "annotate", annotation, "annotate.py"),
    (
        "A language model of one's own as annotator: Qwen2.5-Coder-1.5B-Instruct, 4 bits, on a CPU",
        "local_llm",
        local_llm,
        "local_llm.py score FILE",
    ),
    ("Files that pydicom ships, read as films", "films", films, "films.py"),
    (
        "Classifier of real films, NIH, EfficientNet-Lite0, maps taught by boxes; intervals over folds by patient",
        "real_films_folds",
        real_films,
        "real_films.py --train DIR --folds 5 --fold I --json films_I.json; real_films.py --join films_*.json",
    ),
    (
        "Where the maps of real films point (share in the box), the best first",
        "real_films_folds",
        lambda r: ranked(r["maps"]),
        "the same",
    ),
    (
        "Rules that choose vision tokens of real films (area in boxes, times chance), the best first",
        "real_films_folds",
        lambda r: ranked(r["token_rules"], 1),
        "the same",
    ),
    (
        "Reports for real films that borrow Open-i reports (`nih-openi`): CE F1 against the films' labels",
        "nih_openi",
        nih_reports,
        "r2genkg train --preset nih-openi",
    ),
    (
        "Entity model on MiniLM, trained on four fifths of 500 answers of GPT-4o",
        "extract",
        entities,
        "extract.py --parts entities --recurring --dev 0 --epochs 5",
    ),
    (
        "The same, two models on the first 20 layers of SmolLM2-135M, read in both directions, two threads",
        "extract_smollm2",
        entities,
        "extract.py --parts entities --recurring --dev 0 --encoder smollm2 --encoder-layers 20 "
        "--lr-encoder 1e-4 --epochs 4 --members 2",
    ),
    (
        "Nodes and edges of a graph at multiples of ReXKG's size, against its loops",
        "graph",
        loops,
        "graph.py --rexkg FOLDER",
    ),
    (
        "Graph from reports, with a memory of sentences",
        "growth",
        growth,
        "graph.py --growth 10000 50000 250000",
    ),
    (
        "Graph from reports, every sentence annotated anew",
        "growth_uncached",
        growth,
        "graph.py --growth 10000 50000 250000 --cache 0",
    ),
    (
        "Faults: strangers' files, kills, races, odd terminals, tries that held",
        "faults",
        faults,
        "faults.py",
    ),
    (
        "Commands on one and two processes (in brackets)",
        "scale",
        scale,
        "scale.py",
    ),
    (
        "`score` of 20,000 pairs against pycocoevalcap alone plus the labels",
        "score",
        scoring,
        "score.py",
    ),
)


def main() -> None:
    lines = []
    for what, name, text, command in ROWS:
        file = HOME / "results" / f"{name}.json"
        result = text(read_json(file)) if file.exists() else "not run"
        lines.append(f"| {what} | {result} | `{command}` |")
    with atomic_path(HOME / "README.md") as tmp:
        tmp.write_text(HEAD + "\n".join(lines) + "\n" + fault_areas(), encoding="utf-8")


if __name__ == "__main__":
    main()
