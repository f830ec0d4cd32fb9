"""The `huffman` codec of docs/FORMAT.md in plain Python: slow, independent of im2sp."""

import base64
from typing import Any


def bits_of(data: bytes) -> list[int]:
    return [data[j // 8] >> (j % 8) & 1 for j in range(8 * len(data))]


def number(bits: list[int]) -> int:
    return sum(bit << k for k, bit in enumerate(bits))


def code_tables(codec: dict[str, Any]) -> list[dict[str, int]]:
    """Codes of each context as text of 0 and 1 -> id; the escape is -1."""
    num_ids = codec["num_ids"]
    columns = min(num_ids, 1024)
    contexts = num_ids + 1 if codec["order"] else 1
    bits = bits_of(base64.b64decode(codec["lengths"]))
    flags = [bits[columns * c : columns * (c + 1)] for c in range(contexts)]
    at = columns * contexts
    tables = []
    for c in range(contexts):
        lengths = []
        for i in [columns] + [i for i in range(columns) if flags[c][i]]:
            lengths.append((number(bits[at : at + 4]), i))
            at += 4
        table: dict[str, int] = {}
        code = 0
        before = 0
        for length, i in sorted(lengths):
            code <<= length - before
            table[f"{code:0{length}b}"] = -1 if i == columns else i
            code, before = code + 1, length
        tables.append(table)
    assert len(bits) - at < 8
    assert not any(bits[at:])
    return tables


def naive_decode(value: bytes, codec: dict[str, Any]) -> list[int]:
    """Decode the ids of a value; ValueError if it is invalid."""
    tables = code_tables(codec)
    num_ids = codec["num_ids"]
    escape_bits = (num_ids - 1).bit_length()
    bits = bits_of(value)
    ids: list[int] = []
    at = 0
    while True:
        rest = bits[at:]
        if len(rest) < 8 and all(rest):
            return ids
        table = tables[(ids[-1] if ids else num_ids) if codec["order"] else 0]
        text = ""
        while text not in table:
            if at == len(bits):
                raise ValueError(f"no code in {rest[:16]}")
            text += str(bits[at])
            at += 1
        i = table[text]
        if i < 0:
            if at + escape_bits > len(bits):
                raise ValueError("cut off")
            i = number(bits[at : at + escape_bits])
            at += escape_bits
            if i in table.values() or not codec.get("minimum", 0) <= i < num_ids:
                raise ValueError(f"{i} after an escape")
        ids.append(i)
