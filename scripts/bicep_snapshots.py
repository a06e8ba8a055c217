"""Writes deploy/bicep/snapshots anew: what each parameter file would deploy, as the Bicep compiler predicts it.

    python -m scripts.bicep_snapshots

BICEP names the compiler; else the one on PATH is taken. A test compares the files with a new prediction, so that a
change of the templates shows in the review what it changes in Azure.
"""

from __future__ import annotations

import json

from tests.bicep.compiler import PARAMETER_FILES, TEMPLATES, predict


def main() -> None:
    """Write one file for each parameter file."""
    for name in PARAMETER_FILES:
        file = (TEMPLATES / "snapshots" / name).with_suffix(".json")
        file.write_text(json.dumps(predict(name).snapshot, indent=1, ensure_ascii=False) + "\n")
        print(file.relative_to(TEMPLATES.parent.parent))


if __name__ == "__main__":
    main()
