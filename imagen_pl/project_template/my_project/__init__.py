"""Parts of my_project that imagen_pl does not have: a data source and a loss."""
