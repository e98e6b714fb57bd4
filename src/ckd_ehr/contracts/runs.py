"""The run directory: stages meet only here.

A stage writes into `NN_name.partial/`, its manifest last, then the folder is renamed: an
interrupted stage never looks finished. A stage is skipped only if its fingerprint matches and
its outputs are intact. `work/` inside a partial folder is scratch: it survives a kill, so that the
stage can resume, and is deleted on publishing. Ignores: what any stage computes.
"""

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import filelock
from pydantic import ValidationError

from ckd_ehr.contracts.config import RunConfig, with_places_of
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of, write_json
from ckd_ehr.contracts.machine import (
    commit,
    machine_facts,
    package_versions,
    peak_memory_bytes,
)
from ckd_ehr.contracts.manifests import (
    FINGERPRINT,
    MANIFEST,
    WORK,
    StageManifest,
    describe_outputs,
    is_current,
    manifest_digest,
    read_manifest,
)
from ckd_ehr.contracts.processes import Gang

LOCK = ".lock"


@dataclass(frozen=True)
class StageContext:
    """What a stage function is given.

    `folder` is where outputs go, `work` survives a kill, `inputs` maps the names of earlier
    stages to their published folders, `say` prints one line for the user.
    """

    config: RunConfig
    folder: Path
    inputs: Mapping[str, Path]
    say: Callable[[str], None]

    @property
    def work(self) -> Path:
        """Scratch that a killed stage finds again on its next start."""
        folder = self.folder / WORK
        folder.mkdir(exist_ok=True)
        return folder


@dataclass(frozen=True)
class Stage:
    """One row of the stage table: what it reads, what it writes, and how.

    `sections` are the dotted config keys that enter the fingerprint; `reads` the stages, or
    single files of stages (`knowledge/teacher.parquet`), whose outputs do; `externals` hashes what
    it reads from outside the run (source tables, model weights); `preview` is said before any work;
    `together` stages are run by all processes, the others by the leader alone.
    """

    name: str
    summary: str
    function: Callable[[StageContext], None]
    sections: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    externals: Callable[[RunConfig], Mapping[str, str]] = lambda _: {}
    preview: Callable[[RunConfig], Sequence[str]] = lambda _: ()
    together: bool = False
    version: int = 1


