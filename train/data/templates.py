"""Render a conversation by the tokenizer's own chat template, a foreign program, run in transformers' sandbox."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.chat import Part, Role, Talk, Turn
from mconv.train.data.render import Render
from mconv.train.data.template_coverage import check_variables, check_written

SECONDS = 60.0
"""Time limit of a template for one conversation: the sandbox bounds what it touches, not how long it runs."""
HEAD = 8
"""Letters by which an answer is found that is written without its beginning."""


def rendered(talk: Talk, tokenizer: Any) -> list[Part]:
    """Return the parts of the whole text by the tokenizer's own chat template, and who says each.

    A template does not say who says what, so it is asked for the text up to each answer and for the text with it: what
    the answer adds, the assistant says. Raises BadRecord where a template writes earlier turns otherwise later, and
    where it leaves out something that is in the record.
    """
    with _within(SECONDS):
        check_variables(talk, tokenizer)
        render = Render(tokenizer, talk.options, talk.variables)
        messages = [turn.message for turn in talk.turns]
        whole = render(messages)
        parts: list[Part] = []
        at = 0
        for number, turn in enumerate(talk.turns):
            if turn.role is Role.ASSISTANT:
                start, end = _answer(messages[: number + 1], whole, render, last=number + 1 == len(messages))
                parts += _asked(talk.turns[:number], whole[at:start], at, render)
                parts.append((turn.counted, whole[start:end]))
                at = end
        parts += _asked(talk.turns, whole[at:], at, render)
        check_written(talk, whole, render)
        return parts


def _answer(upto: Sequence[dict[str, Any]], whole: str, render: Render, *, last: bool) -> tuple[int, int]:
    """Return where the last turn's text begins and ends in the whole; with its header only where that is not told."""
    answered = whole if last else render(upto)
    for header in (True, False):
        asked = render(upto[:-1], header=header) if len(upto) > 1 else ""
        if not answered.startswith(asked) or not whole.startswith(asked):
            continue
        if whole.startswith(answered):
            return len(asked), len(answered)
        if kept := _shortened(upto[-1], answered[len(asked) :], whole[len(asked) :]):
            return len(asked), len(asked) + kept
    raise BadRecord(
        Kind.TEMPLATE,
        f"the tokenizer's chat template writes turn {len(upto) - 1} otherwise when more turns follow, so its "
        "answers cannot be told apart; give --template chatml, or one answer a record",
    )


def _shortened(message: dict[str, Any], alone: str, rest: str) -> int:
    """Return how much of `rest` is an answer that is written without its beginning once more turns follow; 0 if none.

    "<think></think>so<end>" as the last turn, "so<end>" before others -> 6. What is left out is none of its texts.
    """
    texts = [str(message.get("content") or "").strip()]
    texts += [str((call.get("function") or call).get("name")) for call in message.get("tool_calls") or []]
    at = alone.find(rest[:HEAD])
    while at >= 0:
        if rest.startswith(kept := alone[at:]) and all(text in kept for text in texts):
            return len(kept)
        at = alone.find(rest[:HEAD], at + 1)
    return 0


def _asked(turns: Sequence[Turn], text: str, at: int, render: Render) -> list[Part]:
    """Return the parts of a text that is no answer: the system's, where that can be told, and the prompter's."""
    if not text:
        return []
    if at or not turns or turns[0].role is not Role.SYSTEM:
        return [(Role.PROMPTER, text)]
    try:
        head = render([turns[0].message])
    except BadRecord:
        head = ""
    share = len(head) if text.startswith(head) else 0
    return [part for part in ((Role.SYSTEM, text[:share]), (Role.PROMPTER, text[share:])) if part[1]]


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise BadRecord if the body takes longer; only in the main thread, which alone can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeoutError:
        raise BadRecord(
            Kind.TEMPLATE, f"the tokenizer's chat template ran longer than {seconds:g} s; give --template chatml"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
