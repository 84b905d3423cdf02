"""What the engine that `tokenizers` cuts text with takes for letters, numbers and white space. As a script it
writes the module that says so:

    python unicode_of_tokenizers.py > ingot/pipelines/tokenizer/unicode_classes.py"""

from __future__ import annotations

import textwrap

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

HEAD = '''"""Which characters are letters, numbers and white space, as first-last in hexadecimal.

They are those of the engine that `tokenizers` cuts text with; a test asks it. Written by
tests/pipelines/tokenizer/unicode_of_tokenizers.py."""

from __future__ import annotations
'''


def ranges_of(pattern: str) -> list[tuple[int, int]]:
    """The first and last code point of each run of characters that match, surrogates aside."""
    points = np.array([*range(0xD800), *range(0xE000, 0x110000)])
    text = "".join(map(chr, points.tolist()))
    runs = Split(Regex(f"[^{pattern}]+"), "removed").pre_tokenize_str(text)
    return [(int(points[start]), int(points[end - 1])) for _, (start, end) in runs]


if __name__ == "__main__":
    print(HEAD)
    for name, pattern in (("LETTERS", r"\p{L}"), ("NUMBERS", r"\p{N}"), ("SPACES", r"\s")):
        words = " ".join(f"{a:X}-{b:X}" if a != b else f"{a:X}" for a, b in ranges_of(pattern))
        body = "\n".join(textwrap.wrap(words, 108))
        print(f'{name} = """\n{body}\n"""')
