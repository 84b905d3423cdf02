"""The compiled kernels compute what plain Python does, and MinHash estimates what it should."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import dedup_reference as reference
import numpy as np
import pyarrow
import pytest
from dedup_corpora import planted_pair
from unicode_of_words import is_separator, is_word, ranges_of

from ingot.pipelines.columns import utf8
from ingot.pipelines.dedup import unicode_classes
from ingot.pipelines.dedup.banding import Banding, choose_banding
from ingot.pipelines.dedup.characters import SEPARATOR, WORD, character_classes, compared
from ingot.pipelines.dedup.documents import id_strings, ids
from ingot.pipelines.dedup.kernels import _sort_unique, capacity, content_keys, permutations, sign

POOLS = [
    "abcdefgh ABCDEFGH _0189 ",
    " \t\n\r\x0b\x0c.,;:!?()[]{}'\"`~@^/\\\x00\x7f",
    "éÀßñ ÖıİſK\u00a0«»¿·",  # letters and punctuation of two bytes; letters whose lower case is ASCII
    "“”‘’—…\u2009\u200b\u202f€™ℵ",
    "漢字仮名カタカナ、。「」々 Ａｂ０，：ｶ",
    "ไทยລາວမြန်ကခខ្មែរ",
    "한국어 हिन्दी עברית العربية",
    "😀🚀𝔘𠀋𠂢 ",
    "।॥،؛؟۔։፡።׀־״\u0085\u200d\u00ad\ufe0f\u20e3",  # separators of many scripts
    "བོད་ཡིག།ᦎᦷᦑᦟꦗꦮㄅꀀ𗀀𮯰ﾀ々〇豈",  # words of other scripts without spaces
]


def random_texts(count: int, longest: int) -> list[str]:
    draw = random.Random(7)
    texts = ["", " ", "\n", ".", "a", "word", "two words", "Ａ", "漢", "漢字漢字漢字", "é", "-é-", "x" * 70]
    for _ in range(count):
        pools = draw.choices(POOLS, k=draw.randint(1, 3))
        texts.append("".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(0, longest))))
    return texts


def buffers(texts: list[str]) -> tuple[Any, Any]:
    return utf8(pyarrow.chunked_array([pyarrow.array(texts, pyarrow.string())]))


def signed(texts: list[str], ngram: int, count: int, bands: int) -> tuple[list[list[int]], Any]:
    """Each text's shingles, and the hashes of its bands [texts, bands]."""
    data, offsets = buffers(texts)
    shingles, counts = np.empty(capacity(offsets), np.uint64), np.empty(len(texts), np.int64)
    hashes = np.zeros((len(texts), bands), np.uint64)
    wanted = np.ones(len(texts), bool)
    classes, drawn = character_classes(), permutations(count, 3)
    total = sign(data, offsets, wanted, classes, ngram, *drawn, bands, hashes, shingles, counts)
    assert total == counts.sum() <= len(shingles)
    return [part.tolist() for part in np.split(shingles[:total], np.cumsum(counts)[:-1])], hashes


@pytest.mark.parametrize("ngram", [1, 2, 5])
def test_shingles_of_any_text_are_the_reference_ones(ngram: int) -> None:
    texts = random_texts(600, 80)
    shingles, hashes = signed(texts, ngram, count=12, bands=3)
    multipliers, addends = (part.tolist() for part in permutations(12, 3))
    for text, found, bands in zip(texts, shingles, hashes.tolist(), strict=True):
        expected = reference.shingles(text, ngram)
        assert found == expected, repr(text)
        if expected:
            assert bands == reference.band_hashes(expected, multipliers, addends, 3), repr(text)


