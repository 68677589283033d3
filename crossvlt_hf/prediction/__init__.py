"""Batch prediction: segment a whole data set into shards, and resume after interruptions."""

from .requests import ImageRequests, JsonlRequests, Request, Requests, RowRequests, open_requests
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
]
