"""Discrete hazards on public tables, against Cox and a random survival forest; the tables come with scikit-survival."""
