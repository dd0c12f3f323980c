"""`mconv resize`: another vocabulary, old rows bit for bit, new rows by a rule, the tokenizer's files with them."""

import json
import shutil

import pytest
import torch
from interrupts import stop_after
from tiny import edit_json, make_llama, make_model, same, tensors
from whole import rows

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.sources.resized import Rows

WORDS = [f"w{i}" for i in range(148)]
TABLES = {"model.embed_tokens.weight": "embed.weight", "lm_head.weight": "head.weight"}
"""Hugging Face's name of each table, and the logical tensor's."""


def tokenizer(folder, words, *, config=True):
    """Write a tokenizer of whole words, <unk> <s> </s> first."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *words])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tokenizer(make_llama(tmp_path_factory.mktemp("made") / "hf"), WORDS)


@pytest.fixture(scope="module")
def roots(hf, tmp_path_factory):
    """The model in each format."""
    out = {"hf": hf}
    for format, sizes in (("torch_dist", {"tp": 2, "pp": 2}), ("mp_rank", {"tp": 2})):
        out[format] = tmp_path_factory.mktemp("roots") / format
        rewrite(plan.make(open_checkpoint(hf), out[format], format=format, **sizes), step="test")
    return out


def resize(source, out, *words):
    assert run(["resize", str(source), "--out", str(out), *words]) == 0
    return out


def exported(root):
    if (root / "config.json").exists():
        return tensors(root)
    assert run(["meg2hf", str(root), "--out", f"{root}-hf"]) == 0
    return tensors(root.parent / f"{root.name}-hf")


def config_of(root):
    side = next(p for p in (root, root / "release" / "hf") if (p / "config.json").exists())
    return json.loads((side / "config.json").read_text())


@pytest.mark.parametrize("to", ["hf", "torch_dist", "mp_rank"])
@pytest.mark.parametrize("source", ["hf", "torch_dist", "mp_rank"])
def test_rows_are_added_from_every_format_into_every_other(hf, roots, tmp_path, source, to):
    sizes = [] if to == "hf" else ["--tp", "2", "--pp", "1"]
    out = resize(roots[source], tmp_path / "out", "--vocab-size", "160", "--format", to, *sizes)
    held, found = tensors(hf), exported(out)
    origin = [*range(151), *[None] * 9]
    assert same(found, {**held, **{name: rows(held[name], origin) for name in TABLES}})
    assert config_of(out)["vocab_size"] == 160 and open_checkpoint(out).spec.vocab_size == 160


@pytest.mark.parametrize("init", ["mean", "normal", "zeros", "copy:w5"])
def test_new_rows_are_those_of_a_second_evaluation(hf, tmp_path, init):
    out = resize(hf, tmp_path / "out", "--vocab-size", "155", "--init", init, "--seed", "3")
    held, found, origin = tensors(hf), tensors(out), [*range(151), *[None] * 4]
    parts = dict.fromkeys(range(151, 155), (8,)) if init == "copy:w5" else None
    for name, logical in TABLES.items():
        want = rows(held[name], origin, init=init, seed=3, name=logical, parts=parts)
        assert torch.allclose(found[name].double(), want.double(), rtol=1e-6, atol=0), (name, init)
        assert torch.equal(found[name][:151], held[name])
    if init == "copy:w5":
        assert all(torch.equal(row, held["lm_head.weight"][8]) for row in found["lm_head.weight"][151:])


def test_normal_rows_follow_from_the_seed_alone(hf, roots, tmp_path):
    words = ["--vocab-size", "170", "--init", "normal"]
    one = exported(resize(hf, tmp_path / "a", *words))
    for name, source in roots.items():
        out = resize(source, tmp_path / name, *words, "--format", "torch_dist", "--tp", "4", "--pp", "1")
        assert same(exported(out), one)
    other = exported(resize(hf, tmp_path / "b", *words, "--seed", "1"))
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert sorted(differ) == sorted(TABLES)
    table = one["lm_head.weight"]
    assert len({*map(tuple, table[151:].tolist())}) == 19 and 0.5 < table[151:].std() / table[:151].std() < 2


def test_more_and_fewer_are_the_same_model_again(hf, tmp_path):
    """The rows that were there stay bit for bit: growing and shrinking leaves the folder's tensors as they were."""
    resize(hf, tmp_path / "more", "--vocab-size", "300")
    assert same(tensors(resize(tmp_path / "more", tmp_path / "back", "--vocab-size", "151")), tensors(hf))


