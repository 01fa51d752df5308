"""The digits world: three tiny MCRs, and the media that they were trained on, inside the package.

    phrases, handwriting, speech   what there is: text, pictures, recordings
    shapes, scenes                 handwriting cut out of a board; several digits in one picture
    sources                        the same as sources for `cmcr extract`
    preprocess, towers, branches   the encoders `digits-clip`, `digits-clap` and `digits-ulip`
    synthesise                     makes the recordings
    augment, pretrain              make the weights

No picture was ever paired with a recording, and no shape with a phrase.
"""

from typing import Literal

Split = Literal["train", "test"]
