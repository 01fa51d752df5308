"""The first recipe for one's own folders, which `cmcr init` writes.

    sources = find_sources(Path("."))        # photos/ holds pictures, sounds/ recordings, ...
    text = starter("mine", sources, ["clip", "clap"], Path("stores/mine"))

A source of a modality that the encoders share is their bridge and goes through all of them; every
other one goes through one encoder, and is the memory and what is evaluated.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from cmcr.cli.recipes.pipelines import SourceSection, checked, space_of
from cmcr.embeddings import Modality
from cmcr.errors import UsageError
from cmcr.extract import encoder_spec, is_of, open_source

USUAL: Mapping[Modality, str] = {"image": "clip", "audio": "clap", "pointcloud": "ulip"}
_LOOKED_AT = 10_000  # files of a folder, and items of a source


class Used(NamedTuple):
    """A source, and the encoders that it goes through."""

    source: SourceSection
    encoders: tuple[str, ...]


def find_sources(folder: Path) -> list[SourceSection]:
    """The media folders in `folder`, and its only .txt file as texts."""
    found = []
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith(".") and (modality := _most(place)):
            found.append({"modality": modality, "where": f"{place.name}/", "dataset": place.name})
    texts = sorted(place for place in folder.glob("*.txt") if place.is_file())
    if len(texts) == 1:
        text = texts[0]
        found.append({"modality": "text", "where": text.name, "dataset": text.stem})
    return [checked(SourceSection, section, section["where"]) for section in found]


def _most(folder: Path) -> Modality | None:
    """The modality that most files below `folder` are of."""
    below = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    counts = Counter(
        modality
        for path in islice(below, _LOOKED_AT)
        for modality in USUAL
        if is_of(modality, path)
    )
    return counts.most_common(1)[0][0] if counts else None


def usual_encoders(sources: Sequence[SourceSection]) -> list[str]:
    """The encoder of each modality that there is a source of."""
    there = {source.modality for source in sources}
    return [encoder for modality, encoder in USUAL.items() if modality in there]


def starter(
    name: str, sources: Sequence[SourceSection], encoders: Sequence[str], store: Path
) -> str:
    """The content of a pipelines.yaml with one recipe, commented.

    Raises UsageError where fewer than two encoders, or no modality that they share, can be used,
    and what `open_source` raises for a source that cannot be read.
    """
    modalities = {encoder: encoder_spec(encoder).modalities for encoder in encoders}
    if len(modalities) < 2:
        raise UsageError(
            f"{' and '.join(modalities) or 'no encoder'} alone: there is nothing to connect",
            fix="give sources of two modalities, such as --source image=photos/ --source "
            "audio=sounds/ --text captions.txt, or name the encoders with --encoder",
        )
    bridges = _bridges(sources, modalities)
    used = [Used(source, _through(source, modalities, bridges)) for source in sources]
    if idle := [str(one.source.where) for one in used if not one.encoders]:
        raise UsageError(
            f"no encoder takes {', '.join(idle)}", fix="name one that does with --encoder"
        )
    spaces = [space_of(encoder) for encoder in modalities]
    chain = len(spaces) > 2
    train = [one.source.dataset for one in used if len(one.encoders) > 1]
    memory = train * chain + [one.source.dataset for one in used if len(one.encoders) == 1]
    lines = [
        f"# yaml-language-server: $schema={files('cmcr') / 'pipelines.schema.json'}",
        f"# A recipe for `cmcr run {name}`. `cmcr pipelines` lists the recipes; while this file is",
        "# here, it stands in for those that ship with cmcr.",
        "",
        f"default: {_yaml(name)}",
        "",
        "pipelines:",
        f"  {_yaml(name)}:",
        f"    description: {_yaml(' and '.join(one.source.dataset for one in used))}",
        f"    store: {_yaml(str(store))}  # the folder of embeddings, connections and results",
        "",
        "    # Which sources go through which encoder, and what each is called in the store.",
        "    # `pattern:` reads labels from file names, `regions: grid` embeds parts of pictures.",
        "    extract:",
    ]
    for encoder in modalities:
        lines += [
            f"      - encoder: {_yaml(encoder)}",
            "        # checkpoint: FILE    # weights on this disk, in the publisher's own layout",
            "        sources:",
            *(
                f"          - {{modality: {one.source.modality}, where: "
                f"{_yaml(one.source.where)}, dataset: {_yaml(one.source.dataset)}}}"
                for one in used
                if encoder in one.encoders
            ),
        ]
    via = next(iter(bridges)) if not chain else None
    lines += [
        "",
        "    # The spaces, and what they are connected from: `train` are datasets that they share,",
        "    # `memory` those of other modalities. cmcr.connect.ConnectConfig lists all else.",
        "    connect:",
        f"      name: {_yaml(name)}",
        *([f"      via: {via}"] if via else []),
        f"      spaces: [{', '.join(map(_yaml, spaces))}]",
        f"      train: [{', '.join(map(_yaml, train))}]",
        f"      memory: [{', '.join(map(_yaml, memory))}]",
        "      method: auto    # tries all, by held-out pairs; c-mcr is the paper's",
        "",
        "    # What is searched in what. Items match when they share a label (class folders give",
        "    # labels, and a manifest's column) or a group.",
        "    evaluate:",
        *_evaluate(used),
    ]
    return "\n".join(lines) + "\n"


def _bridges(
    sources: Sequence[SourceSection], modalities: Mapping[str, Sequence[Modality]]
) -> set[Modality]:
    """The modality that all encoders share and there is a source of, else those that some share."""
    there = sorted({source.modality for source in sources}, key=lambda one: one != "text")
    shared = {one: sum(one in its for its in modalities.values()) for one in there}
    for modality, count in shared.items():
        if count == len(modalities):
            return {modality}
    some = {modality for modality, count in shared.items() if count > 1}
    met: set[Modality] = set(next(iter(modalities.values())))
    for its in list(modalities.values())[1:]:
        if not met & some & set(its):
            share = set.intersection(*map(set, modalities.values()))
            raise UsageError(
                f"{' and '.join(modalities)} have nothing to meet in: no source of a modality that "
                "both know",
                fix=f"give one of {', '.join(sorted(share))}, such as --text captions.txt"
                if share
                else "name encoders that share a modality, with --encoder",
            )
        met |= set(its)
    return some


def _through(
    source: SourceSection, modalities: Mapping[str, Sequence[Modality]], bridges: set[Modality]
) -> tuple[str, ...]:
    able = [encoder for encoder, its in modalities.items() if source.modality in its]
    if source.modality in bridges:
        return tuple(able)
    usual = USUAL.get(source.modality)
    return (usual,) if usual in able else tuple(able[:1])


def _evaluate(used: Sequence[Used]) -> list[str]:
    """The searches between sources of two encoders; those that share no label are comments."""
    own = [one for one in used if len(one.encoders) == 1]
    labels = {one.source.dataset: _labels(one.source) for one in own}
    active: list[str] = []
    idle: list[str] = []
    for gallery, query in combinations(own, 2):
        if gallery.encoders == query.encoders:
            continue
        line = f'- {{query: "{_place(query)}", gallery: "{_place(gallery)}"}}'
        match = labels[gallery.source.dataset] & labels[query.source.dataset]
        (active if match else idle).append(line)
    lines = [f"      retrieval:{'' if active else ' []'}"]
    lines += [f"        {line}" for line in active]
    if idle:
        lines += [
            "        # No label is common to these yet:",
            *(f"        # {one}" for one in idle),
        ]
    return lines


def _place(one: Used) -> str:
    return f"{space_of(one.encoders[0])}/{one.source.modality}:{one.source.dataset}"


def _labels(source: SourceSection) -> set[str]:
    items = open_source(source.modality, source.where, source.pattern).items()
    return {
        value
        for item in islice(items, _LOOKED_AT)
        for value in (*item.label, *([item.group] if item.group else []))
    }


def _yaml(text: str) -> str:
    """`text` as YAML reads it back: plain where that is safe."""
    plain = text.replace("-", "").replace("_", "").isalnum() and text[0].isalpha()
    return (
        text
        if plain and text not in ("null", "true", "false", "yes", "no", "on", "off")
        else (json.dumps(text, ensure_ascii=False))
    )
