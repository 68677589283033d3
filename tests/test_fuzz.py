"""Broken files and inputs, from seeds; `tests/fuzz_readers.py` runs longer and guided by coverage."""

import os

import pytest
from fuzz_readers import READERS, fuzz


INPUTS = int(os.environ.get("CROSSVLT_FUZZ_INPUTS", "60"))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_broken_files(name, tmp_path):
    answers = fuzz(name, INPUTS, seed=0, work=tmp_path)
    assert answers.total() == INPUTS
    assert not [answer for answer in answers if answer.startswith("CRASH")]
    assert len(answers) > 1  # some are read, others refused
