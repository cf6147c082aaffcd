"""Where there are many records and no labels worth having: four hospitals that write things in their own ways."""

from ehrtrack.simulate.world import World

WORLD = World(
    name="pretraining-site",
    description="four hospitals; the default dials",
    first_subject_id=10_000_001,
)
