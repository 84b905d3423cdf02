"""What Python's Unicode database says of the characters of words. As a script it writes the module that keeps
it:

    python unicode_of_words.py > ingot/pipelines/dedup/unicode_classes.py"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable
from itertools import groupby

HEAD = '''"""Which characters beyond ASCII separate words, and which are a word each (first-last).

They are those of one version of Unicode, whatever Python runs this, so that it changes no shingle; a test
asks the database of that version. Written by tests/pipelines/dedup/unicode_of_words.py."""

from __future__ import annotations
'''

# Beginnings of the names of characters whose scripts are written without spaces between words.
WITHOUT_SPACES = (
    *("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "HANGZHOU", "VERTICAL IDEOGRAPHIC"),
    *("HIRAGANA", "HENTAIGANA", "KATAKANA", "HALFWIDTH KATAKANA", "COMBINING KATAKANA", "VERTICAL KANA"),
    *("BOPOMOFO", "YI ", "NUSHU", "KHITAN", "MASU", "CIRCLED KATAKANA"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI LUE", "AHOM", "JAVANESE", "BALINESE"),
)
# Han beyond the first plane, whatever Unicode adds there, and Tangut, whose names Python does not know.
IDEOGRAPHS = (range(0x20000, 0x40000), range(0x17000, 0x18B00), range(0x18D00, 0x18D80))


def is_separator(point: int) -> bool:
    """No letter, mark or number, and none that may become one: not assigned yet, or of private use. Variation
    selectors and enclosing marks follow signs such as emoji, and would be words of their own there."""
    character = chr(point)
    category = unicodedata.category(character)
    if category in ("Cn", "Co", "Cs"):
        return point & 0xFFFF >= 0xFFFE or 0xFDD0 <= point <= 0xFDEF  # noncharacters
    if category == "Me" or unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        return True
    return category[0] not in "LMN"


def is_word(point: int) -> bool:
    if is_separator(point):
        return False
    if any(point in block for block in IDEOGRAPHS):
        return True
    return unicodedata.name(chr(point), "").startswith(WITHOUT_SPACES)


def ranges_of(belongs: Callable[[int], bool]) -> list[tuple[int, int]]:
    """The first and last code point of each run beyond ASCII."""
    runs = []
    for belonging, group in groupby(range(0x80, 0x110000), belongs):
        points = list(group)
        if belonging:
            runs.append((points[0], points[-1]))
    return runs


if __name__ == "__main__":
    print(HEAD)
    print(f'UNICODE = "{unicodedata.unidata_version}"')
    for name, belongs in (("SEPARATORS", is_separator), ("WORDS", is_word)):
        words = " ".join(f"{a:X}-{b:X}" if a != b else f"{a:X}" for a, b in ranges_of(belongs))
        body = "\n".join(textwrap.wrap(words, 108))
        print(f'{name} = """\n{body}\n"""')
