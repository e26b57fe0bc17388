"""What a conversation becomes in training: its tokens, and in colour those that carry loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handbook_utils.chat.bounded_render import require_bounded, templates_of
from handbook_utils.chat.loss_masks import has_marks, join_turns, split_turns, tokenize_turns
from handbook_utils.chat.view import row_html, row_text
from handbook_utils.errors import TemplateError
from handbook_utils.libraries.versions import naming_untested_versions


@dataclass(frozen=True)
class RenderedRow:
    """A training row to look at: in a notebook and in `str` its tokens are coloured.

    Attributes:
        ids: (tokens,) token ids.
        pieces: (tokens,) each token's text; joined they are the rendered text.
        loss: (tokens,) whether a token carries loss.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    loss: tuple[bool, ...]

    def __str__(self) -> str:
        return row_text(self.pieces, self.loss)

    def _repr_html_(self) -> str:
        return row_html(self.pieces, self.loss)


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as training sees it.

    Attributes:
        rows: one row with every answer, or one per turn where the template rewrites earlier turns.
        by: what decides about the loss, in words.
    """

    rows: tuple[RenderedRow, ...]
    by: str

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.rows), f"Loss: {self.by}."])

    def _repr_html_(self) -> str:
        rows = "".join(row._repr_html_() for row in self.rows)
        return f"{rows}<p>Loss: {self.by}.</p>"


@naming_untested_versions
def render_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    last_only: bool = False,
) -> RenderedConversation:
    """Show what a conversation becomes in training: its tokens, their text, and which carry loss.

    Args:
        tokenizer: with a chat template.
        messages: dictionaries with `role` and `content`; what follows the last answer is not trained on.
        tools: JSON schemas or functions that the template may describe to the model.
        chat_template_kwargs: what else the template is told, such as `{"enable_thinking": False}`.
        last_only: learn the last answer alone, as of a row with `prompt` and `completion`.
    Raises:
        DataError: there is no answer, or nothing before it.
        TemplateError: no template, one that was refused, or one that refuses this conversation.
    Book: chapter "Chat templates and loss masks".
    """
    require_template(tokenizer)
    turns = split_turns(messages, tools=tools, options=chat_template_kwargs)[-1 if last_only else 0 :]
    joined = join_turns(tokenize_turns(tokenizer, turns))
    by = "what follows the inference prompt"
    if has_marks(tokenizer, tools):
        by += ", inside the template's generation marks"
    if len(joined) > 1:
        by += "; the template rewrites earlier turns, so each answer is learned in a row of its own"
    rows = (RenderedRow(tuple(r.ids), token_pieces(tokenizer, r.ids), tuple(r.loss)) for r in joined)
    return RenderedConversation(tuple(rows), by)


def require_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template, or with a harmful one.

    Raises:
        TemplateError: says what to do.
    """
    if not templates_of(tokenizer):
        raise TemplateError(
            "the tokenizer has no chat template, so conversations cannot be rendered. Use the "
            "instruction-tuned sibling's tokenizer, or set tokenizer.chat_template."
        )
    require_bounded(tokenizer)


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's text in its place; a character of several tokens is shown at the last of them."""
    pieces, begin, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        # the token before stays: some tokenizers drop the space in front of a first token
        begin, before = end - 1, tokenizer.decode(ids[end - 1 : end])
    return tuple(pieces)
