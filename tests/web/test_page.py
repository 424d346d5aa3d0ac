"""The page in a real browser: what it saves is what predict.py writes, and nothing leaves it.

Most of it with a small random network in which every layer, neighbour and number has its part.
"""

import functools
import gzip
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import export
import modules
import predict
import scans
from degradation import NOISE
from inference import Upscaler
from inference.checkpoints import save_checkpoint
from inference.plan import plan_of
from inference.sidecar import digest_of
from utils import DataError

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
PATIENCE = 120_000  # ms: the machine may be busy
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no Chromium (apt-get install chromium)"),
    pytest.mark.skipif(not (WEB / "vendor").is_dir(), reason="no web/vendor (npm ci --prefix web)"),
]


class Site(http.server.ThreadingHTTPServer):
    """web/ as a site, as `python -m http.server` has it, with weights of a folder of their own;
    `asked` are the lines of what was asked for so far."""

    def __init__(self, weights):
        self.asked = asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path):
                name = path.partition("?")[0].removeprefix("/weights/")
                return super().translate_path(path) if name[0] == "/" else str(weights / name)

            def log_request(self, *_):
                asked.append(self.requestline)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=WEB))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a random network, brain.pt, and its ONNX files."""
    folder, scales = tmp_path_factory.mktemp("weights"), [(2, 2), (3, 1)]
    arch = {"name": "deep", "channels": 6, "blocks": 2, "half": 1, "estimator": True}
    bodies = [[arch, 1], [arch | {"neighbours": 2}, 1]]
    arch = {"name": "bodies", "bodies": bodies, "error_head": True}
    torch.manual_seed(3)
    network = modules.build(arch, scales)
    for name, weight in network.named_parameters():
        part = name.split(".")[2]
        if part in ("tails", "condition", "of_scale", "gains"):
            torch.nn.init.normal_(weight, std=0.02 if part == "tails" else 0.5)
    network.estimator.decide[2].bias.data[NOISE] += 0.35  # where a calibration of noise counts
    calibration = {"edges": [-7, -4, 0], "factors": [2, 1.5, 1.2], "noisy": [1.1, 1.2, 1.3]}
    about = {"degradation": "wide", "trained_on": "nothing, made by a test"}
    about["calibration"] = {"2": calibration, "3x1": calibration}
    about |= {"arch": arch, "scales": [list(s) for s in scales], "model": network.state_dict()}
    save_checkpoint(folder / "brain.pt", about)
    export.main([str(folder / "brain.pt"), str(folder), "--error-map"])
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(weights):
    site = Site(weights)
    yield site
    site.shutdown()


def opened(browser, site, **options):
    """The page, ready."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    page.goto(site.url + "?workers=2")
    page.wait_for_selector("#status:text('Ready')")
    return page


@pytest.fixture(scope="module")
def page(browser, site):
    return opened(browser, site)


@pytest.fixture
def predicted(tmp_path, weights):
    """predicted(path, *options): the folder with what predict.py makes of a file in fp32."""

    def run(path, *options):
        output = tmp_path / "predicted"
        options = ["--weights", weights / "brain.pt", "--no-bf16", "--no-figure", *options]
        predict.main([str(x) for x in (path, "--output", output, "--device", "cpu", *options)])
        return output

    return run


def drop(page, path, wish=None, size=None):
    """Give the page a file, and wait until it is done or refused; wish: what else to make of it."""
    page.set_input_files("#file", path)
    wait(page)
    if wish is not None:
        page.evaluate("document.getElementById('choice').open = true")
        page.select_option("#wish", wish)
        if size:
            page.fill("#size", size)
        page.click("#again")
        wait(page)
    return page.text_content("#outcome")


def wait(page):
    page.wait_for_selector("#save-result:not(.waiting):visible, #outcome.error:visible")


