"""What `mconv lora export` calls the base: its Hugging Face name or folder, by lineage, or it asks."""

import json
import os

import pytest

from mconv.convert.checkpoint import base_name
from mconv.convert.folders.staging import PULLED
from mconv.errors import MconvError

HUB = "cache/models--acme--tiny/snapshots/0123"
STEPS = {"import": {"step": "hf2meg", "detail": {"from": "x"}}, "reshard": {"step": "reshard", "detail": {}},
         "train": {"step": "train", "detail": {"from": "meg/release"}}}  # fmt: skip


def hf(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")


def megatron(root, folder, *steps, source, ancestors):
    """A converted checkpoint, as far as its manifest goes."""
    folder.mkdir(parents=True)
    made = {
        "history": [STEPS[step] for step in steps], "source": {"name": source, "format": "hf"},
        "ancestors": [os.path.relpath(root / path, folder) for path in ancestors],
    }  # fmt: skip
    (folder / "mconv.json").write_text(json.dumps(made))


# base of the run, what lies there, and what the adapter is to call it ("" where it asks)
CASES = {
    "a folder": ("model", lambda r: hf(r / "model"), "{}/model"),
    "the Hub's cache": (HUB, lambda r: hf(r / HUB), "acme/tiny"),
    "converted from the Hub": (
        "meg/release", lambda r: megatron(r, r / "meg/release", "import", source="acme/tiny", ancestors=[HUB]),
        "acme/tiny"),
    "converted from the Hub, known by the cache's folder alone": (
        "meg/release", lambda r: megatron(r, r / "meg/release", "import", source="0123", ancestors=[HUB]), "acme/tiny"),
    "converted and resharded from a folder": (
        "meg/release", lambda r: (hf(r / "model"), megatron(
            r, r / "meg/release", "import", "reshard", source="model", ancestors=["model", "meg0/release"])),
        "{}/model"),
    "converted from a folder that is gone": (
        "meg/release", lambda r: megatron(r, r / "meg/release", "import", source="model", ancestors=["model"]),
        "it was made from .*/model, which is not a Hugging Face folder any more"),
    "a checkpoint of another program": ("meg/release", lambda r: (r / "meg/release").mkdir(parents=True),
                                        "does not name the Hugging Face model"),
    "trained after the conversion": (
        "meg/iter_5", lambda r: megatron(r, r / "meg/iter_5", "import", "train", source="acme/tiny", ancestors=[HUB]),
        "it was trained, so it is not a published model; `mconv meg2hf`"),
    "gone itself, its run knows": ("meg/release", lambda r: None, "acme/tiny"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_base_by_its_hugging_face_name(tmp_path, case):
    base, make, expected = CASES[case]
    make(tmp_path)
    folder = tmp_path / "run" / "iter_0000002"
    told = {"source": "acme/tiny", "ancestors": [HUB, "meg/release"]} if "its run knows" in case else {
        "source": "", "ancestors": []}  # fmt: skip
    megatron(tmp_path, folder, "import", "train", "train", **told)
    beneath = {"name": base, "path": os.path.relpath(tmp_path / base, tmp_path / "run")}
    if " " in expected:
        with pytest.raises(MconvError, match=f"was trained on {base}.*{expected}.*--base-model ORG/NAME"):
            base_name.of_run(folder, beneath)
    else:
        assert base_name.of_run(folder, beneath) == expected.format(tmp_path)


def test_a_folder_that_was_pulled_is_called_by_its_repository(tmp_path):
    hf(tmp_path / "model")
    (tmp_path / "model" / PULLED).parent.mkdir(parents=True)
    (tmp_path / "model" / PULLED).write_text('{"repo": "acme/tiny"}')
    (folder := tmp_path / "run" / "iter_0000002").mkdir(parents=True)
    beneath = {"name": "model", "path": "../model"}
    assert base_name.of_run(folder, beneath) == "acme/tiny"
    (tmp_path / "model" / PULLED).write_text('{"repo": "../../etc"}')
    assert base_name.of_run(folder, beneath) == str(tmp_path / "model"), "no name of a repository"
