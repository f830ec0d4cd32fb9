"""A teacher that sees the pixels: its features as further targets of the image encoder.

Captions of a few thousand images say little about an image; the features of a network that was
trained on many more say more. The encoder, which sees units, predicts them through two linear
heads: the pooled features from the mean of the projected image states, and the features of 7x7
places from the states of these places. Both are standardised, and the loss is smooth L1 (Huber,
1964). The heads are not part of the model. The method is feature distillation (Romero et al.,
"FitNets: Hints for Thin Deep Nets", 2015).

A folder of features (`trainer.features`), written by tools/teacher_features.py, holds those of one
view of the images: `pooled` (N, C) and `places` (N, 49, K).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.trainer.features import FeatureForm, FeatureParts
from im2sp.trainer.model_config import ModelConfig

SIDE = 7
"""Rows and columns of places."""
POOLED, PLACES = "pooled", "places"
TEACHER = FeatureForm(
    "im2sp teacher 1", "features of a teacher", "--teacher", "tools/teacher_features.py"
)
# Standardised features beyond this many deviations are cut off, as in the smooth L1 loss they would
# outweigh the others.
_MAX_DEVIATIONS = 5.0
_STD_FLOOR = 1e-3


class Features(FeatureParts):
    """Features of one view of the images.

    Attributes:
        widths: C and K, the widths of pooled features and of places.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder; raises ValueError as `FeatureParts`."""
        super().__init__(folder, TEACHER)
        self.widths: tuple[int, int] = (self.shape(POOLED)[-1], self.shape(PLACES)[-1])

    def take(self, key: str) -> tuple[Tensor, Tensor]:
        """(C,) and (49, K) float16 features of an image."""
        return self.row(key, POOLED), self.row(key, PLACES)

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and deviation, float32, of the pooled features (C,) and of the places (K,)."""
        found: list[tuple[Tensor, Tensor]] = []
        for name in (POOLED, PLACES):
            count, total, squares = 0, torch.zeros(()), torch.zeros(())
            for part in self.all_of(name):
                rows = part.flatten(0, -2).double()
                count += len(rows)
                total, squares = total + rows.sum(0), squares + rows.square().sum(0)
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt() + _STD_FLOOR
            found.append((mean.float(), std.float()))
        return found


class Teacher:
    """Features of all views of a run's training images.

    Attributes:
        first: Features of the view of --shards.
    """

    def __init__(self, folders: Sequence[Path], views: Sequence[str], keys: Sequence[str]) -> None:
        """Open the features.

        Args:
            folders: Folders of features, one for each view, in any order.
            views: Views of --shards and of each --other-view.
            keys: Keys of the training images.

        Raises:
            ValueError: Features of a view or image are missing, or are of different teachers.
        """
        found = [Features(folder) for folder in folders]
        for one in found[1:]:
            if one.record["fingerprint"] != found[0].record["fingerprint"]:
                raise ValueError(
                    f"--teacher {one.folder}: features of {one.record['teacher']}, those of"
                    f" {found[0].folder} are of {found[0].record['teacher']}; use one teacher"
                )
        by_view = {one.record["view"]: one for one in found}
        for view in views:
            if view not in by_view:
                raise ValueError(
                    f"--teacher: no features of the view {view}, only of {', '.join(by_view)};"
                    f" write them with tools/teacher_features.py --view {view}"
                )
            by_view[view].check_keys(keys, "--teacher")
        self._views = [by_view[view] for view in views]
        self.first = self._views[0]

    def take(self, keys: Sequence[str], views: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, C) and (B, 49, K) float16 features of images in views, given by their numbers."""
        found = [self._views[view].take(key) for key, view in zip(keys, views, strict=True)]
        return torch.stack([pooled for pooled, _ in found]), torch.stack([x for _, x in found])


class TeacherHeads(nn.Module):
    """Linear predictions of a teacher's features, and their loss."""

    def __init__(self, sizes: ModelConfig, features: Features) -> None:
        """New heads, from torch's generator; features are standardised by the given ones."""
        super().__init__()
        rows, columns = sizes.rows_columns
        self._grid = (rows // sizes.stem_stride, columns // sizes.stem_stride)
        self.pooled = nn.Linear(sizes.decoder.width, features.widths[0])
        self.places = nn.Linear(sizes.encoder.width, features.widths[1])
        for name, (mean, std) in zip(("pooled", "places"), features.moments(), strict=True):
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_std", std)

    def forward(self, states: Tensor, projected: Tensor, pooled: Tensor, places: Tensor) -> Tensor:
        """Loss of the predictions.

        Args:
            states: (B, P, D) states of the encoder, CLS first.
            projected: (B, P, D) projected states.
            pooled: (B, C) features of the teacher.
            places: (B, 49, K) features of the teacher.

        Returns:
            A float32 scalar, the sum of the mean losses of pooled features and places.
        """
        grid = states[:, 1:].transpose(1, 2).unflatten(-1, self._grid)
        at_places = F.adaptive_avg_pool2d(grid, SIDE).flatten(2).transpose(1, 2)
        loss_pooled = self._loss("pooled", self.pooled(projected.mean(1)), pooled)
        return loss_pooled + self._loss("places", self.places(at_places), places)

    def _loss(self, name: str, predicted: Tensor, features: Tensor) -> Tensor:
        mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
        wanted = ((features.float() - mean) / std).clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return F.smooth_l1_loss(predicted.float(), wanted)
