"""From a grid of cells to one table: grid → plan → compiled calls → table."""
