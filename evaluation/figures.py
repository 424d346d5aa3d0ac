"""The figures that the programs draw: slices side by side, details, errors (curves: plots.py)."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from evaluation.panels import (
    BAR,
    LINE,
    WHOLE,
    Panel,
    colour_bar,
    draw_panels,
    px,
    save_sheet,
    write_text,
)

LOW = 0.6  # height by width of a slice that is shown before and after in a row of its own
# What lies at the left, right, top and bottom edge of a slice as `Scan.slices` gives it.
MARKS = {"axial": "LRAP", "coronal": "LRSI", "sagittal": "PASI"}


NAMES = "input", "bicubic", "this network", "truth"  # in all figures

# --- windows --------------------------------------------------------------------------------------


def depth_in_head(head: np.ndarray) -> np.ndarray:
    """How deep in the head each cell lies: 0 outside, 1 at the deepest place. Holes are head."""
    filled = np.ones_like(head)
    for axis in (0, 1):  # head is what lies between the first and the last cell of a line
        forth = np.maximum.accumulate(head, axis)
        back = np.flip(np.maximum.accumulate(np.flip(head, axis), axis), axis)
        filled &= forth & back
    depth = np.zeros(head.shape)
    while filled.any():
        depth += filled
        padded = np.pad(filled, 1)
        filled = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1]
        filled &= padded[1:-1, :-2] & padded[1:-1, 2:]
    return depth / max(1, depth.max())


def busiest_window(image: np.ndarray, tall: float = 1.0, share: float = 0.4) -> tuple:
    """The window of an image with the most detail, about square, inside the head.

    tall: height of the image's field of view divided by its width. share: edge of the window,
    relative to the head. Scalp and skull have more detail than the brain, so that cells count the
    more the deeper they lie.
    """
    size = np.array(image.shape)
    grid = np.minimum(size, 32)
    edges = [np.linspace(0, n, g + 1).round().astype(int)[:-1] for n, g in zip(size, grid)]

    def cells(values):
        sums = np.add.reduceat(np.add.reduceat(values, edges[0], 0), edges[1], 1)
        counts = [np.diff(np.append(e, n)) for e, n in zip(edges, size)]
        return sums / np.outer(*counts)

    steps = [np.abs(np.gradient(image, axis=k)) if size[k] > 1 else 0 for k in (0, 1)]
    depth = depth_in_head(cells((image > 0.05).astype(float)) > 0.5)
    detail = cells(steps[0] + steps[1] + np.zeros(size)) * np.clip((depth - 0.15) / 0.35, 1e-6, 1)
    inside = (depth > 0.2) + 1e-3
    _, _, height, width = content_window(image)
    shape = np.sqrt(np.clip(tall * height / width, 0.75, 1.35))  # about that of the head
    side = share * np.sqrt(tall * height * width)  # in widths of the field of view
    wanted = np.maximum((side * shape / tall, side / shape), 24 / size).clip(1 / grid, 1)
    n = np.clip((wanted * grid).round().astype(int), 1, grid)
    windows = (np.lib.stride_tricks.sliding_window_view(x, tuple(n)) for x in (detail, inside))
    detail, inside = (x.mean(axis=(2, 3)) for x in windows)
    rated = detail * inside**2
    top, left = np.unravel_index(rated.argmax(), rated.shape)
    return top / grid[0], left / grid[1], n[0] / grid[0], n[1] / grid[1]


def content_window(image: np.ndarray, margin: float = 0.03) -> tuple:
    """The window of an image that holds everything brighter than background."""
    window = []
    for axis in (0, 1):
        filled = np.flatnonzero((image > 0.05).any(axis=1 - axis))
        n = image.shape[axis]
        first, last = (filled[0] / n, (filled[-1] + 1) / n) if filled.size else (0, 1)
        first, last = max(0.0, first - margin), min(1.0, last + margin)
        window.append((first, last - first))
    return window[0][0], window[1][0], window[0][1], window[1][1]


# --- figures of predict.py ------------------------------------------------------------------------


def field_shape(lr: np.ndarray, aspect: float) -> float:
    """Height of a field of view divided by its width; aspect: that of an LR pixel."""
    return aspect * lr.shape[0] / lr.shape[1]


def size_text(image: np.ndarray) -> str:
    """Width and height."""
    return f"{image.shape[1]} x {image.shape[0]}"


def picture_figure(path, lr, bicubic, sr, *, expected=None, title="", aspect: float = 1.0) -> None:
    """Input, bicubic and result, whole and the busiest detail; images (H, W) in [0, 1].

    expected: expected absolute error of each pixel of the result. aspect: height of an input
    pixel divided by its width.
    """
    tall = field_shape(lr, aspect)
    images = dict(zip(NAMES, (lr, bicubic, sr)))
    panels = [Panel(x, f"{name}, {size_text(x)}", tall) for name, x in images.items()]
    if expected is not None:
        panels.append(error_panel(expected, "expected error", tall, error_limit([expected])))
    rows = with_details([panels], sr, tall)
    save_rows(path, rows, title, expected is not None)


def with_details(rows: list, image: np.ndarray, tall: float) -> list:
    """The rows, cropped to the content of the image, and a row with the details of the first."""
    whole, detail = content_window(image), busiest_window(image, tall)
    for panel in chain.from_iterable(rows):
        panel.window = whole
    if is_most_of(detail, whole):  # a tiny image: it would show the same
        return rows
    details = detail_panels(rows[0], image, detail)
    for panel in rows[0]:
        panel.box = detail
    return [rows[0], details, *rows[1:]]


def is_most_of(window: tuple, whole: tuple) -> bool:
    return window[2] * window[3] > 0.7 * whole[2] * whole[3]


def detail_panels(panels: list[Panel], image: np.ndarray, window: tuple) -> list[Panel]:
    """Panels of a detail, all on one grey range: that of the image there."""
    (top, left, height, width), (h, w) = window, image.shape
    part = image[int(top * h) : int((top + height) * h), int(left * w) : int((left + width) * w)]
    white = float(np.percentile(part, 99.5).clip(0.2, 1))
    return [
        replace(p, text="", window=window, high=white if p.palette == "grey" else p.high)
        for p in panels
    ]


def error_limit(errors) -> float:
    """The brightest value of error maps: nearly all pixels lie below."""
    return max(0.02, max(float(np.percentile(e, 99.5)) for e in errors))


def error_panel(errors: np.ndarray, text: str, tall: float, limit: float, window=WHOLE) -> Panel:
    """A panel of an error map; errors of `limit` and more are shown as the brightest."""
    return Panel(errors, text, tall, window, palette="inferno", high=limit)


def save_rows(path, rows: list, title: str, errors: bool) -> None:
    """Write rows of panels as a figure. errors: the last panel has a colour bar below it."""
    sheet, grid = draw_panels(rows, title, BAR if errors else 0)
    if errors:
        left, _, right, _ = grid[-1][-1]
        top = sheet.height - px(BAR - 0.07)
        bar = left + px(0.02), top, right - px(0.02), top + px(0.1)
        colour_bar(sheet, bar, rows[-1][-1], "error (white = 1)")
    save_sheet(sheet, path)


def simulation_figure(
    path, lr, bicubic, sr, hr, scores, *, expected=None, title="", aspect: float = 1.0
) -> None:
    """A simulation: input, bicubic, result and truth, a detail of each, and the errors.

    scores: of bicubic and of the result, as `metrics.score` gives them. aspect: height of an LR
    pixel divided by its width. expected: expected absolute error; without it the figure shows where
    the result is nearer to the truth than bicubic upsampling is.
    """
    bicubic, sr = np.clip(bicubic, 0, 1), np.clip(sr, 0, 1)
    tall = field_shape(lr, aspect)
    images = dict(zip(NAMES, (lr, bicubic, sr, hr)))
    whole = [Panel(x, f"{name}, {size_text(x)}", tall) for name, x in images.items()]
    before, after = abs(bicubic - hr), abs(sr - hr)
    limit = error_limit([before, after])
    maps = {"error of bicubic": before, "error of this network": after}
    errors = [error_panel(x, name, tall, limit) for name, x in maps.items()]
    if expected is None:
        gain = dict(palette="RdBu", low=-limit, high=limit)
        last = Panel(before - after, "better or worse", tall, **gain)
        bars = {errors[0]: "absolute error", last: "worse (red), better (blue)"}
    else:
        last = error_panel(expected, "expected error", tall, limit)
        bars = {errors[0]: "absolute error"}
    rows = with_details([whole, [Panel(None), *errors, last]], hr, tall)
    sheet, grid = draw_panels(rows, title)
    draw_score_table(sheet, grid[-1][0], bars, scores)
    save_sheet(sheet, path)


def draw_score_table(sheet, place: tuple, bars: dict, scores) -> None:
    """The scores of bicubic and result as a small table, and the colour bars of the errors.

    bars: {panel: label}.
    """
    lines = [("", *NAMES[1:3])]
    rows = {"psnr": ("PSNR, dB", 2), "psnr_brain": ("in brain", 2), "ssim": ("SSIM", 4)}
    for key, (name, digits) in rows.items():
        values = [s.get(key) for s in scores]
        if None not in values:
            lines.append((name, *(f"{value:.{digits}f}" for value in values)))
    left, top, right, bottom = place
    width = right - left
    for i, line in enumerate(lines):
        y = top + px(0.02 + i * LINE)
        for text, x, anchor in zip(line, (0.02, 0.56, 0.99), ("la", "ra", "ra")):
            write_text(sheet, left + x * width, y, text, anchor)
    for i, (panel, label) in enumerate(reversed(bars.items())):
        edge = bottom - px(0.48 + 0.56 * i)
        bar = left + round(0.06 * width), edge, left + round(0.94 * width), edge + px(0.09)
        colour_bar(sheet, bar, panel, label)


@dataclass
class View:
    """A slice of a scan before and after. Images (H, W) in [0, 1]."""

    name: str
    before: np.ndarray
    cubic: np.ndarray
    after: np.ndarray
    aspect: float = 1.0  # height of a pixel of `before` divided by its width
    marks: str = ""  # letters at its left, right, top and bottom edge: MARKS[plane]
    expected: np.ndarray | None = None  # expected absolute error


def volume_figure(path, views: list[View], *, title="") -> None:
    """Slices of a scan: each whole, with a box, and its busiest detail before and after.

    Low ones, such as thick slices seen from the side, are shown whole before and after in a row of
    their own.
    """
    rows, details = [], []
    errors = [view.expected for view in views if view.expected is not None]
    for view in views:
        tall = field_shape(view.before, view.aspect)
        whole, detail = content_window(view.after), busiest_window(view.after, tall)
        panels = [Panel(image, "", tall) for image in (view.before, view.cubic, view.after)]
        if errors:
            panels.append(error_panel(view.expected, "", tall, error_limit(errors)))
        panels = detail_panels(panels, view.after, detail)
        details.append(panels)
        box = None if is_most_of(detail, whole) else detail
        first = Panel(view.before, view.name, tall, whole, box, view.marks)
        if first.shape() < LOW:
            first.text += f", {NAMES[0]}"
            rows += [[first, replace(first, image=view.after, text=NAMES[2], marks="")], panels]
        else:
            rows.append([first, *panels])
    sizes = (zip(view.before.shape, view.after.shape) for view in views)
    along_one = any(n == m for n, m in chain.from_iterable(sizes))  # thick slices from the side
    shown = NAMES[0], "cubic" if along_one else NAMES[1], NAMES[2]
    names = (*(f"{name}, detail" for name in shown), "expected error")
    for panel, name in zip(details[0], names):
        panel.text = name
    save_rows(path, rows, title, bool(errors))


# --- figures of train.py and evaluate.py ----------------------------------------------------------


@dataclass
class Example:
    """A slice of a test subject. Images (H, W) in [0, 1]; scores as `metrics.score` gives them."""

    name: str
    lr: np.ndarray
    bicubic: np.ndarray
    sr: np.ndarray
    hr: np.ndarray
    scores: tuple[dict, dict]  # of bicubic and of the network
    aspect: float = 1.0  # height of an LR pixel divided by its width


def example_row(example: Example, limit: float | None) -> list[Panel]:
    """The panels of an example: whole, details, and whole error maps if they have a limit."""
    tall = field_shape(example.lr, example.aspect)
    whole, detail = content_window(example.hr), busiest_window(example.hr, tall)
    bicubic, sr = np.clip(example.bicubic, 0, 1), np.clip(example.sr, 0, 1)
    scores = ("", *(f"\n{s['psnr']:.2f} dB" for s in example.scores), "")
    images = example.lr, bicubic, sr, example.hr
    panels = {name + words: x for name, words, x in zip(NAMES, scores, images)}
    details = detail_panels([Panel(x, "", tall) for x in panels.values()], example.hr, detail)
    for panel, text in zip(details, panels):
        panel.text = text
    box = None if is_most_of(detail, whole) else detail
    row = [Panel(example.hr, example.name, tall, whole, box), *details]
    if limit:
        maps = [abs(bicubic - example.hr), abs(sr - example.hr)]
        for image, name in zip(maps, NAMES[1:3]):
            row.append(error_panel(image, f"error of\n{name}", tall, limit, whole))
    return row


def examples_figure(path, examples: list[Example], *, title="", errors=False) -> None:
    """One row an example: cropped to the content, a detail of input, bicubic, network and truth.

    errors: and both error maps, all on one scale.
    """
    limit = error_limit([abs(np.clip(e.bicubic, 0, 1) - e.hr) for e in examples])
    rows = [example_row(example, limit if errors else None) for example in examples]
    save_rows(path, rows, title, bool(errors))
