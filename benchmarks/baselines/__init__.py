"""Other programs, trained on the same data and scored by the same protocol."""
