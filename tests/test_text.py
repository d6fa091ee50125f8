"""Text of others: hidden characters become visible, and ASCII stands in for what an encoding lacks."""

import io

import pytest

from erltool.text import PLAIN_ERRORS, plain, shown, visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain $x$ <b> R\u00b2 \u4e2d\u6587", "plain $x$ <b> R\u00b2 \u4e2d\u6587"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred\x1b[0m", "U+001B[31mredU+001B[0m"),
        ("\x1b]8;;http://x\x07", "U+001B]8;;http://xU+0007"),
        ("\u202eabc\u2066d\u200b", "U+202EabcU+2066dU+200B"),
        ("\x00\x7f\x9b\u2028\ufeff", "U+0000U+007FU+009BU+2028U+FEFF"),
        ("\udcff\ufffd", "U+DCFFU+FFFD"),
        ("", ""),
    ],
)
def test_what_is_hidden_is_visible_and_the_rest_is_left(text, seen):
    assert visible(text) == seen and visible(seen) == seen
    assert visible(text, keep="\n") == seen.replace("\\n", "\n")


def test_shown_is_cut_in_its_middle():
    assert shown("a" * 100 + "\r" + "b" * 100, 21) == "a" * 10 + "\u2026" + "b" * 10
    assert shown("\x1b", 60) == "U+001B"


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("R\u00b2 of the law", "R2 of the law"),
        ("\u22121.5 \u2013 2 \u2014 3", "-1.5 - 2 - 3"),
        ("\u201ca\u201d\u2026 \u2019", '"a"... \''),
        ("\u03c0, \u03b2, \u0394H", "pi, beta, DeltaH"),
        ("\u2264 \u00b1 \u00bd \u2192 \u00b5s", "<= U+00B1 1/2 -> us"),
        ("na\u00efve \ufb01t", "naive fit"),
        ("\u4e2d\udcff\U0001f600", "U+4E2DU+DCFFU+1F600"),
    ],
)
def test_ascii_reads_like_the_text(text, ascii_text):
    assert plain(text) == ascii_text
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii", errors=PLAIN_ERRORS)
    stream.write(text)
    stream.flush()
    assert raw.getvalue().decode("ascii") == ascii_text


def test_what_a_code_page_has_is_left_to_it():
    assert "R\u00b2 \u2212\u03b1".encode("cp1252", PLAIN_ERRORS).decode("cp1252") == "R\u00b2 -alpha"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", PLAIN_ERRORS)
