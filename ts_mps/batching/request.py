"""One request as its handler sees it, whichever way TorchServe's frontend decoded it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from ts_mps.batching.content import (
    Part,
    as_unicode,
    is_json,
    looks_v2,
    read_document,
    read_parameter,
    read_parts,
    split_parts,
)
from ts_mps.batching.errors import RequestError
from ts_mps.batching.formats import NPY, SAFETENSORS, is_npy, numbers, read_npy, read_safetensors, read_v2
from ts_mps.batching.instances import Array


class Style(Enum):
    """How the instances were sent, and so how the answer is shaped."""

    ONE = "one"  # one instance -> its result
    MANY = "many"  # a JSON array, several files, a tensor -> an array of results
    V1 = "v1"  # {"instances": [...]} -> {"predictions": [...]}
    V2 = "v2"  # Open Inference Protocol -> its outputs


class Request:
    """What one client sent.

    Args:
        fields: TorchServe's dict of the request: its parts by name.
        headers: TorchServe's dict of its headers, in which each part has its own dict under its name.
        most: Most instances that it may hold; None for no limit.

    Attributes:
        style: Shapes the answer; :meth:`instances` and :meth:`tensors` set it.
        parameters: What was sent beside the instances (``parameters`` of a JSON document, other keys of a v1 one).
        state: Free for the handler, from ``decode`` to ``encode``.
    """

    def __init__(
        self, fields: Mapping[str, Any], headers: Mapping[str, Any] | None = None, most: int | None = None
    ) -> None:
        self._fields = fields
        self._most = most
        self._headers = headers or {}
        self._lower: dict[str, str] | None = None
        self._document: Any = None
        self._parts: list[Part] | None = None
        self._content: list[Part] | None = None
        self.style = Style.ONE
        self.parameters: Mapping[str, Any] = {}
        self.v2_id: str | None = None
        self.state: Any = None

    def header(self, name: str) -> str | None:
        """A header's value, whatever the case of its name."""
        if self._lower is None:
            self._lower = {key.lower(): value for key, value in self._headers.items() if isinstance(value, str)}
        return self._lower.get(name.lower())

    def parts(self) -> list[Part]:
        """Every part that is not empty, in the order in which they were sent.

        Raises:
            RequestError: There is none.
        """
        if self._parts is None:
            self._parts = read_parts(self._fields, self._headers)
        return self._parts

    def content(self) -> list[Part]:
        """The parts that hold the instances: a body, or the part ``data``, alone; or else every part.

        What stands beside a body or ``data``, in the address or in the form, is a parameter.

        Raises:
            RequestError: There is none, or something beside it is too large for a parameter.
        """
        # Once: what a document adds to the parameters later must stay.
        if self._content is None:
            self._content, beside = split_parts(self.parts())
            if beside:
                self.parameters = {part.name: read_parameter(part.value) for part in beside}
        return self._content

    def part(self) -> Part:
        """The only part, or the one named body or data.

        Raises:
            RequestError: There is none, or it is not clear which.
        """
        parts = self.content()
        if len(parts) > 1:
            raise RequestError(f"The request has {len(parts)} parts and none is named data.", 400)
        return parts[0]

    def document(self) -> Any:
        """The body as a parsed JSON document.

        Raises:
            RequestError: It is not JSON (400), or it says that it is something else (415).
        """
        if self._document is None:
            self._document = read_document(self.part())
        return self._document

    def instances(self) -> list[Any]:
        """The instances of a JSON document, of text, or of files.

        A JSON array is a list of instances; an object with ``instances`` holds them; any other document, text or file
        is one instance. Several files of a form are one instance each. Text is JSON only if its content type says so.

        Raises:
            RequestError: The body is malformed, or there are too many (413), before any work is spent on them.
        """
        found = self._instances()
        self.limit(len(found))
        return found

    def limit(self, count: int) -> None:
        """Refuse more instances than one request may hold.

        Raises:
            RequestError: There are too many (413).
        """
        if self._most is not None and count > self._most:
            raise RequestError(f"The request has {count} instances; at most {self._most} are served.", 413)

    def _instances(self) -> list[Any]:
        parts = self.content()
        if any(part.content_type in (NPY, SAFETENSORS) for part in parts):
            raise RequestError("Tensors are not served here; send JSON, text or files.", 415)
        if is_json(parts):
            return self._json_instances(self.document())
        if len(parts) > 1:
            self.style = Style.MANY
        return [part.value for part in parts]

    def _json_instances(self, document: Any) -> list[Any]:
        if isinstance(document, list):
            self.style = Style.MANY
            return document
        if isinstance(document, dict) and "instances" in document:
            if not isinstance(document["instances"], list):
                raise RequestError("instances must be a list.")
            self.style = Style.V1
            self.add_parameters(document, {"instances"})
            return document["instances"]
        return [document]

    def add_parameters(self, document: Mapping[str, Any], but: set[str]) -> None:
        """Take a JSON document's parameters: what is under its key ``parameters``, and its keys but for some."""
        rest = {key: value for key, value in document.items() if key not in but}
        inner = rest.pop("parameters", None)
        self.parameters = {**self.parameters, **rest, **(inner if isinstance(inner, dict) else {})}

    def tensors(self) -> dict[str, Any] | None:
        """The named tensors of a body that holds tensors.

        Returns:
            safetensors and KServe v2: by name (arrays, or a list of texts for v2's BYTES). .npy: one, named ``""``.
            None if the body is no tensor: JSON of another shape, text, a file.

        Raises:
            RequestError: The body is malformed, or a tensor has too many rows (413).
        """
        tensors = self._tensors()
        for value in (tensors or {}).values():
            if isinstance(value, list) or value.ndim > 1:
                self.limit(len(value))
        return tensors

    def _tensors(self) -> dict[str, Any] | None:
        parts = self.content()
        if is_json(parts):
            document = self.document()
            if isinstance(document, dict) and isinstance(document.get("inputs"), list) and looks_v2(document):
                self.style = Style.V2
                self.add_parameters(document, {"inputs", "outputs", "id"})
                self.v2_id = as_unicode(document["id"]) if isinstance(document.get("id"), str) else None
                return dict(read_v2(document))
            return None
        body = parts[0].value
        if len(parts) > 1 or not isinstance(body, (bytes, bytearray)):
            return None
        if parts[0].content_type == SAFETENSORS:
            tensors = dict(read_safetensors(body))
        elif parts[0].content_type == NPY or is_npy(body):
            tensors = {"": read_npy(body)}
        else:
            return None
        self.style = Style.MANY
        return tensors

    def array(self, dtype: str, shape: tuple[int, ...], name: str = "") -> Array:
        """The request as one array of instances of a fixed shape, from any format.

        Args:
            dtype: numpy's name of the dtype to convert to.
            shape: Of one instance.
            name: Of the tensor, where tensors have names; a single one may have any.

        Returns:
            [n, *shape]. A single instance (without the first axis) is accepted, too.

        Raises:
            RequestError: It does not hold such an array.
        """
        tensors = self.tensors()
        if tensors is not None:
            if len(tensors) != 1 and name not in tensors:
                raise RequestError(f"The body has tensors {sorted(tensors)}; one named {name} is needed.")
            value = tensors[name] if name in tensors else next(iter(tensors.values()))
        else:
            value = self.instances()
            if self.style is Style.ONE:
                value = value[0]
                if isinstance(value, dict) and name in value:
                    value = value[name]
        array = numbers(value, dtype, name or "The body")
        if array.shape == shape:
            return array[None]
        if self.style is Style.ONE:  # {"name": [several instances]}
            self.style = Style.MANY
        if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
            wanted = ", ".join(["n", *map(str, shape)])
            raise RequestError(f"{name or 'The body'}: shape [{wanted}] is needed, got {list(array.shape)}.")
        return array