def saved(page, folder):
    """The files that the page saves: (result, record)."""
    folder.mkdir(exist_ok=True)
    paths = []
    for link in ("#save-result", "#save-record"):
        with page.expect_download() as found:
            page.click(link)
        paths.append(folder / found.value.suggested_filename)
        found.value.save_as(paths[-1])
    return paths


def assert_same_record(found, wanted):
    """Two records say the same, but for who made them, when called how."""
    found, wanted = (json.loads(path.read_text(encoding="utf-8")) for path in (found, wanted))
    for record in (found, wanted):
        record["Sources"] = [Path(source).name for source in record["Sources"]]
        record["Warnings"] = [words.split(": ", 1)[1] for words in record["Warnings"]]
        for key in ("GeneratedBy", "Command", "Options"):
            del record[key]
    assert found == wanted


def assert_equal(found, wanted):
    """The same but for rounding: one step of whole numbers, in 0.005 % of the voxels at most."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    step = 1 if found.dtype.kind in "iu" else 1e-5 * abs(wanted).max()
    apart = abs(found.astype(float) - wanted)
    assert apart.max() <= step
    if found.dtype.kind in "iu":
        assert (apart > 0).sum() <= max(2, 5e-5 * apart.size)


def assert_same_files(page, predicted, tmp_path, path, options=(), **wish):
    """The page saves what predict.py writes: names, header, voxels, record."""
    drop(page, path, **wish)
    result, record = saved(page, tmp_path / "page")
    folder = predicted(path, *options)
    assert_same_record(record, folder / record.name)
    if result.suffix == ".png":
        found, wanted = (np.asarray(Image.open(p)) for p in (result, folder / result.name))
        return assert_equal(found, wanted)
    found, wanted = (gzip.decompress(p.read_bytes())[:352] for p in (result, folder / result.name))
    assert found == wanted
    found, wanted = (nib.load(p) for p in (result, folder / result.name))
    assert_equal(*(np.asarray(image.dataobj.get_unscaled()) for image in (found, wanted)))


def real_slices(shape=(12, 60, 64)) -> np.ndarray:
    """Slices of a person's brain, float32 0 to 255: (slices, rows, columns)."""
    files = sorted((ROOT / "data" / "ds002748").rglob("55_*.png"))[: shape[0]]
    return np.stack([np.asarray(Image.open(f), np.float32)[90 : 90 + shape[1], 70 : 70 + shape[2]]
                     for f in files])  # fmt: skip


OBLIQUE = np.array(
    [[0.05, -0.3, 4.1, -40], [2.1, 0.2, 0.1, 50], [0.1, -1.9, -0.4, 30], [0, 0, 0, 1]]
)


def write_scan(path, data, affine, dtype=np.int16, codes=(1, 1), scaling=(1, 0), big=False):
    """A NIfTI file. codes: of qform and sform."""
    header = nib.Nifti1Header(endianness=">" if big else "<")
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(data.astype(dtype), affine, header)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header["descrip"] = b"made by a test"
    image.header.set_slope_inter(*scaling)
    nib.save(image, path)
    return path


# --- the same as predict.py -----------------------------------------------------------------------


