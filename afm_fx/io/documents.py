"""JSON documents: frozen dataclasses written with the version of their schema, and read back with every type checked.

msgspec checks a document against the dataclass, nested ones too, and names the place of what does not fit
(``Expected `int`, got `str` - at `$.steps[0].name```). So a schema is the dataclass and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from afm_fx.errors import FileFormatError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Document = TypeVar("Document")


def builtins_of(document: DataclassInstance | Mapping[str, Any]) -> dict[str, Any]:
    """Dataclasses as dicts, lists, strings and numbers; what JSON does not know (paths) becomes text."""
    content: dict[str, Any] = msgspec.to_builtins(document, enc_hook=str)
    return content


def to_json(document: DataclassInstance, version: int) -> str:
    """A dataclass as JSON that says its schema's version."""
    return msgspec.json.encode({"version": version, **builtins_of(document)}).decode()


def from_json(text: str, kind: type[Document], version: int, what: str) -> Document:
    """Reads what :func:`to_json` wrote.

    Args:
        version: of the schema that this release reads.

    Raises:
        FileFormatError: it is no such document, or of another version.
    """
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FileFormatError(f"{what} is damaged: {error}") from error
    return from_builtins(content, kind, version, what)


def from_builtins(content: Any, kind: type[Document], version: int, what: str) -> Document:
    """:func:`from_json` of what is decoded already.

    Raises:
        FileFormatError: it is no such document, or of another version.
    """
    if not isinstance(content, Mapping) or "version" not in content:
        raise FileFormatError(f"{what} is damaged: it does not say its version")
    if content["version"] != version:
        raise FileFormatError(f"{what} is of version {content['version']}, this release reads version {version}")
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise FileFormatError(f"{what} is damaged: {error}") from error
