"""Image files to pixels, the one place where a benchmark's images are decoded.

`datasets` decodes them (`Image(mode="RGB")`), as in MLLMU-Bench's own code: the first frame, turned
upright where the file has an EXIF orientation, then Pillow's own conversion to RGB. So a
transparent image loses its alpha and shows the colours beneath it, and 16-bit greys and CMYK become
what Pillow makes of them.
"""

import functools
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from manu_jax.types import ManuError

MUCH_SMALLER = 2  # a file is kept beside its pixels where it has so many times fewer bytes

# What Pillow's decoders raise on damaged files: hardly any of them checks what it reads.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    EOFError, RuntimeError, MemoryError, AssertionError, struct.error, zlib.error,
)  # fmt: skip


def decode(source: bytes | Path) -> Any:
    """Return the PIL image (RGB) of the bytes of an image file, or of the file at a path.

    Of a file that is much smaller than its pixels the image has `decode_again`, which takes no
    argument and returns it anew: that is what is sent to other processes. Raises ManuError with the
    reason where it does not decode, and where it has more pixels than Pillow's limit
    (`PIL.Image.MAX_IMAGE_PIXELS`): a small file may claim gigabytes.
    """
    image, content = _decoded(source)
    if MUCH_SMALLER * len(content) <= image.width * image.height * len(image.getbands()):
        image.decode_again = functools.partial(decode, content)
    return image


def _decoded(source: bytes | Path) -> tuple[Any, bytes]:
    import datasets
    from PIL import Image

    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on files that decode all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = datasets.Image(mode="RGB").decode_example({"path": None, "bytes": content})
            return image, content
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ManuError(
            f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's limit. Make it smaller."
        ) from None
    except _DAMAGE as error:
        reason = str(error).partition(" <_io.BytesIO")[0].partition(" '/")[0] or repr(error)
        raise ManuError(f"it does not decode ({reason}). Download it again.") from None
