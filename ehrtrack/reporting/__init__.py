"""A study's report: one page, and the tables and figures that a paper can take, out of what its runs logged."""
