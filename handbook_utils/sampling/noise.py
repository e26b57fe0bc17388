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