SEPARATORS = {
    "Devanagari": "।॥",
    "Arabic": "،؛؟۔٪",
    "Armenian": "՝՞՜։֊",
    "Ethiopic": "፡።፣፤፥፦፧",
    "Hebrew": "־׀׃״׳",
    "Greek and Latin": "·¿«»…—′″‹›",
    "Syriac, Mongolian, Tibetan": "܀᠂་།",
    "Khmer, Myanmar, Thai": "។៕၊။๏",
    "CJK": "、。「」・！，．｡",
    "beyond the first plane": "\U00011047\U0001da87",
    "spaces and controls": "\u0085\u00a0\u1680\u2003\u2028\u3000\u200b",
    "format characters": "\u00ad\u200d\u200e\ufeff",
    "symbols": "€™→∑😀❤\ufe0f\u20e3",
}


@pytest.mark.parametrize("script", SEPARATORS)
def test_separators_of_every_script_are_no_part_of_words(script: str) -> None:
    marks = SEPARATORS[script]
    [plain, *others], _ = signed(
        ["ab cd", *(f"ab{mark}cd" for mark in marks), f"{marks}ab{marks}cd"], 1, 1, 1
    )
    assert len(plain) == 2
    assert all(other == plain for other in others)
    assert signed([marks], 1, 1, 1)[0] == [[]]


ALONE = "漢㐀𠀀𰀀豈々〇ひカｶㄅꀀ𗀀ไລកကꩠཀᦀᥐᨠꪀꦀᬅ"


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    for character in ALONE:
        [found, twice], _ = signed([f"{character}ab", f"{character}{character}"], 1, 1, 1)
        assert (len(found), len(twice)) == (2, 1), character
    with_spaces = ["हिन्दी", "한국어", "አማርኛ", "עִבְרִית", "Ａｂ０"]
    assert [len(found) for found in signed(with_spaces, 1, 1, 1)[0]] == [1] * len(with_spaces)


def test_the_classes_are_those_of_the_unicode_database() -> None:
    if unicodedata.unidata_version != unicode_classes.UNICODE:
        pytest.skip(f"this Python knows Unicode {unicodedata.unidata_version}")
    for number, belongs in ((SEPARATOR, is_separator), (WORD, is_word)):
        found = np.flatnonzero(character_classes()[:0x110000] == number).tolist()
        assert found == [point for first, last in ranges_of(belongs) for point in range(first, last + 1)]


