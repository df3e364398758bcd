"""The data source and the loss of my_project."""
