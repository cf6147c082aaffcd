"""Where the outcome is to be predicted: the same diseases and hazards, other prevalences, habits and visits."""

from ehrtrack.simulate.world import World

WORLD = World(
    name="target-site",
    description="two hospitals with other habits, older subjects, shifted prevalences, sparser visits, more copying",
    first_subject_id=1,
    mean_age_years=64.0,
    prevalence_shift=0.35,
    visits_per_year=1.8,
    copy_forward=0.3,
    n_sites=2,
)
