"""Reads YAML files written by people: configuration, principals, companies of the demo."""

from typing import Any

import yaml

from retuned.consumers.errors import ConfigurationError


def parse(content: bytes, where: str) -> Any:
    """Decodes a file.

    Args:
        where: a prefix for errors: the file, and the key that names it.

    Raises:
        ConfigurationError: the content is not YAML, or a mapping has a duplicate key; the text names the lines.
    """
    try:
        return yaml.load(content.decode(), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{where}: not YAML (not UTF-8 text)") from error
    except _DuplicateKey as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigurationError(f"{where}: {line}not YAML ({problem or ' '.join(str(error).split())})") from error


class _DuplicateKey(yaml.YAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys in a mapping; PyYAML's loader silently takes the last one.

    Mappings are checked as written, before `<<` merges others into them.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (before := first.setdefault((key.tag, key.value), key)) is not key:
                raise _DuplicateKey(
                    f"line {key.start_mark.line + 1}: {key.value} is already on line {before.start_mark.line + 1}; "
                    "keep one of them"
                )
        return node
