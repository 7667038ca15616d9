"""Renders pages with text in various fonts and with photos, to teach a text detector's student.

python -m tools.pages --photos PHOTOS --output pages --count 400

The pages need no labels: the detector labels them. FONTS are the fonts of this machine. Pages
for training and unseen pages use different fonts, photos, and random numbers:

    pages/images/train/*.png    pages/images/test/*.png

The command is repeatable: the same seed, fonts, and photos give the same pages.
"""

import argparse
import pathlib
import random
from collections.abc import Sequence

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

SIZE = (640, 480)  # height and width, in pixels
TEST_SHARE = 0.25  # of fonts, photos, and pages
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "with",
    "as",
    "on",
    "at",
    "by",
    "from",
    "this",
    "have",
    "not",
    "are",
    "which",
    "one",
    "all",
    "can",
    "has",
    "Teacher",
    "Student",
    "network",
    "image",
    "class",
    "Street",
    "House",
    "Market",
    "Report",
    "Monday",
    "October",
    "invoice",
    "total",
    "number",
    "2026",
    "17.50",
    "3,400",
    "42",
    "%",
    "page",
    "chapter",
    "Figure",
    "Table",
    "payment",
    "account",
    "energy",
    "river",
    "mountain",
    "language",
    "detector",
    "quality",
    "measure",
    "between",
    "distance",
    "without",
    "another",
    "everything",
    "London",
    "Berlin",
]
INKS = ((0, 0, 0), (30, 30, 60), (120, 20, 20), (20, 80, 40), (245, 245, 245), (250, 220, 80))


def latin_fonts() -> list[str]:
    """Returns the paths of the fonts that can draw Latin letters, in a fixed order."""
    return [path for path in sorted(font_manager.findSystemFonts()) if _draws_letters(path)]


def _draws_letters(path: str) -> bool:
    try:
        font = ImageFont.truetype(path, 20)
    except OSError:
        return False
    # A missing letter is drawn as the same box as any other missing letter.
    a, b = (_drawn(letter, font) for letter in ("a", "g"))
    return len(set(a)) > 1 and a != b


def _drawn(letter: str, font: ImageFont.FreeTypeFont) -> bytes:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((5, 5), letter, 255, font)
    return picture.tobytes()


def split(items: Sequence[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """Splits items at random into those for training and those for unseen pages."""
    shuffled = rng.sample(items, len(items))
    count = max(1, round(TEST_SHARE * len(shuffled)))
    return shuffled[count:], shuffled[:count]


def render(rng: random.Random, fonts: Sequence[str], photos: Sequence[str]) -> Image.Image:
    """Returns a page: a plain or photographic background, paragraphs, headings, and figures."""
    height, width = SIZE
    if rng.random() < 0.3:
        page = _photo(rng, photos, (width, height))
        dark = sum(page.resize((1, 1)).getpixel((0, 0))) < 380  # type: ignore[arg-type]
        inks = INKS[4:] if dark else INKS[:4]
    else:
        page = Image.new("RGB", (width, height), tuple(rng.randint(215, 255) for _ in range(3)))
        inks = INKS[:4]
    top = rng.randint(4, 40)
    while top < height - 30:
        kind = rng.random()
        if kind < 0.2:
            tall = rng.randint(50, 130)
            wide = rng.randint(80, width - 20)
            page.paste(_photo(rng, photos, (wide, tall)), (rng.randint(0, width - wide), top))
            top += tall + rng.randint(4, 20)
        elif kind < 0.35:
            top += rng.randint(20, 70)
        else:
            top = _paragraph(page, rng, rng.choice(fonts), rng.choice(inks), top)
    if rng.random() < 0.3:
        page = page.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC, fillcolor=(230, 230, 230))
    return ImageEnhance.Brightness(page).enhance(rng.uniform(0.7, 1.1))


def _photo(rng: random.Random, photos: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Returns a random part of a random photo, scaled to width and height."""
    photo = Image.open(rng.choice(photos)).convert("RGB")
    share = rng.uniform(0.4, 1.0)
    width, height = (max(1, int(share * side)) for side in photo.size)
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    return photo.resize(size, box=(left, top, left + width, top + height))


def _paragraph(
    page: Image.Image, rng: random.Random, font_path: str, ink: tuple[int, ...], top: int
) -> int:
    """Draws a heading or lines of one font, and returns the row below them."""
    draw, size = ImageDraw.Draw(page), rng.choice((14, 16, 18, 20, 24, 28, 36, 44))
    font = ImageFont.truetype(font_path, size)
    left = rng.randint(4, page.width // 2)
    right = rng.randint(left + 60, page.width)
    for _ in range(rng.randint(1, 6 if size < 20 else 2)):
        words: list[str] = []
        while draw.textlength(" ".join([*words, word := rng.choice(WORDS)]), font) < right - left:
            words.append(word)
        draw.text((left, top), " ".join(words), ink, font)
        top += round(size * rng.uniform(1.2, 1.6))
        if top > page.height - size:
            break
    return top + rng.randint(4, 24)


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="a folder with .jpg and .png files")
    parser.add_argument("--output", required=True)
    parser.add_argument("--count", type=int, default=400, help="pages in all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    paths = pathlib.Path(given.photos).iterdir()
    found = [path for path in paths if path.suffix in (".jpg", ".png")]
    fonts = split(latin_fonts(), rng)
    photos = split(sorted(map(str, found)), rng)
    counts = (given.count - round(TEST_SHARE * given.count), round(TEST_SHARE * given.count))
    for name, its_fonts, its_photos, count in zip(
        ("train", "test"), fonts, photos, counts, strict=True
    ):
        folder = pathlib.Path(given.output, "images", name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            render(rng, its_fonts, its_photos).save(folder / f"{index:04}.png")
        print(f"{folder}: {count} pages, {len(its_fonts)} fonts, {len(its_photos)} photos")


if __name__ == "__main__":
    main()
