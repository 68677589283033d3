"""Broken files and inputs, from seeds; `tests/data/fuzz_readers.py` runs longer and guided by coverage."""

import os

import pytest
from fuzz_readers import READERS, fuzz, pictures

from crossvlt_hf.processing_crossvlt import to_rgb


INPUTS = int(os.environ.get("CROSSVLT_FUZZ_INPUTS", "20"))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_broken_files(name, tmp_path):
    answers = fuzz(name, INPUTS, seed=0, work=tmp_path)
    assert answers.total() == INPUTS
    assert not [answer for answer in answers if answer.startswith("CRASH")]
    assert len(answers) > 1  # some are read, others refused


PICTURES = pictures()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is damaged
@pytest.mark.parametrize("form", sorted({form for form, _ in PICTURES}))
def test_a_cut_or_damaged_picture_of_any_format(form, tmp_path):
    """Whatever Pillow's readers raise is an OSError or ValueError."""
    path, refused = tmp_path / "picture", 0
    for data in [data for (own, _), data in PICTURES.items() if own == form][:2]:
        damaged = [data[: len(data) * share // 6] for share in range(1, 6)]
        damaged += [data[:at] + bytes([255 - data[at]]) + data[at + 1 :] for at in range(0, min(len(data), 400), 23)]
        for content in damaged:
            path.write_bytes(content)
            try:
                to_rgb(path)
            except (OSError, ValueError):
                refused += 1
    assert refused
