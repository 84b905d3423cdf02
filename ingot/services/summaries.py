"""One line a stage: the figures a person wants to see first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Metrics = Mapping[str, Any]


def summary(stage: str, metrics: Metrics) -> str:
    """The stage's line."""
    return _LINES[stage](metrics)


def size(count: float) -> str:
    """Bytes for people, in powers of ten."""
    return f"{count:.0f} B" if count < 1000 else f"{scaled(count, kilo='k')}B"


def scaled(value: float, kilo: str = "K") -> str:
    """A number with its prefix, ready for a unit: 31417591804 is "31.4 G"."""
    for prefix in ("", kilo, "M", "G", "T"):
        if value < 999.95:
            return f"{value:.1f} {prefix}"
        value /= 1000
    return f"{value:.1f} P"


def _corpus(metrics: Metrics) -> str:
    bad = f", {metrics['bad']:,} bad records quarantined" if metrics["bad"] else ""
    read = f"{size(metrics['bytes_in'])} in {metrics['files']:,} files"
    skipped = metrics.get("skipped", {"count": 0})
    named = f", {skipped['count']:,} skipped: {', '.join(skipped['first'])}" if skipped["count"] else ""
    more = ", …" if skipped["count"] > len(skipped.get("first", ())) else ""
    return f"{read} → {metrics['documents_out']:,} documents{bad}{named}{more}"


def _dedup(metrics: Metrics) -> str:
    kinds = {"exact": "exact", "near": "near", "url": "same-address", "takedown": "taken-down"}
    counts = {word: metrics[f"removed_{kind}"] for kind, word in kinds.items()}
    always = f"{counts.pop('exact'):,} exact and {counts.pop('near'):,} near duplicates"
    others = [f"{count:,} {word} documents" for word, count in counts.items() if count]
    removed = ", ".join([always, *others])
    return f"{removed} removed; {metrics['documents_out']:,} documents, {size(metrics['bytes_out'])} stay"


def _tokenizer(metrics: Metrics) -> str:
    sample = f"{size(metrics['sample_bytes'])} of {metrics['sample_documents']:,} documents"
    return f"vocabulary {metrics['vocabulary']:,} from {sample}"


def _tokens(metrics: Metrics) -> str:
    return (
        f"{metrics['tokens']:,} tokens ({metrics['held_out_tokens']:,} held out), "
        f"{metrics['bytes_per_token']:.2f} bytes a token"
    )


def _pretrain(metrics: Metrics) -> str:
    bits = f"{metrics['bits_per_byte_before']:.3f} → {metrics['bits_per_byte_after']:.3f}"
    padding = f", rows {metrics['padding_share']:.1%} padding" if "padding_share" in metrics else ""
    return (
        f"{metrics['parameters']:,} parameters, {metrics['tokens_trained']:,} tokens at "
        f"{metrics['tokens_per_second']:,.0f}/s; bits per byte {bits} "
        f"(unigram {metrics['bits_per_byte_unigram']:.3f}){padding}"
    )


def _sft(metrics: Metrics) -> str:
    losses = f"{metrics['loss_first']:.3f} → {metrics['loss_last']:.3f}"
    return f"{metrics['conversations']:,} conversations; loss {losses}"


def _preference(metrics: Metrics) -> str:
    accuracy = f"{metrics['accuracy_before']:.3f} → {metrics['accuracy_after']:.3f}"
    return (
        f"{metrics['pairs']:,} pairs; accuracy on {metrics['held_out_pairs']:,} held-out pairs {accuracy}, "
        f"margin {metrics['margin_after']:.3f}"
    )


def _evaluate(metrics: Metrics) -> str:
    return f"bits per byte {metrics['bits_per_byte']:.3f} on held-out text, {len(metrics['samples'])} samples"


def _publish(metrics: Metrics) -> str:
    return f"{metrics['model']}@{metrics['version']}, weights {metrics['weights'][:12]}"


_LINES: dict[str, Callable[[Metrics], str]] = {
    "corpus": _corpus,
    "dedup": _dedup,
    "tokenizer": _tokenizer,
    "tokens": _tokens,
    "pretrain": _pretrain,
    "sft": _sft,
    "preference": _preference,
    "evaluate": _evaluate,
    "publish": _publish,
}
