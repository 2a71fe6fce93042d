"""A query seen again: the scores of its pool, from kept files or computed once more, its images and their truth."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.acceleration import Precision
from common.checkpoint import MODEL_FILE
from common.console import log
from common.provenance import image_digest
from datasets import Dataset, Split, load_data_and_split
from evals.banks import Sources, default_batch, kept_features, load_encoder, with_shift
from evals.feature_cache import narrowed
from evals.features import Extraction, FeatureBank, extract_features
from evals.query import STRATEGIES
from evals.report.encoders import data_settings, encoder_of
from evals.report.located import found_again, names_images
from evals.report.runs import Query, Run
from evals.report.scores import PoolCycle, Truth, known_truth, read_scores, replay
from models.transform_layers import SHIFT_COUNTS, Augmentation
from utils import InputError

AUTO_SECONDS = 60  # of extraction, at most, without --features extract
TRIAL_IMAGES = 32
FOLDER_CHANGED = "The folder has changed since a query was made: these are the scores over the images that it holds now"


@dataclass
class Material:
    """All of a query that index files do not hold; what is missing is None or empty, and ``why`` says why.

    Attributes:
        data: The images.
        split: The initial one.
        banks: Features by encoder.
        cycles: Scores by cycle.
        source: Where the scores come from.
        truth: What is known of the images.
        why: What is missing (``data``, ``features``, ``scores``), and for which reason.
        notes: Sentences on the scores.
        lost: Sentences on images that are gone.
        query: The query with the numbers that images and classes have in ``data``; None without that.
    """

    data: Dataset | None = None
    split: Split | None = None
    banks: dict[str, FeatureBank] = field(default_factory=dict)
    cycles: list[PoolCycle] = field(default_factory=list)
    source: str = ""
    truth: Truth = field(default_factory=lambda: Truth(*np.empty((2, 0), dtype=np.int64)))
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    query: Query | None = None


def gather(run: Run, query: Query, *, data_path: str | None, features: str, device: torch.device) -> Material:
    """Loads or computes what is at hand of a query.

    Args:
        run: That the query belongs to.
        query: Its index files.
        data_path: Where the images are now; None where the run's record says.
        features: ``auto`` extracts them where that takes about a minute at most, ``kept`` never, ``extract`` always.
        device: That features and scores are computed on.
    """
    material = Material()
    _attempt(material, "data", lambda: _load_data(material, run, query, data_path))
    query = material.query or query
    if query.strategy in STRATEGIES and STRATEGIES[query.strategy].needs:
        _attempt(material, "features", lambda: _load_features(material, run, query, features, device))
        _attempt(material, "scores", lambda: _load_scores(material, query, device))
    else:
        material.why["features"] = material.why["scores"] = f"the strategy {query.strategy} has no scores"
    material.truth = known_truth(query.files, material.data, material.cycles)
    return material


def _attempt(material: Material, what: str, load: Callable[[], None]) -> None:
    """Lets a part that cannot be loaded be missing, and keeps the reason."""
    try:
        load()
    except (InputError, OSError) as error:
        material.why[what] = str(error)
    except (KeyError, TypeError, ValueError) as error:  # settings of another version, or edited
        material.why[what] = f"the record of this run does not fit ({type(error).__name__}: {error})"


def _load_data(material: Material, run: Run, query: Query, data_path: str | None) -> None:
    digest, named = query.files[-1].split_digest, names_images(query.files)
    record = data_settings(run, query, data_path)
    place = Path(data_path or record["data_path"]).expanduser()
    accepted = {*inspect.signature(load_data_and_split).parameters} - {"name", "data_path"}
    settings = {name: record[name] for name in accepted if name in record}
    data, split = load_data_and_split(record["dataset"], place, **settings)
    if named:  # people may change the folder as they label
        material.query, material.lost = found_again(query, data)
        material.data, material.split = data, split
        return
    if split.digest != digest:
        raise InputError(f"{place} gives another split than this run's: other images; give --data_path")
    last = query.files[-1]
    images = [*last.labeled, *last.set_aside, *(image for content in query.files for image in content.queried)]
    if max(images) >= len(data.train_labels):
        raise InputError(f"the index files name images that {place} does not have")
    material.data, material.split, material.query = data, split, query


def _load_features(material: Material, run: Run, query: Query, features: str, device: torch.device) -> None:
    data, split, settings = material.data, material.split, query.files[0].settings
    if data is None:
        raise InputError(material.why["data"])
    indices = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    precision = Precision.resolve(settings.get("precision", "fp32"), device)
    precision.apply_to_products()
    how = Extraction(
        augmentation=Augmentation(settings["resize_factor"], settings["resize_fix"]),
        views=settings["ood_samples"],
        shift="none",
        shift_numbers=(0,),
        seed=settings["seed"],
        batch_size=default_batch(device, data.image_size),
        precision=precision,
    )
    dtype = settings.get("feature_dtype", "float32")
    trained_by = {name: encoder_of(run, query, name) for name in STRATEGIES[query.strategy].needs}
    paths = {name: encoder.folder / MODEL_FILE for name, encoder in trained_by.items()}
    sources = Sources.of(paths, data.train_images, indices)
    if names_images(query.files):
        check_sources(sources, {**settings, "images_digest": sources.images_digest})  # images may come and go
        if any(content.settings.get("images_digest") != sources.images_digest for content in query.cycles):
            material.notes.append(FOLDER_CHANGED)
    else:
        check_sources(sources, settings)
    found: dict[str, FeatureBank] = {}
    for name, trained in trained_by.items():
        shift = trained.arguments["shift_trans_type"]
        views = with_shift(how, shift)
        encoder = load_encoder(
            paths[name],
            trained.arguments["model"],
            num_classes=data.num_classes,
            shifts=SHIFT_COUNTS[shift],
            simclr_dim=trained.arguments["simclr_dim"],
            strict=True,
            device=device,
        )
        kept = find_kept(run, name, encoder, sources, indices, views, dtype=dtype)
        if kept is None:
            kept = _extract(encoder, data, indices, views, name=name, dtype=dtype, features=features)
        found[name] = kept
    material.banks = found


def check_sources(sources: Sources, settings: dict[str, Any]) -> None:
    """Compares checkpoints and images with those that the query had, as far as it has put them on record.

    Raises:
        InputError: They are others.
    """
    made, now = settings.get("checkpoint_digests"), sources.checkpoint_digests
    if isinstance(made, dict) and made != now:
        changed = [str(sources.checkpoints[name]) for name in now if made.get(name) != now[name]]
        raise InputError(f"{', '.join(changed)} is not what the query was made with any more")
    if settings.get("images_digest", sources.images_digest) != sources.images_digest:
        raise InputError("the images are not what the query was made with any more; give --data_path")


def find_kept(
    run: Run,
    name: str,
    encoder: torch.nn.Module,
    sources: Sources,
    indices: np.ndarray,
    how: Extraction,
    *,
    dtype: str,
) -> FeatureBank | None:
    """Features that --feature_cache kept within the run, if they are of these encoders and images."""
    for folder in run.features:
        try:
            bank = kept_features(folder, name, encoder, sources, indices, how, dtype=dtype)[1]
        except InputError:
            continue  # another query's
        if bank:
            return bank
    return None


def _extract(
    encoder: torch.nn.Module,
    data: Dataset,
    indices: np.ndarray,
    how: Extraction,
    *,
    name: str,
    dtype: str,
    features: str,
) -> FeatureBank:
    """Extracts features, unless ``--features`` says that it is not worth it.

    Raises:
        InputError: It is not.
    """
    remedy = "query with --feature_cache in the run's folder to keep them, or give --features extract"
    if features == "kept":
        raise InputError(f"no features are kept in this run; {remedy}")
    device = next(encoder.parameters()).device
    images = torch.from_numpy(np.asarray(data.train_images)).to(device).permute(0, 3, 1, 2).contiguous()
    if features == "auto":
        some = indices[:TRIAL_IMAGES]
        start = time.perf_counter()
        extract_features(encoder, images, some, how).features.cpu()
        seconds = (time.perf_counter() - start) * len(indices) / len(some)
        if seconds > AUTO_SECONDS:
            raise InputError(
                f"no features are kept in this run, and extracting the {name} ones of {len(indices)} images would take "
                f"about {seconds / 60:.0f} min; {remedy}"
            )
    start = time.perf_counter()
    bank = extract_features(encoder, images, indices, how, name=f"{name} features")
    log(f"{name} features of {len(indices)} images: {time.perf_counter() - start:.1f} s")
    return FeatureBank(indices, narrowed(bank.features, dtype))


def _numbers_hold(material: Material, query: Query) -> bool:
    """Whether an image's number in kept scores is that in the index files as they are now."""
    if not names_images(query.files):
        return True
    made = {content.settings.get("images_digest") for content in query.cycles}
    if material.data is None:
        return len(made) == 1 and len({content.split_digest for content in query.files}) == 1
    return made == {image_digest(material.data.train_images, np.arange(len(material.data.train_labels)))}


def _load_scores(material: Material, query: Query, device: torch.device) -> None:
    kept = [query.folder / "scores" / f"cycle_{content.cycle}.npz" for content in query.cycles]
    if kept and all(path.is_file() for path in kept) and _numbers_hold(material, query):
        try:
            material.cycles = [read_scores(*pair) for pair in zip(kept, query.cycles, strict=True)]
            material.source = "as --save_score kept them"
            return
        except InputError as error:
            material.notes.append(str(error))
    if not material.banks:
        raise InputError(f"{material.why['features']}. --save_score of active_main.py keeps the scores, too")
    again = 0
    for cycle, agreed in replay(query.files, material.data, material.split, material.banks, device=device):
        material.cycles.append(cycle)
        again += agreed
    material.source = "computed again from the features"
    chosen = sum(len(cycle.queried) for cycle in material.cycles)
    if again < chosen:
        material.notes.append(
            f"the scores computed again would query {again} of the {chosen} queried images; where another machine or "
            "another number format rounds differently, images at the border change places"
        )
