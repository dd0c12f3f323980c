"""Documents that share a sample: apart at every layout, as transformers has it for each of them alone."""

import shutil
from itertools import pairwise
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch

from mconv.errors import ConfigError

EOD = 2
RESET = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
LENGTH = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over short documents, several to a sample, and no record of how they were made."""
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("boundaries")
    # sharp attention: the starting weights of a small model hardly look back, and a leak would not be seen
    jobs.hf_model(jobs.variant(sliding_window=None)).save_pretrained(folder / "hf")
    builder = IndexedDatasetBuilder(str(folder / "d.bin"), dtype=np.uint16)
    random = np.random.RandomState(3)
    for _ in range(80):
        ids = [*random.randint(3, 90, random.randint(1, 24)), EOD]
        builder.add_document(ids, [len(ids)])
    builder.finalize(str(folder / "d.idx"))
    return {
        "load": str(folder / "hf"), "data": [str(folder / "d")], "train_iters": 1, "lr": 1e-3, "global_batch_size": 4,
        "seq_length": LENGTH, "make_vocab_size_divisible_by": 8, "data_cache": str(folder / "cache"), "num_workers": 0,
        "eod_token": EOD,
    }  # fmt: skip


@pytest.fixture(scope="module")
def samples(run):
    """The samples of the first step, from megatron-core's dataset as it is."""
    from mconv.train.data import dataset
    from mconv.train.data.sources import Blend
    from mconv.train.model import engine

    engine.init(engine.Parallel())
    data, *_ = dataset.datasets(
        Blend([Path(run["data"][0])], None), split="100,0,0", seq_length=LENGTH, seed=1234, samples=(4, 0, 0),
        cache=Path(run["data_cache"]),
    )  # fmt: skip
    found = [data[i] for i in range(4)]
    engine.shutdown()
    return found


@pytest.fixture(scope="module")
def alone(run, samples):
    """Mean loss of the first step where transformers sees each document by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run["load"], dtype=torch.float32).eval()
    losses = []
    for sample in samples:
        tokens, labels = sample["tokens"], sample["labels"]
        edges = [0, *(i + 1 for i in range(LENGTH) if tokens[i] == EOD), LENGTH]
        for start, end in pairwise(sorted(set(edges))):
            with torch.no_grad():
                logits = model(tokens[None, start:end]).logits[0]
            each = torch.nn.functional.cross_entropy(logits, labels[start:end], reduction="none")
            losses += each[tokens[start:end] != EOD].tolist()
    assert len(losses) < 4 * LENGTH - 8, "there is more than one document in a sample"
    return sum(losses) / len(losses)


LAYOUTS = {
    "pp2 vpp2 dp2": {"pp": 2, "vpp": 2},
    "tp2 pp2 sp": {"tp": 2, "pp": 2, "sequence_parallel": True},
    "tp2 dp2": {"tp": 2, "micro_batch_size": 2},
}


def test_a_document_has_the_loss_that_it_has_alone(run, alone):
    whole = jobs.train(**run, **RESET)
    assert whole["losses"][0] == pytest.approx(alone, abs=1e-5)
    for off in ("reset_attention_mask", "eod_mask_loss"):
        assert abs(jobs.train(**run, **RESET | {off: False})["losses"][0] - alone) > 1e-3, off
    # Rope knows distances alone: where attention is cut, nothing sees from where they are counted.
    restarted = jobs.train(**run, reset_position_ids=True)["losses"][0]
    assert abs(restarted - jobs.train(**run | {"eod_token": None})["losses"][0]) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_every_layout(layout, run, alone, world):
    results = world.run(jobs.train, **run, **RESET, **LAYOUTS[layout])
    whole = jobs.train(**run, **RESET)
    assert results[0]["losses"][0] == pytest.approx(alone, abs=1e-5)
    assert results[0]["grad_norms"][0] == pytest.approx(whole["grad_norms"][0], rel=1e-5)


def test_masks_and_positions_are_megatron_cores(samples):
    """W35: the loss mask is zero where the EOD tokens are, and all of it is what megatron-core's dataset makes."""
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

    from mconv.train.data.dataset import Apart
    from mconv.train.model.boundaries import attention_mask

    ours = Apart(samples, eod=EOD, positions=True, attention=True, loss=True)
    for number, sample in enumerate(samples):
        mask, loss, positions = _get_ltor_masks_and_position_ids(sample["tokens"], EOD, True, True, True, True)
        made = ours[number]
        assert torch.equal(made["loss_mask"] == 0, sample["tokens"] == EOD) and torch.equal(made["loss_mask"], loss)
        assert torch.equal(made["position_ids"], positions)
        assert torch.equal(attention_mask(made["documents"][None])[0], mask)
        assert sample["loss_mask"].all(), "the dataset's own tensors are left alone"


