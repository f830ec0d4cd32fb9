"""Compiled inner loop of the `grid-huffman` codec; imported on first use, like `packing_kernels`.

A unit needs some ten look-ups, each of which depends on the one before. So `NUM_LANES` values are
decoded in turns, and each step is done for all of them before the next one: their look-ups do not
wait for each other. This makes decoding five times as fast as value by value.

Every code of ranks is complete: any bits are codes, so damaged values decode to wrong units. The
caller compares where each value ended with its size. All indices come from tables that
`GridTables` has checked.
"""

from typing import Any

import numpy as np
from numba import types

from im2sp.shards.coding.packing_kernels import compiled, u64

NUM_LANES = 32

_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_SMALL_IN = types.Array(types.uint16, 1, "C", readonly=True)
_LARGE_IN = types.Array(types.uint64, 1, "C", readonly=True)
_NUMBERS_IN = types.Array(types.int64, 1, "C", readonly=True)
_NUMBERS_OUT = types.Array(types.int64, 1, "C")
_IDS_OUT = types.Array(types.uint16, 1, "C")


@compiled(
    types.void(
        _BYTES_IN,
        _NUMBERS_IN,
        types.int64,
        types.int64,
        _SMALL_IN,
        _BYTES_IN,
        _SMALL_IN,
        _BYTES_IN,
        _BYTES_IN,
        _SMALL_IN,
        _SMALL_IN,
        _LARGE_IN,
        _NUMBERS_IN,
        _IDS_OUT,
        _NUMBERS_OUT,
    )
)
def decode(
    data: Any,
    offsets: Any,
    num_rows: int,
    num_columns: int,
    cluster_contexts: Any,
    joint_classes: Any,
    member_contexts: Any,
    orders: Any,
    codes: Any,
    ranks: Any,
    starts: Any,
    units: Any,
    sizes: Any,
    ids: Any,
    ends: Any,
) -> None:
    """Decode values.

    Args:
        data: (bytes,) uint8, at least 8.
        offsets: (n + 1,) int64, ascending: value v is bytes `offsets[v]` to `offsets[v + 1] - 1`.
        num_rows: Rows of a grid.
        num_columns: Columns of a grid.
        cluster_contexts: (left * joint,) context of the cluster.
        joint_classes: (above * above,) joint class, by the class above and that above right.
        member_contexts: (clusters * left,) context of the member.
        orders: (contexts * row size,) symbols by rank.
        codes: (contexts,) code of the ranks.
        ranks: (codes of ranks << width,) by the next bits: length, and the rank << 4.
        starts: (clusters,) index in `units` of each cluster's first member.
        units: (codes,) a unit, and from bit 16 its left class, from bit 32 its class above.
        sizes: (5,) int64: numbers of left classes, joint classes and classes above; the width; the
            row size.
        ids: (n * rows * columns,) uint16, written.
        ends: (n,) int64, written: the bit after each value, counted from the start of `data`.
    """
    num_left, num_joint, num_above = u64(sizes[0]), u64(sizes[1]), u64(sizes[2])
    width, row_size = u64(sizes[3]), u64(sizes[4])
    window = (u64(1) << width) - u64(1)
    outside = num_left - u64(1) | num_above - u64(1) << u64(16)
    last = u64(data.size) - u64(8)
    lanes = u64(NUM_LANES)
    above = np.zeros(num_columns * NUM_LANES, np.uint8)  # joint classes
    lefts = np.zeros(NUM_LANES, np.uint64)  # classes of the unit to the left
    places = np.zeros(NUM_LANES, np.uint64)  # in bits
    held = np.zeros(NUM_LANES, np.uint64)  # bits from there on
    contexts = np.zeros(NUM_LANES, np.uint64)
    clusters = np.zeros(NUM_LANES, np.uint64)
    found = np.zeros(NUM_LANES, np.uint64)
    count = u64(num_rows) * u64(num_columns)
    num_values = offsets.size - 1
    for first in range(0, num_values, NUM_LANES):
        num_lanes = min(NUM_LANES, num_values - first)
        for k in range(num_lanes):
            places[k] = u64(offsets[first + k]) << u64(3)
        above[:] = joint_classes[num_above * num_above - u64(1)]
        for row in range(num_rows):
            lefts[:] = outside
            for column in range(num_columns):
                here = u64(column) * lanes
                cell = u64(first) * count + u64(row) * u64(num_columns) + u64(column)
                for k in range(num_lanes):
                    lane = u64(k)
                    byte = min(places[lane] >> u64(3), last)
                    bits = u64(0)
                    for i in range(8):  # LLVM merges these into one load
                        bits |= u64(data[byte + u64(i)]) << u64(8 * i)
                    held[lane] = bits >> min(places[lane] - (byte << u64(3)), u64(63))
                    left = lefts[lane] & u64(65535)
                    joint = u64(above[here + lane])
                    contexts[lane] = cluster_contexts[left * num_joint + joint]
                for k in range(num_lanes):
                    lane = u64(k)
                    context, bits = contexts[lane], held[lane]
                    rank = u64(ranks[u64(codes[context]) << width | bits & window])
                    clusters[lane] = orders[context * row_size + (rank >> u64(4))]
                    held[lane] = bits >> (rank & u64(15))
                    places[lane] += rank & u64(15)
                for k in range(num_lanes):
                    lane = u64(k)
                    left = lefts[lane] & u64(65535)
                    contexts[lane] = member_contexts[clusters[lane] * num_left + left]
                for k in range(num_lanes):
                    lane = u64(k)
                    context, bits = contexts[lane], held[lane]
                    rank = u64(ranks[u64(codes[context]) << width | bits & window])
                    member = u64(orders[context * row_size + (rank >> u64(4))])
                    found[lane] = u64(starts[clusters[lane]]) + member
                    places[lane] += rank & u64(15)
                for k in range(num_lanes):
                    lane = u64(k)
                    unit = units[found[lane]]
                    ids[cell + lane * count] = unit & u64(65535)
                    found[lane] = (lefts[lane] >> u64(16)) * num_above + (unit >> u64(32))
                    lefts[lane] = unit >> u64(16)
                if column > 0:
                    for k in range(num_lanes):
                        lane = u64(k)
                        above[here - lanes + lane] = joint_classes[found[lane]]
            end = u64(num_columns - 1) * lanes
            for k in range(num_lanes):
                lane = u64(k)
                pair = (lefts[lane] >> u64(16)) * num_above + num_above - u64(1)
                above[end + lane] = joint_classes[pair]
        for k in range(num_lanes):
            ends[first + k] = places[k]
