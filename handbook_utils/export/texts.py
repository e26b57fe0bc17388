"""What an export says where answers end, and its settings as any server reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handbook_utils.chat.probes import TemplateProbe
from handbook_utils.errors import ModelError, TemplateError
from handbook_utils.export.talks import Prompts, prompts_of
from handbook_utils.models.generation_settings import end_tokens
from handbook_utils.models.load import load_tokenizer
from handbook_utils.runs.atomic import write_json

# what the place of the files says, and where they were read: of no use elsewhere
_OF_THIS_MACHINE = ("local_files_only", "is_local", "name_or_path", "_name_or_path")


def settle_end(tokenizer: Any) -> str:
    """Make the token that ends a trained answer the tokenizer's own end; changed in place.

    llama.cpp and Ollama read one end token, that of the tokenizer. Where the chat template ends answers with
    another one, the model has learned that, and would never stop there.

    Args:
        tokenizer: with or without a chat template.
    Returns:
        The end token's text.
    """
    before: str = tokenizer.eos_token
    if not tokenizer.chat_template:
        return before
    try:
        end = TemplateProbe(tokenizer).end
    except TemplateError:
        return before
    if end is None or end == tokenizer.eos_token_id:
        return before
    prompts = prompts_of(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if prompts_of(tokenizer).ids != prompts.ids:  # the template writes `eos_token` elsewhere, too
        tokenizer.eos_token = before
    return str(tokenizer.eos_token)


def write_texts(folder: Path, tokenizer: Any, *, dtype: str) -> list[int]:
    """Write tokenizer, template and settings beside the weights, the trained end in each of them.

    Args:
        folder: with `config.json`; of what the base model brought, `generation_config.json` is changed.
        tokenizer: as `settle_end` left it.
        dtype: of the weights.
    Returns:
        The ids of the tokens that end an answer.
    """
    tokenizer.save_pretrained(folder)
    settings = _read(folder / "generation_config.json")
    ends = end_tokens(settings.get("eos_token_id"), tokenizer)
    settings.pop("_from_model_config", None)
    settings |= {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    write_json(folder / "generation_config.json", settings)
    config = _read(folder / "config.json")
    config = {key: value for key, value in config.items() if key not in (*_OF_THIS_MACHINE, "torch_dtype")}
    # the cache is off in training only, where it would be of no use
    config |= {"dtype": dtype, "eos_token_id": tokenizer.eos_token_id, "use_cache": True}
    write_json(folder / "config.json", config)
    of_tokenizer = _read(folder / "tokenizer_config.json")
    kept = {key: value for key, value in of_tokenizer.items() if key not in _OF_THIS_MACHINE}
    write_json(folder / "tokenizer_config.json", kept)
    return [ends] if isinstance(ends, int) else list(ends)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content


def check_texts(folder: Path, before: Prompts, end: str) -> None:
    """Read tokenizer and template back as anybody would, and compare every conversation's tokens.

    Raises:
        ModelError: a conversation has other tokens than in training, or another token ends an answer.
    """
    tokenizer = load_tokenizer(str(folder), for_chat=False)
    if tokenizer.eos_token != end:
        raise ModelError(f"{folder}: as read back, '{tokenizer.eos_token}' ends an answer, and not '{end}'.")
    if not tokenizer.chat_template:
        return
    after = prompts_of(tokenizer)
    changed = [name for name in before.ids if after.ids.get(name) != before.ids[name]]
    if changed or after.refused.keys() != before.refused.keys():
        raise ModelError(
            f"{folder}: as read back, the tokenizer makes other tokens of {len(changed)} conversations than "
            f"in training, such as '{next(iter(changed), 'a refused one')}'. Nothing was written."
        )
