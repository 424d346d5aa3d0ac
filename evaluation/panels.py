"""Rows of images with words above them, drawn by Pillow: in a tenth of the time of a plot.

Figures are 8.6 inches wide, so that text keeps its size where a page shows them 830 pixels wide.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from utils import atomic_write, one_line

WIDTH = 8.6  # inches
DPI = 180
GAP = 0.05  # inches between panels
LINE = 0.18  # inches, the height of a line of text
TABLE = 1.65  # inches, the least height of a panel that holds scores
BAR = 0.6  # inches that a colour bar with its numbers and label takes
SMALL, NORMAL = 9, 10  # points
LINES = 0.014  # inches, the width of boxes, circles and outlines
GOLD = (255, 215, 0)
WHOLE = (0.0, 0.0, 1.0, 1.0)  # a window (top, left, height, width), as shares of an image


@dataclass(eq=False)
class Panel:
    """A picture in a figure. Images of any sizes that show the same field of view fit together."""

    image: np.ndarray | None  # (H, W); None: empty, for text
    text: str = ""  # above it
    tall: float = 1.0  # height of the field of view divided by its width
    window: tuple = WHOLE  # the part that is shown
    box: tuple | None = None  # a window to mark
    marks: str = ""  # letters at the left, right, top and bottom edge
    palette: str = "grey"  # or a colour map of matplotlib
    low: float = 0.0  # the value that is shown black, or by the first colour
    high: float = 1.0  # the value that is shown white, or by the last colour
    rings: tuple = ()  # circles about pixels of the image: (row, column, radius, words)
    outline: np.ndarray | None = None  # bool, of any size: what has a line around it

    def shape(self) -> float:
        """Height of what is shown divided by its width."""
        return self.tall * self.window[2] / self.window[3]


def px(inches: float) -> int:
    return round(inches * DPI)


@lru_cache(maxsize=8)
def font(size: int):
    """DejaVu Sans, found among the files of matplotlib, which is not imported for it."""
    from PIL import ImageFont

    (folder,) = find_spec("matplotlib").submodule_search_locations
    return ImageFont.truetype(Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf"), size)


def write_text(sheet, x: float, y: float, words: str, anchor: str, points=SMALL, outlined=False):
    """Write words into a figure at (x, y) in pixels. anchor: of Pillow, as `mm` for the middle."""
    from PIL import ImageDraw

    style = dict(fill="black")
    if outlined:  # to be read on any image
        style = dict(fill="white", stroke_width=px(0.01), stroke_fill="black")
    letters = font(px(points / 72))
    ImageDraw.Draw(sheet).text((x, y), words, font=letters, anchor=anchor, align="center", **style)


def coloured(values: np.ndarray, panel: Panel) -> np.ndarray:
    """Values (H, W) in the colours of a panel, uint8 (H, W, 3)."""
    values = np.clip((values - panel.low) / (panel.high - panel.low), 0, 1)
    if panel.palette == "grey":
        return np.repeat((values * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    from matplotlib import colormaps  # takes 0.2 s

    return colormaps[panel.palette](values, bytes=True)[..., :3]


def draw_panels(rows: list[list[Panel]], title: str = "", extra: float = 0.0) -> tuple:
    """(figure, places by row) of rows of panels, each row as wide as the figure.

    The figure is an image of Pillow; a place is (left, top, right, bottom) in pixels. extra: inches
    to keep free at the bottom. A row is at most 1.4 times as high as a panel is wide.
    """
    from PIL import Image

    sizes = []
    for row in rows:
        width = (WIDTH - GAP) / len(row) - GAP
        heights = [TABLE if p.image is None else width * min(1.4, p.shape()) for p in row]
        lines = max(p.text.count("\n") + 1 if p.text else 0 for p in row)
        sizes.append((width, max(1 / DPI, *heights), lines * LINE))
    top = LINE * 1.5 * bool(title)
    height = top + sum(high + text + GAP for _, high, text in sizes) + GAP + extra
    sheet, grid = Image.new("RGB", (px(WIDTH), px(height)), "white"), []
    if title:
        words = fitted(one_line(title), px(WIDTH - 2 * GAP), NORMAL)
        write_text(sheet, px(WIDTH / 2), px(0.04), words, "ma", NORMAL)
    for row, (width, high, text) in zip(rows, sizes):
        top += text + GAP
        line = []
        for column, panel in enumerate(row):
            left = GAP + column * (width + GAP)
            place = px(left), px(top), px(left + width), px(top + high)
            line.append(place)
            if panel.image is not None:
                draw_panel(sheet, panel, place)
            if panel.text:
                lines = [fitted(words, px(width), SMALL) for words in panel.text.splitlines()]
                where = px(left + width / 2), px(top - 0.03)
                write_text(sheet, *where, "\n".join(lines), "md")
        grid.append(line)
        top += high
    return sheet, grid


def draw_panel(sheet, panel: Panel, place: tuple) -> None:
    """Draw the image of a panel with its box and its marks, as large as it fits, at the top."""
    from PIL import Image, ImageDraw

    (left, top, right, bottom), (h, w) = place, panel.image.shape
    width = right - left
    if panel.shape() > 1.4:
        width = max(1, round((bottom - top) / panel.shape()))
    size = width, max(1, min(bottom - top, round(width * panel.shape())))
    left += (right - left - width) // 2
    y, x, high, wide = panel.window
    image = Image.fromarray(np.ascontiguousarray(panel.image, np.float32))
    part = (x * w, y * h, min(w, (x + wide) * w), min(h, (y + high) * h))
    image = np.asarray(image.resize(size, Image.Resampling.BOX, part))  # enlarged, pixels stay
    image = coloured(image, panel)
    if panel.outline is not None:
        from scipy.ndimage import binary_dilation

        fine = [n * m / k for n, m, k in zip(part, 2 * panel.outline.shape[::-1], 2 * (w, h))]
        mask = Image.fromarray(panel.outline).resize(size, Image.Resampling.NEAREST, fine)
        mask = np.asarray(mask)
        image[binary_dilation(mask, np.ones((3, 3)), iterations=px(LINES)) & ~mask] = GOLD
    sheet.paste(Image.fromarray(image), (left, top))
    for row, column, radius, words in panel.rings:
        place = left + (column - part[0]) * size[0] / (part[2] - part[0])
        draw_ring(sheet, (place, top + (row - part[1]) * size[1] / (part[3] - part[1])),
                  radius * size[0] / (part[2] - part[0]), words)  # fmt: skip
    if panel.box:
        corners = [(panel.box[0] - y) / high, (panel.box[1] - x) / wide]
        corners += [corners[0] + panel.box[2] / high, corners[1] + panel.box[3] / wide]
        y0, x0, y1, x1 = (round(share * size[1 - i % 2]) for i, share in enumerate(corners))
        outline = left + x0, top + y0, left + max(x0, x1 - 1), top + max(y0, y1 - 1)
        ImageDraw.Draw(sheet).rectangle(outline, outline=GOLD, width=px(LINES))
    places = [(0.02, 0.5, "lm"), (0.98, 0.5, "rm"), (0.5, 0.02, "ma"), (0.5, 0.98, "md")]
    room = 2 if size[1] < px(6 * LINE) else 4  # in a low panel those above and below would touch
    for mark, (across, down, anchor) in zip(panel.marks[:room], places):
        where = left + across * size[0], top + down * size[1]
        write_text(sheet, *where, mark, anchor, outlined=True)


def draw_ring(sheet, middle: tuple, radius: float, words: str) -> None:
    """Draw a circle with words above it, all in pixels of the figure."""
    from PIL import ImageDraw

    x, y = middle
    corners = x - radius, y - radius, x + radius, y + radius
    ImageDraw.Draw(sheet).ellipse(corners, outline=GOLD, width=px(LINES))
    if words:
        write_text(sheet, x, y - radius - px(0.02), words, "md", outlined=True)


def colour_bar(sheet, place: tuple, panel: Panel, label: str) -> None:
    """The colours of a panel with three of their values and a label below, at a place."""
    from PIL import Image

    left, top, right, bottom = place
    width = max(2, right - left)
    ramp = np.broadcast_to(np.linspace(panel.low, panel.high, width), (bottom - top, width))
    sheet.paste(Image.fromarray(coloured(ramp, panel)), (left, top))
    for share, anchor in ((0, "la"), (0.5, "ma"), (1, "ra")):
        value = panel.low + share * (panel.high - panel.low)
        write_text(sheet, left + share * width, bottom + px(0.03), f"{value:.2g}", anchor)
    write_text(sheet, left + width / 2, bottom + px(0.05 + LINE), label, "ma")


def save_sheet(sheet, path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path) as file:
        sheet.save(file, format="PNG", compress_level=3)


def shortened(text: str, letters: int) -> str:
    """A text that fits, without its middle if it is too long."""
    if len(text) <= letters:
        return text
    return text[: letters // 2 - 1] + "…" + text[-(letters - letters // 2) :]


def fitted(text: str, width: int, points: float) -> str:
    """A line of text, shortened until it is no wider than so many pixels."""
    letters, words = font(px(points / 72)), text
    for n in range(len(text) - 1, 3, -1):
        if letters.getlength(words) <= width:
            break
        words = shortened(text, n)
    return words
