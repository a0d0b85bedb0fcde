"""YAML that is what it seems: PyYAML's safe loader without its silences and tracebacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from ares_stream.errors import AresError, FileFormatError


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """What a YAML text holds, and where in the text its parts begin."""

    content: Any
    node: yaml.Node | None

    def rows(self, key: str | None = None) -> list[tuple[int, Any]] | None:
        """(line, element) of the list under a key of the document, or of the document itself;
        None when there is no list there."""
        content, node = self.content, self.node
        if key is not None:
            if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
                return None
            content = content.get(key)
            node = next((value for name, value in node.value if name.value == key), None)
        if not isinstance(content, list) or not isinstance(node, yaml.SequenceNode):
            return None
        lines = [item.start_mark.line + 1 for item in node.value]
        return list(zip(lines, content, strict=True))


def parse_yaml(text: str, name: object, *, error: type[AresError] | None = None) -> YamlDocument:
    """YAML with each key named once. Raises `error` with the line, FileFormatError
    where the caller names none."""
    line: int | None = None
    try:
        loader = _YamlLoader(text)
        try:
            node = loader.get_single_node()
            content = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        reason = getattr(problem, "problem", None) or getattr(problem, "reason", "unreadable")
    except RecursionError:
        reason = "nested too deep"
    except ValueError as problem:
        reason = str(problem)
    else:
        return YamlDocument(content, node)
    if error is None:
        raise FileFormatError(str(name), line or 1, f"not YAML: {reason}")
    raise error(f"{name}{f':{line}' if line else ''}: not YAML: {reason}")


class _YamlLoader(yaml.SafeLoader):
    """Refuses what PyYAML takes in silence or dies of: a key named twice, aliases that expand
    to millions of values, a date that no calendar has, half of a surrogate pair."""

    MAX_VALUES: ClassVar = 1_000_000

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._count(node, {}, set())
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    raise _yaml_fault(key, f"{key.value} is named twice")
                names.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except OverflowError:
            reason = "a number that is too large"
        except ValueError as error:
            reason = str(error).partition(";")[0]
        except (AttributeError, LookupError, TypeError):
            # A tag of the document's own, such as !!bool on a text.
            reason = f"not a value of the tag {node.tag.rpartition(':')[2]}"
        raise _yaml_fault(node, reason)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _yaml_fault(node, "half of a surrogate pair") from None

    def _count(self, node: yaml.Node, counted: dict[int, int], above: set[int]) -> int:
        """Values in a node with its aliases written out."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        place = id(node)
        if place in above:
            raise _yaml_fault(node, "an alias inside of what it stands for")
        if place not in counted:
            above.add(place)
            inner = (
                [part for pair in node.value for part in pair]
                if isinstance(node, yaml.MappingNode)
                else node.value
            )
            counted[place] = 1 + sum(self._count(part, counted, above) for part in inner)
            above.discard(place)
            if counted[place] > self.MAX_VALUES:
                raise _yaml_fault(node, f"more than {self.MAX_VALUES:,} values")
        return counted[place]


def _yaml_fault(node: yaml.Node, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
