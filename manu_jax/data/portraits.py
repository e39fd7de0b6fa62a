"""Draw the synthetic benchmark's pictures: portraits of people who do not exist, and plain shapes.

Everything is drawn with Pillow at four times the size and reduced, from features that a seed
chooses. No picture shows anybody.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 56  # pixels a side
SCALE = 4  # drawn larger by this
UNIT = SIZE * SCALE

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = (
    (255, 224, 196), (241, 194, 155), (214, 158, 112), (171, 113, 72), (128, 80, 50), (88, 55, 38),
)  # fmt: skip
HAIR_COLOURS: tuple[Colour, ...] = (
    (38, 32, 34), (104, 64, 36), (222, 178, 88), (190, 72, 32), (196, 196, 204), (58, 120, 150),
    (180, 70, 140),
)  # fmt: skip
BACKGROUNDS: tuple[Colour, ...] = (
    (86, 152, 214), (244, 184, 72), (112, 184, 120), (226, 112, 104), (156, 124, 200),
    (80, 188, 184), (240, 162, 190), (126, 136, 152),
)  # fmt: skip
SHIRTS: tuple[Colour, ...] = (
    (40, 66, 120), (198, 48, 56), (44, 122, 76), (246, 246, 240), (60, 60, 66), (242, 200, 60),
    (128, 60, 132), (232, 126, 48),
)  # fmt: skip
PATTERNS = ("plain", "stripes", "dots", "checks", "rays", "split")
HEADS = {  # half width and half height of the head, in sides of the picture
    "round": (0.235, 0.25),
    "oval": (0.205, 0.265),
    "square": (0.22, 0.25),
    "long": (0.18, 0.285),
}
HAIR = ("bald", "short", "spiky", "curly", "long", "bun", "mohawk", "bob")
HATS = ("none", "none", "none", "none", "none", "cap", "beanie", "top hat", "wide hat")
GLASSES = ("none", "none", "round", "square", "dark")
BEARDS = ("none", "none", "none", "moustache", "full", "goatee")
COLLARS = ("round", "collar", "stripes", "scarf")
MOUTHS = ("smile", "flat", "open")

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SHAPE_COLOURS: dict[str, Colour] = {
    "red": (214, 40, 44), "green": (40, 156, 70), "blue": (36, 84, 204), "yellow": (246, 212, 44),
    "purple": (132, 52, 168), "orange": (240, 130, 30), "black": (24, 24, 26),
    "brown": (122, 74, 36),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Features:
    """What a portrait looks like; the fields name entries of the tables above."""

    skin: Colour
    hair_colour: Colour
    hair: str
    face: str
    hat: str
    hat_colour: Colour
    glasses: str
    beard: str
    mouth: str
    shirt: Colour
    collar: str
    collar_colour: Colour
    background: Colour
    pattern: str


class Head(NamedTuple):
    """Where a head is: its middle, half its width and half its height, in drawn pixels."""

    x: float
    y: float
    width: float
    height: float


def choose_features(random: np.random.Generator, count: int) -> list[Features]:
    """Return `count` sets of features, each as unlike those before it as the best of 40 draws."""
    chosen: list[Features] = []
    for _ in range(count):
        draws = [_draw_features(random) for _ in range(40)]
        chosen.append(
            max(draws, key=lambda draw: min((_unlike(draw, c) for c in chosen), default=0))
        )
    return chosen


def portrait(features: Features, *, turn: float = 0.0, lean: float = 0.0) -> Image.Image:
    """Return the portrait, 56 × 56 RGB. turn: where the face looks, −1 to 1; lean: degrees."""
    figure = Image.new("RGBA", (UNIT, UNIT), (0, 0, 0, 0))
    _draw_figure(ImageDraw.Draw(figure), features, turn * 0.055 * UNIT)
    if lean:
        figure = figure.rotate(lean, Image.Resampling.BICUBIC, center=(UNIT / 2, UNIT))
    background = _background(features.background, features.pattern).convert("RGBA")
    picture = Image.alpha_composite(background, figure).convert("RGB")
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def transformed(features: Features, random: np.random.Generator) -> list[Image.Image]:
    """Return four other pictures of the same person: in pose, scale, colour and with noise."""
    side = random.choice((-1, 1))
    posed = portrait(features, turn=float(side), lean=float(side * random.uniform(4, 8)))
    plain = portrait(features, turn=float(random.uniform(-0.4, 0.4)))
    return [
        posed,
        _zoomed(plain, float(random.choice((0.82, 1.2)))),
        _recoloured(plain, random.uniform(0.8, 1.2, 3)),
        _with_noise(plain, random),
    ]


def shape_picture(shape: str, colour: str, random: np.random.Generator) -> Image.Image:
    """Return a picture of one shape of SHAPES in one colour of SHAPE_COLOURS, 56 × 56 RGB."""
    paper = int(random.integers(226, 250))
    picture = Image.new("RGB", (UNIT, UNIT), (paper, paper, paper))
    draw, ink = ImageDraw.Draw(picture), SHAPE_COLOURS[colour]
    radius = float(random.uniform(0.3, 0.38)) * UNIT
    x, y = (0.5 * UNIT + random.uniform(-0.06, 0.06, 2) * UNIT).tolist()
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=ink)
    elif shape == "ring":
        draw.ellipse(box, outline=ink, width=int(radius * 0.42))
    elif shape == "square":
        draw.rectangle(box, fill=ink)
    elif shape == "cross":
        third = radius * 0.36
        draw.rectangle((x - radius, y - third, x + radius, y + third), fill=ink)
        draw.rectangle((x - third, y - radius, x + third, y + radius), fill=ink)
    else:
        num_points = {"triangle": 3, "star": 5}[shape]
        draw.polygon(
            _star((x, y), radius, num_points, inner=0.42 if shape == "star" else 0.5), fill=ink
        )
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _draw_features(random: np.random.Generator) -> Features:
    def pick(options: tuple) -> Any:
        return options[int(random.integers(len(options)))]

    shirt = pick(SHIRTS)
    others = tuple(colour for colour in SHIRTS if colour != shirt)
    return Features(
        skin=pick(SKINS), hair_colour=pick(HAIR_COLOURS), hair=pick(HAIR), face=pick(tuple(HEADS)),
        hat=pick(HATS), hat_colour=pick(SHIRTS), glasses=pick(GLASSES), beard=pick(BEARDS),
        mouth=pick(MOUTHS), shirt=shirt, collar=pick(COLLARS), collar_colour=pick(others),
        background=pick(BACKGROUNDS), pattern=pick(PATTERNS),
    )  # fmt: skip


def _unlike(one: Features, other: Features) -> int:
    """Return how different two people look: large areas count more."""
    weights = {"background": 3, "hair_colour": 2, "skin": 2, "shirt": 2, "hair": 2}
    return sum(
        weights.get(field.name, 1)
        for field in dataclasses.fields(Features)
        if getattr(one, field.name) != getattr(other, field.name)
    )


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue


def _background(colour: Colour, pattern: str) -> Image.Image:
    picture = Image.new("RGB", (UNIT, UNIT), colour)
    draw, second = ImageDraw.Draw(picture), _shade(colour, 0.8)
    step = UNIT // 7
    if pattern == "stripes":
        for x in range(-UNIT, UNIT, 2 * step):
            draw.polygon(((x, UNIT), (x + step, UNIT), (x + step + UNIT, 0), (x + UNIT, 0)), second)
    elif pattern == "dots":
        for row in range(8):
            for column in range(8):
                x, y = column * step + (row % 2) * step // 2, row * step
                draw.ellipse((x - 9, y - 9, x + 9, y + 9), second)
    elif pattern == "checks":
        for row in range(7):
            for column in range(row % 2, 7, 2):
                draw.rectangle(
                    (column * step, row * step, (column + 1) * step, (row + 1) * step), second
                )
    elif pattern == "rays":
        box = (-UNIT, -UNIT * 0.55, 2 * UNIT, 2.45 * UNIT - UNIT * 0.55)
        for start in range(0, 360, 40):
            draw.pieslice(box, start, start + 20, second)
    elif pattern == "split":
        draw.rectangle((0, UNIT * 0.52, UNIT, UNIT), second)
    return picture


def _draw_figure(draw: ImageDraw.ImageDraw, features: Features, shift: float) -> None:
    """Draw shoulders, head and what is on it; the face's parts move sideways by `shift` pixels."""
    x, y = UNIT * 0.5 + shift * 0.5, UNIT * 0.48  # middle of the head
    half_width, half_height = HEADS[features.face]
    width, height = half_width * UNIT, half_height * UNIT
    head = Head(x, y, width, height)
    _draw_hair_behind(draw, features, head)
    _draw_shoulders(draw, features)
    neck = UNIT * 0.085
    draw.rectangle((x - neck, y + height * 0.6, x + neck, UNIT * 0.84), _shade(features.skin, 0.86))
    for side in (-1, 1):
        ear = x + side * width * 0.98
        draw.ellipse((ear - 13, y - 14, ear + 13, y + 20), _shade(features.skin, 0.92))
    box = (x - width, y - height, x + width, y + height)
    if features.face == "square":
        draw.rounded_rectangle(box, radius=width * 0.55, fill=features.skin)
    else:
        draw.ellipse(box, features.skin)
    face = head._replace(x=x + shift)
    _draw_beard(draw, features, head, face_x=face.x)
    _draw_face(draw, features, face)
    _draw_hair(draw, features, head)
    _draw_hat(draw, features, head)


