"""Point clouds from arrays, and from meshes by sampling their surface.

    points = read_points(file, ".off")    # (n, 3) float32

    .npy .npz           an (n, 3) array, or wider: the first three columns are x, y, z;
                        or a pickled dict with such an array as "xyz" (Objaverse of ULIP, OpenShape)
    .xyz .txt           a line for each point, numbers between spaces or commas, columns as above
    .ply .off .obj      a mesh becomes SAMPLED points, uniform over its area, the same every time;
    .stl .glb           a file without faces is its vertices

No pickle is run (pickled.py), and no material or texture that a file names is looked for.
"""

import io
import json
import os
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmcr.errors import SourceError
from cmcr.extract.media.pickled import is_object_array, read_object_array

SAMPLED = 16_384  # twice what ULIP thins out to
LARGEST_ARRAY = 1 << 30  # bytes
LARGEST_MESH = 1 << 28  # bytes; parsing the text formats takes some twenty times that
_MESHES = (".ply", ".off", ".obj", ".stl", ".glb")
_SPARSE = 16 << 20  # bytes of a .glb's arrays that may be zeros, as morph targets are
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_ITEMSIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # of glTF's component types
_HEAD = 1024  # bytes of a text that tell whether it lists points
_COLUMNS = range(3, 17)  # xyz, and normals, colours or classes


def read_points(file: BinaryIO, suffix: str) -> np.ndarray:
    """The points in `file`, (n, 3) float32, of the format that `suffix` names.

    Raises SourceError for a file that cannot be read as such, one without points or surface,
    coordinates that are not finite, and one too large to hold in memory.
    """
    if suffix in (".npy", ".npz"):
        points = _array(file, suffix)
    elif suffix in (".xyz", ".txt"):
        points = _listed(file)
    elif suffix in _MESHES:
        points = _mesh(file, suffix)
    else:
        raise SourceError(
            f"point clouds are not read from {suffix or 'a file without suffix'}, but from "
            f".npy .npz .xyz .txt {' '.join(_MESHES)}"
        )
    if not len(points):
        raise SourceError("the point cloud has no points")
    with np.errstate(over="ignore"):
        xyz = points[:, :3].astype(np.float32)  # (n, 3)
    if not np.isfinite(xyz).all():
        raise SourceError("a coordinate is NaN or infinite")
    return xyz