def test_a_window_holds_within_a_document():
    from mconv.train.megatron.imports import TransformerConfig
    from mconv.train.megatron.specs import no_cuda_graphs
    from mconv.train.model.attention import CoreAttention
    from mconv.train.model.boundaries import attention_mask

    sizes = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        **no_cuda_graphs(),
        "attention_dropout": 0.0,
    }
    attention = CoreAttention(TransformerConfig(**sizes, window_size=(2, 0)))
    q, k, v = torch.randn(3, 12, 1, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    documents = torch.tensor([[0] * 5 + [1] * 7])
    both = attention(q, k, v, attention_mask(documents))
    apart = [attention(q[a:b], k[a:b], v[a:b], None) for a, b in ((0, 5), (5, 12))]
    assert torch.allclose(both, torch.cat(apart), atol=1e-6)
    wide = CoreAttention(TransformerConfig(**sizes))
    assert not torch.allclose(both, wide(q, k, v, attention_mask(documents)), atol=1e-3)


REFUSED = {
    "no record": ({"eod_token": None}, "has no record of how it was tokenized, and reset_position_ids needs"),
    "another end": ({"eod_token": 5}, "document 0 ends in token 2, not in token 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_documents_without_an_end_are_refused(name, run):
    change, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        jobs.train(**run | RESET | change)


def test_files_are_read_without_a_map_of_them_into_memory(run):
    from mconv.train.config import make
    from mconv.train.loop import train

    def mapped(**change):
        seen = []
        config = make(run | RESET | {"eval_interval": 1, "eval_iters": 1, "split": "80,20,0"} | change)
        look = lambda _: seen.append(f"{run['data'][0]}.bin" in Path("/proc/self/maps").read_text())  # noqa: E731
        return seen, train(config, say=lambda line: None, show=look)["losses"]

    (with_map, losses), (without, same) = mapped(), mapped(no_mmap_bin_files=True)
    assert (with_map, without) == ([True], [False]) and losses == same


def test_data_tokenized_without_eod_is_refused(run, tmp_path):
    from mconv.train.data.tokenize import tokenize

    (tmp_path / "text.txt").write_text("one two three\n" * 40)
    folder = jobs.tokenizer_folder(tmp_path / "tokenizer", jobs.texts())
    tokenize([tmp_path / "text.txt"], tmp_path / "d", tokenizer=folder, append_eod=False)
    fields = run | {"data": [str(tmp_path / "d")], "eod_token": None, "eod_mask_loss": True}
    with pytest.raises(ConfigError, match="tokenized without a token at the end of documents, which eod_mask_loss"):
        jobs.train(**fields)
    with pytest.raises(ConfigError, match="none of reset_position_ids"):
        jobs.train(**run)
    record = tmp_path / "d.mconv.json"
    record.write_text(record.read_text().replace('"append_eod": null', '"append_eod": 2'))  # as it is not
    with pytest.raises(ConfigError, match=r"/d: document 0 ends in token \d+, not in token 2"):
        jobs.train(**fields)


def test_a_resumed_run_tells_that_its_data_is_other_data(run, tmp_path):
    from mconv.train.config import make
    from mconv.train.loop import train

    for suffix in (".bin", ".idx"):
        shutil.copy(f"{run['data'][0]}{suffix}", tmp_path / f"d{suffix}")
    fields = run | {"data": [str(tmp_path / "d")], "eod_token": None, "train_iters": 9, "save": str(tmp_path / "run")}

    def warned(until):
        said = []
        train(make(fields | {"exit_after": until}), say=said.append)
        return [line for line in said if "differs from the one at the save" in line]

    assert warned(1) == warned(2) == []
    ids = np.fromfile(tmp_path / "d.bin", np.uint16)
    np.where(ids > EOD, ids ^ 1, ids).tofile(tmp_path / "d.bin")
    assert [line.partition(":")[0] for line in warned(3)] == ["warning"]
    assert warned(4) == []
