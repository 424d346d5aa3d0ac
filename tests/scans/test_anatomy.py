"""What is no anatomy is left out of folders and refused alone: names, sidecars, headers, values."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import slices_of_person
from made_files import blob, save_series, save_volume
from scipy import ndimage
from scipy.spatial import cKDTree

from scans.anatomy import (
    BOLD,
    FIELD,
    OTHER,
    PERFUSION,
    STATISTICS,
    is_label_map,
    why_not_anatomy,
)
from scans.listing import find_scans, training_scans

MASKS = "masks or segmentations"
NAMES = {
    "sub-1/anat/sub-1_T1w": "",
    "sub-1/anat/sub-1_acq-mag_SWI": "",
    "sub-1/anat/sub-1_desc-masked_T1w": "",
    "sub-1/anat/sub-1_part-mag_T2starw": "",
    "CT/55_T1": "",  # a class of controls
    "real/K55": "",
    "lesion/55_T1": "",  # another class
    "AD/P1_left": "",
    "Mag_Images_4": "",
    "gre_field_mapping_e1": FIELD,
    "x/s01_gre_e2_ph": FIELD,
    "s01_fieldmaphz": FIELD,
    "B0Map": FIELD,
    "s01_TB1map": FIELD,
    "s01_gre_real": FIELD,
    "s01_gre_imaginary": FIELD,
    "sub-1/anat/sub-1_part-real_T2starw": FIELD,
    "sub-1/anat/sub-1_part-imag_T2starw": FIELD,
    "SWI_Pha_Images": FIELD,
    "sub-1/fmap/sub-1_magnitude1": FIELD,
    "sub-1/perf/sub-1_asl": PERFUSION,
    "sub-1/perf/x": PERFUSION,
    "s01_CBF": PERFUSION,
    "s01_pCASL_M0": PERFUSION,
    "sub-1/pet/x": OTHER,
    "sub-1/ct/sub-1_scan": OTHER,
    "sub-1/mrs/x": OTHER,
    "s01_ct": OTHER,
    "s01_aparc+aseg": MASKS,
    "s01_label-GM_T1w": MASKS,
    "s01_brainmask": MASKS,
    "Schaefer_atlas": MASKS,
    "s01_dseg": MASKS,
    "mwp1s01": "tissue maps",
    "s01_pve_0": "tissue maps",
    "s01_boldref": BOLD,
    "3DB0Map": FIELD,
    "s01_fieldcoef": FIELD,
    "MPRAGE_topup": "",
    "s01_dmri_T0004": "diffusion series",
    "SPECT": OTHER,
    "atlases/MNI_T1": MASKS,
    "zstat1": STATISTICS,
    "spmT_0001": STATISTICS,
    "beta_0003": STATISTICS,
    "pain_unthresh": STATISTICS,
    "pain_zmap": STATISTICS,
    "pain_varcope": STATISTICS,
    "topup-coeff-fixed": FIELD,
    "sub-COPE001_T1w": "",
    "sub-NDARINVRC1XK9T2_T1w": "",
    "patient01_3DMRI": "",
    "AD/pat01_1.5-T": "",
    "t1_t": "",
    "sub-SPECT01_T1w": "",
    "con/con_01": "",  # of controls
    "s01_acq-se_T1": "",
    "anat/c2sub-01_T1w": "tissue maps",
}


def test_names_and_folders_tell_what_is_no_anatomy(tmp_path):
    for name, wanted in NAMES.items():
        found = why_not_anatomy(Path(f"{name}.nii.gz"), Path(name).parent.parts)
        assert found == wanted, name
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    kept = {s.path.relative_to(tmp_path).as_posix() for s in training_scans(tmp_path)[0]}
    assert kept == {f"{name}.nii.gz" for name, why in NAMES.items() if not why}


SIDECARS = {
    "magnitude": ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "Modality": "MR"}, ""),
    "both": ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "P"]}, ""),
    "description": ({"SeriesDescription": "t1_mprage_sag", "ImageType": None}, ""),
    "a phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, FIELD),
    "philips's phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P_FFE"]}, FIELD),
    "philips": ({"ImageType": ["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]}, FIELD),
    "enhanced": ({"ComplexImageComponent": "PHASE"}, FIELD),
    "fieldmap": ({"SeriesDescription": "gre_field_mapping"}, FIELD),
    "a sequence": ({"PulseSequenceDetails": "%SiemensSeq%\\ep2d_bold"}, BOLD),
    "that of GE": ({"PulseSequenceName": "epiRT"}, BOLD),
    "of another sort": ({"PulseSequenceDetails": "%SiemensSeq%\\tfi_segme"}, ""),
    "map": ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "diffusion series"),
    "blood": ({"ArterialSpinLabelingType": "PCASL"}, PERFUSION),
    "pet": ({"Modality": "PT"}, OTHER),
    "damaged": ([3], ""),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_says_what_a_volume_is(tmp_path, name):
    content, wanted = SIDECARS[name]
    (tmp_path / "x.json").write_text(json.dumps(content))
    save_volume(tmp_path / "x.nii.gz", blob((8, 8, 4)))
    assert find_scans(tmp_path)[0].left_out == wanted


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
@pytest.mark.parametrize("order", "<>")
def test_the_intent_of_a_nifti_header_counts(tmp_path, kind, order):
    for code, wanted in (("none", ""), ("label", MASKS), ("t test", STATISTICS),
                         ("estimate", STATISTICS), ("vector", "vectors or surfaces")):  # fmt: skip
        data = blob((8, 8, 4)).astype(f"{order}f4")
        header = kind.header_class(endianness=order)
        image = kind(data, np.eye(4), header)
        image.header.set_intent(code, (4,) if code == "t test" else ())
        path = tmp_path / code / f"x.{'img' if kind is nib.Nifti1Pair else 'nii'}"
        path.parent.mkdir()
        nib.save(image, path)
        assert find_scans(path.parent)[0].left_out == wanted


def test_the_description_in_a_header_counts(tmp_path):
    for i, (words, wanted) in enumerate(
        [
            ("SPM{T_[12]} - contrast 1", STATISTICS),
            ("FSL5.0", ""),
            ("Contrast 1: a > b", STATISTICS),
        ]
    ):
        image = nib.Nifti1Image(blob((8, 8, 4)), np.eye(4))
        image.header["descrip"] = words
        (tmp_path / str(i)).mkdir()
        nib.save(image, tmp_path / str(i) / "x.nii.gz")
        assert find_scans(tmp_path / str(i))[0].left_out == wanted


def test_a_stripped_head_of_freesurfer_is_anatomy():
    assert why_not_anatomy("mri/brainmask.mgz") == ""
    assert why_not_anatomy("mri/brainmask.nii.gz") == MASKS
    folders = ("derivatives", "freesurfer", "sub-1", "mri")
    assert why_not_anatomy("/".join((*folders, "brainmask.mgz")), folders) == "derivatives"


def test_a_dicom_series_of_phase_or_of_ct_is_no_anatomy(tmp_path):
    for name, wanted, about in (
        ("1", "", dict(ImageType=["ORIGINAL", "PRIMARY", "M"])),
        ("2", FIELD, dict(ImageType=["ORIGINAL", "PRIMARY", "P"])),
        ("3", FIELD, dict(ComplexImageComponent="IMAGINARY")),
        ("4", OTHER, dict(Modality="CT")),
        ("6", FIELD, dict(ImageType=["ORIGINAL", "PRIMARY", "OTHER"], part=1)),
        ("7", "", dict(ImageType=["ORIGINAL", "PRIMARY", "OTHER"], part=0)),
        ("5", PERFUSION, dict(SeriesDescription="ep2d_pasl")),
    ):
        part = about.pop("part", None)
        maker = "Philips" if part is None else "GE MEDICAL SYSTEMS"
        save_series(tmp_path / name, n=2, series=f"1.2.{name}", Manufacturer=maker, **about)
        for path in (tmp_path / name).iterdir() if part is not None else ():
            ds = pydicom.dcmread(path)
            ds.add_new((0x0043, 0x102F), "SS", part)  # GE's own number for it
            ds.save_as(path)
        assert find_scans(tmp_path / name)[0].left_out == wanted


def test_alone_it_is_refused_unless_forced_among_others_left_out(tmp_path, upscale):
    def call(*words):
        return upscale("--scale", 4, *words)

    phase = save_volume(tmp_path / "s1_gre_e2_ph.nii", blob((8, 8, 3)))
    head = save_volume(tmp_path / "s1_T1.nii", blob((8, 8, 3)))
    status, _, errors = call(phase)
    assert status == 1 and "s1_gre_e2_ph.nii: belongs to field maps" in errors
    assert "--force" in errors and len(errors.splitlines()) == 1
    status, printed, _ = call(phase, head)
    assert status == 0 and "s1_gre_e2_ph.nii: left out" in printed
    assert [p.name for p in tmp_path.glob("*_x4.nii.gz")] == ["s1_T1_x4.nii.gz"]
    assert call(phase, "--force")[0] == 0
    save_series(tmp_path / "b0", n=2, ImageType=["ORIGINAL", "PRIMARY", "P"])
    status, _, errors = call(tmp_path / "b0")
    assert status == 1 and "b0: holds nothing but 1 field maps" in errors and "--force" in errors
    for n in (4, 5):  # beside one series of anatomy it is left out, of two one must be chosen
        names = f"{n}-{{}}".format
        save_series(tmp_path / "b0", n=2, series=f"1.2.{n}", SeriesNumber=n, names=names)
        status, printed, errors = call(tmp_path / "b0")
        if n == 4:
            assert status == 0 and "b0: left out: 1 field maps" in printed
            assert (tmp_path / "b0_x4.nii.gz").exists()
    assert status == 2 and "3 (MR t1 mprage, 2 file(s), field maps" in errors and "; 5 (" in errors


# --- label maps -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A part of a brain (112, 96, 40): 20 slices of a person, twice as many by interpolation."""
    few = slices_of_person("55")[:, 64:176, 80:176].astype(np.float32)
    return np.moveaxis(ndimage.zoom(few, (2, 1, 1), order=1), 0, 2)


