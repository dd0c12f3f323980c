"""A Hub on this machine, a login, a cache of its own: no test here can reach the network."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mconv.hub.loopback import LoopbackHub

TOKEN = "hf_" + "loopbackTest" * 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """huggingface_hub passes `data=` to its HTTP library, which deprecates that."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client looks at a folder of the test's, logs in as the test's user, and is closed afterwards."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session, disable_progress_bars, enable_progress_bars

    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    disable_progress_bars()
    yield
    enable_progress_bars()
    close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN, orgs=("acme",)) as hub:
        yield hub


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small model folder of some shards."""

    def make(name: str = "model", *, shards: int = 1, seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = [{f"layer.{i}.weight": torch.randn(4, 8, generator=generator)} for i in range(shards)]
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        for file, held in zip(names if shards > 1 else ["model.safetensors"], tensors, strict=True):
            save_file(held, folder / file, metadata={"format": "pt"})
        if shards > 1:
            index = {"metadata": {}, "weight_map": {t: f for f, h in zip(names, tensors, strict=True) for t in h}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
        (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "text": "ünïcode"}))
        return folder

    return make
