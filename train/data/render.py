"""One call of a tokenizer's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind


@dataclass(frozen=True, slots=True)
class Render:
    """A function from messages to their text, as apply_chat_template gives it for one conversation."""

    tokenizer: Any
    options: dict[str, Any]
    """Arguments `tools` and `documents` of apply_chat_template."""
    variables: dict[str, Any]
    """Other variables of the template."""

    def __call__(self, messages: Sequence[dict[str, Any]], *, header: bool = False, without: str = "") -> str:
        """Return the text, with the header of the next answer if asked, `without` one of the options.

        Raises BadRecord where the template refuses the messages.
        """
        options = {name: value for name, value in self.options.items() if name != without}
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=header, **options, **self.variables
            )
        except TimeoutError:
            raise
        except Exception as error:  # jinja's, or what the template raises itself
            raise BadRecord(Kind.TEMPLATE, f"the tokenizer's chat template refuses it ({error})") from None
        return str(text)
