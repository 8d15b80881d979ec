"""YAML that people write: configuration, principals, companies of the demo."""

from typing import Any

import yaml

from retuned.consumers.errors import ConfigurationError


def parse(content: bytes, where: str) -> Any:
    """What a file holds.

    Args:
        where: begins the text of errors: the file, and which key names it.

    Raises:
        ConfigurationError: it is not YAML, or a key stands twice in a mapping; the text names the lines.
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
    """Refuses a key that stands twice in a mapping; YAML's own loader takes the last one in silence.

    Mappings are looked at as they are written, before `<<` merges others into them.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (before := first.setdefault((key.tag, key.value), key)) is not key:
                raise _DuplicateKey(
                    f"line {key.start_mark.line + 1}: {key.value} stands on line {before.start_mark.line + 1} already; "
                    "keep one of them"
                )
        return node