def test_a_picture(page, predicted, tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(real_slices()[5].astype(np.uint8)).save(path)
    assert_same_files(page, predicted, tmp_path, path)


def test_a_picture_of_16_bits_with_a_factor(page, predicted, tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray((real_slices()[5] * 9 + 40).astype(np.uint16)).save(path)
    assert_same_files(page, predicted, tmp_path, path, ("--scale", 2), wish='{"scale":2}')


def test_a_grey_jpeg_on_end_is_turned(page, predicted, tmp_path):
    path = tmp_path / "grey.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(real_slices()[5].astype(np.uint8)).save(path, exif=exif)
    assert_same_files(page, predicted, tmp_path, path)


def test_coarse_pixels_oblique_and_big_endian_with_a_slope(page, predicted, tmp_path):
    path = tmp_path / "coarse.nii.gz"
    data = real_slices().T[::-1] + 30
    write_scan(path, data, OBLIQUE, ">i2", scaling=(0.5, -10), big=True)
    assert_same_files(page, predicted, tmp_path, path)


def test_thick_slices_with_an_outlier_raised_no_qform_no_slope(page, predicted, tmp_path):
    path = tmp_path / "thick.nii"
    data = real_slices((10, 44, 48)).transpose(2, 1, 0) + 60
    data[7, 8, 5] = 30000
    write_scan(path, data, np.diag([0.9, 0.9, 4, 1]), codes=(0, 2))
    with open(path, "r+b") as file:
        file.seek(112)
        file.write(bytes(4))
    assert_same_files(page, predicted, tmp_path, path)


def test_to_a_voxel_size_from_floats_with_nan(page, predicted, tmp_path):
    path = tmp_path / "floats.nii.gz"
    data = real_slices((10, 44, 48)).transpose(2, 1, 0) / 77 - 0.1
    data[3, 4, 5] = np.nan
    write_scan(path, data, np.diag([-1.7, 1.6, 3.1, 1]), np.float64, codes=(1, 0))
    options = ("--voxel-size", 1.1)
    assert_same_files(page, predicted, tmp_path, path, options, wish="size", size="1.1")


def test_slices_that_are_large_go_in_tiles(page, predicted, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.tile(real_slices()[5].astype(np.uint8), (7, 3))).save(path)
    assert_same_files(page, predicted, tmp_path, path)


def test_the_weights_that_are_shipped(browser, predicted, tmp_path):
    listed = ["git", "-C", ROOT, "ls-files", "weights/brain.pt"]
    if not subprocess.run(listed, capture_output=True).stdout:
        pytest.skip("weights/brain.pt is not committed")
    shipped = json.loads((WEB / "weights" / "brain.json").read_text(encoding="utf-8"))
    assert shipped["sha256"] == digest_of(ROOT / "weights" / "brain.pt"), "npm run weights"
    site = Site(WEB / "weights")
    page = opened(browser, site)
    path = tmp_path / "slice.png"
    Image.fromarray(real_slices()[5].astype(np.uint8)).save(path)
    options = ("--weights", ROOT / "weights" / "brain.pt")
    assert_same_files(page, predicted, tmp_path, path, options)
    page.close()
    site.shutdown()


def test_plans_are_those_of_predict_py(page):
    scales = [(r, c) for r in (4, 3, 2) for c in (r,)] + [(r, 1) for r in range(2, 7)]
    rng, cases = np.random.default_rng(0), []
    for _ in range(150):
        sizes = rng.choice([0.45, 0.5, 0.86805, 0.9375, 1, 1.125, 2, 3.3, 4, 6.5], 3).tolist()
        wish = [{}, {"scale": 3}, {"throughPlane": 4}, {"voxelSize": 0.75}][rng.integers(4)]
        cases.append((sizes, rng.choice([1, 9, 30], 3).tolist(), wish))
    found = page.evaluate(
        """async ([cases, scales]) => {
            const [{ planOf, labelOf }, { Scan }] = await Promise.all([import('./plan.js'), import('./scan.js')])
            return cases.map(([[x, y, z], dims, wish]) => {
                const scan = new Scan({ dims, affine: [[0, y, 0, 0], [-x, 0, 0, 0], [0, 0, z, 0]] })
                try { const plan = planOf(scan, scales, wish); return [labelOf(plan), plan.plane, plan.words] }
                catch (error) { return error.message.split(' (')[0] }
            })
        }""",  # noqa: E501
        [cases, scales],
    )
    names = {"throughPlane": "through_plane", "voxelSize": "voxel_size"}
    for ((x, y, z), dims, wish), mine in zip(cases, found):
        affine = np.array([[0, y, 0, 0], [-x, 0, 0, 0], [0, 0, z, 0], [0, 0, 0, 1.0]])
        scan = scans.Scan("s", np.zeros(dims), affine=affine)
        try:
            plan = plan_of(scan, scales, **{names.get(k, k): v for k, v in wish.items()})
            assert mine == [plan.label, plan.plane, plan.words]
        except DataError as error:
            assert str(error).removeprefix("s: ").startswith(mine)


def test_expected_errors_are_shown_in_orange(page, tmp_path, weights):
    path = tmp_path / "slice.png"
    Image.fromarray(real_slices()[5].astype(np.uint8)).save(path)
    upscaler = Upscaler(weights / "brain.pt", "cpu", error_map=True, bf16=False)
    ((_, errors),) = upscaler.pictures([scans.read(path)], 2)
    expected = errors.intensities() / 255
    drop(page, path)
    page.check("#errors")
    shown = "[...after.getContext('2d').getImageData(0, 0, after.width, after.height).data]"
    for _ in range(600):  # until it is drawn; the page's rules forbid Playwright's own waiting
        pixels = page.evaluate(shown)
        red, blue = (np.reshape(pixels[i::4], expected.shape).astype(float) for i in (0, 2))
        if (red - blue).max() > 50:
            break
        page.wait_for_timeout(100)
    wanted = 0.85 * np.minimum(1, expected / 0.1)
    assert wanted.std() > 0.02 and abs((red - blue) / 255 - wanted).max() < 0.02


# --- what goes wrong ------------------------------------------------------------------------------


def test_what_cannot_be_done_is_said_in_one_line_with_the_way_out(page, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(300))
    (tmp_path / "notes.nii").write_text("nothing of use " * 50)
    labels = (rng.random((5, 6, 7)) * 4).round().repeat(6, 0).repeat(6, 1).repeat(3, 2)
    write_scan(tmp_path / "aseg.nii.gz", labels, np.diag([2, 2, 2, 1]))
    write_scan(tmp_path / "fmri.nii.gz", np.zeros((8, 8, 8, 20)), np.eye(4))
    huge = nib.Nifti1Header()
    huge.set_data_shape((900, 900, 900))
    huge["magic"], huge["vox_offset"] = b"n+1", 352
    (tmp_path / "huge scan.nii").write_bytes(huge.binaryblock + bytes(4000))
    whole = write_scan(tmp_path / "cut.nii", real_slices(), np.diag([2, 2, 2, 1])).read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:9000])
    write_scan(tmp_path / "fine.nii", real_slices(), np.diag([1, 1, 1, 1]))
    for name, *words in (
        ("photo.png", "colour picture", "grey"),
        ("IM0001", "DICOM", "dcm2niix", "the whole folder to predict.py"),
        ("notes.nii", "NIfTI", "PNG"),
        ("aseg.nii.gz", "segmentation", "predict.py aseg.nii.gz"),
        ("fmri.nii.gz", "20 volumes", "predict.py fmri.nii.gz"),
        ("huge scan.nii", "900 x 900 x 900", "5.8 GB", "predict.py 'huge scan.nii'"),
        ("cut.nii", "cut short"),
        ("fine.nii", "nothing to gain", "×2"),
    ):
        said = drop(page, tmp_path / name)
        assert all(word in said for word in words) and "\n" not in said, said
        assert page.is_hidden("#result") and page.text_content("#name") == name


