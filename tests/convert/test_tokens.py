"""A tokenizer goes with an exported model only if the embedding has a row for each of its ids."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import make_llama, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders import tokens
from mconv.errors import FormatError, MconvError

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-llm"
SPECIAL = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


def convert(source, out, said=None, **options):
    rewrite(plan.make(open_checkpoint(source, **(said or {})), out, **options), step="test")
    return out


def tokenizer(folder, ids, *, added=(), kind="BPE", config=None):
    """The files of a tokenizer that knows `ids` words and the added ones."""
    folder.mkdir(exist_ok=True)
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, ids))]
    vocab = [[word, 0.0] for word in words] if kind == "Unigram" else {word: i for i, word in enumerate(words)}
    extra = [{"id": i, "content": f"<extra{i}>"} for i in added]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": kind, "vocab": vocab}, "added_tokens": extra}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or SPECIAL))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint of 151 rows, without files of ours beside it but the manifest."""
    folder = tmp_path_factory.mktemp("tokens")
    convert(make_llama(folder / "hf"), folder / "m", format="torch_dist")
    shutil.rmtree(folder / "m/release/hf")
    return folder / "m"


def files(folder):
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize(
    ("ids", "added", "fits"),
    [(151, (), True), (140, (), True), (100, (150,), True), (152, (), False), (100, (151,), False)],
)
def test_ids_and_rows(root, tmp_path, kind, ids, added, fits):
    given = tokenizer(tmp_path / "t", ids, added=added, kind=kind)
    if fits:
        out = convert(root, tmp_path / "hf", format="hf", side_folder=given)
        assert (out / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
        config = json.loads((out / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
        return
    with pytest.raises(MconvError, match="knows 152 ids, the model's embedding has 151 rows") as caught:
        convert(root, tmp_path / "hf", format="hf", side_folder=given)
    assert "tokenizer.json" in str(caught.value) and not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", '{"<pad>": 151}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"151": {"content": "<pad>"}}}'),
    ],
)
def test_added_tokens_count(root, tmp_path, name, text):
    given = tokenizer(tmp_path / "t", 151)
    (given / name).write_text(text)
    with pytest.raises(MconvError, match=f"{name}.*152 ids"):
        convert(root, tmp_path / "hf", format="hf", side_folder=given)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"model": 3}', '{"model": {"vocab": {"a": "x"}}}', '{"model": {"vocab": {"a": -1}}}']
)
def test_a_damaged_tokenizer_is_named(root, tmp_path, text):
    given = tokenizer(tmp_path / "t", 3)
    (given / "tokenizer.json").write_text(text)
    with pytest.raises(FormatError, match=r"t/tokenizer\.json"):
        convert(root, tmp_path / "hf", format="hf", side_folder=given)


def test_a_given_tokenizer_replaces_the_other_whole(tmp_path):
    source = tokenizer(make_llama(tmp_path / "hf"), 151)
    (source / "merges.txt").write_text("")
    root = convert(source, tmp_path / "m", format="torch_dist")
    given = tokenizer(tmp_path / "t", 150)
    names = {p.name for p in convert(root, tmp_path / "back", format="hf", side_folder=given).iterdir()}
    assert "tokenizer.json" in names and "merges.txt" not in names and "generation_config.json" in names


def test_tiktoken_lists_are_told_from_sentencepiece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"".join(b"YWJj %d\n" % i for i in range(7)))
    found = tokens.count(files(tmp_path))
    assert found.ids == 7 and not found.bare and tokens.special_ids(files(tmp_path)) == {}
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01 no model")
    with pytest.raises(FormatError, match="neither a SentencePiece model"):
        tokens.count(files(tmp_path))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not here")
class TestMegatronLlm:
    """Its root keeps a SentencePiece model; five tokens that its training program added are in no file."""

    ROOT = GOLDEN / "llama2-trained/megatron-trained"

    @pytest.fixture
    def root(self, tmp_path):
        shutil.copytree(self.ROOT, tmp_path / "root", copy_function=shutil.copyfile)
        (tmp_path / "root").chmod(0o755)
        shutil.copyfile(GOLDEN / "llama2-trained/tokenizer.model", tmp_path / "root/tokenizer.model")
        return tmp_path / "root"

    def plan(self, root, rows, **options):
        from mconv.convert.checkpoint.open import open_checkpoint

        config = self.config(root.parent, rows)
        found = open_checkpoint(root, vocab_size=rows, dialect="megatron-llm", config=config)
        return plan.make(found, root.parent / "hf", format="hf", **options)

    def config(self, folder, rows):
        values = json.loads((GOLDEN / "llama2-trained/hf-export/config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "vocab_size": rows}))
        return folder / "config.json"

    def test_found_and_whole(self, root):
        made = self.plan(root, 384)
        assert "tokenizer.model" in made.side_files and not made.notes
        rewrite(made, step="test")
        config = json.loads((root.parent / "hf/config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)

    def test_found_and_five_short_is_left_out(self, root):
        made = self.plan(root, 389)
        assert not made.side_files and "384 pieces" in made.notes[0] and "389 rows" in made.notes[0]

    def test_given_and_five_short_is_refused(self, root):
        with pytest.raises(MconvError, match=r"384 pieces.*389 rows.*5 tokens"):
            self.plan(root, 389, side_folder=root)

    def test_what_the_peer_exported_has_five_too_many(self, root):
        with pytest.raises(MconvError, match="knows 389 ids, the model's embedding has 384 rows"):
            self.plan(root, 384, side_folder=GOLDEN / "llama2-trained/hf-export")


def test_config_json_without_the_original(root, tmp_path):
    """Both spellings of what transformers 4 and 5 ask for, and both ids."""
    out = convert(root, tmp_path / "hf", format="hf", side_folder=tokenizer(tmp_path / "t", 151))
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and "rope_scaling" in config
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert same(tensors(out), tensors(root.parent / "hf"))
