"""Text that a tokenizer reads as control tokens, such as one that ends a turn in the middle of a message."""

from __future__ import annotations

import re
from typing import Any


class ControlTokens:
    """The control tokens of a tokenizer, and texts that hold them.

    Training renders a whole conversation as one text, so whatever a message says in the words of a control
    token becomes that token.

    Args:
        tokenizer: of the model that is to be trained.

    Attributes:
        texts: the control tokens as text, the longest first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {*map(str, tokenizer.all_special_tokens), *(text for text, holds in added.items() if holds)}
        self.texts = sorted((text for text in special if text.strip()), key=len, reverse=True)
        self._ids = {tokenizer.convert_tokens_to_ids(text) for text in self.texts}
        self._pattern = re.compile("|".join(map(re.escape, self.texts))) if self.texts else None

    def found_in(self, text: str) -> str:
        """What stands in a text and becomes a control token; "" where nothing does.

        Args:
            text: of one message.
        """
        if self._pattern is None:
            return ""
        for match in self._pattern.finditer(text):
            ids = self._tokenizer(match[0], add_special_tokens=False)["input_ids"]
            if self._ids & set(ids):
                return f"'{match[0]}' becomes a control token of the model"
        return ""
