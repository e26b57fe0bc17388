#!/usr/bin/env bash
# lm-eval 0.4.13 (the newest on 2026-11-30).
# A chat template's generation prompt often ends with a line break ("<|im_start|>assistant\n"). For a multiple-choice
# question the harness moves that line break out of the prompt: each choice is scored as "\nYes", "\nNo", and the
# model is asked with a generation prompt that it was never trained on.
# One would guess that what is rendered as the prompt is the prompt. The source says "trailing spaces", which are moved
# for the sake of word boundaries in plain text; a line break counts as one.
# All choices get the same extra token, so plain accuracy rarely moves. Log-likelihoods, `is_greedy` and accuracy
# normalised by length do, and a tokenizer that joins "\n" and a word gives tokens that training never made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet lm-eval==0.4.13
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM


class Characters(TemplateLM):
    """A tokenizer whose tokens are characters, and a model that notes what it is asked to score."""

    eot_token_id = 0

    def tok_encode(self, string, add_special_tokens=None, **options):
        return [ord(character) for character in string]

    def _loglikelihood_tokens(self, requests, **options):
        self.asked = [("".join(map(chr, prompt)), "".join(map(chr, answer))) for _, prompt, answer in requests]
        return [(0.0, True) for _ in requests]

    def loglikelihood_rolling(self, requests, **options):
        return []

    def generate_until(self, requests, **options):
        return []


prompt = "<|im_start|>user\nIs water wet?<|im_end|>\n<|im_start|>assistant\n"
model = Characters()
choices = [Instance("loglikelihood", {}, (prompt, choice), index) for index, choice in enumerate(("Yes", "No"))]
model.loglikelihood(choices, disable_tqdm=True)
for asked, scored in model.asked:
    print(f"the prompt ends with {asked[-11:]!r}, and {scored!r} is scored")
assert [scored for _, scored in model.asked] == ["\nYes", "\nNo"], "changed: the line break stays in the prompt"
assert all(asked == prompt.rstrip() for asked, _ in model.asked), "changed: the prompt keeps its end"
PYTHON
