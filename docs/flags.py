"""Rewrite the tables of docs/flags.md from the code."""

import re
from pathlib import Path

from mconv.convert.dialects import flags, flags_megatron, flags_megatron_llm

TABLES = {"mcore": flags_megatron.MCORE, "legacy": flags_megatron.LEGACY, "megatron-llm": flags_megatron_llm.ROWS}


def filled(page: str) -> str:
    """Return the page with every table generated from the code."""

    def fill(found: re.Match[str]) -> str:
        return "\n".join([f"<!-- {found[1]} -->", *flags.table(TABLES[found[1]]), "<!-- end -->"])

    return re.sub(r"<!-- (\S+) -->\n(?:\|.*\n)*<!-- end -->", fill, page)


if __name__ == "__main__":
    page = Path(__file__).with_suffix(".md")
    page.write_text(filled(page.read_text()))
