"""The model card of a connection: what it is, what made it, how well it does, and its licence.

It is the README.md beside the weights, with the header that the Hugging Face Hub reads.
"""

import yaml

from cmcr.connect.config import unusual
from cmcr.connect.connection.record import Record, SpaceRecord

PAPERS = {
    "c-mcr": ("C-MCR", "https://arxiv.org/abs/2305.14381"),
    "textme": ("TextME", "https://arxiv.org/abs/2602.03098"),
}
IMPORTED = (
    "These weights were imported; their training is not recorded. They have the licence of the "
    "checkpoint that they were read from."
)
UNKNOWN = "not recorded; see its publisher"


def model_card(record: Record) -> str:
    """The card in Markdown."""
    names = " and ".join(space.name for space in record.spaces)
    header = {
        "library_name": "cmcr",
        "tags": ["c-mcr", "multimodal", *(space.name for space in record.spaces)],
    }
    method = record.config.method if record.config else "c-mcr"
    paper, where = PAPERS.get(method, PAPERS["c-mcr"])
    through = f", connected via {record.via}" if record.via else ""
    blocks = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {names}{through}",
        f"Projectors that take the frozen embeddings of {names} into one space of "
        f"{record.joint_dim} dimensions, without paired data, by the method `{record.model}` "
        f"([{paper}]({where})).",
        _usage(record),
        *(_space(space) for space in record.spaces),
        _fit(record),
        _licences(record),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _usage(record: Record) -> str:
    first = record.spaces[0]
    modality = first.memory or first.bridge or next(iter(first.turned), None)
    given = f', modality="{modality}"' if modality else ""
    return (
        "```python\nimport cmcr\n\n"
        'connection = cmcr.load_connection("PATH or OWNER/NAME")\n'
        f'joint = connection.project("{first.name}", embeddings{given})  '
        f"# (n, {first.dim}) → (n, {record.joint_dim}), unit norm\n```"
    )


def _space(space: SpaceRecord) -> str:
    lines = [f"## {space.name}", ""]
    lines += [
        f"- {name.replace('_', ' ')}: `{value}`"
        for name, value in space.encoder.items()
        if name != "licence"
    ]
    lines.append(f"- head: `{space.head}`, {space.dim} dimensions in")
    if space.centred:
        lines.append(f"- centred: {', '.join(space.centred)}")
    if space.whitened:
        lines.append(f"- whitened, each by its own covariance: {', '.join(space.whitened)}")
    lines += [f"- data: `{name}` ({digest[:12]})" for name, digest in space.datasets.items()]
    return "\n".join(lines)


def _fit(record: Record) -> str:
    if record.config is None:
        lines = [f"- {name}: `{value}`" for name, value in record.imported.items()]
        return "\n".join(["## Training", "", IMPORTED, "", *lines])
    said, method = record.pools, record.config.method
    lines = [
        "## Training",
        "",
        f"{record.pairs - record.held_out:,} {record.via} pairs"
        + " that were found, for none was known" * record.blind
        + (f", {record.held_out:,} held out" if record.held_out else "")
        + (f", {said['found']:,} more found in the pools" if said.get("kept") else "")
        + f"; seed {record.config.seed}. Settings that `{method}` does not usually have:",
        "",
    ]
    skipped = {"spaces", "via", "train", "memory", "pool", "blind", "seed"}
    settings = unusual(record.config)
    lines += [f"- `{name}`: {settings[name]}" for name in settings if name not in skipped] or [
        "- none"
    ]
    if record.trained_on:
        lines += ["", f"{trained_line(record)}."]
    if record.validation:
        lines += [
            "",
            "What it did with pairs that it had not seen (docs/methods.md of cmcr says how):",
            "",
            *(f"- {name}: {value:.4f}" for name, value in record.validation.items()),
        ]
    if record.pools:
        lines += ["", f"{pools_line(record)}."]
    if memory := [space.memory for space in record.spaces if space.memory]:
        bank = " and ".join(memory)
        lines += ["", f"Its memory of {bank} corrects hubness where one asks (`--hubness nnn`)."]
    return "\n".join(lines)


def trained_line(record: Record) -> str:
    """What training rows were aggregated from, and what there was no memory for."""
    memories = dict(zip(("first", "second"), record.spaces, strict=True))
    told = []
    for centric, rows in record.trained_on.items():
        if centric == "bridge":
            told.append(f"{rows:,} of {record.via}")
        elif rows:
            told.append(f"{rows:,} of {memories[centric].name}/{memories[centric].memory}")
        else:
            told.append(f"none of {memories[centric].name}, which has no memory")
    return f"training rows: {', '.join(told)}"


def pools_line(record: Record) -> str:
    """What was found in the pools, and whether it is kept."""
    said = record.pools
    if record.blind:
        starts = "1 start" if said["starts"] == 1 else f"{said['starts']} starts"
        return (
            f"blind: after {starts} the Gram matrices agree by "
            f"{said['agreement']:.2f}, where nothing is in common by {said['chance']:.2f}; some of "
            f"the pairs led to all of them in {said['agreed']} of 4 cases; what is held out was "
            f"found too, and proves less than known pairs"
        )
    if "with" not in said:
        return f"pools: left aside, for {record.pairs} known pairs are too few to judge them by"
    decoys = f" ({said['decoys']:.2f} with decoys)" if "decoys" in said else ""
    change = (
        f"the log-likelihood of known pairs that were held out goes from {said['without']:.2f} "
        f"to {said['with']:.2f}{decoys}"
    )
    if said["kept"]:
        return f"pools: {said['found']:,} pairs found, and fitted too: {change}"
    return f"pools: left aside, for it is not clear that what is found there helps: {change}"


def _licences(record: Record) -> str:
    lines = [f"- {space.name}: {space.encoder.get('licence', UNKNOWN)}" for space in record.spaces]
    return "\n".join(["## Licences of the encoders' weights", "", *lines])
