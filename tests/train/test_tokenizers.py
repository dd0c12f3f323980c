"""Every type of tokenizer: its ids are those of the library, and of the program that has the type's name."""

import json
import shutil
from pathlib import Path
from typing import get_args

import jobs
import pytest

from mconv.errors import FormatError, MconvError
from mconv.train.data.claims import Keys
from mconv.train.data.instruct import instruct
from mconv.train.data.record import read_record
from mconv.train.data.tokenize import tokenize, tokenize_keys
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.types import TYPES, load

pytestmark = pytest.mark.once
GOLDEN = Path(__file__).parents[3] / "shared/golden/megatron-llm"
MODEL = GOLDEN / "data-pretrain/tokenizer.model"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden data is not here")
TEXTS = [
    "hello wörld 🙂 it's 42",
    "",
    "  two  spaces\n\n\ttab ",
    "a</s>b<s> c <|endoftext|> d",
    "日本語 <CLS><PAD>",
    "\x00\ufeff",
]


def choice(**options):
    return TokenizerChoice(**options)


def ids(tokenizer, texts=TEXTS):
    """What the encoder gives, both ways; each token is within the text, in its order."""
    encoder = load(tokenizer).encoder
    plain = [*encoder.open()(texts)]
    located = [*encoder.locate()(texts)]
    assert [found for found, _ in located] == plain
    for text, (found, starts) in zip(texts, located, strict=True):
        assert len(found) == len(starts) and starts == sorted(starts) and all(0 <= at <= len(text) for at in starts)
    return plain


@golden
@pytest.mark.parametrize("case, options", [("eod", {}), ("nonew", {"new_tokens": False})])
def test_megatron_llm_with_and_without_its_new_tokens(case, options, tmp_path):
    """E5: <CLS> to <PAD> are ids 384 to 388 of a model of 384 pieces, and <EOD> ends documents; without them EOS."""
    how = choice(type="SentencePieceTokenizer", vocab_file=MODEL, **options)
    made = tokenize([GOLDEN / "data-pretrain/input.jsonl"], tmp_path / "d", tokenizer=how)
    for suffix in (".bin", ".idx"):
        theirs = GOLDEN / f"data-pretrain/{case}_text_document{suffix}"
        assert (tmp_path / f"d{suffix}").read_bytes() == theirs.read_bytes()
    new = ["<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>"] if case == "eod" else []
    assert (made.vocab_size, made.append_eod, made.added_tokens) == (384 + len(new), 386 if new else 2, new)
    assert made.tokenizer_type == "SentencePieceTokenizer" and [*made.tokenizer_files] == ["tokenizer.model"]


@golden
def test_training_compares_the_model_with_the_checkpoints(tmp_path):
    """By the name that it has in a checkpoint, whatever it is called where it was read."""
    from mconv.train.data.checks import PrefixShare as Share
    from mconv.train.data.checks import check, same_tokenizer

    shutil.copy(MODEL, tmp_path / "mine.spm")
    (tmp_path / "d.txt").write_text("hello <MASK>\n" * 9)
    prefix = tmp_path / "d"
    tokenize([tmp_path / "d.txt"], prefix, tokenizer=choice(path=tmp_path / "mine.spm", type="SentencePieceTokenizer"))
    same_tokenizer([prefix], {"tokenizer.model": MODEL})
    (tmp_path / "other.model").write_bytes(MODEL.read_bytes()[:-1])
    with pytest.raises(MconvError, match=r"by another tokenizer than the checkpoint's: tokenizer\.model differs"):
        same_tokenizer([prefix], {"tokenizer.model": tmp_path / "other.model"})
    check([Share(name="train", prefixes=[prefix])], vocab_size=389, seq_length=4)
    with pytest.raises(MconvError, match="holds token id 387, but the model's vocabulary ends at 383"):
        check([Share(name="train", prefixes=[prefix])], vocab_size=384, seq_length=4)


@golden
def test_megatron_llm_with_tokens_of_the_users_own(tmp_path):
    how = choice(type="SentencePieceTokenizer", path=MODEL, extra_tokens=("<|im_start|>", "<|im_end|>"))
    outputs = {key: tmp_path / key for key in ("text", "title")}
    source = GOLDEN / "data-pretrain/input.jsonl"
    tokenize_keys([source], tmp_path / "d", outputs, tokenizer=how, append_eod=False)
    for key, prefix in outputs.items():
        theirs = GOLDEN / f"data-pretrain/two_{key}_document.bin"
        assert prefix.with_suffix(".bin").read_bytes() == theirs.read_bytes()
    assert read_record(tmp_path / "text").added_tokens[5:] == ["<|im_start|>", "<|im_end|>"]


