"""Silence warnings and logs of megatron-core, and of torch on its account, that do not concern our users."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

IMPORT_WARNINGS = (
    # Transformer Engine and Apex are optional, and `attention_backend` says what it takes
    (Warning, r".*(Transformer Engine|Apex).*(F|f)alling back"),
    # about moves within megatron-core and torch
    (DeprecationWarning, ""),
    # Python 3.12's, about backslashes in docstrings, where megatron-core has not been compiled before
    (SyntaxWarning, ""),
)
"""Category and pattern of what it warns of while it is imported."""

WARNINGS = (
    (DeprecationWarning, "", r"megatron\."),
    # notes on coming changes of torch, earned by megatron-core's calls
    (FutureWarning, "", ""),
    (Warning, "If you are using transformer_engine as the transformer implementation", ""),
    (UserWarning, r"The \.grad attribute of a Tensor that is not a leaf", ""),
    # of torch.distributed.checkpoint, about how megatron-core 0.19 calls it, and on a single rank
    (UserWarning, "The argument order of load has been changed", ""),
    (UserWarning, "torch.distributed is disabled, unavailable or uninitialized", ""),
    # from 0.17 on: its logs ask which rank they are of, where no ranks are needed
    (UserWarning, "Could not determine rank from torch.distributed", ""),
    # from 0.18 on: of modules that its optimizers import and do not use here
    (UserWarning, ".* is experimental and still under active development", ""),
)
"""Category, pattern and module of what it warns of in its own calls."""

LOGS = (
    # told wherever a CUDA toolkit, but no CUDA device, is found: from 0.17 on megatron-core imports what looks for one
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
    # on a CPU the device's generator, which is forked, is the CPU's: see `cpu`
    ("megatron.core.tensor_parallel.random", "CPU RNG state changed"),
    # from 0.19 on; HybridModel, which is to follow, reads the same checkpoints: NVIDIA/Megatron-LM#6071
    ("megatron.core.models.gpt.gpt_model", "GPTModel IS DEPRECATED"),
    # from 0.19 on: what its own `load` does with a checkpoint that has a common.pt
    ("megatron.core.dist_checkpointing.strategies.common", "load_common is deprecated"),
)
"""Logger and part of the message of what it logs."""


class _Drop(logging.Filter):
    """Drops the records of a logger that hold a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


def silence_logs() -> None:
    """Drop the messages of `LOGS`, from now on and for the whole process."""
    for name, text in LOGS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Drop) and one.text == text for one in logger.filters):
            logger.addFilter(_Drop(text))


@contextlib.contextmanager
def while_importing() -> Iterator[None]:
    """Keep from our users what megatron-core's import tells."""
    silence_logs()
    with warnings.catch_warnings():
        for category, message in IMPORT_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from our users what megatron-core's own calls earn it: notes on coming changes, in it and in torch."""
    with warnings.catch_warnings():
        for category, message, module in WARNINGS:
            warnings.filterwarnings("ignore", message, category, module)
        yield
