"""Which format a clip's content is.

libsndfile decodes more than these, but old synthesiser, tracker and matrix formats are left out on
purpose: nobody keeps spoken captions in them, and each is more code that hostile bytes reach.
"""

from collections.abc import Callable
from dataclasses import dataclass

from im2sp.pipeline.audio_checks import check_aiff, check_au, check_caf, check_nist
from im2sp.pipeline.content import seems_to_be
from im2sp.pipeline.declared_audio import DeclaredAudio, without_id3
from im2sp.pipeline.flac_check import check_flac
from im2sp.pipeline.media import AudioError
from im2sp.pipeline.mp3_check import check_mp3, is_mp3_frame
from im2sp.pipeline.ogg_check import check_ogg
from im2sp.pipeline.wav_check import W64_MAGIC, check_w64, check_wav

_HEAD_BYTES = 64


@dataclass(frozen=True)
class AudioFormat:
    """One format: how it is known, and what says whether a file of it is whole."""

    name: str
    """What messages call it."""

    matches: Callable[[bytes], bool]
    """Whether a file that begins with these (up to 64) bytes is one."""

    check: Callable[[bytes], DeclaredAudio]
    """Raises `AudioError` for a cut or damaged file."""


def _begins(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_wav(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def _is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


FORMATS = (
    AudioFormat("WAV", _is_wav, check_wav),
    AudioFormat("FLAC", _begins(b"fLaC"), check_flac),
    AudioFormat("Ogg", _begins(b"OggS"), check_ogg),
    AudioFormat("AIFF", _is_aiff, check_aiff),
    AudioFormat("AU", _begins(b".snd", b"dns."), check_au),
    AudioFormat("CAF", _begins(b"caff"), check_caf),
    AudioFormat("W64", _begins(W64_MAGIC), check_w64),
    AudioFormat("NIST", _begins(b"NIST_1A\n"), check_nist),
    AudioFormat("MP3", is_mp3_frame, check_mp3),
)
"""What is read, in the order in which the content is asked."""


def find_audio_format(data: bytes) -> AudioFormat:
    """The format of a clip's content; an ID3 tag before it is no part of it.

    Raises:
        AudioError: It is none that is read; the message says what it seems to be.
    """
    if not data:
        raise AudioError("the file is empty (0 bytes)")
    head = without_id3(data)[:_HEAD_BYTES] if data[:3] == b"ID3" else data[:_HEAD_BYTES]
    for audio_format in FORMATS:
        if audio_format.matches(head):
            return audio_format
    if data[:3] == b"ID3":
        raise AudioError("damaged: nothing that is read follows the ID3 tag")
    raise AudioError(f"not a sound that is read: {seems_to_be(data)}")
