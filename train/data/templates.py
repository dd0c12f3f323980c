"""A conversation as a tokenizer's own chat template writes it: somebody else's program, run in transformers' sandbox."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mconv.errors import FormatError
from mconv.train.data.chat import WORDS, Role, Turn

SECONDS = 60.0
"""What a template may take for a conversation: the sandbox bounds what it touches, not how long it runs."""


def rendered(conversation: Sequence[Turn], tokenizer: Any, where: str) -> list[Turn]:
    """The parts of the whole text by the tokenizer's own chat template, and who says each.

    A template does not say who says what, so it is asked for the text up to each answer and for the text with it: what
    the answer adds, the assistant says. Raises FormatError where a template writes earlier turns otherwise later.
    """
    with _within(SECONDS, where):
        whole = _render(tokenizer, conversation, where)
        parts: list[Turn] = []
        at = 0
        for number, (role, _) in enumerate(conversation):
            if role is Role.ASSISTANT:
                start, end = _answer(conversation[: number + 1], whole, tokenizer, where)
                parts += _asked(conversation[:number], whole[at:start], at, tokenizer, where)
                parts.append((role, whole[start:end]))
                at = end
        return [*parts, *_asked(conversation, whole[at:], at, tokenizer, where)]


def _answer(upto: Sequence[Turn], whole: str, tokenizer: Any, where: str) -> tuple[int, int]:
    """Where the last turn's text begins and ends in the whole; with its header only where that cannot be told."""
    answered = _render(tokenizer, upto, where)
    for header in (True, False):
        asked = _render(tokenizer, upto[:-1], where, header=header) if len(upto) > 1 else ""
        if answered.startswith(asked) and whole.startswith(answered):
            return len(asked), len(answered)
    raise FormatError(
        f"{where}: the tokenizer's chat template writes turn {len(upto) - 1} otherwise when more turns follow, so its "
        "answers cannot be told apart; give --template chatml, or one answer a record"
    )


def _asked(conversation: Sequence[Turn], text: str, at: int, tokenizer: Any, where: str) -> list[Turn]:
    """A text that is no answer: the system's, where the template can write that by itself, and the prompter's."""
    if not text:
        return []
    if at or not conversation or conversation[0][0] is not Role.SYSTEM:
        return [(Role.PROMPTER, text)]
    try:
        head = _render(tokenizer, conversation[:1], where)
    except FormatError:
        head = ""
    share = len(head) if text.startswith(head) else 0
    return [part for part in ((Role.SYSTEM, text[:share]), (Role.PROMPTER, text[share:])) if part[1]]


def _render(tokenizer: Any, conversation: Sequence[Turn], where: str, *, header: bool = False) -> str:
    """A conversation by the tokenizer's template, with the header of the next answer if asked."""
    messages = [{"role": WORDS[role], "content": text} for role, text in conversation]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header))
    except TimeoutError:
        raise
    except Exception as error:  # jinja's, or what the template raises itself
        raise FormatError(f"{where}: the tokenizer's chat template refuses it ({error})") from error


@contextlib.contextmanager
def _within(seconds: float, where: str) -> Iterator[None]:
    """End what takes longer, with FormatError; in a thread beside the main one nothing can."""
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
        raise FormatError(
            f"{where}: the tokenizer's chat template ran longer than {seconds:g} s; give --template chatml"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
