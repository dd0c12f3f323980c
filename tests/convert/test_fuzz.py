"""Checkpoints with something changed inside: each reads as the same tensors, or is refused; and nothing else happens.

`test_hostile.py` changes bytes anywhere and plants pickles that name what they must not. Here the file stays well formed
(JSON parses, archives open, pickles have whole opcodes) and says something else, so that what reads it gets further. Each
mutant has seconds, may write nothing, start nothing and connect to nothing, and whatever opens is read to its end and
held against the original, bit for bit: a checkpoint that mconv made has digests to tell a swap by.
"""

import io
import itertools
import json
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import zipfile
from contextlib import contextmanager

import pytest
from tiny import make_llama

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import MconvError
from mconv.verify.digests import compare

pytestmark = pytest.mark.once

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64}  # fmt: skip
SECONDS, GROWTH = 5, 400
"""A mutant's time, and how many MB all mutants of a kind may add to the process."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model that mconv made, with its manifest, in each format."""
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "source", **TINY)
    for name, options in {
        "torch_dist": {"format": "torch_dist", "tp": 2},
        "mp_rank": {"format": "mp_rank", "tp": 2},
    }.items():
        rewrite(plan.make(open_checkpoint(root / "source"), root / name, **options), step="test")
    rewrite(plan.make(open_checkpoint(root / "mp_rank"), root / "hf", format="hf", shard_bytes=6_000), step="test")
    return root


# ---- what a mutant may do --------------------------------------------------------------------------------------------
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.symlink", "shutil.rmtree", "socket.connect", "urllib.Request", "pty.spawn",
)  # fmt: skip
seen: list[str] = []
watching = False


def hook(event, args):
    if not watching:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in FORBIDDEN or writes:
        seen.append(f"{event} {args}"[:200])


@contextmanager
def watched():
    """Raise after `SECONDS`; note every file that is written and every program that is started."""
    global watching

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    if not hasattr(hook, "installed"):
        sys.addaudithook(hook)
        hook.installed = True
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    seen.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not seen, seen


def verdict(folder, original):
    """`refused`, `same`, or `stale`: it opens with other tensors, and its manifest's digests say so. Else an error."""
    try:
        with watched():
            found = compare(original, open_checkpoint(folder))
    except MconvError:
        return "refused"
    if not found.differences:
        return "same"
    assert found.stale["b"], f"it opens with other tensors, unnoticed: {found.differences[:3]}"
    return "stale"


def test_the_watch_sees_what_a_pickle_does(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "planted"), "w")

    with pytest.raises(AssertionError, match="planted"), watched():
        pickle.loads(pickle.dumps(Evil())).close()
    with pytest.raises(TimeoutError), watched():
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while True:
            pass


def test_tensors_that_changed_unnoticed_are_noticed(made, tmp_path):
    """The judge itself: two tensors of one shape exchanged pass only where there is no manifest to tell."""
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    file = next(
        f for f in sorted(folder.glob("*.safetensors")) if {"gate_proj", "up_proj"} <= set(str(header(f)).split("."))
    )
    entries = header(file)
    gate, up = (next(n for n in entries if f"{part}_proj" in n) for part in ("gate", "up"))
    entries[gate], entries[up] = entries[up], entries[gate]
    file.write_bytes(framed(file.read_bytes(), entries))
    original = open_checkpoint(made / "hf")
    assert verdict(folder, original) == "stale"
    (folder / "mconv.json").unlink()
    with pytest.raises(AssertionError, match="unnoticed"):
        verdict(folder, original)


# ---- JSON ------------------------------------------------------------------------------------------------------------
ODD = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63), 10**300, 0.5, 1e-320, 1e308, float("inf"),
    float("nan"), "", "x", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "é" * 300, "BF16", "F8_E4M3", [], {},
    [[]], [0, 0], [None], {"a": {}}, [2**62, 2**62], "model.safetensors", "torch.float32",
]  # fmt: skip


