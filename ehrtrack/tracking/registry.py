"""The import path by which code stored with registered models checks its files; it must not move."""

from ehrtrack.tracking.client.registry import check_served as check_served
