"""One page of all results in a folder, for a browser, that works offline."""

import base64
import html
import io
from pathlib import Path

from inference.sidecar import read_record
from utils import atomic_write, name_of_program, version

WIDTH = 1000  # pixels of an embedded figure
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
article { border-top: 1px solid #bbb; padding: 1rem 0; }
img { max-width: 100%; height: auto; }
h2 { font-size: 1.1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.warning { background: #fff3cd; color: #1b1b1b; padding: .3rem .6rem; margin: .3rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: .5rem 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616; }
  article { border-color: #555; } }
"""


def write_report(folder: Path, left=()) -> Path:
    """Write report.html: every result in a folder and below, those that need a look first. left:
    what is said of inputs that gave none."""
    found = [(path, read_record(path)) for path in sorted(folder.rglob("*.json"))]
    found = [(path, record) for path, record in found if record.get("Results")]
    found.sort(key=lambda pair: (-len(pair[1].get("Warnings") or []), str(pair[0])))
    warned = sum(bool(record.get("Warnings")) for _, record in found)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Results in {html.escape(folder.name)}</title><style>{STYLE}</style>",
        f"<h1>{len(found)} results</h1><p><strong>Not for clinical use.</strong> Made by "
        f"{name_of_program()} {version()}; {warned} with warnings, which come first.</p>",
        "<h2>Inputs without a result</h2>" * bool(left),
        *(f"<p class='warning'>{html.escape(words)}</p>" for words in left),
        *(article(path, record, folder) for path, record in found),
        "</html>\n",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    with atomic_write(path, "w") as file:
        file.write("\n".join(parts))
    return path


def article(path: Path, record: dict, folder: Path) -> str:
    """One result: its figure if there is one, what was done and why, warnings, scores."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    figure = path.with_name(f"{path.stem}_figure.png")
    source = record.get("DegradationFrom", "")  # who says how the input was made
    rows = {
        "done": record.get("Plan"),
        "found": "" if source == "nobody" else f"{record.get('Degradation', '')} ({source})",
        "voxels": record.get("Resolution"),
    }
    for who, scores in (record.get("Scores") or {}).items():
        words = [f"PSNR {scores['psnr']:.2f} dB"] if "psnr" in scores else []
        words += [f"in brain {scores['psnr_brain']:.2f} dB"] if "psnr_brain" in scores else []
        rows[who.lower()] = ", ".join(words)
    rows["input"] = (record.get("Sources") or [""])[0]
    rows["files"] = ", ".join(record["Results"])
    lines = [f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in rows.items() if v]
    warnings = [f"<p class='warning'>{html.escape(w)}</p>" for w in record.get("Warnings") or []]
    picture = ""
    if figure.exists():
        words = html.escape(f"{name}: before, interpolated and after")
        picture = f"<img alt='{words}' src='data:image/jpeg;base64,{embedded(figure)}'>"
    return (
        f"<article><h2>{html.escape(name)}</h2>{''.join(warnings)}{picture}"
        f"<dl>{''.join(lines)}</dl></article>"
    )


def embedded(figure: Path) -> str:
    """A figure as JPEG in base64, no wider than WIDTH."""
    from PIL import Image

    with Image.open(figure) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDTH, 10 * WIDTH))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
