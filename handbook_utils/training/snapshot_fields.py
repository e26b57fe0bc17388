"""Write `schema/trainer_fields.json`: what `training:` in a recipe may hold; checking it then needs no TRL.

python -m handbook_utils.training.snapshot_fields
"""

from __future__ import annotations

import json
from pathlib import Path

import handbook_utils

SNAPSHOT = Path(handbook_utils.__file__).parent / "schema" / "trainer_fields.json"


def render_snapshot() -> str:
    """Return the snapshot's text for the TRL that is installed: stage -> field -> types, choices, default."""
    from handbook_utils.training.trl_bridge import CONFIGS, config_fields

    stages = {stage: config_fields(stage) for stage in CONFIGS}
    lines = [
        f'  "{stage}": {{\n'
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(named.items()))
        + "\n  }"
        for stage, named in stages.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(render_snapshot(), encoding="utf-8")
    print(SNAPSHOT)
