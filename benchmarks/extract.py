"""Quality of trained extraction models on sentences they never saw, and speed of a corpus run.

    python benchmarks/extract.py [--shared ../shared/data] [--out FILE] [--work DIR] [--parts entities,speed,...]

- `entities`: trained on four fifths of ReXKG's GPT-4o answers (a part of these picks the epoch), scored on the other
  fifth. No sentence of that fifth is in training (with --recurring: no report). Beside it stand the rules, and the
  annotator on copies of a sentence.
- `phantoms`, `openi`: relations on phantoms, whose truth is exact, and on Open-i reports annotated by the rules. The
  latter says how well rules are learnt, nothing about GPT-4o.
- `speed`: the corpus run beside ReXKG's way, which takes every report on its own and pads every sentence to 256.

A run that was cut off goes on with the same --work.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F

from r2genkg.core.files import read_json, write_json
from r2genkg.core.runtime import set_seed
from r2genkg.data.annotation import SentenceAnnotation
from r2genkg.data.openi import read_openi_package
from r2genkg.extraction.annotate import annotate
from r2genkg.extraction.annotation_scores import score_annotations
from r2genkg.extraction.corpus import extract_corpus, sentence_row
from r2genkg.extraction.encoders import open_encoder
from r2genkg.extraction.entity_model import collate_spans, decode_spans, word_inputs
from r2genkg.extraction.extractor import ExtractModel, entities_from_spans, train_extract
from r2genkg.extraction.model_training import ExtractConfig
from r2genkg.extraction.relation_model import (
    MarkerModel,
    possible_pairs,
    predict_relations,
    train_relations,
)
from r2genkg.extraction.training_sentences import (
    distinct_sentences,
    read_training_reports,
    sentence_key,
    split_reports,
)
from r2genkg.extraction.word_pieces import WordPieces
from r2genkg.phantom.findings import sample_findings
from r2genkg.phantom.wording import write_report
from r2genkg.text.relation_rules import relations_by_rules as rule_relations
from r2genkg.text.rules import RulesAnnotator
from r2genkg.text.sentences import split_sentences, tokenize


def self_agreement(reports: list) -> dict:
    """Each copy of a repeated sentence against another copy of it: how well the annotator agrees with itself."""
    copies: dict[tuple, list[SentenceAnnotation]] = {}
    for s in (s for _, sentences in reports for s in sentences):
        copies.setdefault((sentence_key(s.text), len(s.tokens)), []).append(s)
    pairs = [
        (s, same[(n + 1) % len(same)])
        for same in copies.values()
        if len(same) > 1
        for n, s in enumerate(same)
    ]
    return {"copies": len(pairs)} | {
        k: v for k, v in score_annotations(*zip(*pairs)).items() if k in ("token F1", "span F1")
    }


def entities(args: argparse.Namespace, config: ExtractConfig) -> dict | str:
    """Scores of the entity model and of the rules on the same held-back fifth."""
    path = Path(args.shared) / "rexkg" / "gpt4o_entities_500.json"
    if not path.exists():
        return "not run: file not here"
    reports, folder = read_training_reports(path), args.work / "model"
    start, seconds = time.perf_counter(), None
    if (folder / "extract.json").exists():
        model = ExtractModel.load(folder)
    else:
        model = train_extract(reports, folder, config)
        seconds = round(time.perf_counter() - start)
    parts = split_reports(reports, config.dev, config.test, config.seed, config.strict)
    engine = RulesAnnotator()
    result = {
        "config": model.config.model_dump(),
        "sentences": {k: len(v) for k, v in parts.items()},
        "distinct": {k: len(distinct_sentences(v)) for k, v in parts.items()},
        "training seconds (None: trained before)": seconds,
        "annotator with itself": self_agreement(reports),
    }
    for part in (p for p in ("dev", "test") if parts[p]):
        for name, found in (
            ("model", model.annotate_tokens(parts[part])),
            ("rules", [engine.annotate_sentence(s.text) for s in parts[part]]),
        ):
            scores = score_annotations(parts[part], found)
            result[f"{part}, {name}"] = {k: scores[k] for k in ("token F1", "span F1")} | {
                "per type": {k: scores["per type"][k] for k in ("token", "span")}
            }
    return result


def relations(name: str, reports: list, args: argparse.Namespace, config: ExtractConfig) -> dict:
    """Relation F1 between given entities on sentences that were not trained on."""
    parts = split_reports(reports, config.dev, config.test, config.seed)
    train, dev = distinct_sentences(parts["train"]), distinct_sentences(parts["dev"])
    set_seed(config.seed)
    encoder, tokenizer = open_encoder(config.encoder, config.encoder_layers)
    model = MarkerModel(encoder, config.hidden, config.dropout)
    pieces, start = WordPieces(tokenizer), time.perf_counter()
    related, _ = train_relations(model, train, dev, pieces, config, args.work / name)
    seconds = round(time.perf_counter() - start)
    test = parts["test"]
    predicted = predict_relations(model, test, pieces, related)
    found = [replace(s, relations=r) for s, r in zip(test, predicted, strict=True)]
    scores = score_annotations(test, found)
    candidates = [possible_pairs(s.entities, related) for s in test]
    return {
        "distinct training sentences": len(train),
        "test sentences": len(test),
        "training seconds": seconds,
        "relation F1": scores["relation F1"],
        "per type": scores["per type"]["relation"],
        "ordered pairs": sum(len(s.entities) * (len(s.entities) - 1) for s in test),
        "pairs scored": sum(len(pairs) for pairs in candidates),
        "encoder passes": sum(bool(pairs) for pairs in candidates),
    }


@torch.inference_mode()
def one_by_one(model: ExtractModel, text: str) -> list[SentenceAnnotation]:
    """ReXKG's way: the sentences of one report, each padded to 256 pieces."""
    sentences = [SentenceAnnotation(s, tokenize(s)) for s in split_sentences(text)]
    if not sentences:
        return []
    batch = collate_spans(
        [word_inputs(s.tokens, model.pieces, model.config.lexicon) for s in sentences],
        model.pieces.pad,
    )
    for k in ("input_ids", "attention_mask"):
        batch[k] = F.pad(batch[k], (0, 256 - batch[k].shape[1]))
    logits = model.entities.eval()(**batch)["logits"].numpy()
    found = [
        replace(
            s, entities=entities_from_spans(s.tokens, decode_spans(x[: len(s.tokens)], model.keep))
        )
        for s, x in zip(sentences, logits, strict=True)
    ]
    return [replace(s, relations=tuple(rule_relations(s.tokens, s.entities))) for s in found]


