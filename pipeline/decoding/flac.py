"""FLAC: checks of the metadata, and their declarations of the samples.

libsndfile, read block by block, refuses a frame that is cut or changed (each has a CRC), even if
the header declares neither count nor MD5 (a FLAC written to a pipe). Complete frames that are
missing are decoded as silence, which the MD5 detects, or at the end as fewer samples, which the
count detects too; in a file with neither they cannot be detected.
"""

from im2sp.pipeline.decoding.audio_checks import DeclaredAudio, declared_rate, without_id3
from im2sp.pipeline.decoding.media import AudioError

_STREAMINFO_BYTES = 34


def check_flac(data: bytes) -> DeclaredAudio:
    """Check a FLAC file, with or without ID3 tags before and after it.

    Raises:
        AudioError: The metadata are cut or damaged.
    """
    data = without_id3(data)
    if data[-128:-125] == b"TAG":
        data = data[:-128]
    at, is_last = 4, False
    while not is_last:
        size_bytes = int.from_bytes(data[at + 1 : at + 4], "big")
        if at + 4 + size_bytes > len(data):
            raise AudioError(f"cut: the FLAC ends within its metadata, at byte {len(data):,}")
        kind = data[at] & 0x7F
        if (at == 4) != (kind == 0) or (at == 4 and size_bytes != _STREAMINFO_BYTES):
            raise AudioError(
                f"damaged: FLAC metadata block of kind {kind} and {size_bytes:,} bytes at byte "
                f"{at:,}"
            )
        is_last = bool(data[at] & 0x80)
        at += 4 + size_bytes
    info = int.from_bytes(data[18:26], "big")
    declared_rate(info >> 44, (info >> 41 & 7) + 1)
    if at >= len(data):
        raise AudioError(f"cut: the FLAC ends after its metadata ({len(data):,} bytes)")
    md5, num_frames = data[26:42], info & 0xFFFFFFFFF
    return DeclaredAudio(
        data=data,
        num_frames=num_frames or None,
        is_open=not num_frames,
        md5=md5 if any(md5) else None,
        md5_bits=(info >> 36 & 31) + 1,
    )