@pytest.mark.parametrize("name", ["llama-tied", "falcon-7b", "gpt2-tied", "gpt2-untied"])
def test_of_tied_models_and_of_other_families(tmp_path, name):
    hf = make_model(name, tmp_path / "hf")
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "meg", format="mp_rank", pp=2), step="test")
    found, held = exported(resize(tmp_path / "meg", tmp_path / "out", "--vocab-size", "157")), tensors(hf)
    grown = [key for key in held if len(held[key]) == 151 and held[key].dim() == 2]
    origin = [*range(151), *[None] * 6]
    assert len(grown) == (2 if "untied" in name else 1)
    assert same(found, {**held, **{key: rows(held[key], origin) for key in grown}})


def test_transformers_scores_old_tokens_as_before(hf, tmp_path):
    import transformers

    resize(hf, tmp_path / "out", "--tokens", "[formula],[/formula]")
    old, new = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (hf, tmp_path / "out"))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(new(ids).logits[..., :151], old(ids).logits) and new(ids).logits.shape[-1] == 153
        assert new(torch.tensor([[151, 152]])).logits.isfinite().all()
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert spoken("w3 [formula] w4[/formula]").input_ids == [6, 151, 7, 152]
    assert spoken.convert_tokens_to_ids("[/formula]") == 152 and len(spoken) == 153


def test_the_extra_tokens_of_the_reference(hf, tmp_path, capsys):
    """`--vocab_extra_ids_list "[formula],[/formula]"` with `--true_vocab_size`, and the five of a 32,005-token run."""
    resize(hf, tmp_path / "a", "--tokens", "[formula],[/formula]", "--vocab-size", "153")
    assert "151 -> 153 rows; 151 as they were, 2 new" in capsys.readouterr().err
    resize(hf, tmp_path / "b", "--tokens", "<CLS>,<SEP>,<EOD>,<MASK>,<PAD>", "--format", "mp_rank", "--tp", "2")
    assert open_checkpoint(tmp_path / "b").spec.vocab_size == 156
    assert "<CLS> 151, <SEP> 152" in capsys.readouterr().err
    kept = json.loads((tmp_path / "b" / "release" / "hf" / "tokenizer.json").read_text())
    assert [token["id"] for token in kept["added_tokens"]][-5:] == [151, 152, 153, 154, 155]
    resize(tmp_path / "a", tmp_path / "c", "--tokens", "[formula],new")
    assert "the tokenizer has [formula] already" in capsys.readouterr().err
    assert open_checkpoint(tmp_path / "c").spec.vocab_size == 154
    assert run(["resize", str(hf), "--out", "x", "--vocab_extra_ids_list", "[formula]"]) == 2
    assert "--tokens" in capsys.readouterr().err


def test_a_token_in_a_reserved_row_is_a_new_row(tmp_path, capsys):
    hf = tokenizer(make_llama(tmp_path / "hf"), WORDS[:100])
    out = resize(hf, tmp_path / "out", "--tokens", "<a>,<b>", "--init", "zeros")
    assert "take rows that were in reserve" in capsys.readouterr().err
    table, held = tensors(out)["lm_head.weight"], tensors(hf)["lm_head.weight"]
    assert not table[103:105].any() and len(table) == 151
    assert torch.equal(table[:103], held[:103]) and torch.equal(table[105:], held[105:])