def test_after_a_stop_the_next_file_is_done(page, tmp_path):
    slow = np.tile(real_slices(), (1, 4, 4)).transpose(2, 1, 0)
    write_scan(tmp_path / "slow.nii", slow, np.diag([0.9, 0.9, 4, 1]))
    page.set_input_files("#file", tmp_path / "slow.nii")
    page.wait_for_selector("#plan:text('slices of each')")
    page.click("#stop")
    page.wait_for_selector("#outcome:text('Stopped')")
    assert page.is_hidden("#result")
    Image.fromarray(real_slices()[5].astype(np.uint8)).save(tmp_path / "slice.png")
    assert "Done" in drop(page, tmp_path / "slice.png")


def test_several_files_are_done_in_turn_and_what_came_of_each_stays(page, tmp_path):
    names = ["one.png", "two.png", "three.png"]
    for k, name in enumerate(names):
        Image.fromarray(real_slices()[k].astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "empty.png").touch()
    names.insert(1, "empty.png")
    page.set_input_files("#file", [tmp_path / name for name in names])
    page.wait_for_selector("#save-result:not(.waiting):text('three_x2.png')")
    assert page.is_visible("#results li:text('empty.png: It is empty.')")
    files = "all = new DataTransfer(); all.items.add(new File(['x'], 'dropped.txt')); all"
    page.dispatch_event("#drop", "drop", {"dataTransfer": page.evaluate_handle(files)})
    page.wait_for_selector("#name:text('dropped.txt')")
    wait(page)
    for name in ("two_x2.png", "one_x2.png"):
        with page.expect_download() as found:
            page.click(f"#results a:text('{name}')")
        assert found.value.suggested_filename == name


