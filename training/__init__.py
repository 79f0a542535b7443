"""Offline side: data sets, preparation, guidance maps, training, evaluation and export (torch)."""
