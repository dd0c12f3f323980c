"""Token data mixed by weights, merged, measured and found: against arithmetic, megatron-core and Megatron-LLM's files."""

import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mconv.cli.app import run
from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.data.index import open_index
from mconv.train.data.mixing import folder, join, mix, prefixes, stats
from mconv.train.data.mixing.discover import discover
from mconv.train.data.mixing.merge import merge, ordered
from mconv.train.data.record import Tokenized, read_record
from mconv.train.megatron.imports import IndexedDatasetBuilder, quiet

pytestmark = pytest.mark.usefixtures("quietly")
GOLDEN = Path(__file__).parents[3] / "shared/golden/megatron-llm"
EOS = 2


@pytest.fixture
def quietly():
    """megatron-core's builder warns where no ranks are."""
    with quiet():
        yield


def make(prefix, documents, *, dtype=np.uint16, record=None):
    """Write documents (lists of ids) with megatron-core's builder, and a record where its differing fields are given."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_document(ids, [len(ids)] if ids else [])
    builder.finalize(f"{prefix}.idx")
    if record is not None:
        known = {
            "tokenizer": "hf", "tokenizer_sha256": "a", "tokenizer_files": {"tokenizer.json": "a"}, "vocab_size": 100,
            "append_eod": EOS, "prepend_bos": None, "documents": len(documents), "empty": 1,
            "tokens": sum(map(len, documents)), "max_id": max(map(max, documents)), "dtype": np.dtype(dtype).name,
            "bin_bytes": Path(f"{prefix}.bin").stat().st_size, "rejected": {"not JSON": 1},
        } | record  # fmt: skip
        Path(f"{prefix}.mconv.json").write_text(json.dumps(known))
    return prefix


def texts(seed, count, *, longest=9):
    """Return random documents that end in EOS."""
    draw = random.Random(seed)
    return [[*(draw.randrange(3, 90) for _ in range(draw.randrange(longest))), EOS] for _ in range(count)]


def files(prefix):
    return [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Folders `a`, with a folder and a link in it, and `b`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        make(Path("a", "deep" if number % 2 else "", f"p{number}"), texts(number, 20))
    for number in range(4):
        make(Path("b", f"p{number}"), texts(50 + number, 30), record={})
    return tmp_path


# ---- mix -------------------------------------------------------------------------------------------------------------
def greedy(shares, sizes):
    """The published script's rule, in its own floats: the set that lacks most gets a file, until it has none left."""
    taken, now = [0] * len(shares), np.array(shares)
    for _ in range(sum(map(len, sizes))):
        at = int(np.argmax(np.array(shares) - now))
        if taken[at] >= len(sizes[at]):
            break
        taken[at] += 1
        held = [sum(size[:count]) for size, count in zip(sizes, taken, strict=True)]
        now = np.array(held) / sum(held)
    return taken


def test_whole_prefixes_are_chosen_by_the_rule_of_the_guide():
    draw = random.Random(0)
    for _ in range(200):
        sizes = [[draw.randrange(1, 10**6) for _ in range(draw.randrange(1, 9))] for _ in range(draw.randrange(1, 4))]
        weights = [draw.randrange(1, 1000) for _ in sizes]
        shares = [Fraction(weight, sum(weights)) for weight in weights]
        assert mix.whole(shares, sizes) == greedy([float(share) for share in shares], sizes)
    assert mix.whole([Fraction(1, 2)] * 2, [[3, 3, 3], [4, 4]]) == [3, 2]


@pytest.mark.skipif(
    "MCONV_SWISSAI" not in os.environ, reason="MCONV_SWISSAI is not the scripts/tools of swiss-ai/Megatron-LM"
)
def test_the_links_are_those_of_the_guide(sets):
    """The present script, whose shares are of bytes: of prefixes with one dtype the same as of tokens."""
    script = Path(os.environ["MCONV_SWISSAI"], "create_data_mixture.py")
    for weights in (["0.8", "0.2"], ["0.3", "0.7"], ["0.5", "0.5"]):
        folders = ["--folders", str(sets / "a"), str(sets / "b"), "--weights", *weights, "--output"]
        theirs, ours = sets / f"theirs-{weights[0]}", sets / f"ours-{weights[0]}"
        subprocess.run([sys.executable, script, *folders, theirs], check=True, stdout=subprocess.DEVNULL)
        assert run(["data", "mix", *folders, str(ours)]) == 0
        links = [
            {path.relative_to(folder): path.readlink() for path in folder.rglob("*.bin")} for folder in (theirs, ours)
        ]
        assert links[0] == links[1] and len(links[0]) > 2


