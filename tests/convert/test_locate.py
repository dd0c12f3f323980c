"""Where the tokenizer of a checkpoint is found."""

import pytest

from mconv.convert.folders.locate import tokenizer_folder
from mconv.errors import FormatError

TRACKER = "latest_checkpointed_iteration.txt"
ITERATION = ("common.pt", "metadata.json", ".metadata")
PLACES = {
    "a model's folder": (["m/config.json", "m/tokenizer.json"], "m"),
    "a root that mconv made": (["m/release/hf/tokenizer.model"], "m/release/hf"),
    "one iteration": (["m/release/hf/tokenizer.json"], "m/release/hf", "m/release"),
    "a root of Megatron-Bridge": (["m/release/tokenizer/vocab.json"], "m/release/tokenizer"),
    "a root of Megatron-LLM": (["m/tokenizer.model"], "m"),
    "one iteration of Megatron-LLM": (["m/tokenizer.model"], "m", "m/release"),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_tokenizer_of_a_checkpoint_is_found(name, tmp_path):
    files, where, *given = PLACES[name]
    root = [] if "config" in files[0] else [f"m/{TRACKER}", *(f"m/release/{file}" for file in ITERATION)]
    for file in [*root, *files]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("release")
    assert tokenizer_folder(tmp_path / (given or ["m"])[0]) == tmp_path / where


def test_a_folder_without_a_tokenizer_is_refused_by_what_was_looked_for(tmp_path):
    for file in (TRACKER, *(f"release/{file}" for file in ITERATION), "release/hf/config.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("release")
    looked = f"{tmp_path} or {tmp_path / 'release'} or {tmp_path / 'release' / 'hf'}"
    with pytest.raises(FormatError, match=f"no tokenizer files in {looked}: neither tokenizer.json"):
        tokenizer_folder(tmp_path)
    with pytest.raises(FormatError, match="nowhere is not a folder"):
        tokenizer_folder(tmp_path / "nowhere")