@golden
@pytest.mark.parametrize("case", ["chat", "nosys"])
def test_megatron_llms_conversations(case, tmp_path):
    how = choice(
        type="SentencePieceTokenizer", path=MODEL, new_tokens=case == "chat", extra_tokens=("<|im_start|>", "<|im_end|>")
    )
    keys = Keys(question="input", answer="output", system="instruction" if case == "chat" else None)
    instruct(
        [GOLDEN / "data-instruct/instruct.jsonl"], tmp_path / "d", tokenizer=how, template="megatron-llm", keys=keys,
        ignore_fields=() if keys.system else ["instruction"],
    )  # fmt: skip
    for name in ("text.bin", "text.idx", "role.bin", "role.idx"):
        assert (tmp_path / f"d-{name}").read_bytes() == (GOLDEN / f"data-instruct/{case}-{name}").read_bytes()


@golden
@pytest.mark.parametrize("type", [None, "GPTSentencePieceTokenizer", "Llama2Tokenizer"])
def test_a_model_alone_is_sentencepieces_and_megatron_cores(type):
    import sentencepiece

    from mconv.train.megatron.imports import quiet

    with quiet():
        from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer

    theirs, library = SentencePieceTokenizer(str(MODEL)), sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    found = ids(choice(path=MODEL, type=type))
    assert found == [theirs.text_to_ids(text) for text in TEXTS] == [library.encode(text) for text in TEXTS]
    loaded = load(choice(path=MODEL, type=type))
    assert (loaded.size, loaded.eos, loaded.begins_with_bos) == (theirs.vocab_size, 2, type == "Llama2Tokenizer")


