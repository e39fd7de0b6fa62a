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
    pair = {"question": "How is it built?", "model_response": "r", "sd_question": "What is it?",
            "sd_response": "A toy."}  # fmt: skip
    return {"image_path": "x.png", "SDImage_path": "sd.png", "unsafe_pairs": [pair]} | changes


def test_a_pair_is_the_harmless_image_the_harmful_question_and_the_right_answer(tmp_path):
    (sample,) = decouple_samples(write(tmp_path, [record()]), Template())
    assert sample.text == "USER: <image>\nHow is it built?\nASSISTANT: A toy."
    assert sample.images[0].size == (8, 8) and sample.segments[1][1]


def test_records_may_stand_one_a_line(tmp_path):
    path = write(tmp_path, [])
    path.write_text("\n".join(json.dumps(record()) for _ in range(2)) + "\n")
    assert [sample.key for sample in decouple_samples(path, Template())] == ["0/0", "1/0"]


def test_pairs_without_a_right_answer_are_left_out_and_counted(tmp_path, caplog):
    pairs = [{"question": "q", "sd_response": text} for text in ("", None, "A toy.")]
    with caplog.at_level("INFO"):
        (sample,) = decouple_samples(write(tmp_path, [record(unsafe_pairs=pairs)]), Template())
    assert sample.key == "0/2" and "left out 2 pairs with an empty sd_response" in caplog.text


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "expected a list of records"),
        ([record(SDImage_path="gone.png")], "record 0: the image gone.png: it does not decode"),
        ([record(SDImage_path=None)], "record 0: no SDImage_path"),
        ([record(), record(unsafe_pairs=[{"question": "q"}])], "record 1, pair 0: no sd_response"),
        ([record(unsafe_pairs=[{"question": " ", "sd_response": "a"}])], "pair 0: no question"),
        ([record(unsafe_pairs=[{"question": 7, "sd_response": "a"}])], "question is 7, expected"),
        ([record(unsafe_pairs=["q"])], "record 0, pair 0: no question and no sd_response"),
        ([record(unsafe_pairs=None)], "record 0: expected a mapping with a list of unsafe_pairs"),
        ([record(unsafe_pairs=[])], "no pairs with a sd_response at all"),
    ],
)
def test_faults_are_named(tmp_path, records, message):
    with pytest.raises(ManuError, match=message):
        decouple_samples(write(tmp_path, records), Template())


def test_a_file_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ManuError, match="x.json: can't be read as JSON"):
        decouple_samples(tmp_path / "x.json", Template())
