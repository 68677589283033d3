"""Batch prediction: the masks of a whole data set, in shards that an interruption neither loses nor repeats."""

from .requests import ImageRequests, JsonlRequests, Request, Requests, RowRequests, open_requests, some_names
from .run import PredictionOptions, describe_reading, predict
from .shards import FORMATS, Shards


__all__ = [
    "FORMATS",
    "ImageRequests",
    "JsonlRequests",
    "PredictionOptions",
    "Request",
    "Requests",
    "RowRequests",
    "Shards",
    "describe_reading",
    "open_requests",
    "predict",
    "some_names",
]
