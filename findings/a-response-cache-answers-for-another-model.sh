#!/usr/bin/env bash
# lm-eval 0.4.13 (the newest on 2026-11-30).
# Two models are evaluated on one task with the same `use_cache`, which the help calls a "path to cache model
# responses". The second model is never asked: it gets the first one's answers and score, under its own name.
# One would guess that a cache of a model's responses knows whose they are. Its key is the request alone. So a
# checkpoint that was trained on, another dtype or another revision get old scores as well.
# Reported as EleutherAI/lm-evaluation-harness issues 2715 and 4063. What helps is a path for each model and state.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 "lm-eval[hf]==0.4.13"
cd "$work"
printf '%s\n' '{"text": "Is water wet?"}' '{"text": "Is fire hot?"}' > questions.jsonl
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2>"$work/said" <<'PYTHON' || { tail -5 "$work/said"; exit 1; }
from lm_eval import simple_evaluate
from lm_eval.api.model import LM


class Always(LM):
    """A model that gives one choice the higher likelihood, and counts how often it is asked."""

    def __init__(self, favourite):
        super().__init__()
        self.favourite, self.asked = favourite, 0

    def loglikelihood(self, requests, **options):
        self.asked += len(requests)
        return [(0.0 if request.args[1].strip() == self.favourite else -1.0, False) for request in requests]

    def loglikelihood_rolling(self, requests, **options):
        raise NotImplementedError

    def generate_until(self, requests, **options):
        raise NotImplementedError


def accuracy(model, cache):
    task = {
        "task": "yes_or_no", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
        "doc_to_choice": ["yes", "no"], "doc_to_target": 0, "metric_list": [{"metric": "acc"}],
    }
    found = simple_evaluate(model=model, tasks=[task], use_cache=cache, bootstrap_iters=0, verbosity="ERROR")
    return found["results"]["yes_or_no"]["acc,none"], model.asked


seen = {
    "the model that says yes, first": accuracy(Always("yes"), "shared"),
    "the model that says no, same cache": accuracy(Always("no"), "shared"),
    "the model that says no, its own cache": accuracy(Always("no"), "own"),
}
for what, (score, asked) in seen.items():
    print(f"{what:38} accuracy {score}, asked {asked} times")
assert list(seen.values()) == [(1.0, 4), (1.0, 0), (0.0, 4)], "changed"
PYTHON