def test_a_mixture_of_relative_folders_is_links_that_open(sets):
    """Relative paths, a slash at the end, and a seeded order that is the guide's."""
    made = mix.mixture([Path("a/"), Path("b")], [0.8, 0.2], Path("mixed/m"))
    folder.write(made, Path("mixed/m"))
    found = prefixes.open_all(prefixes.under(Path("mixed/m")))
    own = sorted(str(path) for path in Path("a").rglob("*.bin"))
    random.Random(1234).shuffle(own)
    names = [f"{one.prefix.path}.bin" for one in made.taken[0]]
    assert names == own[: len(names)] and len(found) == sum(map(len, made.taken))
    assert sum(one.tokens for one in found) == sum(made.tokens) == sum(len(open_index(one.path).tokens) for one in found)
    assert all(path.is_symlink() and path.readlink().is_absolute() for path in Path("mixed/m").rglob("p*.bin"))
    assert {one.record is not None for one in found if "/b/" in str(one.path)} == {True}
    known = json.loads(Path("mixed/m/dataset_mixture.json").read_text())
    assert [one["share"] for one in known["sets"]] == [round(tokens / sum(made.tokens), 6) for tokens in made.tokens]
    text = Path("mixed/m/dataset_mixture_summary.txt").read_text()
    assert f"{sum(made.tokens):,} tokens" in text and "Resulting mixture is {'mixed/m/a': " in text


def test_an_exact_mixture_holds_the_weights_to_a_document(sets):
    """One set is used up, no document is there twice, and what is cut begins as its source does."""
    for weights in ([0.7, 0.3], [0.05, 0.95], [1.0, 1.0]):
        made = mix.mixture([Path("a"), Path("b")], weights, Path("m"), exact=True)
        share = weights[0] / sum(weights)
        assert made.used_up and abs(made.tokens[0] - share * sum(made.tokens)) <= 9
        cut = [one for group in made.taken for one in group if not one.whole]
        assert 0 < len(cut) <= 1 and 0 < cut[0].documents < cut[0].prefix.documents
    folder.write(made, Path("m"), copy=True)
    found = prefixes.open_all(prefixes.under(Path("m")))
    assert not [path for path in Path("m").rglob("*") if path.is_symlink()]
    assert sum(one.tokens for one in found) == sum(made.tokens)
    place = next(
        path for path in Path("m").rglob(f"{cut[0].prefix.path.name}.bin") if cut[0].prefix.path.parts[0] in path.parts
    )
    place = place.with_suffix("")
    assert files(cut[0].prefix.path)[0].startswith(files(place)[0]) and len(open_index(place)) == cut[0].documents


def test_what_is_cut_has_a_record_of_its_own(sets):
    made = mix.mixture([Path("a"), Path("b/p0"), Path("b/p1")], [0.98, 0.01, 0.01], Path("m"), exact=True)
    folder.write(made, Path("m"))
    (cut,) = made.taken[1]
    record, data = read_record(Path("m/p0/p0")), open_index(Path("m/p0/p0"))
    assert not cut.whole and (record.tokens, record.documents) == (len(data.tokens), len(data)) == (
        cut.tokens,
        cut.documents,
    )
    assert (record.max_id, record.append_eod, record.rejected) == (int(data.tokens[:].max()), EOS, {})


