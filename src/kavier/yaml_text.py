"""YAML as people mean it: `NO` is Norway, a date is text, and a key given twice is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kavier.errors import InputError, reason


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of one YAML document.

    Words that YAML 1.1 takes for truth values or times stay text; whoever wants a truth value reads it
    from "on" or "true".

    Args:
        text: The document.
        where: File or flag, for errors.

    Raises:
        InputError: It does not parse, or a key is given twice (line named).
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot parse"
        raise InputError(f"not valid YAML: {problem}", where=f"{where}{line}") from None
    except (ValueError, RecursionError) as error:  # an endless number, or sections without end
        raise InputError(f"not valid YAML: {error}", where=where) from None


def read_mapping(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The plain data of a YAML file that is a mapping.

    Args:
        path: The file.
        what: "scenario" or the like, for errors.
        keys: Some that it has, for errors.

    Raises:
        InputError: Missing or unreadable file, YAML that does not parse (line named), not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what}: {reason(error)}", where=str(path)) from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"the {what} is not a mapping", where=str(path), expected=f"keys such as {keys}")
    return tree


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without its surprises."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and type
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key given twice, which PyYAML would let the last one win."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return node
