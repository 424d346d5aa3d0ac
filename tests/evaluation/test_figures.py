"""Figures: written at any shape, nothing cut off, letters large enough, details on the brain."""

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image, ImageDraw

from evaluation import figures, panels, plots
from scans.scan import slices_along

SHAPES = [(1, 1), (5, 60), (60, 5)]
PAGE = 830 / 96  # inches that a page gives a figure


@pytest.fixture
def drawn(monkeypatch):
    """The words of each figure that is saved, checked: all lie inside, read where it is shown."""
    shown, written = [], []
    save, write, save_sheet = plots.save_figure, panels.write_text, panels.save_sheet

    def check(figure, path):
        figure.draw_without_rendering()
        drawn, size = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 > -0.02 and drawn.y0 > -0.02 and np.all((drawn.x1, drawn.y1) < size + 0.02)
        for text in figure.findobj(Text):
            assert text.get_fontsize() * PAGE / size[0] >= 9 or not text.get_text()
        shown.append([text.get_text() for text in figure.findobj(Text) if text.get_text()])
        save(figure, path)

    def check_text(sheet, x, y, words, anchor, points=panels.SMALL, **options):
        letters = panels.font(panels.px(points / 72))
        box = ImageDraw.Draw(sheet).textbbox((x, y), words, letters, anchor)
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= sheet.width and box[3] <= sheet.height
        assert points * PAGE / panels.WIDTH >= 9
        written.append(words)
        write(sheet, x, y, words, anchor, points, **options)

    def keep(sheet, path):
        shown.append(written[:])
        written.clear()
        save_sheet(sheet, path)

    monkeypatch.setattr(panels, "DPI", 72)  # as good for this, and faster
    for module in (panels, figures):
        monkeypatch.setattr(module, "write_text", check_text)
    monkeypatch.setattr(figures, "save_sheet", keep)
    monkeypatch.setattr(plots, "save_figure", check)
    return shown


def images(shape, scale=(4, 4)):
    """LR, bicubic, SR and HR of made-up slices."""
    rng = np.random.default_rng(0)
    large = tuple(n * s for n, s in zip(shape, scale))
    lr, *rest = (rng.random(size).astype(np.float32) for size in (shape, large, large, large))
    return [lr, *rest]


SCORES = [dict(mse=0.00156, psnr=28.07, psnr_brain=24.02, ssim=0.8981)] * 2
LONG = "a folder with A LONG NAME/" * 9 + "WWW-01_T1w.nii.gz"


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_of_every_shape_are_drawn_whole(tmp_path, drawn, shape):
    lr, bicubic, sr, hr = images(shape)
    draw = figures.picture_figure, figures.simulation_figure
    for expected in (None, abs(sr - hr)):
        options = dict(expected=expected, title=LONG)
        draw[0](tmp_path / "a.png", lr, bicubic, sr, **options)
        draw[1](tmp_path / "b.png", lr, bicubic, sr, hr, SCORES, aspect=2.5, **options)
    assert f"input, {shape[1]} x {shape[0]}" in drawn[0]
    assert {"28.07", "24.02", "0.8981", "in brain"} <= set(drawn[1])
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width == round(8.6 * 72)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [(4, 4), (4, 1)])
def test_scans_of_every_shape_and_scale_are_drawn_whole(tmp_path, drawn, shape, scale):
    lr, cubic, sr, hr = images(shape, scale)
    marks = figures.MARKS["coronal"]
    view = figures.View("coronal slice 9", lr, cubic, sr, 4, marks, abs(sr - hr))
    figures.volume_figure(tmp_path / "a.png", [view, view], title=LONG)
    assert {"L", "R", "S", "I", "input, detail", "expected error"} <= set(drawn[0])


def test_marks_fit_the_way_in_which_slices_are_cut():
    ras = np.zeros((3, 3, 3))
    ras[0, 1, 1], ras[1, 0, 1], ras[1, 1, 0] = 1, 2, 3  # left, behind and below the middle
    for plane, marks in figures.MARKS.items():
        middle = slices_along(ras, plane)[1]
        edges = dict(zip(marks, (middle[1, 0], middle[1, 2], middle[0, 1], middle[2, 1])))
        seen = {mark for mark, value in edges.items() if value}
        assert seen == {mark for mark in marks if mark in "LPI"}
        assert all(edges[mark] == {"L": 1, "P": 2, "I": 3}[mark] for mark in seen)


@pytest.mark.parametrize("errors", [False, True])
def test_examples_have_names_and_scores(tmp_path, drawn, errors):
    examples = [figures.Example(LONG, *images(shape), SCORES) for shape in SHAPES]
    figures.examples_figure(tmp_path / "a.png", examples, errors=errors)
    assert {"bicubic\n28.07 dB", "this network\n28.07 dB", "truth"} <= set(drawn[0])


def head(size=(96, 80), brain=True) -> np.ndarray:
    """A dull disc, inside it a textured brain off the middle, around it a very textured scalp."""
    rng = np.random.default_rng(0)
    y, x = ((np.arange(n) - n / 2 + 0.5) / (n / 2 - 4) for n in size)
    radius = np.hypot(*np.meshgrid(y, x, indexing="ij"))
    image = np.where(radius < 1, 0.4, 0.0)
    ring = (radius > 0.9) & (radius < 1)
    image[ring] = rng.random(ring.sum())
    if brain:
        image[54:66, 30:42] += 0.3 * rng.random((12, 12))
    return image


@pytest.mark.parametrize("size", [(96, 80), (80, 112), (192, 60)])
def test_details_lie_on_the_brain_and_not_on_the_scalp(size):
    top, left, height, width = figures.busiest_window(head(size), size[0] / size[1])
    centre = (top + height / 2) * size[0], (left + width / 2) * size[1]
    assert abs(centre[0] - 60) < 14 + size[0] / 32 and abs(centre[1] - 36) < 14 + size[1] / 32


def test_loss_graph_shows_bicubic_on_the_same_patches_and_hides_nothing(tmp_path, drawn):
    rows = [dict(iteration=str(n), loss="0.002", bicubic_loss="0.003") for n in range(1, 41)]
    for row in rows[9::10]:
        row |= dict(val_psnr="29.1", bicubic_psnr="27.5")
    for some in (rows, []):
        plots.loss_figure(tmp_path / "a.png", some, LONG)
    wanted = {"training", "bicubic on the same patches", "bicubic on the validation slices"}
    assert wanted <= set(drawn[0])


def test_a_panel_shows_its_window_and_no_other_pixels():
    """Enlarged pixels stay squares of one grey, and the window's ends are those of the panel."""
    image = np.zeros((8, 8), np.float32)
    image[2:6, 4:8] = np.linspace(0.1, 1, 16).reshape(4, 4)
    panel = panels.Panel(image, window=(0.25, 0.5, 0.5, 0.5))
    sheet, ((place,),) = panels.draw_panels([[panel]])
    shown = np.asarray(sheet.crop(place))[..., 0]
    rows, columns = (((np.arange(4) + 0.5) * n / 4).astype(int) for n in shown.shape)
    wanted = image[2:6, 4:8] * 255
    assert np.abs(shown[np.ix_(rows, columns)] - wanted).max() <= 0.5
    assert np.abs(np.unique(shown) - np.unique(wanted)).max() <= 0.5


def test_the_smoothed_curve_starts_where_the_values_do_and_ends_as_a_mean():
    values = np.linspace(2, 1, 200)
    values[-1] = 9
    found = plots.smoothed(values)
    assert found[0] == 2 and found[-1] < 3 and len(found) == 200
    assert found[100] == pytest.approx(values[96:105].mean())
