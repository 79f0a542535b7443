"""Writes docs/api.md from the OpenAPI document of the service as it is out of the box.

python docs/api_page.py > docs/api.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.app import create_app
from service.settings import Settings

Json = dict[str, Any]
REFERENCE = "#/components/schemas/"
HEAD = """# API

Written by `make docs` from the OpenAPI document, which the service itself serves under
`/openapi.json` and, to try it out, under `/docs`. Examples are in [clients.md](clients.md); what
the numbers mean is in [numbers.md](numbers.md). Where API keys are set, a request also needs the
header `X-API-Key` or `Authorization: Bearer`, and may get 401, 403 or 429.
"""


def page(document: Json) -> str:
    """The page, Markdown, for an OpenAPI document whose schemas are all named."""
    lines = [HEAD]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines.append("# Objects\n")
    for name, schema in document["components"]["schemas"].items():
        lines += _object(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _operation(title: str, operation: Json) -> Iterator[str]:
    yield f"## {title}\n"
    summary = operation["summary"]
    ending = "" if summary.endswith("?") else "."
    yield f"{summary}{ending} {operation.get('description', '')}".strip() + "\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | default | what |\n| --- | --- | --- | --- | --- |"
        for item in parameters:
            schema = item["schema"]
            what = item.get("description") or schema.get("description", "")
            cells = [f"`{item['name']}`", item["in"], _type(schema), _default(schema), what]
            yield _row(cells)
        yield ""
    if body := operation.get("requestBody"):
        yield f"Body: {', '.join(f'`{kind}`' for kind in body['content'])}.\n"
    yield "| status | what | body |\n| --- | --- | --- |"
    for status, response in operation["responses"].items():
        yield _row([status, response["description"], _bodies(response)])
    yield ""


def _object(name: str, schema: Json) -> Iterator[str]:
    yield f"## {name}\n"
    if text := schema.get("description"):
        yield text + "\n"
    if properties := schema.get("properties"):
        yield "| field | type | what |\n| --- | --- | --- |"
        for field, kind in properties.items():
            yield _row([f"`{field}`", _type(kind), kind.get("description", "")])
        yield ""


def _bodies(response: Json) -> str:
    contents = response.get("content", {})
    named = {kind: _type(content.get("schema", {})) for kind, content in contents.items()}
    return ", ".join(f"`{kind}` {name}".strip() for kind, name in named.items())


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("format") or schema.get("type", "")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type(items)}"
    return f"{kind}{_range(schema)}"


def _range(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f" from {low:g}" if high is None else f" {low:g} to {high:g}"


def _default(schema: Json) -> str:
    return f"`{schema['default']}`" if "default" in schema else ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def openapi() -> Json:
    """The document of the service with every setting at its default, whatever the environment."""
    return create_app(Settings.model_construct()).openapi()


if __name__ == "__main__":
    print(page(openapi()), end="")
