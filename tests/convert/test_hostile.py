"""Files from strangers: nothing in them runs, nothing in them hangs, nothing in them changes this process."""

import importlib
import io
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import make_llama, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats.unpickle import loads
from mconv.errors import FormatError, MconvError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "hf", num_hidden_layers=2, shard="40KB")
    for format in ("torch_dist", "mp_rank"):
        rewrite(plan.make(open_checkpoint(root / "hf"), root / format, format=format, tp=2), step="test")
        (root / format / "release/mconv.json").unlink()
    return root


@pytest.fixture
def copy(made, tmp_path):
    return lambda name: Path(shutil.copytree(made / name, tmp_path / name))


class Call:
    """Pickles as a call of `name` in `module`."""

    def __init__(self, module, name, *args):
        self.call = module, name, args

    def __reduce__(self):
        module, name, args = self.call
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found, args


CALLS = [
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("subprocess", "check_call", ["touch", "{}"]),
    ("builtins", "eval", "open({!r}, 'w')"),
    ("builtins", "exec", "open({!r}, 'w')"),
    ("builtins", "open", "{}", "w"),
    ("builtins", "getattr", 1, "real"),
    ("builtins", "__import__", "antigravity"),
    ("importlib", "import_module", "antigravity"),
    ("functools", "partial", print, "x"),
    ("torch", "load", "{}"),
    ("torch.hub", "load", "{}", "x"),
    ("numpy", "load", "{}"),
    ("numpy", "fromfile", "{}"),
    ("operator", "attrgetter", "x"),
    ("shutil", "rmtree", "{}"),
    ("pathlib", "Path.touch", Path("{}")),
    ("pickle", "loads", b"."),
    ("runpy", "run_path", "{}"),
    ("code", "interact"),
    ("torch.distributed.checkpoint.filesystem", "FileSystemReader", "{}"),
    ("torch.serialization", "load", "{}"),
    ("io", "FileIO", "{}", "w"),
]
INERT = {"torch.distributed.checkpoint.filesystem"}
"""Modules whose classes become stand-ins: not refused, and not called."""


def archive(tree):
    """A file of torch.save that holds this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr("archive/data.pkl", tree if isinstance(tree, bytes) else pickle.dumps(tree, protocol=2))
        zipped.writestr("archive/version", "3\n")
    return out.getvalue()


PLACES = {
    "model_optim_rng.pt": ("mp_rank", "mp_rank_00/model_optim_rng.pt", archive),
    "common.pt": ("torch_dist", "common.pt", archive),
    ".metadata": ("torch_dist", ".metadata", lambda v: v if isinstance(v, bytes) else pickle.dumps(v, protocol=2)),
    ".distcp": ("torch_dist", "__0_0.distcp", None),
}


def plant(root, place, value):
    """Put a pickle in one of the places that are read."""
    _, name, wrap = PLACES[place]
    file = root / "release" / name
    if wrap is not None:
        file.write_bytes(wrap(value))
        return
    index = pickle.loads((root / "release/.metadata").read_bytes())
    for where in index.storage_data.values():
        where.offset, where.length = 0, len(archive(value))
    (root / "release/.metadata").write_bytes(pickle.dumps(index))
    file.write_bytes(archive(value))


def filled(value, sentinel):
    if isinstance(value, str):
        return value.format(str(sentinel))
    if isinstance(value, list):
        return [filled(v, sentinel) for v in value]
    return Path(sentinel) if isinstance(value, Path) else value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("module, name, args", [(m, n, a) for m, n, *a in CALLS], ids=[f"{c[0]}.{c[1]}" for c in CALLS])
def test_no_name_of_a_pickle_is_called(copy, tmp_path, place, module, name, args):
    sentinel = tmp_path / "sentinel"
    root = copy(PLACES[place][0])
    plant(root, place, {"model": {}, "args": Call(module, name, *(filled(a, sentinel) for a in args))})
    with pytest.raises(MconvError) as caught:
        open_checkpoint(root)
    assert not sentinel.exists()
    if module not in INERT:
        assert place in str(caught.value) and "mconv does not load" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["os\nsystem", "torch._utils\n_rebuild_tensor_v2.__globals__", "megatron.core\n__class__.x", "builtins\n"]
)
def test_names_with_dots_reach_nothing(name):
    with pytest.raises(FormatError):
        loads(b"\x80\x04\x8c" + bytes([len(name.split("\n")[0])]) + name.split("\n")[0].encode() + b"\x8c"
              + bytes([len(name.split("\n")[1])]) + name.split("\n")[1].encode() + b"\x93.", where="x")  # fmt: skip


def build(module, name, attribute, value):
    """A pickle that sets an attribute of a class or function itself, by the BUILD opcode's slot state."""
    word = b"X" + len(attribute).to_bytes(4, "little") + attribute.encode()
    what = b"X" + len(value).to_bytes(4, "little") + value.encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}" + word + what + b"s\x86b."


POISON = """
import argparse, pathlib, sys
from mconv.convert.formats import unpickle
from mconv.errors import FormatError
for data in eval(sys.stdin.read()):
    try:
        unpickle.loads(data, where="file")
    except FormatError:
        pass
now = str(pathlib.Path("/home/me"))
assert now == "/home/me", f"every path of this process now reads {now}"
assert not hasattr(argparse.Namespace(), "evil") and not hasattr(unpickle.StandIn, "evil")
assert not hasattr(unpickle._tensor, "evil")
"""


