"""Label leakage guard: no file of human labels is opened but those that a run is given.

An annotation-free run is given none, fine-tuning the label files of its protocol's frames. Ground
truth is for ``report=``, ``tools/evaluate.py`` and ``tools/view.py``, which are outside of it.

There are two guards, and the manifest's ``label_guard`` says which one was in force:

- ``audit hook``: of the interpreter, from Python code. It refuses whatever Python itself opens, by
  any path, link or hard link, but neither a library that opens files in C or Rust by itself nor
  a child process that runs another program.
- ``landlock``: of the Linux kernel, with the hook beside it. It refuses all of these too. A process
  cannot give it up again, so it is for tools alone; what a tool starts is under it, Ray
  included, unless it joins a cluster that runs already (``run.address``): there is the hook alone.

Not refused: what another process reads and hands over; a file that is mapped to memory already (one
that is open is); a second mount of the label folders; by Landlock, a hard link outside of the data
root. Stored boxes (``boxes-*`` in the store), and a data root inside the store, are guarded by the
hook alone: Landlock would close all that is made in the store later with them.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from clipsweep.pipeline.artifacts.index import read_label_files
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.run import landlock
from clipsweep.pipeline.run.outside import Outside
from clipsweep.pipeline.stages.boxes import boxes_artifact
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.protocols import labelled_subset

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ANNOTATION_FREE = "an annotation-free run"


class LabelLeak(RuntimeError):
    """Error: a file of human labels was opened in a run that is not given it."""


@runtime_checkable
class Guard(Protocol):
    """Interface of a label leakage guard, as ``label_guard``."""

    def __call__(self, config: Config, protocol: str = "") -> AbstractContextManager[Artifact]:
        """Context of a run under guard; gives its index."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Closed:
    """Files of human labels that are closed to a run.

    Attributes:
        places: folders and files, as they are named and by their real paths.
        opened: files in these places that the run is given, named likewise.
        files: device and inode of each file that is there and closed: a hard link has the same.
        run: what kind of run it is, for messages.
    """

    places: frozenset[str]
    opened: frozenset[str] = frozenset()
    files: frozenset[tuple[int, int]] = frozenset()
    run: str = _ANNOTATION_FREE

    def has(self, path: str) -> bool:
        """Whether a path leads to one of the files, or to a place of them."""
        if path in self.opened:
            return False
        return _file(path) in self.files or any(each in self.places for each in _upwards(path))


