"""Records as data sets have them: every field is claimed or stops, and a bad record need not cost the rest."""

import gzip
import json
import pickle
from collections import Counter
from functools import partial

import jobs
import pytest
from transformers.utils import chat_template_utils

from mconv.errors import FormatError
from mconv.train.data import bad_records
from mconv.train.data.bad_records import BadRecord, Kind, RecordLocation
from mconv.train.data.chat import Role
from mconv.train.data.claims import LEARNT, MASKED, RECORD, TURN, Keys, Use
from mconv.train.data.conversation import talk_of
from mconv.train.data.instruct import Encoding, instruct
from mconv.train.data.instruction import open_conversations, rows
from mconv.train.data.reading.lines import JsonLines
from mconv.train.data.tokenize import tokenize
from mconv.train.data.tokenizers.types import load

pytestmark = pytest.mark.once

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RICH = (  # one that writes tools, documents, a date, reasoning, names, calls and their ids, and takes lists of parts
    "{% if date is defined %}<date>{{ date }}\n{% endif %}"
    "{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for d in documents or [] %}<doc>{{ d.title }}: {{ d.text }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}"
    "{% if m.tool_call_id %} for {{ m.tool_call_id[-4:] }}{% endif %}{{ '\n' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content.strip() }}</think>\n{% endif %}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content or [] %}{{ p.text }}{% endfor %}"
    "{% endif %}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICKY = (  # one that has no place for a developer, and writes of a tool's turn the text alone
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant', 'tool') %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = RICH.replace(  # one that writes a place for thoughts in the last answer alone
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content.strip() }}</think>\n{% endif %}",
    "{% if loop.last and m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>\n{% endif %}",
)
SYSTEM, ASK = {"role": "system", "content": "be kind"}, {"role": "user", "content": "who is it"}
TELL = {"role": "assistant", "content": "a friend"}
CALL = {"id": "call0001", "type": "function", "function": {"name": "look", "arguments": {"at": "door"}}}
TEXT_PART = {"type": "text", "text": "is it"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALLED = [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "a cat"}, TELL]
FROM = [{"from": "human", "value": "who is it"}, {"from": "gpt", "value": "a friend"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that knows the two marks of ChatML as one token each, with the richest template."""
    from transformers import AutoTokenizer

    made = jobs.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), jobs.texts())
    fast = AutoTokenizer.from_pretrained(made)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = RICH
    fast.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def parts(record, tokenizer, template=RICH, **keys):
    """The parts of a record's text by a chat template."""
    from mconv.train.data.templates import rendered

    ignore = frozenset(keys.pop("ignore", ()))
    tokenizer.chat_template = template
    return rendered(talk_of(record, Keys(**keys), ignore), tokenizer)


def turns(*turns, **fields):
    return {"messages": list(turns), **fields}


EQUAL = {
    "plain": (turns(ASK, TELL), [ASK, TELL], {}),
    "a system turn": (turns(SYSTEM, ASK, TELL), [SYSTEM, ASK, TELL], {}),
    "from and value": ({"conversations": FROM}, [ASK, TELL], {}),
    "in capitals": ({"conversations": [{**FROM[0], "from": "User"}, {**FROM[1], "from": "Assistant"}]}, [ASK, TELL], {}),
    "a record's system text": ({"system": "be kind", "conversations": FROM}, [SYSTEM, ASK, TELL], {}),
    "said twice": (turns(SYSTEM, ASK, TELL, system="be kind", prompt="who is it"), [SYSTEM, ASK, TELL], {}),
    "no system text": (turns(ASK, TELL, system=""), [ASK, TELL], {}),
    "a key for it": (turns(ASK, TELL, sys="be kind"), [SYSTEM, ASK, TELL], {"system": "sys"}),
    "both lists, the same": (turns(ASK, TELL, conversations=FROM), [ASK, TELL], {}),
    "question and answer": ({"question": "who is it", "answer": "a friend"}, [ASK, TELL], {}),
    "alpaca": ({"instruction": "who is it", "input": "", "output": "a friend", "history": []}, [ASK, TELL], {}),
    "alpaca's input": (
        {"instruction": "who", "input": "is it", "output": "a friend"},
        [{"role": "user", "content": "who\nis it"}, TELL],
        {},
    ),
    "alpaca's history": (
        {"system": "be kind", "instruction": "who is it", "output": "a friend", "history": [["who is it", "a friend"]]},
        [SYSTEM, ASK, TELL, ASK, TELL],
        {},
    ),
    "keys beside alpaca's": (
        {"ask": "who", "input": "is it", "reply": "a friend", "history": [["who is it", "a friend"]]},
        [ASK, TELL, {"role": "user", "content": "who\nis it"}, TELL],
        {"question": "ask", "answer": "reply"},
    ),
    "prompt and completion": ({"prompt": "who is it", "completion": "a friend"}, [ASK, TELL], {}),
    "origin and rating": (turns(ASK, TELL, id=7, source="x", category="y", score=0.5), [ASK, TELL], {}),
    "nothing said": (turns({**ASK, "name": None}, {**TELL, "tool_calls": []}, odd=None, more=""), None, {}),
    "reasoning": (turns(ASK, {**TELL, "reasoning_content": " think "}), None, {}),
    "reasoning by another name": (turns(ASK, {**TELL, "thinking": "think"}), None, {}),
    "reasoning by two names": (turns(ASK, {**TELL, "thinking": "think", "reasoning": "think"}), None, {}),
    "names": (turns({**ASK, "name": "ann"}, {**TELL, "name": "bob"}), None, {}),
    "a developer": (turns({"role": "developer", "content": "be kind"}, ASK, TELL), None, {}),
    "calls": (turns(*CALLED, tools=TOOLS), None, {}),
    "null beside calls": (turns(ASK, {**CALLED[1], "content": None}, *CALLED[2:], tools=TOOLS), None, {}),
    "tools as JSON": (turns(*CALLED, tools=json.dumps(TOOLS)), CALLED, {}),
    "an id": (turns(*CALLED[:2], {**CALLED[2], "tool_call_id": "call9999"}, TELL), None, {}),
    "who observes": ({"conversations": [*FROM, {"from": "observation", "value": "a cat"}, FROM[1]]},
                     [ASK, TELL, CALLED[2], TELL], {}),
    "documents": (turns(ASK, TELL, documents=[{"title": "cats", "text": "purr"}]), None, {}),
    "a list of parts": (turns({**ASK, "content": [{"type": "text", "text": "who"}, TEXT_PART]}, TELL),
                        None, {}),
    "variables": (turns(ASK, TELL, chat_template_kwargs={"date": "today"}), None, {}),
    "switches": (turns({**ASK, "train": False}, {**TELL, "weight": 1}, loss=True), None, {}),
}  # fmt: skip


RENAMED = ("reasoning by another name", "reasoning by two names")


@pytest.mark.parametrize("name", EQUAL)
def test_the_text_is_what_apply_chat_template_gives(name, tokenizer):
    """Equal to transformers' own, whose arguments are the record's fields; each answer is told apart."""
    record, messages, keys = EQUAL[name]
    if name in RENAMED and not hasattr(chat_template_utils, "_REASONING_FIELDS"):  # an older transformers
        with pytest.raises(BadRecord, match="has 'thinking', which the tokenizer's chat template does not write"):
            parts(record, tokenizer, **keys)
        return
    made = parts(record, tokenizer, **keys)
    tools = TOOLS if record.get("tools") else None
    variables = record.get("chat_template_kwargs", {})
    wanted = tokenizer.apply_chat_template(
        messages or record["messages"], tools=tools, documents=record.get("documents"), tokenize=False, **variables
    )
    assert "".join(text for _, text in made) == wanted
    answers = [turn for turn in messages or record["messages"] if turn["role"] == "assistant"]
    said = [text for role, text in made if role is Role.ASSISTANT]
    assert len(said) == len(answers) and all(text.endswith("<|im_end|>\n") for text in said)
    assert name == "names" or not any("<|im_start|>" in text for text in said), "the header is given, and no answer"


def test_the_template_sees_each_field(tokenizer):
    """Planted: a record without it has another text, or the table above would prove nothing of it."""
    for name in ("reasoning", "names", "calls", "an id", "documents", "variables", "alpaca's history", "a system turn"):
        assert "".join(text for _, text in parts(EQUAL[name][0], tokenizer)) != "".join(
            text for _, text in parts(EQUAL["plain"][0], tokenizer)
        ), name
    text = "".join(text for _, text in parts(turns(*CALLED, tools=TOOLS), tokenizer))
    assert '<tools>[{"type": "function"' in text and '<call>{"name": "look"' in text


def test_tools_choose_the_template_that_is_named_for_them(tokenizer):
    named = {"default": CHATML, "tool_use": RICH}
    assert "<tools>" in parts(turns(*CALLED, tools=TOOLS), tokenizer, named)[0][1]
    assert parts(turns(ASK, TELL, tools=[]), tokenizer, named) == parts(turns(ASK, TELL), tokenizer, CHATML)


def test_answers_without_a_place_for_thoughts_are_found(tokenizer):
    """A template may write less of an answer once more turns follow: the text is transformers' all the same."""
    record = turns(*CALLED, ASK, {**TELL, "reasoning_content": "hm"}, tools=TOOLS)
    made = parts(record, tokenizer, THINKS)
    assert "".join(text for _, text in made) == tokenizer.apply_chat_template(
        record["messages"], tools=TOOLS, tokenize=False
    )
    said = [text for role, text in made if role is Role.ASSISTANT]
    assert [text[:8] for text in said] == ['<call>{"', "a friend", "<think>h"]
    assert all(text.endswith("<|im_end|>\n") and text.count("<|im") == 1 for text in said)
    with pytest.raises(BadRecord, match="turn 1 has 'reasoning_content', which the tokenizer's chat template does not"):
        parts(turns(ASK, {**TELL, "reasoning_content": "hm"}, ASK, TELL), tokenizer, THINKS)


def test_what_the_order_of_calls_says_need_not_be_written(tokenizer):
    """A template without ids and names of tools loses nothing where their order is that of the calls."""
    told = {"role": "tool", "content": "a cat", "tool_call_id": "call0001", "name": "look"}
    assert parts(turns(ASK, CALLED[1], told, TELL), tokenizer, PICKY)
    for change in ({"tool_call_id": "call0002"}, {"name": "hear"}):
        (name,) = change
        with pytest.raises(BadRecord, match=f"turn 2 has '{name}', which the tokenizer's chat template does not write"):
            parts(turns(ASK, CALLED[1], told | change, TELL), tokenizer, PICKY)


STOPS = {
    "a field of a record": (turns(ASK, TELL, odd=1, more="x"), Kind.UNKNOWN_FIELD,
                            "the record has 'odd' and 'more', .* --ignore-field odd --ignore-field more passes"),
    "a no of a record": (turns(ASK, TELL, use_it=False), Kind.UNKNOWN_FIELD, "--ignore-field use_it"),
    "a field of a turn": (turns(ASK, {**TELL, "odd": 1}), Kind.UNKNOWN_FIELD, "turn 1 has 'odd', which the tokenizer's"),
    "reasoning that is dropped": (turns(ASK, {**TELL, "reasoning_content": "think"}), Kind.UNKNOWN_FIELD,
                                  "turn 1 has 'reasoning_content', which the tokenizer's chat template does not write"),
    "a name that is dropped": (turns({**ASK, "name": "ann"}, TELL), Kind.UNKNOWN_FIELD, "turn 0 has 'name'"),
    "tools that are dropped": (turns(ASK, TELL, tools=TOOLS), Kind.UNKNOWN_FIELD, "the record has 'tools', which"),
    "documents that are dropped": (turns(ASK, TELL, documents=[{"text": "x"}]), Kind.UNKNOWN_FIELD, "has 'documents'"),
    "calls that are dropped": (turns(*CALLED), Kind.UNKNOWN_FIELD, "turn 1 has 'tool_calls'"),
    "a variable unread": (turns(ASK, TELL, chat_template_kwargs={"date": 1}), Kind.UNKNOWN_FIELD, "not read"),
    "a variable that is not its own": (turns(ASK, TELL, chat_template_kwargs={"chat_template": "x"}), Kind.UNKNOWN_FIELD,
                                       "has 'chat_template', which a record may not set"),
    "a loop's variable": (turns(ASK, TELL, chat_template_kwargs={"m": 1}), Kind.UNKNOWN_FIELD, "has 'm', which"),
    "half a character": (turns(ASK, TELL, **{"\ud800": 1}), Kind.UNKNOWN_FIELD, r"field '.ud800' pass"),
    "parts as a text": (turns({**ASK, "content": [TEXT_PART]}, TELL), Kind.TEMPLATE, "lists of parts"),
    "an image": (turns({**ASK, "content": [{"type": "image_url"}]}, TELL), Kind.WRONG_TYPE, "type 'image_url'"),
    "a marked part": (turns({**ASK, "content": [{"type": "text", "text": "who", "weight": 0}]}, TELL), Kind.UNKNOWN_FIELD,
                      "has 'weight'"),
    "two systems": (turns(SYSTEM, ASK, TELL, system="be rude"), Kind.CONTRADICTION, "system has the system's"),
    "a late system": (turns(ASK, SYSTEM, TELL, system="be kind"), Kind.CONTRADICTION, "another one of role system"),
    "two system texts": (turns(ASK, TELL, system="a", system_prompt="b"), Kind.CONTRADICTION, "system and system_prompt"),
    "two lists": (turns(ASK, TELL, conversations=FROM[:1]), Kind.CONTRADICTION, "messages and conversations are"),
    "two questions": ({"question": "a", "instruction": "b", "answer": "c"}, Kind.CONTRADICTION, "another question"),
    "a prompt nobody says": (turns(ASK, TELL, prompt="what"), Kind.CONTRADICTION, "prompt stands beside a list"),
    "a history beside": (turns(ASK, TELL, history=[["a", "b"]]), Kind.CONTRADICTION, "history stands beside a list"),
    "two texts": (turns({**ASK, "value": "x"}, TELL), Kind.CONTRADICTION, "content and value are both there"),
    "two roles": (turns({**ASK, "from": "gpt"}, TELL), Kind.CONTRADICTION, "role and from are both there"),
    "two thoughts": (turns(ASK, {**TELL, "thinking": "a", "reasoning": "b"}), Kind.CONTRADICTION, "thinking and "),
    "two switches": (turns(ASK, {**TELL, "train": True, "weight": 0}), Kind.CONTRADICTION, "train has .* weight does"),
    "a record's switch against a turn's": (turns(ASK, {**TELL, "train": True}, masked=True), Kind.CONTRADICTION,
                                           "excluded from the loss .masked., but not its turn 1"),
    "half a loss": (turns(ASK, {**TELL, "weight": 0.5}), Kind.SWITCH, "turn 1: weight is 0.5; it must be yes or no"),
    "a word": (turns(ASK, {**TELL, "loss": "some"}), Kind.SWITCH, "loss is 'some'"),
    "a number that masks or not": (turns(ASK, {**TELL, "mask": 1}), Kind.SWITCH, "mask is 1; it must be true or false"),
    "a question to learn": (turns({**ASK, "train": True}, TELL), Kind.CONTRADICTION, "only the assistant's turns are"),
    "who is masked": (turns(ASK, TELL, mask="assistant"), Kind.SWITCH, "must name the user's role"),
    "half a turn's loss": (turns(ASK, {**TELL, "train_detail": [{"begin_offset": 0}]}), Kind.UNKNOWN_FIELD, "_detail"),
    "null": ({"question": "a", "answer": None}, Kind.NULL, "answer is null"),
    "a null text": (turns(ASK, {**TELL, "content": None}), Kind.NULL, "its text is null"),
    "a number": (turns(ASK, {**TELL, "content": 7}), Kind.WRONG_TYPE, "its text is the number 7"),
    "half a history": ({"instruction": "a", "output": "b", "history": [["c"]]}, Kind.WRONG_TYPE, "history must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_nothing_claims_and_what_contradicts_itself_stops(name, tokenizer):
    record, kind, message = STOPS[name]
    with pytest.raises(BadRecord, match=message) as error:
        parts(record, tokenizer, CHATML)
    assert error.value.kind is kind and str(error.value).isascii()


def test_a_turn_that_the_template_drops_is_missed(tokenizer):
    with pytest.raises(BadRecord, match="does not write turn 0, of role 'developer'"):
        parts(turns({"role": "developer", "content": "be kind"}, ASK, TELL), tokenizer, PICKY)
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    with pytest.raises(BadRecord, match="does not write turn 0, of role 'system'"):
        parts(turns({"role": "system", "content": "who"}, ASK, TELL), tokenizer, deaf)


def test_ignored_fields_are_counted_and_not_handed_on(tokenizer, folder, tmp_path, capsys):
    from mconv.cli.app import run

    record = turns(ASK, {**TELL, "name": "bob", "odd": 1}, odd=2, id=3)
    assert parts(record, tokenizer, ignore=["name", "odd"]) == parts(turns(ASK, TELL), tokenizer)
    (tmp_path / "s.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(turns(ASK, TELL)))
    words = ["data", "instruct", f"{tmp_path}/s.jsonl", "--tokenizer", str(folder), "--prefix", f"{tmp_path}/d"]
    assert run([*words, "--template", "chatml", "--ignore-field", "name"]) == 2
    assert "s.jsonl:1: the record has 'odd'" in capsys.readouterr().err
    assert run([*words, "--template", "chatml", "--ignore-field", "name", "--ignore-field", "odd"]) == 0
    assert "ignored, as asked: name (1), odd (2)" in capsys.readouterr().out
    made = json.loads((tmp_path / "d-text.mconv.json").read_text())
    assert made["ignored"] == {"name": 1, "odd": 2} and made["unread"] == {"id": 1}


@pytest.mark.parametrize("template", ["tokenizer", "chatml"])
def test_no_loss_comes_from_an_answer_that_a_switch_excludes(template, folder, tmp_path):
    """Every spelling, of a turn and of a record, on the loss mask that training uses."""
    no = [*((name, value) for name in LEARNT for value in (False, 0, 0.0, "no")), *((name, True) for name in MASKED)]
    yes = [*((name, value) for name in LEARNT for value in (True, 1, "true")), *((name, 0) for name in MASKED)]
    records = [turns(ASK, {**TELL, name: value}, ASK, TELL) for name, value in [*no, ("mask", True)]]
    records += [turns(ASK, TELL, ASK, {**TELL, name: value}) for name, value in [*yes, ("mask", False)]]
    records += [turns(ASK, TELL, ASK, TELL, **{name: value}) for name, value in [*yes, ("mask", "User")]]
    records += [turns(ASK, TELL, ASK, TELL, **{name: value}) for name, value in no]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = instruct([tmp_path / "s.jsonl"], tmp_path / "d", tokenizer=folder, template=template)
    assert made.excluded == len(no) * 3 + 1
    options = {"seq_length": 96, "packing": False}
    told = rows(open_conversations(tmp_path / "d"), (0.0, 1.0), scalar_loss_mask=0.5, **options)
    sums = [float((told[n]["loss_mask"] == 1).sum()) for n in range(len(told))]
    full = sums[len(no) + 1]
    one, two, three = len(no) + 1, len(no) + len(yes) + 2, len(no) + 2 * len(yes) + 3
    assert full > 0 and set(sums[:one]) == {full / 2} and set(sums[one:three]) == {full} and set(sums[three:]) == {0}
    assert len(rows(open_conversations(tmp_path / "d"), (0.0, 1.0), scalar_loss_mask=0.0, **options)) == three < len(told)
    ids = [open_conversations(tmp_path / "d").text[n].tolist() for n in (0, one, two)]
    assert ids[0] == ids[1] == ids[2], "a switch changes who is learnt from, and no token"


def test_every_claimed_field_says_what_it_does():
    names = [name for group in RECORD.values() for name in group]
    assert not [name for name, count in Counter(names).items() if count > 1] and all(str(use) for use in Use)


BAD = [
    (b'{"text": "fine", "answer"', Kind.NOT_JSON),
    (b'{"text": "\xff", "question": "a", "answer": "b"}', Kind.NOT_UTF8),
    (b'{"text": "\\ud800", "question": "\\ud800", "answer": "b"}', Kind.NOT_UNICODE),
    (b'{"text": "\xed\xa0\x80"}', Kind.NOT_UTF8),
    (b'{"text": null, "question": "a", "answer": null}', Kind.NULL),
    (b'{"text": 7, "question": 7, "answer": "b"}', Kind.WRONG_TYPE),
    (b'{"text": ["a"], "messages": "a"}', Kind.WRONG_TYPE),
    (b'{"body": "x"}', Kind.NO_FIELD),
    (b"[1]", Kind.NO_OBJECT),
    (b'{"text": "a", "text": "b"}', Kind.CONTRADICTION),
    (b"[" * 100_000, Kind.NOT_JSON),
    (b'{"text": "' + b"x" * 300 + b'"}', Kind.TOO_LONG),
]
GOOD = [
    b'{"text": "one two", "question": "who", "answer": "me"}',
    b'{"text": "three", "question": "why", "answer": "so"}',
]


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A file with a good record, each kind of bad one, and another good one; lines are long from 256 letters on."""
    from mconv.train.data.reading import lines

    monkeypatch.setattr(lines, "LONGEST", 256)
    lines = [GOOD[0], *(line for line, _ in BAD if len(line) < 1000), b"[" * 1000, GOOD[1]]
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(GOOD))
    return path


WAYS = {
    "tokenize": (partial(tokenize), ["d.bin", "d.idx"], "d"),
    "instruct": (partial(instruct, template="chatml", ignore_fields=["text"]), ["d-text.bin", "d-role.idx"], "d-text"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [1 << 20, 64])
def test_bad_records_are_left_out_counted_and_listed(way, block, folder, mixed, tmp_path, monkeypatch):
    """The data is byte for byte that of the good records; an old reject file goes with the data it was beside."""
    from mconv.train.data.reading import lines

    monkeypatch.setattr(lines, "BLOCK", block)
    run, names, prefix = WAYS[way]
    made = run([mixed], tmp_path / "d", tokenizer=folder, on_bad_record="skip")
    run([tmp_path / "good.jsonl"], tmp_path / "good", tokenizer=folder)
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("d", "good", 1)).read_bytes(), name
    listed = [json.loads(line) for line in (tmp_path / f"{prefix}.rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in listed] == list(range(2, 14)) and {entry["file"] for entry in listed} == {
        str(mixed)
    }
    kinds = [str(kind) for line, kind in BAD if len(line) < 1000] + ["too long"]
    if way == "tokenize":
        assert [entry["kind"] for entry in listed] == kinds
    assert made.rejected == Counter(entry["kind"] for entry in listed) and made.reject_file == f"{prefix}.rejected.jsonl"
    assert len(made.first_rejected) == 3 and "s.jsonl.gz:2: not JSON" in made.first_rejected[0]
    run([tmp_path / "good.jsonl"], tmp_path / "d", tokenizer=folder, overwrite=True)
    assert not (tmp_path / f"{prefix}.rejected.jsonl").exists()


@pytest.mark.parametrize("way", WAYS)
def test_stop_says_the_kind_and_leaves_nothing(way, folder, mixed, tmp_path):
    for line, kind in BAD[:6]:
        (tmp_path / "one.jsonl").write_bytes(GOOD[0] + b"\n" + line)
        with pytest.raises(FormatError, match=rf"one.jsonl:2: .*kind: {kind}; --on-bad-record skip"):
            WAYS[way][0]([tmp_path / "one.jsonl"], tmp_path / "out" / "d", tokenizer=folder)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("way", WAYS)
def test_nothing_but_bad_records_is_an_error(way, folder, mixed, tmp_path):
    """So is a file of another format beside a good one: that is a misconfiguration, and no bad record."""
    run = partial(WAYS[way][0], tokenizer=folder, on_bad_record="skip")
    (tmp_path / "none.jsonl").write_bytes(b'{"text": null}\nnot json\n')
    with pytest.raises(FormatError, match=r"every record of the input is bad: 1 (null|field missing), 1 not JSON"):
        run([tmp_path / "none.jsonl"], tmp_path / "out" / "d")
    (tmp_path / "other.jsonl").write_bytes(b'{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(FormatError, match=r"other.jsonl: no record has the fields .* another format rather than 2 bad"):
        run([tmp_path / "good.jsonl", tmp_path / "other.jsonl"], tmp_path / "out" / "d")
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_of_parquet_are_records(folder, tmp_path):
    """Null cells and text that is not UTF-8, which pyarrow refuses for a whole batch; and conversations."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = arrow.array([b"one", None, b"\xff", b"two"], arrow.binary()).cast(arrow.string(), safe=False)
    parquet.write_table(arrow.table({"text": cells}), tmp_path / "t.parquet")
    found = jobs.documents(tmp_path / "t.parquet", key="text", bad=bad_records.skip)
    assert [found[0], found[3]] == ["one", "two"] and [found[n].kind for n in (1, 2)] == [Kind.NULL, Kind.NOT_UTF8]
    assert found[1].place == RecordLocation(str(tmp_path / "t.parquet"), 2)
    table = arrow.table({"messages": [[ASK, {**TELL, "weight": 0}], [ASK, TELL]], "id": [1, 2]})
    parquet.write_table(table, tmp_path / "c.parquet")
    made = instruct([tmp_path / "c.parquet"], tmp_path / "d", tokenizer=folder)
    assert (made.documents, made.excluded, made.unread) == (2, 1, {"id": 2})


def test_processes_give_the_same(folder):
    """What a process of --workers is sent and sends back, bad records and errors included."""
    how = Encoding(
        tokenizer=load(folder),
        template="chatml",
        keys=Keys(),
        ignore=frozenset(),
        bad=bad_records.skip,
        bos=None,
        eos=None,
        dtype="uint16",
        vocab_size=200,
    )
    batch = JsonLines(file="s", first=1, size=9, block=b'{}\n{"question": "a", "answer": "b"}\nx')
    made = pickle.loads(pickle.dumps(how)).open()(pickle.loads(pickle.dumps(batch)))
    assert [one.place.line for one in made.rejected] == [1, 3] and made.records == 3
    assert [len(pair.lengths) for pair in made.pairs] == [1, 1]
    sent = pickle.loads(pickle.dumps(made))
    assert sent.rejected == made.rejected and (sent.pairs[0].ids == made.pairs[0].ids).all()
    error = pickle.loads(pickle.dumps(BadRecord(Kind.NULL, "why", RecordLocation("s", 3))))
    assert (error.kind, error.place, str(error)[:9]) == (Kind.NULL, RecordLocation("s", 3), "s:3: why ")


def test_the_commands_say_what_was_left_out(folder, mixed, tmp_path, capsys):
    from mconv.cli.app import run

    words = ["data", "tokenize", str(mixed), "--tokenizer", str(folder), "--prefix", f"{tmp_path}/d"]
    assert run(words) == 2 and "s.jsonl.gz:2: not JSON" in capsys.readouterr().err
    assert run([*words, "--on-bad-record", "skip"]) == 0
    said = capsys.readouterr().out
    assert (
        "12 bad records left out (" in said and "all are listed in d.rejected.jsonl" in said and "gz:3: the text" in said
    )


def test_the_page_lists_every_field_that_is_claimed():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    claimed = {name for table in (RECORD, TURN) for names in table.values() for name in names}
    assert [name for name in sorted(claimed) if f"`{name}`" not in page] == []
    assert [str(kind) for kind in Kind if f"`{kind}`" not in page] == []
