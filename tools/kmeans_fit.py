"""k-means for features in memory or in a stream, such as HuBERT's before they become units.

1. A uniform sample is drawn (one pass). On it, each of several restarts begins with k-means++ (the
   greedy form: of a few drawn candidates the one that helps most) and goes on by Lloyd's rounds.
   The restart with the least inertia is kept.
2. Lloyd's rounds over all features, from those centres, until inertia hardly falls. A round reads
   the features once, in pieces, so a stream is never in memory as a whole. Centres that lost all
   their features start anew at far features of the sample.
3. A last pass counts features and inertia of the centres as they are returned.

The same features, seed and number of threads give the same centres, bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from im2sp.pipeline.hubert_weights import MAX_UNITS
from im2sp.tools.reservoir import Reservoir

Rows = Tensor | NDArray[np.floating]
# Rows whose distances are in memory at once.
PIECE_ROWS = 4096
SAMPLES_PER_CENTRE = 256
MIN_SAMPLES = 16_384
# A squared distance below this share of the squared lengths is rounding: the vectors are equal.
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class KMeansFit:
    """Centres, and how the features lie about them."""

    centres: Tensor
    """(K, D) float32, on the CPU."""
    inertia: float
    """Mean squared distance of a feature from its centre."""
    counts: Tensor
    """(K,) int64, features of each centre."""
    num_rounds: int
    """Rounds over all features."""

    @property
    def num_frames(self) -> int:
        """Features that were fitted."""
        return int(self.counts.sum())


def fit_kmeans(
    features: Rows | Callable[[], Iterable[Rows]],
    num_centres: int,
    *,
    seed: int = 0,
    restarts: int = 3,
    max_rounds: int = 30,
    tolerance: float = 1e-4,
    num_samples: int | None = None,
    quiet: bool = True,
) -> KMeansFit:
    """Fit centres; see the module's docstring.

    Args:
        features: (n, D) floats; or a function that gives the same batches of them in the same
            order whenever it is called, for features that do not fit in memory. It is called
            `num_rounds` + 2 times.
        num_centres: K.
        seed: For the sample, the first centres, and those that start anew.
        restarts: Starts on the sample.
        max_rounds: Of Lloyd, over the sample and over all features each.
        tolerance: Rounds end when inertia falls by less than this share of itself.
        num_samples: Features in the sample; None for 256 a centre, at least 16,384.
        quiet: Show no bar.

    Raises:
        ValueError: Fewer (distinct) features than centres, features that are no finite floats of
            one width, or settings out of range.
    """
    _check_settings(num_centres, restarts, max_rounds, tolerance)
    if num_samples is None:
        num_samples = max(MIN_SAMPLES, SAMPLES_PER_CENTRE * num_centres)
    reservoir = Reservoir(max(num_samples, num_centres), seed=seed)
    for piece in _pieces(features):
        reservoir.add(piece.numpy())
    if reservoir.num_seen < num_centres:
        raise ValueError(
            f"{reservoir.num_seen} features for {num_centres} centres; give more audio or ask for"
            " fewer units"
        )
    # Distances are differences of squares, which round least about the mean.
    mean = torch.from_numpy(reservoir.rows.mean(0, dtype=np.float64).astype(np.float32))
    with tqdm(
        total=(restarts + 1) * max_rounds, desc="k-means", unit=" rounds", disable=quiet
    ) as bar:
        rounds = _Rounds(
            sample=torch.from_numpy(reservoir.rows) - mean,
            generator=torch.Generator().manual_seed(seed),
            max_rounds=max_rounds,
            tolerance=tolerance,
            bar=bar,
        )
        start = rounds.best_start(num_centres, restarts)
        centres, _, num_rounds = rounds.run(lambda: _centred(features, mean), start)
    _, counts, total = _assign(_centred(features, mean), centres)
    num_frames = int(counts.sum())
    if num_frames != reservoir.num_seen:
        raise ValueError(
            f"{reservoir.num_seen} features in the first pass and {num_frames} in the last; the"
            " function must give the same batches whenever it is called"
        )
    return KMeansFit(
        centres=centres + mean, inertia=total / num_frames, counts=counts, num_rounds=num_rounds
    )


def nearest_centres(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) float32 -> ids (n,) int64 of the nearest of (K, D) centres, and squared distances.

    Of centres equally far, the first.
    """
    products = torch.addmm(-centres.square().sum(1) / 2, features, centres.T)
    best, ids = products.max(1)
    return ids, (features.square().sum(1) - 2 * best).clamp_(min=0)


def plus_plus(sample: Tensor, num_centres: int, generator: torch.Generator) -> Tensor:
    """First centres (K, D), one after another, from the features (n, D).

    Of 2 + ln K features, drawn by their squared distance from the centres so far, the one is taken
    that leaves the least inertia.

    Raises:
        ValueError: Fewer distinct features than centres.
    """
    num_candidates = 2 + int(math.log(num_centres))
    lengths = sample.square().sum(1)
    chosen = [int(torch.randint(len(sample), (1,), generator=generator))]
    closest = _distances(sample, lengths, chosen)[:, 0]
    while len(chosen) < num_centres:
        if not closest.any():
            raise ValueError(
                f"{len(chosen)} distinct features in the sample for {num_centres} centres; give"
                " more audio or ask for fewer units"
            )
        candidates = draw(closest, num_candidates, generator)
        distances = torch.minimum(_distances(sample, lengths, candidates), closest[:, None])
        best = int(distances.sum(0).argmin())
        chosen.append(candidates[best])
        closest = distances[:, best].contiguous()
    return sample[chosen].clone()