def label_maps(head):
    """{name: a label map made of a brain}."""
    inside = head > 30
    tissue = np.where(inside, 1 + np.digitize(head, (90, 150)), 0)
    places = np.argwhere(inside)
    rng = np.random.default_rng(0)

    def atlas(n, labels):
        centres = places[np.sort(rng.choice(len(places), n, replace=False))]  # from side to side
        found = np.zeros(head.shape, np.int32)
        found[inside] = labels[cKDTree(centres).query(places)[1]]
        return found

    noisy = head + rng.normal(0, 20, head.shape)

    lesions = np.zeros(head.shape, np.uint8)
    lesions[40:42, 50:53, 21:23] = 1
    return {
        "mask": inside.astype(np.uint8) * 255,
        "tissue": tissue.astype(np.float64),
        "few of FreeSurfer": np.array([0, 2, 41, 77], np.int16)[tissue],
        "noisy tissue": np.where(inside, 1 + np.digitize(noisy, (90, 150)), 0),
        "atlas of 660": atlas(660, rng.permutation(660) + 1),
        "atlas of small regions": atlas(3000, rng.permutation(3000) + 1),
        "atlas of 40, numbered from side to side": atlas(40, np.arange(40) + 1),
        "small lesion": lesions,
        "several times": np.stack([tissue, tissue], 3),
    }


def test_label_maps_are_known_by_their_values(head):
    wrong = [name for name, labels in label_maps(head).items() if not is_label_map(labels)]
    assert not wrong


def test_anatomy_is_no_label_map(head):
    """Measured on 70 scans: none as stored, in 8, 5 or 4 bits, smoothed, saturated, enlarged."""
    kinds = {
        "8 bits": head.astype(np.uint8),
        "whole floats": np.rint(head),
        "4 bits": (head / 16).astype(np.int16),
        "smooth": ndimage.gaussian_filter(head, 3).astype(np.uint8),
        "saturated": np.minimum(head * 1.7, 255).astype(np.uint8),
        "enlarged": head[::3, ::3].repeat(3, 0).repeat(3, 1).astype(np.uint8),
        "noise of few values": np.random.default_rng(0).integers(0, 5, head.shape),
        "fractions": label_maps(head)["tissue"] / 3,
        "NaN around": np.where(head > 30, head, np.nan),
        "one value": np.full(head.shape, 7),
        "small and binary": (head[50:70, 40:60, 10:12] > 90).astype(np.uint8),
        "a binary slice": (head[..., :1] > 90).astype(np.uint8),
    }
    assert not [name for name, volume in kinds.items() if is_label_map(volume)]
