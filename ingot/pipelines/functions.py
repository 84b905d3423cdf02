"""Conversations made from code: asked for a function by its signature and docstring, the assistant answers
with the body.

Pure functions of text, used by the units of fine-tuning. The prompt holds the `def` lines and the first
paragraph of the docstring as they stand in the source (decorators are left out), the answer the rest, both
without the indentation the function had in its file: prompt, newline and answer are the function again."""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["sft", "preference", "held-out"]

# The parser's memory grows with the file at some 60 times its size; a source of a megabyte is generated.
LARGEST_SOURCE = 1_000_000  # characters
SPLITS: tuple[tuple[Split, float], ...] = (("sft", 0.5), ("preference", 0.4), ("held-out", 0.1))

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_TRIPLE = ('"""', "'''")
_QUOTES = re.compile(r"[rRuU]?(\"\"\"|''')")


class NotPython(ValueError):
    """The text is no Python of this interpreter's version, or too large or too deep to be parsed."""


@dataclass(frozen=True)
class Function:
    """A function with a docstring and a body that does something."""

    name: str  # qualified by the classes and functions around it, with dots
    line: int  # of its `def`, from 1
    prompt: str
    body: str

    def identifier(self, document: str) -> str:
        """32 hexadecimal characters: the hash of the document's id, the qualified name and the line."""
        return hashlib.sha256(f"{document}\n{self.name}\n{self.line}".encode()).hexdigest()[:32]

    @property
    def body_digest(self) -> str:
        """The hash of the body without regard to white space: equal bodies are one function, and as the
        hash says nothing of the content, the first so many in its order are a fair sample."""
        return hashlib.sha256(" ".join(self.body.split()).encode()).hexdigest()[:32]


def position_of(document: str, draw: str) -> float:
    """A number in [0, 1) that depends on the document's id and the name of the draw alone."""
    digest = hashlib.sha256(f"{draw}\n{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(document: str) -> Split:
    """Which training a document's functions are for; nothing but the document's id decides."""
    position = position_of(document, "split")
    for name, share in SPLITS:
        position -= share
        if position < 0:
            return name
    return SPLITS[-1][0]


def functions_of(source: str) -> list[Function]:
    """The functions in the order of their lines. Raises NotPython."""
    if len(source) > LARGEST_SOURCE:
        raise NotPython(f"{len(source)} characters; at most {LARGEST_SOURCE} are parsed")
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like: other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotPython(str(error) or type(error).__name__) from error
    lines = source.split("\n")
    found = (_function(node, name, lines) for node, name in _definitions(tree))
    return sorted((function for function in found if function), key=lambda function: function.line)


def _definitions(tree: ast.Module) -> Iterator[tuple[_Definition, str]]:
    """Every function of the module with its qualified name, without recursion: code may nest deeply."""
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, prefix + child.name
                stack.append((child, f"{prefix}{child.name}."))
            elif isinstance(child, ast.ClassDef):
                stack.append((child, f"{prefix}{child.name}."))
            elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                stack.append((child, prefix))


def _function(node: _Definition, name: str, lines: list[str]) -> Function | None:
    """The function's two parts, or None where it has no docstring, does nothing, or shares its lines."""
    first, rest = node.body[0], node.body[1:]
    if not (ast.get_docstring(node) or "").strip() or all(map(_is_trivial, rest)):
        return None
    assert first.end_lineno is not None  # only nodes made by hand lack their places
    assert node.end_lineno is not None
    # Parts are cut between lines, so the signature, the docstring and the body must each have their own.
    if not node.lineno < first.lineno <= first.end_lineno < rest[0].lineno:
        return None
    indentation = lines[node.lineno - 1][: node.col_offset]
    signature = _unindented(lines[node.lineno - 1 : first.lineno - 1], indentation)
    docstring = _first_paragraph(_unindented(lines[first.lineno - 1 : first.end_lineno], indentation))
    body = _unindented(lines[first.end_lineno : node.end_lineno], indentation)
    for number in _inside_strings(rest) if any(quotes in line for quotes in _TRIPLE for line in body) else ():
        body[number - first.end_lineno] = lines[number]
    while not body[0].strip():
        body.pop(0)
    return Function(name, node.lineno, "\n".join(signature + docstring), "\n".join(body))


def _is_trivial(statement: ast.stmt) -> bool:
    """Whether it does nothing: `pass`, `...`, a string, a bare return, or raising NotImplementedError."""
    match statement:
        case ast.Pass() | ast.Expr(ast.Constant()) | ast.Return(None):
            return True
        case ast.Raise(ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError"))):
            return True
        case _:
            return False


def _inside_strings(statements: list[ast.stmt]) -> Iterator[int]:
    """The indices of the module's lines that begin within a string: their white space is text."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
                yield from range(node.lineno, node.end_lineno)


def _unindented(lines: list[str], indentation: str) -> list[str]:
    """The lines without the function's own indentation; what stands left of it stays."""
    return [line.removeprefix(indentation) if line.strip() else "" for line in lines]


def _first_paragraph(lines: list[str]) -> list[str]:
    """The docstring's source up to its first blank line, closed again."""
    opening = _QUOTES.match(lines[0].strip())
    if opening is None:
        return lines
    if lines[0].strip() == opening[0]:
        text_begins = next(number for number, line in enumerate(lines) if number and line)
    else:
        text_begins = 0
    end = next((number for number in range(text_begins + 1, len(lines)) if not lines[number]), None)
    if end is None:
        return lines
    paragraph = lines[:end]
    if end == 1 and not paragraph[-1].endswith(("\\", opening[1][0])):
        return [paragraph[0] + opening[1]]
    indentation = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [*paragraph, indentation + opening[1]]
