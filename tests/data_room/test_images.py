"""Image files become the pixels that `datasets` gives, or an error that says why not."""

import io
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from manu_jax.data.images import decode
from manu_jax.fingerprint import image_digest
from manu_jax.types import ManuError

RANDOM = np.random.default_rng(0)
RGB = Image.fromarray(RANDOM.integers(0, 256, (12, 20, 3), dtype=np.uint8))
RGBA = Image.fromarray(RANDOM.integers(0, 256, (12, 20, 4), dtype=np.uint8))
DEEP = Image.fromarray(RANDOM.integers(0, 65536, (12, 20), dtype=np.uint16))


def encoded(image, kind, **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, "JPEG", exif=exif.tobytes())


FILES = {
    **{f"EXIF orientation {number}": turned(number) for number in range(1, 9)},
    "palette": encoded(RGB.quantize(16), "PNG"),
    "palette with a transparent colour": encoded(RGB.quantize(16), "PNG", transparency=3),
    "RGBA": encoded(RGBA, "PNG"),
    "16-bit": encoded(DEEP, "PNG"),
    "CMYK": encoded(RGB.convert("CMYK"), "JPEG"),
    "animated": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_pixels_are_those_of_datasets(name, tmp_path):
    found = decode(FILES[name])
    expected = datasets.Image().decode_example({"bytes": FILES[name], "path": None}).convert("RGB")
    assert found.mode == "RGB" and found.size == expected.size
    assert found.tobytes() == expected.tobytes()
    (tmp_path / "file").write_bytes(FILES[name])
    assert decode(tmp_path / "file").tobytes() == found.tobytes()


@pytest.mark.parametrize("orientation", [1, 6])
def test_of_a_file_much_smaller_than_its_pixels_the_image_is_decoded_again_anywhere(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.new("RGB", (300, 200), "teal"), "JPEG", exif=exif.tobytes())
    image = decode(content)
    again = pickle.loads(pickle.dumps(image.decode_again))()
    assert image_digest(again) == image_digest(image)
    assert not hasattr(image.rotate(90), "decode_again")
    assert not hasattr(decode(FILES["RGBA"]), "decode_again")


def test_a_turned_image_stands_upright_and_alpha_is_dropped():
    assert decode(FILES["EXIF orientation 6"]).size == (12, 20)
    colours = np.asarray(RGBA)[..., :3]
    np.testing.assert_array_equal(np.asarray(decode(FILES["RGBA"])), colours)


@pytest.mark.parametrize(
    "data", [b"", b"no image", FILES["RGBA"][:40], FILES["CMYK"][:-200], FILES["palette"][:200]]
)
def test_damage_is_told(data):
    with pytest.raises(ManuError, match=r"it does not decode \(.+\)\. Download it again"):
        decode(data)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ManuError, match=r"does not decode \(.*No such file or directory"):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("limit", [200, 100])  # of 240 pixels: Pillow warns, and refuses
def test_an_image_of_too_many_pixels_is_refused(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ManuError, match=f"more than {limit} pixels, Pillow's limit. Make it smal"):
        decode(FILES["RGBA"])


def test_any_flipped_byte_gives_an_image_or_the_error():
    random = np.random.default_rng(1)
    for number in range(300):
        data = bytearray(list(FILES.values())[number % len(FILES)])
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            assert decode(bytes(data)).mode == "RGB"
        except ManuError as error:
            assert "it does not decode" in str(error) or "more than" in str(error)
