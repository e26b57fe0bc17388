#!/usr/bin/env bash
# datasketch 2.0.0 (the newest on 2026-11-30).
# MinHashLSH(threshold=0.65) is asked for the neighbours of sets whose Jaccard similarity to a stored set is exactly
# 0.7, above the threshold. It returns about six in ten of them. Of pairs at 0.6, below the threshold, it returns
# about one in four, for a query gives candidates and compares nothing.
# One would guess that a pair above the threshold is found nearly always, and one below it nearly never.
# The number of bands is chosen so that the two kinds of error are equally likely; `params=(bands, rows)` sets it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet datasketch==2.0.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from datasketch import MinHash, MinHashLSH

PAIRS, UNION = 1000, 100


def sketch(items):
    found = MinHash(num_perm=128)
    found.update_batch([item.encode() for item in items])
    return found


def share_found(lsh, shared):
    """Of pairs with `shared` items of their 100 in common, so a Jaccard similarity of shared / 100."""
    found = 0
    for pair in range(PAIRS):
        items = [f"{shared}-{pair}-{item}" for item in range(UNION)]
        common, own = items[:shared], items[shared:]
        half = len(own) // 2
        lsh.insert(f"{shared}-{pair}", sketch(common + own[:half]))
        found += f"{shared}-{pair}" in lsh.query(sketch(common + own[half:]))
    return found / PAIRS


lsh = MinHashLSH(threshold=0.65, num_perm=128)
above, below = share_found(lsh, 70), share_found(lsh, 60)
print("bands and rows chosen for a threshold of 0.65:", (lsh.b, lsh.r))
print(f"found of pairs at 0.7: {above:.3f}; of pairs at 0.6: {below:.3f}")
many = share_found(MinHashLSH(num_perm=128, params=(32, 4)), 70)
print(f"with 32 bands of 4 rows, of pairs at 0.7: {many:.3f}")
assert 0.6 < above < 0.85, "changed: another share of the pairs above the threshold is found"
assert 0.2 < below < 0.5, "changed: another share of the pairs below the threshold is found"
assert many > 0.99, "changed: more bands no longer find them"
PYTHON
