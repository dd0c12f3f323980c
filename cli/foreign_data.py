"""Option names of other programs that prepare training data, for the commands of `mconv data`."""

from collections.abc import Mapping

_DIVIDED = "the work is divided automatically; --workers is enough"
_IN_OUT = {
    "input": "SOURCES", "input_file": "SOURCES", "data_path": "SOURCES", "dataset": "SOURCES", "dataset_path": "SOURCES",
    "output_prefix": "--out", "output": "--out", "output_dir": "--out", "output_path": "--out", "out_path": "--out",
    "save": "--out", "o": "--out", "num_workers": "--workers", "num_proc": "--workers",
}  # fmt: skip
_TAKEN = {name: "--input" if ours == "SOURCES" else ours for name, ours in _IN_OUT.items() if name != "input"}
_BOTH = {
    **{name: ours for name, ours in _TAKEN.items() if name != "output_prefix"},
    "tokenizer_name": "--tokenizer", "tokenizer_name_or_path": "--tokenizer", "model_name_or_path": "--tokenizer",
    "partitions": "one file is written; --workers is enough",
    "find_optimal_num_workers": "mconv data bench",
    "chunk_size": _DIVIDED,
    "dataset_impl": "the only format is megatron-core's .bin and .idx",
    "keep_sequential_samples": "the order of the input is always kept",
    "append_bos": "--prepend-bos", "add_bos": "--prepend-bos",
    "trust_remote_code": "code from a model's repository is never run, and is not needed",
}  # fmt: skip
_SEPARATE = "documents stay whole: sentences matter to BERT, which mconv does not train"
DATA_ROWS: Mapping[str, Mapping[str, str]] = {
    "data tokenize": {
        **_BOTH, "json_key": "--key", "text_column": "--key", "text_key": "--key",
        "content_key": "--key", "column": "--key", "add_eod": "--append-eod", "append_eos": "--append-eod",
        "split_sentences": _SEPARATE, "keep_newlines": _SEPARATE, "lang": _SEPARATE, "keep_empty": _SEPARATE,
    },
    "data instruct": {
        **_BOTH, "chat_template": "--template", "conversation_template": "--template",
        "messages_column": "--messages-key", "prompt_column": "--question-key", "response_column": "--answer-key",
        "json_keys": "--messages-key",
        "system_default": "the system turn comes from the record, or from the template",
        "do_packing": "samples are packed while training: `mconv train --packing`",
        "max_seq_length": "samples are cut while training: `mconv train --seq-length`",
        "seq_length": "samples are cut while training: `mconv train --seq-length`",
    },
    "data mix": {
        **dict.fromkeys(("output_dir", "output_folder", "out_dir"), "--out"), "data_path": "--data",
        **dict.fromkeys(("input", "datasets", "paths"), "--folders"), "ratios": "--weights",
    },
    "data merge": {
        **dict.fromkeys(("inputs", "input_prefixes"), "SOURCES"), "output": "--out", "output_path": "--out",
        "multimodal": "multimodal data is not supported",
    },
    "data dumps": {
        **dict.fromkeys(("dataset", "input", "input_folder"), "--dataset-folder"),
        **dict.fromkeys(("text_key", "content_key"), "--key"),
        "tokenizer_name_or_path": "--tokenizer", "output_dir": "--out",
        **dict.fromkeys(("n_tasks", "n_workers", "num_workers"), "--workers"), "file_format": "--format",
        "paths_file": "--dump, its number", "eos_token": "the tokenizer's EOS token is put after each document",
        "logging_dir": "results are written to a table in --metadata",
    },
    "data export": {
        **_TAKEN, "column": "--key", "text_column": "--key", "json_keys": "--key",
        **dict.fromkeys(("num_workers", "num_proc"), "one process writes; reading is what takes the time"),
    },
    "data stats": dict.fromkeys(("input", "data_path", "data"), "PATHS"),
    "data discover": {"min_tokens": "--seq-length, one less", "data_path": "FOLDERS", "input": "FOLDERS"},
    "data dedup": {
        **{name: ours for name, ours in _BOTH.items() if name in _IN_OUT}, "path": "--input",
        "column": "--key", "text_column": "--key", "text_key": "--key",
        "ngram_size": "--ngram", "n_grams": "--ngram", "b": "--bands", "r": "--rows", "num_buckets": "--bands",
        "hashes_per_bucket": "--rows", "num_permutations": "--num-perm", "jaccard_threshold": "--threshold",
        "similarity_threshold": "--threshold", "check_false_positive": "--verify", "cache_dir": "--work",
        "min_length": "a shorter text than --ngram is one n-gram, and stays unless it is a duplicate",
        "hash_func": "rensa's hash is the only one", "hash_bits": "signatures have 32 bits a permutation",
        "local": "sources are always files", "batch_size": _DIVIDED, "use_auth_token": "sources are always files",
    },
}  # fmt: skip
