"""One module is one line of the table: `ROWS`, and `measure(name, budget)` for each of them."""
