"""DICOM: which slice lies where, in which of several scans, at which time. Read voxel for voxel.

Every series is written with file names and frames in random order.
"""

import gzip

import nibabel as nib
import numpy as np
import pytest
from made_files import ALONG, DOWN, NORMAL, ORIGIN, dicom, save_series
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

import predict
from scans import dicom_frames
from scans.dicom import dicom_series, read_scan
from utils import DataError

TIMES, SLICES = 3, 4
DATA = np.random.default_rng(5).integers(0, 4000, (TIMES, SLICES, 6, 5), dtype=np.uint16)
WANTED = DATA.transpose(3, 2, 1, 0)
EVERY = [(t, z) for t in range(TIMES) for z in range(SLICES)]
STACK, NUMBER, TIME = 0x00209056, 0x00209057, 0x00209128  # dimensions of an enhanced file


def item(**attributes) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def place(z) -> list[float]:
    return [float(x) for x in ORIGIN + 2 * z * NORMAL]


def single(t, z, **attributes) -> Dataset:
    return dicom(DATA[t, z], place(z), [*ALONG, *DOWN], **attributes)


def enhanced(frames, pointers=(), content=lambda t, z: {}, kind=None, **attributes) -> Dataset:
    """A multi-frame file of these (time, slice)."""
    ds = dicom(np.concatenate([DATA[t, z] for t, z in frames]), ORIGIN, [*ALONG, *DOWN])
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)
    ds.Rows, ds.NumberOfFrames = 6, len(frames)
    measures = item(PixelSpacing=[1.5, 0.75], SliceThickness=1.1, SpacingBetweenSlices=2.0)
    plane = item(ImageOrientationPatient=[*map(float, (*ALONG, *DOWN))])
    shared = item(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])
    ds.SharedFunctionalGroupsSequence = [shared]
    own = []
    for t, z in frames:
        own.append(item(PlanePositionSequence=[item(ImagePositionPatient=place(z))]))
        own[-1].FrameContentSequence = [item(FrameAcquisitionNumber=1, **content(t, z))]
        if kind:
            echo, component = kind(t)
            own[-1].MREchoSequence = [item(EffectiveEchoTime=echo)]
            own[-1].MRImageFrameTypeSequence = [item(ComplexImageComponent=component)]
    ds.PerFrameFunctionalGroupsSequence = own
    if pointers:
        ds.DimensionIndexSequence = [item(DimensionIndexPointer=tag) for tag in pointers]
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def save(folder, datasets, rng):
    folder.mkdir(exist_ok=True)
    for ds, name in zip(datasets, rng.permutation(len(datasets))):
        ds.save_as(folder / f"IM{name:03d}", enforce_file_format=True)
    return sorted(folder.iterdir())


def mixed(rng, times=range(TIMES)) -> list:
    """Times and slices in random order."""
    return [(t, z) for t, z in (EVERY[i] for i in rng.permutation(len(EVERY))) if t in times]


def per_time(rng, content=lambda t, z: {}, **by_time) -> list:
    """One file for each time: by_time gives its attributes."""
    return [
        enhanced(mixed(rng, [t]), content=content, **{k: v(t) for k, v in by_time.items()})
        for t in rng.permutation(TIMES).tolist()
    ]


def restarting(number=lambda t, z: z, **by_time) -> list:
    """Single slices whose InstanceNumber starts again in each volume."""
    return [
        single(t, z, number=number(t, z), **{k: v(t, z) for k, v in by_time.items()})
        for t, z in EVERY
    ]


def there_and_back(t, z):
    return z if t % 2 else SLICES - z


