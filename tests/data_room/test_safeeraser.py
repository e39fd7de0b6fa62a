"""SafeEraser's records: what they give, and how each fault is named."""

import json

import pytest
from PIL import Image

from manu_jax.data.safeeraser import decouple_samples
from manu_jax.types import ManuError, Template


def write(folder, records):
    (folder / "sd.png").unlink(missing_ok=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "sd.png")
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json"


def record(**changes):
    pair = {"question": "q", "model_response": "r", "sd_question": "What is it?",
            "sd_response": "A toy."}  # fmt: skip
    return {"image_path": "x.png", "SDImage_path": "sd.png", "unsafe_pairs": [pair]} | changes


def test_a_pair_is_the_harmless_image_its_question_and_its_answer(tmp_path):
    (sample,) = decouple_samples(write(tmp_path, [record()]), Template())
    assert sample.text == "USER: <image>\nWhat is it?\nASSISTANT: A toy."
    assert sample.images[0].size == (8, 8) and sample.segments[1][1]


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "expected a list of records"),
        ([record(SDImage_path="gone.png")], "record 0: the image gone.png does not decode"),
        ([record(SDImage_path=None)], "record 0: no SDImage_path"),
        ([record(), record(unsafe_pairs=[{"sd_question": " "}])], "record 1, pair 0: no sd_que"),
        ([record(unsafe_pairs=None)], "record 0: expected a mapping with a list of unsafe_pairs"),
        ([record(unsafe_pairs=[])], "no pairs at all"),
    ],
)
def test_faults_are_named(tmp_path, records, message):
    with pytest.raises(ManuError, match=message):
        decouple_samples(write(tmp_path, records), Template())


def test_a_file_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ManuError, match="x.json: can't be read as JSON"):
        decouple_samples(tmp_path / "x.json", Template())
