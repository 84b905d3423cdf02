"""Which characters leave a mark."""

from __future__ import annotations

import re

# White space, control and format characters, fillers and selectors: the Default_Ignorable_Code_Point property
# of Unicode and what is drawn as nothing. Written out, so that no version of Python decides what is empty.
_VISIBLE = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f"
    "\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb"
    "\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff]"
)


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen."""
    return _VISIBLE.search(text) is None
