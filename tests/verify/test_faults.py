"""Each fault of the catalogue is caught, in fp32 and bf16 weights; the models that it is planted in pass without it."""

import pytest
import torch
from faults import DTYPES, FAULTS, MODELS, acting, clean, converted, plant
from judge import report

from mconv.convert.opening import open_checkpoint
from mconv.errors import ConfigError, MconvError
from mconv.verify import digests

LENGTH = 512
NAMED = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMED)
def test_a_planted_fault_is_caught(root, name, dtype):
    fault = NAMED[name]
    pair = plant(fault, root, dtype)
    with acting(fault):
        try:
            found = report(*pair, length=LENGTH)
        except MconvError:
            return
    print(name, dtype, found["relative_max"], found["failures"])
    assert not found["passed"]
