#!/usr/bin/env bash
# lm-eval 0.4.13 (the newest on 2026-11-30), task `ifeval`; the first versions of the original code do the same.
# Some prompts of IFEval ask for hashtags or exclamation marks, as `keywords:letter_frequency` with the letter "#" or
# "!". The check takes a to z only: for any other character it draws a letter at random and counts that one.
# One would guess that the check counts what its arguments name, and that the same answers always have the same score.
# The verdict on these prompts has nothing to do with the answer, and changes from one check to the next unless the
# seed of Python's `random` is set. The original code was mended in the meantime.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet lm-eval==0.4.13 langdetect==1.0.9 immutabledict==4.3.1 nltk==3.10.4
cd "$work"
# a rank other than 0 fetches no data of nltk: none is needed here
LOCAL_RANK=1 "$work/env/bin/python" - <<'PYTHON'
from lm_eval.tasks.ifeval.instructions import LetterFrequencyChecker

counted = []
for _ in range(8):
    check = LetterFrequencyChecker("keywords:letter_frequency")
    check.build_description(letter="#", let_frequency=4, let_relation="at least")
    letter = check.get_instruction_args()["letter"]
    verdict = check.check_following("#vote #early #and #often")
    counted.append(letter)
    print(f'at least 4 times "#" in "#vote #early #and #often": counts {letter!r}, verdict {verdict}')
assert "#" not in counted, "changed: the character that was asked for is counted"
assert len(set(counted)) > 1, "changed: the letter is no longer drawn at random"
PYTHON
