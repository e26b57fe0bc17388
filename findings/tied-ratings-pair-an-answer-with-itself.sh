#!/usr/bin/env bash
# distilabel 1.5.3 (the newest on 2026-11-30), with requests 2.34.2, which it imports and does not ask for.
# FormatTextGenerationDPO makes preference pairs of rated answers: the best rated is chosen, the worst rated rejected.
# Where all answers of a prompt have the same rating, both are the first answer: the row says that an answer is to be
# preferred to itself. It is written like every other, and the other answers are gone. FormatChatGenerationDPO likewise.
# One would guess that a prompt without a preference gives no pair. Whole ratings from 1 to 5 tie often. DPO's loss on
# such a row stays ln 2 and teaches nothing; it counts in the mean loss, the accuracy and the number of pairs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet distilabel==1.5.3 requests==2.34.2
cd "$work"
"$work/env/bin/python" - 2>"$work/said" <<'PYTHON' || { tail -5 "$work/said"; exit 1; }
from distilabel.steps import FormatChatGenerationDPO, FormatTextGenerationDPO

ANSWERS = ["Paris.", "Lyon, I think.", "It is Paris."]
prompts = {
    FormatTextGenerationDPO: {"instruction": "What is France's capital?"},
    FormatChatGenerationDPO: {"messages": [{"role": "user", "content": "What is France's capital?"}]},
}
for step, prompt in prompts.items():
    step = step()
    step.load()
    for ratings in ([4, 1, 5], [4, 4, 4]):
        [[row]] = step.process([{**prompt, "generations": list(ANSWERS), "ratings": ratings}])
        chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
        print(f"{type(step).__name__}, ratings {ratings}: chosen {chosen!r}, rejected {rejected!r}")
        assert (chosen == rejected == ANSWERS[0]) == (ratings == [4, 4, 4]), "changed"
PYTHON
