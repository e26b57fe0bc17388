"""Chat templates for base models, which have none: by name, as a file, or as text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from handbook_utils.errors import TemplateError, suggest

SUFFIX = ".jinja"


def template_names() -> list[str]:
    """The packaged templates.

    `zephyr` closes each turn with the tokenizer's own end token and needs no new one. `tulu` closes
    only the assistant's turns with it. `chatml` needs `<|im_start|>` and `<|im_end|>` in the
    vocabulary, and `training.eos_token: <|im_end|>`.
    """
    folder = files("handbook_utils").joinpath("chat", "jinja")
    return sorted(
        entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX)
    )


def chat_template_text(template: str) -> str:
    """The text of a chat template.

    Args:
        template: a packaged name such as "zephyr", the path of a .jinja file, or the template itself.
    Raises:
        TemplateError: no such name or file; the nearest is named.

    >>> chat_template_text("{{ messages[0]['content'] }}")
    "{{ messages[0]['content'] }}"
    """
    if "{{" in template or "{%" in template:
        return template
    if template in (names := template_names()):
        place = files("handbook_utils").joinpath("chat", "jinja", f"{template}{SUFFIX}")
        return place.read_text(encoding="utf-8")
    path = Path(template).expanduser()
    if path.suffix != SUFFIX:
        raise TemplateError(f"no chat template is called '{template}'. {suggest(template, names)}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{template}: the chat template cannot be read ({error}).") from None