def _draw_shoulders(draw: ImageDraw.ImageDraw, features: Features) -> None:
    top, left, right = UNIT * 0.79, UNIT * 0.1, UNIT * 0.9
    draw.rounded_rectangle((left, top, right, UNIT * 1.3), radius=UNIT * 0.17, fill=features.shirt)
    middle, second = UNIT * 0.5, features.collar_colour
    if features.collar == "stripes":
        for line in range(3):
            y = top + UNIT * (0.055 + 0.07 * line)
            draw.rectangle((left + 6, y, right - 6, y + UNIT * 0.03), second)
    elif features.collar == "collar":
        for side in (-1, 1):
            inner, outer = middle + side * 4, middle + side * UNIT * 0.17
            draw.polygon(
                ((inner, UNIT * 0.93), (outer, UNIT * 0.9), (outer, top - 6), (inner, top)), second
            )
    elif features.collar == "scarf":
        box = (UNIT * 0.3, top - UNIT * 0.03, UNIT * 0.7, top + UNIT * 0.09)
        draw.rounded_rectangle(box, radius=18, fill=second)
        draw.rectangle((UNIT * 0.56, top, UNIT * 0.66, UNIT), _shade(second, 0.88))


def _draw_face(draw: ImageDraw.ImageDraw, features: Features, head: Head) -> None:
    x, y, width, height = head
    ink, eye_y, gap = (30, 26, 28), y - height * 0.05, width * 0.44
    brow = _shade(features.hair_colour, 0.75) if features.hair != "bald" else (70, 54, 48)
    for side in (-1, 1):
        eye = x + side * gap
        draw.rectangle((eye - 17, eye_y - 27, eye + 17, eye_y - 20), brow)
        draw.ellipse((eye - 13, eye_y - 11, eye + 13, eye_y + 11), (255, 255, 255))
        draw.ellipse((eye - 7, eye_y - 8, eye + 7, eye_y + 8), ink)
        if features.glasses in ("round", "dark"):
            fill = ink if features.glasses == "dark" else None
            draw.ellipse((eye - 23, eye_y - 21, eye + 23, eye_y + 23), fill, ink, 6)
        elif features.glasses == "square":
            draw.rectangle((eye - 23, eye_y - 18, eye + 23, eye_y + 20), None, ink, 6)
    if features.glasses != "none":
        draw.line((x - gap + 22, eye_y, x + gap - 22, eye_y), ink, 6)
    shade = _shade(features.skin, 0.8)
    draw.polygon(((x, eye_y + 8), (x - 11, y + height * 0.3), (x + 11, y + height * 0.3)), shade)
    mouth_y = y + height * 0.54
    if features.mouth == "smile":
        draw.chord(
            (x - 27, mouth_y - 24, x + 27, mouth_y + 16), 20, 160, (250, 250, 246), (150, 40, 44), 5
        )
    elif features.mouth == "flat":
        draw.rectangle((x - 22, mouth_y - 4, x + 22, mouth_y + 4), (150, 52, 52))
    else:
        draw.ellipse((x - 15, mouth_y - 11, x + 15, mouth_y + 13), (120, 26, 34))


