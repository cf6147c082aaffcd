"""The hyperparameter search: what a trial draws, who runs it, and what the trials came to."""
