"""The tokenizer stage, and the encoder of what it makes.

`scheme` says how text is cut and matched, `stage` draws the sample and learns the tokens, `encoder` takes
text to ids: `pieces` cuts it and `subwords` finds the tokens of a piece, both by machine code."""

from ingot.pipelines.tokenizer.encoder import TextEncoder, load_tokenizer, refuse_other_tokenizer
from ingot.pipelines.tokenizer.scheme import SPECIAL
from ingot.pipelines.tokenizer.stage import VERSION, run

__all__ = ["SPECIAL", "VERSION", "TextEncoder", "load_tokenizer", "refuse_other_tokenizer", "run"]