def _draw_beard(
    draw: ImageDraw.ImageDraw, features: Features, head: Head, *, face_x: float
) -> None:
    x, y, width, height = head
    ink = _shade(features.hair_colour, 0.85)
    if features.beard == "full":
        draw.chord((x - width, y - height * 0.75, x + width, y + height * 1.08), 12, 168, ink)
        draw.ellipse(
            (face_x - 34, y + height * 0.34, face_x + 34, y + height * 0.78),
            _shade(features.skin, 0.95),
        )
    elif features.beard == "goatee":
        draw.ellipse((face_x - 24, y + height * 0.66, face_x + 24, y + height * 1.12), ink)
    elif features.beard == "moustache":
        top = y + height * 0.32
        draw.chord((face_x - 38, top, face_x + 38, top + height * 0.36), 180, 360, ink)


def _draw_hair_behind(draw: ImageDraw.ImageDraw, features: Features, head: Head) -> None:
    x, y, width, height = head
    ink = _shade(features.hair_colour, 0.86)
    if features.hair == "long":
        box = (x - width * 1.32, y - height * 1.1, x + width * 1.32, y + height * 1.5)
        draw.rounded_rectangle(box, radius=width, fill=ink)
    elif features.hair == "bob":
        box = (x - width * 1.3, y - height * 1.1, x + width * 1.3, y + height * 0.72)
        draw.rounded_rectangle(box, radius=width * 0.7, fill=ink)
    elif features.hair == "curly":
        for step in range(13):
            if features.hat != "none" and 2 < step < 10:
                continue
            angle = math.pi * (0.92 + 1.16 * step / 12)
            ball_x = x + math.cos(angle) * width * 1.12
            ball_y = y + math.sin(angle) * height * 1.0 + 2
            draw.ellipse((ball_x - 25, ball_y - 25, ball_x + 25, ball_y + 25), ink)
    elif features.hair == "bun" and features.hat == "none":
        draw.ellipse((x - 34, y - height * 1.62, x + 34, y - height * 0.9), ink)


