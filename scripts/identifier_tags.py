"""Owns the labelling rule of `builtin:identifiers`: which words of a docstring's sentence name something in the code.

Four kinds, as BIO2 tags over words without their markup; a dotted name is several words of one span.
- PARAM: a name of the function's own signature (for a class: of its `__init__`'s). A name that is also an English word
  (`file`, `name`) counts where the text marks it, where "argument" or the like follows, or where it is a subject
  without a determiner ("if name is"); after a determiner ("the file") it is a plain noun.
- TYPE: a class of the library, or one of the built-in types whose name is not an English word.
- EXC: an exception, built in or of the library. Most end in Error, so that spelling alone nearly decides this kind.
- FUNC: a name that the text calls, as in `read()`, or gives in a :func: or :meth: role.
Where the rule cannot decide about one name, the whole sentence is left out, so that few names go unlabelled. Those that
do: attributes and modules, and parameters of other functions that are English words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from identifier_lexicon import Lexicon

NAME = r"[A-Za-z_]\w*"
DOTTED = rf"{NAME}(?:\.{NAME})*"
# Group names say how the text marks a name; a number behind one only keeps it apart from its other spelling.
TOKEN = re.compile(
    rf"""
      :(?:\w+:)?(?P<role>\w+):`[~!]?(?P<role_name>{DOTTED})(?:\(\))?`
    | ``(?P<call1>{DOTTED})\(\)`` | [`'"](?P<call2>{DOTTED})\(\)[`'"] | (?P<call3>{DOTTED})\(\)
    | ``(?P<code1>{DOTTED})`` | `(?P<code2>{DOTTED})[`']
    | (?<![\w*])\*(?P<emphasis>{NAME})\*(?![\w*]) | (?<![\w)\]])\*{{1,2}}(?P<starred>{NAME})
    | (?<![\w'])'\*{{0,2}}(?P<quoted1>{DOTTED})'(?!\w) | (?<![\w"])"\*{{0,2}}(?P<quoted2>{DOTTED})"(?!\w)
    | (?P<bare>{DOTTED})
    | (?P<sign>(?<=\w)'(?:s|t|re|ve|ll|d)\b | \d+(?:\.\d+)*\w* | -{{2,}} | [^\w\s])
    """,
    re.VERBOSE,
)
# Code, tables, addresses and markup without a single name in it: such a sentence is left out.
CODE = re.compile(r"[\[\]{}<>=\\|@$~^#+]|://|\w\([^)]|``[^`]*[^`\w.()][^`]*``|__|\.\.\.|-{4}")
ROLES = {"func": "FUNC", "meth": "FUNC", "class": "TYPE", "exc": "EXC"}
# `list`, `set`, `object` and the like are missing: prose uses them as nouns.
TYPE_WORDS = frozenset("int str tuple dict float bool bytearray frozenset memoryview".split())
TYPE_NOUNS = frozenset("object objects instance instances class subclass".split())
CONSTANTS = frozenset({"True", "False", "None", "NotImplemented", "Ellipsis"})
DETERMINERS = frozenset(
    "the a an this that these those its their his your our each every any some no another all both either neither"
    " which what whose given new current same other one first last next own".split()
)
SUBJECT_STARTS = frozenset(
    "if when unless whether where while and or that because since but then , ; : ( - -- .".split()
)
SUBJECT_VERBS = frozenset(
    "is are was isn aren has have must should may can will cannot defaults specifies gives determines contains"
    " denotes indicates controls does doesn".split()
)
PARAMETER_NOUNS = frozenset("argument arguments parameter parameters keyword option".split())
# Signs after which any word may have a capital.
OPENING_SIGNS = frozenset({".", ":", "(", "-", "--", '"', "'", "*"})


class Token(NamedTuple):
    """One name, number or sign; `markup` is the role, call, code, emphasis, starred, quoted, bare or sign around it."""

    text: str
    markup: str


class Undecided(Exception):
    """The rule cannot decide what a name is."""


@dataclass(frozen=True)
class Sentence:
    """A sentence's tokens with what decides about them: the signature of their definition and its top-level module."""

    tokens: list[Token]
    parameters: frozenset[str]
    module: str

    def before(self, index: int) -> str:
        return self.tokens[index - 1].text.lower() if index else "."

    def after(self, index: int) -> str:
        return self.tokens[index + 1].text.lower() if index + 1 < len(self.tokens) else "."


def read_tokens(text: str) -> list[Token]:
    return [read_token(match) for match in TOKEN.finditer(text)]


def read_token(match: re.Match[str]) -> Token:
    if match["role"]:
        return Token(match["role_name"], match["role"])
    group = match.lastgroup or "sign"
    return Token(match[group], group.rstrip("123"))


def kind_of(sentence: Sentence, index: int, lexicon: Lexicon) -> str:
    """Return PARAM, TYPE, EXC, FUNC or O for a token; raises Undecided."""
    text, markup = sentence.tokens[index]
    if text == "`":
        raise Undecided(text)
    if markup == "sign":
        return "O"
    if markup in ROLES:
        return ROLES[markup]
    if text.rpartition(".")[2] in lexicon.exceptions:
        return "EXC"
    if text.rpartition(".")[2] in lexicon.classes:
        return kind_of_class_name(sentence, index, lexicon)
    if markup == "call":
        return "FUNC"
    if text in sentence.parameters:
        return kind_of_parameter(sentence, index, lexicon)
    return "TYPE" if text in TYPE_WORDS else kind_of_rest(sentence, index, lexicon)


def kind_of_class_name(sentence: Sentence, index: int, lexicon: Lexicon) -> str:
    """Return TYPE, or O for an English word that opens a sentence; raises Undecided.

    A name with one capital, such as `Thread`, is decided to be the class only inside the package that defines it.
    """
    text, markup = sentence.tokens[index]
    if markup in ("call", "code") or "." in text or is_camel_case(text) or sentence.after(index) in TYPE_NOUNS:
        return "TYPE"
    opens, is_near = sentence.before(index) in OPENING_SIGNS, sentence.module in lexicon.classes[text]
    if opens and not is_near and text.lower() in lexicon.ordinary:
        return "O"
    if opens or not is_near or text.isupper():
        raise Undecided(text)
    return "TYPE"


def is_camel_case(text: str) -> bool:
    return re.search(r"[a-z]\w*[A-Z]|[A-Z]{2}\w*[a-z]", text) is not None


def kind_of_parameter(sentence: Sentence, index: int, lexicon: Lexicon) -> str:
    """Return PARAM, or O for the plain noun of the same spelling."""
    text, markup = sentence.tokens[index]
    before, after = sentence.before(index), sentence.after(index)
    if markup != "bare" or text not in lexicon.ordinary or after in PARAMETER_NOUNS:
        return "PARAM"
    if before in DETERMINERS and len(text) > 1:
        return "O"
    is_subject = before in SUBJECT_STARTS and after in SUBJECT_VERBS
    is_item = index == 0 and after in (":", "-", "--")
    if is_subject or is_item:
        return "PARAM"
    raise Undecided(text)


def kind_of_rest(sentence: Sentence, index: int, lexicon: Lexicon) -> str:
    """Return O for a word that is not a name of the four kinds. Raises Undecided for one that looks like a name."""
    text, markup = sentence.tokens[index]
    foreign = text in lexicon.parameters
    is_literal = markup == "quoted" and (not foreign or len(text) == 1)
    is_stressed = markup == "emphasis" and text.lower() in lexicon.ordinary
    if text in CONSTANTS or text.lower() in ("e.g", "i.e") or is_literal or is_stressed:
        return "O"
    looks_like_name = "_" in text or "." in text or re.search(r"[a-z][A-Z]", text)
    if markup != "bare" or looks_like_name or foreign and text not in lexicon.ordinary:
        raise Undecided(text)
    return "O"


def tag_sentence(
    text: str, parameters: frozenset[str], module: str, lexicon: Lexicon
) -> tuple[list[str], list[str]] | None:
    """Return the words without their markup and as many BIO2 tags; None where the rule cannot decide.

    A quoted word that is not labelled keeps its quotes, as words: there it is a literal and not a name.
    """
    if CODE.search(text) or not text.isascii():
        return None
    sentence = Sentence(read_tokens(text), parameters, module)
    words: list[str] = []
    tags: list[str] = []
    for index, token in enumerate(sentence.tokens):
        try:
            kind = kind_of(sentence, index, lexicon)
        except Undecided:
            return None
        parts = split_token(token, kind)
        words += parts
        tags += ["O"] * len(parts) if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return words, tags


def split_token(token: Token, kind: str) -> list[str]:
    """Return the words of a token: a dotted name's parts and dots, a literal with its quotes."""
    if token.markup == "sign":
        return [token.text]
    parts = re.findall(r"\w+|\.", token.text)
    return ["'", *parts, "'"] if token.markup == "quoted" and kind == "O" else parts
