"""Most codes are noise: what drives the outcome is written seldom, among many codes that nothing drives."""

from ehrtrack.simulate.world import World

WORLD = World(
    name="noise",
    description="nine of ten codes are Zipf noise from 1,000 codes; diseases are seldom written down",
    first_subject_id=20_000_001,
    diagnosis_probability=0.08,
    drug_probability=0.08,
    procedure_probability=0.02,
    lab_probability=0.05,
    symptom_probability=0.02,
    copy_forward=0.0,
    noise_per_visit=9.0,
    baseline_hazard=0.2,
    n_noise_codes=1000,
)
