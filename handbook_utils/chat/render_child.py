"""Run as a script: render chat templates under limits of time and memory. Reads jobs, writes one line each.

Only `bounded_render.py` starts it. It must import nothing of the package: it runs by its path.
"""

from __future__ import annotations

import json
import sys
from typing import Any

LONGEST_OUTPUT = 10_000_000  # characters
MEMORY_BYTES = 2 * 1024**3


def render(job: dict[str, Any]) -> dict[str, str]:
    """Render one job; what it raises is named, not raised."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            conversations=[job["messages"]],
            tools=job["tools"],
            chat_template=job["template"],
            add_generation_prompt=job["add_generation_prompt"],
            **job["variables"],
        )
    except Exception as error:  # noqa: BLE001 - a template can raise anything; the parent decides what it means
        return {"error": type(error).__name__, "message": str(error)[:300]}
    if len(text) > LONGEST_OUTPUT:
        return {"error": "OverflowError", "message": f"{len(text)} characters from a few short messages"}
    return {"text": text}


def limit(cpu_seconds: int) -> None:
    """Bound the time and memory of all that follows, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only bound
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    ends = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (ends, ends))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Answer each job of the list on standard input by a line of JSON."""
    request = json.load(sys.stdin)
    import transformers.utils.chat_template_utils  # noqa: F401 - before the limits: importing is not the template's doing

    limit(request["cpu_seconds"])
    for job in request["jobs"]:
        print(json.dumps(render(job)), flush=True)


if __name__ == "__main__":
    main()
