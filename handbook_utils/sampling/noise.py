"""Random numbers named by what they are for, so that no batch, order or worker changes them."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_generator(purpose: str, seed: int, *, prompt_id: str, stream: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose, seed, prompt and stream.

    Philox is counter-based: the hash of the names is its key and `stream` a word of its counter, so two
    streams never overlap (each has 2**128 blocks) and none depends on how many others were drawn before.

    Args:
        purpose: what the numbers are for, such as "sample"; other purposes get independent numbers.
        seed: the run's seed.
        prompt_id: the prompt's stable name.
        stream: which of the prompt's streams, such as the sample's index.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    >>> first = keyed_generator("sample", 0, prompt_id="p1").random(2)
    >>> again = keyed_generator("sample", 0, prompt_id="p1").random(2)
    >>> bool((first == again).all())
    True
    """
    name = f"{purpose}\0{seed}\0{prompt_id}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, 0]))


def request_seed(purpose: str, seed: int, *, prompt_id: str, stream: int) -> int:
    """A seed for one answer of an engine that draws its own numbers, from 0 up to 2**31.

    >>> request_seed("vllm", 0, prompt_id="p1", stream=0) == request_seed("vllm", 0, prompt_id="p1", stream=1)
    False
    """
    return int(keyed_generator(purpose, seed, prompt_id=prompt_id, stream=stream).integers(2**31))


class KeyedDraws:
    """The numbers of `keyed_generator` for many prompts in a row, several times as fast.

    One generator is set to each prompt's key in turn instead of made anew.

    >>> draws = KeyedDraws("sample", 0)
    >>> same = draws.at("p1").random(2) == keyed_generator("sample", 0, prompt_id="p1").random(2)
    >>> bool(same.all())
    True
    """

    def __init__(self, purpose: str, seed: int, *, stream: int = 0) -> None:
        self._prefix = f"{purpose}\0{seed}\0"
        self._bits = np.random.Philox(key=0, counter=[0, 0, stream, 0])
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, prompt_id: str) -> np.random.Generator:
        """The prompt's generator at its start; valid until the next call."""
        digest = hashlib.blake2b((self._prefix + prompt_id).encode(), digest_size=16).digest()
        self._state["state"]["key"][:] = np.frombuffer(digest, "<u8")
        self._bits.state = self._state
        return self._generator
