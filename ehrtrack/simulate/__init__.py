"""A population whose truth is known: latent diseases write coded records, and an outcome whose risk is known exactly.

docs/simulation.md has the model in full.
"""