def draw(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Row numbers, drawn with repeats by weights (n,) that may be many and not all zero."""
    ends = weights.double().cumsum(0)
    points = torch.rand(count, generator=generator, dtype=torch.double) * ends[-1]
    # `right`: a row without weight begins where it ends and is never found.
    return torch.searchsorted(ends, points, right=True).clamp_(max=len(weights) - 1).tolist()


def _distances(sample: Tensor, lengths: Tensor, rows: list[int]) -> Tensor:
    """(n, D), its squared lengths (n,) -> (n, rows): squared distances from some of its rows."""
    distances = torch.addmm(lengths[rows], sample, sample[rows].T, alpha=-2).add_(lengths[:, None])
    is_same = distances < ROUNDING * (lengths[:, None] + lengths[rows])
    distances[is_same] = 0
    distances[rows, range(len(rows))] = 0
    return distances


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """Lloyd's rounds, and what they share."""

    sample: Tensor
    generator: torch.Generator
    max_rounds: int
    tolerance: float
    bar: "tqdm[NoReturn]"

    def best_start(self, num_centres: int, restarts: int) -> Tensor:
        """(K, D): of some restarts on the sample, the one with the least inertia."""
        found: list[tuple[float, Tensor]] = []
        for _ in range(restarts):
            centres = plus_plus(self.sample, num_centres, self.generator)
            centres, inertia, _ = self.run(lambda: self.sample.split(PIECE_ROWS), centres)
            found.append((inertia, centres))
        return min(found, key=lambda pair: pair[0])[1]

    def run(
        self, read: Callable[[], Iterable[Tensor]], centres: Tensor
    ) -> tuple[Tensor, float, int]:
        """Centres after some rounds, the inertia before the last one, and how many there were."""
        before = inertia = math.inf
        num_rounds = 0
        has_settled = False
        while num_rounds < self.max_rounds and not has_settled:
            sums, counts, total = _assign(read(), centres)
            num_rounds += 1
            before, inertia = inertia, total / int(counts.sum())
            moved = (sums / counts.clamp(min=1)[:, None]).float()
            centres = torch.where(counts[:, None] > 0, moved, centres)
            dead = (counts == 0).nonzero()[:, 0]
            if len(dead) and num_rounds < self.max_rounds:
                self._start_anew(centres, dead)
            has_settled = not len(dead) and before - inertia <= self.tolerance * inertia
            self.bar.set_postfix(inertia=f"{inertia:.4g}", refresh=False)
            self.bar.update()
        self.bar.update(self.max_rounds - num_rounds)
        return centres, inertia, num_rounds

    def _start_anew(self, centres: Tensor, dead: Tensor) -> None:
        """Put centres without features where features of the sample lie far from all others."""
        _, distances = nearest_centres(self.sample, centres)
        if distances.any():
            centres[dead] = self.sample[draw(distances, len(dead), self.generator)]


def _assign(pieces: Iterable[Tensor], centres: Tensor) -> tuple[Tensor, Tensor, float]:
    """(K, D) float64 sums of the centres' features, (K,) counts, sum of squared distances."""
    sums = torch.zeros(centres.shape, dtype=torch.double)
    counts = torch.zeros(len(centres), dtype=torch.int64)
    total = 0.0
    for piece in pieces:
        ids, distances = nearest_centres(piece, centres)
        sums += torch.zeros_like(centres).index_add_(0, ids, piece)
        counts += torch.bincount(ids, minlength=len(centres))
        total += float(distances.double().sum())
    return sums, counts, total


def _pieces(features: Rows | Callable[[], Iterable[Rows]]) -> Iterator[Tensor]:
    """float32 (n, D) tensors of `PIECE_ROWS` rows on the CPU, however the features are batched."""
    waiting: list[Tensor] = []
    num_waiting = 0
    for batch in features() if callable(features) else [features]:
        rows = torch.as_tensor(batch)
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(
                f"features are {rows.dtype} of shape {list(rows.shape)}, expected floats of shape"
                " [frames, width]"
            )
        while num_waiting + len(rows) >= PIECE_ROWS:
            taken, rows = rows.split(
                [PIECE_ROWS - num_waiting, len(rows) - PIECE_ROWS + num_waiting]
            )
            yield _joined([*waiting, taken])
            waiting, num_waiting = [], 0
        waiting.append(rows)
        num_waiting += len(rows)
    if num_waiting:
        yield _joined(waiting)


def _joined(parts: list[Tensor]) -> Tensor:
    if len({part.shape[1] for part in parts}) > 1:
        widths = " and ".join(str(part.shape[1]) for part in parts[-2:])
        raise ValueError(f"features are {widths} wide, expected one width")
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.detach().to("cpu", torch.float32).contiguous()


def _centred(features: Rows | Callable[[], Iterable[Rows]], mean: Tensor) -> Iterator[Tensor]:
    return (piece - mean for piece in _pieces(features))


def _check_settings(num_centres: int, restarts: int, max_rounds: int, tolerance: float) -> None:
    if not 1 <= num_centres <= MAX_UNITS:
        raise ValueError(f"{num_centres} centres, expected 1 to {MAX_UNITS}")
    if restarts < 1 or max_rounds < 1:
        raise ValueError(f"{restarts} restarts of {max_rounds} rounds, expected at least 1 of each")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance {tolerance}, expected a share from 0 to below 1")
