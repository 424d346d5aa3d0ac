"""What shows no anatomy and is not to be enlarged or learned from: by names, sidecars, headers and,
for label maps that nothing else gives away, by values."""

import re
from pathlib import Path

import numpy as np

from scans.formats import PICTURES, first_bytes, partner, stem, suffix
from utils import read_json

FIELD, PERFUSION = "field maps or parts of complex images", "perfusion images"
OTHER, BOLD, STATISTICS = "CT, PET or spectroscopy", "BOLD series", "statistical maps"
# By a whole word of a file's name, of a folder's, or of what describes a series.
WORDS = {
    "masks or segmentations": r"[a-z]*masks?|[a-z]*seg[a-z]*|[a-z]*labels?(?:tr|ts|maps?)?|aparc"
    r"|wmparc|ribbon|[a-z]*atlas(?:es)?|parcellations?",
    "derivatives": r"derivatives",
    BOLD: r"bold|boldref|sbref|func|fmri|rs-?fmri|epirt",
    FIELD: r"fmap|[a-z]*field[-_ ]?map[a-z]*|(?:3d)?[tr]?b[01][-_ ]?map|phase|phasediff|pha"
    r"|topup[-_](?:field|coeff?)[-a-z]*|field[-_ ]?coeff?s?|part-(?:real|imag)"
    r"|(?<=[-_])(?:ph|real|imag|imaginary)(?=[-_ ]?\d*$)",
    "diffusion series": r"dwi|dti|(?<!\d)dmri|diffusion|diff|adc|tracew?|fa(?!\d)",
    PERFUSION: r"[a-z]*asl|perf|perfusion|m0scan|r?cb[fv]|mtt|ttp|tmax",
    OTHER: r"pet|spect(?!\d)|mrsi?|spectroscopy|(?<=[-_])ct(?=\d*$)",
}
WORDS = {
    kind: re.compile(rf"(?<![A-Za-z])(?:{words})\d*(?![A-Za-z])", re.I)
    for kind, words in WORDS.items()
}
# By a name alone, as such folders are classes: lesions; grey matter and the like, made by SPM.
NAMES = {
    "masks or segmentations": re.compile(r"(?<![A-Za-z])(?:lesions?|rois?)(?![A-Za-z])", re.I),
    "tissue maps": re.compile(
        r"(?<![A-Za-z\d])(?:(?:m0?w|rw?|w)[cp][1-6](?=[A-Za-z])|[cp][1-6](?=sub-))"
        r"|(?i:_pve(?:seg)?_?\d?$|^tpm(?:_\d+)?$)"
    ),
}
# Of volumes alone: whole names as SPM and FSL give them, and what SPM and AFNI write into headers.
STATISTIC_NAMES = re.compile(
    r"(?:un)?(?:thresh_)?(?:[ztf]stat|(?:var)?cope|beta|spm[tfp])_?\d+"
    r"|(?:.*[-_])?(?:[zt]map|unthresh|varcope)", re.I
)  # fmt: skip
STATISTIC_HEADERS = re.compile(rb"SPM\{|spm_spm:|SPM contrast|^Contrast \d|_score of contrast")
# Folders of BIDS, as it spells them: CT may be a class.
BIDS = {"perf": PERFUSION, "pet": OTHER, "ct": OTHER, "mrs": OTHER, "meg": OTHER, "eeg": OTHER}
NO_MR = {"CT", "PT", "NM", "US", "CR", "DX", "XA", "SEG", "RTDOSE"}  # DICOM's Modality


def why_not_anatomy(path, folders=None, series=None) -> str:
    """Why a file is no anatomical image, such as `masks or segmentations`; '' if nothing says so.

    path: a picture, a volume or one file of a DICOM series. folders: their names from the data
    folder down; None: the one that the file is in. series: of a DICOM file, `dicom.Series`.
    """
    path = Path(path)
    folders = (path.absolute().parent.name,) if folders is None else folders
    name = f"{series.about} {series.number}" if series else stem(path)
    if path.name in ("brainmask.mgz", "brainmask.mgh"):  # so FreeSurfer calls its stripped T1
        name = ""
    for kind, words in WORDS.items():
        if words.search(name) or any(words.fullmatch(folder) for folder in folders):
            return kind
    found = [kind for kind, words in NAMES.items() if words.search(name)]
    found += [BIDS[folder] for folder in folders if folder in BIDS]
    if found or suffix(path) in PICTURES:
        return found[0] if found else ""
    if series:
        return kind_by_tags(series.tags)
    found = kind_by_tags(read_json(path.with_name(f"{stem(path)}.json"))) or kind_by_header(path)
    return found or (STATISTICS if STATISTIC_NAMES.fullmatch(stem(path)) else "")


