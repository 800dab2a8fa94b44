"""`/metrics`, in Prometheus's text format."""

from fastapi import APIRouter

router = APIRouter()
