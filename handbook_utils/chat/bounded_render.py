"""Find out whether a chat template can be rendered at all, where it can do no harm: in a child process.

A template is a program that comes with somebody's model. transformers renders it in Jinja's sandbox, which
refuses private attributes and a range of more than 100,000, but neither nested loops that never end nor a
text of a billion characters. So every template is first rendered on a few short conversations under limits of
time and memory; one that breaks them is refused before it is ever rendered in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.chat.probes import SHAPES, TOOLS, WITH_TOOL
from handbook_utils.errors import TemplateError
from handbook_utils.pocket.fingerprint import FOLDER

CPU_SECONDS = 5
# wall clock, importing included: only a system without CPU limits gets here
PATIENCE_S = 120
# one thread: each reserves memory, and the child may have little
SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
# any other exception is a template's own way to refuse a conversation
HARMFUL = {
    "SecurityError": "reaches for what a template has no business with",
    "OverflowError": "makes far too much of it",
    "MemoryError": "takes more memory than any conversation needs",
    "RecursionError": "calls itself without end",
    "TemplateSyntaxError": "is no valid template",
}
_harmless = {(FOLDER / "base" / "chat_template.jinja").read_text(encoding="utf-8")}


def require_bounded(*tokenizers: Any) -> None:
    """Refuse chat templates that do not end, escape the sandbox or cannot be parsed.

    Each template is tried once in this process's life, all of a call in one child process. What a template
    does only on other conversations than ours is not found; there the sandbox still holds.

    Args:
        tokenizers: those without a chat template are passed over.
    Raises:
        TemplateError: names what the template did.
    """
    jobs = [job for tokenizer in tokenizers for job in _jobs(tokenizer) if job["template"] not in _harmless]
    if not jobs:
        return
    outcomes = _run_child(jobs)
    for outcome in outcomes:
        if outcome.get("error") in HARMFUL:
            raise _refused(f"{HARMFUL[outcome['error']]} ({outcome['error']}: {outcome['message']})")
    if len(outcomes) < len(jobs):
        raise _refused(f"did not end within {CPU_SECONDS} seconds on a conversation of a few words")
    _harmless.update(job["template"] for job in jobs)


def templates_of(tokenizer: Any) -> list[str]:
    """The tokenizer's chat templates: none, one, or several by name."""
    found = getattr(tokenizer, "chat_template", None) or []
    return [found] if isinstance(found, str) else list(found.values() if isinstance(found, dict) else found)


def _jobs(tokenizer: Any) -> Iterator[dict[str, Any]]:
    for template in templates_of(tokenizer):
        for messages in SHAPES:
            # a prompt and a whole conversation: what a training row is made from
            for shown, asks in ((messages[:-1], True), (messages, False)):
                yield {
                    "template": template,
                    "messages": shown,
                    "tools": TOOLS if messages is WITH_TOOL else None,
                    "add_generation_prompt": asks,
                    "variables": dict(tokenizer.special_tokens_map),
                }


def _run_child(jobs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Outcomes of the jobs, fewer than there are when the child was ended by a limit."""
    script = Path(__file__).with_name("render_child.py")
    child = subprocess.Popen(
        # -P: the folder of this file is no place to import from
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | SETTINGS,
    )
    try:
        said, complaint = child.communicate(
            json.dumps({"cpu_seconds": CPU_SECONDS, "jobs": list(jobs)}), timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        child.kill()
        said, complaint = child.communicate()
    limits = {-getattr(signal, name, signal.SIGTERM) for name in ("SIGKILL", "SIGXCPU")}
    if child.returncode not in {0, *limits}:
        raise TemplateError(f"trying the chat template in a child process failed: {complaint[-300:].strip()}")
    return [json.loads(line) for line in said.splitlines() if line.endswith("}")]


def _refused(what: str) -> TemplateError:
    return TemplateError(
        f"the chat template was refused: it {what}. It came with the tokenizer, and is a program; do not use "
        "it. Put a template you trust into tokenizer.chat_template, or into the folder's chat_template.jinja."
    )
