"""Files that others made, read with limits; and files of our own, written whole or not at all.

A vector, a dictionary or a snapshot may come from anyone. What is read here is refused with a
``ValueError`` when it is damaged, too large or too deep, before memory is taken for it, and with an
``OSError`` when it is no ordinary file: a pipe or a device may never end. Nothing is unpickled.
What is written appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.base.scratch import as_umask, scratch

MOST_JSON = 64 * 2**20  # bytes of a JSON file; the largest that the kit ships has under one million
MOST_HEADER = 8 * 2**20  # bytes of a safetensors header
MOST_NUMBERS = 2**24  # in a vector or factor: a thousand layers of width 16,384
# what parsers and constructors raise on junk, beside ValueError
JUNK = (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError, EOFError)


def cache_dir() -> Path:
    """Where the kit keeps what it made once for this machine: ``$KIT_CACHE``, else the user's cache
    directory."""
    import platformdirs

    return Path(os.environ.get("KIT_CACHE") or platformdirs.user_cache_dir("steering-kit"))


@contextmanager
def junk(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on junk into a ValueError that says what was read.

    Raises:
        ValueError: in place of the errors in `JUNK`, and of a SafetensorError.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *JUNK) as error:
        raise ValueError(
            f"{what} is damaged or holds something else: {type(error).__name__}: {error!s:.200}"
        ) from error


def must_exist(path: str | Path) -> int:
    """How many bytes an ordinary file says it has; a link to one counts as one.

    Raises:
        FileNotFoundError: nothing is there; OSError: a folder, a pipe or a device.
    """
    try:
        facts = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no path may hold a NUL
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file") from None
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"path={str(path)!r} is a folder, a pipe or a device: give an ordinary file")
    return facts.st_size


def size_at_most(path: str | Path, most: int) -> None:
    """Raise a ValueError unless the file is at most so many bytes long, an OSError as
    :func:`must_exist`."""
    if (found := must_exist(path)) > most:
        raise ValueError(_too_long(path, f"is {found / 2**20:,.0f} MB long", most))


def _too_long(path: str | Path, says: str, most: int) -> str:
    return f"{path} {says}, at most {most / 2**20:,.0f} MB are read: this is no file of the kit"


def read_bytes(path: str | Path, most: int = MOST_JSON) -> bytes:
    """The bytes of an ordinary file of at most so many, whatever length it claims.

    Raises:
        OSError: it cannot be read, or as :func:`must_exist`; ValueError: it is too long.
    """
    size_at_most(path, most)
    with open(path, "rb") as file:  # one below /proc says that it is empty
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(_too_long(path, "goes on and on", most))
    return found


def read_text(path: str | Path, most: int = MOST_JSON) -> str:
    """As :func:`read_bytes`, as text; the ends of its lines stay as they are.

    Raises:
        OSError, ValueError: as :func:`read_bytes` and :func:`decoded`.
    """
    return decoded(read_bytes(path, most), str(path))


def decoded(raw: bytes, what: str) -> str:
    """UTF-8 as text, without the mark that some editors put before it.

    Raises:
        ValueError: it is something else.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding, or no text"
        raise ValueError(
            f"{what} is not UTF-8 (byte {raw[error.start]:#04x} at {error.start}: {kind}): save it as UTF-8"
        ) from None


def unpacked_at_most(path: str | Path, most: int) -> None:
    """Raise a ValueError unless a file is, and if it is a zip archive unpacks to, at most so many
    bytes; torch's files are such archives."""
    size_at_most(path, most)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > most:
            raise ValueError(f"{path} unpacks to {size / 2**20:,.0f} MB, at most {most / 2**20:,.0f} MB are read")


