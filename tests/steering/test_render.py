"""HTML strings: everything is escaped, nothing is fetched, numbers mean what they say."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from kit.base.html import message
from kit.steering import render
from kit.steering.check import CheckResult, CheckRow
from kit.steering.generation import Generation
from kit.steering.results import Entry, Receipt, Row, TokenMeasure

NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b < c", "🙂 مرحبا"]


class Reader(HTMLParser):
    """Collects tags, attributes and text, and holds tags to being closed."""

    VOID = ("br", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def row(text: str = "a b", kl: float = 0.3, coefficients: tuple[float, ...] | None = (0.2,)) -> Row:
    measure = TokenMeasure(kl, 1.0, [(text, 0.5)], [(text, 0.25)])
    pieces = [text, " end"]
    return Row(coefficients, Receipt(), [1, 2], pieces, [measure, measure])


def everything(text: str) -> list[str]:
    """Every function of the module, with a text in every place that takes one."""
    generation = Generation([row(text), row(text, coefficients=None)], [text], Receipt())
    return [
        render.tokens(row(text)),
        render.column(text, text, row(text)),
        render.receipt(text),
        render.column(text, text, Row(None, Receipt()), waiting=text),
        render.badge([text]),
        message(text, error=True),
        generation._repr_html_(),
        render.frozen(text, text, [(text, text)], [(text, text, row(text))], text, [text], text),
        render.token_mask([text, "x"], [True, False], [False, True], 1),
    ]


@pytest.mark.parametrize("text", NASTY)
def test_everything_is_escaped(text: str) -> None:
    for html in everything(text):
        seen = Reader(html)
        shown = seen.text.replace("·", " ").replace("↵", "\n")
        assert text in shown
        assert not {"script", "img", "iframe", "link", "style"} & set(seen.tags)
        assert not [name for name, _ in seen.attributes if name.startswith("on")]


def test_nothing_is_fetched_and_nothing_runs() -> None:
    for html in everything("plain"):
        assert not {"src", "href"} & {name for name, _ in Reader(html).attributes}
        assert "url(" not in html and "javascript:" not in html


def test_tooltips_list_what_came_before_and_after() -> None:
    titles = [v for k, v in Reader(render.tokens(row("cat"))).attributes if k == "title"]
    assert "KL 0.30" in titles[0] and "before steering: 'cat' 50%" in titles[0]
    assert "after steering: 'cat' 25%" in titles[0]
    assert "title" not in render.tokens(row("cat"), tooltips=False)


def test_larger_kl_is_darker_and_has_a_wider_underline() -> None:
    styles = [render._shade(kl) for kl in (0.0, 0.2, 0.8, 2.0)]
    assert styles[0] == ""
    widths = [next(w for w in "123" if f"border-bottom:{w}px" in s) for s in styles[1:]]
    assert widths == ["1", "2", "3"]
    alphas = [float(s.split("rgba(213,94,0,")[1].split(")")[0]) for s in styles[1:]]
    assert alphas == sorted(alphas) and len(set(alphas)) == 3
    assert render._shade(float("nan")) == ""


def test_a_token_of_several_parts_is_one_character_with_its_largest_kl() -> None:
    measures = [TokenMeasure(kl, 1.0, [], []) for kl in (2.0, 0.0, 0.0)]
    html = render.tokens(Row((1.0,), Receipt(), [1, 2, 3], ["", "", "🙂"], measures))
    assert html.count("<span") == 1 and "border-bottom:3px" in html and "🙂" in html


def test_unmeasured_and_unsteered_text_is_plain() -> None:
    assert render.tokens(Row((1.0,), Receipt(), [1], ["a<b"], [])) == "a&lt;b"
    assert render.tokens(row("a<b", coefficients=None)) == "a&lt;b end"


@pytest.mark.parametrize(
    ("kl", "word"), [(0.0, "near"), (0.49, "near"), (0.5, "far"), (1.49, "far"), (1.5, "very far"), (40.0, "very far")]
)
def test_the_dose_meter_says_how_far(kl: float, word: str) -> None:
    assert render.distance(row(kl=kl)) == word
    shown = render.dose_meter(row(kl=kl))
    assert f"<b>{word}</b>: KL" in shown and "damaged" not in shown
    assert word in render.meter_legend()


def written(tokens: list[int], nll: float, kl: float) -> Row:
    return Row((0.2,), Receipt(), tokens, ["x"] * len(tokens), [TokenMeasure(kl, nll, [], [])] * len(tokens))


def test_damage_is_what_the_text_suffers_however_far_it_went() -> None:
    fluent = written(list(range(20)), 1.5, 10.7)
    assert (render.distance(fluent), render.damage(fluent)) == ("very far", "")
    looped = written([1, 2] * 10, 0.5, 0.1)
    assert (render.distance(looped), render.damage(looped)) == ("near", "loops")
    assert "damaged: loops" in render.dose_meter(looped) and "loops" in render.meter_legend()
    rubble = written(list(range(20)), render.ODD + 0.5, 2.0)
    assert render.damage(rubble) == "rambles" and "rambles" in render.meter_legend()
    assert render.damage(written([1, 2] * 3, 9.0, 9.0)) == "", "too short to tell"


def test_a_few_surprising_words_are_no_damage() -> None:
    surprised = written(list(range(20)), 1.0, 3.0)
    surprised.measures = [TokenMeasure(3.0, 12.0, [], [])] * 8 + surprised.measures[8:]
    assert surprised.perplexity > 100 and render.damage(surprised) == ""
    surprised.measures = []
    assert render.damage(surprised) == "", "not measured"


def test_the_unsteered_row_gets_no_verdict() -> None:
    assert render.distance(row(coefficients=None)) == render.damage(row(coefficients=None)) == ""
    assert "near" not in render.dose_meter(row(coefficients=None))


def test_a_ladder_shows_coefficients_and_the_receipt() -> None:
    generation = Generation([row(coefficients=None), row()], ["happy"], Receipt())
    text = Reader(generation._repr_html_()).text
    for part in ("unsteered", "+0.20", "0.30", "happy", "nothing steered"):
        assert part in text


def test_a_ladder_of_several_vectors_names_those_that_are_on() -> None:
    rows = [row(coefficients=c) for c in ((None, 0.3, None), (0.1, -0.2, 0.0), (0.0, 0.0, 0.0), (None,) * 3)]
    run = Generation([*rows, row(coefficients=None)], ["a", "b", "c"], Receipt())
    text = Reader(run._repr_html_()).text
    for part in ("b +0.30", "a +0.10, b -0.20", "a +0.00, b +0.00, c +0.00", "all off", "unsteered"):
        assert part in text and f"[{part}]" in str(run)
    assert "off, " not in text


def test_a_receipt_has_no_line_for_what_changed_nothing() -> None:
    still = Entry("still", [1], "add", [3], [2], [[0.0] * 5])
    moved = Entry("moved", [2], "add", [3], [2], [[0.5] * 5])
    assert "still" not in str(Receipt([still, moved], 3, 2)) and "moved" in str(Receipt([still, moved], 3, 2))
    assert str(Receipt([still], 3, 2)).startswith("nothing steered")


def test_frozen_html_is_reproducible() -> None:
    def make() -> str:
        return render.frozen("T", "p", [("seed", "0")], [("a", "b", row())], "r")

    assert make() == make()


def test_the_live_text_speaks_politely_and_keeps_its_room() -> None:
    html = render.column("t", "", row(), busy=True, min_lines=4)
    assert 'role="status"' in html and 'aria-busy="true"' in html
    assert "min-height:6.0em" in html and "white-space:pre-wrap" in html


def test_the_badge_names_what_is_hooked() -> None:
    assert "clean" in render.badge([])
    assert "blocks.3.hook_out" in render.badge(["blocks.3.hook_out"])


def test_a_token_mask_says_what_it_draws() -> None:
    html = render.token_mask(["<s>", "a\n", "x"], [False, True, False], [True, True, False], 2)
    seen = Reader(html)
    assert "1 read, 2 of 2 prompt tokens steered, generated tokens not steered" in seen.text
    titles = [v for k, v in seen.attributes if k == "title"]
    assert titles == ["position 0: steered", "position 1: read and steered", "generated: untouched"]
    with pytest.raises(ValueError, match="one for each token"):
        render.token_mask(["a"], [True, False], [True])


# --- names and texts that act ----------------------------------------------------------------------


def test_nothing_that_is_printed_acts_on_a_terminal() -> None:
    entry = Entry("\x1b]0;evil\x07\u202e", [1], "add", [1], [1], [[0.5]])
    receipt = Receipt([entry], 3, 1, ["my\x1b[2Jhook"])
    run = Generation([Row((0.5,), receipt, [1], ["a\x1b[31mred\r\nb\tc"])], ["v"], receipt)
    assert str(run) == "[+0.50] a\\x1b[31mred\\r\nb\tc"
    assert "\x1b" not in str(receipt) and "\u202e" not in str(receipt)
    assert "\\x1b]0;evil\\x07\\u202e · layer 1" in str(receipt) and "my\\x1b[2Jhook" in str(receipt)


def test_a_name_that_runs_the_other_way_turns_no_figure() -> None:
    receipt = Receipt([Entry("שמח", [1], "add", [1], [1], [[0.5]])], 3, 1)
    row = Row((0.5,), receipt, [1], ["a"])
    pages = [
        str(receipt),
        render.column("שמח", "שמח", row),
        render.ladder([row], ["שמח"], receipt),
        render.frozen("title", "prompt", [("model", "שמח")], [("שמח", "", row)], receipt, ["שמח"]),
        render.badge(["שמח"]),
    ]
    for page in pages:
        assert page.count("שמח") == page.count("\u2068שמח\u2069") > 0, page


def test_no_output_is_typeset_as_mathematics() -> None:
    text = "$5 for adults, $3"
    row = Row((0.5,), Receipt(), [1], [text])
    for html in (
        message(text),
        render.receipt(text),
        render.column(text, text, row),
        render.ladder([row], [text], Receipt()),
        render.frozen(text, text, [(text, text)], [(text, text, row)], text),
        render.token_mask([text], [True], [True]),
        CheckResult([CheckRow(text, True, text)])._repr_html_(),
    ):
        start = html[: html.index(">")]
        assert "mathjax_ignore" in start and "tex2jax_ignore" in start, start
