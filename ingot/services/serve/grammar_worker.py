"""A process that compiles the grammars of requests, so that one which takes too much time or memory ends this
process and not the engine. Reads lines of JSON, [kind, text], and answers each with a line: the error in
JSON, null where the grammar is good. It imports nothing that is slow or large."""

from __future__ import annotations

import json
import resource
import sys

MEMORY_BYTES = 1 << 30  # of address space
CPU_SECONDS = 1  # of one grammar, the first steps of its use included
STEPS = 8  # tokens that are drawn from a grammar: some fail only when they are used


def main(tokenizer: str) -> None:
    import llguidance

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    tokens = llguidance.LLTokenizer(tokenizer)
    print("null", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
        kind, text = json.loads(line)
        print(json.dumps(check(llguidance, tokens, kind, text)), flush=True)


def check(llguidance: object, tokens: object, kind: str, text: str) -> str | None:
    """What is wrong with the grammar."""
    make, matcher = llguidance.grammar_from, llguidance.LLMatcher  # type: ignore[attr-defined]
    try:
        grammar = make(kind, text)
    except (ValueError, KeyError, TypeError) as error:
        return str(error)
    if wrong := matcher.validate_grammar(grammar, None):
        return str(wrong)
    trial = matcher(tokens, grammar, log_level=0)
    for _ in range(STEPS):
        if trial.is_error() or trial.is_stopped():
            break
        allowed = trial.compute_bitmask()
        first = next(
            (
                index * 8 + bit
                for index, byte in enumerate(allowed)
                if byte
                for bit in range(8)
                if byte >> bit & 1
            ),
            None,
        )
        if first is None or not trial.consume_token(first):
            break
    return str(trial.get_error()) or None


if __name__ == "__main__":
    main(sys.argv[1])