def parse(text: str, what: str) -> Any:
    """JSON, from a file that anyone may have written.

    Raises:
        ValueError: no JSON, too deep, or a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{what}: the JSON is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def parse_object(text: str, what: str) -> dict[str, Any]:
    """As :func:`parse`, for text that must hold an object.

    Raises:
        ValueError: as :func:`parse`, or another kind of value.
    """
    found = parse(text, what)
    if not isinstance(found, dict):
        raise ValueError(f"{what}: expected a JSON object, found a {type(found).__name__}")
    return found


def as_json(value: Mapping[str, Any], what: str) -> str:
    """JSON that :func:`parse` reads, of values that may hold numbers of numpy, tensors and paths.

    Raises:
        ValueError: names the key whose value has no JSON, or says what could not be read again.
    """

    def plain(part: Any) -> Any:
        if not isinstance(part, Path) and not hasattr(part, "tolist"):
            raise TypeError(f"JSON holds no {type(part).__name__}")
        return str(part) if isinstance(part, Path) else part.tolist()

    for key, part in value.items():
        try:
            json.dumps({key: part}, default=plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{what}[{key!r:.40}]={part!r:.60}: {error}") from error
    text = json.dumps(dict(value), default=plain)
    if len(text) > MOST_HEADER // 2:
        raise ValueError(f"{what} is {len(text):,} letters long: a file holds {MOST_HEADER // 2:,}")
    parse(text, what)
    return text


def read_json(path: str | Path, most: int = MOST_JSON) -> Any:
    """The content of a JSON file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read; ValueError: it is too long, or as :func:`parse`.
    """
    return parse(read_text(path, most), str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {names.most_common(1)[0][0]!r:.80} stands twice in one object")
    return found


def header_at_most(path: str | Path, most: int = MOST_HEADER) -> None:
    """Raise a ValueError for a safetensors file whose header claims more than ``most`` bytes, an
    OSError as :func:`must_exist`."""
    must_exist(path)
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if claimed > most:
        raise ValueError(
            f"{path} is damaged or no safetensors file: its header claims {claimed} bytes, at most {most} are read"
        )


def header(path: str | Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every tensor in a safetensors file, in the order in which they lie there;
    no tensor is read.

    Raises:
        OSError: it cannot be opened; ValueError: no such file, or a damaged one.
    """
    from safetensors import safe_open

    header_at_most(path)
    with junk(str(path)), safe_open(str(path), framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.offset_keys()}
        return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}


def shapes_at_most(path: str | Path, dims: Mapping[str, int], most: int = MOST_NUMBERS) -> None:
    """Look at a safetensors file's tensors before they are read.

    Args:
        dims: for each name that there must be, how many dimensions it has.
        most: numbers in each.

    Raises:
        ValueError: a tensor is missing, has other dimensions or too many numbers, or is not of a
            float dtype.
    """
    found = header(path)
    for name, count in dims.items():
        if name not in found:
            raise ValueError(f"{path} is damaged or holds something else: no tensor {name!r}")
        shape, dtype = found[name]
        numbers = 1
        for n in shape:
            numbers *= n
        if len(shape) != count or numbers > most:
            raise ValueError(
                f"{path}: {name!r} has shape {shape}; expected {count} dimensions and at most {most} numbers"
            )
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{path}: {name!r} is {dtype}, expected floating-point numbers")


@contextmanager
def opened(path: str | Path, layout: str, kind: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """A safetensors file of this kit and what it says about itself.

    Args:
        layout: the format that it must name; kind: what such a file holds, for the error.

    Raises:
        FileNotFoundError: no file; ValueError: another format, or a file that is damaged, which
            may show only when its parts are read.
    """
    from safetensors import SafetensorError, safe_open

    must_exist(path)
    header_at_most(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != layout:
                raise ValueError(
                    f"{path} is no {kind} of this kit (format {about.get('format')!r}, expected {layout!r})"
                )
            yield file, about
    except (SafetensorError, *JUNK) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


@contextmanager
def whole(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """A path to write to; what lies there replaces ``path`` when the block ends without an error.

    So a reader finds the old file or the new one, whatever happens to the writer. A part that a
    killed process left behind goes when a file is written beside it.

    Args:
        private: nobody but its owner may read it, from the first byte on.

    Raises:
        OSError: as :func:`scratch`.
    """
    target = Path(path)
    with scratch(target) as folder:
        part = folder / target.name
        yield part
        if private:
            part.chmod(0o600)
        else:
            as_umask(folder)
        os.replace(part, target)