def _file(path: str) -> tuple[int, int]:
    """Device and inode of what a path leads to; zeros where that is nothing."""
    with suppress(OSError, ValueError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return 0, 0


def _upwards(path: str) -> Iterator[str]:
    """A path and the folders above it."""
    while path not in ("", "/"):
        yield path
        path = os.path.dirname(path)


def label_folders(data: DataConfig, index: Artifact) -> list[Path]:
    """Label folders and files: where ground truth of any split lies.

    They are those of the data set's layout, those that the index names, and the stored boxes of
    this and of any other index beside it, which ``labels.truth=boxes`` scores against.
    """
    root = Path(data.root)
    reader = DATASETS[data.kind]
    found = {(root / name).parent for name in read_label_files(index.payload("index"))}
    for pattern in (*reader.label_folders, *reader.label_files):
        found.update(root.glob(pattern))
    if reader.boxes:
        found.add(boxes_artifact(index).path)
    found.update(index.path.parent.glob("boxes-*"))
    return sorted(found)


def closed_files(
    places: Iterable[Path], opened: Iterable[Path] = (), run: str = _ANNOTATION_FREE, root: str = ""
) -> Closed:
    """Finds the label files in some places: by path, by inode, and where symbolic links lead.

    Args:
        places: folders and files.
        opened: files there that a run is given.
        run: what kind of run it is.
        root: folder that is searched for hard links of them; none where it is empty.
    """
    names = {name(place) for place in places for name in (os.path.abspath, os.path.realpath)}
    given = {name(file) for file in opened for name in (os.path.abspath, os.path.realpath)}
    files: set[tuple[int, int]] = set()
    linked = False
    left = [name for name in names if name == os.path.realpath(name)]
    while left:
        path = left.pop()
        for entry in os.scandir(path) if os.path.isdir(path) else [Path(path)]:
            if entry.is_symlink():
                target = os.path.realpath(entry)
                left.extend({target} - names)
                names.add(target)
            elif entry.is_dir():
                left.append(os.fspath(entry))
            elif os.path.exists(entry):
                found = os.stat(entry)
                files.add((found.st_dev, found.st_ino))
                linked = linked or found.st_nlink > 1
    files -= {_file(path) for path in given}
    if linked and root:
        names.update(_linked(root, files))
    return Closed(frozenset(names), frozenset(given), frozenset(files), run)


def _linked(root: str, files: set[tuple[int, int]]) -> Iterator[str]:
    """Real paths of all files below a folder that are one of these."""
    for folder, _, names in os.walk(os.path.realpath(root)):
        for name in names:
            if _file(f"{folder}/{name}") in files:
                yield os.path.realpath(f"{folder}/{name}")


# --- audit hook -----------------------------------------------------------------------------------

_OPEN_FILES = "/proc/self/fd"
_in_force: list[Closed] = []
_FILE_OF = {"open": 0, "os.link": 0, "os.rename": 0, "mmap.__new__": 0}
"""Audit events, and which of their arguments is the file."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if not _in_force or event not in _FILE_OF:
        return
    file = arguments[_FILE_OF[event]]
    if isinstance(file, int):
        paths = [os.path.realpath(f"{_OPEN_FILES}/{file}"), f"{_OPEN_FILES}/{file}"]
    elif isinstance(file, str | bytes | os.PathLike):
        paths = list(_meant(os.fsdecode(file)))
    else:
        return
    for closed in _in_force:
        if any(closed.has(path) for path in paths):
            raise LabelLeak(f"{paths[0]} was opened in {closed.run}")


def _meant(name: str) -> Iterator[str]:
    """All paths that a file name of an audit event may stand for.

    The audit event has no ``dir_fd``, so a relative name that is not there from here may lie
    below any folder that is open.
    """
    yield os.path.abspath(name)
    yield os.path.realpath(name)
    if not os.path.isabs(name) and not os.path.exists(name):
        for number in os.listdir(_OPEN_FILES):
            yield os.path.realpath(f"{_OPEN_FILES}/{number}/{name}")


@cache
def _install() -> None:
    """Installs the audit hook in this process, once: Python cannot remove one again."""
    sys.addaudithook(_watch)


@contextmanager
def no_labels(closed: Closed) -> Iterator[None]:
    """Label leakage guard: context in which no file of these may be opened.

    Opening one raises ``LabelLeak``, in worker processes too. The first guard of a process installs
    the hook, which Python cannot remove: it stays, and lets every file pass while no guard is open.

    Raises:
        LabelLeak: one is open already.
    """
    for number in os.listdir(_OPEN_FILES) if os.path.isdir(_OPEN_FILES) else ():
        if _file(f"{_OPEN_FILES}/{number}") in closed.files:
            name = os.path.realpath(f"{_OPEN_FILES}/{number}")
            raise LabelLeak(f"{name} was open before {closed.run} began")
    _install()
    _in_force.append(closed)
    try:
        yield
    finally:
        _in_force.remove(closed)


def under_guard(make_worker: Callable[[], T]) -> Callable[[], T]:
    """Takes the hook along to a worker of another process, for as long as that lives."""
    return partial(_make_guarded, tuple(_in_force), make_worker)


def _make_guarded(in_force: Sequence[Closed], make_worker: Callable[[], T]) -> T:
    if in_force:
        _install()
        _in_force.extend(in_force)
    return make_worker()


# --- a whole run ----------------------------------------------------------------------------------

_MARK = "CLIPSWEEP_LABEL_GUARD"
"""Environment variable that tells the workers of a run that Landlock is in force."""
_SHORT_TMP = "/tmp"  # noqa: S108 - the paths of Ray's sockets below it have a limit


def guard_facts() -> dict[str, str]:
    """Entry of a manifest: which guard is in force; empty without one."""
    return {"label_guard": os.environ.get(_MARK, "audit hook")} if _in_force else {}


@dataclass(frozen=True)
class _Survey:
    """What a guard must know before it closes the label files, tables of boxes included."""

    index: Artifact
    closed: Closed


@contextmanager
def label_guard(
    config: Config,
    protocol: str = "",
    outside: Outside | None = None,
    index: Artifact | None = None,
) -> Iterator[Artifact]:
    """Label leakage guard of a whole run, all stages from the index on.

    Args:
        config: of the run.
        protocol: fine-tuning is given the label files of its frames; empty gives none.
        outside: helper process of a tool, which may read the tables; with one, Landlock closes the
            label files to this process for good, where the kernel has it. Without one it is the
            hook.
        index: of the run; None makes it first, where it is missing.

    Yields:
        The index.

    Raises:
        BadInput: the index cannot be made.
        LabelLeak: a label file is open already.
    """
    sealing = outside is not None and outside.forked
    job = partial(_survey, config, protocol, index, config.data.root if sealing else "")
    survey = outside(job) if outside else job()
    with ExitStack() as stack:
        stack.enter_context(no_labels(survey.closed))
        if sealing:
            stack.enter_context(_sealed(config, survey.closed))
        yield survey.index


def _survey(config: Config, protocol: str, index: Artifact | None, root: str) -> _Survey:
    index = index or make_index(config)
    run = f"a fine-tuning on {protocol}" if protocol else _ANNOTATION_FREE
    places = label_folders(config.data, index)
    opened = _given_files(config, protocol, index) if protocol else []
    return _Survey(index, closed_files(places, opened, run, root))


def _given_files(config: Config, protocol: str, index: Artifact) -> list[Path]:
    """Label files of the frames that a protocol gives."""
    scenes = scenes_of(index, "train")
    frames = [frame for scene in scenes for frame in scene_frames(index, config, scene)]
    subset = labelled_subset(protocol, [frame for frame in frames if frame.labels])
    return [frame.labels.path for frame in subset if frame.labels]


@contextmanager
def _sealed(config: Config, closed: Closed) -> Iterator[None]:
    """Closes label files to this process for good by Landlock, where that is possible.

    What is made later in a folder above a closed place could not be read. So the store must exist,
    and temporary files get a folder of their own where that is one of these.
    """
    store = Path(os.path.realpath(config.store))
    places = {os.path.realpath(place) for place in closed.places}
    places -= {place for place in places if Path(place).parent == store}  # boxes
    above = landlock.folders_above(places)
    if str(store) in above:
        _log.warning(f"{config.store}: holds label files, so that the audit hook alone guards them")
    if str(store) in above or not landlock.available():
        yield
        return
    store.mkdir(parents=True, exist_ok=True)
    home = os.path.realpath(os.path.expanduser("~"))
    if home in above:
        with suppress(OSError):
            os.makedirs(f"{home}/.cache", exist_ok=True)
    with ExitStack() as stack:
        if above & {os.path.realpath(folder) for folder in (_SHORT_TMP, tempfile.gettempdir())}:
            folder = tempfile.TemporaryDirectory("", "cs-", _SHORT_TMP, ignore_cleanup_errors=True)
            tempfile.tempdir = stack.enter_context(folder)
            os.environ["TMPDIR"] = tempfile.tempdir
        try:
            landlock.close_files(places, {os.path.realpath(file) for file in closed.opened})
        except OSError as error:
            _log.warning(f"{error}: the audit hook alone guards label files")
        else:
            # workers of a cluster that runs already are not below this process
            os.environ[_MARK] = "audit hook" if config.run.address else "landlock"
        yield
