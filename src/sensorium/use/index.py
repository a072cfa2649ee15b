"""The index of a search, to be used elsewhere: any vector database, or a product of matrices.

vectors.npy      float32 [N, E], of unit length: cosine similarity is the inner product
index.parquet    a row for each picture: path, caption, vector
index.json       what made it: network, digest of its weights, data, number and size of the vectors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.files import check_writable, unlinked, write_folder, write_json
from sensorium.data.output import check_place
from sensorium.runs.run import Run
from sensorium.use.able import places_of
from sensorium.use.search import Album, digest_of_weights, open_album, open_looker
from sensorium.use.tables import write_vectors


def export_index(run: Any, data: str | Path | None, out: str | Path | None) -> Path:
    """Write the index of the pictures of ``data``, or of the run's own, to the folder ``out``; return it.

    It is the index of :func:`sensorium.use.search.search`, made now if there is none. Raises SensoriumError for a run
    that embeds no pictures.
    """
    if out is not None:
        check_place(out, data, *places_of(run), folder=True)
    looker = open_looker(run)
    folder = Path(out) if out is not None else unlinked(looker.home / "export-index")
    check_writable(folder / "index.json")
    album = open_album(looker, run, None if data is None else str(data))
    where = run.folder if isinstance(run, Run) else run if isinstance(run, (str, Path)) else type(run).__name__
    return write_folder(folder, lambda into: _write(album, into, str(where), data))


def _write(album: Album, folder: Path, network: str, data: str | Path | None) -> None:
    vectors, told = np.asarray(album.vectors), album.told
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    captions = [caption or None for caption in told.captions]
    write_vectors(folder / "index.parquet", vectors, told.names, {"caption": captions}, called="vector")
    said = {
        "network": network, "weights": digest_of_weights(album.looker.method), "data": None if data is None else str(data),
        "pictures": len(album), "size": vectors.shape[1], "similarity": "inner product of unit vectors (cosine)",
        "skipped": told.skipped,
    }  # fmt: skip
    write_json(folder / "index.json", said)