def kind_by_tags(tags: dict) -> str:
    """What a sidecar or a DICOM header says that is no anatomy; '' if it says nothing."""
    if str(tags.get("Modality", "")).upper() in NO_MR:
        return OTHER
    if "ArterialSpinLabelingType" in tags:
        return PERFUSION
    kinds = tags.get("ImageType")
    kinds = [str(k).upper() for k in (kinds if isinstance(kinds, list) else [kinds]) if k]
    kinds.append(str(tags.get("ComplexImageComponent", "")).upper())
    # P_FFE is a phase image of Philips. Where magnitude is named too, the file has both.
    parts = {k.split("_")[0] for k in kinds}
    if parts & {"P", "PHASE", "R", "REAL", "I", "IMAGINARY"} and not parts & {"M", "MAGNITUDE"}:
        return FIELD
    sequence = (str(tags.get(key, "")) for key in ("PulseSequenceDetails", "PulseSequenceName"))
    if any(map(WORDS[BOLD].search, sequence)):
        return BOLD
    words = [*kinds, str(tags.get("SeriesDescription", ""))]  # ProtocolName may be of all series
    return next((kind for kind, x in WORDS.items() if any(map(x.search, words))), "")


def kind_by_header(path: Path) -> str:
    """What intent code and description of a NIfTI header say that is no anatomy; '' for nothing."""
    head = first_bytes(partner(path, ".hdr") if suffix(path)[:4] == ".img" else path)
    order = "little" if head[:1] in (b"\x5c", b"\x1c") else "big"  # the header's size, 348 or 540
    code = 0
    if head[344:347] in (b"n+1", b"ni1"):
        code = int.from_bytes(head[68:70], order)
    elif head[4:7] in (b"n+2", b"ni2"):
        code = int.from_bytes(head[504:508], order)
    if code in (1002, 1003):  # NIFTI_INTENT_LABEL, NIFTI_INTENT_NEURONAMES
        return "masks or segmentations"
    if 1004 <= code <= 1010 or 2001 <= code <= 2005:
        return "vectors or surfaces"
    words = STATISTIC_HEADERS.search(head[148:228].strip(b"\0")) if len(head) >= 348 else None
    return STATISTICS if words or 2 <= code <= 24 or code == 1001 else ""


def is_label_map(volume: np.ndarray) -> bool:
    """Whether a volume (X, Y, Z) or (X, Y, Z, T) holds labels: masks, atlases, segmentations.

    Their values are whole numbers, and most neighbours are equal: 68 % at the least in atlases of
    660 regions at 3 mm, where the 8-bit anatomy at hand had 27 %, smoothed, saturated or enlarged
    by two 65 %. Between 60 and 80 % few values, or jumps between values far apart, decide. What is
    smaller than 16,384 voxels says too little.
    """
    if volume.size < 2**14 or min(volume.shape[:3]) < 3:
        return False
    volume = volume if volume.ndim == 3 else volume[..., 0]
    some = volume[..., :: max(1, volume.shape[2] // 8)]
    if (some == some.flat[0]).all():  # a small lesion between the slices looked at
        some = volume
    with np.errstate(invalid="ignore"):
        if some.dtype.kind == "f" and (some != np.rint(some)).any():  # NaN is not equal to itself
            return False
    inside, one, other = some != some.flat[0], [], []  # the corner is background
    for axis in (0, 1):
        values, within = some.swapaxes(0, axis), inside.swapaxes(0, axis)
        both = within[1:] & within[:-1]
        one.append(values[1:][both])
        other.append(values[:-1][both])
    one, other = np.concatenate(one), np.concatenate(other)
    same = float((one == other).mean()) if one.size else 1.0
    if same < 0.6 or not inside.any():
        return False
    values = np.unique(some[inside])
    one, other = np.searchsorted(values, one), np.searchsorted(values, other)
    jumps = np.abs(one - other)[one != other] / values.size
    return same > 0.8 or values.size <= 6 or (jumps.size > 0 and jumps.mean() > 0.28)