def begins_with_points(path: Path) -> bool:
    """Whether the first lines of a text are points; whoever finds it unreadable may tell why."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return True
    lines = head.decode("utf-8-sig", "replace").replace(",", " ").splitlines()
    whole = lines if len(head) < _HEAD else lines[:-1]
    points = [line.partition("#")[0].split() for line in whole]
    return any(points) and all(map(_is_point, filter(None, points)))


def _is_point(numbers: list[str]) -> bool:
    try:
        return len([float(number) for number in numbers]) in _COLUMNS
    except ValueError:
        return False


def z_to_y_up(points: np.ndarray) -> np.ndarray:
    """Points (n, 3) with z up, turned about x so that y is up."""
    turned: np.ndarray = points[:, [0, 2, 1]] * np.array([1, 1, -1], points.dtype)
    return turned


def _array(file: BinaryIO, suffix: str) -> np.ndarray:
    _refuse_large(_size(file), LARGEST_ARRAY)
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                _refuse_large(sum(entry.file_size for entry in archive.infolist()), LARGEST_ARRAY)
            file.seek(0)
        elif is_object_array(file):
            return _checked(_xyz(read_object_array(file)))
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            points = loaded
        elif loaded.files:
            points = loaded[loaded.files[0]]
        else:
            raise SourceError("the .npz holds no array")
    except SourceError:
        raise
    except Exception as error:  # of NumPy, zipfile, zlib, tokenize, ast
        why = re.sub(r" at 0x[0-9a-f]+", "", str(error))
        raise SourceError(f"not an array that is read without unpickling: {why}") from error
    return _checked(points)


def _xyz(held: object) -> np.ndarray:
    points = held.get("xyz") if isinstance(held, dict) else None
    if not isinstance(points, np.ndarray):
        raise SourceError(
            'no dict with an array "xyz", and other objects are not read without unpickling'
        )
    return points


def _checked(points: np.ndarray) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] not in _COLUMNS or points.dtype.kind not in "fiu":
        raise SourceError(
            f"a point cloud is an (n, 3) array of numbers, this is {points.dtype} {points.shape}"
        )
    return points


def _listed(file: BinaryIO) -> np.ndarray:
    _refuse_large(_size(file), LARGEST_MESH)
    lines = file.read().decode("utf-8-sig", "replace").replace(",", " ").splitlines()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no lines: no points are told below
            points = np.loadtxt(lines, dtype=np.float64, ndmin=2)  # (n, columns)
    except ValueError as error:
        raise SourceError(f"not a list of points: {error}") from error
    if points.size and points.shape[1] not in _COLUMNS:
        raise SourceError(f"a point has three coordinates, these lines {points.shape[1]} numbers")
    return points


def _mesh(file: BinaryIO, suffix: str) -> np.ndarray:
    import trimesh

    _refuse_large(_size(file), LARGEST_MESH)
    content = file.read()
    _refuse_cut(content, suffix)
    try:
        with warnings.catch_warnings():
            # NumPy's, where a line of an ASCII PLY is only in part made of numbers
            warnings.filterwarnings("error", "string or file could not be read")
            scene = trimesh.load_scene(
                io.BytesIO(content),  # nameless, so that nothing beside the file can be found
                file_type=suffix[1:],
                process=False,
                skip_materials=True,
            )
    except DeprecationWarning:
        raise SourceError("cut short, or no numbers where coordinates should be") from None
    except Exception as error:  # the parsers stumble as they like over what is no mesh
        raise SourceError(f"not a {suffix} file that can be read: {error}") from error
    vertices = [np.asarray(part.vertices) for part in scene.geometry.values()]  # each (n, 3)
    if not all(block.ndim == 2 and block.shape[1] == 3 for block in vertices):
        raise SourceError("the vertices have not three coordinates each")
    if not all(np.isfinite(block).all() for block in vertices):
        raise SourceError("a coordinate is NaN or infinite")
    placed = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
    _refuse_large(sum(_bytes(part) for part in placed), LARGEST_ARRAY)
    mesh = scene.to_mesh()
    if not len(mesh.faces):
        return np.concatenate([np.empty((0, 3)), *vertices])
    if not np.any(mesh.area_faces > 0):
        raise SourceError("the mesh has no surface: all its faces are points or lines")
    sampled: np.ndarray = trimesh.sample.sample_surface(mesh, SAMPLED, seed=0)[0]  # (n, 3)
    return sampled


def _bytes(part: Any) -> int:
    faces = getattr(part, "faces", ())
    return 24 * (len(part.vertices) + len(faces))  # three float64 or int64 each


def _refuse_cut(content: bytes, suffix: str) -> None:
    """The text formats count their lines at the top; trimesh takes fewer as they are."""
    if suffix == ".ply" and re.match(rb"ply\s+format ascii", content):
        header, _, body = content.partition(b"end_header")
        promised = sum(map(int, re.findall(rb"^element \w+ (\d+)", header, re.MULTILINE)))
    elif suffix == ".off":
        content = re.sub(rb"#.*", b"", content)
        counts = re.match(rb"\s*\w*OFF\s*(\d+)\s+(\d+)[^\r\n]*", content)
        if counts is None:
            raise SourceError("not an .off file: it does not start with OFF and two counts")
        promised, body = int(counts[1]) + int(counts[2]), content[counts.end() :]
    elif suffix == ".glb":
        if content[:4] != b"glTF":
            raise SourceError("not a .glb file: it does not start with glTF")
        promised = int.from_bytes(content[8:12], "little")
        if len(content) < promised:
            raise SourceError(f"cut short: {len(content)} of {promised} bytes are there")
        _refuse_promises(content)
        return
    elif suffix == ".stl":
        if re.match(rb"\s*solid\b", content) and b"facet" in content[:1024]:
            if not re.search(rb"endsolid[^\r\n]*\s*\Z", content):
                raise SourceError("cut short: the solid does not end")
            return
        promised = 84 + 50 * int.from_bytes(content[80:84], "little")  # header, triangles
        if len(content) < promised:
            raise SourceError(f"cut short: {len(content)} of {promised} bytes are there")
        return
    else:
        return
    lines = sum(1 for _ in re.finditer(rb"\S[^\r\n]*", body))
    if lines < promised:
        raise SourceError(f"cut short: {lines} of {promised} vertices and faces are there")


def _refuse_promises(glb: bytes) -> None:
    """Raise SourceError for a .glb whose arrays would be larger than its bytes can fill.

    trimesh makes them as large as the JSON says: one without a bufferView is all zeros, one with a
    byteStride may overlap itself, and views and meshes may be of the same bytes again and again.
    """
    try:
        says = json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])
        views, accessors = says.get("bufferViews", []), says.get("accessors", [])
        sizes = [
            _whole(of["count"]) * _COMPONENTS[of["type"]] * _ITEMSIZES[of["componentType"]]
            for of in accessors
        ]
        copied = sum(_whole(view["byteLength"]) for view in views) + sum(
            size
            for of, size in zip(accessors, sizes, strict=True)
            if "bufferView" not in of or "byteStride" in views[of["bufferView"]]
        )
        drawn = sum(
            sizes[of]
            for mesh in says.get("meshes", [])
            for part in mesh["primitives"]
            for of in (*part["attributes"].values(), part.get("indices"))
            if of is not None
        )
    except Exception as error:  # it may be any JSON, or none
        raise SourceError(f"not a .glb file that can be read: {error}") from error
    if copied > 2 * len(glb) + _SPARSE:
        raise SourceError(f"its {len(glb)} bytes do not hold the {copied} that its arrays are of")
    _refuse_large(drawn, LARGEST_ARRAY)


def _whole(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"a size is {str(number)[:20]!r}")
    return number


def _size(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _refuse_large(size: int, largest: int) -> None:
    if size > largest:
        raise SourceError(
            f"{size >> 20} MiB is too large for one point cloud: {largest >> 20} MiB are read"
        )
