"""The digits world: three tiny MCRs, and the media that they were trained on, inside the package.

    world                 what there is: phrases, handwriting, speech, shapes, scenes, as sources
    preprocess, towers    the encoders `digits-clip`, `digits-clap` and `digits-ulip`
    synthesise            makes the recordings
    augment, pretrain     make the weights

No picture was ever paired with a recording, and no shape with a phrase.
"""
