"""Check a finished demo: `python tools/check_demo.py runs/demo`; status 0 where every claim holds.

The claims are those of the README: the vanilla model knew the forget people in both forms, the
default method forgets them in both, what was to be kept is kept, also of people that the method was
not given, and all files of the run exist.
"""

import json
import sys
from pathlib import Path

FILES = (
    "config.yaml",
    "versions.json",
    "edit.safetensors",
    "methods/gradient/scores.safetensors",
    "methods/gradient/mask.safetensors",
    "unlearned/model.safetensors",
    "unlearned/config.json",
    "results.json",
    "report.html",
)
# Shares of generated answers that hold the truth, with room for another machine's rounding.
KNEW, FORGOT, KEPT = 0.9, 0.3, 0.75
KEPT_UNSEEN = 0.7  # no method was given these people


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python tools/check_demo.py RUN_FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    faults = [f"{name}: missing or empty" for name in FILES if not _exists(folder / name)]
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    results = json.loads((folder / "results.json").read_text())
    value = {
        (row["model"], row["set"], row["modality"]): row["value"]
        for row in results["rows"]
        if row["task"] == "generation" and row["metric"] == "exact"
    }
    method = results["headline"]
    for modality in ("image", "text"):
        for model, people, holds, claim in (
            ("vanilla", "forget", lambda x: x >= KNEW, f"at least {KNEW}"),
            (method, "forget", lambda x: x <= FORGOT, f"at most {FORGOT}"),
            (method, "retain", lambda x: x >= KEPT, f"at least {KEPT}"),
            (method, "unseen", lambda x: x >= KEPT_UNSEEN, f"at least {KEPT_UNSEEN}"),
        ):
            found = value[model, people, modality]
            line = f"{model}, {people}, {modality}: {found:.3f} answered right, {claim} expected"
            print(line)
            if not holds(found):
                faults.append(line)
    if faults:
        print("not as claimed:\n" + "\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


def _exists(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


if __name__ == "__main__":
    sys.exit(main())
