"""At which layout a Megatron checkpoint is proven: as recorded where its ranks are cheap, and the report says which."""

import pytest
from judge import convert
from tiny import make_llama

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.verify import layouts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf = make_llama(root / "hf", **small)
    deep = make_llama(root / "deep", **{**small, "num_hidden_layers": 3})
    wide = convert(hf, root / "wide", tp=2, pp=2)
    found = {
        "hf": hf, "wide": wide, "one": convert(hf, root / "one"), "deep": deep,
        "ranks": convert(hf, root / "ranks", format="mp_rank", tp=2),
    }  # fmt: skip
    return {name: open_checkpoint(folder) for name, folder in found.items()}


def proven(made, a, b, **asked):
    """The choice, and the line that the report has of it."""
    ran = layouts.choose(made[a], made[b], **{"tp": None, "pp": None, **asked})
    return (ran.tp, ran.pp), layouts.recorded(made[a], made[b], ran), ran


@pytest.fixture
def machine(monkeypatch):
    """Set how many GPUs, cores and bytes there are."""

    def set_to(gpus=0, cores=2, free=1 << 40):
        monkeypatch.setattr(layouts, "_gpus", lambda: gpus)
        monkeypatch.setattr(layouts, "cores", lambda: cores)
        monkeypatch.setattr(layouts.environment, "available", lambda: free)

    return set_to


@pytest.mark.parametrize(
    "here, at, note",
    [
        ({"cores": 4}, (2, 2), None),
        ({"cores": 1}, (2, 2), "4 ranks take turns on 1 core here"),
        ({"cores": 0}, (1, 1), "4 ranks on 0 cores are slow"),
        ({"free": 1 << 20}, (1, 1), "more memory than is free"),
        ({"gpus": 4, "cores": 1}, (2, 2), None),
        ({"gpus": 1, "cores": 64}, (1, 1), "4 ranks need as many GPUs, and there are 1 here"),
    ],
)
def test_the_recorded_layout_is_proven_where_it_is_cheap(made, machine, here, at, note):
    machine(**here)
    sizes, said, ran = proven(made, "hf", "wide")
    assert sizes == at and (note is None) is (not ran.notes) and (note or "") in "".join(ran.notes)
    more = "proven there" if at == (2, 2) else "proven at tp 1 x pp 1: --tp 2 --pp 2 proves it there"
    assert said["line"] == f"recorded tp 2 x pp 2, {more}"
    assert said["reference"] is None and said["candidate"] == {"tp": 2, "pp": 2, "vpp": 1}


@pytest.mark.parametrize(
    "a, b, asked, at, line",
    [
        ("hf", "wide", {"tp": 2}, (2, 1), "recorded tp 2 x pp 2, proven at tp 2 x pp 1: --tp 2 --pp 2 proves it there"),
        ("wide", "hf", {}, (1, 1),
         "recorded tp 2 x pp 2 (reference), proven at tp 1 x pp 1: --tp 2 --pp 2 proves it there"),
        ("hf", "ranks", {}, (2, 1), "recorded tp 2 x pp 1, proven there"),
        ("ranks", "hf", {}, (2, 1), "recorded tp 2 x pp 1 (reference), proven there"),
        ("hf", "ranks", {"pp": 2}, (2, 2), "recorded tp 2 x pp 1, proven at tp 2 x pp 2: --tp 2 proves it there"),
        ("wide", "one", {}, (1, 1),
         "recorded tp 2 x pp 2 (reference) and tp 1 x pp 1 (candidate), proven at tp 1 x pp 1"),
        ("one", "one", {"tp": 2}, (2, 1), "recorded tp 1 x pp 1, proven at tp 2 x pp 1: --tp 1 --pp 1 proves it there"),
        ("deep", "wide", {}, (2, 1), "recorded tp 2 x pp 2, proven at tp 2 x pp 1"),
    ],
)  # fmt: skip
def test_what_is_proven_and_what_is_said_of_it(made, machine, a, b, asked, at, line):
    machine()
    sizes, said, _ = proven(made, a, b, **asked)
    assert (sizes, said["line"]) == (at, line)


def test_two_hugging_face_folders_have_no_layout(made):
    assert proven(made, "hf", "deep")[:2] == ((1, 1), None)


def test_torchrun_decides_how_many_ranks_there_are(made, machine, monkeypatch):
    machine(cores=1)
    for size, at in (("2", (1, 1)), ("4", (2, 2)), ("8", (2, 2))):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", "0")
        assert proven(made, "hf", "wide")[0] == at
