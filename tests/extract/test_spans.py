"""Pictures of films and windows of sound: found at their second, the same bytes however made."""

import json
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from plugins import Senses, install
from shell import cmcr, succeed
from torch import Tensor

from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.parts import read_failures
from cmcr.errors import UsageError
from cmcr.extract import extract, find_media, open_spans

RED, GREY = (250, 20, 20), (90, 90, 90)
RATE = 8_000  # Hz


def write_film(
    path: Path,
    seconds: float,
    *,
    event: tuple[float, float],
    fps: int = 2,
    sound: bool | float = True,
    picture: bool = True,
) -> Path:
    """A grey film that is red in `event`, with noise in which there is a tone then.

    The sound is as long as the picture, or `sound` seconds.
    """
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("mpeg4", rate=fps)
            video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        if sound:
            audio = container.add_stream("aac", rate=RATE)
            audio.layout = "mono"
        for number in range(round(seconds * fps) if picture else 0):
            colour = RED if event[0] <= number / fps < event[1] else GREY
            pixels = np.full((24, 32, 3), colour, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if picture:
            container.mux(video.encode(None))
        if sound:
            samples = noise(random, seconds if sound is True else sound, event)
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def noise(random: np.random.Generator, seconds: float, event: tuple[float, float]) -> np.ndarray:
    moments = np.arange(round(seconds * RATE)) / RATE
    samples = random.normal(0, 0.05, len(moments))
    there = (moments >= event[0]) & (moments < event[1])
    samples[there] += 0.4 * np.sin(2 * np.pi * 1_000 * moments[there])
    return samples.astype(np.float32)


def write_wav(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes with an event at 200 s, and a short film."""
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "long.mp4", 300, event=(200, 206))
    write_film(folder / "short.mkv", 9, event=(4, 6))
    return folder


def made(store: Path, source: Any, **options: Any) -> dict[str, bytes]:
    usual = {"part_rows": 16, "batch_size": 8, "workers": 0, "index": None}
    summary = extract(store, Senses(), source, "d", **(usual | options))
    return {one.name: one.read_bytes() for one in sorted(summary.folder.glob("[!.]*"))}


def rows(store: Path, modality: str, name: str = "d") -> list[dict[str, Any]]:
    dataset = open_dataset(store, Key("senses", modality, name))
    table = dataset.table(["id", "uri", "start", "end"]).to_pylist()
    vectors = dataset.embeddings().astype(np.float32)
    return [row | {"vector": vector} for row, vector in zip(table, vectors, strict=True)]


def nearest(found: list[dict[str, Any]], vector: np.ndarray) -> dict[str, Any]:
    return max(found, key=lambda row: float(row["vector"] @ vector))


@pytest.mark.parametrize("frames", [5.0, "scene"])
def test_an_event_in_five_minutes_of_film_is_seen_at_its_second(
    films: Path, tmp_path: Path, frames: Any
) -> None:
    source = open_spans("image", str(films / "long.mp4"), frames=frames, folder=tmp_path / "s")
    made(tmp_path, source)
    found = rows(tmp_path, "image")
    assert len(found) == source.total == (3 if frames == "scene" else 60)
    red = np.resize(np.array(RED) / 255 - 0.3, 8)
    best = nearest(found, red / np.linalg.norm(red))
    assert (best["start"], best["end"]) == ((200, 206) if frames == "scene" else (200, 205))
    assert (best["id"], best["uri"]) == ("long.mp4#t=200", str(films / "long.mp4"))


@pytest.mark.parametrize("kind", ["mp4", "wav"])
def test_a_tone_in_five_minutes_of_noise_is_heard_at_its_second(
    films: Path, tmp_path: Path, kind: str
) -> None:
    place = films / "long.mp4"
    if kind == "wav":
        samples = noise(np.random.default_rng(0), 300, (200, 206))
        place = write_wav(tmp_path / "long.wav", samples)
    made(tmp_path, open_spans("audio", str(place), window=10, hop=5, folder=tmp_path))
    found = rows(tmp_path, "audio")
    assert [row["start"] for row in found] == [5.0 * number for number in range(59)]
    tone = np.zeros(8)
    tone[2] = 1
    best = nearest(found, tone)
    assert abs(best["start"] - 200) <= 5
    assert best["end"] == best["start"] + 10


def test_the_same_bytes_twice_resumed_sharded_and_by_a_worker(films: Path, tmp_path: Path) -> None:
    def open_(kind: str) -> Any:
        given: dict[str, Any] = {"frames": 0.25} if kind == "image" else {"window": 1, "hop": 0.5}
        return open_spans(kind, str(films / "short.mkv"), folder=tmp_path, **given)

    for kind in ("image", "audio"):
        whole = made(tmp_path / "whole", open_(kind))
        assert made(tmp_path / "whole", open_(kind)) == whole
        for shard in (1, 0):
            sharded = made(tmp_path / "sharded", open_(kind), shard_index=shard, num_shards=2)
        assert sharded == whole
        assert made(tmp_path / "worker", open_(kind), workers=1) == whole

        class Stopped(Senses):
            calls = 0

            def encode(self, modality: str, batch: Tensor) -> Tensor:
                self.calls += 1
                if self.calls == 3:  # the second part has begun
                    raise KeyboardInterrupt
                return super().encode(modality, batch)

        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "stopped", Stopped(), open_(kind), "d", part_rows=16,
                    batch_size=8, workers=0, index=None)  # fmt: skip
        assert made(tmp_path / "stopped", open_(kind)) == whole
    description = json.loads(whole["manifest.json"])["source"]
    assert description["windows"] == {"window": 1.0, "hop": 0.5}


def test_other_seconds_are_another_content(films: Path, tmp_path: Path) -> None:
    def open_(frames: Any) -> Any:
        return open_spans("image", str(films / "short.mkv"), frames=frames, folder=tmp_path)

    made(tmp_path, open_(2.0))
    with pytest.raises(Exception, match=r"another source\.frames"):
        made(tmp_path, open_(3.0))
    made(tmp_path, open_(4.0), update=True)
    assert [row["start"] for row in rows(tmp_path, "image")] == [0, 4, 8]


def test_a_film_is_opened_once_a_batch(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmcr.extract.media import video

    opened = []
    first = video.container_of
    monkeypatch.setattr(video, "container_of", lambda file: opened.append(1) or first(file))
    source = open_spans("image", str(films / "long.mp4"), frames=5.0, folder=tmp_path)
    opened.clear()
    made(tmp_path, source)  # 60 pictures in 4 parts of at most two batches
    assert len(opened) == 8


def test_pictures_behind_a_seek_are_those_of_the_whole_film(films: Path, tmp_path: Path) -> None:
    source = open_spans("image", str(films / "long.mp4"), frames=0.5, folder=tmp_path)
    items = [item for item in source.items() if 198 <= item.start <= 208]  # type: ignore[attr-defined]
    uris = {f"{item.uri}#t={item.start:g},{item.end:g}": item for item in items}  # type: ignore[attr-defined]
    found = find_media("image", list(uris))
    for uri, item in uris.items():
        shown = np.asarray(found[uri]).mean(axis=(0, 1))
        assert (shown[0] > 200) == (200 <= item.start < 206), uri  # type: ignore[attr-defined]


def test_films_that_cannot_be_read_are_failures_and_no_end(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"no film" * 99)
    write_film(folder / "deaf.mp4", 3, event=(1, 2), sound=False)
    write_film(folder / "blind.mkv", 3, event=(1, 2), picture=False)
    whole = (films / "short.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.pdf").write_text("skipped")
    unreadable = {"broken.mp4", "blind.mkv"}
    for kind, given, bad in (
        ("image", {"frames": 1.0}, unreadable),
        ("image", {"frames": "scene"}, unreadable),
        ("audio", {"window": 1.0}, {"broken.mp4", "deaf.mp4"}),
    ):
        store = tmp_path / f"{kind}{next(iter(given.values()))}"
        source = open_spans(kind, str(folder), folder=store, **given)  # type: ignore[arg-type]
        made(store, source, max_failures=0.9)
        dataset = open_dataset(store, Key("senses", kind, "d"))
        failed = {row["id"]: row["message"] for row in read_failures(dataset.folder)}
        late = set(failed) - bad  # where the film that is cut short ends
        assert bad < set(failed) or given == {"frames": "scene"}
        assert all(name.startswith("cut.mkv#t=") for name in late)
        assert {"cut.mkv#t=0", f"{'deaf.mp4' if kind == 'image' else 'blind.mkv'}#t=0"} <= set(
            dataset.ids()
        )
    assert failed["deaf.mp4"] == "the file has no sound"


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("picture", "sound"), [(6, 3), (3, 6)])
def test_the_spans_of_a_film_end_with_its_own_stream(
    tmp_path: Path, picture: int, sound: int, tagged: bool
) -> None:
    film = write_film(tmp_path / "film.mkv", picture, event=(1, 2), sound=sound)
    if not tagged:  # not every program writes how long each stream is
        film.write_bytes(film.read_bytes().replace(b"DURATION", b"SOMEWHAT"))
    made(tmp_path, open_spans("image", str(film), frames=1.0, folder=tmp_path))
    made(tmp_path, open_spans("audio", str(film), window=1, folder=tmp_path))
    assert [row["start"] for row in rows(tmp_path, "image")] == list(range(picture))
    heard = [row["start"] for row in rows(tmp_path, "audio")]
    assert heard[:sound] == list(range(sound))
    assert len(heard) <= sound + 1  # the codec pads its last block
    for modality in ("image", "audio"):
        assert not list(read_failures(open_dataset(tmp_path, Key("senses", modality, "d")).folder))


def test_a_film_of_which_no_picture_can_be_decoded_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "whole.mkv", 2, event=(1, 2))
    with av.open(str(folder / "black.mkv"), "w") as container:  # it has pictures by its header
        video = container.add_stream("mpeg4", rate=2)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        audio = container.add_stream("aac", rate=RATE)
        audio.layout = "mono"
        video.encode(av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24"))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * RATE), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    source = open_spans("image", str(folder), frames="scene", folder=tmp_path / "s")
    made(tmp_path, source, max_failures=0.9)
    (failed,) = read_failures(open_dataset(tmp_path, Key("senses", "image", "d")).folder)
    assert (failed["id"], failed["message"]) == ("black.mkv", "the film shows no picture")


@pytest.mark.parametrize(
    ("modality", "given", "message"),
    [
        ("image", {"frames": 0.0}, "no time from one picture"),
        ("image", {"frames": float("nan")}, "no time from one picture"),
        ("audio", {"frames": 1.0}, "makes pictures of films, not audio"),
        ("image", {"window": 10.0}, "makes pieces of sound, not image"),
        ("audio", {"window": 5.0, "hop": 10.0}, "leave something out"),
        ("audio", {"hop": 5.0}, "goes with --window"),
        ("image", {"frames": 1.0, "window": 5.0}, "--frames makes pictures, --window"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(
    films: Path, tmp_path: Path, modality: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as told:
        open_spans(modality, str(films), folder=tmp_path, **given)
    assert told.value.fix


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


@pytest.mark.usefixtures("plugins")
def test_a_search_says_at_which_second_and_its_page_plays_from_there(
    films: Path, tmp_path: Path
) -> None:
    common = ("--encoder", "senses", "--no-pipeline", "--workers", "0", "--store", "S")
    succeed("extract", *common, "--source", f"image={films}", "--frames", "5", cwd=tmp_path)
    succeed("extract", *common, "--source", f"audio={films}", "--window", "10", "--hop", "5",
            cwd=tmp_path)  # fmt: skip
    Image.new("RGB", (9, 9), RED).save(tmp_path / "red.png")
    write_wav(tmp_path / "tone.wav", noise(np.random.default_rng(1), 2, (0, 2)))
    for query, place, seconds in (
        ("red.png", f"senses/image:{films.name}-frames", (200, 205)),
        ("tone.wav", f"senses/audio:{films.name}-windows", (195, 205)),
    ):
        command = ("search", query, "--in", place, "--where", "start=200.0,195.0", "--store", "S")
        told = succeed(*command, "--no-pipeline", cwd=tmp_path)
        assert "seconds" in told.stdout
        assert "200-205" in told.stdout or "195-205" in told.stdout
        told = succeed(*command, "--no-pipeline", "--json", "--html", "f.html", cwd=tmp_path)
        best = json.loads(told.stdout)["queries"][0]["results"][0]
        assert abs(best["start"] - seconds[0]) <= 5
        page = (tmp_path / "f.html").read_text()
        link = f"{(films / 'long.mp4').as_uri()}#t={best['start']:g},{best['end']:g}"
        assert f'href="{link}"' in page
        assert (f'src="{link}"' in page) == query.endswith("png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source", "image=films", "--frames", "0"), "no time from one picture"),
        (("--source", "image=films", "--frames", "often"), "no number of seconds"),
        (("--source", "image=films", "--window", "5"), "pieces of sound, not image"),
        (("--source", "audio=films", "--frames", "1"), "takes no audio"),
        (("--source", "Audio!=films"), "'Audio!' cannot name a modality"),
        (("--source", "image=empty", "--frames", "1"), "the folder holds no film files"),
        (("--source", "image=films", "--frames", "1", "--regions", "grid"), "cut in time alone"),
        (("--source", "image=films", "--frames", "scene", "--dry-run"), "how many scenes"),
        (("--frames", "1"), "go with --source"),
    ],
)
def test_flags_that_make_no_sense_get_an_error_in_three_parts(
    films: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    (tmp_path / "films").symlink_to(films)
    (tmp_path / "empty").mkdir()
    told = json.loads(
        cmcr("extract", "--encoder", "digits-clip", "--no-pipeline", "--store", "S", *flags,
             "--json", cwd=tmp_path).stdout
    )["error"]  # fmt: skip
    assert message in told["what"]
    assert told["fix"]
    assert told["where"] or flags[0] != "--source"
