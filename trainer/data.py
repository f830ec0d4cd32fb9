"""Batches of tokens from shards, for training and validation."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from im2sp.shards import LoaderBatch, ShardDataset, ShardError, ShardLoader, check_columns
from im2sp.trainer.config import MAX_TOKENS, TrainConfig
from im2sp.trainer.features import ImageFeatures
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.sources import check_fingerprints, fingerprints, longest_of
from im2sp.trainer.teacher import Teacher
from im2sp.trainer.text import TextModel
from im2sp.trainer.unit_pieces import UnitPieces
from im2sp.trainer.vocabulary import Vocabulary

LENGTH_STEP = 32
"""Inputs of the decoder in `TokenBatch.with_fixed_shape` are a multiple of this."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Input of the model: B images and N texts."""

    images_packed: Tensor
    """(B, bytes) uint8; unpacked on the model's device."""
    tokens: Tensor
    """(N, T) int64: BOS, ids, EOS, PAD."""
    owner: Tensor
    """(N,) int64, the row of `images_packed` that each text belongs to."""
    num_tokens: int
    """Tokens that count in the loss: all but BOS and PAD."""
    source: LoaderBatch
    """Batch of the loader that this one was made from."""
    features: tuple[Tensor, ...] = ()
    """Features of the teacher, (B, C) and (B, 49, K) float16, if there is one."""
    states: Tensor | None = None
    """(B, P, C) float16, features of a frozen image encoder, the input in place of image units."""

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, *tuple[Tensor, ...]]:
        """The tensors on a device: image units (B, *shape) or states, tokens, owner, features.

        As for `Im2SpModel.loss`, owner is None if all images have as many texts.
        """
        images = _moved(self.images_packed if self.states is None else self.states, device)
        if self.states is None:
            images = replace(self.source, images_packed=images).image_units
        owner = None if self._is_even() else _moved(self.owner, device)
        others = [_moved(one, device) for one in (self.tokens, *self.features)]
        return images, others[0], owner, *others[1:]

    def _is_even(self) -> bool:
        num_images = len(self.images_packed)
        rows = torch.arange(num_images).repeat_interleave(len(self.owner) // max(1, num_images))
        return torch.equal(self.owner, rows)

    def with_fixed_shape(self, pad: int, max_positions: int) -> "TokenBatch":
        """The batch with as many texts for each image and one of few lengths, by added PAD.

        Compiled code is made for one shape. Texts of PAD alone are not counted in the loss.

        Args:
            pad: The token PAD.
            max_positions: Longest input of the model.
        """
        num_images, (num_texts, length) = len(self.images_packed), self.tokens.shape
        counts = torch.bincount(self.owner, minlength=num_images)
        number = torch.arange(num_texts) - (counts.cumsum(0) - counts)[self.owner]
        most = int(counts.max())
        rounded = -(-(length - 1) // LENGTH_STEP) * LENGTH_STEP
        inputs = max(length - 1, min(rounded, max_positions))
        tokens = self.tokens.new_full((num_images, most, 1 + inputs), pad)
        tokens[self.owner, number, :length] = self.tokens
        owner = torch.arange(num_images).repeat_interleave(most)
        return replace(self, tokens=tokens.flatten(0, 1), owner=owner)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; to a GPU without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class OtherViews:
    """Augmented copies of the images, in memory: packed, 1,274 bytes for 28 x 28 units of 13 bits.

    The copy is drawn from seed, epoch and key, so it depends neither on the batch nor on the
    process, and a resumed run draws the same.
    """

    def __init__(
        self, datasets: Sequence[ShardDataset], seed: int, image_column: str = "image_units"
    ) -> None:
        self._seed = seed
        self._rows: dict[str, list[tuple[int, int]]] = {}
        """Key -> row of the table and number of the view, from 1, of each copy."""
        tables: list[Tensor] = []
        first = 0
        for view, dataset in enumerate(datasets, 1):
            copies = ShardLoader(
                dataset, batch_size=256, target="images", shuffle=False, image_column=image_column
            )
            for batch in copies:
                for row, key in enumerate(batch.keys):
                    self._rows.setdefault(key, []).append((first + row, view))
                tables.append(batch.images_packed)
                first += len(batch.keys)
        self._table = torch.cat(tables)

    def mix(
        self, images_packed: Tensor, keys: Sequence[str], epoch: int
    ) -> tuple[Tensor, list[int]]:
        """Each image or one of its copies, all equally likely.

        Returns:
            (B, bytes) uint8, and the number of the view of each, 0 for the image itself.
        """
        drawn = [self._draw(key, epoch) for key in keys]
        places = [place for place, one in enumerate(drawn) if one is not None]
        mixed = images_packed.clone()
        mixed[places] = self._table[[one[0] for one in drawn if one is not None]]
        return mixed, [0 if one is None else one[1] for one in drawn]

    def _draw(self, key: str, epoch: int) -> tuple[int, int] | None:
        """Row and view of the copy that is drawn for an image; None for the image itself."""
        rows = self._rows.get(key, [])
        digest = hashlib.blake2b(f"{self._seed} {epoch} {key}".encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "little") % (len(rows) + 1)
        return rows[drawn - 1] if drawn else None


class TokenBatches:
    """Batches of a loader with special tokens added and captions or units split into pieces.

    Attributes:
        loader: Source of the batches.
    """

    def __init__(
        self,
        loader: ShardLoader,
        vocabulary: Vocabulary,
        text_model: TextModel | UnitPieces | None,
        other_views: OtherViews | None = None,
        teacher: Teacher | None = None,
        image_features: ImageFeatures | None = None,
    ) -> None:
        self.loader = loader
        self._vocabulary = vocabulary
        self._text_model = text_model
        self._other_views = other_views
        self._teacher = teacher
        self._image_features = image_features

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches, starting at the loader's position."""
        return map(self._tokens_of, self.loader)

    def _tokens_of(self, batch: LoaderBatch) -> TokenBatch:
        ids, lengths = batch.ids, batch.lengths
        if self._text_model is not None:
            if isinstance(self._text_model, UnitPieces):
                pairs = zip(ids.tolist(), lengths.tolist(), strict=True)
                rows = self._text_model.encode([row[:length] for row, length in pairs])
            else:
                rows = self._text_model.encode(batch.captions)
            # A caption has fewer pieces than characters, except for rare ones that NFKC expands.
            rows = [row[: MAX_TOKENS - 1] for row in rows]
            lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
            filled = [torch.tensor(row, dtype=torch.int32) for row in rows]
            ids = pad_sequence(filled, batch_first=True) if rows else ids
        elif self._vocabulary.num_codebooks > 1:
            ids = self._vocabulary.in_time(ids, lengths)
        images_packed, views = batch.images_packed, [0] * len(batch.keys)
        if self._other_views is not None:
            images_packed, views = self._other_views.mix(images_packed, batch.keys, batch.epoch)
        features = () if self._teacher is None else self._teacher.take(batch.keys, views)
        return TokenBatch(
            images_packed=images_packed,
            tokens=self._vocabulary.encode_batch(ids, lengths),
            owner=batch.owner.long(),
            num_tokens=int(lengths.sum()) + len(lengths),
            source=batch,
            features=features,
            states=self._states_of(batch.keys),
        )

    def _states_of(self, keys: Sequence[str]) -> Tensor | None:
        if self._image_features is None:
            return None
        if not keys:  # the end of a split on one of several processes
            return torch.empty(0, *self._image_features.states_shape, dtype=torch.float16)
        return self._image_features.take(keys)


def open_image_features(
    config: TrainConfig, datasets: Sequence[ShardDataset]
) -> ImageFeatures | None:
    """The features of the images, for `--input pixels`; None for image units.

    Raises:
        ValueError: They cannot be read, are of another encoder, or images have none.
    """
    if config.image_encoder is None:
        return None
    found = ImageFeatures(config.features_dir, config.image_encoder)
    found.check_keys(image_keys(datasets, config.image_column), "--features")
    return found


def image_keys(datasets: Sequence[ShardDataset], image_column: str) -> list[str]:
    """Keys of the samples with an image; of all samples of a dataset without image units."""
    rows = (
        dataset.batch(batch).row(row)  # units are not decoded
        for dataset in datasets
        for batch, row in map(dataset.locate, range(len(dataset)))
    )
    return [row["key"] for row in rows if image_column not in row or row[image_column] is not None]


def open_other_views(config: TrainConfig, datasets: Sequence[ShardDataset]) -> OtherViews | None:
    """The augmented copies of `--other-view`; None if it is not given.

    Raises:
        ShardError: A dataset is missing or damaged.
        ValueError: A dataset has units of another tokenizer, or none of the training images.
    """
    if not config.other_view:
        return None
    columns = {"image": config.image_column}
    first = datasets[0]
    expected = fingerprints(first, columns)
    others = [ShardDataset(path) for path in config.other_view]
    for other in others:
        place = f"--other-view {other.path}"
        check_columns([first, other], columns.values())
        check_fingerprints(fingerprints(other, columns), expected, place, str(first.path))
        batches = map(other.batch, range(other.num_batches))
        theirs = {batch.keys.text(row) for batch in batches for row in range(batch.num_samples)}
        # Usually the first sample matches; no more samples are decoded than needed.
        if not any(sample.key in theirs for dataset in datasets for sample in dataset):
            raise ValueError(
                f"{place}: none of its {len(other)} images is among the {sum(map(len, datasets))}"
                f" of {paths_of(datasets)}; the keys must be equal"
            )
    return OtherViews(others, config.seed, config.image_column)


def open_teacher(config: TrainConfig, datasets: Sequence[ShardDataset]) -> Teacher | None:
    """The features of `--teacher`; None if it is not given.

    Raises:
        ValueError: They cannot be read, or do not cover all views and images.
    """
    if not config.teacher:
        return None
    viewed = [datasets[0], *map(ShardDataset, config.other_view)]
    records = [one.manifest.tokenizer_of(config.image_column) or {} for one in viewed]
    views = [str(record.get("view")) for record in records]
    keys = [sample.key for dataset in datasets for sample in dataset]
    return Teacher(config.teacher, views, keys)


def make_loader(
    datasets: Sequence[ShardDataset], config: TrainConfig, ranks: Ranks, *, is_train: bool
) -> ShardLoader:
    """Endless shuffled batches for training, or one pass in the dataset's order for validation.

    Raises:
        ShardError: The dataset is damaged.
        ValueError: Too few samples have what the target needs.
    """
    num_needed = config.batch_size * ranks.world_size
    num_samples = sum(map(len, datasets))
    if is_train and num_samples < num_needed:
        raise ValueError(
            f"{paths_of(datasets)}: {num_samples} samples, expected at least a batch of"
            f" {num_needed}; give a smaller --batch-size"
        )
    return ShardLoader(
        datasets,
        batch_size=config.batch_size,
        target="text" if config.target == "words" else config.target,
        image_column=config.image_column,
        needs_image=not config.without_image
        and (config.input == "units" or config.image_column in datasets[0].columns),
        items=config.items if is_train else "all",
        max_length=longest_of(config, datasets[0]),
        weights=config.weights if is_train else None,
        shuffle=is_train,
        seed=config.seed,
        epochs=None if is_train else 1,
        bucket_window=config.bucket_window if is_train else 0,
        drop_last=is_train,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_threads=config.loader_threads,
    )


def paths_of(datasets: Sequence[ShardDataset]) -> str:
    """Folders of datasets, for messages."""
    return ", ".join(str(dataset.path) for dataset in datasets)


def make_val_loader(
    datasets: Sequence[ShardDataset], config: TrainConfig, ranks: Ranks
) -> ShardLoader:
    """`make_loader` for validation, with the advice that fits."""
    try:
        return make_loader(datasets, config, ranks, is_train=False)
    except ShardError:
        raise
    except ValueError as error:
        raise ValueError(
            f"validation: {error}; name another --val-split, or another dataset with --val-shards"
        ) from None
