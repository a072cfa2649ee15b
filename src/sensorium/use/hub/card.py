"""The model card of a run: metadata by the Hub's specification, and what a stranger wants to know before using it.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sensorium.abilities import ABILITIES, Classifier
from sensorium.catalogue import NETWORKS, Network, System, find
from sensorium.errors import SensoriumError
from sensorium.judge.classes import ERROR
from sensorium.judge.feature_scores import HEAD, NEAR
from sensorium.judge.score import Judgement, Score
from sensorium.published import Written
from sensorium.published.format import Preparation
from sensorium.runs.run import Run
from sensorium.use.hub.bare import Bare, name_of

# The Hub's task of a method, by the first ability that it has.
TASKS = {
    "Classifier": "image-classification",
    "ImageText": "zero-shot-image-classification",
    "Detector": "object-detection",
    "LanguageModel": "text-generation",
    "Encoder": "image-feature-extraction",
    "TextConditional": "text-to-image",
    "Generator": "unconditional-image-generation",
}
LIBRARIES = {"hf": "transformers", "safetensors": "sensorium"}
UNKNOWN = "unknown"
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "lppl-1.3c",
        "ms-pl",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "openrail++",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "lgpl-lr",
        "deepfloyd-if-license",
        "llama2",
        "gemma",
        "unknown",
        "other",
    ]
)
_ACCURACY = re.compile(rf"(trained head|top-1|linear|fine-tuned|zero-shot|{'|'.join(NEAR.values())})\b")


@dataclass(frozen=True)
class Base:
    """The published network that a run started from: its ``name``, its id on the ``hub`` and its ``license`` where they
    are known."""

    name: str
    hub: str = ""
    license: str = ""


@dataclass(frozen=True)
class Subject:
    """What a card is about. ``name``: of the folder or the repository; ``repo``: its id where it is pushed; ``written``:
    its format, None for the run alone; ``place``: the run's folder in it; ``refused``: why the run can't be opened there;
    ``files``: all that were written."""

    run: Run
    judged: Judgement | None
    bare: Bare
    how: Preparation
    name: str
    repo: str
    license: str
    written: Written | None
    place: str
    refused: str = ""
    files: tuple[str, ...] = ()

    @cached_property
    def system(self) -> System | None:
        """None for a recipe of the user's own."""
        return None if ":" in self.run.info.recipe else find(self.run.info.recipe)

    @property
    def title(self) -> str:
        """The system's usual name, or the recipe's."""
        return (self.system.short or self.system.name) if self.system else self.bare(self.run.info.recipe)

    @cached_property
    def network(self) -> Network | None:
        """The network by whose name it was made."""
        first = re.split(r"[-+]", str(self.run.settings.get("backbone", "")))[0]
        return next((one for one in NETWORKS if one.name == first), None)

    @property
    def data(self) -> str:
        """What the data are called."""
        return name_of(self.run.info.data.path)

    @property
    def library(self) -> str:
        if self.written is None:
            return LIBRARIES["safetensors"]
        form = self.written.form
        if form is not None and form.file.startswith("diffusion_"):
            return "diffusers"
        return LIBRARIES.get(self.written.to, self.written.to)

    @property
    def task(self) -> str | None:
        method = self.run.method
        return next((task for name, task in TASKS.items() if isinstance(method, ABILITIES[name])), None)

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """Those with a value."""
        found = self.judged.scores if self.judged else ()
        return tuple(score for score in found if score.value is not None)

    @property
    def own(self) -> tuple[Score, ...]:
        """The scores of what the files do as they are: of a classifier not those of other heads on its features."""
        if not isinstance(self.run.method, Classifier):
            return self.scores
        return tuple(score for score in self.scores if score.name in (HEAD, ERROR))

    @cached_property
    def base(self) -> Base | None:
        if "backbone_size" not in self.run.settings:
            return None
        path = Path(self.run.settings["backbone"])
        found = re.search(r"models--([\w.-]+?)--([\w.-]+)", str(path))
        hub = f"{found[1]}/{found[2]}" if found else ""
        return Base(hub or name_of(path), hub, _licensed(path))


def _licensed(path: Path) -> str:
    """The license that the card beside a checkpoint states; "" if there is none."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        found = ModelCard.load(card).data.get("license") if card.is_file() and card.stat().st_size < 1 << 20 else None
    except Exception:  # a file of others, in any form
        return ""
    return found if isinstance(found, str) else ""


def checked_license(license: str | None) -> str:
    """A license's identifier in the Hub's spelling. Raises SensoriumError for what can be none."""
    if license is None:
        return UNKNOWN
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,79}", license):
        raise SensoriumError(
            f"--license {license!r}: should be an identifier, such as apache-2.0, mit or cc-by-4.0 "
            "(huggingface.co/docs/hub/repositories-licenses)."
        )
    return license.lower()


def slug(text: str) -> str:
    """ASCII letters and digits with _ between: an identifier."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_") or "data"


def metric(score: Score) -> str:
    """The identifier of a score's metric."""
    return "accuracy" if score.share and _ACCURACY.match(score.name) else slug(score.name)


def metadata(of: Subject) -> ModelCardData:
    """The card's YAML: what is not known is left out."""
    known = of.license in LICENSES
    systems = [of.system.name] if of.system else []
    papers = [one.paper for one in (of.system, of.network) if one is not None]
    cited = [f"arxiv:{number}" for paper in papers for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", paper)]
    tags = ["sensorium", *systems, *([of.network.name] if of.network else []), *cited]
    data, results = of.data, of.own
    found = [
        EvalResult(
            task_type=of.task or "other",
            dataset_type=slug(data),
            dataset_name=data,
            metric_type=metric(score),
            metric_value=float(f"{score.value:.6g}"),  # 0.372, not 0.37200000000000005
            metric_name=score.name,
        )
        for score in results
    ]
    return ModelCardData(
        license=of.license if known else "other",
        license_name=None if known else of.license,
        base_model=(of.base.hub or None) if of.base else None,
        library_name=of.library,
        pipeline_tag=of.task,
        tags=tags,
        metrics=list(dict.fromkeys(metric(score) for score in results)) or None,
        eval_results=found or None,
        model_name=of.name if found else None,
    )


def model_card(of: Subject, sections: tuple[Callable[[Subject], list[str]], ...]) -> ModelCard:
    """The whole card; ``sections``: each the lines of one."""
    parts = [lines for section in sections if (lines := section(of))]
    body = "\n".join(line for part in parts for line in (*part, ""))
    return ModelCard(f"---\n{metadata(of).to_yaml()}\n---\n\n{body}")
