"""What we write is read by others, what others write is read by us, and an interrupted run leaves no lie behind."""

import argparse
import errno
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import make_llama, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine import rewrite as engine
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import PARTIAL
from mconv.errors import FormatError, MconvError

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared/golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")


def convert(source, out, **options):
    engine.rewrite(plan.make(open_checkpoint(source), out, **options), step="test")
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "hf", dtype=torch.bfloat16, num_hidden_layers=2)
    convert(root / "hf", root / "torch_dist", format="torch_dist", tp=2, pp=2)
    convert(root / "hf", root / "mp_rank", format="mp_rank", tp=2, pp=2)
    return root


# ---- read by others --------------------------------------------------------------------------------------------------
def test_torch_loads_every_rank_safely(made):
    files = sorted((made / "mp_rank/release").glob("mp_rank_*/model_optim_rng.pt"))
    assert [f.parent.name for f in files] == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    torch.serialization.add_safe_globals([argparse.Namespace])  # for good: megatron-core counts on it too
    states = [torch.load(file, weights_only=True) for file in files]
    embed, head = (torch.cat([s["model"][n] for s in states if n in s["model"]]) for n in
                   ("embedding.word_embeddings.weight", "output_layer.weight"))  # fmt: skip
    want = load_file(made / "hf/model.safetensors")
    assert torch.equal(embed[:151], want["model.embed_tokens.weight"]) and torch.equal(head[:151], want["lm_head.weight"])
    assert embed.shape == (256, 48) and not embed[151:].any()
    assert states[0]["args"].num_layers == 2 and states[0]["checkpoint_version"] == 3.0
    assert states[0]["model"]["decoder.layers.0.self_attention.linear_qkv._extra_state"] is None


def index_of(root):
    return pickle.loads((root / "release/.metadata").read_bytes())


def test_torch_loads_every_chunk_by_its_offset(made):
    index, folder, seen = index_of(made / "torch_dist"), made / "torch_dist/release", 0
    for key, place in index.storage_data.items():
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            value = torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
        entry = index.state_dict_metadata[key.fqn]
        if hasattr(entry, "chunks"):
            (chunk,) = [c for c in entry.chunks if c.offsets == key.offset]
            assert value.shape == chunk.sizes and value.dtype == torch.bfloat16 == entry.properties.dtype
            seen += value.numel()
    total = sum(torch.Size(e.size).numel() for e in index.state_dict_metadata.values() if hasattr(e, "size"))
    assert seen == total


