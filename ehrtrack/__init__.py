"""EHRTrack: survival models on electronic health records, with every run tracked and every claim checkable."""