def test_another_tokenizer_takes_its_tokens_rows_along(hf, roots, tmp_path, capsys):
    """Each token that both have, by its string, keeps its row; the others are new. The ids in the configs move along."""
    words = ["x1", *WORDS[20:][::-1], "x2", "x3"]
    other = tokenizer(tmp_path / "other", words)
    (other / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w100", "eos_token": {"content": "x3"}})
    )
    ids = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    old = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    origin = [old.get(word) for word in ids]
    for name, source in roots.items():
        out = resize(source, tmp_path / name, "--tokenizer", str(other), "--init", "zeros")
        assert "131 as they were, matched by the tokens' strings, 3 new (zeros)" in capsys.readouterr().err
        found, held = exported(out), tensors(hf)
        assert same(found, {**held, **{key: rows(held[key], origin, init="zeros") for key in TABLES}})
        config = config_of(out)
        assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (134, ids["w100"], ids["x3"])
        side = out if name == "hf" else out / "release" / "hf"
        assert (side / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
        assert json.loads((side / "generation_config.json").read_text())["eos_token_id"] == ids["x3"]
    wider = resize(hf, tmp_path / "wider", "--tokenizer", str(other), "--vocab-size", "160")
    assert open_checkpoint(wider).spec.vocab_size == 160


def test_the_same_tokenizer_is_the_same_model(hf, tmp_path):
    out = resize(hf, tmp_path / "out", "--tokenizer", str(hf))
    assert same(tensors(out), tensors(hf)) and config_of(out) == config_of(hf)


def characters(folder, merges, *, more=()):
    """Write a BPE tokenizer of characters and some merges of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *"abcdefgh", *("".join(pair) for pair in merges), *more]
    made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def test_new_tokens_begin_as_the_mean_of_their_subwords(tmp_path, capsys):
    hf = characters(make_llama(tmp_path / "hf"), [("a", "b"), ("ab", "c")])
    held = tensors(hf)["lm_head.weight"].double()
    other = characters(tmp_path / "other", [("a", "b"), ("d", "e"), ("ab", "de")], more=["zz"])
    table = tensors(resize(hf, tmp_path / "out", "--tokenizer", str(other), "--init", "subword-mean"))["lm_head.weight"]
    assert "1 of the new rows have no subwords" in capsys.readouterr().err
    d, e, ab, abc = 6, 7, 11, 12  # their rows in the old vocabulary
    wanted = [held[[d, e]].mean(0), held[[ab, d, e]].mean(0), held.mean(0)]
    for row, want in zip((12, 13, 14), wanted, strict=True):
        assert torch.allclose(table[row].double(), want, rtol=1e-6, atol=0)
    assert torch.equal(table[11].double(), held[ab]) and len(table) == 15
    added = tensors(resize(hf, tmp_path / "more", "--tokens", "abcab", "--init", "subword-mean"))["lm_head.weight"]
    assert torch.allclose(added[13].double(), held[[abc, ab]].mean(0), rtol=1e-6, atol=0) and len(added) == 151


def test_a_tokenizer_without_tokenizer_json_gets_its_tokens_too(tmp_path):
    """GPT-2's vocab.json and merges.txt: transformers reads the added tokens from added_tokens.json."""
    hf = make_model("gpt2-tied", tmp_path / "hf")
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", "a", "b", "ab", "c"])}
    (hf / "vocab.json").write_text(json.dumps(vocab))
    (hf / "merges.txt").write_text("#version: 0.2\na b\n")
    (hf / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    out = resize(hf, tmp_path / "out", "--tokens", "<x>,<y>")
    from transformers import AutoTokenizer

    spoken = AutoTokenizer.from_pretrained(out)
    assert spoken("ab<x>c<y>").input_ids == [3, 5, 4, 6]
    assert json.loads((out / "added_tokens.json").read_text()) == {"<x>": 5, "<y>": 6}


def test_a_sentencepiece_model_alone_gets_its_tokens_and_gives_them_back(tmp_path):
    import io

    import sentencepiece
    from transformers import AutoTokenizer

    made, text = io.BytesIO(), ["the quick brown fox jumps over the lazy dog", "a stitch in time saves nine"] * 9
    options = {"model_type": "bpe", "vocab_size": 60, "minloglevel": 9}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=made, **options)
    hf = make_llama(tmp_path / "hf", vocab_size=60)
    (hf / "tokenizer.model").write_bytes(made.getvalue())
    edit_json(hf / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=False)
    out = resize(hf, tmp_path / "out", "--tokens", "[formula],[/formula]")
    plain, spoken = (AutoTokenizer.from_pretrained(folder) for folder in (hf, out))
    assert 60 in spoken("the [formula]fox").input_ids and spoken.decode([60, 61]) == "[formula][/formula]"
    assert spoken("the fox").input_ids == plain("the fox").input_ids
    assert same(tensors(resize(out, tmp_path / "back", "--tokenizer", str(hf))), tensors(hf))


def test_an_interrupted_run_is_taken_up(hf, tmp_path, monkeypatch):
    line = f"resize {hf} --tokens <a>,<b> --init normal --format mp_rank --tp 2 --out {tmp_path / 'out'}"
    assert run(line.replace("/out", "/whole").split()) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        assert run(line.split()) == 130
    assert run([*line.split(), "--seed", "5", "--resume"]) == 2
    assert run([*line.split(), "--resume"]) == 0
    for file in (path for path in (tmp_path / "whole").rglob("*") if path.is_file() and path.name != "mconv.json"):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes(), file


def test_a_dry_run_reads_no_weights_and_writes_nothing(hf, tmp_path, monkeypatch, capsys):
    from mconv.convert.sources.stored import StoredSource

    monkeypatch.setattr(StoredSource, "pull", lambda *_: pytest.fail("weights are read"))
    assert run(["resize", str(hf), "--out", str(tmp_path / "o"), "--tokens", "<a>", "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_copies_that_differ_are_found_in_the_rows_that_are_read(hf, tmp_path, capsys):
    from safetensors.torch import save_file

    bad = shutil.copytree(hf, tmp_path / "bad")
    edit_json(bad / "config.json", tie_word_embeddings=True)
    held = tensors(bad)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["lm_head.weight"][40] += 1
    save_file(held, bad / "model.safetensors", metadata={"format": "pt"})
    assert run(["resize", str(bad), "--out", str(tmp_path / "o"), "--vocab-size", "160"]) == 2
    assert "are copies of embed.weight but differ" in capsys.readouterr().err
    other = tokenizer(tmp_path / "other", [word for word in WORDS if word != "w37"])
    assert run(["resize", str(bad), "--out", str(tmp_path / "o"), "--tokenizer", str(other)]) == 0


def test_runs_of_rows():
    found = Rows(origin=[0, 1, 2, 7, 8, -1, -1, 3])
    assert [*found.runs(0, 8)] == [(0, 0, 3), (3, 7, 2), (5, -1, 2), (7, 3, 1)]
    assert [*found.runs(1, 6)] == [(1, 1, 2), (3, 7, 2), (5, -1, 1)]
    assert [*Rows(origin=[4, 3]).runs(0, 2)] == [(0, 4, 1), (1, 3, 1)]


WRONG = [
    ("", "give --tokenizer, --vocab-size or --tokens"),
    ("--vocab-size 0", "between 1 and"),
    ("--vocab-size 99999999999", "between 1 and"),
    ("--vocab-size 100", "has 151 ids"),
    ("--tokens a,,b", "separated by commas"),
    ("--tokens a,a", "separated by commas"),
    ("--tokens a --vocab-size 151", "has 152 ids"),
    ("--tokens a --init copy:nothing", "no token 'nothing'"),
    ("--tokens a --init copy:", "not one of mean"),
    ("--tokens a --init median", "not one of mean, normal, zeros, subword-mean, copy:TOKEN"),
    ("--tokenizer nowhere", "nowhere"),
    ("--vocab-size 160 --tp 2", "tp and pp do not apply"),
    ("--vocab-size 160 --source-vocab-size 151", "no iterations and no dialect"),
]


@pytest.mark.parametrize("words, says", WRONG, ids=lambda v: v[:40])
def test_a_mistake_is_one_message_and_exit_code_2(hf, tmp_path, capsys, words, says):
    assert run(["resize", str(hf), "--out", str(tmp_path / "o"), *words.split()]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_tokens_that_a_config_names_are_not_cut_off(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf", eos_token_id=150)
    assert run(["resize", str(hf), "--out", str(tmp_path / "o"), "--vocab-size", "150"]) == 2
    assert "eos_token_id is 150, which --vocab-size 150 leaves no row for" in capsys.readouterr().err
    for words in (["--tokens", "a"], ["--vocab-size", "160", "--init", "copy:a"]):
        assert run(["resize", str(hf), "--out", str(tmp_path / "o"), *words]) == 2
        assert "lists its tokens" in capsys.readouterr().err
