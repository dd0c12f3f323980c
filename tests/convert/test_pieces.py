"""SentencePiece models as mconv reads them, against SentencePiece itself."""

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from mconv.convert.folders import pieces
from mconv.errors import FormatError

TEXT = ["the quick brown fox jumps over the lazy dog", "a stitch in time saves nine", "naïve café, 1234567890"] * 9
KINDS = {
    "bpe": {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True},
    "unigram": {"model_type": "unigram", "vocab_size": 60, "hard_vocab_limit": False},
    "char": {"model_type": "char", "vocab_size": 40, "hard_vocab_limit": False},
    "named": {"model_type": "bpe", "vocab_size": 60, "bos_piece": "<|begin|>", "eos_piece": "<|end|>"},
    "moved": {"model_type": "bpe", "vocab_size": 60, "unk_id": 3, "bos_id": 5, "eos_id": 0, "pad_id": 1},
    "without": {"model_type": "bpe", "vocab_size": 60, "bos_id": -1, "eos_id": -1},
    "control": {"model_type": "bpe", "vocab_size": 60, "control_symbols": ["<a>"], "bos_id": -1},
    "users": {"model_type": "bpe", "vocab_size": 60, "user_defined_symbols": ["<s>", "[INST]"], "bos_id": -1},
}


@pytest.fixture(scope="module")
def models():
    """Return the bytes of a model of each kind."""

    def train(options):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=out, minloglevel=2, **options)
        return out.getvalue()

    return {kind: train(options) for kind, options in KINDS.items()}


def theirs(path):
    found = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = [None if n < 0 else n for n in (found.bos_id(), found.eos_id())]
    return pieces.Pieces(found.get_piece_size(), *ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_as_sentencepiece_reads_it(models, kind, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(models[kind])
    assert pieces.read(path) == theirs(path)


def test_the_kinds_differ_in_what_is_read(models, tmp_path):
    (path := tmp_path / "tokenizer.model").write_bytes(models["named"])
    assert pieces.read(path) == pieces.Pieces(60, 1, 2)
    path.write_bytes(models["moved"])
    assert pieces.read(path) == pieces.Pieces(60, 5, 0)
    path.write_bytes(models["without"])
    assert pieces.read(path) == pieces.Pieces(60, None, None)


def test_a_model_that_is_cut_off_is_none(models, tmp_path):
    path = tmp_path / "tokenizer.model"
    for size in (*range(1, 16), len(models["bpe"]) - 1):
        path.write_bytes(models["bpe"][:size])
        with pytest.raises(FormatError, match="neither a SentencePiece model nor Llama 3's"):
            pieces.read(path)


def test_what_sentencepiece_refuses_is_refused(models, tmp_path):
    """A model without pieces, a piece that is there twice, and pieces none of which is the unknown one."""
    path, whole = tmp_path / "tokenizer.model", models["char"]
    first = whole[: 2 + whole[1]]  # one piece: key, length, message
    assert whole[0] == 0x0A and b"<unk>" in first
    for data in (b"", first + whole, whole[len(first) :]):
        path.write_bytes(data)
        with pytest.raises((RuntimeError, OSError)):
            theirs(path)
        with pytest.raises(FormatError, match="neither a SentencePiece model"):
            pieces.read(path)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "tokenizer.model"
    path.write_bytes(data)
    try:
        assert pieces.read(path).count > 0
    except FormatError as error:
        assert str(path) in str(error)
