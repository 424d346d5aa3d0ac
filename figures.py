"""Arrays to PNG: the pictures that the programs draw, without a display (curves: plots.py).

Figures are 8.6 inches wide, so that text keeps its size where a page shows them 830 pixels wide.
"""

from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from utils import atomic_write, one_line

WIDTH = 8.6  # inches
DPI = 180
GAP = 0.05  # inches between panels
LINE = 0.18  # inches, the height of a line of text
TABLE = 1.65  # inches, the least height of a panel that holds scores
BAR = 0.6  # inches that a colour bar with its numbers and label takes
SMALL, NORMAL = 9, 10  # points
# What lies at the left, right, top and bottom edge of a slice as `formats.slices_of` gives it.
MARKS = {"axial": "LRAP", "coronal": "LRSI", "sagittal": "PASI"}
WHOLE = (0.0, 0.0, 1.0, 1.0)  # a window (top, left, height, width), as shares of an image


def new_figure(height: float, layout="constrained"):
    """A matplotlib figure of its own: without pyplot there is no display to need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path) -> None:
    """Write a figure as PNG, whole or not at all, and give its memory back."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    figure.clear()


def shortened(text: str, letters: int) -> str:
    """A text that fits, without its middle if it is too long."""
    if len(text) <= letters:
        return text
    return text[: letters // 2 - 1] + "…" + text[-(letters - letters // 2) :]


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


# --- rows of panels -------------------------------------------------------------------------------


GREY = dict(cmap="gray", vmin=0, vmax=255)
ERRORS = dict(cmap="inferno", vmin=0)


@dataclass
class Panel:
    """A picture in a figure. Images of any sizes that show the same field of view fit together."""

    image: np.ndarray | None  # (H, W) in [0, 1]; None: empty, for text
    text: str = ""  # above it
    tall: float = 1.0  # height of the field of view divided by its width
    window: tuple = WHOLE  # the part that is shown
    box: tuple | None = None  # a window to mark
    marks: str = ""  # letters at the left, right, top and bottom edge
    style: dict = field(default_factory=lambda: GREY)  # of imshow
    white: float = 1.0  # the value that is shown white, in grey images

    def shape(self) -> float:
        """Height of what is shown divided by its width."""
        return self.tall * self.window[2] / self.window[3]


def draw_panels(rows: list[list], title: str = "", extra: float = 0.0):
    """(figure, axes by row) of rows of panels, each row as wide as the figure.

    extra: inches to keep free at the bottom. A row is at most 1.4 times as high as a panel is wide.
    Laid out by hand, in inches: finding the layout would take as long as drawing it.
    """
    sizes = []
    for row in rows:
        width = (WIDTH - GAP) / len(row) - GAP
        heights = [TABLE if p.image is None else width * min(1.4, p.shape()) for p in row]
        lines = max(p.text.count("\n") + 1 if p.text else 0 for p in row)
        sizes.append((width, max(heights), lines * LINE))
    head = LINE * 1.5 * bool(title)
    height = head + sum(h + text + GAP for _, h, text in sizes) + GAP + extra
    figure = new_figure(height, layout=None)
    if title:
        y = 1 - 0.05 / height
        figure.text(0.5, y, shortened(one_line(title), 105), ha="center", va="top", fontsize=NORMAL)
    top, grid = height - head, []
    for row, (width, tall, text) in zip(rows, sizes):
        top -= text + GAP
        line = []
        for column, panel in enumerate(row):
            left = GAP + column * (width + GAP)
            rect = (left / WIDTH, (top - tall) / height, width / WIDTH, tall / height)
            axes = figure.add_axes(rect, xticks=[], yticks=[], anchor="N")
            line.append(axes)
            if panel.image is None:
                axes.axis("off")
            else:
                draw_panel(axes, panel)
            if panel.text:
                where = (left + width / 2) / WIDTH, (top + 0.03) / height
                figure.text(*where, panel.text, ha="center", va="bottom", fontsize=SMALL)
        grid.append(line)
        top -= tall
    return figure, grid


def draw_panel(axes, panel: Panel) -> None:
    """Draw the image of a panel with its box and its marks into axes."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    style = dict(extent=(0, 1, 1, 0), aspect=panel.tall, interpolation="nearest") | panel.style
    image = panel.image
    if panel.style is GREY:  # in 8 bits, which are drawn in half the time
        image = (np.clip(image / panel.white, 0, 1) * 255 + 0.5).astype(np.uint8)
    axes.imshow(image, **style)
    top, left, height, width = panel.window
    axes.set(xlim=(left, left + width), ylim=(top + height, top))
    axes.set_axis_off()  # also spares the time of laying out ticks that are not there
    if panel.box:
        y, x, h, w = panel.box
        axes.add_patch(Rectangle((x, y), w, h, fill=False, color="gold", lw=1.2))
    places = [(0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)]
    sides = [("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom")]
    for mark, where, (ha, va) in zip(panel.marks, places, sides):
        axes.text(
            *where, mark, transform=axes.transAxes, ha=ha, va=va, fontsize=SMALL, color="white",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def add_colorbar(figure, axes, label: str, rect) -> None:
    """A horizontal colour bar with its label below, at rect (left, bottom, width, height)."""
    bar = figure.colorbar(axes.images[0], cax=figure.add_axes(rect), orientation="horizontal")
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.locator_params(nbins=3)  # more would touch below a narrow bar


def field_shape(lr: np.ndarray, aspect: float) -> float:
    """Height of a field of view divided by its width; aspect: that of an LR pixel."""
    return aspect * lr.shape[0] / lr.shape[1]


# --- figures of predict.py ------------------------------------------------------------------------


def size_text(image: np.ndarray) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def picture_figure(path, lr, bicubic, sr, *, expected=None, title="", aspect: float = 1.0) -> None:
    """Input, bicubic and prediction, whole and the busiest detail; images (H, W) in [0, 1].

    expected: expected absolute error of each pixel of the prediction. aspect: height of an input
    pixel divided by its width.
    """
    tall = field_shape(lr, aspect)
    images = {"input": lr, "bicubic": bicubic, "prediction": sr}
    panels = [Panel(x, f"{name}, {size_text(x)}", tall) for name, x in images.items()]
    if expected is not None:
        style = ERRORS | dict(vmax=error_limit([expected]))
        panels.append(Panel(expected, "expected error", tall, style=style))
    rows = with_details([panels], sr, tall)
    figure, grid = draw_panels(rows, title, BAR if expected is not None else 0)
    if expected is not None:
        bar_below(figure, grid[-1][-1], "absolute error (white = 1)")
    save_figure(figure, path)


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
    return [replace(p, text="", window=window, white=white) for p in panels]


def error_limit(errors) -> float:
    """The brightest value of error maps: nearly all pixels lie below."""
    return max(0.02, max(float(np.percentile(e, 99.5)) for e in errors))


def bar_below(figure, axes, label: str) -> None:
    """A colour bar in the space that was kept free below the figure's last row."""
    height = figure.get_size_inches()[1]
    box = axes.get_position(original=True)
    rect = (box.x0 + 0.02, (BAR - 0.17) / height, box.width - 0.04, 0.1 / height)
    add_colorbar(figure, axes, label, rect)


def simulation_figure(
    path, lr, bicubic, sr, hr, scores, *, expected=None, title="", aspect: float = 1.0
) -> None:
    """A simulation: LR, bicubic, prediction and original, a detail of each, and the errors.

    scores: of bicubic and of the prediction, as `metrics.score` gives them. aspect: height of an LR
    pixel divided by its width. expected: expected absolute error; without it the figure shows where
    the prediction is nearer to the original than bicubic upsampling is.
    """
    bicubic, sr = np.clip(bicubic, 0, 1), np.clip(sr, 0, 1)
    tall = field_shape(lr, aspect)
    images = {"low resolution": lr, "bicubic": bicubic, "prediction": sr, "original": hr}
    whole = [Panel(x, f"{name}, {size_text(x)}", tall) for name, x in images.items()]
    before, after = abs(bicubic - hr), abs(sr - hr)
    limit = error_limit([before, after])
    style = ERRORS | dict(vmax=limit)
    last = Panel(expected, "expected error", tall, style=style)
    if expected is None:
        style_of_gain = dict(cmap="RdBu", vmin=-limit, vmax=limit)
        last = Panel(before - after, "blue: nearer, red: farther", tall, style=style_of_gain)
    errors = [Panel(None), Panel(before, "error of bicubic", tall, style=style)]
    errors += [Panel(after, "error of prediction", tall, style=style), last]
    figure, grid = draw_panels(with_details([whole, errors], hr, tall), title)
    write_scores(figure, grid[-1][0], grid[-1][1], scores)
    save_figure(figure, path)


def write_scores(figure, axes, errors, scores) -> None:
    """The scores of bicubic and prediction as a small table, and the colour bar of the errors."""
    lines = [("", "bicubic", "prediction")]
    rows = {"psnr": ("PSNR, dB", 2), "psnr_brain": ("in brain", 2), "ssim": ("SSIM", 4)}
    rows["mse"] = ("MSE", 5)
    for key, (name, digits) in rows.items():
        values = [s.get(key) for s in scores]
        if None not in values:
            lines.append((name, *(f"{value:.{digits}f}" for value in values)))
    height = axes.get_position(original=True).height * figure.get_size_inches()[1]
    for i, line in enumerate(lines):
        for text, x, ha in zip(line, (0.02, 0.62, 0.99), ("left", "right", "right")):
            y = 1 - (0.1 + i * LINE) / height
            axes.text(x, y, text, transform=axes.transAxes, ha=ha, va="top", fontsize=SMALL)
    box = axes.get_position(original=True)
    total = figure.get_size_inches()[1]
    rect = (box.x0 + 0.1 * box.width, box.y0 + 0.42 / total, 0.8 * box.width, 0.1 / total)
    add_colorbar(figure, errors, "absolute error", rect)


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


def volume_figure(
    path, views: list[View], *, title="", names=("input", "bicubic", "prediction")
) -> None:
    """Slices of a scan: each whole, with a box, and its busiest detail before and after."""
    rows = []
    errors = [view.expected for view in views if view.expected is not None]
    style = ERRORS | dict(vmax=error_limit(errors)) if errors else None
    for view in views:
        tall = field_shape(view.before, view.aspect)
        whole, detail = content_window(view.after), busiest_window(view.after, tall)
        panels = [Panel(image, "", tall) for image in (view.before, view.cubic, view.after)]
        if errors:
            panels.append(Panel(view.expected, "", tall, style=style))
        panels = detail_panels(panels, view.after, detail)
        box = None if is_most_of(detail, whole) else detail
        rows.append([Panel(view.before, view.name, tall, whole, box, view.marks), *panels])
    for panel, name in zip(rows[0][1:], (*(f"{name}, detail" for name in names), "expected error")):
        panel.text = name
    figure, grid = draw_panels(rows, title, BAR if errors else 0)
    if errors:
        bar_below(figure, grid[-1][-1], "absolute error (white = 1)")
    save_figure(figure, path)


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


def example_row(example: Example, errors: bool) -> list[Panel]:
    """The panels of an example: whole, details, and with errors whole error maps."""
    tall = field_shape(example.lr, example.aspect)
    whole, detail = content_window(example.hr), busiest_window(example.hr, tall)
    bicubic, sr = np.clip(example.bicubic, 0, 1), np.clip(example.sr, 0, 1)
    before, after = (f"{s['psnr']:.2f} dB" for s in example.scores)
    letters = 20 if errors else 26
    name = "\n".join(shortened(line, letters) for line in example.name.splitlines())
    panels = {f"bicubic, {before}": bicubic, f"network, {after}": sr, "truth": example.hr}
    panels = panels if errors else {"low resolution": example.lr} | panels
    details = detail_panels([Panel(x, "", tall) for x in panels.values()], example.hr, detail)
    for panel, text in zip(details, panels):
        panel.text = text
    box = None if is_most_of(detail, whole) else detail
    row = [Panel(example.hr, name, tall, whole, box), *details]
    if errors:
        maps = [abs(bicubic - example.hr), abs(sr - example.hr)]
        style = ERRORS | dict(vmax=error_limit(maps))
        for image, text in zip(maps, ("error of bicubic", "of network")):
            row.append(Panel(image, text, tall, whole, style=style))
    return row


def examples_figure(path, examples: list[Example], *, title="", errors=False) -> None:
    """One row an example: cropped to the content, a detail of LR, bicubic, network and truth.

    errors: error maps instead of the low resolution, both of a row on one scale.
    """
    figure, _ = draw_panels([example_row(example, errors) for example in examples], title)
    save_figure(figure, path)


def worst_figure(path, examples: list[Example], gains: dict, *, title="") -> None:
    """The worst slices, below the gains of all slices over bicubic upsampling.

    gains: {name of a set or a degradation: gain of each slice in dB}.
    """
    legend = 0.2 * -(-len(gains) // 2)
    strip = 2.4 + legend
    figure, _ = draw_panels([example_row(e, True) for e in examples], title, strip)
    height = figure.get_size_inches()[1]
    axes = figure.add_axes((0.08, (0.55 + legend) / height, 0.9, 1.7 / height))
    for i, (name, values) in enumerate(gains.items()):
        values = np.sort(np.asarray(values, dtype=float))
        label = f"{shortened(name, 40)}: {np.mean(values < 0):.1%} below bicubic"
        places = np.linspace(0, 100, len(values))
        axes.plot(places, values, "-" if i < 10 else "--", lw=1.5, label=label)
    axes.axhline(0, color="black", lw=1)
    axes.set_xlabel("slices in order of gain, %", fontsize=SMALL)
    axes.set_ylabel("gain, dB", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=2, fontsize=SMALL, frameon=False, borderpad=0.1)
    save_figure(figure, path)
