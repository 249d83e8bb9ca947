"""Whatever happens to a file of a training is found, is never believed, and is gone after training again."""

import collections
import contextlib
import filecmp
import functools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.disk import files, measurements, metrics, store, verify
from lab.disk.files import WorkdirError
from lab.disk.load import load
from lab.disk.workdir import Workdir
from lab.engine import step, train
from lab.measuring.declare import Measure
from lab.measuring.run import measure, missing
from lab.tree import named_leaves

pytestmark = pytest.mark.usefixtures("echo_is_a_task")

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = {  # of a folder's files: the first part of their paths
    "checkpoints": ("checkpoints",), "snapshots": ("snapshots",), "metrics": ("metrics",), "analysis": ("analysis",),
    "identity": files.IDENTITY,
}  # fmt: skip


def norms(row):
    return {"all": sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(row.params))}


def largest(row):
    return {"all": jnp.max(jnp.abs(row.params["in"]["kernel"]))}


MEASURES = [
    Measure("norms", norms, {"all": "weight^2"}), Measure("largest", largest, {"all": "weight"}, snapshots="last")
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(echo, tmp_path_factory):
    """A training and its analysis, undamaged; copied before anything happens to it."""
    path = train.train(echo.config(), tmp_path_factory.mktemp("trained") / "w")
    measure(Workdir(path), MEASURES)
    return path


@pytest.fixture(scope="module")
def earlier(echo, tmp_path_factory):
    """What was trained in a folder of this name before: the same shapes and steps, on other data."""
    path = train.train(echo.config(data_seed=6), tmp_path_factory.mktemp("earlier") / "w")
    measure(Workdir(path), MEASURES)
    return path


@pytest.fixture(scope="module")
def like(trained):
    """Shapes and dtypes of a checkpoint."""
    work = Workdir(trained)
    return jax.eval_shape(jax.vmap(functools.partial(step.start, work.experiment)), work.grid.arrays())


@pytest.fixture(scope="module")
def ledger():
    """What came of every fault, counted."""
    return collections.defaultdict(collections.Counter)


# --- faults: (target, undamaged folder, earlier folder) -> what to do to a copy, once for each place ---


def files_of(folder, target):
    """Paths of all files of a target, below the folder; a lock holds nothing."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return [path for path in found if path.parts[0] in TARGETS[target]]


def every_file(spoil):
    """A fault that happens to each file in turn."""

    def injections(target, trained, earlier):
        return [lambda work, name=name: spoil(work / name) for name in files_of(trained, target)]

    return injections


def flip_a_bit(path):
    """Any one: which depends on the file's name alone."""
    content = bytearray(path.read_bytes())
    bit = np.random.default_rng(zlib.crc32(path.name.encode())).integers(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def every_folder_deleted(target, trained, earlier):
    folders = {
        "checkpoints": [["checkpoints/24"], ["checkpoints/24", "checkpoints/18"], ["checkpoints"]],
        "snapshots": [["snapshots/0"], ["snapshots/12"], ["snapshots/24"], ["snapshots"]],
        "identity": [files.IDENTITY],
    }.get(target, [[target]])
    return [lambda work, names=names: [files.remove(work / name) for name in names] for names in folders]


def empty_folder(target, trained, earlier):
    name = {"checkpoints": "checkpoints/999", "snapshots": "snapshots/999", "metrics": "metrics/999.npz"}[target]
    return [lambda work: (work / name).mkdir()]


def no_manifest(target, trained, earlier):
    names = [name for name in files_of(trained, target) if name.name == store.MANIFEST]
    return [lambda work, name=name: (work / name).unlink() for name in names]


def of_another_training(change):
    """A fault: a checkpoint, a snapshot, a chunk or a measurement of a training with other arrays, whole and signed."""

    def injections(target, trained, earlier):
        name, write = {
            "checkpoints": ("checkpoints/24", write_save),
            "snapshots": ("snapshots/12", write_save),
            "metrics": ("metrics/8.npz", write_arrays),
            "analysis": ("analysis/norms.npz", write_arrays),
        }[target]
        return [lambda work: write(work, earlier, pathlib.Path(name), change)]

    return injections


def write_save(work, earlier, name, change):
    tree = jax.tree.map(change, store.restore(work / name.parent, int(name.name)))
    other = work.parent / "other"
    shutil.copytree(earlier, other, ignore=shutil.ignore_patterns("checkpoints", "snapshots"), dirs_exist_ok=True)
    store.save(other / name.parent, int(name.name), tree)
    files.remove(work / name)
    shutil.copytree(other / name, work / name)


def write_arrays(work, earlier, name, change):
    arrays = files.read_npz(work / name)
    other = work.parent / "other"
    shutil.copytree(earlier, other, dirs_exist_ok=True)
    times = ("step", "train_step")  # it is for the same steps
    files.write_npz(other / name, {key: leaf if key in times else change(leaf) for key, leaf in arrays.items()})
    shutil.copy(other / name, work / name)


def wider(leaf):
    return np.concatenate([leaf, leaf], axis=-1)


def halved(leaf):
    return leaf.astype(np.float16)


def swapped(target, trained, earlier):
    pairs = {
        "checkpoints": [("checkpoints/18", "checkpoints/24")],
        "snapshots": [("snapshots/0", "snapshots/12"), ("snapshots/24", "checkpoints/24")],
        "metrics": [("metrics/8.npz", "metrics/12.npz"), ("metrics/0.npz", "metrics/24.npz")],
        "analysis": [("analysis/norms.npz", "analysis/largest.npz"), ("analysis/norms.json", "analysis/largest.json")],
        "identity": [files.IDENTITY],
    }[target]

    def swap(work, first, second):
        (work / first).rename(work / "between")
        (work / second).rename(work / first)
        (work / "between").rename(work / second)

    return [lambda work, pair=pair: swap(work, *pair) for pair in pairs]


def left_over(target, trained, earlier):
    """What a kill leaves: before a save is complete, and between the two renames that put it in another's place."""

    def unfinished_folder(work):
        shutil.copytree(work / target / "24", work / target / ".30.tmp")
        (work / target / ".30.tmp" / store.MANIFEST).unlink()

    def half_replaced(work):
        shutil.copytree(work / target / "24", work / target / ".24.tmp")
        (work / target / "24").rename(work / target / ".24.old")

    def unfinished_file(work):
        name = {"metrics": "metrics/.28.npz.tmp", "analysis": "analysis/.norms.npz.tmp"}.get(target, ".grid.json.tmp")
        (work / name).write_bytes(b"half a file")

    return [unfinished_folder, half_replaced] if target in ("checkpoints", "snapshots") else [unfinished_file]


def old_copy(target, trained, earlier):
    """Of every file that differs and has the same name; of checkpoints and snapshots also as a whole."""
    names = [name for name in files_of(earlier, target) if (trained / name).is_file()]
    names = [name for name in names if not filecmp.cmp(earlier / name, trained / name, shallow=False)]
    names += [pathlib.Path(target) / str(number) for number in files.steps(earlier / target)]

    def put_back(work, name):
        files.remove(work / name)
        (shutil.copytree if (earlier / name).is_dir() else shutil.copy)(earlier / name, work / name)

    return [lambda work, name=name: put_back(work, name) for name in names]


FAULTS = {  # name -> injections, and the targets that it can happen to
    "one bit flipped": (every_file(flip_a_bit), [*TARGETS]),
    "cut short": (every_file(cut_short), [*TARGETS]),
    "deleted": (every_file(pathlib.Path.unlink), [*TARGETS]),
    "folder deleted": (every_folder_deleted, [*TARGETS]),
    "empty folder, larger number": (empty_folder, ["checkpoints", "snapshots", "metrics"]),
    "manifest deleted": (no_manifest, ["checkpoints", "snapshots"]),
    "another's, of other shapes": (of_another_training(wider), ["checkpoints", "snapshots", "metrics", "analysis"]),
    "another's, of other dtypes": (of_another_training(halved), ["checkpoints", "snapshots", "metrics", "analysis"]),
    "two in each other's place": (swapped, [*TARGETS]),
    "old copy put back": (old_copy, [*TARGETS]),
    "left of an unfinished save": (left_over, [*TARGETS]),
}
CASES = [(fault, target) for fault, (_, targets) in FAULTS.items() for target in targets]
TRAINED_AGAIN = [  # training takes its time: each fault once or twice, each target twice or more
    ("one bit flipped", "metrics"), ("one bit flipped", "identity"), ("cut short", "snapshots"),
    ("deleted", "checkpoints"), ("folder deleted", "metrics"), ("folder deleted", "identity"),
    ("empty folder, larger number", "checkpoints"), ("manifest deleted", "snapshots"),
    ("another's, of other shapes", "checkpoints"), ("another's, of other dtypes", "metrics"),
    ("two in each other's place", "metrics"), ("old copy put back", "analysis"),
    ("left of an unfinished save", "checkpoints"),
]  # fmt: skip


# --- what is read ---


def same_files(path, other):
    """Whether two files or folders are the same, by comparing every byte."""
    if not other.exists() or path.is_dir() != other.is_dir():
        return False
    if path.is_file():
        return filecmp.cmp(path, other, shallow=False)
    names = {entry.name for entry in path.iterdir()}
    return names == {entry.name for entry in other.iterdir()} and all(same_files(path / n, other / n) for n in names)


def same_values(value, other):
    leaves, others = named_leaves(value), named_leaves(other)
    return leaves.keys() == others.keys() and all(
        leaf.dtype == others[name].dtype
        and leaf.shape == others[name].shape
        and leaf.tobytes() == others[name].tobytes()
        for name, leaf in leaves.items()
    )


def readers(path, like):
    """Everything there is to read in a folder: where it lies -> how it is read."""
    work = Workdir(path)
    found = {
        "metrics": lambda: {f"{i}": chunk for i, chunk in enumerate(metrics.read_chunks(work))},
        "dataset": lambda: {name: variable.values for name, variable in load(path).variables.items()},
    }
    for number in files.steps(work.snapshots):
        found[f"snapshots/{number}"] = functools.partial(work.params, number)
    for number in files.steps(work.checkpoints):
        found[f"checkpoints/{number}"] = functools.partial(store.restore, work.checkpoints, number, like)
    for one in MEASURES:
        found[f"analysis/{one.name}.npz"] = lambda name=one.name: measurements.read(work, name)[1]
        found[f"analysis/{one.name}.json"] = lambda name=one.name: as_array(measurements.read(work, name)[0])
    return found


def as_array(value):
    return {"json": np.array(json.dumps(value, sort_keys=True))}


@pytest.fixture(scope="module")
def truth(trained, like):
    return {place: reader() for place, reader in readers(trained, like).items()}


def sources(place):
    """What a reader reads, below the folder."""
    if place == "dataset":
        return ("metrics", "snapshots", "analysis", *files.IDENTITY)
    return (place if place.startswith(("checkpoints", "snapshots")) else place.split("/")[0],)


def alike(path, other):
    return path.exists() and same_files(path, other)


def wrong_values(path, like, trained, truth, partly):
    """Places where a reader gives anything but what is true there. To refuse is not wrong.

    Args:
      partly: whether less than all chunks and measurements may be there, because they are to be made again.
    """
    wrong = []
    for place, reader in readers(path, like).items():
        with contextlib.suppress(WorkdirError):
            if all(alike(path / name, trained / name) for name in sources(place)):
                continue  # it is given what it was given in the undamaged folder, and gives the same: saves time
            value, true = reader(), truth.get(place, {})
            if partly and place == "metrics":
                true = {end: true[end] for end in value}
            elif partly and place == "dataset":  # shorter, and of the same chunks
                continue
            if not same_values(value, true):
                wrong.append(place)
    return wrong


def mend(path, trained):
    """Makes a damaged copy what it was."""
    names = {entry.name for entry in trained.iterdir()}
    for entry in path.iterdir():
        if entry.name not in names or entry.is_dir() != (trained / entry.name).is_dir():
            files.remove(entry)
    for entry in trained.iterdir():
        if entry.is_dir() and (path / entry.name).exists():
            mend(path / entry.name, entry)
        elif entry.is_dir():
            shutil.copytree(entry, path / entry.name)
        elif not same_files(entry, path / entry.name):
            shutil.copy2(entry, path / entry.name)


def prepare_to_train(path, like):
    """What training does before it starts; the step at which it would continue, None if there is none."""
    work = Workdir(path)
    verify.set_aside_identity(work, str)
    if not all((path / name).exists() for name in files.IDENTITY):
        return None
    sound = verify.sound_until(work, str)
    done = store.newest_whole(work.checkpoints, like, str, sound)
    metrics.forget_after(work.metrics, -1 if done is None else done)
    return done


# --- the faults ---


@pytest.mark.parametrize(("fault", "target"), CASES)
def test_fault_is_found_and_no_wrong_value_is_read(trained, earlier, like, truth, ledger, tmp_path, fault, target):
    path = shutil.copytree(trained, tmp_path / "w")
    injections = FAULTS[fault][0](target, trained, earlier)
    assert injections
    for i, spoil in enumerate(injections):
        spoil(path)
        found = [*verify.damages(Workdir(path)), *verify.remarks(Workdir(path))]
        gone = target == "analysis" and missing(Workdir(path), MEASURES)  # to be measured again
        wrong = wrong_values(path, like, trained, truth, bool(gone))
        done = prepare_to_train(path, like)
        wrong += wrong_values(path, like, trained, truth, True)
        ledger[fault] += collections.Counter(
            {"injected": 1, "detected": bool(found or gone), "fell back": bool(done != 24 or gone), "wrong": len(wrong)}
        )
        assert (found or gone) and not wrong, f"{fault} {i} of {target}: {found}"
        mend(path, trained)


@pytest.mark.parametrize(("fault", "target"), TRAINED_AGAIN)
def test_folder_is_what_it_was_after_training_again(echo, trained, earlier, like, ledger, tmp_path, fault, target):
    path = shutil.copytree(trained, tmp_path / "w")
    injections = FAULTS[fault][0](target, trained, earlier)
    injections[len(injections) // 2](path)
    ledger[fault]["trained again"] += 1
    train.train(echo.config(), path)
    measure(Workdir(path), MEASURES)
    assert_trained_alike(path, trained, like)
    ledger[fault]["same bytes"] += 1


def assert_trained_alike(path, trained, like):
    """File by file; but for checkpoints and snapshots, whose files orbax names as it likes: array by array."""
    assert verify.damages(Workdir(path)) == [] and verify.whole(Workdir(path))
    assert not any("cut short" in line for line in verify.remarks(Workdir(path)))
    for name in (name for target in ("metrics", "analysis", "identity") for name in files_of(trained, target)):
        assert same_files(trained / name, path / name), name
    for folder in ("metrics", "analysis", "snapshots"):
        names = {entry.name for entry in (path / folder).iterdir() if not entry.name.startswith("damaged-")}
        assert names == {entry.name for entry in (trained / folder).iterdir()}
    places = [("snapshots", number, None) for number in files.steps(trained / "snapshots")] + [
        ("checkpoints", 24, like)
    ]
    for folder, number, wanted in places:
        saves = [store.restore(root / folder, number, wanted) for root in (path, trained)]
        assert same_values(*saves), f"{folder}/{number}"


def test_config_of_another_training_is_refused_and_nothing_is_touched(echo, trained, earlier, tmp_path):
    """It may be this folder's files that are wrong, or its config: that is for the user to say."""
    path = shutil.copytree(trained, tmp_path / "w")
    shutil.copy(earlier / "config.json", path)
    before = shutil.copytree(path, tmp_path / "before")
    with pytest.raises(WorkdirError, match=r"holds another training.*data_seed: 6 -> 5"):
        train.train(echo.config(), path)
    (path / ".lock").touch()
    assert same_files(before, path)


def test_table_of_faults(ledger, capsys):
    """Not a test but the account of those above; it stands last of them."""
    columns = ("injected", "detected", "fell back", "wrong", "trained again", "same bytes")
    lines = [f"{'fault':<28}" + "".join(f"{column:>15}" for column in columns)]
    for fault, counts in [*ledger.items(), ("together", sum(ledger.values(), collections.Counter()))]:
        lines.append(f"{fault:<28}" + "".join(f"{counts[column]:>15}" for column in columns))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert all(counts["injected"] == counts["detected"] and not counts["wrong"] for counts in ledger.values())
    assert all(counts["trained again"] == counts["same bytes"] for counts in ledger.values())


# --- a disk that is full, and one that cannot be written ---


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk of our own size needs the right to mount one: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """(bytes) -> a folder that holds no more; called again, it grows. `readonly` makes it refuse all writing."""

    class Disk:
        folder = tmp_path / "disk"

        def of_size(self, size):
            options = f"rw,size={size}"
            if self.folder.exists():
                mount("-o", f"remount,{options}", self.folder)
            else:
                self.folder.mkdir()
                mount("-t", "tmpfs", "-o", options, "tmpfs", self.folder)

        def readonly(self):
            mount("-o", "remount,ro", self.folder)

    made = Disk()
    yield made
    subprocess.run(["umount", str(made.folder)], capture_output=True)


def pages(path):
    """Bytes that a file or all files of a folder take."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(4096 * math.ceil(file.stat().st_size / 4096) for file in found)


def run_train(workdir):
    """Exit code of the command, and what it says but for its progress."""
    command = [sys.executable, "-m", "lab", "train", f"--config={ROOT / 'tests/toys/echo_config.py'}"]
    done = subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if not re.match(r"(plain|lab): (step|[a-z]+ing)\b", line)]
    return done.returncode, errors, done.stdout


def test_full_or_readonly_disk_ends_training_with_one_line_and_more_room_continues_it(trained, like, disk, tmp_path):
    """There is room for two checkpoints and about half of the third, which is written before the first is deleted."""
    saved = [trained / "snapshots" / "0", trained / "snapshots" / "12", *(trained / "checkpoints").iterdir()]
    disk.of_size(sum(map(pages, saved)) + pages(trained / "metrics") + pages(trained / "checkpoints" / "24") // 2)
    work = Workdir(disk.folder / "runs" / "plain")

    code, errors, _ = run_train(disk.folder / "runs")
    assert len(errors) == 1, errors
    (line,) = errors
    newest = files.steps(work.checkpoints)[-1]
    which, refused = (
        r"(metrics/\d+\.npz|(checkpoints|snapshots)/\d+)",
        r"could not be written \(No space left on device\)",
    )
    assert re.match(f"lab: {work.path}/{which}: {refused}", line) and code == 2
    assert "metrics" in line or re.search(r"; the newest whole one is \d+$", line)
    assert newest in (6, 12) and verify.damages(work) == [] and verify.remarks(work) == []

    disk.readonly()
    code, errors, _ = run_train(disk.folder / "runs")
    assert len(errors) == 1, errors
    (line,) = errors
    assert code == 2 and line.startswith(f"lab: {work.path}") and "Read-only file system" in line

    disk.of_size(2**26)
    code, errors, said = run_train(disk.folder / "runs")
    assert errors == []
    assert code == 0 and f"{work.path}: continuing at step {newest}" in said
    assert run_train(tmp_path / "runs")[0] == 0  # the same command, undisturbed
    undisturbed = tmp_path / "runs" / "plain"
    for name in files_of(undisturbed, "metrics"):
        assert same_files(undisturbed / name, work.path / name), name
    for folder, number in (("snapshots", 0), ("snapshots", 12), ("snapshots", 24), ("checkpoints", 24)):
        saves = [store.restore(path / folder, number) for path in (undisturbed, work.path)]
        assert same_values(*saves), f"{folder}/{number}"
