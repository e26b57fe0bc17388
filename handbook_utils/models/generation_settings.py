"""A model's generation settings as they are saved: where answers end, and nothing that cannot be saved."""

from __future__ import annotations

import re
import warnings
from typing import Any

from handbook_utils.chat.probes import TemplateProbe
from handbook_utils.errors import ModelError, TemplateError
from handbook_utils.runs.log import LOGGER

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)


class GenerationSettingsWarning(UserWarning):
    """A model's `generation_config.json` contradicts itself, and is mended in what is saved."""


def settle_generation(model: Any, tokenizer: Any, *, name: str) -> None:
    """Make a model's generation settings fit to be saved with it; changed in place.

    Whoever generates with the saved model has to stop where training taught it to: at the tokenizer's end,
    and at the token with which the chat template ends an answer. Settings that contradict themselves are
    refused by transformers when they are saved, which would be at the first checkpoint.

    Args:
        model: about to be trained or saved; nothing is done where it cannot generate.
        tokenizer: that is saved beside it.
        name: of the model, for messages.
    Raises:
        ModelError: the settings cannot be mended.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or not model.can_generate():
        return
    settings.eos_token_id = end_tokens(settings.eos_token_id, tokenizer)
    changes = _mended(settings, name)
    if changes:
        message = f"{name}: generation_config.json contradicts itself; saved with {', '.join(changes)}."
        LOGGER.warning(message)
        warnings.warn(message, GenerationSettingsWarning, stacklevel=2)


def end_tokens(configured: int | list[int] | None, tokenizer: Any) -> int | list[int]:
    """The tokens that end an answer: the tokenizer's, that of its chat template, and those configured."""
    known = [configured] if isinstance(configured, int) else list(configured or [])
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *_template_end(tokenizer), *known]))
    return ends[0] if len(ends) == 1 else ends


def _template_end(tokenizer: Any) -> list[int]:
    if not tokenizer.chat_template:
        return []
    try:
        end = TemplateProbe(tokenizer).end
    except TemplateError:  # a template that takes no plain conversation
        return []
    return [] if end is None else [end]


def _mended(settings: Any, where: str) -> list[str]:
    """Change settings until they can be saved; what was changed, in words."""
    changes: list[str] = []
    while (issue := _issue(settings)) is not None:
        named = [name for name in _NAMED.findall(issue) if getattr(settings, name, None) is not None]
        # a temperature says that its author means to sample; where sampling is off, it is what says nothing
        if settings.do_sample is None and settings.temperature != 0 and {*named} & {*SAMPLING}:
            settings.do_sample = True
            changes.append("do_sample: true")
            continue
        if not named:  # what is wrong has no one name
            raise ModelError(
                f"{where}: generation_config.json cannot be saved again: {issue.splitlines()[0]}"
            )
        for name in named:
            setattr(settings, name, None)
            changes.append(f"{name} left out")
    return changes


def _issue(settings: Any) -> str | None:
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None
