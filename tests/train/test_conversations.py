"""Training on conversations: which tokens count, which rows they share, and the same losses whatever holds them."""

import shutil
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.data.instruction import open_conversations, rows
from mconv.train.data.packing import pack

pytestmark = pytest.mark.once

EOS, LENGTH, TALKS = 2, 48, 16


def write(prefix, conversations):
    """The two pairs of files, by megatron-core's builder, from (ids, roles)."""
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    conversations = list(conversations)
    for kind, number in (("text", 0), ("role", 1)):
        builder = IndexedDatasetBuilder(f"{prefix}-{kind}.bin", dtype=np.uint16)
        for conversation in conversations:
            builder.add_item(torch.tensor(conversation[number]))
        builder.finalize(f"{prefix}-{kind}.idx")
    return prefix


def talks(count, *, longest=LENGTH, seed=5):
    """Random conversations of two turns, the answer's end being EOS, which is also the id that pads."""
    random = np.random.RandomState(seed)
    for _ in range(count):
        question, answer = random.randint(2, longest // 2, 2)
        ids = [*random.randint(3, 90, question + answer - 1).tolist(), EOS]
        yield ids, [1] * int(question) + [2] * int(answer)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step over all of the conversations, so that every arrangement of them has the same loss."""
    folder = tmp_path_factory.mktemp("conversations")
    jobs.hf_model(jobs.SPEC).save_pretrained(folder / "hf")
    write(folder / "d", talks(TALKS))
    return {
        "load": str(folder / "hf"), "data": [str(folder / "d")], "data_type": "instruction", "train_iters": 1,
        "lr": 1e-3, "global_batch_size": TALKS, "seq_length": LENGTH, "make_vocab_size_divisible_by": 8,
        "num_workers": 0, "scalar_loss_mask": 0.1, "clip_grad": 0.0,
    }  # fmt: skip


def of(prefix, **options):
    return rows(open_conversations(prefix), (0.0, 1.0), **{"seq_length": LENGTH, "scalar_loss_mask": 0.0} | options)


@pytest.fixture(scope="module")
def packed_rows(run):
    return len(of(Path(run["data"][0]), packing=True))


@pytest.fixture(scope="module")
def alone(run):
    """(loss, gradient norm) of the weighted mean, where transformers sees each conversation by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run["load"], dtype=torch.float32)
    total, weight, parts = torch.zeros(()), 0.0, []
    for ids, roles in talks(TALKS):
        logits = model(torch.tensor([ids[:-1]])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        mask = torch.tensor([1.0 if role == 2 else 0.1 for role in roles[1:]])
        total, weight = total + (losses * mask).sum(), weight + float(mask.sum())
        parts.append(((losses * mask).sum() / mask.sum()).item())
    loss = total / weight
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert abs(sum(parts) / TALKS - loss.item()) > 1e-3, "the mean of means is another number"
    return loss.item(), norm.item()


WAYS = {
    "padded": {},
    "variable": {"variable_seq_lengths": True},
    "padded, 4 together": {"micro_batch_size": 4},
    "packed": {"packing": True},
    "packed, variable, 2 together": {"packing": True, "variable_seq_lengths": True},
}
LAYOUTS = {
    "pp4 packed": {"pp": 4, "packing": True},
    "tp2 pp2 sp packed": {"tp": 2, "pp": 2, "sequence_parallel": True, "packing": True},
    "pp2 dp2 variable": {"pp": 2, "variable_seq_lengths": True, "micro_batch_size": 2},
    "tp2 sp dp2 variable": {"tp": 2, "sequence_parallel": True, "variable_seq_lengths": True},
}


def fields_of(way, packed_rows):
    """The rows are the whole of the data, and one step: packed they are fewer."""
    return {**way, "global_batch_size": packed_rows if way.get("packing") else TALKS}


def test_tokens_a_second_count_the_rows_as_they_are(run):
    from mconv.train.config import make
    from mconv.train.loop import train

    def tokens_of(**change):
        seen = []
        train(make(run | change), say=lambda line: None, show=seen.append)
        return round(seen[0]["tokens_per_second"] * seen[0]["seconds"])

    padded = [-(-(len(ids) - 1) // 16) * 16 for ids, _ in talks(TALKS)]
    assert tokens_of(variable_seq_lengths=True) == sum(padded) < tokens_of() == TALKS * LENGTH


def agree(result, alone):
    loss, norm = alone
    assert result["losses"][0] == pytest.approx(loss, abs=1e-5)
    assert result["grad_norms"][0] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_the_weighted_mean_over_the_global_batch(way, run, alone, packed_rows):
    agree(jobs.train(**run | fields_of(WAYS[way], packed_rows)), alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_every_layout(layout, run, alone, packed_rows, world):
    agree(world.run(jobs.train, **run | fields_of(LAYOUTS[layout], packed_rows))[0], alone)


def test_a_leak_between_conversations_is_seen(run, alone, packed_rows, monkeypatch):
    """The planted fault: packed rows whose attention nobody cuts."""
    from mconv.train.loop import steps

    monkeypatch.setattr(steps, "attention_mask", lambda documents: None)
    leaking = jobs.train(**run | fields_of(WAYS["packed"], packed_rows))
    assert abs(leaking["losses"][0] - alone[0]) > 1e-3


def test_masks_by_hand(tmp_path):
    """Answers count 1, all else the scalar, padding nothing; EOS is trained although it also pads."""
    from mconv.train.data.loader import batches

    write(tmp_path / "d", [([5, 6, EOS, 7, EOS], [0, 1, 1, 2, 2]), ([8, 9], [1, 2])])
    padded = of(tmp_path / "d", packing=False, seq_length=6, scalar_loss_mask=0.25)
    batch = next(batches(padded, iter([[0, 1]]), device="cpu", multiple=6))
    assert batch["tokens"].tolist() == [[5, 6, EOS, 7, 0, 0], [8, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[6, EOS, 7, EOS, 0, 0], [9, 0, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0.25, 0.25, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    short = next(batches(padded, iter([[1]]), device="cpu", multiple=4, longest=6))
    assert short["tokens"].shape == (1, 4) and "documents" not in short
    packed = of(tmp_path / "d", packing=True, seq_length=6)
    row = packed[0]
    assert len(packed) == 1 and row["position_ids"].tolist() == [0, 1, 2, 3, 0]
    assert row["documents"].tolist() == [0, 0, 0, 0, 1] and row["loss_mask"].tolist() == [0, 0, 1, 1, 1]


def test_what_is_cut_and_left_out_is_counted_and_said(tmp_path, run, monkeypatch):
    from mconv.train.data import instruction

    monkeypatch.setattr(instruction, "CHUNK", 7)  # roles are read in pieces, which end anywhere in a conversation
    lines = []
    late = ([7] * 70, [1] * 60 + [2] * 10)  # its answer is beyond the row
    first = ([3, 4], [2, 1])  # its answer is no label
    write(tmp_path / "d", [*talks(6), ([7] * 70, [1] * 10 + [2] * 60), late, ([3, 4], [1, 1]), first])
    made = of(tmp_path / "d", packing=False)
    assert (len(made), made.cut, made.dropped) == (7, 2, 3)
    assert [len(made[n]["tokens"]) for n in (6,)] == [LENGTH]
    assert len(of(tmp_path / "d", packing=False, scalar_loss_mask=0.5)) == 10
    from mconv.train.config import make
    from mconv.train.loop import train

    fields = run | {"data": [str(tmp_path / "d")], "global_batch_size": 1, "scalar_loss_mask": 0.0}
    train(make(fields), say=lines.append)
    assert any("7 conversations for training in 7 rows of 48 tokens; 2 longer than that were cut; 3 left out" in line
               for line in lines)  # fmt: skip


@given(st.lists(st.integers(1, 40), max_size=60))
def test_packing_holds_every_sample_once_and_wastes_little(lengths):
    made = pack(lengths, room=40)
    assert sorted(n for row in made for n in row) == list(range(len(lengths)))
    sums = [sum(lengths[n] for n in row) for row in made]
    assert all(total <= 40 for total in sums) and made == pack(lengths, room=40)
    assert sum(total <= 20 for total in sums) <= 1  # two rows that are half empty would have been one


def test_a_blend_of_conversations_has_its_shares(tmp_path, run):
    from mconv.train.data.instruction import endless, open_conversations
    from mconv.train.data.sources import blend

    for name, token in (("a", 11), ("b", 22)):
        write(tmp_path / name, [([token, token, EOS], [1, 2, 2])] * 10)

    def opened(mix):
        return [open_conversations(prefix) for prefix in mix.prefixes]

    mix = blend([f"0.3 {tmp_path / 'a'}", f"0.7 {tmp_path / 'b'}"], instruction=True)
    options = {"seq_length": 8, "scalar_loss_mask": 0.0, "packing": False, "seed": 1, "say": lambda line: None}
    mixed = endless(opened(mix), mix.weights, (0.0, 1.0), "training", samples=200, **options)
    first = [int(mixed[n]["tokens"][0]) for n in range(200)]
    assert first.count(11) == 60
    both = opened(blend([str(tmp_path)], instruction=True))
    whole = endless(both, None, (0.0, 0.5), "training", samples=1, **options)
    assert sorted(int(whole[n]["tokens"][0]) for n in range(10)) == [11] * 5 + [22] * 5  # half of each, once


def test_the_feed_goes_on_at_any_sample(run):
    """What a resumed run asks for: from the third sample of an epoch on, over its end, and read ahead by threads."""
    from mconv.train.config import make
    from mconv.train.loop.feed import feed, sets
    from mconv.train.loop.start import start

    fields = {"packing": True, "dataloader_type": "cyclic", "global_batch_size": 3, "num_workers": 2}
    begun = start(make(run | fields), say=lambda line: None)
    data = sets(begun, lambda line: None).train
    (whole,), (later,) = feed(begun, data, consumed=0), feed(begun, data, consumed=3)
    drawn = [next(whole) for _ in range(30)][3:]
    assert len({tuple(batch["tokens"][0].tolist()) for batch in drawn}) < 27, "more than an epoch"
    for batch in drawn:
        again = next(later)
        assert batch.keys() == again.keys() and all(torch.equal(batch[name], again[name]) for name in batch)


def poke(name, kind, change):
    def damage(prefix):
        path = Path(f"{prefix}-{kind}.{name}")
        path.write_bytes(change(path.read_bytes()))

    return damage


HOSTILE = {
    "no role file": (lambda p: Path(f"{p}-role.idx").unlink(), FormatError, "d-role.idx: no such file"),
    "a role of its own": (poke("bin", "role", lambda b: b[:6] + b"\x07\x00" + b[8:]), FormatError, "role 7 is none of"),
    "roles cut short": (poke("bin", "role", lambda b: b[:-2]), FormatError, "d-role.bin has"),
    "an id beyond the model": (poke("bin", "text", lambda b: b"\xff\x00" + b[2:]), ConfigError, "holds token id 255"),
    "fewer roles in one": (lambda p: write_roles(p, [2, 2]), FormatError, "conversation 0 has .* roles"),
    "fewer conversations": (lambda p: write_roles(p, None), FormatError, "d-role: 1 conversations, .*d-text has 3"),
    "no answer anywhere": (poke("bin", "role", lambda b: bytes(len(b))), ConfigError, "no conversation with an answer"),
}


def write_roles(prefix, first):
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}-role.bin", dtype=np.uint16)
    for roles in [first, [1], [1]] if first else [[1]]:
        builder.add_item(torch.tensor(roles))
    builder.finalize(f"{prefix}-role.idx")


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_conversations_are_refused_by_name(name, run, tmp_path):
    damage, kind, message = HOSTILE[name]
    write(tmp_path / "d", list(talks(3)))
    damage(tmp_path / "d")
    with pytest.raises(kind, match=message):
        jobs.train(**run | {"data": [str(tmp_path / "d")], "scalar_loss_mask": 0.0})


def test_text_and_conversations_are_not_taken_for_each_other(run, tmp_path):
    prefix = Path(run["data"][0])
    for path in prefix.parent.glob("d-*"):
        shutil.copy(path, tmp_path)
    plain = {"data_type": "gpt", "scalar_loss_mask": 0.0}
    for change, message in (
        ({"data": [str(tmp_path)]} | plain, "no prefix with .bin and .idx .*give --data-type instruction"),
        ({"data": [f"{tmp_path}/d"]} | plain, "d.bin: no such file, but there is .*d-text.bin.*--data-type instruction"),
        ({"data": [f"{tmp_path}/d-role"]} | plain, "holds the roles of instruction data"),
        ({"data_type": "gpt"}, "scalar_loss_mask is for data_type instruction"),
        ({"reset_attention_mask": True}, "reset_attention_mask is for running text"),
    ):
        with pytest.raises(MconvError, match=message):
            jobs.train(**run | change)
