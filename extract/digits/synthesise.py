"""Make the synthetic spoken digits that ship with the package, with espeak-ng 1.51 (GPL-3.0).

    python -m cmcr.extract.digits.synthesise [--out data/speech.parquet]

Every variant ("voice") of espeak-ng says every digit `TAKES` times, each time in another accent of
English, speed and pitch, drawn from the clip's own id. A clip is cut to its sound, has a peak of
0.95, and is stored as 8 kHz, 8 bit, mono FLAC.

`UNINTELLIGIBLE` voices are left out by this rule: a recogniser that was trained on the clips of a
random half of the voices understood fewer than three in four of theirs. The whispers came to
0.50, RicishayMax3 to 0.63, RicishayMax2 to 0.73, and every other voice to 0.83 or more.
"""

import argparse
import io
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from cmcr.errors import CmcrError
from cmcr.extract.digits.preprocess import SAMPLE_RATE, spoken
from cmcr.extract.digits.world.phrases import WORDS
from cmcr.extract.digits.world.speech import SHIPPED
from cmcr.extract.items import Waveform

TAKES = 2
# Not en-gb: espeak-ng 1.51 ignores the variant there, so all voices would be one.
ACCENTS = (
    "en",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
    "en-us",
)
REPEATED = ("caleb", "klatt6")  # the sound of klatt
UNINTELLIGIBLE = ("RicishayMax2", "RicishayMax3", "whisper", "whisperf")
# Voices of one family (steph, steph2, ...) stay on one side.
TEST_VOICES = (
    *("Alicia", "Diogo", "Gene", "Gene2", "Hugo", "Lee", "Marco", "Mike", "belinda", "boris"),
    *("f4", "grandpa", "linda", "m5", "m8", "norbert", "sandro", "steph", "steph2", "steph3"),
    "zac",
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of the file. `speed` is in words per minute, `pitch` espeak-ng's 0 to 99."""

    id: str
    audio: bytes
    label: str
    voice: str
    split: str
    accent: str
    speed: int
    pitch: int


def espeak(*arguments: str) -> bytes:
    """What espeak-ng writes to its standard output."""
    try:
        return subprocess.run(["espeak-ng", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CmcrError(
            "espeak-ng cannot be run", where=error, fix="install espeak-ng, e.g. by apt"
        ) from error


def voices() -> list[str]:
    """The file names of espeak-ng's variants, less repetitions and unintelligible ones."""
    lines = espeak("--voices=variant").decode().splitlines()[1:]
    names = (line.partition("!v/")[2].partition("(")[0].strip() for line in lines)
    return sorted(name for name in names if name not in REPEATED + UNINTELLIGIBLE)


def utterance(voice: str, digit: int, take: int) -> Utterance:
    """One digit said once, with accent, speed and pitch drawn from its id."""
    import soundfile

    name = f"speech-{voice.replace(' ', '_')}-{digit}-{take}"
    rng = random.Random(name)
    accent, speed, pitch = rng.choice(ACCENTS), rng.randint(120, 210), rng.randint(20, 80)
    how = ("-v", f"{accent}+{voice}", "-s", str(speed), "-p", str(pitch))
    wav = espeak(*how, "--stdout", WORDS[digit])
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    sound = 0.95 * spoken(Waveform(samples.T, rate)).numpy()
    flac = io.BytesIO()
    soundfile.write(
        flac, sound, SAMPLE_RATE, format="FLAC", subtype="PCM_S8", compression_level=1.0
    )
    split = "test" if voice in TEST_VOICES else "train"
    return Utterance(name, flac.getvalue(), str(digit), voice, split, accent, speed, pitch)


def utterances() -> Iterator[Utterance]:
    """Every voice, digit and take."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda job: utterance(*job), product(voices(), range(10), range(TAKES)))


def main() -> None:
    """Write the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    out: Path = parser.parse_args().out
    table = pa.Table.from_pylist([asdict(row) for row in utterances()])
    pq.write_table(table, out, compression="zstd")
    print(f"{out}: {len(table)} clips, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
