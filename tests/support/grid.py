"""The `grid-huffman` codec of docs/FORMAT.md in plain Python: slow, independent of im2sp."""

from typing import Any

import numpy as np

from support.huffman import bits_of

TINY: dict[str, Any] = {
    "clusters": np.array([0, 1, 0, 1], np.uint8),
    "left_classes": np.array([0, 0, 1, 1], np.uint16),
    "above_classes": np.array([0, 1, 0, 1], np.uint8),
    "joint_classes": np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]], np.uint8),
    "cluster_contexts": np.array([[0, 1], [1, 1], [0, 0]], np.uint16),
    "member_contexts": np.array([[0, 0, 0], [0, 1, 0]], np.uint8),
    "cluster_orders": np.array([[0, 1], [1, 0]], np.uint8),
    "member_orders": np.array([0, 1, 0, 1, 1, 0], np.uint8),
    "rank_codes": np.array([0, 1, 0, 0, 1], np.uint8),
    "code_lengths": np.array([[1, 1, 0], [1, 2, 2]], np.uint8),
}
"""The tables of the example in docs/FORMAT.md."""


def canonical(lengths: list[int]) -> dict[str, int]:
    """Codes as text of 0 and 1 -> rank."""
    if not any(lengths):
        return {"": 0}
    table: dict[str, int] = {}
    code = before = 0
    for rank, length in enumerate(lengths):
        if length:
            code <<= length - before
            table[f"{code:0{length}b}"] = rank
            code, before = code + 1, length
    return table


class NaiveGrid:
    """Decoder from the tensors of the tables."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.t = {name: tensor.tolist() for name, tensor in tensors.items()}
        codes = [canonical(lengths) for lengths in self.t["code_lengths"]]
        rank_codes = iter(self.t["rank_codes"])
        self.members = [
            [unit for unit, c in enumerate(self.t["clusters"]) if c == k]
            for k in range(len(self.t["member_contexts"]))
        ]
        self.of_clusters = [(order, codes[next(rank_codes)]) for order in self.t["cluster_orders"]]
        self.of_members: list[list[tuple[list[int], dict[str, int]]]] = []
        at = 0
        for members, contexts in zip(self.members, self.t["member_contexts"], strict=True):
            self.of_members.append([])
            for _ in range(max(contexts) + 1):
                order = self.t["member_orders"][at : at + len(members)]
                self.of_members[-1].append((order, codes[next(rank_codes)]))
                at += len(members)
        assert at == len(self.t["member_orders"])
        assert not list(rank_codes)

    def decode(self, value: bytes, num_rows: int, num_columns: int) -> list[int]:
        """Units of a value in raster order; ValueError if it is invalid."""
        bits = "".join(map(str, bits_of(value)))
        self.at = 0
        grid = [[0] * num_columns for _ in range(num_rows)]

        def class_at(kind: str, outside: int, row: int, column: int) -> int:
            if not (row >= 0 and 0 <= column < num_columns):
                return outside
            return self.t[kind][grid[row][column]]

        num_left, num_above = len(self.t["cluster_contexts"]) - 1, len(self.t["joint_classes"]) - 1
        for row in range(num_rows):
            for column in range(num_columns):
                left = class_at("left_classes", num_left, row, column - 1)
                above = class_at("above_classes", num_above, row - 1, column)
                above_right = class_at("above_classes", num_above, row - 1, column + 1)
                joint = self.t["joint_classes"][above][above_right]
                context = self.t["cluster_contexts"][left][joint]
                cluster = self._read(bits, *self.of_clusters[context])
                context = self.t["member_contexts"][cluster][left]
                member = self._read(bits, *self.of_members[cluster][context])
                grid[row][column] = self.members[cluster][member]
        rest = bits[self.at :]
        if len(value) != max(-(-self.at // 8), -(-num_rows * num_columns // 8)) or "1" in rest:
            raise ValueError(f"{rest[:20]} behind the last unit")
        return sum(grid, [])

    def _read(self, bits: str, order: list[int], codes: dict[str, int]) -> int:
        for end in range(self.at, min(self.at + 13, len(bits) + 1)):
            rank = codes.get(bits[self.at : end])
            if rank is not None:
                self.at = end
                return order[rank] if rank < len(order) else 0
        raise ValueError("cut off")


def random_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ascending lengths of a complete prefix code with codes of 12 bits at most."""
    lengths = [0]
    while len(lengths) < size:
        k = int(rng.choice(np.flatnonzero(np.array(lengths) < 12)))
        length = lengths.pop(k) + 1
        lengths += [length, length]
    return np.sort(np.array(lengths, np.uint8))


def random_tables(
    seed: int,
    num_codes: int = 40,
    num_clusters: int = 5,
    num_left: int = 3,
    num_above: int = 2,
    num_joint: int = 4,
    num_contexts: int = 6,
    num_rank_codes: int = 4,
) -> dict[str, np.ndarray]:
    """Tensors of valid tables."""
    rng = np.random.default_rng(seed)

    def numbers(high: int, *shape: int, dtype: Any = np.uint8) -> np.ndarray:
        return rng.integers(0, high, shape).astype(dtype)

    clusters = rng.permutation(np.arange(num_codes) % num_clusters).astype(np.uint8)
    sizes = np.bincount(clusters)
    member_contexts = numbers(3, num_clusters, num_left + 1)
    num_member_contexts = member_contexts.max(1).astype(int) + 1
    num_ranks = rng.integers(1, max(num_clusters, sizes.max()) + 3, num_rank_codes)
    num_ranks[0] = num_ranks.max() + num_clusters + sizes.max()
    lengths = np.zeros((num_rank_codes, num_ranks.max()), np.uint8)
    for k, size in enumerate(num_ranks):
        lengths[k, :size] = random_lengths(rng, size)
    needed = [num_clusters] * num_contexts + np.repeat(sizes, num_member_contexts).tolist()
    return {
        "clusters": clusters,
        "left_classes": numbers(num_left, num_codes, dtype=np.uint16),
        "above_classes": numbers(num_above, num_codes),
        "joint_classes": numbers(num_joint, num_above + 1, num_above + 1),
        "cluster_contexts": numbers(num_contexts, num_left + 1, num_joint, dtype=np.uint16),
        "member_contexts": member_contexts,
        "cluster_orders": np.stack(
            [rng.permutation(num_clusters) for _ in range(num_contexts)]
        ).astype(np.uint8),
        "member_orders": np.concatenate(
            [rng.permutation(size) for size in np.repeat(sizes, num_member_contexts)]
        ).astype(np.uint8),
        "rank_codes": np.array(
            [rng.choice(np.flatnonzero(num_ranks >= size)) for size in needed], np.uint8
        ),
        "code_lengths": lengths,
    }
