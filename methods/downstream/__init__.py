"""Downstream tasks: they are trained on labels, and their scores judge a pretrained encoder."""

from methods.downstream.base import Task
from methods.downstream.classification import Classification
from methods.downstream.detection import Detection
from methods.downstream.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    "segmentation": Segmentation,
    "classification": Classification,
    "detection": Detection,
}
