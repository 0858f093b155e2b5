"""Make exporters/targets/tensorrt_operators.json of the table that TensorRT's ONNX parser keeps of what it takes.

git clone https://github.com/onnx/onnx-tensorrt && python docs/tensorrt_operators.py onnx-tensorrt [COMMIT]
"""

import json
import re
import subprocess
import sys
from pathlib import Path

TABLE = "docs/operators.md"
TARGET = Path(__file__).parents[1] / "exporters" / "targets" / "tensorrt_operators.json"


def read(table: str) -> dict[str, dict[str, list[str]]]:
    """Read the rows of supported operators: the types each takes, and the inputs that must be constants or 0."""
    operators = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 3 or cells[1] != "Y":
            continue
        restriction = cells[3] if len(cells) > 3 else ""
        operators[cells[0]] = {
            "types": re.findall(r"\w+", cells[2].replace("INF64", "INT64")),  # their slip, at ConstantOfShape
            "constants": re.findall(r"`(\w+)` (?:input )?must be (?:an initializer|a constant tensor)", restriction),
            "zeros": re.findall(r"`(\w+)` must be (?:zero|0)", restriction),
        }
    return operators


def main() -> None:
    """Write the file."""
    repository, wanted = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "HEAD"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", repository, *arguments], check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    commit = git("rev-parse", wanted).strip()
    table = git("show", f"{commit}:{TABLE}")
    version, first, last = re.search(r"TensorRT (\S+) supports .* opset (\d+) to opset (\d+)", table).groups()
    record = {
        "source": f"https://github.com/onnx/onnx-tensorrt/blob/{commit}/{TABLE}",
        "tensorrt": version,
        "opsets": [int(first), int(last)],
        "operators": read(table),
    }
    TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