def test_torchs_own_reader_gives_the_tensors_back(made):
    import torch.distributed.checkpoint as dcp

    want = load_file(made / "hf/model.safetensors")
    state = {"decoder.layers.mlp.linear_fc2.weight": torch.empty(2, 48, 64, dtype=torch.bfloat16)}
    with pytest.warns(UserWarning):
        dcp.load(state, storage_reader=dcp.FileSystemReader(made / "torch_dist/release"), no_dist=True)
    layers = [want[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(2)]
    assert torch.equal(state["decoder.layers.mlp.linear_fc2.weight"], torch.stack(layers))


def test_safetensors_reads_every_shard(made, tmp_path):
    out = convert(made / "mp_rank", tmp_path / "out", format="hf", shard_bytes=20_000)
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in weight_map.items():
        with safe_open(out / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"} and name in opened.keys()  # noqa: SIM118
    assert same(tensors(out), tensors(made / "hf"))


@pytest.mark.parametrize("format, file", [("mp_rank", "mp_rank_00_000/model_optim_rng.pt"), ("torch_dist", "common.pt")])
def test_records_are_aligned_and_sound(made, format, file):
    with (
        zipfile.ZipFile(made / format / "release" / file) as zipped,
        (made / format / "release" / file).open("rb") as raw,
    ):
        assert zipped.testzip() is None
        for info in zipped.infolist():
            raw.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", raw.read(4))
            assert (info.header_offset + 30 + name + extra) % 64 == 0 and info.compress_type == zipfile.ZIP_STORED


# ---- written by others -----------------------------------------------------------------------------------------------
def rewritten(root, out, pieces):
    """The checkpoint with other chunks: `pieces(fqn, tensor)` gives {fqn: [(offsets, tensor)]}."""
    from torch.distributed.checkpoint import metadata as meta
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    old, folder = index_of(root), root / "release"
    out.mkdir(parents=True)
    entries, places = {}, {}
    with (out / "__0_0.distcp").open("wb") as file:
        file.write(b"\x01\x02\x03")  # nothing is aligned any more
        for fqn, entry in old.state_dict_metadata.items():
            if not hasattr(entry, "chunks"):
                continue
            whole = torch.empty(entry.size, dtype=entry.properties.dtype)
            for c in entry.chunks:
                place = old.storage_data[meta.MetadataIndex(fqn, c.offsets)]
                data = (folder / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
                at = tuple(slice(o, o + n) for o, n in zip(c.offsets, c.sizes, strict=True))
                whole[at] = torch.load(io.BytesIO(data), weights_only=True)
            for name, (size, chunks) in pieces(fqn, whole).items():
                entries[name] = meta.TensorStorageMetadata(entry.properties, size, [])
                for offsets, tensor in chunks:
                    entries[name].chunks.append(meta.ChunkStorageMetadata(torch.Size(offsets), tensor.shape))
                    start, buffer = file.tell(), io.BytesIO()
                    torch.save(tensor.clone(), buffer)
                    file.write(buffer.getvalue())
                    info = _StorageInfo("__0_0.distcp", start, file.tell() - start)
                    places[meta.MetadataIndex(name, torch.Size(offsets))] = info
    (out / ".metadata").write_bytes(pickle.dumps(meta.Metadata(entries, None, places)))
    for name in ("common.pt", "metadata.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out


def one_chunk(fqn, whole):
    return {fqn: (whole.shape, [((0,) * whole.dim(), whole)])}


def rows(fqn, whole):
    """Odd runs along the last axis but one, across heads, groups and the halves of the MLP; all layers together."""
    axis, chunks = max(whole.dim() - 2, 0), []
    for start in range(0, whole.shape[axis], 7):
        part = whole.narrow(axis, start, min(7, whole.shape[axis] - start))
        chunks.append((tuple(start if i == axis else 0 for i in range(whole.dim())), part))
    return {fqn: (whole.shape, chunks)}


def columns(fqn, whole):
    half = whole.shape[-1] // 3
    zero = (0,) * (whole.dim() - 1)
    return {fqn: (whole.shape, [((*zero, 0), whole[..., :half]), ((*zero, half), whole[..., half:])])}


def layers(fqn, whole):
    if ".layers." not in fqn:
        return one_chunk(fqn, whole)
    names = [fqn.replace(".layers.", f".layers.{i}.") for i in range(len(whole))]
    return {n: (w.shape, [((0,) * w.dim(), w)]) for n, w in zip(names, whole, strict=True)}


@pytest.mark.parametrize("pieces", [one_chunk, rows, columns, layers])
def test_any_chunking_is_read(made, tmp_path, pieces):
    found = rewritten(made / "torch_dist", tmp_path / "m/release", pieces)
    (tmp_path / "m" / TRACKER).write_text("release")
    assert same(tensors(convert(found.parent, tmp_path / "out", format="hf")), tensors(made / "hf"))


def test_a_layer_beyond_the_model_is_refused(made, tmp_path):
    def more(fqn, whole):
        found = layers(fqn, whole)
        return found | {k.replace(".layers.1.", ".layers.99."): v for k, v in found.items() if ".layers.1." in k}

    with pytest.raises(MconvError, match="99"):
        open_checkpoint(rewritten(made / "torch_dist", tmp_path / "release", more))


@needs_golden
@pytest.mark.parametrize(
    "case, facts",
    [
        ("td-tp2pp2-llama3", ("torch_dist", 100, 2, 2, 1, 192, "llama3", "bfloat16")),
        ("td-tp1-tied-eps6", ("torch_dist", None, 1, 1, 1, 256, "default", "float32")),
        ("legacy-tp2pp2-vpp2-bf16", ("mp_rank", 5, 2, 2, 2, 192, "default", "bfloat16")),
        ("legacy-tp2pp2-mha-pad", ("mp_rank", None, 2, 2, 1, 256, "default", "bfloat16")),
    ],
)
def test_what_megatron_wrote_is_named_rightly(case, facts):
    known = json.loads((GOLDEN / "megatron-lm" / case / "hf/config.json").read_text())
    c = open_checkpoint(GOLDEN / "megatron-lm" / case / "ckpt", vocab_size=known["vocab_size"])
    assert c.layout is not None
    assert facts == (c.format, c.iteration, c.layout.tp, c.layout.pp, c.layout.vpp, c.layout.padded_vocab,
                     c.spec.rope.kind, c.dtype.name)  # fmt: skip


# ---- unusual sizes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config, options",
    [
        ({"num_hidden_layers": 1}, {"tp": 4}),
        ({"vocab_size": 3, "bos_token_id": 0, "eos_token_id": 1}, {"tp": 4}),  # ranks 1, 2, 3 hold only padding
        ({"vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0}, {"tp": 2, "vocab_multiple": 1}),
        ({"num_key_value_heads": 1, "head_dim": 4}, {"tp": 8}),
        ({"num_key_value_heads": 2, "head_dim": 6}, {"tp": 4}),
        ({"num_hidden_layers": 4}, {"tp": 2, "pp": 2, "vpp": 2}),
        ({"num_hidden_layers": 4}, {"pp": 4}),
        ({"hidden_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}, {"tp": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["mp_rank", "torch_dist"])
def test_unusual_sizes(tmp_path, config, options, format):
    hf = make_llama(tmp_path / "hf", **{"num_hidden_layers": 1, **config})
    there = convert(hf, tmp_path / "a", format=format, **options)
    again = convert(there, tmp_path / "b", format={"mp_rank": "torch_dist", "torch_dist": "mp_rank"}[format])
    assert same(tensors(hf), tensors(convert(again, tmp_path / "out", format="hf")))


# ---- interrupted -----------------------------------------------------------------------------------------------------
def state(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def failing_write(monkeypatch, fault, after):
    """The write number `after` + 1 of tensor bytes fails."""
    count, write = iter(range(10**9)), os.pwrite

    def failing(*args):
        if next(count) >= after:
            raise fault
        return write(*args)

    monkeypatch.setattr(os, "pwrite", failing)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), FormatError("bad")], ids=type)
@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("format", ["hf", "mp_rank", "torch_dist"])
@pytest.mark.parametrize("there", [False, True])
def test_a_fault_while_writing_leaves_the_old_state(made, tmp_path, monkeypatch, fault, after, format, there):
    source = made / ("mp_rank" if format == "hf" else "hf")
    root = tmp_path / "out"
    if there:
        convert(source, root, format=format)
    before = state(tmp_path)
    failing_write(monkeypatch, fault, after)
    with pytest.raises(MconvError, match=r"No space left|bad"):
        convert(source, root, format=format, dtype="fp32", overwrite=True)
    assert state(tmp_path) == before
    if not there:
        with pytest.raises(MconvError):
            open_checkpoint(root)


@pytest.mark.parametrize("where", ["fdatasync", "fsync"])
def test_a_disk_that_fails_late_leaves_the_old_state(made, tmp_path, monkeypatch, where):
    root = convert(made / "hf", tmp_path / "out", format="mp_rank")
    before, sync = state(tmp_path), getattr(os, where)

    def failing(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".pt":
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, where, failing)
    with pytest.raises(MconvError, match="unchanged"):
        convert(made / "hf", root, format="mp_rank", overwrite=True)
    assert state(tmp_path) == before


def test_a_fault_while_renaming_puts_the_old_state_back(made, tmp_path, monkeypatch):
    out = convert(made / "mp_rank", tmp_path / "out", format="hf")
    before, rename = state(out), Path.rename

    def failing(self, target):
        if self.name == f"{PARTIAL}out":
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MconvError, match="unchanged"):
        convert(made / "mp_rank", out, format="hf", overwrite=True)
    assert state(out) == before


def test_a_run_killed_before_the_tracker_can_be_repeated(made, tmp_path):
    root = convert(made / "hf", tmp_path / "out", format="mp_rank")
    (root / TRACKER).unlink()
    convert(made / "hf", root, format="mp_rank", overwrite=True)
    assert (root / TRACKER).read_text() == "release"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_anywhere_is_seen(dtype, bad):
    from mconv.convert.sources.checks import finite

    for at in (0, 511, 1023):
        tensor = torch.linspace(-3, 3, 1024).to(dtype)
        assert finite(tensor)
        tensor[at] = bad
        assert not finite(tensor)
