"""The five prompt families of the pocket world, one module each."""

from __future__ import annotations

from typing import Final

from handbook_utils.pocket.families.base import Family
from handbook_utils.pocket.families.howto import HOWTO
from handbook_utils.pocket.families.listing import LISTING
from handbook_utils.pocket.families.repeat import REPEAT
from handbook_utils.pocket.families.reply import REPLY
from handbook_utils.pocket.families.story import STORY

ALL_FAMILIES: Final[tuple[Family, ...]] = (STORY, LISTING, REPLY, REPEAT, HOWTO)

__all__ = ["ALL_FAMILIES", "Family"]
