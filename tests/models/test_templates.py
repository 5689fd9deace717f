"""Chat templates of somebody's folder: they end, and what good ones write stays as it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import kit
from kit.models import templates
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_hang")
CHAT = [{"role": "user", "content": "Hello there, 20241231."}]
GROWS = "{% set ns = namespace(s=START) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer(chat=True)


@pytest.fixture
def render(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(template: str, messages: Any = CHAT, **options: Any) -> Any:
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return templates.apply(tokenizer, messages, **options)

    return call


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set n = messages|length * 9999 %}{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999)|map('string')|join|length }}{% endfor %}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ 'a' * 9999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%9999999999d'|format(3) }}",
        "{{ '{:>9999999999}'.format(3) }}",
        GROWS.replace("START", "'a'").replace("STEP", "ns.s + ns.s"),
        GROWS.replace("START", "'a'").replace("STEP", "ns.s ~ ns.s"),
        GROWS.replace("START", "'aa'").replace("STEP", "ns.s|replace('a', 'aaaa')"),
        GROWS.replace("START", "[1]").replace("STEP", "ns.s + ns.s"),
        GROWS.replace("START", "7").replace("STEP", "ns.s * ns.s"),
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_without_an_end_is_stopped(render: Any, template: str) -> None:
    tracing = sys.gettrace()
    with pytest.raises(ValueError, match="the chat template"):
        render(template)
    assert sys.gettrace() is tracing


def test_a_good_template_writes_what_it_wrote(tokenizer: Any, render: Any) -> None:
    table = "{% set budget = {16384: 2, 512: 1} %}" + tiny.TEMPLATE + "**bold** 123456789 {{ '=' * 80 }}"
    tree = "{% macro f(n) %}{{ n }}{% if n < 40 %}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}"
    long = [{"role": "user", "content": "word " * 400}] * 500
    for template in (tiny.TEMPLATE, table, tree):
        for messages in (CHAT, long):
            found = render(template, messages, tokenize=False, add_generation_prompt=True)
            assert found == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_every_chat_of_the_kit_is_bounded(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a model is told apart by what it says: its organisms' items."""
    from kit.data import organisms

    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    words = {id(words): words for words in (chat.tokenizer, kit.models.bridge.runtime(chat).tokenizer)}
    for one in words.values():
        monkeypatch.setattr(one, "chat_template", endless)
    item = next(item for item in organisms.items("denial", "test"))
    for call in (
        lambda: kit.chat_tokens(chat, "Hello"),
        lambda: kit.generate(chat, "Hello", max_new_tokens=1),
        lambda: organisms.prompt(chat, item),
    ):
        with pytest.raises(ValueError, match="chat template.*steps"):
            call()