def test_conversations_are_mixed_with_their_roles(tmp_path):
    for name, count in (("a", 40), ("b", 9)):
        turns = [[*ids, *ids] for ids in texts(3, count)]
        make(tmp_path / name / "c-text", turns, record={"template": "chatml", "answer_tokens": 1})
        make(tmp_path / name / "c-role", [[1] * (len(ids) // 2) + [2] * (len(ids) // 2) for ids in turns])
        (tmp_path / name / "c-role.mconv.json").unlink(missing_ok=True)
    made = mix.mixture([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "m", exact=True)
    folder.write(made, tmp_path / "m")
    cut, whole = prefixes.open_prefix(tmp_path / "m/a/c"), prefixes.open_prefix(tmp_path / "m/b/c")
    assert cut.talks and abs(cut.tokens - whole.tokens) <= 18 and cut.record.answer_tokens == cut.tokens // 2
    with pytest.raises(FormatError, match=r"c holds conversations and .*t running text"):
        mix.mixture([tmp_path / "a", make(tmp_path / "t", texts(1, 2))], [1.0, 1.0], tmp_path / "n")


def test_names_that_are_equal_and_re_runs(sets):
    """Two folders of one name, an output within a source that is not read again, and an old mixture."""
    for number in range(2):
        make(Path(f"x{number}/data/p"), texts(number, 9))
    made = mix.mixture([Path("x0/data"), Path("x1/data"), Path("x0/../x1/../a")], [1.0, 1.0, 1.0], Path("m"))
    assert [one.name for one in made.sets] == ["data", "data-2", "a"]
    argv = ["data", "mix", "--folders", "a", "b", "--weights", ".8", ".2", "--output", "a/m"]
    assert run([*argv, "--json"]) == 0
    first = (sets / "a/m/dataset_mixture.json").read_text()
    assert run(argv) == 2 and run([*argv, "--overwrite", "--exact", "--copy"]) == 0
    assert run([*argv, "--overwrite"]) == 0 and (sets / "a/m/dataset_mixture.json").read_text() == first
    assert not [path.name for path in (sets / "a").iterdir() if path.name.startswith(".")]
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    with pytest.raises(MconvError, match="is there already and is no mixture"):
        folder.write(made, Path("other"), overwrite=True)


def test_one_prefix_is_never_taken_twice(sets):
    Path("linked").symlink_to("a")
    Path("a/again").symlink_to("deep")
    assert len(prefixes.under(Path("a"))) == 10
    with pytest.raises(FormatError, match=r"linked/.*p0 is a/p0 again; give it once"):
        mix.mixture([Path("a"), Path("linked")], [1.0, 1.0], Path("m"))


@pytest.mark.parametrize(
    "argv, message",
    [
        ("data mix --folders a b --weights 1 --out m", "2 --folders and 1 --weights"),
        ("data mix --folders a b --out m", "give --data 0.8 data/a 0.2 data/b, or --folders"),
        ("data mix --data a b --out m", "give a weight before each of a b"),
        ("data mix --data 1 a 1 none --out m", "none: no such folder, and no such prefix"),
        ("data mix --data 1 a -1 b --out m", "weights must be positive numbers"),
        ("data mix --data 1 a 1 b --out m --plot m.gif", "give a name that ends in .png"),
        ("data merge --out m", "give prefixes or a folder of them"),
        ("data stats", "give prefixes or folders of token data"),
        ("data discover none", "none: no such folder, and no such prefix"),
        ("data discover a --seq-length 9999", "none of 10 prefixes has 10000 tokens"),
    ],
)
def test_mistakes_are_answered(argv, message, sets, capsys):
    assert run(argv.split()) == 2
    assert message in capsys.readouterr().err and not Path("m").exists()


# ---- merge -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden data is not here")
def test_a_merge_is_the_bytes_of_megatron_llm(tmp_path):
    source = GOLDEN / "data-pretrain"
    argv = ["data", "merge", "--input", str(source / "parts"), "--output-prefix", str(tmp_path / "m")]
    assert run(argv) == 0 and files(tmp_path / "m") == files(source / "merged_text_document")
    chats = GOLDEN / "data-instruct"
    assert run(["data", "merge", str(chats / "chat"), str(chats / "nosys"), "--out", str(tmp_path / "c")]) == 0
    for ending in ("-text", "-role"):
        builder = added([chats / f"chat{ending}", chats / f"nosys{ending}"], tmp_path / "theirs")
        assert files(f"{tmp_path / 'c'}{ending}") == files(builder)


def added(parts, prefix):
    """Return a prefix that megatron-core's add_index makes of several."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=open_index(parts[0]).tokens.dtype.type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)  # it collects after each part, and all that tests have imported is there
        for part in parts:
            builder.add_index(str(part))
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_merge_is_the_bytes_of_add_index(dtype, tmp_path, monkeypatch):
    """Empty documents, documents of several sequences, chunks smaller than an index; shuffled as merge_datasets.py."""
    monkeypatch.setattr(join, "CHUNK", 7)
    monkeypatch.setattr(join, "COPIED", 11)
    for number in range(3):
        make(tmp_path / f"in/p{number}", [*texts(number, 20), []], dtype=dtype)
    odd = IndexedDatasetBuilder(f"{tmp_path}/in/odd.bin", dtype=dtype)
    for count in (1, 3, 0, 2):
        for _ in range(count):
            odd.add_item(torch.arange(count + 1))
        odd.end_document()
    odd.finalize(f"{tmp_path}/in/odd.idx")
    names = ["odd", "p0", "p1", "p2"]
    merge(ordered([tmp_path / "in"], tmp_path / "in/m"), tmp_path / "in/m")
    assert files(tmp_path / "in/m") == files(added([tmp_path / "in" / name for name in names], tmp_path / "t"))
    made = merge(ordered([tmp_path / "in"], tmp_path / "in/m", seed=42), tmp_path / "in/m", overwrite=True)
    random.seed(42)
    random.shuffle(names)
    assert [path.name for path in made.sources] == names
    assert files(tmp_path / "in/m") == files(added([tmp_path / "in" / name for name in names], tmp_path / "t"))


def test_records_are_joined_or_must_be_allowed_to_differ(tmp_path, capsys):
    documents = {name: texts(seed, 9) for seed, name in enumerate("abc")}
    a, b, c = (
        make(tmp_path / name, documents[name], record=record)
        for name, record in zip("abc", ({}, {}, {"append_eod": None, "vocab_size": 101}), strict=True)
    )
    assert run(["data", "merge", str(a), str(b), "--out", str(tmp_path / "ab")]) == 0
    record = read_record(tmp_path / "ab")
    both = [*documents["a"], *documents["b"]]
    assert (record.documents, record.tokens, record.max_id) == (18, sum(map(len, both)), max(map(max, both)))
    assert (record.empty, record.rejected, record.append_eod) == (2, {"not JSON": 2}, EOS)
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*vocabulary size: 101 and 100(.|\n)*token: none and 2"):
        merge(ordered([a, c], tmp_path / "ac"), tmp_path / "ac")
    argv = ["data", "merge", str(a), str(c), "--out", str(tmp_path / "ac"), "--allow-different", "tokenizer"]
    assert run(argv) == 2 and run([*argv, "--allow-different", "eod"]) == 0
    assert read_record(tmp_path / "ac") is None and "has no record of its tokenizer" in capsys.readouterr().err
    with pytest.raises(MconvError, match="already there"):
        merge(ordered([a, b], tmp_path / "ab"), tmp_path / "ab")


def test_what_cannot_be_one_is_refused_by_name(tmp_path):
    make(tmp_path / "a", texts(0, 3))
    make(tmp_path / "wide", texts(0, 3), dtype=np.int32)
    unmarked = IndexedDatasetBuilder(f"{tmp_path}/unmarked.bin", dtype=np.uint16)
    unmarked.add_item(torch.arange(3))
    unmarked.finalize(f"{tmp_path}/unmarked.idx")
    for other, message in (
        ("wide", "wide holds int32, .*a uint16"),
        ("unmarked", "unmarked does not mark its documents"),
    ):
        with pytest.raises(FormatError, match=message):
            ordered([tmp_path / "a", tmp_path / other], tmp_path / "m")
    for ending in ("-text", "-role"):
        make(tmp_path / f"c{ending}", [[1, 1]])
    with pytest.raises(FormatError, match=r"c holds conversations and .*a running text"):
        ordered([tmp_path / "c", tmp_path / "a"], tmp_path / "m")
    make(tmp_path / "c-role", [[1]])
    with pytest.raises(FormatError, match=r"c-role does not fit .*c-text"):
        ordered([tmp_path / "c-text"], tmp_path / "m")


# ---- stats -----------------------------------------------------------------------------------------------------------
def test_stats_are_those_of_all_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stats, "CHUNK", 5)
    monkeypatch.setattr(stats, "COUNTED", 80)
    documents = [*texts(3, 40, longest=30), [EOS, 7, EOS], [7, 9]]
    make(tmp_path / "d/a", documents, dtype=np.int32, record={"vocab_size": 90})
    make(tmp_path / "d/b", texts(4, 5), record={"vocab_size": 90})
    found = stats.values(stats.measure(prefixes.open_prefix(tmp_path / "d/a")), top=3)
    ids = np.minimum(np.concatenate(documents), 80)
    sizes = [len(one) for one in documents]
    assert (found["tokens"], found["documents"], found["dtype"]) == (len(ids), 42, "int32")
    assert found["lengths"]["p50"] == np.median(sizes) and found["lengths"]["mean"] == round(float(np.mean(sizes)), 2)
    assert found["eod"] == {"token": EOS, "recorded": True, "documents": 41, "share": round(41 / 42, 6), "inside": 1}
    used = len(set(ids.tolist()))
    assert (found["vocabulary"]["used"], found["vocabulary"]["unused_share"]) == (used, round((90 - used) / 90, 6))
    often = sorted(range(81), key=lambda one: (-int((ids == one).sum()), one))[:3]
    assert [one["id"] for one in found["vocabulary"]["top"]] == often
    for one in found["histogram"]:
        inside = [size for size in sizes if one["from"] <= size <= one["to"]]
        assert (one["documents"], one["tokens"]) == (len(inside), sum(inside))
    page = tmp_path / "s.html"
    assert run(["data", "stats", str(tmp_path / "d"), "--json", "--top", "2", "--html", str(page)]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert total["tokens"] == len(ids) + sum(map(len, texts(4, 5))) and total["dtype"] == "int32, uint16"
    assert "<script" not in page.read_text() and f"{total['tokens']:,}" in page.read_text()
    assert run(["data", "stats", str(tmp_path / "d")]) == 0
    assert "Documents by their length in tokens" in capsys.readouterr().out


def test_stats_of_conversations_count_roles(tmp_path):
    make(tmp_path / "c-text", [[5, 6, 7], [8, 9]])
    make(tmp_path / "c-role", [[1, 2, 2], [1, 2]])
    found = stats.values(stats.measure(prefixes.open_prefix(tmp_path / "c")), top=0)
    assert found["roles"] == {"system": 0.0, "prompter": 0.4, "assistant": 0.6, "looked_at": 5}


# ---- discover --------------------------------------------------------------------------------------------------------
def test_discover_prints_what_train_takes(sets, capsys):
    """Sorted, through links and loops; weights are exact shares; half a pair and a missing folder stop."""
    Path("a/loop").symlink_to("..")
    Path("c").mkdir()
    Path("c/linked").symlink_to("../b")
    from mconv.train.data.sources import blend

    assert run(["data", "discover", "c"]) == 0
    words = capsys.readouterr().out.split()
    found = blend(words)
    sizes = [len(open_index(prefix).tokens) for prefix in found.prefixes]
    assert [str(path) for path in found.prefixes] == [f"c/linked/p{number}" for number in range(4)]
    assert found.weights == pytest.approx([size / sum(sizes) for size in sizes], rel=1e-7)
    assert run(["data", "discover", "-p", "c, b", "--weights", "none"]) == 2  # the same prefixes twice
    assert run(["data", "discover", "-p", "b", "--weights", "none", "--comma"]) == 0
    assert capsys.readouterr().out == "b/p0,b/p1,b/p2,b/p3\n"
    assert len(discover([Path("a")]).entries) == 14 and discover([Path("b")], by="sequences").entries[0].weight == 0.25
    make(Path("c/tiny"), [[5, EOS]])
    assert discover([Path("c")], seq_length=2).too_short == (Path("c/tiny"),)
    Path("c/tiny.idx").unlink()
    with pytest.raises(FormatError, match=r"c/tiny.bin is there without tiny.idx"):
        discover([Path("c")])


def test_many_prefixes_need_few_open_files(tmp_path):
    import resource

    first = files(make(tmp_path / "p0", texts(0, 3)))
    for number in range(1, 120):
        for ending, data in zip((".bin", ".idx"), first, strict=True):
            (tmp_path / f"p{number}{ending}").write_bytes(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert len(discover([tmp_path]).entries) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_record_has_no_field_that_a_merge_does_not_know():
    """A new field of the record must be summed, counted, compared or reset in `records`."""
    from mconv.train.data.mixing import records

    named = {*records._SUMS, *records._COUNTS, *(name for group in records.DIFFERENCES.values() for name in group)}
    own = {"tokenizer", "tokenizer_sha256", "max_id", "dtype", "on_bad_record", "first_rejected", "reject_file"}
    assert named | own == set(Tokenized.__dataclass_fields__)