def speed(args: argparse.Namespace) -> dict | str:
    """Sentences per second of both ways, and whether they find the same."""
    if not (args.work / "model" / "extract.json").exists():
        return "not run: no model"
    model = replace(ExtractModel.load(args.work / "model", "cpu"), relation_source="rules")
    corpus = [(s.id, s.findings) for s in read_openi_package() if s.findings][: args.reports]
    with tempfile.TemporaryDirectory() as tmp:
        start = time.perf_counter()
        counts = extract_corpus(corpus, model, Path(tmp) / "a.jsonl")
        ours = time.perf_counter() - start
        lines = [json.loads(line) for line in open(Path(tmp) / "a.jsonl", encoding="utf-8")]
    start = time.perf_counter()
    theirs_rows = [
        [json.loads(sentence_row(s)) for s in one_by_one(model, text)] for _, text in corpus
    ]
    theirs = time.perf_counter() - start
    same = sum(
        a == b
        for line, rows in zip(lines, theirs_rows, strict=True)
        for a, b in zip(line["sentences"], rows, strict=True)
    )
    return {k: counts[k] for k in ("reports", "sentences", "distinct sentences")} | {
        "corpus run, sentences/s": round(counts["sentences"] / ours, 1),
        "one by one padded to 256, sentences/s": round(counts["sentences"] / theirs, 1),
        "times faster": round(theirs / ours, 1),
        "sentences with equal annotations": same,
    }


def arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", default=os.environ.get("R2GENKG_SHARED", "../shared") + "/data")
    parser.add_argument(
        "--out",
        help="write the figures to this file; parts that are not run stay as they are there",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "r2genkg-extract",
        help="folder of the trained models",
    )
    parser.add_argument("--parts", default="entities,phantoms,openi,speed")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument(
        "--encoder-layers", type=int, default=0, help="only the first layers of the encoder"
    )
    parser.add_argument("--lr-encoder", type=float, default=ExtractConfig().lr_encoder)
    parser.add_argument("--epochs", type=int, default=ExtractConfig().epochs)
    parser.add_argument("--relation-epochs", type=int, default=ExtractConfig().relation_epochs)
    parser.add_argument(
        "--no-lexicon",
        action="store_true",
        help="without the vocabulary as an input of the entity model",
    )
    parser.add_argument(
        "--dev",
        type=float,
        default=ExtractConfig().dev,
        help="share of reports that picks epoch and bar; 0: the last epoch, bar 0",
    )
    parser.add_argument(
        "--members", type=int, default=1, help="entity models of other seeds that answer together"
    )
    parser.add_argument(
        "--refit", action="store_true", help="train anew on the development part too"
    )
    parser.add_argument(
        "--recurring",
        action="store_true",
        help="deal reports, whose sentences recur, instead of sentences",
    )
    parser.add_argument("--reports", type=int, default=100, help="of the speed test")
    return parser.parse_args()


def config_of(args: argparse.Namespace) -> ExtractConfig:
    """The settings of a training, from the options."""
    return ExtractConfig(
        encoder=args.encoder,
        encoder_layers=args.encoder_layers,
        lr_encoder=args.lr_encoder,
        epochs=args.epochs,
        relation_epochs=args.relation_epochs,
        lexicon=not args.no_lexicon,
        dev=args.dev,
        members=args.members,
        refit=args.refit,
        strict=not args.recurring,
    )


def machine() -> str:
    """Processor, threads and versions."""
    parts = [
        platform.processor() or platform.machine(),
        f"{torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
    ]
    return ", ".join(parts)


def phantom_reports() -> list[tuple]:
    """A thousand drawn reports with their exact annotations."""
    rng = np.random.default_rng(20_261)
    return [(str(n), write_report(sample_findings(rng), rng).sentences) for n in range(1000)]


def openi_reports() -> list[tuple]:
    """The first 400 findings of Open-i, annotated by the rules."""
    texts = [s.findings for s in read_openi_package() if s.findings][:400]
    return list(enumerate(annotate(texts)))


def main() -> None:
    args = arguments()
    config = config_of(args)
    result = read_json(args.out) if args.out and Path(args.out).exists() else {}
    result["machine"] = machine()
    jobs = {
        "entities": lambda: entities(args, config),
        "phantoms": lambda: relations("phantoms", phantom_reports(), args, config),
        "openi": lambda: relations("openi", openi_reports(), args, config),
        "speed": lambda: speed(args),
    }
    for name in args.parts.split(","):
        result[name] = jobs[name]()
        print(json.dumps({name: result[name]}, indent=2), flush=True)
        if args.out:
            write_json(args.out, result)


if __name__ == "__main__":
    main()
