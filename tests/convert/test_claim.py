"""One notation for the keys of every file: what a table writes it reads back, and what no row claims stops in one way."""

import dataclasses
import json

import pytest

from mconv.convert.dialects import bridge
from mconv.convert.dialects.arguments import megatron_llm, megatron_lm
from mconv.convert.dialects.arguments.bridge import LAYOUT, STAGES
from mconv.convert.spelling import params
from mconv.convert.spelling.claim import ARG, CONFIG_KEY, accept, claim, claimed, refuse_claimed, written
from mconv.convert.spelling.keys import Alias, Field, Heads, Left
from mconv.errors import ConfigError
from mconv.shard.layout import Layout
from mconv.shard.stages import Uneven
from mconv.spec import ModelSpec, Rope

pytestmark = pytest.mark.once

SPEC = ModelSpec(
    family="", num_layers=4, hidden_size=48, ffn_hidden_size=64, num_attention_heads=8, num_query_groups=4, kv_channels=6,
    vocab_size=151, max_position_embeddings=256, norm_epsilon=1e-5, sliding_window=16,
    rope=Rope(kind="linear", base=5e5, factor=4.0),
)  # fmt: skip
GPT = dataclasses.replace(SPEC, norm="layer", activation="gelu", parallel_attention=True, qkv_bias=True, proj_bias=True,
                          mlp_bias=True, tied_embeddings=True, sliding_window=None)  # fmt: skip
META = params.Params(
    hidden_size=48, num_layers=4, num_attention_heads=8, num_query_groups=4, kv_channels=6, norm_epsilon=1e-5,
    ffn_hidden_size=None, multiple_of=8, ffn_dim_multiplier=0.5, vocab_size=-1, tied_embeddings=None,
    max_position_embeddings=None, max_seq_len=256, sliding_window=None, rope_theta=5e5, use_scaled_rope=True,
    rope_scaling_factor=8.0, rope_high_freq_factor=4.0,
)  # fmt: skip
MISTRAL = dataclasses.replace(META, ffn_hidden_size=64, sliding_window=16, tied_embeddings=True)
TABLES = {
    "megatron-lm": (megatron_lm.SPEC, [SPEC, GPT]),
    "megatron-llm": (megatron_llm.SPEC, [SPEC, GPT]),
    "megatron-lm layout": (megatron_lm.LAYOUT, [Layout(padded_vocab=256), Layout(tp=2, pp=2, vpp=2, padded_vocab=256)]),
    "megatron-lm stages": (megatron_lm.STAGES, [Uneven(), Uneven(first=1, last=0), Uneven(embedding=True, loss=True)]),
    "bridge": (bridge.TABLE, [SPEC]),
    "bridge stages": (STAGES, [Uneven(first=1)]),
    "params": (params.TABLE, [META, MISTRAL]),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_writes_it_reads_back(name):
    table, specs = TABLES[name]
    for spec in specs:
        out = written(table, spec)
        left = Left(out)
        fields = claim(table, left)
        assert {field: getattr(spec, field) for field in fields} == fields and len(fields) > 2
        assert not left, "a row writes a key that no row takes"


def test_rows_of_args_name_what_they_write():
    for table, spec in ((megatron_lm.SPEC, SPEC), (megatron_llm.SPEC, GPT), (LAYOUT[:3], Layout(padded_vocab=1))):
        assert written(table, spec).keys() <= claimed(table)


def test_all_that_is_wrong_is_told_at_once_under_the_name_of_its_file():
    rows = (Field("a", "x", int), Field("b", "y", bool), Alias("c", "d"), Field("d", "z", float, 1.0))
    left = Left({"a": "1", "b": 1, "c": 2, "d": 3, "e": 4}, prefix="thing.yaml: ")
    with pytest.raises(ConfigError) as caught:
        claim(rows, left, flag=ARG, ignore={"c", "e"})
    text = str(caught.value)
    assert "thing.yaml: 3 problems" in text and "thing.yaml: a is '1', not int" in text and "b is 1, not bool" in text
    assert "c is 2 but d, the same thing, is 3; a row claims c, so --ignore-arg does not let it pass" in text
    assert claim(rows, Left({"a": 1, "b": 1, "c": 2}, loose=True)) == {"x": 1, "y": True, "z": 2.0}
    with pytest.raises(ConfigError, match=r"^config\.json: a is missing, and it decides the architecture$"):
        claim(rows, Left({"b": True}))


def test_what_no_row_claims_stops_or_passes_by_its_name():
    left = Left({"novel": 3, "od-d": None, "password": "x"}, prefix="")
    names = r"novel=3, od-d=None, password=\(hidden\) of a thing, .*--ignore-arg novel --ignore-arg od-d"
    with pytest.raises(ConfigError, match=names):
        accept(left, of="a thing", flag=ARG)
    assert accept(left, of="a thing", ignore={"novel", "od-d"}, recorded={"password": "x", "novel": 4}) == dict(left)
    with pytest.raises(ConfigError, match="novel=3 of"):
        accept(left, of="a thing", flag=ARG, recorded={**left, "novel": 4})
    with pytest.raises(ConfigError, match="--ignore-config-key a, but the table claims that key"):
        refuse_claimed(CONFIG_KEY, {"a"})


@pytest.mark.parametrize("groups, width, found", [(4, 10, (4, 10)), (None, None, (8, 6)), ("absent", "absent", (2, 6))])
def test_heads_that_follow_from_others(groups, width, found):
    row = Heads(names=("dim", "n", "kv", "w"), groups=2)
    values = {"dim": 48, "n": 8, "kv": groups, "w": width}
    fields = row.read(Left({key: value for key, value in values.items() if value != "absent"}))
    assert (fields["num_query_groups"], fields["kv_channels"]) == found
    with pytest.raises(ConfigError, match="dim 50 is not a multiple of n 8"):
        dataclasses.replace(row, even=True).read(Left({"dim": 50, "n": 8}))


def test_a_depth_that_no_memory_holds_is_a_number_like_any_other(tmp_path):
    """A hostile config.json must not cost as much as it says."""
    from mconv.convert.families import described

    config = {"model_type": "qwen2", "num_hidden_layers": 10**30, "hidden_size": 64, "intermediate_size": 64,
              "num_attention_heads": 32, "vocab_size": 151}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert described(tmp_path).num_layers == 10**30
