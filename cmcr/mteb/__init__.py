"""A connection as a model of mteb's: its tasks run on the joint space.

    import mteb
    from cmcr.mteb import CmcrModel

    model = CmcrModel("stores/mine/connections/clip-clap", {"clip": "clip", "clap": "clap"})
    mteb.evaluate(model, mteb.get_tasks(categories=["a2i", "i2a"]))

mteb comes with `cmcr[mteb]`.
"""

from cmcr.mteb.model import CmcrModel

__all__ = ["CmcrModel"]
