"""Programs that are measured, or that measure, in a fresh process of their own."""
