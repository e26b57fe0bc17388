"""The pocket base model: a byte-level tokenizer with a chat template, and a tiny Llama."""

from __future__ import annotations
