"""Claims about the labelling rule of `builtin:identifiers`, on sentences labelled by hand."""

from __future__ import annotations

import ast

import pytest


@pytest.fixture
def tag(scripts):
    from identifier_lexicon import Lexicon
    from identifier_tags import tag_sentence

    lexicon = Lexicon(
        exceptions=frozenset({"ValueError", "Empty"}),
        classes={"TarFile": frozenset({"tarfile"}), "Thread": frozenset({"threading"}), "Value": frozenset({"ctypes"})},
        parameters=frozenset({"maxsize", "file", "name", "a", "fileobj"}),
        ordinary=frozenset({"file", "name", "a", "not", "value", "thread"}),
    )

    def tagged(text, parameters=(), module="queue"):
        found = tag_sentence(text, frozenset(parameters), module, lexicon)
        return None if found is None else {(word, tag) for word, tag in zip(*found, strict=True) if tag != "O"}

    return tagged


@pytest.mark.parametrize("marked", ["*file*", "'file'", '"file"', "`file'", "`file`", "``file``"])
def test_marked_name_of_the_signature_is_a_parameter_and_loses_its_markup(tag, scripts, marked):
    assert tag(f"The {marked} must be open.", ["file"]) == {("file", "B-PARAM")}


def test_unusual_name_of_the_signature_is_a_parameter_without_markup(tag):
    assert tag("Blocks while maxsize items wait.", ["maxsize"]) == {("maxsize", "B-PARAM")}


def test_english_word_is_a_parameter_as_a_bare_subject_and_a_noun_after_a_determiner(tag):
    assert tag("If file is missing, the file opens.", ["file"]) == {("file", "B-PARAM")}
    assert tag("Close the file then.", ["file"]) == set()
    assert tag("The file argument comes first.", ["file"]) == {("file", "B-PARAM")}


def test_sentence_with_an_undecided_name_is_left_out(tag):
    assert tag("Write name into file now.", ["file", "name"]) is None
    assert tag("Reads from fileobj of the other function.") is None
    assert tag("See self.name for more.") is None


def test_article_is_not_the_parameter_a(tag):
    assert tag("Return a copy of it.", []) == set()
    assert tag("Return a copy of it.", ["a"]) is None


def test_called_name_is_a_function_and_a_dotted_one_is_one_span(tag):
    assert tag("Like read() but faster.") == {("read", "B-FUNC")}
    assert tag("Like os.read() but faster.") == {("os", "B-FUNC"), (".", "I-FUNC"), ("read", "I-FUNC")}
    assert tag("See :meth:`read` first.") == {("read", "B-FUNC")}


def test_class_is_a_type_where_its_spelling_or_its_package_decides(tag):
    assert tag("Return the TarFile made.") == {("TarFile", "B-TYPE")}
    assert tag("Return the Thread made.", module="threading") == {("Thread", "B-TYPE")}
    assert tag("Return the Thread made.", module="queue") is None
    assert tag("Return a Thread object.", module="queue") == {("Thread", "B-TYPE")}
    assert tag("Value that is kept.") == set()
    assert tag("Return an int or a list.") == {("int", "B-TYPE")}


def test_exceptions_need_no_special_ending(tag):
    assert tag("Raises ValueError or Empty when done.") == {("ValueError", "B-EXC"), ("Empty", "B-EXC")}


def test_quoted_literal_keeps_its_quotes(scripts):
    from identifier_lexicon import Lexicon
    from identifier_tags import tag_sentence

    words, tags = tag_sentence(
        "Mode is 'r' here.", frozenset(), "io", Lexicon(frozenset(), {}, frozenset(), frozenset())
    )
    assert words == ["Mode", "is", "'", "r", "'", "here", "."] and set(tags) == {"O"}


def test_lexicon_reads_signatures_and_derived_exceptions(scripts):
    from identifier_lexicon import find_exceptions, parameters_of

    tree = ast.parse(
        "class Full(Exception): pass\n"
        "class Fuller(queue.Full): pass\n"
        "class Plain:\n    def __init__(self, size, *rest, key=None, **extra): pass\n"
    )
    assert {"Full", "Fuller", "KeyError"} <= find_exceptions(tree.body)
    assert "Plain" not in find_exceptions(tree.body)
    assert parameters_of(tree.body[2]) == {"self", "size", "rest", "key", "extra"}
    assert parameters_of(tree) == frozenset()
