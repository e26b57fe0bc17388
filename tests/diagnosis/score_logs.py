"""Score `diagnose` on labelled logs: `python tests/diagnosis/score_logs.py FOLDER [--out FILE] [--show]`.

The folder holds `NNN.json` with `log_history`, and `labels.jsonl` with `file`, `verdict` (labels), `detail`
and `confidence`. Only `log_history` is shown to `diagnose`, rewritten into each format as its tool writes it.

found: the label's own rule is among the findings of severity fault or caution; of several labels any one.
flagged: the verdict is faulty. Too short: no fault is to be found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from formats import FORMATS

from handbook_utils.diagnosis.diagnose import diagnose
from handbook_utils.diagnosis.finding import Diagnosis
from handbook_utils.environment import commit, environment
from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import proportion_estimate
from handbook_utils.reporting.results import device_name
from handbook_utils.runs.atomic import write_json

STORE = Path(__file__).parents[2] / "book" / "results" / "diagnosis.json"
# the one table from labels to rules; "other" is by its detail
RULES_OF: Mapping[str, tuple[str, ...]] = {
    "not_learning": ("not_learning", "everything_masked"),
    "lr_zero": ("lr_zero",),
    "unstable": ("unstable",),
    "diverged": ("diverged",),
    "nan": ("nan", "everything_masked"),
    "overfitting": ("overfitting",),
    "memorised": ("memorised",),
    "displacement": ("displacement",),
    "saturated_accuracy": ("saturated_accuracy",),
    "reward_hacking_suspected": ("reward_hacking_suspected",),
    "entropy_collapse": ("entropy_collapse",),
    "zero_variance": ("zero_variance",),
    "length_growth": ("length_growth",),
    "resumed": ("resumed", "resumed_out_of_phase"),
    "truncated": ("truncated",),
    "entropy_explosion": ("entropy_explosion",),
    "constant_reward_part": ("constant_reward_part",),
    "reference_offset": ("wrong_reference",),
}
NO_FAULT = {"healthy", "too_short_to_tell"}


def rules_of(label: Mapping[str, Any]) -> set[str]:
    """The rules that would name a label's fault; "other" asks its details."""
    names = [*label["verdict"]] + (label["detail"] if "other" in label["verdict"] else [])
    return {rule for name in names for rule in RULES_OF.get(name, ())}


def seen(diagnosis: Diagnosis) -> set[str]:
    """Rules that found something to look at."""
    return {finding.rule for finding in diagnosis.findings if finding.severity != "note"}


def score(folder: Path, write: Any) -> dict[str, Any]:
    """The score of one format, and each log's verdict."""
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    logs = []
    for label in labels:
        history = json.loads((folder / label["file"]).read_text(encoding="utf-8"))["log_history"]
        with tempfile.TemporaryDirectory() as scratch:
            try:
                diagnosis = diagnose(write(history, Path(scratch)))
            except DataError as error:  # a tool that writes nothing of an empty history
                diagnosis = Diagnosis("unknown", "unknown", remarks=(str(error),))
        logs.append({"label": label, "diagnosis": diagnosis})
    return {"logs": logs, "counts": counts(logs)}


def counts(logs: list[dict[str, Any]]) -> dict[str, Any]:
    """Found and flagged, with Wilson intervals."""
    faults = [log for log in logs if not NO_FAULT & set(log["label"]["verdict"])]
    healthy = [log for log in logs if "healthy" in log["label"]["verdict"]]
    short = [log for log in logs if "too_short_to_tell" in log["label"]["verdict"]]
    found = {
        sure: [
            bool(rules_of(log["label"]) & seen(log["diagnosis"]))
            for log in faults
            if log["label"]["confidence"] == sure
        ]
        for sure in ("high", "medium", "low")
    }
    flagged = [log["diagnosis"].verdict == "faulty" for log in healthy]
    return {
        **{f"found_{sure}": _share(hits) for sure, hits in found.items()},
        "healthy_flagged": _share(flagged),
        "healthy_cautioned": _share([log["diagnosis"].verdict == "caution" for log in healthy]),
        "short_flagged": _share([log["diagnosis"].verdict == "faulty" for log in short]),
        "kind_right": _share(
            [
                log["diagnosis"].kind
                in (log["label"]["kind"], "unknown" if log["label"]["kind"] == "other" else "")
                for log in logs
            ]
        ),
        "verdicts": dict(Counter(log["diagnosis"].verdict for log in logs)),
    }


def _share(hits: list[bool]) -> dict[str, Any]:
    if not hits:
        return {"count": 0, "of": 0}
    share = proportion_estimate(sum(hits), len(hits))
    return {"count": sum(hits), "of": len(hits), "low": round(share.low, 3), "high": round(share.high, 3)}


def main() -> None:
    """Score all formats, print, and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="a file for the counts of every format")
    parser.add_argument("--store", choices=("first", "last"), help="store trainer_state's score for the book")
    parser.add_argument("--show", action="store_true", help="print every log's findings")
    parser.add_argument("--format", choices=FORMATS, action="append")
    asked = parser.parse_args()
    record: dict[str, Any] = {}
    for name in asked.format or FORMATS:
        result = score(asked.folder, FORMATS[name])
        record[name] = result["counts"]
        shown = {
            key: f"{value['count']}/{value['of']}"
            for key, value in result["counts"].items()
            if key != "verdicts"
        }
        lost = [
            log["label"]["file"]
            for log in result["logs"]
            if log["diagnosis"].remarks and not log["diagnosis"].records
        ]
        print(f"{name:16}", *(f"{key} {value}" for key, value in shown.items()), "unread", lost)
        if asked.show:
            show(result["logs"])
    if asked.store:
        store(asked.store, record["trainer_state"])
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def store(name: str, found: Mapping[str, Any]) -> None:
    """Put a score among the book's results, as the estimates that its pages show."""
    known = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {"measured": {}}
    shares = {"found": found["found_high"], "flagged": found["healthy_flagged"]}
    known["measured"][name] = {
        key: {
            "value": share["count"] / share["of"],
            "low": share["low"],
            "high": share["high"],
            "level": 0.95,
            "n": share["of"],
            "unit": "rate",
            "method": "wilson",
            "seed": None,
            "held": share["count"],
            "of": share["of"],
        }
        for key, share in shares.items()
    }
    facts = environment()
    known |= {
        "commit": commit(),
        "versions": facts["versions"],
        "device": device_name(facts["hardware"]),
        "seeds": [],
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_json(STORE, known)


def show(logs: list[dict[str, Any]]) -> None:
    """Each log beside its label."""
    for log in logs:
        label, diagnosis = log["label"], log["diagnosis"]
        fault = not NO_FAULT & set(label["verdict"])
        hit = bool(rules_of(label) & seen(diagnosis))
        mark = ("ok" if hit else "MISSED") if fault else ("FLAGGED" if diagnosis.verdict == "faulty" else "")
        print(
            f"\n{label['file']} {label['kind']} {label['verdict']} {label['detail']}",
            f"{label['confidence']}: {mark}",
        )
        print(f"  label: {label['evidence']}")
        print("  " + str(diagnosis).replace("\n", "\n  "))


if __name__ == "__main__":
    main()
