"""`handbook chat`: a conversation in the terminal."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from typing import Any

from handbook_utils.chat.view import printable
from handbook_utils.errors import DataError
from handbook_utils.records import Completion, Message


def chat_with(
    name: str, prompt: str | None, *, max_new_tokens: int, temperature: float, seed: int, json: bool
) -> None:
    """Answer one prompt, or talk until an empty line."""
    from handbook_utils.models.load import load_pair

    model, tokenizer = load_pair(name)

    def answer(messages: list[Message]) -> Completion:
        from handbook_utils.sampling.generation.generate import generate

        # the turn's number keeps the noise of a repeated question fresh
        named = [(f"chat-{len(messages)}", messages)]
        return generate(
            model,
            tokenizer,
            named,
            max_new_tokens=_room(model, tokenizer, messages, max_new_tokens),
            temperature=temperature,
            seed=seed,
        )[0]

    if prompt is not None:
        reply = answer([{"role": "user", "content": prompt}])
        text = json_module.dumps({"prompt": prompt, "answer": reply.completion}) if json else reply.completion
        print(text if json else printable(text))
        return
    _converse(answer)


def _room(model: Any, tokenizer: Any, messages: list[Message], wanted: int) -> int:
    """Tokens left for an answer in the model's window."""
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    left = getattr(model.config, "max_position_embeddings", wanted) - len(rendered["input_ids"])
    if left < 1:
        raise DataError("the conversation fills the model's window. Start a new one.")
    return int(min(wanted, left))


def _converse(answer: Callable[[list[Message]], Completion]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print("An empty line ends the conversation.", style="dim")
    messages: list[Message] = []
    while True:
        try:
            question = console.input("[bold]you[/bold]  ").strip()
        except EOFError:
            return
        if not question:
            return
        messages.append({"role": "user", "content": question})
        reply = answer(messages)
        messages.append({"role": "assistant", "content": reply.completion})
        console.print("model", style="bold", end=" ")
        console.print(printable(reply.completion), markup=False)
