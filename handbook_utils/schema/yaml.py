"""A YAML reader for untrusted recipes: plain values only, no tags, no aliases, no repeated keys."""

from __future__ import annotations

import re
from typing import Any

import yaml

from handbook_utils.errors import RecipeError


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that also refuses aliases (they can blow up) and repeated keys (one would be lost)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias before it is followed."""
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a repeated key."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is a list or mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key.value}' twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text; everyone who writes a learning rate means a number
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a mapping; `where` opens every error message.

    >>> parse_yaml("learning_rate: 1e-4", "example")
    {'learning_rate': 0.0001}
    """
    try:
        # PlainLoader is a SafeLoader: no tag builds an object
        content = yaml.load(text, Loader=PlainLoader)
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply for a recipe.") from None
    except ValueError as error:  # a date such as 2024-13-01, or a number with thousands of digits
        raise RecipeError(f"{where}: a value that cannot be read ({error}). Put it in quotes.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "could not determine a constructor for the tag" in problem:
            problem = f"tags are not allowed ({problem.rpartition(' ')[2]}); write plain values"
        raise RecipeError(f"{where}{line}: not valid YAML for a recipe: {problem}.") from None
    if content is None:
        raise RecipeError(f"{where}: empty. A recipe starts with `stage: ...`.")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = (
            "a mapping with keys that are not text" if isinstance(content, dict) else type(content).__name__
        )
        raise RecipeError(f"{where}: a recipe is a mapping of keys to values, this is {kind}.")
    return content
