"""What rows are padded with where a tokenizer does not say: a token that no answer ends in, if it has one."""

from __future__ import annotations

import re
from typing import Any, Final

from handbook_utils.runs.log import warn_and_log

# how tokens are called that do nothing else: Llama 3's, Phi's, those of older models
_PADDING: Final = re.compile(r"<\|?(?:\w*_)?pad(?:_id|ding)?\|?>|\[PAD\]", re.IGNORECASE)


class PaddingIsEndWarning(UserWarning):
    """A reward model reads its score before the end of an answer, because the end pads too."""


def padding_of(tokenizer: Any) -> str:
    """A token to pad with: one made for it, else the unknown one, else the end.

    A head that scores an answer reads its last token that is no padding (transformers 5.24): where the end
    pads, that is the token before the end, and an answer that was cut off scores like a whole one.
    """
    made = next((token for token in tokenizer.get_added_vocab() if _PADDING.fullmatch(token)), None)
    return str(made or tokenizer.unk_token or tokenizer.eos_token)


def warn_if_end_pads(tokenizer: Any, name: str) -> None:
    """Say that a reward model will not see where answers end.

    Args:
        tokenizer: with its padding.
        name: what it was loaded from; opens the warning.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        warn_and_log(
            f"{name}: the end token {tokenizer.eos_token!r} is padding too, so the score is read before the "
            "end of an answer, and a cut answer scores like a whole one. In a copy of that folder, let "
            "'pad_token' in tokenizer_config.json name another token.",
            PaddingIsEndWarning,
        )
