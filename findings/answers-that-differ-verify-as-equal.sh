#!/usr/bin/env bash
# math-verify 0.9.0 (with latex2sympy2-extended 1.11.0).
# Answers that differ verify as equal, each parsed without an error: the mixed number "1 1/2" equals 1 and not
# 3/2; of two numbers below a millionth any equals any other, as both are rounded to six decimals; and in a box two
# words of the same letters are one product of variables.
# One would guess that a mixed number is read or refused, and that rounding is relative.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet math-verify==0.9.0 latex2sympy2-extended==1.11.0
"$work/env/bin/python" - <<'PYTHON'
from math_verify import parse, verify

pairs = {
    ("1 1/2", "1"): True,
    ("1 1/2", "3/2"): False,
    ("0.0000001", "0.0000002"): True,
    ("0.0000001", "0.0000001"): True,
    (r"$\boxed{listen}$", r"$\boxed{silent}$"): True,
    (r"$\boxed{listen}$", r"$\boxed{listens}$"): False,
}
seen = {(gold, answer): verify(parse(gold), parse(answer)) for gold, answer in pairs}
for (gold, answer), equal in seen.items():
    print(f"{gold:20} {answer:20} {'equal' if equal else 'differ'}")
assert seen == pairs, "changed"
PYTHON