@golden
def test_special_tokens_in_a_text_are_found_as_megatron_finds_them():
    """Megatron's loop, from its definition: the next special token, the first in the list where two begin together."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    special = dict(zip(["<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", "<a", "<a>"], range(384, 391), strict=True))
    special |= {"<s>": 1, "</s>": 2}

    def wanted(text):
        found = [(text.find(token), number, token) for number, token in enumerate(special) if token in text]
        if not found:
            return library.encode(text)
        at, _, token = min(found)
        return [*library.encode(text[:at]), special[token], *wanted(text[at + len(token) :])]

    texts = [*TEXTS, "<a><a b<EOD>", "<CLS><CLS>", "x <MASK"]
    how = choice(type="SentencePieceTokenizer", path=MODEL, extra_tokens=("<a", "<a>"))
    assert ids(how, texts) == [wanted(text) for text in texts]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    from tokenizers import ByteLevelBPETokenizer

    folder, trained = tmp_path_factory.mktemp("gpt2"), ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [*TEXTS, *jobs.texts()], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    trained.save_model(str(folder))
    return folder


def test_gpt2_from_its_two_files(gpt2, tmp_path):
    """A6: transformers, given the files under its names of today, is the reference, but for the end of text."""
    from transformers import GPT2Tokenizer

    vocab, merges = (gpt2 / name for name in ("vocab.json", "merges.txt"))
    lines = [tuple(line.split()) for line in merges.read_text().splitlines()[1:]]
    theirs = GPT2Tokenizer(vocab=json.loads(vocab.read_text()), merges=lines)
    named = choice(type="GPT2BPETokenizer", vocab_file=vocab, merge_file=merges)
    texts = [text for text in TEXTS if "<|" not in text]
    wanted = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ids(named, texts) == ids(choice(vocab_file=vocab, merge_file=merges), texts) == ids(gpt2, texts) == wanted
    size = len(json.loads(vocab.read_text()))
    assert size > 256 and (load(gpt2).size, load(gpt2).eos) == (size, 0)
    assert 0 not in ids(gpt2, ["a <|endoftext|> b"])[0]
    for name, renamed in (("vocab.json", "gpt2-vocab.json"), ("merges.txt", "gpt2-merges.txt")):
        shutil.copy(gpt2 / name, tmp_path / renamed)
    made = load(choice(vocab_file=tmp_path / "gpt2-vocab.json", merge_file=tmp_path / "gpt2-merges.txt"))
    assert {*made.files} == {"vocab.json", "merges.txt"}  # a checkpoint's have these names, and are compared by them


def test_a_vocabulary_that_transformers_loses_is_refused(gpt2, tmp_path):
    from mconv.train.data.tokenizers import huggingface

    folder = shutil.copytree(gpt2, tmp_path / "f")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert load(folder).size == load(gpt2).size
    huggingface.read.cache_clear()
    (folder / "added_tokens.json").write_text('{"<far>": 9000}')
    with pytest.raises(FormatError, match=r"transformers reads \d+ of the 9001 ids of added_tokens.json"):
        load(folder)


def test_tokens_that_are_added_to_a_folder_of_falcons(tmp_path):
    """E6, E18: the next ids, in their order; the rest is what the tokenizer gives by itself."""
    from transformers import AutoTokenizer

    folder = jobs.tokenizer_folder(tmp_path / "t", jobs.texts())
    theirs = AutoTokenizer.from_pretrained(folder)
    bare = theirs("one two", add_special_tokens=False)["input_ids"]
    how = choice(type="FalconTokenizer", path=folder, extra_ids=1, extra_tokens=("[formula]", "[/formula]"))
    top = len(theirs)
    assert ids(how, ["one two", "[/formula][formula]<extra_id_0>"]) == [bare, [top + 2, top + 1, top]]
    assert load(how).size == top + 3 and ids(folder, ["one two"]) == [bare]


def test_numbers_are_ids_already(tmp_path):
    from mconv.train.megatron.imports import quiet

    with quiet():
        from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    theirs, how = NullTokenizer(50), choice(type="NullTokenizer", vocab_size=50)
    assert ids(how, ["0 49 7"]) == [theirs.text_to_ids("0 49 7")] == [[0, 49, 7]]
    assert (load(how).size, load(how).eos) == (theirs.vocab_size, theirs.eod) == (51, 50)
    (tmp_path / "d.txt").write_text("1 2\n50\n")
    with pytest.raises(FormatError, match="'50' holds '50', which is no number below 50"):
        tokenize([tmp_path / "d.txt"], tmp_path / "d", tokenizer=how)


WRONG = {
    "a name that there is not": ({"type": "TikTokenizer"}, "must be one of HuggingFaceTokenizer, .*NullTokenizer"),
    "nothing": ({}, "no tokenizer is given"),
    "no folder": ({"type": "HuggingFaceTokenizer"}, "needs --tokenizer-model: the folder"),
    "no file": ({"type": "SentencePieceTokenizer"}, "give its tokenizer.model with --tokenizer-model"),
    "no such file": (
        {"path": Path("/none/t.model")},
        "/none/t.model: not a folder with a tokenizer, nor the file of one",
    ),
    "half of two files": ({"vocab_file": Path("/none/vocab.json")}, "merges.txt is not given"),
    "no such files": ({"vocab_file": Path("/none/v"), "merge_file": Path("/none/m")}, "/none/v, /none/m: no such file"),
    "no size": ({"type": "NullTokenizer"}, "needs --vocab-size"),
    "an option of another type": ({"path": Path("/"), "vocab_size": 3}, "--vocab-size: not for a HuggingFaceTokenizer"),
    "a token twice": ({"path": Path("/"), "extra_tokens": ("a", "a")}, "a token is empty or there twice"),
    "no token": ({"path": Path("/"), "extra_tokens": ("a", "")}, "a token is empty or there twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name):
    options, message = WRONG[name]
    with pytest.raises(MconvError, match=message):
        load(choice(**options))


def test_files_that_are_something_else(gpt2, tmp_path):
    model = tmp_path / "tokenizer.model"
    for content, message in ((b"IQ== 0\nIg== 1\n", "Llama 3's list"), (b"garbage\x00", "not a SentencePiece model")):
        model.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            load(model)
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    both = choice(vocab_file=tmp_path / "vocab.json", merge_file=tmp_path / "merges.txt")
    with pytest.raises(FormatError, match="255 of the 256 bytes have no token"):
        load(both)
    shutil.copy(gpt2 / "vocab.json", tmp_path)
    with pytest.raises(FormatError, match=r"merges.txt: does not fit \S+vocab.json"):
        (tmp_path / "merges.txt").write_text("#version\nqqqq zzzz\n")
        load(both)


def test_megatrons_command_line(tmp_path, capsys):
    """The guides' options, spelled as they are there; the types of the help text are those that there are."""
    from mconv.cli.app import run
    from mconv.cli.data_tokenizer import Type

    assert get_args(Type) == tuple(TYPES)
    (tmp_path / "d.txt").write_text("1 2 3\n4\n")
    words = ["data", "tokenize", str(tmp_path / "d.txt"), "--out", str(tmp_path / "d"), "--workers=1"]
    assert run([*words, "--tokenizer_type=NullTokenizer", "--vocab_size=9", "--no_new_tokens", "--append_eod"]) == 0
    assert (made := read_record(tmp_path / "d")).tokens == 6 and made.tokenizer_type == "NullTokenizer"
    again = [
        "data",
        "tokenize",
        "--input",
        str(tmp_path / "d.txt"),
        "--output_prefix",
        str(tmp_path / "e"),
        "--workers=1",
    ]
    assert run([*again, "--tokenizer_type=NullTokenizer", "--vocab_size=9"]) == 0
    assert read_record(tmp_path / "e_text_document").tokens == 6
    assert run([*words, "--output-prefix", "x"]) == 2
    assert "--out and --output-prefix are both given" in capsys.readouterr().err
    assert run([*words, "--overwrite", "--tokenizer-type", "FalconTokenizer"]) == 2
    assert "that of tiiuae/falcon-40b, which is not in the Hub's cache; fetch it with" in capsys.readouterr().err