TOLD = {
    "volume after volume": lambda rng: [single(t, z, number=1 + t * SLICES + z) for t, z in EVERY],
    "restarts, temporal position": lambda rng: restarting(
        there_and_back, TemporalPositionIdentifier=lambda t, z: t + 1
    ),
    "restarts, acquisition number": lambda rng: restarting(AcquisitionNumber=lambda t, z: t),
    "restarts backwards, time": lambda rng: restarting(
        there_and_back, AcquisitionTime=lambda t, z: f"09300{t}.{z}"
    ),
    "restarts, trigger time": lambda rng: restarting(TriggerTime=lambda t, z: 9.5 * t + 5),
    "enhanced, dimensions": lambda rng: [
        enhanced(
            mixed(rng),
            (STACK, NUMBER, TIME),
            lambda t, z: {"DimensionIndexValues": [1, z + 1, t + 1]},
        )
    ],
    "enhanced, dimensions without pointers": lambda rng: [
        enhanced(mixed(rng), (), lambda t, z: {"DimensionIndexValues": [t + 1, z + 1]})
    ],
    "enhanced, temporal position, called mosaic": lambda rng: [
        enhanced(
            mixed(rng),
            content=lambda t, z: {"TemporalPositionIndex": t + 1},
            ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        )
    ],
    "a file for each time, numbers": lambda rng: per_time(
        rng, lambda t, z: {"TemporalPositionIndex": 1}, InstanceNumber=lambda t: t + 7
    ),
    "a file for each time, clock": lambda rng: per_time(
        rng, AcquisitionDateTime=lambda t: f"202001010923{t:02d}"
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_no_slice_of_one_time_ends_in_another(name, tmp_path):
    rng = np.random.default_rng(len(name))
    files = save(tmp_path / "s", TOLD[name](rng), rng)
    ((number, _, patient, members),) = dicom_series(files)
    assert (number, patient, set(members)) == ("3", "P042", set(files))
    volume = read_scan(tmp_path / "s", members)
    np.testing.assert_array_equal(volume.stored, WANTED)
    lps = nib.affines.apply_affine(volume.affine, (0, 0, 3)) * (-1, -1, 1)
    np.testing.assert_allclose(lps, place(3), atol=1e-4)


NOT_TOLD = {
    "restarts": lambda rng: restarting(),
    "restarts backwards": lambda rng: restarting(there_and_back),
    "enhanced, in any order": lambda rng: [enhanced([EVERY[i] for i in (5, 0, 7, 2, 9, 11, 4, 1,
                                                                       3, 10, 6, 8)])],
    "a file for each time": lambda rng: per_time(rng),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_TOLD)
def test_time_points_that_nothing_tells_apart_are_refused(name, tmp_path):
    rng = np.random.default_rng(1)
    files = save(tmp_path / "s", NOT_TOLD[name](rng), rng)
    with pytest.raises(DataError, match=r"3 pictures at each position.*--force"):
        read_scan(tmp_path / "s", files)
    assert read_scan(tmp_path / "s", files, force=True).stored.shape == WANTED.shape


KINDS = (["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"],
         ["DERIVED", "PRIMARY", "FIELD_MAP", "ND"])  # fmt: skip
COMPLEX = ((5.0, "MAGNITUDE"), (5.0, "PHASE"), (10.0, "MAGNITUDE"))
PARTS = {
    "echoes": (
        lambda rng: [single(t, z, number=z, EchoTime=4.9 * t + 2) for t, z in EVERY],
        {"3_e1": 0, "3_e2": 1, "3_e3": 2},
    ),
    "magnitude, phase and field map": (
        lambda rng: [single(t, z, number=t * 9 + z, ImageType=KINDS[t]) for t, z in EVERY],
        {"3": 0, "3_phase": 1, "3_fieldmap": 2},
    ),
    "parts in one file": (
        lambda rng: [enhanced(mixed(rng), kind=lambda t: COMPLEX[t])],
        {"3_e1": 0, "3_e1_phase": 1, "3_e2": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_echoes_and_phase_are_separate_results_with_names(name, tmp_path, capsys):
    make, wanted = PARTS[name]
    rng = np.random.default_rng(2)
    files = save(tmp_path / "s", make(rng), rng)
    found = {number: members for number, _, _, members in dicom_series(files)}
    assert set(found) == set(wanted)
    for number, members in found.items():
        volume = read_scan(tmp_path / "s", members, series=number)
        np.testing.assert_array_equal(volume.stored, WANTED[..., wanted[number]])
    assert not capsys.readouterr().err
    first = read_scan(tmp_path / "s", files)
    np.testing.assert_array_equal(first.stored, WANTED[..., 0])
    assert "several scans" in capsys.readouterr().err


def test_parts_of_one_file_become_results_with_names(tmp_path, tiny):
    rng = np.random.default_rng(8)
    enhanced(mixed(rng), kind=lambda t: COMPLEX[t]).save_as(tmp_path / "a.dcm")
    always = ["--checkpoint", str(tiny), "--device", "cpu", "--no-figure", "--output"]
    assert predict.main([str(tmp_path / "a.dcm"), *always, str(tmp_path / "o")]) == 0
    found = {path.name for path in (tmp_path / "o").glob("*.nii.gz")}
    assert found == {f"a_3_{part}_x4.nii.gz" for part in ("e1", "e1_phase", "e2")}
    chosen = ["--series", "3_e2", *always, str(tmp_path / "p")]
    assert predict.main([str(tmp_path / "a.dcm"), *chosen]) == 0
    (result,) = (tmp_path / "p").glob("*.nii.gz")
    assert result.name == "a_3_e2_x4.nii.gz"
    same = nib.load(tmp_path / "o" / result.name).get_fdata()
    np.testing.assert_array_equal(nib.load(result).get_fdata(), same)
    # In a folder phase maps are left out, but not those that are asked for by name.
    chosen = [str(tmp_path), "--series", "3_e1_phase", *always, str(tmp_path / "q")]
    assert predict.main(chosen) == 0
    (result,) = (tmp_path / "q").glob("*.nii.gz")
    assert result.name == "a_3_e1_phase_x4.nii.gz"


def test_a_file_that_is_there_twice_counts_once(tmp_path):
    rng = np.random.default_rng(3)
    datasets = [single(0, z, number=z) for z in range(SLICES)]
    files = save(tmp_path / "s", datasets + datasets[1:3], rng)
    ((_, about, _, members),) = dicom_series(files)
    assert len(members) == SLICES and "4 file(s)" in about
    for chosen in (members, files):
        np.testing.assert_array_equal(read_scan(tmp_path, chosen).stored, WANTED[..., 0])


def test_a_missing_slice_is_an_error_unless_forced(tmp_path, capsys):
    rng = np.random.default_rng(4)
    files = save(tmp_path / "s", [single(0, z, number=z) for z in (0, 1, 3)], rng)
    with pytest.raises(DataError, match="2 to 4 mm apart: is one missing"):
        read_scan(tmp_path / "s", files)
    assert read_scan(tmp_path / "s", files, force=True).stored.shape == (5, 6, 3)
    assert "2 to 4 mm apart" in capsys.readouterr().err
    some = [single(t, z, number=9 * t + z) for t, z in EVERY if (t, z) != (1, 2)]
    with pytest.raises(DataError, match="2 to 3 pictures at one position"):
        read_scan(tmp_path / "t", save(tmp_path / "t", some, rng))


def test_it_lies_where_the_scanner_says(tmp_path):
    data = save_series(tmp_path / "s", RescaleSlope=2.0, RescaleIntercept=-30.0)
    volume = read_scan(tmp_path / "s", sorted((tmp_path / "s").iterdir()))
    np.testing.assert_array_equal(volume.intensities(), data.transpose(2, 1, 0) * 2.0 - 30)
    # DICOM PS3.3 C.7.6.2.1.1: rows are 1.5 mm apart, columns 0.75; LPS, so x and y change sign.
    for s, r, c in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5), (5, 9, 7)):
        lps = ORIGIN + 2 * s * NORMAL + 0.75 * c * ALONG + 1.5 * r * DOWN
        ras = nib.affines.apply_affine(volume.affine, (c, r, s))
        np.testing.assert_allclose(ras, lps * (-1, -1, 1), atol=1e-4)


def test_spacing_is_not_thickness_and_slopes_may_differ(tmp_path):
    ds = single(0, 0, SliceThickness=5.0, SpacingBetweenSlices=6.5)
    ds.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert read_scan(tmp_path / "one.dcm").sizes == pytest.approx([0.75, 1.5, 6.5], rel=0.05)
    rng = np.random.default_rng(6)
    datasets = [single(0, z, number=z, RescaleSlope=z + 1.0) for z in range(SLICES)]
    volume = read_scan(tmp_path, save(tmp_path / "s", datasets, rng))
    np.testing.assert_allclose(volume.intensities(), WANTED[..., 0] * [1.0, 2, 3, 4])


def test_monochrome1_is_turned_round(tmp_path):
    rng = np.random.default_rng(7)
    datasets = [single(0, z, number=z) for z in range(SLICES)]
    for ds in datasets:
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.PixelData = (4000 - np.frombuffer(ds.PixelData, "<u2")).tobytes()
    volume = read_scan(tmp_path, save(tmp_path / "s", datasets, rng))
    assert volume.stored.dtype == np.uint16
    assert np.ptp(volume.stored.astype(int) - WANTED[..., 0]) == 0


def test_deflated_and_gzipped_files_are_read_but_not_to_any_size(tmp_path, monkeypatch):
    ds = single(0, 1)
    ds.save_as(tmp_path / "plain", enforce_file_format=True)
    (tmp_path / "packed.dcm").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "deflated", enforce_file_format=True)
    for name in ("packed.dcm", "deflated"):
        np.testing.assert_array_equal(read_scan(tmp_path / name).stored, WANTED[:, :, 1:2, 0])

    monkeypatch.setattr(dicom_frames, "UNPACKED", 2**20)
    ds.Rows = ds.Columns = 1024  # zeros that pack a thousandfold
    ds.PixelData = bytes(2 * ds.Rows * ds.Columns)
    ds.save_as(tmp_path / "deflated", enforce_file_format=True)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "plain", enforce_file_format=True)
    (tmp_path / "packed.dcm").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    for name in ("packed.dcm", "deflated"):
        with pytest.raises(DataError, match=f"{name}: unpacks to more than 1 MB"):
            read_scan(tmp_path / name)