def _draw_hair(draw: ImageDraw.ImageDraw, features: Features, head: Head) -> None:
    x, y, width, height = head
    ink, top = features.hair_colour, y - height
    cap = (x - width * 1.05, top - 8, x + width * 1.05, y + height * 0.75)
    if features.hat != "none" and features.hair != "bald":
        draw.chord(cap, 200, 340, ink)  # what a hat leaves to be seen
    elif features.hair in ("short", "long", "bun", "bob"):
        draw.chord(cap, 196, 344, ink)
    elif features.hair == "curly":
        draw.chord(cap, 200, 340, ink)
        for step in range(5):
            ball_x = x + (step - 2) * width * 0.42
            draw.ellipse((ball_x - 24, top - 12, ball_x + 24, top + 34), ink)
    elif features.hair == "spiky":
        draw.chord(cap, 200, 340, ink)
        for step in range(6):
            left = x + (step - 3) * width * 0.35
            right = left + width * 0.38
            draw.polygon(((left, top + 34), (right, top + 34), ((left + right) / 2, top - 34)), ink)
    elif features.hair == "mohawk":
        draw.rounded_rectangle((x - 22, top - 40, x + 22, top + 44), radius=20, fill=ink)


def _draw_hat(draw: ImageDraw.ImageDraw, features: Features, head: Head) -> None:
    x, top, width = head.x, head.y - head.height - 12, head.width
    ink, dark = features.hat_colour, _shade(features.hat_colour, 0.72)
    if features.hat == "cap":
        draw.chord((x - width * 1.12, top - 32, x + width * 1.12, top + 104), 180, 360, ink)
        draw.rounded_rectangle((x - 8, top + 28, x + width * 1.62, top + 46), radius=9, fill=dark)
    elif features.hat == "beanie":
        draw.chord((x - width * 1.14, top - 34, x + width * 1.14, top + 116), 180, 360, ink)
        draw.rounded_rectangle(
            (x - width * 1.2, top + 26, x + width * 1.2, top + 56), radius=12, fill=dark
        )
        draw.ellipse((x - 18, top - 54, x + 18, top - 18), dark)
    elif features.hat == "top hat":
        draw.rectangle((x - width * 0.82, 0, x + width * 0.82, top + 34), ink)
        draw.rectangle((x - width * 0.82, top + 6, x + width * 0.82, top + 24), dark)
        draw.rounded_rectangle(
            (x - width * 1.4, top + 24, x + width * 1.4, top + 44), radius=9, fill=ink
        )
    elif features.hat == "wide hat":
        draw.chord((x - width * 0.9, top - 40, x + width * 0.9, top + 96), 180, 360, ink)
        draw.ellipse((x - width * 1.75, top + 10, x + width * 1.75, top + 50), dark)


def _star(
    middle: tuple[float, float], radius: float, num_points: int, *, inner: float
) -> list[tuple[float, float]]:
    """Return the corners of a star; inner: of its notches, as a share of the radius."""
    x, y = middle
    points = []
    for step in range(2 * num_points):
        length = radius * (inner if step % 2 else 1.0) * 1.15
        angle = math.pi * step / num_points - math.pi / 2
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    return points


def _zoomed(picture: Image.Image, scale: float) -> Image.Image:
    margin = SIZE // 2
    padded = Image.fromarray(np.pad(np.asarray(picture), ((margin,) * 2,) * 2 + ((0, 0),), "edge"))
    half, middle = SIZE / 2 / scale, margin + SIZE / 2
    box = (middle - half, middle - half, middle + half, middle + half)
    return padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)


def _recoloured(picture: Image.Image, factors_C: np.ndarray) -> Image.Image:
    pixels_YXC = np.asarray(picture, np.float64) * factors_C
    return Image.fromarray(np.clip(np.round(pixels_YXC), 0, 255).astype(np.uint8))


def _with_noise(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    pixels_YXC = np.asarray(picture, np.float64) + random.normal(0, 14, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.round(pixels_YXC), 0, 255).astype(np.uint8))
