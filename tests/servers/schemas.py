"""The schemas of Kubernetes and of two operators, as their sources have them, and what they say against a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema.validators import extend

from tests.servers.programs import BUILT

SCHEMAS = BUILT.parent / "schemas"
"""Kubernetes' OpenAPI documents and the operators' CRDs: `make servers` takes them from the Go modules."""

_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def _unique_by_keys(_: Any, keys: list[str], items: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    """What a server refuses of a list that is a map: two items with one key."""
    defaults = {key: each.get("default") for key, each in schema.get("items", {}).get("properties", {}).items()}
    if isinstance(items, list) and all(isinstance(item, dict) for item in items):
        names = [tuple(item.get(key, defaults.get(key)) for key in keys) for item in items]
        for name in sorted({str(name) for name in names if names.count(name) > 1}):
            yield jsonschema.ValidationError(f"{name} is there twice")


_Validator = extend(jsonschema.Draft4Validator, {"x-kubernetes-list-map-keys": _unique_by_keys})


def complaints(manifest: Mapping[str, Any]) -> list[str]:
    """What a server would refuse in a manifest: unknown fields, wrong types and values, what is missing.

    Rules in CEL, which few schemas have, are not evaluated.
    """
    schema = _schema(str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if schema is None:
        return [f"there is no {manifest.get('kind')} of {manifest.get('apiVersion')}"]
    return [f"{error.json_path}: {error.message}" for error in _Validator(schema).iter_errors(manifest)]


@cache
def _schema(version: str, kind: str) -> Any:
    return _schemas().get((version, kind))


@cache
def _schemas() -> Mapping[tuple[str, str], Any]:
    if not SCHEMAS.exists():
        pytest.skip("the schemas of Kubernetes are missing: run make servers")
    found: dict[tuple[str, str], Any] = {}
    object_meta: Any = None
    for path in sorted(SCHEMAS.glob("*.json")):
        definitions = json.loads(path.read_text(encoding="utf-8"))["components"]["schemas"]
        object_meta = object_meta or definitions[_OBJECT_META]
        components = {"schemas": {name: _strict(each) for name, each in definitions.items()}}
        for name, definition in definitions.items():
            for each in definition.get("x-kubernetes-group-version-kind", []):
                version = "/".join(filter(None, (each["group"], each["version"])))
                schema = {"allOf": [{"$ref": f"#/components/schemas/{name}"}], "components": components}
                found.setdefault((version, each["kind"]), schema)
    for path in sorted(SCHEMAS.glob("*.yaml")):
        spec = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"$ref": f"#/components/schemas/{_OBJECT_META}"}
            schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"})
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[key] = {**_strict(schema), "components": components}
    return found


def _strict(schema: Any) -> Any:
    """A schema in which an object has no other fields than those it names, unless it says that it may."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: each if key in ("default", "enum") else _strict(each) for key, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
