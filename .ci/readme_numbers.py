"""Compare the README's tables of scores with what evaluate.py has just measured.

python .ci/readme_numbers.py README.md first.json second.json
"""

import json
import re
import sys
from pathlib import Path

TOLERANCE = {"psnr": 0.02, "psnr_brain": 0.02, "ssim": 0.0005}


def tables_of(text: str) -> list[dict[str, list[float]]]:
    """{bicubic or weights file: [PSNR, in brain, SSIM]} of the rows of each table of scores."""
    tables = []
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        name = re.match(r"bicubic|`(weights/[\w-]+\.pt)`", cells[0])
        if line.startswith("|") and len(cells) == 4 and name:
            if name[0] == "bicubic":
                tables.append({})
            tables[-1][name[1] or "bicubic"] = [float(cell.split()[0]) for cell in cells[1:]]
    return tables


def main(readme, *measured) -> int:
    tables = tables_of(Path(readme).read_text(encoding="utf-8"))
    wrong = len(tables) != len(measured) or min(map(len, tables)) < 2
    for shown, file in zip(tables, measured):
        found = json.loads(Path(file).read_text(encoding="utf-8"))["results"]["bicubic"]
        for name, values in shown.items():
            for (metric, tolerance), value in zip(TOLERANCE.items(), values):
                now = found[name][metric]["mean"]
                good = abs(now - value) <= tolerance
                wrong |= not good
                words = f"README {value:8.4f}  now {now:8.4f}  {good or 'WRONG'}"
                print(f"{name:24} {metric:12} {words}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
