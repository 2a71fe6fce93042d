"""The whole experiment as settings: the recipe, and the flags with which each of its commands is called."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoint import MODEL_FILE
from common.interruption import Interruption

LAUNCHER_PATIENCE = 30.0  # seconds after which torchrun kills what it has asked to stop
PROBE_STEP = 5  # epochs between evaluations of the linear probe
SHIFTS = {"semantic": "none", "distinctive": "rotation"}  # of the encoders
SCHEDULES = {
    "semantic_epochs": "semantic encoder",
    "distinctive_epochs": "distinctive encoder",
    "warmup": "their warm-up",
    "classifier_epochs": "classifier",
}


@dataclass(frozen=True)
class Recipe:
    """What the stages are run with; the defaults are the paper's for CIFAR-10.

    Attributes:
        target: Images queried per target class and cycle.
        cycles: Query cycles.
        runs: Seeds of the classifier.
        batch_size: Images per step of the encoders, all processes together (the paper's: 4 processes x 32).
        ood_samples: Augmented views per image and shift in the query.
        resize_factor: Share of the image's area that each crop of the query keeps.
    """

    semantic_epochs: int = 700
    distinctive_epochs: int = 700
    warmup: int = 10
    classifier_epochs: int = 100
    target: int = 750
    cycles: int = 5
    runs: int = 5
    batch_size: int = 128
    optimizer: str = "sgd"
    lr_init: float = 0.1
    temperature: float = 0.5
    ood_samples: int = 10
    resize_factor: float = 0.54
    k: float = 100.0
    t: float = 0.9

    def epochs(self, encoder: str) -> int:
        """Of the ``semantic`` or the ``distinctive`` encoder."""
        return self.semantic_epochs if encoder == "semantic" else self.distinctive_epochs

    def scaled(self, scale: float) -> Recipe:
        """Every schedule times ``scale``, rounded, at least one epoch each.

        That holds for the warm-up, too: a run of a single epoch is nothing but warm-up, as a start at ten times
        ``lr_init`` might diverge.
        """
        return dataclasses.replace(self, **{name: max(1, round(scale * getattr(self, name))) for name in SCHEDULES})

    def beside(self, full: Recipe, scale: float) -> str:
        """These schedules beside the full ones, in one line."""
        parts = [f"{what} {getattr(self, name)} of {getattr(full, name)}" for name, what in SCHEDULES.items()]
        return f"scale {scale:g}, in epochs: {', '.join(parts)}"


def recipe_for(dataset: str, *, pool: int, classes: int) -> Recipe:
    """The paper's recipe for a data set; one that the paper does not use has CIFAR-10's, and its share of the pool.

    Args:
        dataset: The data set's name.
        pool: Images in the pool.
        classes: Target classes.
    """
    if dataset == "cifar10":
        return Recipe()
    if dataset == "cifar100":
        return Recipe(semantic_epochs=2000, target=75)
    return Recipe(target=max(1, round(pool * 1500 / 46001 / classes)))


@dataclass(frozen=True)
class Experiment:
    """Everything that the stages' flags are made of.

    Attributes:
        folder: Of the run: semantic/, distinctive/, features/, query/ccal/, query/random/, classifier/.
        recipe: With its schedules as they are run.
        model: Backbone of both encoders.
        data: The flags of data set and split.
        device: --device.
        seed: --seed.
        precision: --precision.
        processes: That train an encoder.
        quiet: --quiet.
        deterministic: --deterministic.
    """

    folder: Path
    recipe: Recipe
    model: str
    data: tuple[str, ...]
    device: str
    seed: int
    precision: str
    processes: int
    quiet: bool = False
    deterministic: bool = False

    def model_path(self, encoder: str) -> Path:
        """Where an encoder's weights are."""
        return self.folder / encoder / MODEL_FILE

    def index_dir(self, strategy: str) -> Path:
        """Where a strategy's index files are."""
        return self.folder / "query" / strategy

    def encoder_flags(self, encoder: str) -> list[str]:
        """Of contrast_main.py, which goes on with what an earlier start left; each process has its share of a batch."""
        recipe, epochs = self.recipe, self.recipe.epochs(encoder)
        flags = [*self.data, *self._process(), "--precision", self.precision, "--model", self.model]
        flags += _words(
            mode=encoder,
            shift_trans_type=SHIFTS[encoder],
            epochs=epochs,
            warmup=recipe.warmup,
            batch_size=recipe.batch_size // self.processes,
            optimizer=recipe.optimizer,
            lr_init=recipe.lr_init,
            temperature=recipe.temperature,
            error_step=PROBE_STEP,
            save_step=max(1, min(10, epochs // 10)),
        )
        return [*flags, *_words(logdir=self.folder / encoder, resume="auto")]

    def query_flags(self, strategy: str, *, features: Path | None = None) -> list[str]:
        """Of active_main.py, with the folder in which features are kept."""
        recipe = self.recipe
        flags = [*self.data, *self._process(), "--precision", self.precision, "--model", self.model]
        flags += _words(
            strategy=strategy,
            shift_trans_type=SHIFTS["distinctive"],
            load_path=self.folder,
            target=recipe.target,
            split=recipe.cycles,
            ood_samples=recipe.ood_samples,
            resize_factor=recipe.resize_factor,
            k=recipe.k,
            t=recipe.t,
            index_dir=self.index_dir(strategy),
        )
        return [*flags, "--resize_fix", "--overwrite", *(_words(feature_cache=features) if features else [])]

    def classifier_flags(self, strategy: str, cycles: int) -> list[str]:
        """Of train_classifier/main.py, for a strategy's index files from cycle 0 to ``cycles``."""
        recipe = self.recipe
        return [
            *self.data,
            *self._process(),
            *_words(
                split=cycles,
                runs=recipe.runs,
                epochs=recipe.classifier_epochs,
                index_dir=self.index_dir(strategy),
                out_path=self.folder / "classifier",
            ),
        ]

    def _process(self) -> list[str]:
        switches = [f"--{name}" for name in ("quiet", "deterministic") if getattr(self, name)]
        return [*_words(device=self.device, seed=self.seed), *switches]


def data_flags(dataset: str, data_path: str | Path, **flags: Any) -> tuple[str, ...]:
    """The flags of data set and split, the same for every command; one that is None is left out."""
    given = {name: value for name, value in flags.items() if value is not None}
    return tuple(_words(dataset=dataset, data_path=data_path, **given))


def launcher_command(script: Path, flags: Sequence[str], *, processes: int) -> list[str]:
    """The words that start a script on several processes of this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(script),
        *flags,
    ]  # fmt: skip


def run_launcher(command: Sequence[str], *, quiet: bool = False) -> int:
    """Runs the processes of ``launcher_command`` to their end and returns their exit status.

    Asked to stop, it has them save and stop first.

    Args:
        command: The words.
        quiet: Whether to drop what they print.

    Raises:
        Interrupted: They were asked to stop, and have.
    """
    with Interruption() as interruption:
        interruption.margin = LAUNCHER_PATIENCE
        # Ctrl-C on a terminal goes to everyone there: in a session of their own they get each request once, from here.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL if quiet else None, start_new_session=True)
        asked = False
        try:
            while process.poll() is None:
                if interruption.due() and not asked:
                    process.terminate()
                    asked = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:  # a second request does not wait
                process.terminate()
        if asked:
            raise interruption.stop("its processes have saved their work")
        return process.returncode


def largest_divisor(batch_size: int, limit: int) -> int:
    """The largest number of processes, ``limit`` at most, that share a batch evenly."""
    return next(n for n in range(limit, 0, -1) if batch_size % n == 0)


def _words(**flags: object) -> list[str]:
    words = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words