def places(value, at=()):
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def edit_json(value, rng):
    """One place of a JSON value removed, replaced, copied from elsewhere, renamed, doubled or nudged."""
    value = json.loads(json.dumps(value))
    paths = list(places(value))
    *way, last = rng.choice(paths)
    inside = value
    for key in way:
        inside = inside[key]
    match rng.randrange(7):
        case 0:
            del inside[last]
        case 1 | 2:
            inside[last] = rng.choice(ODD)
        case 3:
            other = value
            for key in rng.choice(paths):
                other = other[key]
            inside[last] = json.loads(json.dumps(other))
        case 4 if isinstance(inside, dict):
            inside[rng.choice(["", "x", str(last) + "x", "__metadata__", *map(str, inside)])] = inside.pop(last)
        case 5 if isinstance(inside[last], (int, float)) and not isinstance(inside[last], bool):
            inside[last] += rng.choice([-1, 1, -inside[last], inside[last]])
        case _:
            inside[last] = [inside[last]] if rng.random() < 0.5 else {str(last): inside[last]}
    return value


def header(file):
    data = file.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def framed(data, entries):
    """The file with another header before the same bytes."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + struct.unpack("<Q", data[:8])[0] :]


def json_mutant(data, rng):
    return json.dumps(edit_json(json.loads(data), rng)).encode()


def header_mutant(data, rng):
    return framed(data, edit_json(json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]]), rng))


def text_mutant(data, rng):
    words = [
        b"", b"release", b"Release", b"-1", b"0", b"1", b"9" * 400, b"../release", b"release\0", b"\xff", b"1e3",
        "７".encode(), b" release\n", b"iter_0000001", b"[" * 5000,
    ]  # fmt: skip
    return rng.choice(words)


# ---- pickles ---------------------------------------------------------------------------------------------------------
SENTINEL = "touch /tmp/mconv-fuzz-was-run"


def text(value):
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


INTEGERS = [
    b"K\x00", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f",
    b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"\x8a\x08" + b"\x00" * 7 + b"\x80", b"N", b"\x88", b"\x89",
    b"G\x7f\xf0" + b"\0" * 6, b"G\x7f\xf8" + b"\0" * 6,
]  # fmt: skip
STRINGS = [
    text(word)
    for word in ("", "x", "0", "../../x", "/etc/passwd", "os", "system", "builtins", "exec", "weight", "\ud800", "model",
                 "args", "__class__", "cpu", "storage", "a" * 3000)
]  # fmt: skip
GLOBALS = [
    b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n",
    b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nfloat32\n",
    b"cargparse\nNamespace\n", b"ccollections\nOrderedDict\n", b"cmegatron.core\nX\n", b"c_codecs\nencode\n",
    b"cbuiltins\nlist\n", b"cbuiltins\nset\n", b"c_io\nBytesIO\n", b"cpathlib\nPosixPath\n",
]  # fmt: skip
CALLS = [
    b"R", b"b", b"\x81", b"\x92", b"o", b"Q", b"0", b"2", b"s", b"u", b"a", b"e", b"t", b"\x85", b"\x86", b"]",
    b"}", b")", b"(", b"\x93", b"P0\n", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"ios\nsystem\n",
    b"j\x00\x00\x00\x00",
]  # fmt: skip
ATTACKS = [
    b"cos\nsystem\n(" + text(SENTINEL) + b"tR",
    b"cbuiltins\nexec\n(" + text("open('/tmp/mconv-fuzz-was-run', 'w')") + b"tR",
    b"(" + text(SENTINEL) + b"ios\nsystem\n",
    text("os") + text("system") + b"\x93" + text(SENTINEL) + b"\x85R",
    # a reduce whose function is the result of a reduce: getattr(__import__("os"), "system")(...)
    b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
    + text("os")
    + b"tR"
    + text("system")
    + b"tR("
    + text(SENTINEL)
    + b"tR",
    b"cfunctools\nreduce\n(cos\nsystem\n](" + text(SENTINEL) + b"e\x8a\x00tR",
    b"cargparse\nNamespace\n)\x81}" + text("__class__") + b"cos\nsystem\nsb",
    b"ccollections\ndefaultdict\n(cos\nsystem\ntR",
    b"cmegatron.core.enums\nX\n(cos\nsystem\n" + text(SENTINEL) + b"tR",
    b"cargparse\nNamespace\n.__init__\n(" + text(SENTINEL) + b"tR",
]


def operations(data):
    """A pickle as the bytes of its opcodes."""
    ends = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def pickle_mutant(data, rng):
    """Whole opcodes removed, doubled, exchanged, or replaced by ones with other arguments or other deeds."""
    ops = operations(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(1, len(ops) - 1)
        kind = pickletools.code2op[chr(ops[at][0])].name
        match rng.randrange(8):
            case 0:
                del ops[at]
            case 1:
                ops.insert(at, ops[at])
            case 2:
                other = rng.randrange(1, len(ops) - 1)
                ops[at], ops[other] = ops[other], ops[at]
            case 3:
                ops.insert(at, rng.choice(CALLS))
            case 4 if rng.random() < 0.5:
                ops.insert(at, rng.choice(ATTACKS))
            case _:
                same = INTEGERS if "INT" in kind or "LONG" in kind else STRINGS if "UNICODE" in kind else GLOBALS
                ops[at] = rng.choice(same if kind not in ("REDUCE", "BUILD", "TUPLE") else CALLS)
        if len(ops) < 4:
            break
    return b"".join(ops)


def archive_mutant(data, rng):
    """An archive of torch.save with another pickle, or with its records otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        records = [(info.filename, zipped.read(info)) for info in zipped.infolist()]
    method, chosen = zipfile.ZIP_STORED, rng.randrange(len(records))
    name, held = records[chosen]
    match rng.randrange(14):
        case 0:
            del records[chosen]
        case 1:
            method = zipfile.ZIP_DEFLATED
        case 2:
            records[chosen] = (name, held[: len(held) // 2])
        case 3:
            records[chosen] = (
                rng.choice(["x", "../x", "archive/data/../data.pkl", name.upper(), ""]) or "archive/",
                held,
            )
        case 4:
            other = rng.randrange(len(records))
            records[chosen], records[other] = (name, records[other][1]), (records[other][0], held)
        case _:
            records = [(n, pickle_mutant(d, rng) if n.endswith("data.pkl") else d) for n, d in records]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as zipped:
        for name, held in records:
            zipped.writestr(name, held)
    return out.getvalue()


def zip_mutant(data, rng):
    """What says where things are: the directory at the end, and the header before each record."""
    data = bytearray(data)
    marks = [i for i in range(len(data) - 4) if data[i : i + 2] == b"PK" and data[i + 2] in (1, 3, 5, 6)]
    at = rng.choice(marks)
    for _ in range(rng.choice([1, 1, 3])):
        data[min(len(data) - 1, at + rng.randrange(46))] = rng.choice([0, 1, 8, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(data)


# ---- the mutants -----------------------------------------------------------------------------------------------------
KINDS = {
    "safetensors header": ("hf", "model-00001-of-*.safetensors", header_mutant, 60, 40),
    "safetensors index": ("hf", "model.safetensors.index.json", json_mutant, 50, 30),
    "config.json": ("hf", "config.json", json_mutant, 60, 30),
    "mconv.json of hf": ("hf", "mconv.json", json_mutant, 30, 1),
    "mconv.json": ("torch_dist", "release/mconv.json", json_mutant, 50, 10),
    "metadata.json": ("torch_dist", "release/metadata.json", json_mutant, 15, 3),
    "tracker": ("torch_dist", "latest_checkpointed_iteration.txt", text_mutant, 15, 10),
    ".metadata": ("torch_dist", "release/.metadata", pickle_mutant, 80, 50),
    "common.pt": ("torch_dist", "release/common.pt", archive_mutant, 80, 40),
    "common.pt zip": ("torch_dist", "release/common.pt", zip_mutant, 40, 5),
    "distcp zip": ("torch_dist", "release/__0_0.distcp", zip_mutant, 40, 4),
    "model_optim_rng.pt": ("mp_rank", "release/mp_rank_01/model_optim_rng.pt", archive_mutant, 80, 40),
    "model_optim_rng.pt zip": ("mp_rank", "release/mp_rank_00/model_optim_rng.pt", zip_mutant, 40, 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_say_the_same_or_are_refused(made, kind):
    format, pattern, mutate, count, seen_to_be_wrong = KINDS[kind]
    file = next(iter(sorted((made / format).glob(pattern))))
    whole, rng, original = file.read_bytes(), random.Random(kind), open_checkpoint(made / "source")
    before, verdicts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    try:
        for number in range(count):
            data = mutate(whole, rng)
            file.write_bytes(data)
            try:
                verdicts.append(verdict(made / format, original))
            except Exception as error:
                raise AssertionError(f"mutant {number} of {kind}: {type(error).__name__}: {error}") from error
    finally:
        file.write_bytes(whole)
    assert count - verdicts.count("same") >= seen_to_be_wrong, "the mutants are too tame to try anything"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < GROWTH
    assert verdict(made / format, original) == "same"


def test_there_are_five_hundred():
    assert sum(count for *_, count, _ in KINDS.values()) >= 500
