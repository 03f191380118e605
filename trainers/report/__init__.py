"""How what was measured is shown: tables, plots, pages."""