class RunDirectory:
    """A run's folder, with numbered stage folders in the order of the stage table."""

    def __init__(self, root: Path, stages: Sequence[Stage]) -> None:
        self.root = root
        self.stages = tuple(stages)

    def folder(self, stage_name: str) -> Path:
        """Where the stage's published outputs are."""
        for number, stage in enumerate(self.stages, start=1):
            if stage.name == stage_name:
                return self.root / f"{number:02d}_{stage.name}"
        raise KeyError(stage_name)

    def require(self, stage_name: str) -> Path:
        """The stage's folder; an error that names the remedy if it has not finished."""
        folder = self.folder(stage_name)
        manifest = read_manifest(folder)
        if manifest is None:
            raise CkdEhrError(
                f"{self.root}: stage '{stage_name}' has not finished; "
                f"finish it with: ckd-ehr run CONFIG --out {self.root}"
            )
        for name, record in manifest.outputs.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != record.bytes:
                raise CkdEhrError(
                    f"{file}: missing or damaged since its stage finished; "
                    f"make it again with: ckd-ehr run CONFIG --out {self.root}"
                )
        return folder

    def require_intact(self, stage_name: str) -> Path:
        """As `require`, and every output still has the hash it was published with."""
        folder = self.require(stage_name)
        for name, record in _manifest_in(folder).outputs.items():
            if sha256_of(folder / name) != record.sha256:
                raise CkdEhrError(
                    f"{folder / name}: changed since its stage finished; "
                    f"make it again with: ckd-ehr run CONFIG --out {self.root}"
                )
        return folder

    def out_of_date(self, stage_name: str) -> str | None:
        """Why the stage's results are not of the run's present settings; None if they are.

        Compares run.json with the manifests; does not look at source tables or weights.
        """
        config = self.config()
        for stage in self._with_upstream(stage_name):
            manifest = read_manifest(self.folder(stage.name))
            if manifest is None:
                return f"stage '{stage.name}' has not finished"
            if read := self._changed_read(stage, manifest):
                return f"'{read}' has changed since stage '{stage.name}' read it"
            if manifest.fingerprint != fingerprint_of(stage, config, manifest.inputs):
                return f"the settings of stage '{stage.name}' have changed since it ran"
        return None

    def _with_upstream(self, stage_name: str) -> list[Stage]:
        wanted = {stage_name}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(name for name, _ in map(_split_read, stage.reads))
        return [stage for stage in self.stages if stage.name in wanted]

    def _read_digests(self, stage: Stage) -> dict[str, str]:
        """One digest for every entry of the stage's `reads`."""
        parts = {read: _split_read(read) for read in stage.reads}
        return {
            read: manifest_digest(self.folder(name), only=file)
            for read, (name, file) in parts.items()
        }

    def _changed_read(self, stage: Stage, manifest: StageManifest) -> str | None:
        """The first of the stage's `reads` that is not what the stage has read; None if all are."""
        digests = self._read_digests(stage).items()
        return next((read for read, now in digests if manifest.inputs.get(read) != now), None)

    def config(self) -> RunConfig:
        """The resolved config that the run was last started with."""
        path = self.root / "run.json"
        if not path.is_file():
            raise CkdEhrError(f"{self.root}: no run here (run.json is missing)")
        try:
            return RunConfig.model_validate(read_json(path)["config"])
        except (KeyError, TypeError, ValidationError) as error:
            raise CkdEhrError(
                f"{path}: written by another version ({type(error).__name__}); "
                f"start the run again: ckd-ehr run CONFIG --out {self.root}"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; another run of the same folder is refused."""
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / LOCK, timeout=0)
        try:
            with lock:
                yield
        except filelock.Timeout:
            raise CkdEhrError(
                f"{self.root}: another process is running here; wait for it or give --out"
            ) from None
        except BaseException:
            if [entry.name for entry in self.root.iterdir()] in ([], [LOCK]):  # nothing begun
                (self.root / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # another process has put something there meanwhile
                    for folder in made:
                        folder.rmdir()
            raise

    def execute(
        self,
        config: RunConfig,
        *,
        command: Sequence[str],
        say: Callable[[str], None],
        first: str | None = None,
        until: str | None = None,
        gang: Gang | None = None,
    ) -> None:
        """Bring the stages from `first` to `until` up to date, in order, skipping those that are.

        What comes before `first` must have finished, with these settings; its sources are not
        looked at. A `gang` runs with this process, its leader, what is run together.
        """
        with self.locked(), _dismissed(gang):
            self._refuse_another_source(config)
            wanted = self._between(first, until)
            config = self._taken_as_it_stands(self.stages[: self.stages.index(wanted[0])], config)
            for line in (line for stage in wanted for line in stage.preview(config)):
                say(line)
            # What is missing outside the run is told before anything is changed.
            externals = {stage.name: stage.externals(config) for stage in wanted}
            about = {"command": list(command), "commit": commit(), "machine": machine_facts()}
            write_json(self.root / "run.json", {"config": config.model_dump(mode="json"), **about})
            for stage in wanted:
                tag = f"[{self.stages.index(stage) + 1}/{len(self.stages)}]"
                self._bring_up_to_date(
                    stage, config, externals[stage.name], say=say, tag=tag, gang=gang
                )

    def follow(self, gang: Gang) -> None:
        """Run with the leader what is run together, until it says that there is no more."""
        by_name = {stage.name: stage for stage in self.stages}
        while isinstance(order := gang.hear(), _Order):
            stage = by_name[order.stage]
            inputs = {name: self.folder(name) for name, _ in map(_split_read, stage.reads)}
            folder = _partial_of(self.folder(stage.name))
            config = RunConfig.model_validate(order.config)
            stage.function(StageContext(config, folder, inputs, say=lambda _: None))

    def _between(self, first: str | None, last: str | None) -> tuple[Stage, ...]:
        names = [stage.name for stage in self.stages]
        start = 0 if first is None else names.index(first)
        end = len(names) if last is None else names.index(last) + 1
        if start >= end:
            raise CkdEhrError(f"no stage to run: '{first}' comes after '{last}'")
        return self.stages[start:end]

    def _taken_as_it_stands(self, stages: Sequence[Stage], config: RunConfig) -> RunConfig:
        """Require finished stages of these settings; what they read may be out of reach.

        Returns:
            The config with the places of records that these stages were made from: those of the
            last start, or, if that failed before it made anything of them, those given now.
        """
        if not stages:
            return config
        manifests = {stage: _manifest_in(self.require(stage.name)) for stage in stages}
        candidates = (with_places_of(config, self.config()), config)
        made_otherwise = [_first_made_otherwise(manifests, candidate) for candidate in candidates]
        if None not in made_otherwise:
            last = max((stage for stage in made_otherwise if stage), key=self.stages.index)
            raise CkdEhrError(
                f"{self.root}: stage '{last.name}' was made with other settings or by another "
                "version; give the same settings, or run without --from"
            )
        for stage, manifest in manifests.items():
            if read := self._changed_read(stage, manifest):
                raise CkdEhrError(
                    f"{self.root}: '{read}' has changed since stage '{stage.name}' read it; "
                    "run without --from"
                )
        return candidates[made_otherwise.index(None)]

    def _refuse_another_source(self, config: RunConfig) -> None:
        """A finished run of other records must not be overwritten by a slip of `--out`."""
        if not (self.root / "run.json").is_file():
            return
        earlier = self.config().data.source
        if earlier != config.data.source:
            raise CkdEhrError(
                f"{self.root}: holds a run of source '{earlier}', this one is of "
                f"'{config.data.source}'; give another folder with --out, or delete this one"
            )

    def _bring_up_to_date(
        self,
        stage: Stage,
        config: RunConfig,
        externals: Mapping[str, str],
        *,
        say: Callable[[str], None],
        tag: str,
        gang: Gang | None,
    ) -> None:
        inputs = {name: self.folder(name) for name, _ in map(_split_read, stage.reads)}
        digests = {**self._read_digests(stage), **externals}
        fingerprint = fingerprint_of(stage, config, digests)
        target = self.folder(stage.name)
        _finish_interrupted_publish(target)
        if is_current(target, fingerprint):
            say(f"{tag} {stage.name}: unchanged, skipped")
            return
        partial = _partial_of(target)
        if is_current(partial, fingerprint):  # killed after its manifest, before its renaming
            _swap_in(partial, target)
            say(f"{tag} {stage.name}: finished earlier, put in place")
            return
        say(f"{tag} {stage.name}: {stage.summary}")
        _open_partial(partial, fingerprint)
        started = monotonic()
        if gang is not None and stage.together:
            gang.tell(_Order(stage.name, config.model_dump(mode="json")))
        stage.function(StageContext(config=config, folder=partial, inputs=inputs, say=say))
        manifest = StageManifest(
            stage=stage.name,
            version=stage.version,
            fingerprint=fingerprint,
            inputs=digests,
            outputs=describe_outputs(partial),
            packages=package_versions(),
            seed=config.seed,
            device=config.device,
            seconds=round(monotonic() - started, 3),
            peak_memory_bytes=peak_memory_bytes(),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        publish(partial, target, manifest)
        say(f"{tag} {stage.name}: done in {manifest.seconds:.0f} s")


@dataclass(frozen=True)
class _Order:
    """What a leader has its followers run."""

    stage: str
    config: dict[str, object]


@contextmanager
def _dismissed(gang: Gang | None) -> Iterator[None]:
    """Tell the followers at the end that there is no more."""
    yield
    if gang is not None:
        gang.tell(None)


def fingerprint_of(stage: Stage, config: RunConfig, inputs: Mapping[str, str]) -> str:
    """hash(config slice, input hashes, stage version): equal if and only if nothing changed."""
    settings = config.model_dump(mode="json")
    slice_ = {section: _dig(settings, section) for section in stage.sections}
    facts = {"stage": stage.name, "version": stage.version, "config": slice_, "inputs": inputs}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _manifest_in(folder: Path) -> StageManifest:
    """The manifest of a stage that is known to have finished."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def _first_made_otherwise(
    manifests: Mapping[Stage, StageManifest], config: RunConfig
) -> Stage | None:
    """The first stage that other settings or another version made; what it read aside."""
    for stage, manifest in manifests.items():
        if manifest.fingerprint != fingerprint_of(stage, config, manifest.inputs):
            return stage
    return None


