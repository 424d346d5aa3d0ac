"""DICOM: which slice lies where, in which of several series, and what is refused.

Every series is written with file names and frames in random order.
"""

import _thread
import gzip
import os
import signal
import struct
import sys
import tempfile
import threading
from unittest.mock import ANY

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from made_files import ALONG, DOWN, NORMAL, ORIGIN, dicom
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

import predict
from scans import dcm2niix as program
from scans import read
from scans.dicom import dicom_series
from scans.formats import kind_of
from utils import DataError

DATA = np.random.default_rng(5).integers(0, 4000, (3, 4, 6, 5), dtype=np.uint16)  # times, slices
DIRECTION = [*ALONG, *DOWN]
EVERY = [(t, z) for t in range(3) for z in range(4)]


def single(t, z, off=0, **attributes) -> Dataset:
    at = ORIGIN + 2 * z * NORMAL + off
    return dicom(DATA[t, z], at, DIRECTION, **{"number": z + 1, **attributes})


def slices(t=0, zs=range(4), **attributes) -> list[Dataset]:
    return [single(t, z, **attributes) for z in zs]


def without(datasets, *names) -> list[Dataset]:
    for ds in datasets:
        for name in names:
            delattr(ds, name)
    return datasets


def group(sequence, **attributes) -> Dataset:
    """A functional group of a multi-frame file."""
    inner, outer = Dataset(), Dataset()
    for name, value in attributes.items():
        setattr(inner, name, value)
    setattr(outer, f"{sequence}Sequence", [inner])
    return outer


def enhanced(frames, content=lambda t, z: {}) -> list[Dataset]:
    """A multi-frame file of these (time, slice)."""
    ds = dicom(np.concatenate([DATA[t, z] for t, z in frames]), ORIGIN, DIRECTION)
    ds.Rows, ds.NumberOfFrames = 6, len(frames)
    shared = group("PlaneOrientation", ImageOrientationPatient=[*map(float, DIRECTION)])
    shared.update(group("PixelMeasures", PixelSpacing=[1.5, 0.75], SliceThickness=1.1))
    ds.SharedFunctionalGroupsSequence, own = [shared], []
    for t, z in frames:
        at = [float(x) for x in ORIGIN + 2 * z * NORMAL]
        own.append(group("PlanePosition", ImagePositionPatient=at))
        own[-1].update(group("FrameContent", FrameAcquisitionNumber=1, **content(t, z)))
    ds.PerFrameFunctionalGroupsSequence = own
    return without([ds], "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def stack(t, z):
    index = [1, z + 1, t + 1]
    return dict(
        InStackPositionNumber=z + 1, TemporalPositionIndex=t + 1, DimensionIndexValues=index
    )


def save(folder, datasets):
    folder.mkdir(parents=True, exist_ok=True)
    for ds, name in zip(datasets, np.random.default_rng(3).permutation(len(datasets))):
        ds.save_as(folder / f"IM{name:03d}", enforce_file_format=True)
    return sorted(folder.iterdir())


def at_places(volume, shape=DATA[0].shape, step=2.0) -> np.ndarray:
    """The values (slices, rows, columns) where the scanner says that they lie.

    DICOM PS3.3 C.7.6.2.1.1: rows are 1.5 mm apart, columns 0.75; LPS, so x and y change sign.
    """
    s, r, c = (index[..., None] for index in np.indices(shape))
    ras = (ORIGIN + step * s * NORMAL + 1.5 * r * DOWN + 0.75 * c * ALONG) * (-1, -1, 1)
    np.testing.assert_allclose(volume.header.get_best_affine(), volume.affine, atol=1e-4)
    index = nib.affines.apply_affine(np.linalg.inv(volume.affine), ras)
    assert np.abs(index - index.round()).max() < 0.1, "no voxel lies there"
    return volume.intensities()[tuple(np.moveaxis(index.round().astype(int), -1, 0))]


def turned():
    for z, ds in enumerate(made := slices()):
        ds.ImageOrientationPatient = [*ALONG, *(DOWN + np.deg2rad(z * 1e-5) * NORMAL)]
    return made


def overlaid():
    for ds in (made := slices()):
        ds.add_new(0x60000010, "US", 6)
        ds.add_new(0x60000011, "US", 5)
        ds.add_new(0x60003000, "OW", b"\xff\x0f\0\0")
    return made


def scaled():
    """The slope that counts, and one that Philips has for itself."""
    for ds in (made := slices(RescaleSlope=2.0, RescaleIntercept=-30.0)):
        block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.004)
    return made


