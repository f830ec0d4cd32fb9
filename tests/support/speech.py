"""A stand-in for flite: a program that writes a tone for each word and prints invented phones."""

import os
import stat
import sys

PROGRAM = """#!{python}
import sys
import wave
import numpy as np

options = sys.argv[1:]
value = {{name: options[i + 1] for i, name in enumerate(options) if name in ("-voice", "-o", "-t")}}
settings = dict(o.split("=") for i, o in enumerate(options) if i and options[i - 1] == "--setf")
stretch = float(settings["duration_stretch"])
pitch_hz = float(settings.get("int_f0_target_mean", 100))
words = value["-t"].split()
if value["-t"] == "break":
    sys.exit("cannot")
end_s, phones, parts = 0.0, [], []
vowels = ["aa", "iy", "uw", "ae"]
for number, word in enumerate(["", *words, ""] if words else []):
    length_s = 0.2 * stretch
    times_s = np.arange(int(16000 * length_s)) / 16000
    seed = sum(word.encode()) % 4
    tone = np.sin(2 * np.pi * pitch_hz * (seed + 2) * times_s) if word else 0 * times_s
    parts.append((8000 * tone).astype("<i2"))
    end_s += length_s
    phones.append(f"{{vowels[seed] if word else 'pau'}}:{{end_s:.3f}}")
with wave.open(value["-o"], "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    file.writeframes(b"".join(part.tobytes() for part in parts))
print(" ".join(phones))
"""


def install_flite(folder, monkeypatch):
    """Put the stand-in first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "flite"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
