"""TRUST.md from study/TRUST.in.md: tables and numbers of study/results put into its text."""

import json
import re
from pathlib import Path

import utils
from study.common import BICUBIC, OURS, ROOT, TRUTH, VERSIONS, text
from study.tissue import CUBIC, NOISY, TISSUES


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def percent(share: dict) -> str:
    """Mean and spread of a share, in per cent."""
    return text({k: 100 * v if k != "n" and v is not None else v for k, v in share.items()}, 0)


def source(r: dict) -> str:
    """The command, and of how many."""
    slices = f", {r['slices']} slices" if "slices" in r else ""
    about = f"{r['weights']}, {r['people']} people{slices}, seed {r['seed']}"
    return f"`{r['command']}` ({about}; mean ± sd over people)"


def fourier(r: dict) -> dict:
    half, shares = "correlation_above_half_up_to_cycles_per_mm", ("1", "1.25", "1.5", "2", "3")
    rows = []
    for name in VERSIONS:
        at = [r[name][f"at_{share}_of_lr"] for share in shares]
        cells = [f"{a['correlation']['mean']:.2f} / {a['amplitude']['mean']:.2f}" for a in at]
        rows.append([name, text(r[name][half], 3), *cells])
    return {
        "FOURIER": table(["", "one half at (cycles/mm)", *(f"x {s}" for s in shares)], rows),
        "LR_END": f"{r['lr_ends_at_cycles_per_mm']:.3f}",
        "HALF_BICUBIC": f"{r[BICUBIC][half]['mean']:.3f}",
        "HALF_SR": f"{r[OURS][half]['mean']:.3f}",
    }


def tissue(r: dict, name: str = "TISSUE") -> dict:
    rows = []
    for version in (NOISY, CUBIC if CUBIC in r else BICUBIC, OURS):
        cells = [r[version][t] for t in TISSUES]
        cells = [f"{text(c['dice'], 3)}; {text(c['error_percent'], 1)} %" for c in cells]
        rows.append([version, *cells])
    return {name: table(["", *TISSUES], rows)}


def thick(r: dict) -> dict:
    return tissue(r, "THICK")


def spots(r: dict) -> dict:
    rows, signs = [], ("bright", "dark")
    for size in r[OURS]["bright"]:
        cells = [r[version][sign][size] for sign in signs for version in VERSIONS]
        number = " + ".join(str(r[OURS][sign][size]["spots"]) for sign in signs)
        cells = [f"{percent(c['contrast'])} %; {text(c['size'], 1)}" for c in cells]
        rows.append([f"{size} mm ({number})", *cells])
    head = [f"{sign}, {version}" for sign in signs for version in VERSIONS]
    return {"SPOTS": table(["true size (how many)", *head], rows)}


def lesions(r: dict) -> dict:
    rows = []
    for contrast in ("FLAIR", "T1"):
        for size, v in r[contrast].items():
            for name in VERSIONS if size != "one_threshold" else ():
                shares = [f"{percent(v[name][k])} %" for k in ("contrast", "area")]
                found = f"{v[name]['number_found']} of {v['lesions']}"
                rows.append([f"{contrast}, {size}", name, *shares, found])
    one = []
    for person, v in r["FLAIR"]["one_threshold"].items():
        cells = [v[name] for name in (TRUTH, *VERSIONS)]
        touched, false = "touched_percent", "false_findings_of_5_mm3"
        cells = [f"{c['dice']:.2f}; {c[touched]:.0f} %; {c[false]}" for c in cells]
        one.append([person, f"{v['level']:.2f}", *cells])
    found = r["FLAIR"]["all"]
    return {
        "LESIONS": table(["lesions", "", "contrast", "area", "found"], rows),
        "THRESHOLD": table(["FLAIR", "threshold", TRUTH, *VERSIONS], one),
        "FLAIR_SR": f"{found[OURS]['number_found']} of {found['lesions']}",
        "FLAIR_BICUBIC": str(found[BICUBIC]["number_found"]),
    }


def invented(r: dict) -> dict:
    columns = {
        "percent_of_brain_with_invented_detail": "brain with more fine detail than the truth",
        "percent_of_detail_that_lost_half": "fine detail that lost over half",
        "percent_of_detail_against_the_truth": "fine detail of the opposite sign",
    }
    rows = [[name, *(f"{text(r[name][key])} %" for key in columns)] for name in VERSIONS]
    return {"INVENTED": table(["", *columns.values()], rows)}


def worst(r: dict) -> dict:
    least = r["least_gain"][0]
    return {
        "WORSE": str(r["slices_worse_than_bicubic"]),
        "SLICES": str(r["slices"]),
        "LEAST": f"{least['gain']:+.2f} dB ({least['name']})",
        "GAIN": text(r["gain"]),
    }


def rivals(r: dict) -> str:
    rows = []
    for name, v in r.items():
        if isinstance(v, dict):
            cells = [text(v["psnr"]), text(v["psnr_brain"]), f"{v['gain']:+.2f}"]
            cells += [text(v["fitted"]), text(v["again"], 1), f"{1000 * v['seconds']:.1f}"]
            rows.append([name, *cells, f"{v['times_ours']:.2g}"])
    head = ["", "PSNR (dB)", "in brain (dB)", "gain (dB)", "fitted (dB)", "shrunk again (dB)",
            "ms a slice", "time / ours"]  # fmt: skip
    return f"LR by `{r['degradation']}`:\n\n{table(head, rows)}\n\n{source(r)}"


def main(argv=None):
    parse = utils.Parser(__doc__)
    parse.add_argument("--results", type=Path, default=ROOT / "study/results", help="numbers")
    parse.add_argument("--page", type=Path, default=ROOT / "docs" / "TRUST.md", help="to write")
    args = parse.parse_args(argv)
    found = {path.stem: json.loads(path.read_text()) for path in args.results.glob("*.json")}
    for name in [name for name, r in found.items() if "-m study." not in r["command"]]:
        del found[name]
        utils.note(f"{name}: left out, made by an older form of its script")
    words = {}
    for make in (fourier, tissue, thick, spots, lesions, invented, worst):
        name = {"thick": "tissue-4x1"}.get(make.__name__, make.__name__)
        if name in found:
            words |= make(found[name])
            words[f"{make.__name__.upper()}_FROM"] = source(found[name])
    all_rivals = [rivals(r) for name, r in sorted(found.items()) if name.startswith("rivals-")]
    words["RIVALS"] = "\n\n".join(all_rivals)
    page = (ROOT / "study/TRUST.in.md").read_text(encoding="utf-8")
    page = re.sub(r"@@(\w+)@@", lambda m: words.get(m[1], "(not measured here)"), page)
    with utils.atomic_write(args.page, "w") as file:
        file.write(page)
    print(args.page)


if __name__ == "__main__":
    utils.run_main(main)
