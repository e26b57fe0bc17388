"""Licences: what a card of a base model or a dataset says of its own, and the names that the hub knows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml

from handbook_utils.errors import RecipeError, suggest

# as the hub's documentation lists them; anything else is "other", with a name and a link of its own
LICENCES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0"),
    *("cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2"),
    *("agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "isc"),
    *(
        "intel-research",
        "lppl-1.3c",
        "ms-pl",
        "apple-ascl",
        "apple-amlr",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "pddl",
    ),
    *("openmdw-1.0", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib"),
    *("deepfloyd-if-license", "fair-noncommercial-research-license", "h-research", "grok2-community"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "unknown", "other"),
)
UNKNOWN = "unknown"


def check_licence(name: str | None) -> str:
    """The licence that a model is given, as the hub names it; "unknown" where none is given.

    Raises:
        RecipeError: the hub knows no such name; the nearest is named.

    >>> check_licence(None), check_licence("MIT")
    ('unknown', 'mit')
    """
    if name is None:
        return UNKNOWN
    if name.lower() not in LICENCES:
        raise RecipeError(
            f"--license: the hub knows no licence '{name}'. {suggest(name.lower(), LICENCES)} For any other, "
            "say 'other' and name it in the card."
        )
    return name.lower()


def stated_licence(name: str, *, kind: Literal["model", "dataset"], revision: str | None = None) -> str:
    """What a model's or dataset's own card on this machine says of its licence; nothing is fetched.

    Args:
        name: `pocket:...`, a folder, or a name on the hub, whose card is looked for in the local cache.
        kind: which of the two it is.
        revision: branch, tag or commit of a hub name.
    Returns:
        The licence as that card has it; "not stated" where there is no card, or none in it.
    """
    if name.startswith("pocket:"):
        return "apache-2.0"
    folder = Path(name).expanduser()
    card = folder / "README.md" if folder.is_dir() else folder.parent / "README.md"
    if not folder.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(name, "README.md", revision=revision, repo_type=kind)
        except HFValidationError:
            return "not stated"
        if not isinstance(found, str):
            return "not stated"
        card = Path(found)
    return _licence_in(card) or "not stated"


def _licence_in(card: Path) -> str | None:
    """The `license` of a card's front matter."""
    if not card.is_file():
        return None
    _, mark, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    front, end, _ = rest.partition("\n---")
    if not mark or not end:
        return None
    try:
        content = yaml.safe_load(front)
    except yaml.YAMLError:
        return None
    found = content.get("license") if isinstance(content, dict) else None
    if isinstance(found, list):
        return ", ".join(map(str, found)) or None
    return str(found) if found else None