def mosaic():
    sheet = np.zeros((9, 6, 5), np.uint16)
    sheet[:8] = DATA[:2].reshape(8, 6, 5)
    sheet = sheet.reshape(3, 3, 6, 5).transpose(0, 2, 1, 3).reshape(18, 15)
    # The corner is that of a slice as large as the sheet, around the same centre.
    corner = ORIGIN - 0.75 * (15 - 5) / 2 * ALONG - 1.5 * (18 - 6) / 2 * DOWN
    ds = dicom(sheet, corner, DIRECTION, Manufacturer="SIEMENS", SpacingBetweenSlices=2.0)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    csa = b"SV10\4\3\2\1" + struct.pack("<II", 2, 77)
    for name, values in (("NumberOfImagesInMosaic", [8]), ("SliceNormalVector", NORMAL)):
        csa += struct.pack("<64si4siii", name.encode(), len(values), b"FD", 4, len(values), 77)
        for value in values:
            csa += struct.pack("<4i", 16, 16, 77, 16) + f"{value:.8f}".encode().ljust(16, b"\0")
    ds.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa)
    return [ds]


def ut(path):
    """PixelSpacing as UT, which has a longer length."""
    data = path.read_bytes()
    at = data.index(b"\x28\0\x30\0DS")
    size = struct.pack("<I", *struct.unpack_from("<H", data, at + 6))
    path.write_bytes(data[: at + 4] + b"UT\0\0" + size + data[at + 8 :])


def no_meta(path):
    ds = dcmread(path)
    ds.file_meta, ds.preamble = FileMetaDataset(), None
    ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)


def packed(path):
    ds = dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)


XA = dict(Manufacturer="SIEMENS", SoftwareVersions="syngo MR XA30", SeriesTime="101010.12")


def whole(make, change=lambda path: None, wanted=DATA[0]):
    """A series, what is done to each of its files, the values that it must have."""
    return make, change, wanted