def _dig(settings: Mapping[str, object], dotted: str) -> object:
    node: object = settings
    for part in dotted.split("."):
        assert isinstance(node, Mapping)
        node = node[part]
    return node


def _split_read(read: str) -> tuple[str, str | None]:
    name, _, file = read.partition("/")
    return name, file or None


def _partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _open_partial(partial: Path, fingerprint: str) -> None:
    """Make the partial folder; only `work/` of an equal fingerprint is kept."""
    mark = partial / FINGERPRINT
    if not (mark.is_file() and mark.read_text() == fingerprint):
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    for entry in partial.iterdir():
        if entry.name == WORK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    mark.write_text(fingerprint)


def publish(partial: Path, target: Path, manifest: StageManifest) -> None:
    """Write the manifest, then swap the finished folder in; the old one stays until then."""
    write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
    _swap_in(partial, target)


def _swap_in(partial: Path, target: Path) -> None:
    shutil.rmtree(partial / WORK, ignore_errors=True)
    (partial / FINGERPRINT).unlink(missing_ok=True)
    stale = target.with_name(target.name + ".stale")
    shutil.rmtree(stale, ignore_errors=True)
    if target.exists():
        target.rename(stale)
    partial.rename(target)
    shutil.rmtree(stale, ignore_errors=True)


def _finish_interrupted_publish(target: Path) -> None:
    """After a kill between the two renames of `publish`, put the newest whole folder in place."""
    for suffix in (".partial", ".stale"):
        candidate = target.with_name(target.name + suffix)
        if not target.exists() and (candidate / MANIFEST).is_file():
            candidate.rename(target)
    if target.exists():
        shutil.rmtree(target.with_name(target.name + ".stale"), ignore_errors=True)
