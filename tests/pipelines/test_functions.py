"""Functions out of sources: which are taken, and that the parts make the function again."""

import ast
import textwrap
import warnings

import pytest

from ingot.pipelines.functions import LARGEST_SOURCE, NotPython, functions_of, split_of


def source(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def test_prompt_is_signature_and_docstring_and_answer_is_the_body() -> None:
    [function] = functions_of(
        source('''
        def area(width: float, height: float = 1.0) -> float:
            """The area of a rectangle."""
            # both in metres
            product = width * height
            return product
        ''')
    )
    assert function.name == "area"
    assert function.line == 1
    assert function.prompt == (
        'def area(width: float, height: float = 1.0) -> float:\n    """The area of a rectangle."""'
    )
    assert function.body == "    # both in metres\n    product = width * height\n    return product"


def test_only_the_first_paragraph_of_the_docstring_is_asked_with() -> None:
    functions = functions_of(
        source('''
        def one(a):
            """Adds one.

            Args:
                a: a number
            """

            return a + 1

        def two(a):
            r"""
            Adds two
            and nothing else.

            More.
            """
            return a + 2

        def three(a):
            """Adds what is "three"

            More."""
            return a + 3

        def four(a):
            "Adds four."
            return a + 4
        ''')
    )
    assert [function.prompt.partition("\n")[2] for function in functions] == [
        '    """Adds one."""',
        '    r"""\n    Adds two\n    and nothing else.\n    """',
        '    """Adds what is "three"\n    """',
        '    "Adds four."',
    ]
    assert [function.body for function in functions] == [
        f"    return a + {number}" for number in (1, 2, 3, 4)
    ]


def test_methods_nested_and_asynchronous_functions_are_found_without_their_decorators() -> None:
    functions = functions_of(
        source('''
        class Outer:
            class Inner:
                @staticmethod
                @cached(
                    size=3,
                )
                async def fetch(
                    url: str,  # where from
                ) -> bytes:
                    """Reads a page."""
                    async with get(url) as page:
                        return await page.read()

        if True:
            try:
                def outer():
                    """Counts."""
                    def inner():
                        """One more."""
                        return 1
                    return inner()
            except ValueError:
                pass
        ''')
    )
    assert [function.name for function in functions] == ["Outer.Inner.fetch", "outer", "outer.inner"]
    fetch, outer, inner = functions
    assert fetch.prompt.startswith("async def fetch(\n    url: str,  # where from\n) -> bytes:\n")
    assert fetch.body == "    async with get(url) as page:\n        return await page.read()"
    assert inner.body in outer.body.replace("        ", "    ")
    for function in functions:
        [definition] = ast.parse(f"{function.prompt}\n{function.body}").body
        assert ast.get_docstring(definition)


def test_line_ends_byte_order_marks_and_other_alphabets() -> None:
    text = 'def grüße(名: str) -> str:\n    """Grüßt 名前 😀."""\n    return "你好, " + 名'
    [expected] = functions_of(text)
    assert expected.name == "grüße"
    assert expected.body == '    return "你好, " + 名'
    for variant in (text.replace("\n", "\r\n"), text.replace("\n", "\r"), "\ufeff" + text, text + "\n"):
        assert functions_of(variant) == [expected]


def test_strings_over_several_lines_keep_their_text() -> None:
    text = 'class A:\n  def f(self):\n    """Text."""\n    a = """\nleft\n    right"""\n    return a\n'
    [function] = functions_of(text)
    assert function.body == '  a = """\nleft\n    right"""\n  return a'


@pytest.mark.parametrize(
    "body",
    [
        "",
        "pass",
        "...",
        "raise NotImplementedError",
        "raise NotImplementedError('later')",
        "return",
        "'more text'\n    pass",
    ],
)
def test_functions_that_do_nothing_are_left_out(body: str) -> None:
    assert functions_of(f'def f():\n    """Text."""\n    {body}\n') == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    return 1\n",
        'def f():\n    ""\n    return 1\n',
        'def f(): "Text."; return 1\n',
        'def f():\n    "Text."; return 1\n',
        'def f(): """Text."""\n',
        'def f():\n    f"""Text."""\n    return 1\n',
    ],
)
def test_functions_without_a_docstring_on_lines_of_its_own_are_left_out(text: str) -> None:
    assert functions_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n",
        "print 'Python 2'\n",
        "a\0b",
        "-" * 100_000 + "1",
        "a" + ".b" * 100_000,
        "(" * 1000 + ")" * 1000,
        "x = 1\n" * (LARGEST_SOURCE // 6 + 1),
    ],
    ids=["syntax", "python2", "nul", "deep-memory", "deep-recursion", "parentheses", "large"],
)
def test_what_cannot_be_parsed_says_why(text: str) -> None:
    with pytest.raises(NotPython, match=r"\w"):
        functions_of(text)


def test_warnings_about_other_peoples_code_are_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert functions_of('def f(x):\n    """Text."""\n    return x is 1 or "\\d"\n')


def test_identity_follows_document_name_and_line_and_bodies_are_compared_without_white_space() -> None:
    text = 'def f(a):\n    """One."""\n    return a\n\n\ndef f(a):\n    """Two."""\n    return  a  \n'
    first, second = functions_of(text)
    assert first.identifier("0" * 32) != second.identifier("0" * 32)
    assert first.identifier("0" * 32) != first.identifier("1" * 32)
    assert first.identifier("0" * 32) == functions_of(text)[0].identifier("0" * 32)
    assert first.body != second.body
    assert first.body_digest == second.body_digest


def test_documents_are_split_in_the_shares_promised() -> None:
    splits = [split_of(f"{number:032x}") for number in range(4000)]
    shares = {name: splits.count(name) / len(splits) for name in set(splits)}
    assert shares == pytest.approx({"sft": 0.5, "preference": 0.4, "held-out": 0.1}, abs=0.03)
