"""All answers so far for other programs: a csv, an ImageFolder of links, and tasks for Label Studio."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.files import atomic_write, require_writable, write_json
from datasets.base import Dataset
from datasets.index_files import index_path, numbered_files, read_index_file
from evals.annotation.label_csv import BYTE_ORDER_MARK, OTHER_LABEL, QueriedImage, format_row
from evals.annotation.loop import Progress
from evals.annotation.queries import read_query
from utils import InputError


def write_export(
    folder: Path, index_folder: Path, images_folder: Path, data: Dataset, progress: Progress
) -> list[Path]:
    """Writes labels.csv, images/<class>/ and label_studio.json into a new folder and returns their paths.

    Raises:
        InputError: There are no answers, or the folder is not empty or lies among the images.
    """
    if not (numbers := numbered_files(index_folder)):
        raise InputError(f"{index_folder} holds no cycle_0.json, so no answers: name the --index_dir of a query")
    require_writable(folder, "--export")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty: name a new folder for --export")
    parts = {(images_folder / part).resolve() for part in ("labeled", "unlabeled", "test")}
    if parts & {folder.resolve(), *folder.resolve().parents}:
        raise InputError(f"--export {folder} lies among the images, which would be read twice: name another folder")
    cycles: dict[str, int] = {}  # in which an image was answered, by the SHA-256 of its file
    asked: dict[str, tuple[int, QueriedImage]] = {}
    for number in numbers:
        files = read_index_file(index_path(index_folder, number)).files or {"labeled": [], "set_aside": []}
        for _, digest in files["labeled"] + files["set_aside"]:
            cycles.setdefault(digest, number)
    for query in (read_query(index_folder, number) for number in range(1, len(numbers) + 1)):
        asked |= {image.digest: (query.cycle, image) for image in query.images} if query else {}
    split, waiting = progress.split, {image.digest for image in progress.waiting.images} if progress.waiting else set()
    answers = {image: data.class_names[progress.labels[image]] for image in split.labeled.tolist()}
    answers |= dict.fromkeys(split.set_aside.tolist(), OTHER_LABEL)
    answers |= {image: "" for image in split.unlabeled.tolist() if data.digests[image] in waiting}
    lines, tasks = [format_row(["path", "class", "cycle"])], []
    for image, name in answers.items():
        path, digest = data.paths[image], data.digests[image]
        tasks.append(_task(images_folder, path, *asked.get(digest, (0, None)), name))
        if name:
            lines.append(format_row([path, name, str(cycles.get(digest, 0))]))
            _link(images_folder / path, folder / "images" / name / path)
    with atomic_write(folder / "labels.csv") as file:
        file.write((BYTE_ORDER_MARK + "".join(f"{line}\r\n" for line in lines)).encode(errors="backslashreplace"))
    write_json(folder / "label_studio.json", tasks)
    return [folder / name for name in ("labels.csv", "images", "label_studio.json")]


def _link(source: Path, target: Path) -> None:
    """A relative link or, where the file system has none, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    except OSError:
        shutil.copyfile(source, target)


def _task(images_folder: Path, path: str, cycle: int, image: QueriedImage | None, name: str) -> dict[str, Any]:
    """An image as Label Studio takes it: its answer, if there is one, and the score and suggestion of its query.

    The address is that of Label Studio's own file server, below the folder that holds the data folder.
    """

    def choice(label: str) -> list[dict[str, Any]]:
        return [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]

    place = quote(os.fsencode(Path(images_folder.resolve().name, path).as_posix()))
    task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={place}", "path": path}}
    if name:
        task["annotations"] = [{"result": choice(name)}]
    if image and image.suggestion and image.joint is not None:
        found = {"model_version": f"cycle {cycle}", "score": image.joint, "result": choice(image.suggestion)}
        task["predictions"] = [found]
    return task
