"""Conversations to files: every format of them, every template, the ancestor's bytes."""

import gzip
import json
import shutil
from pathlib import Path

import jobs
import numpy as np
import pytest

from mconv.errors import FormatError, MconvError
from mconv.train.data.chat import Role
from mconv.train.data.claims import Keys
from mconv.train.data.index import open_index
from mconv.train.data.instruct import instruct
from mconv.train.data.instruction import open_conversations

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared/golden/megatron-llm/data-instruct"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # one that opens with BOS, joins the system's words to the first question, and ends answers with EOS
    "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{% set pre = messages[0]['content'] + ' | ' %}"
    "{% set rest = messages[1:] %}{% else %}{% set pre = '' %}{% set rest = messages %}{% endif %}"
    "{% if not rest %}{{ raise_exception('a question is missing') }}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}[INST] {{ (pre if loop.first else '') + m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
FORGETFUL = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else '...' }}")
SAID = "{{ m['content'] }}<|im_end|>"
MARKED = CHATML.replace(f"{SAID}\n", f"{{% generation %}}{SAID}{{% endgeneration %}}{{{{ '\n' }}}}")
LATE = (  # one that ends an answer where the next question begins, and the last one nowhere
    "{% for m in messages %}{% if m['role'] == 'user' %}{% if not loop.first %}</s>{% endif %}Q{{ m['content'] }}A"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TALK = [("system", "be kind"), ("user", "who is it"), ("assistant", "a friend"), ("user", "why"), ("assistant", "so")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that knows the two marks of ChatML as one token each."""
    from transformers import AutoTokenizer

    made = jobs.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), jobs.texts())
    fast = AutoTokenizer.from_pretrained(made)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.save_pretrained(made)
    return made


def with_template(folder, template, to):
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").write_text(template)
    return to


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def messages(talk):
    return {"messages": [{"role": role, "content": text} for role, text in talk]}


def said(prefix, number=0):
    """(ids, roles) of one conversation."""
    data = open_conversations(prefix)
    return data.text[number].tolist(), data.role[number].tolist()


def answers(prefix, folder, number=0):
    """What the assistant says in each of its turns, decoded."""
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(folder)
    ids, roles = (np.array(x) for x in said(prefix, number))
    edges = np.flatnonzero(np.diff((roles == Role.ASSISTANT).astype(int), prepend=0, append=0))
    return [fast.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden data is not here")
@pytest.mark.parametrize("case, system", [("chat", "instruction"), ("nosys", None)])
def test_the_ancestors_files_byte_for_byte(case, system, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    (tmp_path / "t").mkdir()
    shutil.copy(GOLDEN / "tokenizer.model", tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    fast = AutoTokenizer.from_pretrained(tmp_path / "t", legacy=True)  # a space before each piece, as of old
    fillers = ["<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>"] if case == "chat" else []  # its "new tokens"
    fast.add_special_tokens({"additional_special_tokens": [*fillers, "<|im_start|>", "<|im_end|>"]})
    PreTrainedTokenizerFast(tokenizer_object=fast.backend_tokenizer).save_pretrained(tmp_path / "t")
    keys = Keys(question="input", answer="output", system=system)
    made = instruct(
        [GOLDEN / "instruct.jsonl"], tmp_path / "d", tokenizer=tmp_path / "t", template="megatron-llm", keys=keys,
        ignore_fields=() if system else ["instruction"],
    )  # fmt: skip
    for kind in ("text", "role"):
        for suffix in (".bin", ".idx"):
            ours, theirs = tmp_path / f"d-{kind}{suffix}", GOLDEN / f"{case}-{kind}{suffix}"
            assert ours.read_bytes() == theirs.read_bytes(), ours
    assert made.documents == len(open_conversations(GOLDEN / case)) == 60


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "with marks around what is generated"])
def test_a_template_of_the_tokenizers_own(template, folder, tmp_path):
    """ChatML as the tokenizer spells it is ChatML by name: ids and roles; and the answers are what was said."""
    own = with_template(folder, template, tmp_path / "own")
    source = write(tmp_path / "s.jsonl", [messages(TALK), messages(TALK[1:3]), {"messages": []}])
    record = instruct([source], tmp_path / "a", tokenizer=own)
    instruct([source], tmp_path / "b", tokenizer=folder, template="chatml")
    assert all(said(tmp_path / "a", n) == said(tmp_path / "b", n) for n in range(2))
    assert [text.strip() for text in answers(tmp_path / "a", own)] == ["a friend<|im_end|>", "so<|im_end|>"]
    roles = said(tmp_path / "a")[1]
    assert sorted(set(roles)) == [0, 1, 2] and roles[0] == Role.SYSTEM and record.template == "tokenizer"
    assert (record.documents, record.empty, record.unended) == (2, 1, 0)
    assert record.answer_tokens == sum(said(tmp_path / "a", n)[1].count(2) for n in range(2))


def test_a_template_that_joins_turns(folder, tmp_path):
    """The system's words lie within a question here; the answers are found all the same, their EOS with them."""
    own = with_template(folder, INST, tmp_path / "own")
    made = instruct([write(tmp_path / "s.jsonl", [messages(TALK)])], tmp_path / "a", tokenizer=own, prepend_bos=True)
    assert [text.strip() for text in answers(tmp_path / "a", own)] == ["a friend</s>", "so</s>"]
    ids, roles = said(tmp_path / "a")
    assert ids[0] == made.prepend_bos != ids[1] and roles[0] == Role.PROMPTER and roles[-1] == Role.ASSISTANT


def test_answers_that_nothing_ends_are_told(folder, tmp_path, capsys):
    from mconv.cli.app import run

    own = with_template(folder, LATE, tmp_path / "own")
    source = write(tmp_path / "s.jsonl", [messages(TALK[1:]), messages(TALK[1:3])])
    words = ["data", "instruct", str(source), "--tokenizer", str(own), "--prefix", str(tmp_path / "d")]
    assert run(words) == 0 and "no special token ends the last answer of 2" in capsys.readouterr().out
    assert run([*words, "--append-eod", "--overwrite"]) == 0 and "no special token" not in capsys.readouterr().out


def test_a_tokenizer_that_does_not_tell_where_its_tokens_come_from_is_refused():
    from mconv.train.data.instruct import _roles

    spoken = [(Role.PROMPTER, "why"), (Role.ASSISTANT, "so")]
    assert _roles([0, 3], spoken) == [1, 2]
    with pytest.raises(FormatError, match="which tokens are those of the answer 'so'"):
        _roles([0, 0], spoken)


def test_every_way_to_write_a_conversation(folder, tmp_path):
    talk = TALK[:3]
    ways = [
        messages(talk),
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": t} for r, t in talk]},
        {"ask": talk[1][1], "reply": talk[2][1], "sys": talk[0][1]},
    ]
    keys = Keys(question="ask", answer="reply", system="sys")
    source = write(tmp_path / "s.jsonl", [*ways, {"messages": []}])
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    for name, path in (("a", source), ("b", tmp_path / "s.jsonl.gz")):
        made = instruct([path], tmp_path / name, tokenizer=folder, template="chatml", keys=keys)
        assert (made.documents, made.empty) == (3, 1)
    assert said(tmp_path / "a", 0) == said(tmp_path / "a", 1) == said(tmp_path / "a", 2) == said(tmp_path / "b", 2)


def test_marks_are_as_asked(folder, tmp_path):
    source = write(tmp_path / "s.jsonl", [messages(TALK)])
    plain = instruct([source], tmp_path / "a", tokenizer=folder, template="chatml")
    both = instruct([source], tmp_path / "b", tokenizer=folder, template="chatml", append_eod=True, prepend_bos=True)
    (ids, roles), (more, whose) = said(tmp_path / "a"), said(tmp_path / "b")
    assert more == [both.prepend_bos, *ids, both.append_eod] and whose == [0, *roles, 2]
    assert (plain.append_eod, plain.prepend_bos) == (None, None)


BAD = {
    "no turns": ({"text": "x"}, r"s.jsonl:2: no list of turns under messages or conversations.*has \['text'\]"),
    "no object": ([1], "s.jsonl:2: a record is list"),
    "turns are no list": ({"messages": "hello"}, "s.jsonl:2: the turns are str"),
    "a turn without a text": ({"messages": [{"role": "user"}]}, "s.jsonl:2: turn 0: needs a role and a text"),
    "a role of its own": ({"messages": [{"role": "narrator", "content": "x"}]}, "turn 0: role 'narrator' is none of"),
    "a call of a tool": (
        {"messages": [{"role": "gpt", "content": "x", "tool_calls": [{}]}]},
        "turn 0 has 'tool_calls', which --template chatml does not write; --ignore-field tool_calls",
    ),
    "tools": ({"messages": [], "tools": [{"name": "f"}]}, "s.jsonl:2: the record has 'tools', which --template chatml"),
    "half a character": ({"question": "\ud800", "answer": "x"}, "s.jsonl:2: the text is not Unicode"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_refused_with_their_line_and_leave_nothing(name, folder, tmp_path):
    record, message = BAD[name]
    with pytest.raises(FormatError, match=message):
        source = write(tmp_path / "s.jsonl", [messages(TALK), record])
        instruct([source], tmp_path / "out" / "d", tokenizer=folder, template="chatml")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_refusals(folder, tmp_path, monkeypatch):
    from mconv.train.data import templates

    monkeypatch.setattr(templates, "SECONDS", 0.3)
    source = write(tmp_path / "s.jsonl", [messages(TALK)])
    cases = [
        ({"tokenizer": folder}, "no chat template; give --template, one of chatml"),
        ({"tokenizer": folder, "template": "alpaca"}, "'alpaca'; it must be tokenizer or one of"),
        ({"tokenizer": with_template(folder, FORGETFUL, tmp_path / "f")}, "s.jsonl:1: .*writes turn 2 otherwise when"),
        ({"tokenizer": with_template(folder, INST, tmp_path / "i"), "talk": TALK[:1]}, "refuses it .a question is miss"),
        ({"tokenizer": with_template(folder, ENDLESS, tmp_path / "e")}, "s.jsonl:1: .* ran longer than 0.3 s"),
        ({"tokenizer": with_template(folder, "{{ ''.__class__.__mro__ }}", tmp_path / "u")}, "refuses it .* is unsafe"),
        ({"tokenizer": folder, "template": "chatml", "talk": TALK[:2]}, "no conversation with an answer"),
        ({"tokenizer": folder, "template": "chatml", "workers": 0}, "--workers is 0"),
    ]
    for options, message in cases:
        write(source, [messages(options.pop("talk", TALK))])
        with pytest.raises(MconvError, match=message):
            instruct([source], tmp_path / "d", **options)


def test_the_command(folder, tmp_path, capsys):
    from mconv.cli.app import run

    source = write(tmp_path / "s.jsonl", [{"question": "who", "answer": "me"}])
    words = ["data", "instruct", str(source), "--tokenizer", str(folder), "--prefix", str(tmp_path / "d")]
    assert run([*words, "--template", "chatml"]) == 0
    assert "1 conversations, " in capsys.readouterr().out and len(open_index(tmp_path / "d-role")) == 1
    assert run([*words, "--template", "chatml"]) == 2 and "already there" in capsys.readouterr().err
