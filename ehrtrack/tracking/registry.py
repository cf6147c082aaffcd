"""The name by which the code stored with registered models finds the check of its own files: it must not move."""

from ehrtrack.tracking.client.registry import check_served as check_served