WHITE = int(DATA[0].max()) + int(DATA[0].min())
WHOLE = {
    "plain": whole(slices),
    "directions differ by 1e-5 degrees": whole(turned),
    "uneven by a tenth": whole(lambda: [single(0, z, (-1) ** z * NORMAL / 12) for z in range(4)]),
    "many UIDs": whole(lambda: [single(0, z, series=f"1.2.{z}", **XA) for z in range(4)]),
    "overlays": whole(overlaid),
    "enhanced": whole(lambda: enhanced([(0, z) for z in (2, 0, 3, 1)])),
    "mosaic": whole(mosaic, wanted=DATA[:2].reshape(8, 6, 5)),
    "PixelSpacing as UT": whole(slices, ut),
    "no meta": whole(slices, no_meta),
    "packed": whole(slices, packed),
    "slope": whole(scaled, wanted=DATA[0] * 2.0 - 30),
    "slopes": whole(
        lambda: [single(0, z, RescaleSlope=z + 1.0) for z in range(4)],
        wanted=DATA[0] * np.arange(1.0, 5)[:, None, None],
    ),
    "white": whole(lambda: slices(PhotometricInterpretation="MONOCHROME1"), wanted=WHITE - DATA[0]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_voxel_lies_where_the_scanner_says(name, tmp_path, capsys):
    make, change, wanted = WHOLE[name]
    files = save(tmp_path / "a b ü", make())
    for file in files:
        change(file)
    assert {kind_of(file) for file in files} == {"dicom"}
    ((number, about, patient, members, _),) = dicom_series(files)
    assert (number, patient, set(members)) == ("3", "P042", set(files))
    assert about == f"MR t1 mprage, {len(files)} file(s)"
    volume = read(tmp_path, members, series=number)
    np.testing.assert_array_equal(at_places(volume, wanted.shape), wanted)
    assert volume.sizes == pytest.approx([0.75, 1.5, 2.0], rel=0.05)
    said = {"mosaic": "do not tell where", "many UIDs": "exported as classic"}.get(name)
    assert said in capsys.readouterr().err if said else not capsys.readouterr().err


def test_rounded_positions_neither_shear_nor_stretch(tmp_path):
    data = np.arange(40, dtype=np.uint16)[:, None, None] + np.zeros((6, 5), np.uint16)
    for step, sign in ((0.7, 1), (1.03, -1), (2.0, 1)):
        at = [np.round(ORIGIN + step * z * NORMAL, 1) for z in range(40)]
        made = [dicom(data[z], at[z], DIRECTION, number=50 + sign * z) for z in range(40)]
        volume = read(tmp_path, save(tmp_path / str(step), made))
        np.testing.assert_array_equal(at_places(volume, data.shape, step), data)
        axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
        assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4


def test_spacing_is_not_thickness_and_texts_are_utf8(tmp_path):
    made = slices(0, [0], SliceThickness=5.0, SpacingBetweenSlices=6.5, SeriesDescription="Kö")
    made[0].SpecificCharacterSet = "ISO_IR 192"
    files = save(tmp_path, without(made, "SeriesNumber"))
    assert dicom_series(files) == [("0", "MR Kö, 1 file(s)", "P042", tuple(files), ANY)]
    assert read(files[0]).sizes == pytest.approx([0.75, 1.5, 6.5], rel=0.05)


def mixed() -> list[Dataset]:
    """Two echoes and a phase in one file."""
    (ds,) = made = enhanced(EVERY, stack)
    for (t, _), own in zip(EVERY, ds.PerFrameFunctionalGroupsSequence):
        kind = ("MAGNITUDE", "PHASE", "MAGNITUDE")[t]
        own.update(group("MREcho", EffectiveEchoTime=(5.0, 5.0, 10.0)[t]))
        own.update(group("MRImageFrameType", ComplexImageComponent=kind))
    return made


M, P = ["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"]
F = ["DERIVED", "PRIMARY", "FIELD_MAP", "ND"]
OTHER = Dataset()
OTHER.SeriesInstanceUID = "1.20"
REFERRING = dict(ReferencedSeriesSequence=[OTHER])
SEVERAL = {  # what each name means
    "numbers": (lambda: slices() + slices(1, SeriesNumber=4), {"3": 0, "4": 1}),
    "no UID": (lambda: without(SEVERAL["numbers"][0](), "SeriesInstanceUID"), {"3": 0, "4": 1}),
    "UIDs": (
        lambda: slices(series="1.20") + slices(1, series="1.2", **REFERRING),
        {"3": 1, "3-2": 0},
    ),
    "echoes": (
        lambda: slices(EchoTime=2.0, EchoNumbers=1) + slices(1, EchoTime=4.9, EchoNumbers=2),
        {"3_e1": 0, "3_e2": 1},
    ),
    "kinds": (
        lambda: slices(ImageType=M) + slices(1, ImageType=P) + slices(2, ImageType=F),
        {"3": 0, "3_phase": 1, "3_fieldmap": 2},
    ),
    "one file": (mixed, {"3_e1": 0, "3_e1_phase": 1, "3_e2": 2}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_each_series_is_listed_and_chosen_by_its_name(name, tmp_path):
    make, wanted = SEVERAL[name]
    files = save(tmp_path / "s", make())
    found = {number: members for number, _, _, members, _ in dicom_series(files)}
    assert set(found) == set(wanted)
    assert {len(members) for members in found.values()} == {min(4, len(files))}
    for number, members in found.items():
        values = at_places(read(tmp_path, members, series=number))
        np.testing.assert_array_equal(values, DATA[wanted[number]])
    with pytest.raises(DataError, match=rf"holds {len(wanted)} volumes .*--force"):
        read(tmp_path, files)


def test_parts_of_one_file_become_results_with_names(tmp_path, tiny):
    file = save(tmp_path, mixed())[0].rename(tmp_path / "a.dcm")
    always = ["--weights", str(tiny), "--scale", "4", "--no-figure", "--output"]

    def results(*arguments):
        assert predict.main([*map(str, arguments), *always, str(tmp_path / "o")]) == 0
        return {path.name for path in (tmp_path / "o").glob("*.nii.gz")}

    assert results(file, "--series", "3_e2") == {"a_3_e2_x4.nii.gz"}
    # In a folder phase maps are left out, but not those that are asked for by name.
    assert results(tmp_path, "--series", "3_e1_phase") >= {"a_3_e1_phase_x4.nii.gz"}
    assert results(file) == {f"a_3_{part}_x4.nii.gz" for part in ("e1", "e1_phase", "e2")}


def test_the_planes_of_a_localizer_are_three_series(tmp_path):
    made = [
        dicom(DATA[k, z], ORIGIN + 5 * z * np.cross(a, b), [*a, *b], number=9 * k + z,
              Manufacturer="GE MEDICAL SYSTEMS", ImagesInAcquisition=9, MRAcquisitionType="3D")
        for k, (a, b) in enumerate(((ALONG, DOWN), (DOWN, NORMAL), (ALONG, NORMAL)))
        for z in range(3)
    ]  # fmt: skip
    found = dicom_series(save(tmp_path, made))
    assert [number for number, *_ in found] == ["3", "3-2", "3-3"]
    scans = [read(tmp_path, members, series=n) for n, _, _, members, _ in found]
    assert {volume.stored.shape for volume in scans} == {(5, 6, 3)}
    assert len({volume.stored.tobytes() for volume in scans}) == 3


def test_slices_that_cannot_be_put_together_are_one_series_and_an_error(tmp_path):
    made = [single(t, z, RepetitionTime=4.0 * t + z) for t, z in EVERY]
    ((number, about, _, members, _),) = dicom_series(save(tmp_path / "a", made))
    assert number == "3" and "12 file(s)" in about
    with pytest.raises(DataError, match=r"holds 12 volumes .*TR varies.*--force"):
        read(tmp_path, members, series=number)
    for number, _, _, members, _ in dicom_series(save(tmp_path / "b", made[:4])):
        with pytest.raises(DataError, match=r"lie at 4 positions, but become 1 .*--force"):
            read(tmp_path, members, series=number)


def test_copies_and_files_without_a_picture_are_left_out(tmp_path, capsys):
    made, other = slices(), without(slices(1, [0, 1]), "PixelData", "Rows", "Columns")
    other[1].SOPClassUID = other[1].file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    files = save(tmp_path / "s", [*made, *made[1:3], *other])
    ((number, _, _, members, _),) = dicom_series(files)
    assert len(members) == 7
    np.testing.assert_array_equal(at_places(read(tmp_path, members, series=number)), DATA[0])
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 file(s) without pixels are left out (IM00" in line
    assert not dicom_series(save(tmp_path / "r", other))
    made[0].PixelData = bytes(60)
    made[0].save_as(tmp_path / "s" / "other", enforce_file_format=True)
    with pytest.raises(DataError, match=r"IM00. and other differ, but say that they are the same"):
        read(tmp_path, [*members, tmp_path / "s" / "other"])


MISSING = "2 to 4 mm apart.*is one missing"
REFUSED = {
    "missing": (lambda: slices(0, (0, 1, 3), PixelRepresentation=1), MISSING, 3),
    "missing frame": (lambda: enhanced([(0, z) for z in (0, 1, 3)]), MISSING, 3),
    "shifted": (lambda: [single(0, z, z * ALONG) for z in range(4)], "beside one another", 4),
    "no position": (lambda: without(slices(), "ImagePositionPatient"), "slices are flipped", 4),
    "times": (lambda: slices() + slices(1, number=9), "holds 2 volumes, as fMRI", (4, 2)),
    "enhanced times": (lambda: enhanced(EVERY, stack), "holds 3 volumes, as fMRI", (4, 3)),
    "times not told": (lambda: enhanced(EVERY), "at 4 positions, but become 12", 12),
    "incomplete": (lambda: slices() + slices(1, (0, 1)), "holds 2 volumes, as fMRI", (3, 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_wrong_is_refused_unless_forced(name, tmp_path, capsys):
    make, words, shape = REFUSED[name]
    files = save(tmp_path / "s", make())
    with pytest.raises(DataError, match=rf"{words}.*\(--force"):
        read(tmp_path / "s", files)
    volume = read(tmp_path / "s", files, force=True)
    assert volume.stored.shape == (5, 6, *np.atleast_1d(shape))
    assert "warning: " in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a shell script in place of the program")
def test_a_resampled_copy_is_an_error_unless_forced(tmp_path, monkeypatch):
    copy = "for f in out/*.nii; do cp $f ${f%.nii}_Tilt_1.nii; done"
    (tmp_path / "program").write_text(f'#!/bin/sh\n"{dcm2niix.bin}" "$@" && {copy}\n')
    (tmp_path / "program").chmod(0o755)
    monkeypatch.setattr(dcm2niix, "bin", str(tmp_path / "program"))
    files = save(tmp_path / "s", slices())
    with pytest.raises(DataError, match=r"dcm2niix made _Tilt.*\(--force"):
        read(tmp_path, files)
    np.testing.assert_array_equal(at_places(read(tmp_path, files, force=True)), DATA[0])


def test_what_dcm2niix_does_not_know_is_said(tmp_path, capsys):
    read(tmp_path, save(tmp_path, without(slices(), "PatientPosition", "PixelSpacing")))
    pixels, harmless = sorted(capsys.readouterr().err.splitlines(), key=len)
    assert "1 mm is assumed" in pixels and "dcm2niix says: Patient Position" in harmless
    made = without(slices(0, [0]), "SliceThickness", "ImageOrientationPatient")
    read(tmp_path, save(tmp_path / "one", made))
    thick, lies = sorted(capsys.readouterr().err.splitlines(), key=len)
    assert "thick its slice is; 1 mm" in thick and "axial is assumed" in lies


@pytest.mark.parametrize("cut", [1, 4])
def test_slices_cut_short_spoil_their_series_alone(tmp_path, cut):
    files = save(tmp_path / "a", slices()) + save(tmp_path / "b", slices(1, series="1.4"))
    for file in files[:cut]:
        os.truncate(file, file.stat().st_size - 9)
    found = {series.files[0].parent.name: series for series in dicom_series(files)}
    assert [set(found[name].files) for name in "ab"] == [set(files[:4]), set(files[4:])]
    with pytest.raises(DataError, match=r"not large enough.*IM00"):
        read(tmp_path, found["a"].files, series=found["a"].number)
    volume = read(tmp_path, found["b"].files, series=found["b"].number)
    np.testing.assert_array_equal(at_places(volume), DATA[1])


def test_packed_files_are_refused_with_the_way_out(tmp_path):
    files = save(tmp_path / "s", slices())
    for file in files:
        file.write_bytes(gzip.compress(file.read_bytes()))
    ((_, _, _, members, _),) = dicom_series(files)
    with pytest.raises(DataError, match=r"IM000: is gzipped.*gunzip"):
        read(tmp_path, members)
    ds = single(0, 1)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(DataError, match=r"IM000: is deflated.*dcmconv"):
        read(save(tmp_path / "t", [ds])[0])


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made; nothing must be left there."""
    (tmp_path / "temporary ü").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary ü"))
    yield
    assert not list((tmp_path / "temporary ü").iterdir())


@pytest.fixture
def large(tmp_path):
    """A file of 300 MB, which takes no room on disk but a while to convert."""
    ds = single(0, 0, Rows=512, Columns=512, NumberOfFrames=600, PixelData=b"")
    (file,) = save(tmp_path / "large", [ds])
    data = file.read_bytes()[:-4] + struct.pack("<I", 600 * 512 * 512 * 2)
    file.write_bytes(data)
    os.truncate(file, len(data) + 600 * 512 * 512 * 2)
    return file


def test_a_file_that_takes_too_long_or_too_much_is_refused(tmp_path, temporary, large, monkeypatch):
    monkeypatch.setattr(program, "SECONDS", -1000)
    with pytest.raises(DataError, match="takes dcm2niix too long"):
        read(large)
    monkeypatch.setattr(program, "SECONDS", 60)
    monkeypatch.setattr(program, "BYTES", 2**20)
    ds = single(0, 0, Rows=1024, Columns=1024, PixelData=bytes(2 * 1024**2))
    ds.compress(RLELossless)  # 64 to 1
    with pytest.raises(DataError, match=r"unpacks to more than \d MB"):
        read(save(tmp_path / "t", [ds])[0])


def test_an_interrupt_ends_the_program_and_leaves_nothing(temporary, large):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        read(large)
    signal.signal(signal.SIGINT, before)
    with pytest.raises(ChildProcessError):  # no child is left
        os.waitpid(-1, os.WNOHANG)


def test_without_dcm2niix_one_line_names_the_package(tmp_path, monkeypatch):
    files = save(tmp_path / "s", slices())
    for path in (tmp_path / "nothing", files[0]):  # which may not be executed
        monkeypatch.setattr(dcm2niix, "bin", str(path))
        with pytest.raises(DataError, match=r"package dcm2niix .*pip install"):
            dicom_series(files)
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(DataError, match=r"package dcm2niix .*pip install"):
        read(tmp_path, files)
