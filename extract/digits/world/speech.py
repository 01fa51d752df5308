"""Spoken digits: the synthetic ones that ship with the package, and human ones from a folder.

    >>> clips("test")[0].voice
    'Alicia'

The shipped ones were made by `python -m cmcr.extract.digits.synthesise`. The human ones are the
Free Spoken Digit Dataset (Z. Jackson et al., CC BY-SA 4.0), which is not part of the package:
`git clone https://github.com/Jakobovski/free-spoken-digit-dataset`, folder `recordings`.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from cmcr.errors import SourceError
from cmcr.extract.digits.world.handwriting import Split
from cmcr.extract.items import Waveform

SHIPPED = Path(__file__).parents[1] / "data" / "speech.parquet"
FSDD_TEST_TAKES = 5


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken digit. `audio` is the file's bytes: FLAC, or WAV for FSDD."""

    id: str
    audio: bytes
    digit: int
    voice: str

    def waveform(self) -> Waveform:
        """The decoded clip."""
        import soundfile

        samples, rate = soundfile.read(io.BytesIO(self.audio), dtype="float32", always_2d=True)
        return Waveform(samples.T, rate)


def clips(split: Split, file: Path = SHIPPED) -> list[Clip]:
    """The synthetic clips of one split; no voice is in both."""
    import pyarrow.parquet as pq

    columns = ["id", "audio", "label", "voice"]
    rows = pq.read_table(file, columns=columns, filters=[("split", "==", split)])
    return [
        Clip(row["id"], row["audio"], int(row["label"]), row["voice"]) for row in rows.to_pylist()
    ]


def fsdd(folder: Path, split: Split) -> list[Clip]:
    """The human clips of one split: takes 0 to 4 of each speaker and digit are FSDD's test split.

    Raises SourceError when `folder` holds no `DIGIT_SPEAKER_TAKE.wav`.
    """
    files = sorted(folder.glob("[0-9]_*_*.wav"))
    if not files:
        raise SourceError(
            "the folder holds no file named like 7_jackson_0.wav",
            where=folder,
            fix="give the `recordings` folder of free-spoken-digit-dataset to --fsdd",
        )
    found = []
    for file in files:
        digit, speaker, take = file.stem.split("_")
        if (int(take) < FSDD_TEST_TAKES) == (split == "test"):
            found.append(Clip(file.stem, file.read_bytes(), int(digit), speaker))
    return found
