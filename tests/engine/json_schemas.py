"""Two hundred JSON schemas of growing difficulty, each of finite texts only."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import requests

Schema = dict[str, Any]

AT_ONCE = 16

_KEYS = ("id", "name", "größe", "kind", "値", "on", "x_1", "a b", 'quo"te', "empty")
_PATTERNS = ("[a-z]{1,4}", "[0-9]{4}-[0-9]{2}", "(ja|nein|doch)", "#[0-9a-f]{6}", "[äöü]{2}")


def schemas(count: int, seed: int = 0) -> list[Schema]:
    """`count` schemas; the depth grows from 0 to 3, and every tenth one is recursive."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        depth = i * 4 // count
        out.append(_recursive(rng) if i % 10 == 9 else _schema(rng, depth))
    return out


def check_answers(url: str, asked: Sequence[Schema]) -> None:
    """Ask a server for a text of every schema, every other one sampled; each ends and is valid."""

    def ask(index: int) -> dict[str, Any]:
        body = {
            "text": "go",
            "sampling_params": {
                "max_new_tokens": 500,
                "json_schema": json.dumps(asked[index]),
                "temperature": float(index % 2),
                "sampling_seed": index,
            },
        }
        reply = requests.post(f"{url}/generate", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(ask, range(len(asked))))
    for schema, reply in zip(asked, replies, strict=True):
        assert reply["meta_info"]["finish_reason"]["type"] == "stop", (schema, reply)
        jsonschema.validate(json.loads(reply["text"]), schema)


def _schema(rng: random.Random, depth: int) -> Schema:
    if depth == 0:
        return rng.choice((_enum, _number, _text, _constant, _boolean))(rng)
    return rng.choice((_object, _object, _array, _any_of))(rng, depth)


def _enum(rng: random.Random) -> Schema:
    pool = ["red", "grün", "蓝", "a longer value, with punctuation!", 1, -7, 2.5, True, None]
    return {"enum": rng.sample(pool, rng.randint(1, 5))}


def _constant(rng: random.Random) -> Schema:
    return {"const": rng.choice(["fixed", 42, True, "naïve ☃"])}


def _boolean(rng: random.Random) -> Schema:
    return {"type": rng.choice(["boolean", "null"])}


def _number(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}


def _text(rng: random.Random) -> Schema:
    if rng.random() < 0.6:
        return {"type": "string", "pattern": f"^{rng.choice(_PATTERNS)}$"}
    return {"type": "string", "maxLength": rng.randint(1, 6)}


def _object(rng: random.Random, depth: int) -> Schema:
    keys = rng.sample(_KEYS, rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {key: _schema(rng, rng.randrange(depth)) for key in keys},
        "required": [key for key in keys if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _schema(rng, rng.randrange(depth)),
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, rng.randrange(depth)) for _ in range(rng.randint(2, 3))]}


def _recursive(rng: random.Random) -> Schema:
    """A tree whose leaves are required to stop: each level is a new, bounded definition."""
    levels = rng.randint(2, 4)
    definitions: dict[str, Schema] = {}
    for level in range(levels):
        child: Schema = {"type": "null"} if level == 0 else {"$ref": f"#/$defs/level{level - 1}"}
        definitions[f"level{level}"] = {
            "type": "object",
            "properties": {"value": _schema(rng, 0), "next": child},
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    return {"$defs": definitions, "$ref": f"#/$defs/level{levels - 1}"}