def test_a_pickle_cannot_change_the_classes_of_this_process():
    targets = [
        ("argparse", "Namespace", "evil", "x"),
        ("numpy", "ndarray", "evil", "x"),
        ("torch._utils", "_rebuild_tensor_v2", "evil", "x"),
        ("pathlib", "PurePosixPath", "_str", "/tmp/anywhere"),
    ]
    data = repr([build(*target) for target in targets])
    done = subprocess.run([sys.executable, "-c", POISON], input=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def limited(bombs):
    """Unpickle in a process of at most 4 GB; returns by how many MB it grew."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)\n"
        "from mconv.errors import MconvError; from mconv.convert.formats.unpickle import loads\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in eval(sys.stdin.read()):\n"
        "    try: loads(data, where='x')\n"
        "    except MconvError: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=repr(bombs), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    return int(done.stdout)


BOMBS = {
    "bytearray8": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b".",
    "binbytes8": b"\x80\x05\x8e" + (1 << 60).to_bytes(8, "little") + b".",
    "unicode8": b"\x80\x05\x8d" + (1 << 60).to_bytes(8, "little") + b".",
    "frame": b"\x80\x05\x95" + (1 << 60).to_bytes(8, "little") + b"N.",
    "deep": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "memo": b"\x80\x02Nr\xff\xff\xff\x03.",
}


def test_a_small_pickle_takes_little_memory():
    bombs = [data for name, data in BOMBS.items() if name != "memo"]
    assert limited(bombs) < 500


def test_a_large_memo_index_takes_little_memory():
    assert limited([BOMBS["memo"]]) < 500


def test_a_list_that_holds_itself_twice_sixty_times_over(copy):
    root = copy("torch_dist")
    laugh = [0]
    for _ in range(15):
        laugh = [laugh, laugh]
    file = root / "release/common.pt"
    common = torch.load(file, weights_only=False)
    common["laugh"] = laugh
    torch.save(common, file)
    visited = 0

    def count(frame, event, argument):
        nonlocal visited
        visited += event == "call" and frame.f_code.co_name == "_locate"

    sys.setprofile(count)
    try:
        open_checkpoint(root)
    except MconvError:
        pass
    finally:
        sys.setprofile(None)
    assert visited < 2**15


@pytest.mark.parametrize(
    "arguments",
    [
        ("S", 0, (2, 2), (1,), False, None),
        ("S", -1, (2,), (1,), False, None),
        ("S", 0, (10**18,), (1,), False, None),
        ("S", 0, (-1, -2), (-2, 1), False, None),
        ("S", 3, (2,), (1,), False, None),
        ("S", 0, None, (1,), False, None),
        ("S", 0, (2.0,), (1,), False, None),
        (5, 0, (2,), (1,), False, None),
    ],
    ids=str,
)
def test_a_tensor_that_cannot_be(copy, arguments):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "S" else None

    root, out = copy("mp_rank"), io.BytesIO()
    Pickler(out, 2).dump({"model": {"w": Tensor()}})
    file = root / "release/mp_rank_00/model_optim_rng.pt"
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("archive/data.pkl", out.getvalue())
        zipped.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(MconvError):
        open_checkpoint(root)


# ---- fuzz ------------------------------------------------------------------------------------------------------------
def mutant(data, rng, reach):
    """Some bytes changed, cut out, doubled, or the end lost."""
    data = bytearray(data)
    reach = min(reach, len(data))
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(reach)
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randrange(1, 9)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 9)]
            case 4:
                data[at] = rng.choice(b'0123456789"{}[]-.,:(bRtqrs')
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.05 else data)


FUZZED = {
    "safetensors": ("hf", "model-00001-of-*.safetensors", 900),
    "index": ("hf", "model.safetensors.index.json", 10_000),
    "config": ("hf", "config.json", 10_000),
    "metadata": ("torch_dist", "release/.metadata", 100_000),
    "common": ("torch_dist", "release/common.pt", 100_000),
    "distcp": ("torch_dist", "release/__0_0.distcp", 2_000),
    "mp_rank": ("mp_rank", "release/mp_rank_00/model_optim_rng.pt", 5_000),
}


@pytest.mark.parametrize("what", FUZZED)
def test_mutants_are_refused_or_open(made, what, capsys):
    format, pattern, reach = FUZZED[what]
    file = next(iter(sorted((made / format).glob(pattern))))
    whole, rng, refused = file.read_bytes(), random.Random(what), 0
    limit = resource.getrlimit(resource.RLIMIT_AS)
    try:
        for number in range(45):
            file.write_bytes(mutant(whole, rng, reach))
            start = time.monotonic()
            try:
                open_checkpoint(made / format)
            except MconvError:
                refused += 1
            except Exception as error:
                if os.environ.get("MCONV_FUZZ"):
                    with capsys.disabled():
                        print(what, number, type(error).__name__, str(error)[:150])
                        continue
                pytest.fail(f"mutant {number} of {what}: {type(error).__name__}: {error}")
            assert time.monotonic() - start < 5, f"mutant {number} of {what} took too long"
    finally:
        file.write_bytes(whole)
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert refused > 5
    open_checkpoint(made / format)


# ---- the process remembers nothing of an older file ------------------------------------------------------------------
def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    old, new = make_llama(tmp_path / "a", seed=1), make_llama(tmp_path / "b", seed=2)
    rewrite(plan.make(open_checkpoint(old), tmp_path / "one", format="hf"), step="test")
    for file in new.glob("*.safetensors"):
        shutil.copy(file, tmp_path / "fresh")
        (tmp_path / "fresh").replace(old / file.name)
    rewrite(plan.make(open_checkpoint(old), tmp_path / "two", format="hf"), step="test")
    got, want = tensors(tmp_path / "two"), tensors(new)
    assert all(torch.equal(got[name], want[name]) for name in want)
