"""`im2sp-demo`: a page in the browser that describes photographs.

    im2sp-demo                                     # the bundled captioners
    im2sp-demo --run runs/speech --run runs/text

Drop a photograph on the page, or take one on a phone; the page shows what the units of the image
keep, the sentence, and the sound. It is served to this machine only, and needs no network.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from im2sp.shards.command_line import print_message, run_command

PROGRAM = "im2sp-demo"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Serve a page that describes photographs in sentences and speech, until Ctrl-C."""

    port: int = 7860
    """Port of the page, http://127.0.0.1:PORT; 0 for any that is free."""
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Captioners, as for im2sp-speak; by default compact-text. Give the flag twice for one of
    speech and one of text."""
    t2u: str | None = None
    """Text-to-unit model that speaks the sentences, as for im2sp-speak."""
    vocoder: str = "compact"
    """Vocoder, as for im2sp-speak."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port is {self.port}; expected 0 to 65535")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    sys.exit(run_command(PROGRAM, DemoConfig, _run, args))


def _run(config: DemoConfig) -> None:
    print_message(PROGRAM, "loading the models ...")
    from im2sp.tools.speaking.describe import Describer
    from im2sp.tools.speaking.server import serve

    describer = Describer(config.run, config.vocoder, config.device, config.t2u)
    with serve(describer, config.port) as server:
        host, port = server.server_address[:2]
        print(f"http://{host!s}:{port}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