@pytest.mark.parametrize(
    ("left", "right", "equal"),  # under none, nfc, nfkc, and each of them with case folding
    [
        ("caf\u00e9", "cafe\u0301", "-cc-cc"),
        ("\ufb01le Ａ", "file A", "--c--c"),
        ("ÉCOLE", "école", "---ccc"),
        ("Straße", "STRASSE", "---ccc"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος", "---ccc"),
        ("E\u0301T", "\u00e9t", "----cc"),
        ("\u0345\u0301α", "\u0301\u0345α", "-cc-cc"),
        ("one", "two", "------"),
    ],
)
def test_texts_are_compared_in_a_form_and_a_case(left: str, right: str, equal: str) -> None:
    choices = [(form, fold) for fold in (False, True) for form in ("none", "nfc", "nfkc")]
    for (form, fold), expected in zip(choices, equal, strict=True):
        keys = np.empty((2, 2), np.uint64)
        column = pyarrow.chunked_array([[left], [right]], pyarrow.string())
        content_keys(*compared(column, {"normalize": form, "casefold": fold}), keys)
        assert (keys[0].tolist() == keys[1].tolist()) == (expected == "c"), (form, fold)


def test_shingles_of_long_texts_with_many_repeats_are_a_sorted_set() -> None:
    draw = random.Random(5)
    vocabularies = [
        ["a"],
        ["a", "b"],
        [str(number) for number in range(40)],
        [str(number) for number in range(10**5)],
    ]
    texts = [" ".join(draw.choices(words, k=30_000)) for words in vocabularies]
    for text, found in zip(texts, signed(texts, 2, 1, 1)[0], strict=True):
        assert found == reference.shingles(text, 2)


def test_more_values_than_the_scratch_holds_are_sorted_in_place() -> None:
    draw = np.random.default_rng(5)
    for values in (draw.integers(0, 2**64, 5000, np.uint64), draw.integers(0, 50, 5000, np.uint64)):
        expected = np.unique(values)
        for room in (5000, 4999, 1):
            own = values.copy()
            count = _sort_unique(own, 5000, np.empty(room, np.uint64), np.empty(4 * room + 2, np.uint32))
            assert own[:count].tolist() == expected.tolist()


PATHOLOGICAL = {
    "one word a million times": ("word " * 1_000_000, 1),
    "a word of a million letters": ("x" * 1_000_000, 1),
    "a million characters that are words": ("漢" * 1_000_000, 1),
    "no word at all": (" .\n-" * 250_000, 0),
    "a wide character at every place of a block": (
        " ".join("x" * n + "漢" for n in range(200)),
        None,
    ),
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_any_text_is_signed(name: str) -> None:
    text, count = PATHOLOGICAL[name]
    [found], _ = signed([text], 5, 256, 32)
    assert found == reference.shingles(text, 5)
    assert count is None or len(found) == count


HUGE = """
import re, sys
import numpy as np
from ingot.pipelines.dedup.characters import character_classes
from ingot.pipelines.dedup.kernels import capacity, content_keys, permutations, sign

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

def work(words):
    draw = np.random.default_rng(1)
    data = np.full((words, 6), 32, np.uint8)
    for column in range(5):
        data[:, column] = draw.integers(97, 123, words, np.uint8)
    data = data.reshape(-1)
    offsets = np.array([0, len(data)])
    before = peak()
    content_keys(data, offsets, np.empty((1, 2), np.uint64))
    shingles, counts = np.empty(capacity(offsets), np.uint64), np.empty(1, np.int64)
    hashes = np.empty((1, 32), np.uint64)
    classes, drawn = character_classes(), permutations(256, 0)
    sign(data, offsets, np.ones(1, bool), classes, 5, *drawn, 32, hashes, shingles, counts)
    assert words * 0.99 - 4 <= counts[0] <= words
    return (peak() - before) / len(data)

work(10)
print(work(int(sys.argv[1])))
"""


def test_a_huge_document_takes_little_more_memory_than_its_shingles() -> None:
    words = 10_000_000  # 60 MB; a shingle a word is 8 bytes for each 6 of text, and a copy of the text is 6
    done = subprocess.run([sys.executable, "-c", HUGE, str(words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3  # bytes of memory a byte of text


def test_content_keys_are_the_hash_of_the_normalised_content() -> None:
    texts = random_texts(600, 80)
    data, offsets = buffers(texts)
    keys = np.empty((len(texts), 2), np.uint64)
    content_keys(data, offsets, keys)
    for text, key in zip(texts, keys.tolist(), strict=True):
        assert tuple(key) == reference.murmur128(reference.normalise(text)), repr(text)


def test_the_hash_is_the_published_one() -> None:
    # mmh3.hash64("foo"), as the documentation of the mmh3 package gives it
    assert reference.murmur128(b"foo") == (-2129773440516405919 % 2**64, 9128664383759220103)


def test_equal_normalised_contents_have_equal_shingles() -> None:
    text = "A Naïve\n\t 漢字 text — with \r\n several   WORDS, and\u00a0more"
    other = "\n" + text.replace(" ", " \n ").lower() + "  "
    assert reference.normalise(text) == reference.normalise(other)
    [left, right], _ = signed([text, other], 3, 1, 1)
    assert left == right


def test_unwanted_documents_are_left_out() -> None:
    texts = ["one two three", "four five six", "seven eight nine"]
    data, offsets = buffers(texts)
    shingles, counts = np.empty(capacity(offsets), np.uint64), np.empty(3, np.int64)
    wanted = np.array([True, False, True])
    classes, drawn, hashes = character_classes(), permutations(4, 1), np.zeros((3, 2), np.uint64)
    total = sign(data, offsets, wanted, classes, 2, *drawn, 2, hashes, shingles, counts)
    assert counts.tolist() == [2, 0, 2]
    assert shingles[:total].tolist() == reference.shingles(texts[0], 2) + reference.shingles(texts[2], 2)


def test_a_slice_of_a_column_is_read_as_such() -> None:
    column = pyarrow.chunked_array([["zero", "one"], [], ["two", "three", "four"]])
    data, offsets = utf8(column.slice(1, 3))
    assert [bytes(data[a:b]).decode() for a, b in pairwise(offsets)] == [
        "one",
        "two",
        "three",
    ]


def test_ids_survive_the_way_to_integers_and_back_and_keep_their_order() -> None:
    names = sorted(f"{random.Random(seed).getrandbits(128):032x}" for seed in range(50))
    high, low = ids(pyarrow.chunked_array([names])).T
    assert id_strings(high, low).to_pylist() == names
    assert np.lexsort((low, high)).tolist() == list(range(50))


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_the_share_of_equal_minima_estimates_the_similarity(similarity: float) -> None:
    draw = random.Random(int(similarity * 100))
    pairs, count = 150, 256
    planted = [planted_pair(draw, similarity, 150) for _ in range(pairs)]
    true = planted[0][2]
    _, minima = signed([text for pair in planted for text in pair[:2]], 5, count, bands=count)
    shares = (minima[0::2] == minima[1::2]).mean(axis=1)
    deviation = (true * (1 - true) / count) ** 0.5
    assert abs(shares.mean() - true) < 4 * deviation / pairs**0.5
    assert 0.75 < shares.std() / deviation < 1.25  # as the binomial has it: the permutations are independent


def binomial_band(trials: int, probability: float, outside: float = 0.001) -> tuple[int, int]:
    """The least and the most successes, with at most half of `outside` on either side of them."""
    mass = [
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(probability)
            + (trials - k) * math.log1p(-probability)
        )
        for k in range(trials + 1)
    ]
    sums = np.cumsum(mass)
    return int((sums <= outside / 2).sum()), int((sums < 1 - outside / 2).sum())


@pytest.mark.parametrize("banding", [choose_banding(0.8, 128), Banding(32, 8)])
@pytest.mark.parametrize("words", [150, 24])
@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
def test_pairs_become_candidates_as_often_as_the_formula_says(
    similarity: float, words: int, banding: Banding
) -> None:
    draw = random.Random(int(similarity * 1000))
    pairs = 500
    planted = [planted_pair(draw, similarity, words) for _ in range(pairs)]
    texts = [text for pair in planted for text in pair[:2]]
    _, hashes = signed(texts, 5, banding.bands * banding.rows, banding.bands)
    found = int((hashes[0::2] == hashes[1::2]).any(axis=1).sum())
    least, most = binomial_band(pairs, banding.candidate_probability(planted[0][2]))
    assert least <= found <= most


def test_banding_leans_to_recall() -> None:
    for permutations_ in (64, 128, 256):
        for threshold in (0.5, 0.7, 0.8, 0.9):
            banding = choose_banding(threshold, permutations_)
            assert banding.bands * banding.rows <= permutations_
            assert banding.candidate_probability(threshold) > 0.9
            assert banding.candidate_probability(threshold + 0.07) > 0.985
    assert choose_banding(0.8, 128).candidate_probability(0.85) > 0.99


def test_kernels_work_where_no_cache_can_be_written(tmp_path: Path) -> None:
    module = tmp_path / "kernel_of_test.py"
    module.write_text(
        "from ingot.pipelines.compiled import compiled\n\n@compiled\ndef twice(n):\n    return 2 * n\n"
    )
    # of numba's places for its cache only the user's folder is left, and that is none
    env = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    env["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserWideCacheLocator"
    env.pop("NUMBA_CACHE_DIR", None)
    code = "import kernel_of_test; print(kernel_of_test.twice(21))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "42", done.stderr
