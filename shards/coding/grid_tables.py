"""Tables of the `grid-huffman` codec (`grid.py`): checked, and in the form of the kernel."""

from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.errors import ShardError, check_int

MAX_CODE_BITS = 12
MAX_CODES = 1 << 14
MAX_SYMBOLS = 256
MAX_CONTEXTS = 1 << 14
MAX_RANK_CODES = 256
_WHOLE = 1 << MAX_CODE_BITS
_DTYPES: dict[str, tuple[Any, int]] = {
    "clusters": (np.uint8, 1),
    "left_classes": (np.uint16, 1),
    "above_classes": (np.uint8, 1),
    "joint_classes": (np.uint8, 2),
    "cluster_contexts": (np.uint16, 2),
    "member_contexts": (np.uint8, 2),
    "cluster_orders": (np.uint8, 2),
    "member_orders": (np.uint8, 1),
    "rank_codes": (np.uint8, 1),
    "code_lengths": (np.uint8, 2),
}

Ints = NDArray[np.int64]


class _KernelTables(NamedTuple):
    """Tables for the kernel; see `grid_kernels.decode`."""

    cluster_contexts: NDArray[np.uint16]
    joint_classes: NDArray[np.uint8]
    member_contexts: NDArray[np.uint16]
    orders: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    ranks: NDArray[np.uint16]
    starts: NDArray[np.uint16]
    units: NDArray[np.uint64]
    sizes: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class GridTables:
    """Tables of the `grid-huffman` codec.

    Clusters, classes, contexts and codes of ranks are numbered from 0. With L left classes, class L
    stands for a neighbour outside the grid, and so with the A classes above.
    """

    clusters: NDArray[np.uint8]
    """(codes,) cluster of each code; its members are numbered in the order of the codes."""
    left_classes: NDArray[np.uint16]
    """(codes,) class of each code as the unit to the left."""
    above_classes: NDArray[np.uint8]
    """(codes,) class of each code as the unit above or above right."""
    joint_classes: NDArray[np.uint8]
    """(A + 1, A + 1) joint class of the units above and above right, by their classes."""
    cluster_contexts: NDArray[np.uint16]
    """(L + 1, J) context of the cluster, by left class and joint class."""
    member_contexts: NDArray[np.uint8]
    """(clusters, L + 1) context of the member, among those of its cluster, by left class."""
    cluster_orders: NDArray[np.uint8]
    """(contexts, clusters) the clusters by rank in each context."""
    member_orders: NDArray[np.uint8]
    """Members by rank: cluster by cluster, in each context by context."""
    rank_codes: NDArray[np.uint8]
    """Code of the ranks in each context: those of clusters, then those of members, in the order of
    `cluster_orders` and `member_orders`."""
    code_lengths: NDArray[np.uint8]
    """(codes of ranks, ranks) lengths in bits, ascending, then 0 for ranks without a code. All are
    0 in a code with one rank, which takes no bits."""

    def __post_init__(self) -> None:
        """Refuse tables that do not fit together; this checks every index that a decoder uses."""
        for name, (dtype, num_axes) in _DTYPES.items():
            array: Any = getattr(self, name)
            if array.dtype != dtype or array.ndim != num_axes or not array.size:
                raise ShardError(
                    f"table {name} is {array.dtype} of shape {array.shape}; expected "
                    f"{np.dtype(dtype)} with {num_axes} axes"
                )
        num_contexts, num_clusters = self.cluster_orders.shape
        num_left, num_joint = self.cluster_contexts.shape
        num_above = len(self.joint_classes)
        check_int("number of codes", self.clusters.size, 1, MAX_CODES)
        for name, shape in {
            "left_classes": self.clusters.shape,
            "above_classes": self.clusters.shape,
            "joint_classes": (num_above, num_above),
            "member_contexts": (num_clusters, num_left),
        }.items():
            self._check_shape(name, shape)
        for name, limit in {
            "clusters": num_clusters,
            "left_classes": num_left - 1,
            "above_classes": num_above - 1,
            "joint_classes": num_joint,
            "cluster_contexts": num_contexts,
            "rank_codes": len(self.code_lengths),
        }.items():
            self._check_below(name, limit)
        self._check_contexts()
        self._check_codes()

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = getattr(self, name).shape
        if found != shape:
            raise ShardError(f"table {name} has shape {found}; expected {shape}")

    def _check_below(self, name: str, limit: int) -> None:
        largest = int(getattr(self, name).max())
        if largest >= limit:
            raise ShardError(f"table {name} holds {largest}; expected less than {limit}")

    def _check_contexts(self) -> None:
        """Check the number of contexts, and that each lists its symbols once."""
        sizes = self.num_members
        if not 1 <= int(sizes.min()) <= int(sizes.max()) <= MAX_SYMBOLS:
            raise ShardError(
                f"table clusters: a cluster has {sizes.min()} codes, another {sizes.max()}; "
                f"expected 1 to {MAX_SYMBOLS}"
            )
        num_contexts = len(self.cluster_orders) + int(self.num_member_contexts.sum())
        check_int("number of contexts", num_contexts, 1, MAX_CONTEXTS)
        self._check_shape("member_orders", (int(sizes @ self.num_member_contexts),))
        self._check_shape("rank_codes", (num_contexts,))
        sizes = self.num_symbols
        symbols = np.concatenate([self.cluster_orders.reshape(-1), self.member_orders])
        contexts = np.repeat(np.arange(sizes.size), sizes)
        expected = np.arange(symbols.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        wrong = symbols[np.lexsort((symbols, contexts))] != expected
        if wrong.any():
            context = int(contexts[wrong.argmax()])
            raise ShardError(
                f"context {context} does not list each of {sizes[context]} symbols once"
            )

    def _check_codes(self) -> None:
        """Check that the codes are complete, and long enough for the contexts that name them."""
        lengths = self.code_lengths.astype(np.int64)
        check_int("number of codes of ranks", len(lengths), 1, MAX_RANK_CODES)
        if int(lengths.max()) > MAX_CODE_BITS or lengths.shape[1] > MAX_SYMBOLS:
            raise ShardError(
                f"table code_lengths: {lengths.max()} bits and {lengths.shape[1]} ranks; expected "
                f"at most {MAX_CODE_BITS} and {MAX_SYMBOLS}"
            )
        num_ranks = self.num_ranks
        ranks = np.arange(int(lengths.shape[1]))
        has_code = ranks < num_ranks[:, None]
        sums = np.where(has_code, _WHOLE >> lengths, 0).sum(1)
        ascends = np.diff(np.where(has_code, lengths, MAX_CODE_BITS), axis=1) >= 0
        is_complete = (sums == _WHOLE) & ascends.all(1) & ((lengths > 0) == has_code).all(1)
        is_complete |= num_ranks == 1
        if not is_complete.all():
            code = int((~is_complete).argmax())
            raise ShardError(
                f"code {code} of ranks: lengths that do not ascend, or that make "
                f"{sums[code] / _WHOLE:g} of a prefix code; expected exactly 1"
            )
        short = num_ranks[self.rank_codes] < self.num_symbols
        if short.any():
            context = int(short.argmax())
            raise ShardError(
                f"context {context} has {self.num_symbols[context]} symbols, but its code "
                f"{num_ranks[self.rank_codes[context]]} ranks"
            )

    def __eq__(self, other: object) -> bool:
        """True if all tables are equal."""
        return isinstance(other, GridTables) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _DTYPES
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType] - arrays have none

    @cached_property
    def num_members(self) -> Ints:
        """(clusters,) codes of each cluster."""
        return np.bincount(self.clusters, minlength=len(self.member_contexts))

    @cached_property
    def num_member_contexts(self) -> Ints:
        """(clusters,) contexts of each cluster's members."""
        return self.member_contexts.max(1).astype(np.int64) + 1

    @cached_property
    def num_symbols(self) -> Ints:
        """Symbols of each context: those of clusters, then those of members."""
        num_contexts, num_clusters = self.cluster_orders.shape
        members = np.repeat(self.num_members, self.num_member_contexts)
        return np.concatenate([np.full(num_contexts, num_clusters), members])

    @cached_property
    def num_ranks(self) -> Ints:
        """Ranks of each code."""
        return np.maximum((self.code_lengths > 0).sum(1), 1)

    @cached_property
    def contexts_of_members(self) -> Ints:
        """(clusters, L + 1) context of a member among all contexts."""
        first = np.cumsum(self.num_member_contexts) - self.num_member_contexts
        return len(self.cluster_orders) + first[:, None] + self.member_contexts

    @cached_property
    def members(self) -> Ints:
        """(codes,) number of each code in its cluster."""
        numbers = np.empty(self.clusters.size, np.int64)
        starts = np.cumsum(self.num_members) - self.num_members
        numbers[np.argsort(self.clusters, kind="stable")] = np.arange(numbers.size) - np.repeat(
            starts, self.num_members
        )
        return numbers

    @cached_property
    def orders(self) -> NDArray[np.uint8]:
        """(contexts, 256) symbols by rank, 0 behind the last."""
        orders = np.zeros((self.num_symbols.size, MAX_SYMBOLS), np.uint8)
        has_symbol = np.arange(MAX_SYMBOLS) < self.num_symbols[:, None]
        orders[has_symbol] = np.concatenate([self.cluster_orders.reshape(-1), self.member_orders])
        return orders

    @cached_property
    def ranks(self) -> Ints:
        """(contexts, 256) rank of each symbol."""
        orders = np.where(
            np.arange(MAX_SYMBOLS) < self.num_symbols[:, None], self.orders, MAX_SYMBOLS - 1
        )
        return np.argsort(orders, axis=1, kind="stable")

    @cached_property
    def codes(self) -> Ints:
        """(codes of ranks, ranks) canonical codes, the first bit lowest."""
        widths = _WHOLE >> self.code_lengths.astype(np.int64)
        return _reversed_bits(MAX_CODE_BITS)[np.cumsum(widths, axis=1) - widths & _WHOLE - 1]

    @cached_property
    def for_kernel(self) -> _KernelTables:
        """Tables for the kernel."""
        width = int(self.code_lengths.max())
        ranks = np.arange(int(self.code_lengths.shape[1]))
        entries = self.code_lengths | (ranks << 4).astype(np.uint16)
        widths = (1 << width) >> self.code_lengths.astype(np.int64)
        widths[ranks >= self.num_ranks[:, None]] = 0
        by_code = np.repeat(entries.reshape(-1), widths.reshape(-1)).reshape(-1, 1 << width)
        # Rows of 256 bytes would share a part of the processor's cache.
        row_size = -(-ranks.size // 32) * 32
        orders = np.zeros((self.num_symbols.size, row_size), np.uint8)
        orders[:, : ranks.size] = self.orders[:, : ranks.size]
        units = np.argsort(self.clusters, kind="stable").astype(np.uint64)
        classes = self.left_classes[units] | self.above_classes[units].astype(np.uint64) << 16
        return _KernelTables(
            cluster_contexts=self.cluster_contexts.reshape(-1),
            joint_classes=self.joint_classes.reshape(-1),
            member_contexts=self.contexts_of_members.astype(np.uint16).reshape(-1),
            orders=orders.reshape(-1),
            codes=self.rank_codes,
            ranks=by_code[:, _reversed_bits(width)].reshape(-1),
            starts=(np.cumsum(self.num_members) - self.num_members).astype(np.uint16),
            units=(units | classes << 16).astype(np.uint64),
            sizes=np.array(
                [*self.cluster_contexts.shape, len(self.joint_classes), width, row_size]
            ),
        )


TABLE_NAMES = tuple(field.name for field in fields(GridTables))


@cache
def _reversed_bits(num_bits: int) -> Ints:
    """(2**num_bits,) numbers with their bits in reverse order."""
    numbers = np.arange(1 << num_bits)
    return sum(
        ((numbers >> k & 1) << num_bits - 1 - k for k in range(num_bits)), np.zeros_like(numbers)
    )
