"""The digits world: two tiny MCRs, and the media that they were trained on, inside the package.

    phrases, handwriting, speech   what there is: text, pictures, recordings
    sources                        the same as sources for `cmcr extract`
    preprocess, towers, branches   the encoders `digits-clip` and `digits-clap`
    synthesise                     makes the recordings
    augment, pretrain              make the weights

No picture was ever paired with a recording.
"""

from typing import Literal

Split = Literal["train", "test"]
