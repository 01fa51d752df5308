"""Media of every kind, whole and broken: what is handed on, and what is said of the rest."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import trimesh
from PIL import Image

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract import Item, Waveform
from cmcr.extract.media.decode import decode

TONE = 0.5 * np.sin(np.arange(4800) * 440 / 48_000 * 6.283)


def of(modality: Modality, content: bytes | str, name: str = "x") -> Any:
    return decode(modality, Item("x", name, content))


def sound(samples: np.ndarray, rate: int = 48_000, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def picture(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array(points: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, points)
    return file.getvalue()


def encoded(path: Path, codec: str, options: dict[str, str] | None = None) -> bytes:
    """Half a second of a tone, in stereo, as FFmpeg writes it."""
    wave = np.tile(np.float32(TONE), (2, 5))  # (channels, frames)
    with av.open(str(path), mode="w", options=options) as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo")
        for start in range(0, wave.shape[1], 960):
            block = np.ascontiguousarray(wave[:, start : start + 960])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


# Audio


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_of_wav_is_the_same_wave(subtype: str) -> None:
    wave: Waveform = of("audio", sound(TONE, subtype=subtype))
    assert (wave.samples.shape, wave.samples.dtype, wave.sample_rate) == ((1, 4800), "f4", 48_000)
    np.testing.assert_allclose(wave.samples[0], TONE, atol=0.01)


@pytest.mark.parametrize(("channels", "rate"), [(1, 8_000), (2, 192_000), (6, 44_100)])
def test_channels_and_rates_stay_as_they_are(channels: int, rate: int) -> None:
    wave = of("audio", sound(np.tile(TONE[:, None], channels), rate, subtype="PCM_24"))
    assert (wave.samples.shape, wave.sample_rate) == ((channels, 4800), rate)
    assert wave.samples.flags.c_contiguous


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_what_libsndfile_does_not_know_is_read_by_ffmpeg(
    tmp_path: Path, name: str, codec: str
) -> None:
    wave = of("audio", encoded(tmp_path / name, codec))
    assert wave.samples.shape[0] == 2
    assert wave.samples.shape[1] == pytest.approx(24_000, abs=2048)
    assert wave.sample_rate == 48_000
    assert np.abs(wave.samples).max() == pytest.approx(0.5, abs=0.1)


def test_a_recording_that_ends_before_its_container_says_is_refused(tmp_path: Path) -> None:
    quick = encoded(tmp_path / "a.m4a", "aac", {"movflags": "faststart"})
    for whole in (quick, encoded(tmp_path / "a.webm", "libopus")):
        with pytest.raises(SourceError, match=r"cut short|Invalid data found"):
            of("audio", whole[: len(whole) // 2])
    ogg = sound(TONE, format="OGG", subtype="VORBIS")
    with pytest.raises(SourceError, match="cut short: the last Ogg page"):
        of("audio", ogg[:-10])


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    encoded(tmp_path / "secret.aac", "aac")
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.aac\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.aac\n",
    ):
        (tmp_path / "list.m4a").write_text(text)
        with pytest.raises(SourceError, match=r"neither libsndfile .* nor FFmpeg"):
            decode("audio", Item("x", str(tmp_path / "list.m4a")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"this is no recording", "neither libsndfile .* nor FFmpeg .* can read it"),
        (sound(np.zeros(0)), "no samples"),
        (sound(np.zeros(1)), "1 samples at 48000 Hz are less than a millisecond"),
        (sound(np.zeros(9), 10), "10 Hz is not audio"),
        (sound(np.zeros(9), 2_000_000), "2000000 Hz is not audio"),
        (sound(np.full(99, np.inf), subtype="FLOAT"), "NaN or infinite"),
        (sound(TONE)[:-100], "cut short: the header promises"),
        (sound(TONE, format="AIFF")[:-100], "cut short: the header promises"),
        (sound(TONE, format="FLAC")[:-100], "damaged after|cut short"),
    ],
)
def test_a_recording_that_is_none_says_why(content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        of("audio", content)


# Images


def test_grey_of_16_bits_is_scaled_and_not_clipped() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for kind in ("PNG", "TIFF", "PPM"):
        image = of("image", picture(Image.fromarray(ramp), kind))
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image).ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    shade = Image.new("RGB", (8, 8), (200, 30, 60)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = of("image", picture(shade, kind)).convert("RGB")
    assert image.getpixel((4, 4)) == shade.convert("RGB").getpixel((4, 4))


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    ink = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    pixel = of("image", picture(ink, "JPEG", quality=95)).convert("RGB").getpixel((8, 8))
    np.testing.assert_allclose(pixel, (200, 30, 60), atol=6)


def test_a_transparent_palette_converts_without_a_warning() -> None:
    image = Image.new("P", (8, 8), 3)
    image.putpalette([*range(0, 30)])
    content = picture(image, transparency=bytes([0, 9, 0, 128]))
    assert of("image", content).convert("RGB").getpixel((0, 0)) == (9, 10, 11)


def test_of_an_animation_the_first_frame_and_no_turning_by_exif() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    gif = picture(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert of("image", gif).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90 degrees to show
    assert of("image", picture(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (8, 4)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
JPEG = picture(Image.fromarray(NOISE), "JPEG")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", "SourceError", "empty"),
        (b"this is no picture", "UnidentifiedImageError", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "UnidentifiedImageError", "cannot be read as a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "UnidentifiedImageError", "HEIC pictures are not read"),
        (JPEG[: len(JPEG) // 2], "OSError", "truncated|broken data|Truncated"),
        (png_of_size(12_000, 12_000), "DecompressionBombWarning", "exceeds limit"),
        (png_of_size(2**31 - 1, 2**31 - 1), "DecompressionBombError", "exceeds limit"),
        (png_of_size(50_000, 1), "SourceError", "a line, not a picture"),
        (picture(Image.new("F", (8, 8), 0.5), "TIFF"), "SourceError", "no agreed black and white"),
    ],
)
def test_a_picture_that_is_none_says_why(content: bytes, error: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        of("image", content)
    assert caught.type.__name__ == error
    assert " at 0x" not in str(caught.value)


# Point clouds


def mesh(suffix: str, **options: str) -> bytes:
    exported = trimesh.creation.box((2, 2, 2)).export(file_type=suffix, **options)
    return exported if isinstance(exported, bytes) else exported.encode()


@pytest.mark.parametrize("suffix", ["ply", "off", "obj"])
def test_a_mesh_is_sampled_on_its_surface_always_the_same(suffix: str) -> None:
    points = of("pointcloud", mesh(suffix), f"box.{suffix}")
    assert (points.shape, points.dtype) == ((16_384, 3), np.float32)
    np.testing.assert_allclose(np.abs(points).max(axis=1), 1, atol=1e-6)
    sides = np.bincount(np.abs(points).argmax(axis=1))
    np.testing.assert_allclose(sides / len(points), 1 / 3, atol=0.02)
    np.testing.assert_array_equal(points, of("pointcloud", mesh(suffix), f"again.{suffix}"))


def test_what_has_no_faces_is_its_vertices() -> None:
    corners = np.random.default_rng(0).random((10, 3)).astype(np.float32)
    ply = trimesh.PointCloud(corners).export(file_type="ply")
    np.testing.assert_array_equal(of("pointcloud", ply, "x.ply"), corners)
    archive = io.BytesIO()
    np.savez(archive, points=np.hstack([corners, corners]))
    np.testing.assert_array_equal(of("pointcloud", archive.getvalue(), "x.npz"), corners)


def glb(numbers: bytes = b"", **says: Any) -> bytes:
    """A .glb file of this JSON and these bytes, which are its buffer."""
    text = json.dumps({"asset": {"version": "2.0"}, **says}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<L4s", len(text), b"JSON") + text
    if numbers:
        chunks += struct.pack("<L4s", len(numbers), b"BIN\0") + numbers
    return struct.pack("<4sLL", b"glTF", 2, 12 + len(chunks)) + chunks


def points(count: float, **more: Any) -> dict[str, Any]:
    return {"count": count, "type": "VEC3", "componentType": 5126, **more}


CORNERS = np.eye(3, dtype="<f4").tobytes()
WHOLE = {
    "buffers": [{"byteLength": 36}],
    "bufferViews": [{"buffer": 0, "byteLength": 36}],
    "accessors": [points(3, bufferView=0)],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    "nodes": [{"mesh": 0}],
    "scenes": [{"nodes": [0]}],
    "scene": 0,
}
STRIDED = [{"buffer": 0, "byteLength": 1 << 22, "byteStride": 1}]
PROMISING: dict[str, tuple[bytes, str]] = {
    "of nothing": (glb(CORNERS, **WHOLE | {"accessors": [points(4 * 10**8)]}), "bytes do not hold"),
    "of no number": (glb(CORNERS, **WHOLE | {"accessors": [points(1.5)]}), "a size is '1.5'"),
    "over itself": (
        glb(bytes(1 << 22), **WHOLE | {
            "bufferViews": STRIDED, "accessors": [points((1 << 22) - 16, bufferView=0)],
        }),
        "bytes do not hold",
    ),
    "the same view": (
        glb(bytes(1 << 16), **WHOLE | {
            "bufferViews": [{"buffer": 0, "byteLength": 1 << 16}] * 1000,
        }),
        "bytes do not hold",
    ),
    "the same mesh": (
        glb(bytes(12 << 16), **WHOLE | {
            "bufferViews": [{"buffer": 0, "byteLength": 12 << 16}],
            "accessors": [points(1 << 16, bufferView=0)],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}] * 2000,
        }),
        "too large",
    ),
    "the same place": (
        glb(bytes(36 << 14), **WHOLE | {
            "bufferViews": [{"buffer": 0, "byteLength": 36 << 14}],
            "accessors": [points(3 << 14, bufferView=0)],
            "nodes": [{"mesh": 0}] * 1000,
            "scenes": [{"nodes": [*range(1000)]}],
        }),
        "too large",
    ),
    "no JSON": (glb()[:20] + b"x" + glb()[21:], "not a .glb file that can be read"),
    "another JSON": (glb(accessors=5), "not a .glb file that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROMISING)
def test_a_glb_does_not_ask_for_more_than_its_bytes(kind: str) -> None:
    content, message = PROMISING[kind]
    tracemalloc.start()
    with pytest.raises(SourceError, match=message):
        of("pointcloud", content, "x.glb")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_small_glb_is_read() -> None:
    assert of("pointcloud", glb(CORNERS, **WHOLE), "x.glb").shape == (16_384, 3)
    sparse = [points(3, bufferView=0), points(1000, sparse={"count": 0})]
    assert len(of("pointcloud", glb(CORNERS, **WHOLE | {"accessors": sparse}), "x.glb")) == 16_384


def test_materials_and_textures_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.obj").write_text(
        "mtllib secret.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    )
    os.mkfifo(tmp_path / "secret.mtl")  # who opens it waits for ever
    monkeypatch.chdir(tmp_path)
    assert len(decode("pointcloud", Item("x", str(tmp_path / "x.obj")))) == 16_384


NAN = np.array([[0, 0, 0], [0, np.nan, 0]], dtype=np.float32)
LYING = array(np.zeros((9, 3), "f4")).replace(b"(9, 3), ", b"(9000000000000, 3), ", 1)
TRIANGLE = "3 1 0\n0 0 0\n1 0 0\n{}\n3 0 1 2\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"", "empty"),
        ("x.npy", b"these are no points", "read without unpickling"),
        ("x.npy", pickle.dumps([1, 2]), "read without unpickling"),
        ("x.npy", array(np.array([[1, {}, 2]], dtype=object)), "read without unpickling"),
        ("x.npy", array(NAN), "NaN or infinite"),
        ("x.npy", array(np.full((2, 3), 1e300)), "NaN or infinite"),
        ("x.npy", array(np.zeros((0, 3))), "no points"),
        ("x.npy", array(np.zeros((3, 999))), r"this is float64 \(3, 999\)"),
        ("x.npy", array(np.array([["a", "b", "c"]])), "array of numbers"),
        ("x.npy", LYING, "read without unpickling"),
        ("x.npz", b"PK\3\4 and no more", "read without unpickling"),
        ("x.ply", mesh("ply")[:-9], "not a .ply file that can be read"),
        ("x.ply", mesh("ply", encoding="ascii")[:-40], "cut short"),
        ("x.off", mesh("off")[:-40], "cut short"),
        ("x.off", b"OFF\n" + TRIANGLE.format("nan 0 0").encode(), "NaN or infinite"),
        ("x.off", b"OFF\n" + TRIANGLE.format("2 0 0").encode(), "no surface"),
        ("x.obj", b"v 0 0 0\nf 1 2 3\n", "not a .obj file that can be read"),
        ("x.obj", b"nothing", "no points"),
        ("x.pcd", b"0 0 0", "not read from .pcd"),
    ],
)
def test_a_point_cloud_that_is_none_says_why(name: str, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        of("pointcloud", content, name)


# Text, and files that are none


def test_a_text_is_read_from_its_file_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffa dög\n".encode())
    assert decode("text", Item("x", str(tmp_path / "x.txt"))) == "a dög\n"
    for content, error in (
        (b" \n", SourceError),
        (b"\xff\xfe", UnicodeDecodeError),
        (b"x" * (1 << 21), SourceError),
    ):
        (tmp_path / "x.txt").write_bytes(content)
        with pytest.raises(error):
            decode("text", Item("x", str(tmp_path / "x.txt")))


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_pipe, SourceError, "a pipe, a socket or a device"),
        (Path.mkdir, SourceError, "this is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), SourceError, "a device"),
        (lambda path: path.symlink_to(path), OSError, "symbolic links"),
        (lambda path: None, FileNotFoundError, "No such file"),
    ],
)
@pytest.mark.parametrize("modality", ["audio", "image", "pointcloud", "text"])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path,
    modality: Modality,
    make: Callable[[Path], None],
    error: type[Exception],
    message: str,
) -> None:
    make(tmp_path / "x.npy")
    with pytest.raises(error, match=message):
        decode(modality, Item("x", str(tmp_path / "x.npy")))


@pytest.mark.parametrize(("path", "error"), [("x" * 5000, OSError), ("nul\0byte", ValueError)])
def test_a_path_that_cannot_be_one_is_an_error_of_that_item(
    path: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        decode("image", Item("x", path))
