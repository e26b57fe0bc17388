"""`handbook diagnose`: for people and programs, its exit codes, and while a run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from handbook_utils.cli.commands.diagnose import watch
from tests.diagnosis.formats import FORMATS, metrics_jsonl, trainer_state


def losses(n: int = 40, *, broken: int = 0) -> list[dict[str, Any]]:
    return [
        {"step": s, "loss": math.nan if s > n - broken else 2 - s / n, "learning_rate": 1e-5}
        for s in range(1, n + 1)
    ]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    return trainer_state(losses(broken=5), tmp_path)


def test_a_program_reads_one_object(handbook, faulty):
    code, out, _ = handbook("diagnose", faulty, "--json")
    assert code == 0
    found = json.loads(out)
    assert found.keys() == {"kind", "verdict", "findings", "guess"}
    assert found["guess"] == "only a loss is logged"
    assert (found["kind"], found["verdict"]) == ("sft", "faulty")
    assert found["findings"][0] == {
        "rule": "nan",
        "severity": "fault",
        "steps": [36, 40],
        "evidence": "loss: 5 of 40 values are no finite numbers, first at step 36",
        "confidence": "high",
        "try": found["findings"][0]["try"],
    }


def test_several_logs_are_a_list_with_their_names(handbook, faulty, tmp_path):
    healthy = metrics_jsonl(losses(), tmp_path)
    found = json.loads(handbook("diagnose", faulty, healthy, "--json")[1])
    assert [(one["log"], one["verdict"]) for one in found] == [
        (str(faulty), "faulty"),
        (str(healthy), "healthy"),
    ]


def test_files_of_one_tag_each_are_one_log(handbook, tmp_path):
    folder = FORMATS["tensorboard_csv"](losses(), tmp_path)
    found = json.loads(handbook("diagnose", *sorted(folder.iterdir()), "--json")[1])
    assert found["verdict"] == "healthy"


@pytest.mark.parametrize(("broken", "strict", "expected"), [(5, True, 1), (5, False, 0), (0, True, 0)])
def test_the_exit_code_is_1_where_a_faulty_log_is_not_to_pass(handbook, tmp_path, broken, strict, expected):
    log = trainer_state(losses(broken=broken), tmp_path)
    assert handbook("diagnose", log, *(["--strict"] if strict else []))[0] == expected


def test_people_see_evidence_picture_meaning_and_what_to_try(handbook, faulty):
    _, out, _ = handbook("diagnose", faulty)
    for word in ("faulty", "fault  nan", "steps 36 to 40", "×", "means", "try", "source"):
        assert word in out


def test_a_healthy_log_says_so(handbook, tmp_path):
    assert (
        "healthy: no rule found anything wrong" in handbook("diagnose", metrics_jsonl(losses(), tmp_path))[1]
    )


def test_too_few_records_say_how_many_are_needed(handbook, tmp_path):
    said = "too short: 10 records of the loss or the reward are needed, or 3 evaluations"
    _, out, _ = handbook("diagnose", metrics_jsonl(losses()[:4], tmp_path))
    assert said in out.splitlines()


def test_one_record_is_told_of_in_the_singular(handbook, tmp_path):
    _, out, _ = handbook("diagnose", metrics_jsonl(losses()[4:5], tmp_path))
    assert out.splitlines()[0].endswith("1 record, step 5")


def test_a_guess_is_shown_as_one_and_a_kind_that_is_given_is_not(handbook, tmp_path):
    log = metrics_jsonl(losses(), tmp_path)
    assert "taken for sft: only a loss is logged; 40 records, steps 1 to 40" in handbook("diagnose", log)[1]
    _, out, _ = handbook("diagnose", log, "--kind", "dpo")
    assert "  dpo, 40 records, steps 1 to 40" in out
    assert "taken for" not in out
    code, _, err = handbook("diagnose", log, "--kind", "dop")
    assert code == 2
    assert "Did you mean 'dpo'?" in err


def test_steps_of_a_log_of_epochs_are_called_epochs(handbook, tmp_path):
    records = [{"epoch": one["step"] / 4, "loss": one["loss"]} for one in losses(broken=5)]
    _, out, _ = handbook("diagnose", metrics_jsonl(records, tmp_path))
    assert "40 records, epochs 0.25 to 10" in out
    assert "fault  nan  epochs 9 to 10" in out
    assert "first at epoch 9" in out
    assert " step " not in out.partition("means")[0]


def test_an_empty_log_says_so_to_a_program_too(handbook, tmp_path):
    log = tmp_path / "empty.log"
    log.touch()
    found = json.loads(handbook("diagnose", log, "--json")[1])
    assert (found["verdict"], len(found["remarks"])) == ("too_short", 1)
    assert "empty.log is empty" in found["remarks"][0]


def test_the_help_says_what_json_prints_for_several_logs(handbook):
    assert "for several logs" in " ".join(handbook("diagnose", "--help")[1].split())


def test_a_note_is_not_called_nothing(handbook, tmp_path):
    records = [{**one, "grad_norm": math.inf if one["step"] == 3 else 1.0} for one in losses()]
    _, out, _ = handbook("diagnose", metrics_jsonl(records, tmp_path))
    assert "healthy: no rule found a fault; worth knowing is what follows" in out
    assert "note  nan" in out


def test_a_missing_log_is_one_message_and_exit_code_2(handbook, tmp_path):
    code, _, err = handbook("diagnose", tmp_path / "none.json")
    assert code == 2
    assert "no such file" in err


def test_following_takes_one_log(handbook, faulty):
    code, _, err = handbook("diagnose", faulty, "--follow", "--json")
    assert code == 2
    assert "--follow" in err


def test_a_name_with_escapes_does_not_reach_the_terminal(handbook, tmp_path):
    records = [{**record, "rewards/\x1b[31mred/mean": math.nan, "reward": 1.0} for record in losses()]
    _, out, _ = handbook("diagnose", metrics_jsonl(records, tmp_path))
    assert "\x1b[31m" not in out
    assert "red" in out


def test_a_followed_run_is_told_of_once_and_until_it_is_over(tmp_path):
    log = metrics_jsonl(losses()[:4], tmp_path)
    manifest = {"format": 1, "stage": "sft", "status": "running", "recipe": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    waited = []

    def grow(seconds: float) -> None:
        waited.append(seconds)
        with log.open("a", encoding="utf-8") as stream:
            stream.write('{"step": 5, "loss": null}\n')
        if len(waited) == 3:
            (tmp_path / "manifest.json").write_text(
                json.dumps(manifest | {"status": "failed"}), encoding="utf-8"
            )

    console = Console(record=True, width=100)
    watch([tmp_path], show=console, wait=grow)
    shown = console.export_text()
    assert len(waited) == 3
    assert shown.index("too short at step 4") < shown.index("faulty at step 5")
    assert shown.count("fault  nan") == 1


def test_a_followed_run_without_a_log_is_waited_for(tmp_path):
    def write(_: float) -> None:
        metrics_jsonl(losses(), tmp_path)
        manifest = {"format": 1, "stage": "sft", "status": "finished", "recipe": {}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    console = Console(record=True, width=100)
    watch([tmp_path], show=console, wait=write)
    assert "healthy at step 40" in console.export_text()
