"""MONAI Label app: the class probabilities of a subject with several scans.

::

    python -m monailabel.main start_server --app APP --studies STUDIES --conf model MODEL --conf python PYTHON

One request names one image, ``S01_ct``; the app finds the other scans of ``S01`` beside it. This half runs in MONAI
Label's environment and knows nothing of mmfusion: ``classify.py`` runs in the other one, as one process beside it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or any decision about a patient."


class FusionApp(MONAILabelApp):
    """One inference task, ``fusion``, over a folder of scans.

    Args:
        app_dir, studies: as MONAI Label gives them.
        conf: ``model``, the folder of a finished model; ``python``, the interpreter that has mmfusion.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        wanted = {"model": "model.json", "python": ""}  # what each must lead to
        for name, file in wanted.items():
            if not conf.get(name) or not (Path(conf[name]) / file).is_file():
                raise MONAILabelException(
                    MONAILabelError.APP_INIT_ERROR,
                    f"--conf {name} {conf.get(name, '')}: a {'folder with model.json' if file else 'file'} is expected",
                )
        model = json.loads((Path(conf["model"]) / "model.json").read_text())
        self.modalities = model["case"]["modalities"]
        command = [conf["python"], str(Path(__file__).with_name("classify.py")), conf["model"], studies]
        self.task = ClassifySubject(command, model["modalities"], model["classes"])
        super().__init__(
            app_dir,
            studies,
            conf,
            name="mmfusion",
            description=f"Classification of a subject from several scans. {RESEARCH_USE_ONLY}",
            labels=model["classes"],
        )

    def init_datastore(self) -> Datastore:
        """Image files as usual, and DICOM folders ``<subject>_<modality>``, which get the subject as their id."""
        if self.studies.startswith(("http://", "https://")):
            raise MONAILabelException(
                MONAILabelError.APP_INIT_ERROR, "scans of one subject are found in a folder: give one as --studies"
            )
        folders = [f"*_{name}" for name in self.modalities]
        return LocalDatastore(
            self.studies,
            extensions=[*settings.MONAI_LABEL_DATASTORE_FILE_EXT, *folders],
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {"fusion": self.task}


class ClassifySubject(InferTask):
    """All scans of a subject to class probabilities.

    Not a ``BasicInferTask``: that one takes a single image through transforms and a network of one input, and
    inverts what comes out. A case has several paths, the network also takes ``present``, and there is nothing to
    invert.

    Args:
        command: starts ``classify.py``.
        modalities, labels: of the model.
    """

    def __init__(self, command: list[str], modalities: list[str], labels: list[str]) -> None:
        self.command, self.lock = command, Lock()
        self.process: subprocess.Popen[str] | None = None
        super().__init__(
            type=InferType.CLASSIFICATION,
            labels=labels,
            dimension=3,
            description=f"From {', '.join(modalities)}, any of which may be missing. {RESEARCH_USE_ONLY}",
            config={"device": device_list()},
        )

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        """No label file, and as result ``prediction`` (the list that MONAI Label's own classifiers return) and more."""
        answer = self.ask({"image": request["image"], "device": name_to_device(request.get("device"))})
        if "error" in answer:
            raise HTTPException(status_code=422, detail=answer["error"])  # MONAI Label's own exception hides the text
        return None, {**answer, "label_names": self.labels, "intended_use": RESEARCH_USE_ONLY}

    def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """One question to ``classify.py``, which is started with the first one, and again if it has ended."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                # it ends by itself when this process does: its input is closed then
                self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            return {"error": "the process that classifies has ended; the log of the server says why"}
        return json.loads(answer)
