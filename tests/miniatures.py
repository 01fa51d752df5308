"""Published data sets in miniature, in the files as their publishers offer them.

    MINIATURES["ave"](root, items=6)       # for cmcr prepare ave --from root

Media are made up: noise that differs from item to item, in the formats that are offered.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

RATE = 8_000
CLASSES = ("church bell", "dog barking", "flower pot", "night stand", "rain")


# Media


def video(path: Path, seconds: float = 2.0) -> Path:
    """Ten pictures a second, brighter by the second, and a tone that is louder by the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        tone = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(int(seconds * 10)):
            shade = np.full((32, 32, 3), min(255, 8 * (number // 10)), np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(pictures.encode(None))
        for start in range(0, int(seconds * RATE), 1024):
            wave = np.sin(np.arange(1024) * 0.3) * min(1.0, (start // RATE) / 32)
            frame = av.AudioFrame.from_ndarray(
                wave[None].astype(np.float32), format="fltp", layout="mono"
            )
            frame.rate, frame.pts = RATE, start
            container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    return path


def sound(path: Path, seconds: float = 0.1) -> None:
    """A tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(seconds * RATE))), RATE)


def picture(path: Path) -> None:
    """A green square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "green").save(path)


def text(path: Path, content: str) -> None:
    """A file of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def cloud(path: Path, content: Any) -> None:
    """A NumPy file, pickled where its content must be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content, allow_pickle=True)


def seen(path: Path, number: int) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(number)
    small = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 48)).save(path)


def heard(path: Path, number: int) -> None:
    """A second of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(number)
    tone = np.sin(np.arange(RATE) * (0.1 + 0.05 * number))
    soundfile.write(path, 0.3 * tone + 0.05 * draw.normal(size=RATE), RATE)


def solid(number: int, points: int = 256) -> np.ndarray:
    """A cloud of points (points, 6) with normals."""
    draw = np.random.default_rng(number)
    return (draw.normal(size=(points, 6)) * [1, 1 + number % 3, 1, 1, 1, 1]).astype(np.float32)


# Data sets


def ave(root: Path, items: int) -> None:
    """Videos, three of four in the test split."""
    rows = [f"{CLASSES[n % 5].title()}&ave{n}&good&0&10" for n in range(items)]
    text(root / "Annotations.txt", "\n".join(["Category&VideoID&Quality&StartTime&EndTime", *rows]))
    text(root / "testSet.txt", "\n".join(row for n, row in enumerate(rows) if n % 4))
    text(root / "trainSet.txt", "\n".join(rows[::4]))
    for number in range(items):
        video(root / f"AVE/ave{number}.mp4", seconds=1 + number)


def vggss(root: Path, items: int) -> None:
    """Frames and sounds, the first two heard, and silent pairs of each with the next."""
    names = [f"vgg{number}_000030" for number in range(items)]
    boxes = [[0.1, 0.1, 0.6, 0.7]]
    rows = [{"file": name, "class": "dog barking", "bbox": boxes} for name in names]
    text(root / "metadata/vggss.json", json.dumps(rows))
    text(root / "metadata/vggss_heard_test.csv", "".join(f"{name}\n" for name in names[:2]))
    text(root / "metadata/vggss_unheard_test.csv", "".join(f"{name}\n" for name in names[2:]))
    _silent(root / "metadata/vggss_test_plus_silent.csv", names)
    for number, name in enumerate(names):
        seen(root / f"frames/{name}.jpg", number)
        heard(root / f"audio/{name}.wav", number)


def flickr(root: Path, items: int) -> None:
    """Folders of a picture and a sound, the last for training."""
    names = [str(1000 + number) for number in range(items)]
    box = "<bbox><n>1</n><a>20</a><b>20</b><c>150</c><d>200</d></bbox>"
    for number, name in enumerate(names):
        text(root / f"Annotations/{name}.xml", f"<a><o>{box}</o><o>{box}</o></a>")
        seen(root / f"Data/{name}.mp4/{name}.jpg", 20 + number)
        heard(root / f"Data/{name}.mp4/{name}.wav", 20 + number)
    text(root / "flickr_test.csv", "".join(f"{name},0\n" for name in names[:-1]))
    _silent(root / "flickr_test_plus_silent.csv", names[:-1])


def _silent(path: Path, names: list[str]) -> None:
    pairs = zip(names, names[1:] + names[:1], strict=True)
    rows = [f"{one},{other},non-sounding" for one, other in pairs]
    text(path, "\n".join(["video,audio,label", *rows]) + "\n")


def coco(root: Path, items: int) -> None:
    """Pictures with two captions each."""
    images = [{"id": id, "file_name": f"{id:012d}.jpg"} for id in range(items)]
    captions = [
        {"image_id": id, "id": 2 * id + one, "caption": f"{'one' if one else 'a'} view of {id}."}
        for id in range(items)
        for one in range(2)
    ]
    listing = json.dumps({"images": images, "annotations": captions})
    text(root / "annotations/captions_val2017.json", listing)
    for id in range(items):
        seen(root / f"val2017/{id:012d}.jpg", 40 + id)


def audiocaps(root: Path, items: int) -> None:
    """Recordings with five captions each."""
    rows = [f"{5 * n + c},cap{n},30,sound {n} told {c}" for n in range(items) for c in range(5)]
    text(root / "test.csv", "\n".join(["audiocap_id,youtube_id,start_time,caption", *rows]))
    for number in range(items):
        heard(root / f"wav/Ycap{number}.wav", 60 + number)


def clotho(root: Path, items: int) -> None:
    """Recordings with five captions each, in five columns."""
    head = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    rows = [f"take {n}.wav," + ",".join(f"take {n} as {c}" for c in range(5)) for n in range(items)]
    text(root / "clotho_captions_evaluation.csv", "\n".join([head, *rows]))
    for number in range(items):
        heard(root / f"evaluation/take {number}.wav", 80 + number)


def esc50(root: Path, items: int) -> None:
    """Recordings by class."""
    rows = [f"1-{n}-A-{n % 5}.wav,1,{n % 5},{CLASSES[n % 5]},True,{n},A" for n in range(items)]
    text(
        root / "meta/esc50.csv",
        "\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]),
    )
    for number in range(items):
        heard(root / f"audio/1-{number}-A-{number % 5}.wav", 100 + number)


def texts(root: Path, items: int) -> None:
    """Conceptual Captions' list, without a header."""
    rows = [f"a caption of {CLASSES[n % 5]} number {n}\thttp://x/{n}.jpg" for n in range(8 * items)]
    text(root / "Train_GCC-training.tsv", "\n".join(rows) + "\n")


def imagenet(root: Path, items: int) -> None:
    """Pictures by synset."""
    text(root / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    for number in range(4 * items):
        synset = ("n01440764", "n01443537")[number % 2]
        seen(root / f"train/{synset}/{synset}_{number}.JPEG", 120 + number)


def audioset(root: Path, items: int) -> None:
    """Recordings that are cut at their start."""
    rows = [f'set{number}, 0.000, 10.000, "/m/{number % 3}"' for number in range(2 * items)]
    head = ["# Segments csv created", "# num_ytids", "# YTID, start_seconds, end_seconds, labels"]
    text(root / "unbalanced_train_segments.csv", "\n".join([*head, *rows]))
    for number in range(2 * items):
        heard(root / f"audio/set{number}.flac", 160 + number)


def modelnet40(root: Path, items: int) -> None:
    """ULIP's pickled list of clouds, with the lists of the resampled ones."""
    names = ("airplane", "flower_pot", "night_stand")
    shapes = [f"{names[n % 3]}_{n:04d}" for n in range(items)]
    text(root / "modelnet40_shape_names.txt", "\n".join(names))
    text(root / "modelnet40_test.txt", "\n".join(shapes))
    numbers = [np.array([n % 3], np.int32) for n in range(items)]
    held = [[solid(n) for n in range(items)], numbers]
    (root / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps(held))


def lvis(root: Path, items: int) -> None:
    """OpenShape's list and pickled clouds."""
    rows = [{"uid": f"uid{n}", "category": CLASSES[n % 2].replace(" ", "_")} for n in range(items)]
    text(root / "lvis.json", json.dumps(rows))
    for number in range(items):
        points = solid(number)
        cloud(root / f"000/uid{number}.npy", {"xyz": points[:, :3], "rgb": points[:, 3:]})


def objaverse(root: Path, items: int) -> None:
    """A folder of clouds, for a memory."""
    for number in range(2 * items):
        cloud(root / f"memory{number}.npy", solid(200 + number)[:, :3])


# By the name that `cmcr prepare` has for each.
MINIATURES: Mapping[str, Callable[[Path, int], None]] = {
    "texts": texts,
    "imagenet": imagenet,
    "audioset": audioset,
    "ave": ave,
    "vggss": vggss,
    "vggss-extended": vggss,
    "flickr-soundnet": flickr,
    "flickr-extended": flickr,
    "coco": coco,
    "audiocaps": audiocaps,
    "clotho": clotho,
    "esc50": esc50,
    "modelnet40": modelnet40,
    "objaverse-lvis": lvis,
}
