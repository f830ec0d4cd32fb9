"""What happens to speech on its way to a microphone: rooms, other voices, noise."""

import torch
from torch import Tensor

RATE_HZ = 16_000
ROOM_SHARE = 0.3
TONE_SHARE = 0.4
VOICE_SHARE = 0.15
NOISE_SHARE = 0.75
NOISE_RANGE_DB = (8.0, 32.0)


def disturb(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Clips as they might have been recorded: (B, S) float32 in and out.

    Some get the echo of a room, some another tone, some a second, quieter voice for a while (of
    another clip of the batch), most a noise of some colour; a few stay as they are.
    """
    num_samples = clips.shape[1]
    rooms = _rooms(len(clips), generator)
    # Transforms of such sizes are quick.
    size = -(-(num_samples + rooms.shape[1]) // 4096) * 4096
    spectra = torch.fft.rfft(clips, size) * torch.fft.rfft(rooms, size)
    spectra = spectra * _tones(len(clips), spectra.shape[1], generator)
    heard = torch.fft.irfft(spectra, size)[:, :num_samples]
    heard = heard + _voices(heard, generator)
    return heard + _noises(heard, generator)


def add_noise(clip: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """(S,) -> (S,): white noise `snr_db` below the clip's mean power."""
    noise = torch.randn(clip.shape, generator=generator)
    return clip + noise * _rms(clip) * 10 ** (-snr_db / 20)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _chosen(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, 1) float32: 1 for about a share of the clips, else 0."""
    return (torch.rand(count, 1, generator=generator) < share).float()


def _rms(clips: Tensor) -> Tensor:
    return clips.square().mean(-1, keepdim=True).clamp(min=1e-8).sqrt()


def _tones(count: int, num_bins: int, generator: torch.Generator) -> Tensor:
    """(B, F) gains: a smooth curve of up to about 8 dB over the frequencies."""
    knots = _uniform((count, 1, 8), -8.0, 8.0, generator)
    curve_db = torch.nn.functional.interpolate(knots, num_bins, mode="linear", align_corners=True)
    return 10 ** (_chosen(count, TONE_SHARE, generator) * curve_db[:, 0] / 20)


def _rooms(count: int, generator: torch.Generator) -> Tensor:
    """(B, 0.4 s) impulse responses: the direct sound and noise that dies away."""
    num_samples = int(0.4 * RATE_HZ)
    times_s = torch.arange(num_samples) / RATE_HZ
    fall_s = _uniform((count, 1), 0.1, 0.5, generator)
    tails = torch.randn(count, num_samples, generator=generator) * 10 ** (-3 * times_s / fall_s)
    tails[:, : RATE_HZ // 500] = 0
    level = _uniform((count, 1), 0.1, 0.7, generator)
    tails = tails / tails.square().sum(1, keepdim=True).sqrt() * level
    tails = tails * _chosen(count, ROOM_SHARE, generator)
    tails[:, 0] = 1.0
    return tails


def _voices(clips: Tensor, generator: torch.Generator) -> Tensor:
    """The next clip of the batch, 5 to 20 dB quieter, for up to half of the time."""
    num_samples = clips.shape[1]
    level = 10 ** (-_uniform((len(clips), 1), 5.0, 20.0, generator) / 20)
    others = clips.roll(1, 0)
    start = _uniform((len(clips), 1), 0.0, 1.0, generator) * num_samples
    length = _uniform((len(clips), 1), 0.1, 0.5, generator) * num_samples
    place = torch.arange(num_samples)
    is_heard = (place >= start) & (place < start + length)
    gain = level * _rms(clips) / _rms(others) * _chosen(len(clips), VOICE_SHARE, generator)
    return others * gain * is_heard


def _noises(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Noise between white and brown, 8 to 32 dB below the speech."""
    num_samples = clips.shape[1]
    size = -(-num_samples // 4096) * 4096
    spectra = torch.fft.rfft(torch.randn(len(clips), size, generator=generator))
    slope = _uniform((len(clips), 1), 0.0, 1.0, generator) * _chosen(len(clips), 0.6, generator)
    bins = torch.arange(spectra.shape[1]).clamp(min=size * 50 // RATE_HZ)
    noise = torch.fft.irfft(spectra * torch.exp(-slope * bins.log()), size)[:, :num_samples]
    snr_db = _uniform((len(clips), 1), *NOISE_RANGE_DB, generator)
    level = _chosen(len(clips), NOISE_SHARE, generator) * 10 ** (-snr_db / 20)
    return noise / _rms(noise) * _rms(clips) * level
