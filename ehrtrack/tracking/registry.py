"""The name under which models registered before 2026-11-29 import the check of their own files when they are served."""

from ehrtrack.tracking.client.registry import check_served as check_served