# --- private, and for all -------------------------------------------------------------------------


def test_nothing_leaves_and_the_internet_can_be_off(browser, site, tmp_path):
    page = opened(browser, site)
    before, asked = len(site.asked), []
    page.context.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.click("#example")
    wait(page)
    assert "Done" in page.text_content("#outcome")
    saved(page, tmp_path / "page")
    assert [url for url in asked if not url.startswith("blob:")] == []
    page.context.set_offline(False)
    for place in (page, *page.workers):  # neither to others, nor back to the site itself
        for url in (site.url + "leak", "https://example.org/leak"):
            send = "url => fetch(url, {method: 'POST', body: 'x'}).then(() => 'sent', () => 'no')"
            assert place.evaluate(send, url) == "no"
    assert len(page.workers) >= 3 and site.asked[before:] == []
    page.close()


def test_nothing_that_axe_finds_keeps_people_out(browser, site, tmp_path):
    axe = WEB / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core (npm ci --prefix web)")
    page = opened(browser, site)
    page.evaluate(axe.read_text(encoding="utf-8"))
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")

    def check():
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("axe.run()")["violations"]
            assert not found, [(f["id"], [n["html"] for n in f["nodes"]]) for f in found]

    check()
    data = real_slices((10, 44, 48)).transpose(2, 1, 0)
    drop(page, write_scan(tmp_path / "thick.nii", data, np.diag([0.9, 0.9, 0.4, 1])))
    check()  # refused
    drop(page, write_scan(tmp_path / "thick.nii", data, np.diag([0.4, 0.4, 4, 1])), wish="size")
    page.evaluate("document.getElementById('choice').open = true")
    check()
    page.close()


def test_the_keyboard_is_enough(browser, site):
    page = opened(browser, site)

    def tab_to(name):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == name:
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("file")
    tab_to("example")
    page.keyboard.press("Enter")
    wait(page)
    place = page.text_content("#slice-number")
    page.keyboard.press("ArrowUp")
    assert page.text_content("#slice-number") != place
    tab_to("save-result")
    with page.expect_download() as found:
        page.keyboard.press("Enter")
    assert found.value.suggested_filename == "thick_through-x3.nii.gz"
    page.close()


def test_a_phone_is_told_what_it_can_do(browser, site):
    screen = {"width": 390, "height": 844}
    page = opened(browser, site, viewport=screen, screen=screen, has_touch=True, is_mobile=True)
    assert "phone" in page.text_content("#device")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def main():
    """Take readme_resources/page.png: the example, enlarged with the weights that are shipped."""
    site = Site(WEB / "weights")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = opened(
            chromium, site, viewport={"width": 860, "height": 900}, device_scale_factor=1.5
        )
        page.click("#example")
        wait(page)
        page.wait_for_timeout(1000)
        page.screenshot(path=ROOT / "readme_resources" / "page.png", full_page=True)


if __name__ == "__main__":
    main()
