"""Compare the README's first table with what evaluate.py has just measured.

python .ci/readme_numbers.py README.md benchmark.json
"""

import json
import re
import sys
from pathlib import Path

TOLERANCE = {"psnr": 0.02, "psnr_brain": 0.02, "ssim": 0.0005}


def table_of(text: str) -> dict[str, list[float]]:
    """{bicubic or weights file: [PSNR, in brain, SSIM]} of the rows of the first table."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if rows and not line.startswith("|"):
            break
        name = re.match(r"bicubic|`(weights/[\w-]+\.pt)`", cells[0])
        if line.startswith("|") and len(cells) == 4 and name:
            rows[name[1] or "bicubic"] = [float(cell.split()[0]) for cell in cells[1:]]
    return rows


def main(readme, measured) -> int:
    shown = table_of(Path(readme).read_text(encoding="utf-8"))
    found = json.loads(Path(measured).read_text(encoding="utf-8"))["results"]["bicubic"]
    wrong = len(shown) < 3
    for name, values in shown.items():
        for (metric, tolerance), value in zip(TOLERANCE.items(), values):
            now = found[name][metric]["mean"]
            good = abs(now - value) <= tolerance
            wrong |= not good
            print(f"{name:24} {metric:12} README {value:8.4f}  now {now:8.4f}  {good or 'WRONG'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
